"""Several files are one configuration, and values stand elsewhere. What is wrong is said of its own file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.cli.vocabulary import vocabulary
from gateway.config import Config, ConfigError, documents, load, parse

MAIN = """
include = ["conf.d/*.toml"]
[[listen]]
uri = "nbd://127.0.0.1:1"
[upstream.a]
uri = "memory:1M"
[[export]]
name = "x"
upstream = "a"
"""


class Files:
    """The files of a configuration."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.noted: list[Path] = []

    def write(self, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            path = self.directory / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    def load(self) -> Config:
        return load(self.directory / "g.toml", vocabulary(), self.noted.append)

    def problems(self) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.load()
        return [str(each).replace(f"{self.directory}/", "") for each in caught.value.problems]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path)
    made.write({"g.toml": MAIN})
    return made


def export(name: str, upstream: str = "a") -> str:
    return f'[[export]]\nname = "{name}"\nupstream = "{upstream}"\n'


def test_files_add_listeners_upstreams_exports_and_rules(files: Files) -> None:
    files.write(
        {
            "conf.d/20.toml": f'{export("late")}[[rule]]\nexports = "late"\n',
            "conf.d/10.toml": '[[listen]]\nuri = "nbd://127.0.0.1:2"\n[upstream.b]\nuri = "memory:2M"\n'
            + export("early", "b"),
            "conf.d/.#10.toml": "an editor's copy",
            "conf.d/notes.txt": "no configuration",
            "conf.d/only.toml": "[log]\nlevel = 'debug'\n",
        }
    )
    config = files.load()
    assert [each.name for each in config.export] == ["x", "early", "late"]
    assert [each.uri.port for each in config.listen] == [1, 2]
    assert [*config.upstream] == ["a", "b"]
    assert (len(config.rule), config.log.level) == (1, "debug")


def test_patterns_count_in_their_order_and_a_file_may_be_named(files: Files) -> None:
    main = MAIN.replace('["conf.d/*.toml"]', '["z.toml", "conf.d/[ab].toml"]')
    files.write({"g.toml": main, "z.toml": export("z")})
    files.write({f"conf.d/{name}.toml": export(name) for name in "cba"})
    assert [each.name for each in files.load().export] == ["x", "z", "a", "b"]


def test_a_directory_that_may_come_is_empty_and_a_file_that_is_named_is_not(files: Files) -> None:
    assert len(files.load().export) == 1
    files.write({"g.toml": MAIN.replace("conf.d/*.toml", "conf.d/a.toml")})
    assert files.problems() == ["conf.d/a.toml: cannot be read: No such file or directory"]


WRONG: dict[str, tuple[dict[str, str], list[str]]] = {
    "no TOML": (
        {"conf.d/a.toml": "x", "conf.d/b.toml": "\ny ="},
        ["conf.d/a.toml:1: ", "conf.d/b.toml:2: "],
    ),
    "a value": (
        {"conf.d/a.toml": f"# one\n{export('y')}hide = 3\n"},
        ["conf.d/a.toml:5: export.hide: expected true or false, got 3"],
    ),
    "in both": (
        {
            "g.toml": MAIN + "hide = 4\n",
            "conf.d/a.toml": "[upstream.b]\nuri = 3\n",
        },
        [
            "g.toml:10: export.hide: expected true or false, got 4",
            "conf.d/a.toml:2: upstream.b.uri: expected text in quotes, got 3",
        ],
    ),
    "an unknown key": (
        {"conf.d/a.toml": f'{export("y")}upstreem = "b"\n'},
        ['conf.d/a.toml:4: export.upstreem: unknown key, did you mean "upstream"?'],
    ),
    "an address that another file has": (
        {"conf.d/a.toml": '[[listen]]\nuri = "nbd://127.0.0.1:1"\n'},
        ["conf.d/a.toml:2: listen.uri: nbd://127.0.0.1:1 is listened on already (g.toml:4)"],
    ),
    "an upstream that another file has": (
        {"conf.d/a.toml": '\n[upstream.a]\nuri = "memory:2M"\n'},
        ["conf.d/a.toml:2: upstream.a: is in g.toml:5 as well"],
    ),
    "a key that another file has": (
        {"conf.d/a.toml": "drain-seconds = 3\n", "conf.d/b.toml": "\ndrain-seconds = 4\n"},
        ["conf.d/b.toml:2: drain-seconds: is in conf.d/a.toml:1 as well"],
    ),
    "files that include": (
        {"conf.d/a.toml": 'include = ["b.toml"]\n'},
        ["conf.d/a.toml:1: include: a file that is included includes no others"],
    ),
    "another shape": (
        {"conf.d/a.toml": "listen = 3\nupstream = 4\n"},
        [
            "conf.d/a.toml:1: listen: expected [[listen]], got 3",
            "conf.d/a.toml:2: upstream: is in g.toml:5 as well",
        ],
    ),
    "a directory in the pattern": (
        {"g.toml": MAIN.replace("conf.d/*.toml", "conf.*/a.toml")},
        ['g.toml:2: include: "conf.*/a.toml": * ? [ ] are for the name of a file, and not for its'],
    ),
    "nothing": (
        {"g.toml": MAIN.replace("conf.d/*.toml", "")},
        ['g.toml:2: include: "": expected a path, or a pattern such as conf.d/*.toml'],
    ),
    "a file twice": (
        {
            "g.toml": MAIN.replace('"conf.d/*.toml"', '"conf.d/*.toml", "conf.d/a.toml"'),
            "conf.d/a.toml": export("y"),
        },
        ["g.toml:2: include: conf.d/a.toml is included already"],
    ),
    "itself": (
        {"g.toml": MAIN.replace("conf.d/*.toml", "*.toml")},
        ["g.toml:2: include: g.toml is included already"],
    ),
    "another value": (
        {"g.toml": MAIN.replace('["conf.d/*.toml"]', "3")},
        ["g.toml:2: include: expected a list, got 3"],
    ),
    "a member of the list": (
        {"g.toml": MAIN.replace('["conf.d/*.toml"]', "[3]")},
        ["g.toml:2: include: expected text in quotes, got 3"],
    ),
    "what is lacking is the first file's": (
        {
            "g.toml": 'include = ["conf.d/*.toml"]\n',
            "conf.d/a.toml": '[upstream.a]\nuri = "memory:1M"\n',
        },
        ['g.toml:1: listen: at least one is needed: [[listen]] with uri = "nbd://127.0.0.1:10810"'],
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_of_the_file_that_has_it(what: str, files: Files) -> None:
    texts, said = WRONG[what]
    files.write(texts)
    found = files.problems()
    assert len(found) == len(said), found
    for each, beginning in zip(found, said, strict=True):
        assert each.startswith(beginning)


def test_there_is_a_bound(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MOST_FILES", 2)
    files.write({f"conf.d/{number}.toml": export(str(number)) for number in range(3)})
    assert files.problems() == [
        "g.toml:2: include: expected no more than 2 files of 16 MiB together"
    ]


def test_a_text_alone_includes_nothing() -> None:
    with pytest.raises(ConfigError, match=r't:2: include: "conf.d/\*.toml": only a file includes'):
        parse(MAIN, "t")


def test_whatever_it_depends_on_is_noted(files: Files) -> None:
    address = files.directory / "address"
    files.write({"conf.d/a.toml": f'[upstream.b]\nuri = "nbd://${{file:{address}}}"\n'})
    files.write({"address": "10.0.0.5\n"})
    files.load()
    names = [str(each.relative_to(files.directory)) for each in files.noted]
    assert names == ["g.toml", "conf.d", "conf.d/a.toml", "address"]


# --- Values from elsewhere


def test_addresses_and_secrets_may_stand_elsewhere(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE", "10.0.0.5")
    monkeypatch.setenv("CREDENTIALS", "/run/c")
    files.write({"port": "10900\r\n"})
    files.write(
        {
            "conf.d/b.toml": f"""
[[listen]]
uri = "nbds://0.0.0.0:${{file:{files.directory}/port}}"
certificates = "${{env:CREDENTIALS}}/pki"
[upstream.b]
uris = ["nbd://${{env:STORAGE}}", "nbd://${{env:STORAGE}}:1"]
[upstream.c]
command = ["sh", "-c", "echo ${{HOME}} $${{env:HOME}}"]
[control]
socket = "${{env:CREDENTIALS}}/control"
[[rule]]
who = {{ network = ["${{env:STORAGE}}"] }}
"""
        }
    )
    config = files.load()
    assert config.listen[1].uri.port == 10900
    assert config.listen[1].certificates == Path("/run/c/pki")
    assert [each.port for each in config.upstream["b"].nbd_uris] == [10809, 1]
    assert config.upstream["c"].command == ("sh", "-c", "echo ${HOME} ${env:HOME}")
    assert config.control.socket == Path("/run/c/control")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (
            "${env:NOT_THERE}",
            '${env:NOT_THERE}: there is no variable "NOT_THERE" in the environment',
        ),
        ("${env:}", '${env:}: there is no variable "" in the environment'),
        ("${file:missing}", "${file:missing}: cannot be read: No such file or directory"),
        ("${file:.}", "${file:.}: cannot be read: Is a directory"),
        ("${file:lines}", "${file:lines}: expected a text of one line, up to 65536 bytes"),
        ("${file:long}", "${file:long}: expected a text of one line, up to 65536 bytes"),
        ("${file:/dev/zero}", "${file:/dev/zero}: expected a text of one line, up to 65536 bytes"),
        ("${file:bytes}", "${file:bytes}: is no text of one line"),
        ("${file:/dev/null}", "${file:/dev/null}: the file is empty"),
        ("${env:EMPTY}", "${env:EMPTY}: the variable is empty"),
    ],
)
def test_what_is_not_there_is_said_of_the_key(
    files: Files, monkeypatch: pytest.MonkeyPatch, value: str, says: str
) -> None:
    monkeypatch.chdir(files.directory)
    monkeypatch.delenv("NOT_THERE", raising=False)
    monkeypatch.setenv("EMPTY", "")
    files.write({"lines": "a\nb\n", "long": "x" * 70_000})
    (files.directory / "bytes").write_bytes(b"\xff")
    files.write({"g.toml": MAIN, "conf.d/b.toml": f'[upstream.b]\nuri = "nbd://{value}"\n'})
    assert files.problems() == [f"conf.d/b.toml:2: upstream.b.uri: {says}"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[[export]]\nname = "${env:HOME}"\nupstream = "a"\n', "export.name"),
        ('[log]\nlevel = "${file:x}"\n', "log.level"),
        ('[[rule]]\npolicies = [{ use = "audit", file = "${env:HOME}" }]\n', "rule.policies.file"),
    ],
)
def test_where_it_is_not_replaced_it_is_refused(files: Files, text: str, key: str) -> None:
    files.write({"conf.d/b.toml": text})
    [problem] = files.problems()
    assert problem.startswith(f"conf.d/b.toml:2: {key}: ")
    assert "only in uri, certificates, psk, proxy-protocol, uris, command, psk-user," in problem


# --- The verbs


@contextmanager
def said_on_standard_input(text: str) -> Iterator[None]:
    before = os.dup(0)
    reader, writer = os.pipe()
    os.write(writer, text.encode())
    os.close(writer)
    os.dup2(reader, 0)
    os.close(reader)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_check_takes_several_files_and_standard_input(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files.directory)
    files.write({"conf.d/a.toml": '[[listen]]\nuri = "nbd+unix:///?socket=no/s"\n'})
    assert main(["check", "g.toml"]) == 1
    assert capsys.readouterr().err == "conf.d/a.toml:2: listen.uri: there is no directory no\n"
    assert main(["check", "g.toml", "--offline"]) == 0
    capsys.readouterr()
    with said_on_standard_input(MAIN + "hide = 3\n"):
        assert main(["check", "-"]) == 1
    assert capsys.readouterr().err == (
        "standard input:10: export.hide: expected true or false, got 3\n"
    )


def test_check_bears_what_is_nested_too_deeply(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files.directory)
    files.write({"g.toml": f"{'.'.join('a' * 3 * sys.getrecursionlimit())} = 1\n"})
    assert main(["check", "g.toml"]) == 1
    assert capsys.readouterr().err == "g.toml: nested too deeply\n"

"""Manual pages and completions are those of the program as it is, and what reads them takes them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gateway.cli import VERBS
from gateway.config import schema
from tests.packing import packing
from tests.tools.patience import HANG_SECONDS

MANUAL = packing("manual")
PACKED = packing("verbs")


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    there = tmp_path_factory.mktemp("manual")
    MANUAL.write(there)
    return there / "share"


def text_of(share: Path, page: str) -> str:
    """A page as one types it again."""
    return (share / "man" / page).read_text().replace("\\-", "-").replace("\\e", "\\")


def test_every_verb_has_a_page_with_its_options(share: Path) -> None:
    whole = PACKED.program()
    assert [verb.words[0] for verb in whole.verbs] == list(VERBS)
    for verb in whole.all():
        text = text_of(share, f"man1/{MANUAL.page_of(verb)}.1")
        assert f".B {verb.usage}\n" in text
        for option in (*verb.arguments, *verb.options):
            assert f".TP\n.B {MANUAL.option(option)}\n{option.text}" in text, verb
        for paragraph in verb.text:
            assert paragraph.splitlines()[-1] in text
        assert ":param" not in text


def test_every_key_is_in_the_page_of_the_configuration(share: Path) -> None:
    text = text_of(share, "man5/nbd-gateway.toml.5")
    whole = schema()
    for table in (whole, *whole["$defs"].values()):
        for key, said in table["properties"].items():
            if "description" in said and "$defs" not in str(said):
                assert f".TP\n.B {key}\n{' '.join(said['description'].split())}" in text
    assert 'Default: "1M".' in text
    assert "Default: 1048576" not in text


def test_pages_do_not_depend_on_the_terminal(share: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    written = {str(page.relative_to(share)): page for page in (share / "man").rglob("*.?")}
    assert MANUAL.pages() == {name: page.read_text() for name, page in written.items()}


def said_by(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done
    assert not done.stderr, done
    return done.stdout


@pytest.mark.real
def test_groff_has_nothing_to_say_about_the_pages(share: Path) -> None:
    pages = sorted((share / "man").rglob("*.?"))
    shown = said_by("groff", "-man", "-ww", "-Tascii", *pages)
    assert "nbd-gateway serve nbd://10.0.0.5 --listen nbds://0.0.0.0" in shown


BASH = """
source {file}
COMP_WORDS=({words}) COMP_CWORD=$(( {count} - 1 ))
_nbd_gateway
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
ZSH = """
fpath=({folder} $fpath)
autoload -U compinit && compinit -u -D
# What is described is what is offered: caught here, for a terminal shows no more of it.
_describe() {{ print -rl -- "${{(P@)4}}" >{said}; }}
_arguments() {{ [[ $1 == -C ]] && state=cmds; }}
words=(nbd-gateway '') CURRENT=2
$_comps[nbd-gateway]
"""


@pytest.mark.real
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["nbd-gateway", "se"], ["serve", "sessions"]),
        (["nbd-gateway", "serve", "--tls-c"], ["--tls-certificates"]),
        (["nbd-gateway", "pki", "re"], ["renew", "revoke"]),
        (["nbd-gateway", "serve", "--log-level", "w"], ["warning"]),
    ],
)
def test_shells_complete(share: Path, tmp_path: Path, line: list[str], expected: list[str]) -> None:
    words = " ".join(f"'{word}'" for word in line)
    file = share / MANUAL.COMPLETIONS["bash"]
    script = BASH.format(file=file, words=words, count=len(line))
    assert sorted(said_by("bash", "--norc", "-c", script).split()) == expected
    script = f"source {share / MANUAL.COMPLETIONS['fish']}; complete -C '{' '.join(line)}'"
    shown = said_by(
        "fish", "--no-config", "-c", script, cwd=tmp_path
    )  # where it has no files to offer
    assert sorted(each.split("\t")[0] for each in shown.splitlines()) == expected


@pytest.mark.real
def test_zsh_is_told_every_verb(share: Path, tmp_path: Path) -> None:
    file, said = share / MANUAL.COMPLETIONS["zsh"], tmp_path / "said"
    said_by("zsh", "-f", "-c", ZSH.format(folder=file.parent, said=said))
    assert [each.partition(":")[0] for each in said.read_text().splitlines()] == list(VERBS)

"""nbd-gateway check says what serve will need and lacks, at its line, as a serve says it that fails."""

from __future__ import annotations

import grp
import json
import os
import pwd
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.config import parse
from gateway.config.models import SocketOwner
from gateway.net.listen import ListenError, open_listener
from gateway.net.private import PrivateSocket
from gateway.net.socket_file import ungivable

Capture = pytest.CaptureFixture[str]

LISTEN = '[[listen]]\nuri = "nbd://127.0.0.1:0"\n'
UNIX = '[[listen]]\nuri = "nbd+unix:///?socket=s"\n'
UPSTREAM = '[upstream.a]\nuri = "memory:1M"\n'
RULE = "[[rule]]\n"
EXPORT = '[[export]]\nname = ""\nupstream = "a"\n'
AUDIT = 'policies = [ {{ use = "readonly" }}, {{ use = "audit", file = "{}" }} ]\n'
LONG = "s" * 108

GONE = "/no-such-directory"
"""The path of a Unix socket for HTTP is a whole one."""

TOO_LONG = "x" * 300
"""For any file system (NAME_MAX, limits.h)."""

LACKS: dict[str, tuple[str, list[str]]] = {
    "a file": (
        f'{LISTEN}[upstream.a]\nuri = "file:missing.img"\n',
        ["g.toml:4: upstream.a.uri: cannot open missing.img: No such file or directory"],
    ),
    "a file that is a directory": (
        f'{LISTEN}[upstream.a]\nuri = "file:."\n',
        ["g.toml:4: upstream.a.uri: . is a directory, not a file or a block device"],
    ),
    "a program": (
        f'{LISTEN}[upstream.a]\ncommand = ["no-such-program", "disk"]\n',
        ["g.toml:4: upstream.a.command: there is no program 'no-such-program'"],
    ),
    "a program by its path": (
        f'{LISTEN}[upstream.a]\ncommand = ["./g.toml"]\n',
        ["g.toml:4: upstream.a.command: there is no program './g.toml'"],
    ),
    "a user": (
        f'user = "nobody-of-that-name"\n{LISTEN}{UPSTREAM}',
        ['g.toml:1: user: there is no user "nobody-of-that-name"'],
    ),
    "a group": (
        f'user = "nobody"\ngroup = "nobody-of-that-name"\n{LISTEN}{UPSTREAM}',
        ['g.toml:2: group: there is no group "nobody-of-that-name"'],
    ),
    "an audit directory": (
        LISTEN + UPSTREAM + EXPORT + AUDIT.format("logs/audit.log"),
        ["g.toml:8: export.policies: audit: there is no directory logs"],
    ),
    "an audit directory of a rule": (
        LISTEN + UPSTREAM + EXPORT + RULE + AUDIT.format("g.toml/audit.log"),
        ["g.toml:9: rule.policies: audit: there is no directory g.toml"],
    ),
    "an audit file": (
        LISTEN + UPSTREAM + EXPORT + RULE + AUDIT.format("."),
        ["g.toml:9: rule.policies: audit: . is a directory"],
    ),
    "certificates": (
        f'[[listen]]\nuri = "nbds://h"\ncertificates = "pki"\n{UPSTREAM}',
        ["g.toml:3: listen.certificates: listener nbds://h:10809: pki: is no directory"],
    ),
    "keys": (
        f'[[listen]]\nuri = "nbds://h"\npsk = "keys.psk"\n{UPSTREAM}',
        [
            "g.toml:3: listen.psk: listener nbds://h:10809: keys.psk: cannot be read: No such file or directory"
        ],
    ),
    "all that is to be in a directory of certificates": (
        f'[[listen]]\nuri = "nbds://h"\ncertificates = "."\n{UPSTREAM}',
        [
            f"g.toml:3: listen.certificates: listener nbds://h:10809: {name}: cannot be read: No such file or"
            for name in ("server-cert.pem", "server-key.pem", "ca-cert.pem")
        ],
    ),
    "certificates, and keys beside them": (
        f'[[listen]]\nuri = "nbds://h"\ncertificates = "pki"\npsk = "keys.psk"\n{UPSTREAM}',
        [
            "g.toml:3: listen.certificates: listener nbds://h:10809: pki: is no directory",
            "g.toml:4: listen.psk: listener nbds://h:10809: keys.psk: cannot be read: No such file",
        ],
    ),
    "certificates for two servers": (
        f'{LISTEN}[upstream.a]\nuris = ["nbds://h/?tls-certificates=x", "nbds://i/?tls-certificates=y"]\n',
        [
            f"g.toml:4: upstream.a.uris: upstream a (nbds://{host}:10809/?tls-certificates={name}): {name}:"
            for host, name in (("h", "x"), ("i", "y"))
        ],
    ),
    "the same for two servers": (
        f'{LISTEN}[upstream.a]\nuris = ["nbds://h", "nbds://i"]\ncertificates = "pki"\n',
        ["g.toml:5: upstream.a.certificates: upstream a (nbds://h:10809): pki: is no directory"],
    ),
    "certificates for a server": (
        f'{LISTEN}[upstream.a]\nuri = "nbds://h"\ncertificates = "pki"\n',
        ["g.toml:5: upstream.a.certificates: upstream a: pki: is no directory"],
    ),
    "certificates with too long a name": (
        f'[[listen]]\nuri = "nbds://h"\ncertificates = "{TOO_LONG}"\n{UPSTREAM}',
        [
            f"g.toml:3: listen.certificates: listener nbds://h:10809: {TOO_LONG}: cannot be looked at: File"
        ],
    ),
    "certificates for a server with too long a name": (
        f'{LISTEN}[upstream.a]\nuri = "nbds://h"\ncertificates = "{TOO_LONG}"\n',
        [
            f"g.toml:5: upstream.a.certificates: upstream a: {TOO_LONG}: cannot be looked at: File name"
        ],
    ),
    "keys with too long a name": (
        f'[[listen]]\nuri = "nbds://h"\npsk = "{TOO_LONG}"\n{UPSTREAM}',
        [
            f"g.toml:3: listen.psk: listener nbds://h:10809: {TOO_LONG}: cannot be read: File name too long"
        ],
    ),
    "a file with too long a name": (
        f'{LISTEN}[upstream.a]\nuri = "file:{TOO_LONG}"\n',
        [f"g.toml:4: upstream.a.uri: cannot open {TOO_LONG}: File name too long"],
    ),
    "a program with too long a name": (
        f'{LISTEN}[upstream.a]\ncommand = ["./{TOO_LONG}"]\n',
        ["g.toml:4: upstream.a.command: there is no program"],
    ),
    "an audit file with too long a name": (
        LISTEN + UPSTREAM + EXPORT + RULE + AUDIT.format(TOO_LONG),
        [f"g.toml:9: rule.policies: audit: {TOO_LONG}: File name too long"],
    ),
    "the directory of a socket": (
        f'[[listen]]\nuri = "nbd+unix:///?socket=run/s"\n{UPSTREAM}',
        ["g.toml:2: listen.uri: there is no directory run"],
    ),
    "the directory of a socket is a file": (
        f'[[listen]]\nuri = "nbd+unix:///?socket=g.toml/s"\n{UPSTREAM}',
        ["g.toml:2: listen.uri: g.toml is no directory"],
    ),
    "the directory of the control socket": (
        f'{LISTEN}{UPSTREAM}[control]\nsocket = "run/control"\n',
        ["g.toml:6: control.socket: there is no directory run"],
    ),
    "room for a socket": (
        f'[[listen]]\nuri = "nbd+unix:///?socket=g.toml"\n{UPSTREAM}',
        ["g.toml:2: listen.uri: the file exists and is not a socket"],
    ),
    "room for the control socket": (
        f'{LISTEN}{UPSTREAM}[control]\nsocket = "g.toml"\n',
        ["g.toml:6: control.socket: the file exists and is not a socket"],
    ),
    "a user to own a socket": (
        f'{UNIX}socket-owner = "nobody-of-that-name"\n{UPSTREAM}',
        ["g.toml:3: listen.socket-owner: there is no user 'nobody-of-that-name'"],
    ),
    "a group to own a socket": (
        f'{UNIX}socket-owner = "root:none-of-that-name"\n{UPSTREAM}',
        ["g.toml:3: listen.socket-owner: there is no group 'none-of-that-name'"],
    ),
    "the directory of the admin socket": (
        f'{LISTEN}{UPSTREAM}[admin]\nuri = "http+unix://{GONE}/admin"\n',
        [f"g.toml:6: admin.uri: there is no directory {GONE}"],
    ),
    "tokens": (
        f'{LISTEN}{UPSTREAM}[admin]\ntokens = "tokens"\n',
        ["g.toml:6: admin.tokens: tokens: cannot be read: No such file or directory"],
    ),
    "certificates of the admin address": (
        f'{LISTEN}{UPSTREAM}[admin]\nuri = "https://127.0.0.1:0"\ncertificates = "."\n',
        [
            f"g.toml:7: admin.certificates: {name}: cannot be read: No such file or directory"
            for name in ("server-cert.pem", "server-key.pem", "ca-cert.pem")
        ],
    ),
    "what a fleet needs": (
        f'{LISTEN}[upstream.a]\nuri = "nbd://h"\n[fleet]\netcd = "https://127.0.0.1:1"\nname = "a"\n'
        'address = "nbds://127.0.0.1:1"\ncertificates = "."\netcd-certificates = "etcd"\n'
        'etcd-user = "us"\netcd-password-file = "password"\nfence = ["no-such-program"]\n',
        [
            *(
                f"g.toml:9: fleet.certificates: {name}: cannot be read: No such file or directory"
                for name in ("server-cert.pem", "server-key.pem", "ca-cert.pem")
            ),
            "g.toml:10: fleet.etcd-certificates: etcd: is no directory",
            "g.toml:12: fleet.etcd-password-file: password: cannot be read: No such file or directory",
            "g.toml:13: fleet.fence: there is no program 'no-such-program'",
        ],
    ),
    "several": (
        '[control]\nsocket = "run/control"\n[upstream.a]\nuri = "file:missing.img"\n'
        '[[listen]]\nuri = "nbd+unix:///?socket=run/s"\n',
        [
            "g.toml:2: control.socket: there is no directory run",
            "g.toml:4: upstream.a.uri: cannot open missing.img: No such file or directory",
            "g.toml:6: listen.uri: there is no directory run",
        ],
    ),
}
"""What is lacking, and what is said of it."""

AT_THE_FIRST_CLIENT = {
    *("a program", "a program by its path", "a program with too long a name"),
    "an audit file with too long a name",
    *("an audit directory", "an audit directory of a rule", "an audit file"),
}
"""What a gateway starts without."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("what", LACKS)
def test_check_says_what_is_lacking(what: str, tmp_path: Path, capsys: Capture) -> None:
    text, said = LACKS[what]
    (tmp_path / "g.toml").write_text(text)
    assert main(["check", "g.toml"]) == 1
    out, error = capsys.readouterr()
    lines = error.splitlines()
    assert out == ""
    assert all(map(str.startswith, lines, said)), lines
    assert len(lines) == len(said)


@pytest.mark.parametrize("what", sorted(LACKS.keys() - AT_THE_FIRST_CLIENT))
def test_serve_fails_for_it_and_says_the_same(what: str, tmp_path: Path, capsys: Capture) -> None:
    text, said = LACKS[what]
    (tmp_path / "g.toml").write_text(text)
    assert main(["serve", "--config", "g.toml"]) == 1
    error = capsys.readouterr().err
    assert any(line.split(": ", 2)[2].rpartition(": ")[2] in error for line in said)


def test_serve_says_of_all_files_of_credentials_too(tmp_path: Path, capsys: Capture) -> None:
    text, _said = LACKS["all that is to be in a directory of certificates"]
    (tmp_path / "g.toml").write_text(text)
    assert main(["serve", "--config", "g.toml"]) == 1
    error = capsys.readouterr().err
    for name in ("server-cert.pem", "server-key.pem", "ca-cert.pem"):
        assert f"listener nbds://h:10809: {name}: cannot be read" in error


@pytest.mark.parametrize("what", LACKS)
def test_offline_nothing_is_looked_for(what: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "g.toml").write_text(LACKS[what][0])
    assert main(["check", "--offline", "g.toml"]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    assert out.startswith("g.toml: ok\n")


def test_offline_nothing_is_opened(tmp_path: Path, capsys: Capture) -> None:
    """Not even what is there: whoever opens the pipe would wait for its writer."""
    os.mkfifo(tmp_path / "keys.psk")
    (tmp_path / "g.toml").write_text(
        f'[[listen]]\nuri = "nbds://h"\npsk = "keys.psk"\n{UPSTREAM}{EXPORT}'
        + AUDIT.format("keys.psk")
    )
    assert main(["check", "--offline", "g.toml"]) == 0


def test_what_is_there_is_not_missed(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "disk.img").write_bytes(b"content")
    assert main(["pki", "init", "pki", "--psk", "joe"]) == 0
    (tmp_path / "g.toml").write_text(
        '[[listen]]\nuri = "nbds+unix:///?socket=s"\ncertificates = "pki"\npsk = "pki/keys.psk"\n'
        '[[listen]]\nuri = "nbd+unix:///?socket=%00abstract/s"\n'
        '[upstream.a]\nuri = "file:disk.img"\n'
        '[upstream.b]\ncommand = ["sh"]\n'
        f'[[export]]\nname = "b"\nupstream = "b"\n{EXPORT}{AUDIT.format("audit.log")}'
        '[control]\nsocket = "control"\n'
    )
    assert main(["check", "g.toml"]) == 0
    assert capsys.readouterr().err == ""
    assert {each.name for each in tmp_path.iterdir()} == {"disk.img", "pki", "g.toml"}
    assert (tmp_path / "disk.img").read_bytes() == b"content"


def test_a_socket_that_stands_already_is_no_hindrance(tmp_path: Path, capsys: Capture) -> None:
    """Whether anybody listens on it, `serve` finds out."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind("s")
    ours = f"{pwd.getpwuid(os.geteuid()).pw_name}:{grp.getgrgid(os.getegid()).gr_name}"
    (tmp_path / "g.toml").write_text(f'{UNIX}socket-owner = "{ours}"\n{UPSTREAM}')
    assert main(["check", "g.toml"]) == 0
    assert capsys.readouterr().err == ""


NOBODY = 65534


@pytest.fixture
def not_root() -> Iterator[None]:
    """Whoever runs the tests has no more rights than most."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)  # and the capabilities go with it (capabilities(7))
    yield
    os.seteuid(before)


def test_who_is_not_root_may_not_give_a_socket_away(not_root: None) -> None:
    root, group = pwd.getpwuid(0).pw_name, grp.getgrgid(0).gr_name
    ours = {os.getegid(), *os.getgroups()}
    other = next(each.gr_name for each in grp.getgrall() if each.gr_gid not in ours)
    for owner, expected in {
        SocketOwner(root, None): f"its file cannot be given to {root}: Operation not permitted",
        SocketOwner(
            root, group
        ): f"its file cannot be given to {root}:{group}: Operation not permitted",
        SocketOwner(None, other): f"its file cannot be given to :{other}: Operation not permitted",
        SocketOwner(None, grp.getgrgid(os.getegid()).gr_name): None,
    }.items():
        assert ungivable(owner) == expected


async def test_and_serve_says_the_same(not_root: None) -> None:
    with tempfile.TemporaryDirectory() as place:
        uri = f"nbd+unix:///?socket={place}/s"
        text = f'[[listen]]\nuri = "{uri}"\nsocket-owner = "root"\n{UPSTREAM}{EXPORT}'
        with pytest.raises(ListenError) as refused:
            await open_listener(parse(text, "f").listen[0])
        assert str(refused.value) == (
            f"cannot listen on {uri}: its file cannot be given to root: Operation not permitted"
        )


def test_certificates_that_end_soon_are_a_warning(tmp_path: Path, capsys: Capture) -> None:
    assert main(["pki", "init", "pki", "--days", "7"]) == 0
    (tmp_path / "g.toml").write_text(
        f'[[listen]]\nuri = "nbds://h"\ncertificates = "pki"\n{UPSTREAM}'
    )
    capsys.readouterr()
    assert main(["check", "g.toml"]) == 0
    found = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert found
    assert all(line.startswith("  warning: nbds://h:10809: pki/") for line in found), found
    assert main(["check", "--offline", "g.toml"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_room_for_the_socket_of_a_command(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / LONG
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    (tmp_path / "g.toml").write_text(f'{LISTEN}[upstream.a]\ncommand = ["sh"]\n')
    with pytest.raises(
        OSError, match="set TMPDIR"
    ) as refused:  # what the first client is told of it
        PrivateSocket()
    assert main(["check", "g.toml"]) == 1
    why = refused.value.strerror
    assert capsys.readouterr().err == f"g.toml:4: upstream.a.command: {why}\n"
    assert not [*directory.iterdir()]
    assert main(["check", "--offline", "g.toml"]) == 0


def test_what_may_not_be_written(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so the kernel's answer is given here."""
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    (tmp_path / "g.toml").write_text(
        f'[[listen]]\nuri = "nbd+unix:///?socket=s"\n{UPSTREAM}{EXPORT}{RULE}{AUDIT.format("a.log")}'
    )
    assert main(["check", "g.toml"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "g.toml:2: listen.uri: nothing can be made in the directory .",
        "g.toml:9: rule.policies: audit: . cannot be written",
    ]


@pytest.mark.parametrize("verb", [["check"], ["check", "--offline"], ["serve", "--config"]])
def test_the_control_path_has_to_fit(verb: list[str], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "g.toml").write_text(f'{LISTEN}{UPSTREAM}[control]\nsocket = "{LONG}"\n')
    assert main([*verb, "g.toml"]) == 1
    assert capsys.readouterr().err.removeprefix("nbd-gateway: ") == (
        f'g.toml:6: control.socket: "{LONG}": the path of a Unix socket has at most 107 bytes,'
        " this one 108\n"
    )


def test_programs_have_it_in_one_object(tmp_path: Path, capsys: Capture) -> None:
    text, [said] = LACKS["a file"]
    (tmp_path / "g.toml").write_text(text)
    assert main(["check", "--json", "g.toml"]) == 1
    message = said.removeprefix("g.toml:4: upstream.a.uri: ")
    out, error = capsys.readouterr()
    assert error == ""  # it is said once
    found = json.loads(out)
    assert found == {
        "file": "g.toml",
        "ok": False,
        "offline": False,
        "problems": [{"file": "g.toml", "line": 4, "key": "upstream.a.uri", "message": message}],
        "serves": [],
    }
    assert main(["check", "--json", "--offline", "g.toml"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["offline"], found["problems"]) == (True, True, [])
    assert found["serves"] == [
        "listens on nbd://127.0.0.1:0, at most 1000 clients",
        "every name: the same name of a (file:missing.img)",
    ]
    (tmp_path / "g.toml").write_text("x")
    assert main(["check", "--json", "g.toml"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["line"] == 1

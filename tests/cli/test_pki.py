"""nbd-gateway pki init."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import main
from tests.tools.patience import HANG_SECONDS

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_init(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["--host", "a.example", "--host", "b.example", "--client", "joe", "--client", "ann"]
    assert main(["pki", "init", "my pki", *arguments, "--psk", "joe", "--days", "7"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    made = lines[: lines.index("")]
    assert made == [
        f"my pki/{name}"
        for name in (
            "ca-cert.pem", "ca-key.pem", "server-cert.pem", "server-key.pem",
            "client-cert.pem", "client-key.pem",
            "ann/ca-cert.pem", "ann/client-cert.pem", "ann/client-key.pem",
            "ca-issued.txt", "keys.psk",
        )
    ]  # fmt: skip
    assert all((tmp_path / name).is_file() for name in made)
    assert "for trying things out" in out
    assert f"--tls-certificates '{tmp_path}/my pki'" in out
    assert f"nbds://joe@localhost?tls-psk-file={tmp_path}/my%20pki/keys.psk" in out

    assert main(["pki", "init", "my pki"]) == 1
    assert capsys.readouterr().err == (
        "nbd-gateway: my pki: has ca-cert.pem, ca-key.pem, server-cert.pem, server-key.pem, client-cert.pem,"
        " client-key.pem, ca-issued.txt already, and nothing is overwritten; if a try has failed, remove what"
        " it has left\n"
    )


def test_a_directory_that_is_not_utf8_is_said_as_a_shell_takes_it(
    tmp_path: Path, capsys: Capture
) -> None:
    """To one that knows \\x (bash, zsh, ksh, busybox)."""
    assert main(["pki", "init", "it's\udcff\\\n"]) == 0
    out, _err = capsys.readouterr()
    [said] = re.findall("--tls-certificates (.*)", out)
    assert said.isprintable()
    name = subprocess.run(["bash", "-c", f"printf %s {said}"], capture_output=True, check=True)
    assert name.stdout == bytes(tmp_path / "it's\udcff\\\n")


def test_what_to_remove_is_said_exactly(tmp_path: Path, capsys: Capture) -> None:
    """What this program of another day has left on a full disk."""
    (tmp_path / "pki").mkdir()
    (tmp_path / "pki" / "ca-cert.pem").write_text("half")
    (tmp_path / "pki" / "ca-key.pem").touch()
    assert main(["pki", "init", "pki"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("nbd-gateway: pki: has ca-cert.pem, ca-key.pem (empty) already, and")
    for name in ("ca-cert.pem", "ca-key.pem"):
        (tmp_path / "pki" / name).unlink()
    assert main(["pki", "init", "pki"]) == 0


WRITING = {
    "pki init": (
        ["pki", "init", "new/pki", "--client", "joe", "--client", "ann", "--psk", "u"],
        "",
    ),
    "pki add": (["pki", "add", "pki", "bob"], "pki"),
    "pki renew": (["pki", "renew", "pki"], "pki"),
    "init": (["init"], ""),
    "init --force": (["init", "old.toml", "--force"], "old.toml"),
}
WITH_LITTLE_ROOM = """
import resource, sys
from gateway.cli import main
_soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), hard))
sys.exit(main(sys.argv[2:]))
"""
"""A file gets no larger than that: to who writes it, as a disk that is full."""


def contents(top: Path) -> dict[str, bytes | None]:
    """All that there is below a directory."""
    return {
        str(path.relative_to(top)): path.read_bytes() if path.is_file() else None
        for path in top.rglob("*")
    }


@pytest.mark.real
@pytest.mark.parametrize("room_bytes", [0, 100, 300, 600])
@pytest.mark.parametrize("what", WRITING)
def test_what_has_no_room_is_not_there(
    what: str, room_bytes: int, tmp_path: Path, capsys: Capture
) -> None:
    """Neither empty nor in half, wherever it ends; and the same goes well when there is room."""
    arguments, before = WRITING[what]
    if before == "pki":
        assert main(["pki", "init", "pki"]) == 0
    elif before:
        (tmp_path / before).write_text("mine")
    there = contents(tmp_path)
    program = [sys.executable, "-c", WITH_LITTLE_ROOM, str(room_bytes), *arguments]
    tried = subprocess.run(
        program, capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )
    assert tried.returncode == 1, tried
    assert "cannot be written: File too large" in tried.stderr
    assert contents(tmp_path) == there
    capsys.readouterr()
    assert main(arguments) == 0, capsys.readouterr().err
    assert contents(tmp_path) != there


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--days", "0"], "--days: expected 1 to 3650, got 0"),
        (["--host", "a b"], "expected a host's name or IP address, got 'a b'"),
        (["--clients", "x"], "--client"),
    ],
)
def test_mistakes(arguments: list[str], expected: str, capsys: Capture, tmp_path: Path) -> None:
    assert main(["pki", "init", "pki", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert expected in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["revoke", "pki", "x" * 300], "cannot be looked at: File name too long"),
        (["add", "x" * 300, "joe"], "cannot be read: File name too long"),
        (["renew", "x" * 300], "cannot be read: File name too long"),
        (["revoke", "x" * 300, "joe"], "cannot be read: File name too long"),
        (["init", "x" * 300], "cannot be made: File name too long"),
    ],
)
def test_names_that_are_too_long(arguments: list[str], expected: str, capsys: Capture) -> None:
    assert main(["pki", "init", "pki"]) == 0
    assert main(["pki", *arguments]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert expected in err


def test_help(capsys: Capture) -> None:
    assert main(["pki", "init", "--help"]) == 0
    assert "Usage: nbd-gateway pki init" in capsys.readouterr().out


def test_add_renew_and_revoke(tmp_path: Path, capsys: Capture) -> None:
    assert main(["pki", "init", "pki"]) == 0
    capsys.readouterr()
    assert main(["pki", "add", "pki", "ann"]) == 0
    files, said = capsys.readouterr().out.split("\n\n")
    assert files.splitlines()[-1] == "pki/ann/client-key.pem"
    assert said == "It is good at once: no gateway has to be told.\n"
    assert main(["pki", "revoke", "pki", "ann"]) == 0
    files, said = capsys.readouterr().out.split("\n\n")
    assert files == "pki/ca-crl.pem"
    assert said == (
        "Gateways that use the directory refuse it to who connects from then on (sessions go on)"
        " within 10 s; nbd-gateway reload, or SIGHUP, does it at once.\n"
    )
    assert main(["pki", "renew", "pki", "--days", "30"]) == 0
    files, said = capsys.readouterr().out.split("\n\n")
    assert said.startswith("Gateways that use the directory take it up within 10 s;")
    assert files.splitlines() == [
        f"pki/{name}"
        for name in (
            "ca-issued.txt", "ann/ca-cert.pem", "ann/client-cert.pem", "ca-cert.pem",
            "client-cert.pem", "server-cert.pem", "ca-crl.pem",
        )
    ]  # fmt: skip
    assert main(["pki", "revoke", "pki", "eve"]) == 1
    assert capsys.readouterr().err == (
        "nbd-gateway: pki: has no certificate of a client called eve\n"
    )
    assert main(["pki", "renew", "pki", "--days", "0"]) == 2

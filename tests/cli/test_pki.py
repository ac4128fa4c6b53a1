"""nbd-gateway pki init."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli import main

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
        "nbd-gateway: my pki/ca-cert.pem: is there already, and is not overwritten\n"
    )


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


def test_help(capsys: Capture) -> None:
    assert main(["pki", "init", "--help"]) == 0
    assert "Usage: nbd-gateway pki init" in capsys.readouterr().out


def test_add_renew_and_revoke(tmp_path: Path, capsys: Capture) -> None:
    assert main(["pki", "init", "pki"]) == 0
    capsys.readouterr()
    assert main(["pki", "add", "pki", "ann"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "pki/ann/client-key.pem"
    assert main(["pki", "revoke", "pki", "ann"]) == 0
    assert capsys.readouterr().out == "pki/ca-crl.pem\n"
    assert main(["pki", "renew", "pki", "--days", "30"]) == 0
    assert capsys.readouterr().out.splitlines() == [
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

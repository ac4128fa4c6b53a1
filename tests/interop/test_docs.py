"""What docs/tls.md tells its reader to type works, as it stands there but for the port."""

from __future__ import annotations

import re
import shlex
import socket
import sys
from pathlib import Path

import pytest

from .processes import Process, run, wait_until

TLS = Path(__file__).parents[2] / "docs" / "tls.md"
PORT = "10810"


def free_port() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return str(sock.getsockname()[1])


def accepts(port: str) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", int(port))) == 0


def test_trying_tls_out(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workdir)
    port = free_port()
    [block] = re.findall(r"(?ms)^## Try it\n\n```\n(.*?)^```", TLS.read_text())
    make, serve, ask = (
        shlex.split(line.replace(PORT, port), comments=True) for line in block.splitlines()
    )
    gateway = (sys.executable, "-m", "gateway")
    assert make[0] == serve[0] == "nbd-gateway"
    run(*gateway, *make[1:])
    process = Process(*gateway, *serve[1:])
    try:
        wait_until(lambda: accepts(port), "it listens")
        assert "newstyle-fixed with TLS" in run(*ask)
    finally:
        process.stop()

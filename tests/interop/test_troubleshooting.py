"""What docs/troubleshooting.md says that clients print, they print."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .clients import SYSTEM_PYTHON
from .processes import Process, attempt, listening, run
from .rawclient import RawClient
from .servers import free_port, unix_uri, with_export
from .versions import version_of

GATEWAY = (sys.executable, "-m", "gateway")
PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"

CONFIG = """
[[listen]]
uri = "{uri}"
tls = "allow"
certificates = "{certificates}"
[upstream.away]
uri = "nbd://127.0.0.1:{nobody}"
connect-seconds = 0.5
[upstream.full]
uri = "memory:2M"
max-connections = 1
connect-seconds = 0.5
[upstream.there]
uri = "memory:1M"
[[export]]
name = "away"
upstream = "away"
[[export]]
name = "full"
upstream = "full"
upstream-name = ""
[[export]]
name = "vault"
upstream = "there"
upstream-name = ""
[[export]]
name = "view"
upstream = "there"
upstream-name = ""
read-only = true
[[export]]
name = "secret"
upstream = "there"
upstream-name = ""
tls = "require"
[[rule]]
name = "nobody"
exports = "vault"
deny = true
[[rule]]
name = "everybody"
"""


def rows(heading: str) -> list[list[str]]:
    """What stands in a table below a heading; the first cell, and the fragments of the others."""
    part = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ") and "`" in line]
    cells = [line.strip("| ").split(" | ") for line in lines]
    return [[cell.split("`")[1] if "`" in cell else cell for cell in row] for row in cells]


EXPORTS = ("away", "full", "none", "vault", "secret")


@pytest.fixture
def path(workdir: Path) -> Path:
    """The socket of a gateway that has something to say no to."""
    socket, config, pki = workdir / "s", workdir / "gateway.toml", workdir / "pki"
    run(*GATEWAY, "pki", "init", str(pki))
    text = CONFIG.format(uri=unix_uri(socket), nobody=free_port(), certificates=pki)
    config.write_text(text)
    gateway = Process(*GATEWAY, "serve", "--config", str(config))
    gateway.ready_when(lambda: listening(unix_uri(socket)), "it listens")
    return socket


def test_what_is_printed_when_an_export_is_opened(path: Path) -> None:
    table = rows("When an export is opened")
    assert len(table) == len(EXPORTS)
    taken = RawClient(with_export(unix_uri(path), "full"))  # the only place
    try:
        for export, row in zip(EXPORTS, table, strict=True):
            _what, by_older, by_newer, by_qemu, by_nbd_client = row
            by_nbdinfo = by_newer if version_of("nbdinfo") >= (1, 22) else by_older
            uri = with_export(unix_uri(path), export)
            for command, fragment in (
                (("nbdinfo", uri), by_nbdinfo),
                (("qemu-img", "info", uri), by_qemu),
                # It opens the device before it asks, and needs it afterwards.
                (("nbd-client", "-unix", path, "-N", export, "/dev/null"), by_nbd_client),
            ):
                said = attempt(*command)
                assert said.status
                assert fragment in said.out + said.err, str(said)
    finally:
        taken.socket.close()


def test_what_is_printed_when_a_command_is_refused(path: Path) -> None:
    _what, by_libnbd, by_qemu = rows("When a command is refused")[0]
    uri = with_export(unix_uri(path), "view")
    lines = ("-c", "h.set_strict_mode(0)", "-c", "h.pwrite(bytes(512), 0)")
    said = attempt(SYSTEM_PYTHON, "-m", "nbd", "-u", uri, *lines)
    assert by_libnbd in said.err
    said = attempt("qemu-io", "-f", "raw", "-c", "write 0 512", uri)
    assert by_qemu in said.out + said.err

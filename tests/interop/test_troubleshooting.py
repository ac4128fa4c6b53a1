"""What docs/troubleshooting.md says that clients print, they print."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.patience import HANG_SECONDS

from .clients import SYSTEM_PYTHON
from .processes import ENVIRONMENT, Finished, Process, attempt, listening, run
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
[[listen]]
uri = "{secure}"
tls = "require"
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
[[export]]
name = "guarded"
upstream = "there"
upstream-name = ""
policies = [ {{ use = "protect", ranges = ["0+4096"] }} ]
[[export]]
name = "blocks"
upstream = "there"
upstream-name = ""
policies = [ {{ use = "blocksize", minimum = "4K", preferred = "4K", maximum = "64K" }} ]
[[export]]
name = "broken"
upstream = "there"
upstream-name = ""
policies = [ {{ use = "error", commands = ["WRITE"], every = 1 }} ]
[[export]]
name = "lost"
upstream = "there"
upstream-name = ""
policies = [ {{ use = "error", commands = ["FLUSH"], every = 1 }} ]
[[rule]]
name = "nobody"
exports = "vault"
deny = true
[[rule]]
name = "everybody"
"""


def tables(heading: str) -> list[list[list[str]]]:
    """What stands in the tables below a heading: of each row what it is, and the fragments of the cells."""
    part = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    parts = [each.strip() for each in part.split("\n\n")]
    blocks = [each.splitlines() for each in parts if each.startswith("| ")]
    rows = [[line.strip("| ").split(" | ") for line in lines[2:]] for lines in blocks]
    return [[[first, *map(_fragment, cells)] for first, *cells in table] for table in rows]


def _fragment(cell: str) -> str:
    return cell.split("`")[1] if "`" in cell else ""


EXPORTS = ("away", "full", "none", "vault", "secret")


@pytest.fixture
def path(workdir: Path) -> Path:
    """The socket of a gateway that has something to say no to; beside it one for TLS alone."""
    socket, config, pki = workdir / "s", workdir / "gateway.toml", workdir / "pki"
    run(*GATEWAY, "pki", "init", str(pki))
    text = CONFIG.format(
        uri=unix_uri(socket),
        secure=unix_uri(secure_beside(socket)),
        nobody=free_port(),
        certificates=pki,
    )
    config.write_text(text)
    gateway = Process(*GATEWAY, "serve", "--config", str(config))
    doors = [unix_uri(each) for each in (socket, secure_beside(socket))]
    gateway.ready_when(lambda: all(map(listening, doors)), "it listens")
    return socket


def secure_beside(path: Path) -> Path:
    return path.with_name("secure")


def fio(uri: str, how: str, *arguments: str) -> Finished:
    words = ("--name=x", "--ioengine=nbd", f"--uri={uri}", f"--rw={how}", "--size=64k")
    return attempt("fio", *words, *arguments)


def added_by_qmp(path: Path, export: str, *, read_only: bool = False) -> str:
    """What QMP says that it cannot add a node; empty if it can."""
    server = {"type": "unix", "path": str(path)}
    node = {"driver": "nbd", "node-name": "it", "server": server, "export": export}
    asked = [
        {"execute": "qmp_capabilities"},
        {"execute": "blockdev-add", "arguments": node | {"read-only": read_only}},
        {"execute": "quit"},
    ]
    done = subprocess.run(
        ("qemu-storage-daemon", "--chardev", "stdio,id=us", "--monitor", "chardev=us"),
        input="\n".join(map(json.dumps, asked)) + "\n",
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        env=ENVIRONMENT,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    errors = [answer["error"]["desc"] for answer in answers if "error" in answer]
    return "".join(errors)


def is_newer_libnbd() -> bool:
    return version_of("nbdinfo") >= (1, 22)


def test_what_is_printed_when_an_export_is_opened(path: Path) -> None:
    table = tables("When an export is opened")[0]
    assert len(table) == len(EXPORTS)
    taken = RawClient(with_export(unix_uri(path), "full"))  # the only place
    try:
        for export, row in zip(EXPORTS, table, strict=True):
            _what, by_older, by_nbdcopy, by_newer, by_qemu, by_nbd_client = row
            by_nbdinfo = by_newer if is_newer_libnbd() else by_older
            by_nbdcopy = by_newer if is_newer_libnbd() else by_nbdcopy
            uri = with_export(unix_uri(path), export)
            for command, fragment in (
                (("nbdinfo", uri), by_nbdinfo),
                (("nbdcopy", uri, "null:"), by_nbdcopy),
                (("qemu-img", "info", uri), by_qemu),
                # It opens the device before it asks, and needs it afterwards.
                (("nbd-client", "-unix", path, "-N", export, "/dev/null"), by_nbd_client),
            ):
                said = attempt(*command)
                assert said.status
                assert fragment
                assert fragment in said.out + said.err, str(said)
            said = fio(uri, "read")
            assert said.status
            assert by_nbdcopy in said.out + said.err, str(said)
            assert added_by_qmp(path, export).startswith(by_qemu)
    finally:
        taken.socket.close()


def test_what_is_printed_when_a_list_is_refused(path: Path) -> None:
    [[_what, by_nbdinfo, by_nbd_client]] = tables("When an export is opened")[1]
    secure = secure_beside(path)
    said = attempt("nbd-client", "-l", "-unix", secure)
    assert said.status
    assert by_nbd_client in said.out + said.err, str(said)
    said = attempt("nbdinfo", "--list", unix_uri(secure))
    assert said.status
    if not is_newer_libnbd():
        assert by_nbdinfo in said.err, str(said)


DATA = b"data" * (1 << 15)
"""What nbdcopy copies by one request: of several, which is refused first is chance."""

REFUSED = ("view", "guarded", "blocks", "broken", "lost")
"""The exports of which each refuses another command: the rows of the table."""


def test_what_is_printed_when_a_command_is_refused(path: Path, workdir: Path) -> None:
    [table] = tables("When a command is refused")
    assert len(table) == len(REFUSED)
    image = workdir / "image"
    image.write_bytes(DATA)
    for export, row in zip(REFUSED, table, strict=True):
        _what, by_nbdsh, by_nbdcopy, by_qemu, by_fio = row
        uri = with_export(unix_uri(path), export)
        command = "h.flush()" if export == "lost" else "h.pwrite(bytes(512), 0)"
        lines = ("-c", "h.set_strict_mode(0)", "-c", command)
        said = attempt(SYSTEM_PYTHON, "-m", "nbd", "-u", uri, *lines)
        assert said.status
        assert by_nbdsh in said.err, str(said)
        said = attempt("nbdcopy", "--flush", image, uri)
        assert said.status
        assert by_nbdcopy in said.err, str(said)
        said = attempt("qemu-io", "-f", "raw", "-c", "write 0 512", "-c", "flush", uri)
        assert said.status == (export != "blocks"), str(said)
        assert by_qemu in said.out + said.err, str(said)
        said = fio(uri, "write", "--bs=512", "--fsync=4")
        assert by_fio in said.out + said.err, str(said)
        assert all((by_nbdsh, by_nbdcopy))
        assert bool(by_qemu) == (export not in ("blocks", "lost"))
        assert bool(by_fio) == (export != "lost")


def test_who_says_nothing_of_a_flush_that_fails(path: Path, workdir: Path) -> None:
    """Their users have to ask somebody else, so it has to be known who they are."""
    uri = with_export(unix_uri(path), "lost")
    image = workdir / "image"
    image.write_bytes(DATA)
    said = attempt("qemu-io", "-f", "raw", "-c", "flush", uri)
    assert (said.status, said.out, said.err) == (1, "", "")
    convert = ("qemu-img", "convert", "-n", "-t", "none", "-f", "raw", "-O", "raw", image, uri)
    assert attempt(*convert).status == 0
    said = fio(uri, "write", "--bs=512", "--fsync=4")
    assert said.status == 0
    assert "Input/output error" not in said.out + said.err


def test_a_read_only_view_is_added_by_qmp_as_what_it_is(path: Path) -> None:
    [row, *_] = tables("When a command is refused")[0]
    assert added_by_qmp(path, "view") == row[3]
    assert not added_by_qmp(path, "view", read_only=True)

"""Nobody has to read the log: real gateways whose standard error fills up, hangs or has no reader."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest

from gateway.log.rates import LINES_OF_A_KIND
from tests.tools.patience import HANG_SECONDS

from ..interop.clients import OPENS, SYSTEM_PYTHON
from ..interop.processes import listening, wait_until
from ..interop.rawclient import RawClient
from .programs import GATEWAY, size_of

pytestmark = pytest.mark.real

GO = 7
REFUSALS = 100
"""Of one client: more lines than are said of one in a second (`LINES_OF_A_KIND`), which is more than the pipe
holds; and fewer than it may have."""


@pytest.fixture
def pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """A pipe that holds few of the lines: its reader, its writer."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with FileIO(reader, "r") as ours, FileIO(writer, "w") as theirs:
        yield ours, theirs


@contextmanager
def serving(cwd: Path, stderr: FileIO, export: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A gateway with an export "a", at g.sock."""
    (cwd / "g.toml").write_text(
        f'[[listen]]\nuri = "nbd+unix:///?socket={cwd}/g.sock"\n[upstream.m]\nuri = "memory:1M"\n'
        f'[[export]]\nname = "a"\nupstream = "m"\nupstream-name = ""\n{export}'
        '[log]\nformat = "json"\n'
    )
    command = [*GATEWAY, "serve", "--config", "g.toml"]
    process = subprocess.Popen(command, cwd=cwd, stderr=stderr)
    try:
        wait_until(lambda: listening(uri(cwd)), "the gateway")
        yield process
    finally:
        process.kill()
        process.wait(HANG_SECONDS)


def uri(cwd: Path) -> str:
    return f"nbd+unix:///a?socket={cwd}/g.sock"


def be_refused(cwd: Path) -> None:
    """Ask for an export that is not there, again and again."""
    name = b"n" * 1000
    data = struct.pack("!I", len(name)) + name + bytes(2)
    option = b"IHAVEOPT" + struct.pack("!II", GO, len(data)) + data
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as replies:
        client.settimeout(HANG_SECONDS)
        client.connect(str(cwd / "g.sock"))
        replies.read(18)
        client.sendall(struct.pack("!I", 3))
        for _ in range(REFUSALS):
            client.sendall(option)
            *_, kind, length = struct.unpack("!QIII", replies.read(20))
            assert kind >> 31
            replies.read(length)


def reads(client: RawClient) -> None:
    client.socket.sendall(client.read_request(1, 0, 512))
    assert client.reply(512) == (1, 0, bytes(512))


def test_a_reader_that_sleeps(workdir: Path, pipe: tuple[FileIO, FileIO]) -> None:
    reader, stderr = pipe
    with serving(workdir, stderr) as gateway:
        with RawClient(uri(workdir)) as client:
            reads(client)
            be_refused(workdir)
            reads(client)
            assert size_of(uri(workdir)) == str(1 << 20)
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(HANG_SECONDS) == 0
    said = reader.read(1 << 20).splitlines()
    refusals = [line for line in said if b"client refused" in line]
    assert said
    assert len(refusals) < LINES_OF_A_KIND, "it was full"


def test_a_reader_that_goes(workdir: Path, pipe: tuple[FileIO, FileIO]) -> None:
    reader, stderr = pipe
    with serving(workdir, stderr) as gateway:
        with RawClient(uri(workdir)) as client:
            reader.close()
            be_refused(workdir)
            reads(client)
            assert size_of(uri(workdir)) == str(1 << 20)
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(HANG_SECONDS) == 0


def test_a_disk_that_is_full(workdir: Path) -> None:
    with FileIO("/dev/full", "w") as full, serving(workdir, full) as gateway:
        with RawClient(uri(workdir)) as client:
            be_refused(workdir)
            reads(client)
            assert size_of(uri(workdir)) == str(1 << 20)
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(HANG_SECONDS) == 0


def test_what_one_client_causes_is_counted(workdir: Path) -> None:
    log = workdir / "log"
    with FileIO(str(log), "w") as file, serving(workdir, file) as gateway:
        be_refused(workdir)
        be_refused(workdir)  # all Unix clients of one user are one
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(HANG_SECONDS) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    refused = [line for line in lines if line["event"] == "client refused"]
    left_out = [line for line in lines if line["event"] == "log lines left out"]
    for line in left_out:
        assert {*line["clients"]} == {f"unix:uid={os.getuid()}"}
    counted = sum(line["events"]["client refused"] for line in left_out)
    assert len(refused) + counted == 2 * REFUSALS
    assert [line["event"] for line in lines if "_origin" in line] == []


def test_an_audit_is_written_to_its_end(workdir: Path) -> None:
    policy = 'policies = [ { use = "audit", file = "audit.log", required = true } ]\n'
    with FileIO("/dev/full", "w") as full, serving(workdir, full, policy) as gateway:
        for _ in range(10):
            assert size_of(uri(workdir)) == str(1 << 20)
        with RawClient(uri(workdir)) as client:
            reads(client)
            gateway.send_signal(signal.SIGTERM)
            assert gateway.wait(HANG_SECONDS) == 0
    lines = [json.loads(line) for line in (workdir / "audit.log").read_text().splitlines()]
    sessions = [line["session"] for line in lines if line["event"] == "opened"]
    assert len(sessions) == 11
    closed = [line["session"] for line in lines if line["event"] == "closed"]
    assert sorted(closed) == sorted(sessions)


def test_nobody_is_served_without_an_audit_that_is_required(workdir: Path) -> None:
    policy = 'policies = [ { use = "audit", file = "/dev/full", required = true } ]\n'
    with FileIO(str(workdir / "log"), "w") as log, serving(workdir, log, policy) as gateway:
        command = [SYSTEM_PYTHON, "-c", OPENS, uri(workdir)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "server policy prevents" in done.stderr
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(HANG_SECONDS) == 0
    lines = [json.loads(line) for line in (workdir / "log").read_text().splitlines()]
    said = {line["event"]: line for line in lines}
    assert said["access denied"]["why"] == "the audit log cannot be written"
    assert said["audit lines lost"]["file"] == "/dev/full"


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
@pytest.mark.parametrize(
    ("arguments", "status", "out"),
    [
        (("memory:1M", "--run", 'nbdinfo --size "$uri"'), 0, f"{1 << 20}\n"),
        (("file:missing.img", "--run", "true"), 1, ""),
        (("nonsense:", "--run", "true"), 2, ""),
    ],
)
def test_nothing_that_is_said_keeps_it_from_its_work(
    workdir: Path, redirection: str, arguments: tuple[str, ...], status: int, out: str
) -> None:
    shell = ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh"]
    done = subprocess.run(
        [*shell, *GATEWAY, "serve", *arguments],
        cwd=workdir,
        stdout=subprocess.PIPE,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (status, out)

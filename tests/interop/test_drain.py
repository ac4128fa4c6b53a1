"""What real clients need to find the next gateway, or to come to their end before: docs/service.md says it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.patience import HANG_SECONDS

from .clients import SYSTEM_PYTHON
from .gateways import MODE
from .processes import ENVIRONMENT, Process, attempt, listening, run, wait_until
from .servers import Servers, unix_uri

pytestmark = pytest.mark.skipif(MODE != "gateway", reason="only the gateway drains")


class Place:
    """Where gateways come and go, before one server."""

    def __init__(self, workdir: Path, upstream: str, leave_seconds: float = 0) -> None:
        self.socket = workdir / "g.sock"
        self.uri = unix_uri(self.socket)
        self.control = workdir / "control"
        self._config = workdir / "g.toml"
        self._config.write_text(
            f'leave-seconds = {leave_seconds}\ncontrol.socket = "{self.control}"\n'
            f'listen = [ {{ uri = "{self.uri}" }} ]\nupstream.m.uri = "{upstream}"\n'
        )

    def begin(self) -> Process:
        made = Process(sys.executable, "-m", "gateway", "serve", "--config", self._config)
        made.ready_when(lambda: listening(self.uri), "the gateway listens")
        return made


class QemuIo:
    """qemu-io with one connection, that is told one command after the other."""

    def __init__(self, node: str, output: Path) -> None:
        self._output = output
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                ["qemu-io", "--image-opts", node],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=ENVIRONMENT,
            )
        self._told = 0

    def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._told += 1
        self._process.stdin.write(f"{command}\n".encode())
        self._process.stdin.flush()

    def said(self) -> list[str]:
        """What it has said to each command that it has done, once it has done all."""
        wait_until(lambda: len(self._prompts()) > self._told + 1, "qemu-io has done it")
        return self._prompts()[1:-1]

    def _prompts(self) -> list[str]:
        # It waits for the next command behind each of them.
        return self._output.read_text().split("qemu-io> ")

    def end(self, *, failed: bool = False) -> None:
        """End it, which says whether a command has failed."""
        self.tell("quit")
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(HANG_SECONDS) == failed


def node(socket: Path, reconnect_delay: float) -> str:
    where = f"file.server.type=unix,file.server.path={socket}"
    return f"driver=raw,file.driver=nbd,{where},file.reconnect-delay={reconnect_delay}"


def test_qemu_with_a_reconnect_delay_finds_the_next_gateway(
    servers: Servers, workdir: Path
) -> None:
    place = Place(workdir, servers.nbdkit("memory", "8M").uri)
    gateway = place.begin()
    client = QemuIo(node(place.socket, int(HANG_SECONDS)), workdir / "out")
    client.tell("write -P 1 0 64k")
    assert "wrote 65536/65536" in client.said()[-1]
    assert gateway.stop() == 0
    client.tell("write -P 2 64k 64k")  # while there is none
    following = place.begin()
    client.said()
    for command in ("read -P 1 0 64k", "read -P 2 64k 64k", "flush"):
        client.tell(command)
        client.said()
    said = client.said()
    assert "wrote 65536/65536" in said[1], said
    assert not [each for each in said if "failed" in each], said
    client.end()
    assert following.stop() == 0


def test_qemu_without_one_gives_its_guest_errors(servers: Servers, workdir: Path) -> None:
    """What the page warns of."""
    place = Place(workdir, servers.nbdkit("memory", "8M").uri)
    gateway = place.begin()
    client = QemuIo(node(place.socket, 0), workdir / "out")
    client.tell("write -P 1 0 64k")
    client.said()
    assert gateway.stop() == 0
    client.tell("write -P 2 64k 64k")
    assert "write failed: Input/output error" in client.said()[-1]
    client.end(failed=True)


def test_a_copy_comes_to_its_end_where_it_is_left_the_time(servers: Servers, workdir: Path) -> None:
    go_on = workdir / "go-on"
    slow = f"pread=while [ ! -e {go_on} ]; do sleep 0.01; done; head -c $3 /dev/zero"
    upstream = servers.nbdkit("eval", "get_size=echo 1048576", slow)
    place = Place(workdir, upstream.uri, HANG_SECONDS)
    gateway = place.begin()
    copy = Process("nbdcopy", "--connections=1", place.uri, workdir / "to")
    wait_until(lambda: "session begins" in gateway.output or not copy.running, "it copies")
    drained = attempt(
        *(sys.executable, "-m", "gateway", "drain", "--end", "--socket", place.control)
    )
    assert f"1 session may go on for {HANG_SECONDS:g} s" in drained.out, str(drained)
    assert not place.socket.exists()
    status = run(sys.executable, "-m", "gateway", "status", "--socket", place.control)
    assert "shuts down" in status
    assert "(default export)" in status
    go_on.touch()
    assert copy.wait() == 0, copy.output
    assert gateway.wait() == 0, gateway.output
    assert "sessions are told to end" not in gateway.output


def test_a_second_sigterm_ends_the_sessions_in_good_order(servers: Servers, workdir: Path) -> None:
    place = Place(workdir, servers.nbdkit("memory", "8M").uri, HANG_SECONDS)
    gateway = place.begin()
    client = QemuIo(node(place.socket, 0), workdir / "out")
    client.tell("write -P 1 0 64k")
    client.said()
    gateway.signal(signal.SIGTERM)
    wait_until(lambda: not place.socket.exists(), "it takes nobody any more")
    client.tell("read -P 1 0 64k")
    assert "read 65536/65536" in client.said()[-1]
    gateway.signal(signal.SIGTERM)
    assert gateway.wait() == 0
    assert "ending at once" not in gateway.output
    client.end()


def test_nbdkit_that_retries_finds_the_next_gateway(servers: Servers, workdir: Path) -> None:
    place = Place(workdir, servers.nbdkit("memory", "8M").uri)
    gateway = place.begin()
    retry = ("retries=100", "retry-delay=1", "retry-exponential=no")
    relay = servers.nbdkit("--filter=retry", "nbd", f"uri={place.uri}", *retry)
    client = Process(
        *(SYSTEM_PYTHON, "-m", "nbd", "-u", relay.uri),
        *("-c", COMES_BACK.format(go_on=workdir / "go-on")),
    )
    wait_until(lambda: "once" in client.output or not client.running, "it has read once")
    assert gateway.stop() == 0
    following = place.begin()
    (workdir / "go-on").touch()
    assert client.wait() == 0, client.output
    assert following.stop() == 0


COMES_BACK = """
import os, time
h.pwrite(b"1" * 512, 0)
print("once", flush=True)
while not os.path.exists("{go_on}"):
    time.sleep(0.01)
assert h.pread(512, 0) == b"1" * 512
"""

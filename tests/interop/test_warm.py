"""Connections that are made before a client comes, and health checks, of servers that come and go."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from .conftest import Image
from .gateways import MODE, Before
from .loads import ended, reading
from .processes import Process, at_rest, listening, run, wait_until
from .rawclient import RawClient
from .servers import Servers, unix_uri

pytestmark = pytest.mark.skipif(MODE != "gateway", reason="a relay makes none")

MIB = 1 << 20
SIZE = f"{16 * MIB}\n"
CONNECTED = "03"
"""SS_CONNECTED, in /proc/net/unix; a connection is there at the server's end, accepted or in its queue."""


def connections(path: Path) -> int:
    """How many connections a server at a Unix socket has."""
    rows = (row.split() for row in Path("/proc/net/unix").read_text().splitlines()[1:])
    return sum(row[5] == CONNECTED and row[7:] == [str(path)] for row in rows)


def nbdkit(workdir: Path, *arguments: str | Path) -> Process:
    path = workdir / "nbdkit"
    path.unlink(missing_ok=True)
    process = Process("nbdkit", "--foreground", "-U", path, *(arguments or ("memory", "16M")))
    process.ready_when(lambda: listening(unix_uri(path)), "nbdkit listens")
    return process


def has(path: Path, count: int) -> None:
    wait_until(lambda: connections(path) == count, f"the server has {count} connections")


@pytest.mark.parametrize("kind", ["qemu-raw", "storage-daemon", "nbdkit", "nbdkit-oldstyle"])
def test_the_next_client_has_the_connection_that_is_there(
    servers: Servers, workdir: Path, image: Image, kind: str
) -> None:
    """The server has gone from its address, so that nobody can connect to it any more."""
    upstream = servers.start(kind, image.path)
    path = Path(upstream.uri.partition("socket=")[2])
    keys = "warm = 2\nconnect-seconds = 1"
    gateway = Before(workdir, f'uri = "{upstream.uri}"\n{keys}')
    assert connections(path) == 0
    with RawClient(
        gateway.uri()
    ):  # whose own is counted while it is here, and while the server leaves it
        has(path, 3)
    has(path, 2)
    at_rest(gateway.process.pid, upstream.process.pid)  # both have been greeted
    path.rename(workdir / "elsewhere")
    for left in (1, 0):
        assert gateway.asked().out == f"{image.size}\n"
        has(path, left)
    assert gateway.asked().status != 0
    assert "upstream is down" in gateway.end()


def test_the_next_client_has_the_tls_connection_that_is_there(workdir: Path) -> None:
    run(sys.executable, "-m", "gateway", "pki", "init", workdir / "pki")
    certificates = f"--tls-certificates={workdir / 'pki'}"
    server = nbdkit(workdir, "--tls=require", certificates, "--tls-verify-peer", "memory", "16M")
    path = workdir / "nbdkit"
    uri = f"nbds+unix:///?socket={path}&tls-hostname=localhost"
    keys = f'uri = "{uri}"\ncertificates = "{workdir / "pki"}"'
    gateway = Before(workdir, f"{keys}\nwarm = 1\nconnect-seconds = 1")
    with RawClient(gateway.uri()):
        has(path, 2)
    has(path, 1)
    at_rest(gateway.process.pid, server.pid)
    path.rename(workdir / "elsewhere")
    assert gateway.asked().out == SIZE
    assert gateway.asked().status != 0
    gateway.end()
    server.kill()


def test_no_connection_is_for_two_clients(workdir: Path) -> None:
    said = workdir / "log"
    server = nbdkit(workdir, "--filter=log", "memory", "16M", f"logfile={said}")
    gateway = Before(workdir, f'uri = "{unix_uri(workdir / "nbdkit")}"\nwarm = 4')
    assert gateway.asked().out == SIZE
    has(workdir / "nbdkit", 4)
    for _ in range(3):
        clients = [gateway.client() for _ in range(8)]
        assert [(client.wait(), client.output) for client in clients] == [(0, SIZE)] * 8
    gateway.end()
    assert server.stop() == 0
    made = re.findall(r" Preconnect id=(\d+) ", said.read_text())
    opened = said.read_text().count(" Connect ")  # at GO, and at the INFO before the first
    assert opened == 25 + 1
    assert len(made) >= 25


def test_a_server_that_is_killed_and_started_again_is_connected_to_anew(workdir: Path) -> None:
    path = workdir / "nbdkit"
    server = nbdkit(workdir)
    gateway = Before(workdir, f'uri = "{unix_uri(path)}"\nwarm = 3')
    assert gateway.asked().out == SIZE
    for _ in range(4):
        has(path, 3)
        server.kill()
        clients = [gateway.client() for _ in range(6)]
        server = nbdkit(workdir)
        assert [(client.wait(), client.output) for client in clients] == [(0, SIZE)] * 6
    output = gateway.end()
    assert "client refused" not in output
    server.kill()


def test_a_server_for_one_client_serves_one_after_the_other(workdir: Path, image: Image) -> None:
    """Its only place is kept warm while no client has it."""
    path = workdir / "qemu"
    command = ("qemu-nbd", "-t", "-e", "1", "-r", "-f", "raw", "-k", path, image.path)
    server = Process(*command)
    server.ready_when(lambda: listening(unix_uri(path)), "qemu-nbd listens")
    keys = "warm = 1\nmax-connections = 1\nconnect-seconds = 20"
    gateway = Before(workdir, f'uri = "{unix_uri(path)}"\n{keys}')
    first = reading(gateway.uri())
    wait_until(lambda: "session begins" in gateway.process.output, "there is a first client")
    clients = [gateway.client() for _ in range(4)]
    ended(first)
    assert [(each.wait(), each.output) for each in clients] == [(0, f"{image.size}\n")] * 4
    has(path, 1)
    at_rest(gateway.process.pid, server.pid)  # it is the one that is kept warm, which gives way
    assert run("nbdinfo", "--list", "--json", gateway.uri())  # which is asked on another connection
    assert "client refused" not in gateway.end()
    server.kill()


def test_the_log_tells_of_an_outage_that_no_client_sees(workdir: Path) -> None:
    path = workdir / "nbdkit"
    server = nbdkit(workdir)
    gateway = Before(workdir, f'uri = "{unix_uri(path)}"\nhealth-check-seconds = 0.1')
    for times in range(1, 3):
        server.kill()
        for word in ("down", "back"):
            wait_until(
                lambda text=f"upstream is {word}", times=times: (  # type: ignore[misc] # bound now
                    gateway.process.output.count(text) == times
                ),
                f"the log says {word}",
            )
            if word == "down":
                server = nbdkit(workdir)
    assert "client" not in gateway.end().replace("clients=0", "")
    server.kill()


def test_a_health_check_leaves_nothing_behind(workdir: Path) -> None:
    said = workdir / "log"
    server = nbdkit(workdir, "--filter=log", "memory", "16M", f"logfile={said}")
    gateway = Before(
        workdir, f'uri = "{unix_uri(workdir / "nbdkit")}"\nhealth-check-seconds = 0.05'
    )
    wait_until(lambda: said.read_text().count("...Preconnect") >= 10, "it was looked at 10 times")
    gateway.end()
    has(workdir / "nbdkit", 0)
    assert server.stop() == 0
    assert "error" not in server.output
    assert " Connect " not in said.read_text()

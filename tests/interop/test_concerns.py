"""What wears a service out, tried on a gateway from outside: the concerns of other proxies' suites, each once.

    reload under load, broken certificate     test_reload.py; in each of many upgrades: test_upgrade.py
    certificates exchanged under load         test_tls.py
    CA exchanged                              here
    drain under load                          here; SIGTERM with requests under way: test_ends.py
    SIGHUP during drain                       here; during an upgrade: test_upgrade.py
    handshake flood, handshakes that stall    here; over TLS, at each step, in an upgrade: test_upgrade.py
    idle clients                              here
    backend flapping                          test_restarts.py
    accept errors                             tests/cli/test_serving.py
    connection lifetime                       tests/sessions/test_lifetime.py
    full duplex, half-close with answers      test_ends.py
    tiny writes                               here
    watchdog, socket activation               tests/cli/test_service.py
    clock jumps                               tests/upgrade/test_pauses.py, tests/tickets/test_book.py

What befalls a gateway while a newer one takes its place is tried in test_upgrade.py, and their deaths in
test_upgrade_deaths.py.
"""

from __future__ import annotations

import errno
import json
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from tests.tls.handshakes import directory
from tests.tools.patience import HANG_SECONDS

from .clients import SYSTEM_PYTHON
from .gateways import MODE
from .loads import reading, reported
from .processes import Process, at_rest, attempt, listening, run, wait_until
from .rawclient import REQUEST, RawClient
from .servers import free_port

pytestmark = pytest.mark.skipif(MODE != "gateway", reason="a relay has other concerns")

KIB = 1 << 10
MIB = 1 << 20


class Service:
    """A gateway on a port of TCP, before a disk of its own."""

    def __init__(
        self, workdir: Path, listen: str = "", more: str = "", scheme: str = "nbd"
    ) -> None:
        self.port = free_port()
        self.uri = f"{scheme}://127.0.0.1:{self.port}"
        self.control = workdir / "control"
        config = workdir / "g.toml"
        config.write_text(
            f'{more}\ncontrol.socket = "{self.control}"\nupstream.m.uri = "memory:8M"\n'
            f'[[listen]]\nuri = "{self.uri}"\n{listen}\n'
        )
        self.process = Process(sys.executable, "-m", "gateway", "serve", "--config", config)
        self.process.ready_when(lambda: listening(self.uri), "the gateway listens")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), HANG_SECONDS)

    def do(self, *verb: str) -> str:
        return run(sys.executable, "-m", "gateway", *verb, "--socket", self.control)

    def shown(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.do("status", "--json"))
        return found

    def end(self) -> str:
        assert self.process.stop() == 0, self.process.output
        for word in ("Traceback", "internal error"):
            assert word not in self.process.output, self.process.output
        return self.process.output


def works(client: RawClient) -> None:
    client.socket.sendall(client.read_request(7, 0, KIB))
    assert client.reply(KIB) == (7, 0, bytes(KIB))


# --- The CA


STAYS = """
import os, time
h.set_uri_allow_local_file(True)
h.connect_uri("{uri}")
h.pread(512, 0)
print("once", flush=True)
while not os.path.exists("{go_on}"):
    time.sleep(0.01)
h.pread(512, 0)
"""


def test_a_ca_is_exchanged_and_sessions_go_on(workdir: Path) -> None:
    ca, following = trustme.CA(), trustme.CA()
    pki = directory(workdir / "pki", ca, server=ca.issue_cert("127.0.0.1"))
    of_both = {
        name: directory(workdir / name, ca, client=each.issue_cert("client"))
        for name, each in (("before", ca), ("after", following))
    }
    service = Service(workdir, f'certificates = "{pki}"', scheme="nbds")
    uris = {name: f"{service.uri}/?tls-certificates={each}" for name, each in of_both.items()}
    stays = Process(
        *(SYSTEM_PYTHON, "-m", "nbd"),
        *("-c", STAYS.format(uri=uris["before"], go_on=workdir / "go-on")),
    )
    wait_until(lambda: "once" in stays.output or not stays.running, "there is a session")
    assert attempt("nbdinfo", "--size", uris["after"]).status
    following.cert_pem.write_to_path(pki / "ca-cert.pem")
    assert "credentials exchanged" in run(
        sys.executable, "-m", "gateway", "reload", "--socket", service.control
    )
    assert attempt("nbdinfo", "--size", uris["before"]).status
    assert run("nbdinfo", "--size", uris["after"]).strip() == str(8 * MIB)
    (workdir / "go-on").touch()
    assert stays.wait() == 0, stays.output
    service.end()


# --- Handshakes


def test_a_flood_of_clients_that_say_nothing_keeps_nobody_out_for_long(workdir: Path) -> None:
    service = Service(workdir, "max-connections = 20\nhandshake-seconds = 1")
    with RawClient(service.uri) as client, ExitStack() as held:
        works(client)
        before = service.process.descriptors()
        for _ in range(10):
            for _ in range(20):
                held.enter_context(service.connect())
            works(client)
        wait_until(lambda: attempt("nbdinfo", service.uri).status == 0, "another one gets in")
        works(client)
        wait_until(lambda: service.process.descriptors() <= before, "those have been hung up on")
    assert "client turned away" in service.end()


HALVES = {
    "nothing": b"",
    "half of the flags": b"\0\0",
    "half of an option": b"\0\0\0\3IHAVEOPT\0\0\0\7\0\0\0\6\0\0",
    "half of a ClientHello": b"\0\0\0\3IHAVEOPT\0\0\0\5\0\0\0\0\x16\x03\x01\x02\0\x01",
}


def test_a_handshake_that_stalls_is_given_up(workdir: Path) -> None:
    ca = trustme.CA()
    pki = directory(workdir / "pki", ca, server=ca.issue_cert("127.0.0.1"))
    tls = f'tls = "allow"\ncertificates = "{pki}"\nhandshake-seconds = 1'
    service = Service(workdir, tls)
    with ExitStack() as held:
        stalled = [held.enter_context(service.connect()) for _ in HALVES]
        for sock, half in zip(stalled, HALVES.values(), strict=True):
            sock.sendall(half)
        for sock in stalled:
            while sock.recv(4096):
                pass  # the greeting, and what it says to STARTTLS
    assert service.shown()["negotiations"] == 0
    service.end()


def test_a_client_that_sends_byte_by_byte_is_served(workdir: Path) -> None:
    service = Service(workdir)
    data = bytes(range(256)) * 4
    name = b"IHAVEOPT\0\0\0\7\0\0\0\6\0\0\0\0\0\0"
    write = REQUEST.pack(0x25609513, 0, 1, 1, 512, len(data)) + data
    read = REQUEST.pack(0x25609513, 0, 0, 2, 512, len(data))
    with service.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"\0\0\0\3" + name + write + read:
            sock.send(bytes([byte]))
        received = bytearray()
        while not received.endswith(data):
            piece = sock.recv(1)
            assert piece, received
            received += piece
    service.end()


# --- Clients that stay


@pytest.fixture
def idle(workdir: Path) -> Iterator[tuple[Service, list[RawClient]]]:
    service = Service(workdir, more="leave-seconds = 0")
    with ExitStack() as held:
        yield service, [held.enter_context(RawClient(service.uri)) for _ in range(100)]


def test_idle_clients_cost_no_time_and_are_served_when_they_wake(
    idle: tuple[Service, list[RawClient]],
) -> None:
    service, clients = idle
    at_rest(service.process.pid)
    for client in clients[::10]:
        works(client)
    assert service.shown()["sessions"] == len(clients)
    service.process.signal(signal.SIGTERM)
    for client in clients:
        with pytest.raises((EOFError, ConnectionResetError)):
            client.receive(1)
    assert service.process.wait() == 0
    service.end()


def test_a_drain_under_load_answers_what_was_asked_and_takes_no_reload(workdir: Path) -> None:
    service = Service(workdir, more=f"leave-seconds = {HANG_SECONDS}")
    loads = [reading(service.uri) for _ in range(4)]
    wait_until(lambda: service.process.output.count("session begins") == 4, "there is load")
    service.do("drain", "--end")
    service.process.signal(signal.SIGHUP)
    wait_until(lambda: "the gateway is shutting down" in service.process.output, "it is refused")
    assert service.shown()["sessions"] == 4
    service.do("drain", "--end", "--deadline", "0")
    for load in loads:
        assert load.wait() == 0, load.output
        report = reported(load)
        # Nobody has been asked for what came behind the end; all before it was answered well.
        assert report["bad"].keys() <= {str(errno.ENOTCONN)}, report
        assert report["died"], report
    assert service.process.wait() == 0
    service.end()

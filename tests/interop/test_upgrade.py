"""A newer process takes the place of a gateway, under real clients and before real servers; and either is
killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import struct
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.tools.patience import HANG_SECONDS

from .bundles import keys
from .clients import SCRIPTS, SYSTEM_PYTHON, nbdcopy, nbdsh
from .conftest import make_image, sha256
from .gateways import MODE, disks
from .loads import verified, writing
from .processes import Process, attempt, run, wait_until
from .rawclient import RawClient
from .servers import Servers, free_port
from .upgraded import Upgraded, lives

pytestmark = pytest.mark.skipif(MODE != "gateway", reason="only the gateway upgrades")

MIB = 1 << 20

CLIENTS = 16
BLOCKS = 64


def verifying(uri: str, number: int) -> Process:
    """A client that writes, reads back and compares in a part of its own, until it is `fine`."""
    at = number * BLOCKS * 4096
    return Process(SYSTEM_PYTHON, SCRIPTS / "verify.py", uri, str(at), str(BLOCKS))


def fine(client: Process) -> dict[str, Any]:
    """End one, and give what it has seen: nothing bad, and it was never refused."""
    client.stop()
    seen: dict[str, Any] = json.loads(client.output.splitlines()[-1])
    assert (seen["bad"], seen["refused"]) == ([], []), seen
    return seen


@pytest.fixture
def gateways(workdir: Path) -> Iterator[list[Upgraded]]:
    """Those that a test starts; what is left of them when it fails is ended."""
    started: list[Upgraded] = []
    yield started
    for each in started:
        each.put_away()


def sessions_of(gateway: Upgraded) -> int:
    return gateway.log.count("session begins") - gateway.log.count("session ended")


def test_clients_of_one_disk_stay_in_one_process(
    servers: Servers, workdir: Path, gateways: list[Upgraded]
) -> None:
    upstream = servers.nbdkit("memory", f"{64 * MIB}")
    port = free_port()
    tls = f"nbds://localhost:{port}?tls-certificates={workdir}/pki"
    run(sys.executable, "-m", "gateway", "pki", "init", workdir / "pki")
    text = (
        f'[[listen]]\nuri = "nbds://127.0.0.1:{port}"\ncertificates = "{workdir}/pki"\n'
        + disks(f'uri = "{upstream.uri}"')
        + '[[export]]\nname = "*"\nupstream = "disks"\n'
        + f'policies = [{{ use = "limit", connections = {4} }}]\n'
    )
    gateway = Upgraded(workdir, text)
    gateways.append(gateway)
    before = [verifying(gateway.uri(), 0), verifying(tls, 1)]
    wait_until(lambda: sessions_of(gateway) == 2, "two are there")
    first = gateway.upgraded()
    after = [verifying(gateway.uri(), 2), verifying(tls, 3)]
    wait_until(lambda: sessions_of(gateway) == 4, "four are there")
    # All four are the older process's, over TLS by a relay; and the newer one has counted them.
    denied = attempt("qemu-img", "info", gateway.uri())
    assert "Denied by server" in denied.err, str(denied)
    wait_until(lambda: "4 connections are open" in gateway.log, "it is logged")
    second = gateway.upgrade()
    assert second.status == 1
    assert f"process {first} from before the last upgrade still has 4 clients" in second.err
    for client in (*before, *after):
        assert fine(client)["reconnects"] == 0
    gateway.ended(first)
    # Alone, the newer one serves the disk itself; what was written is there.
    assert fine_soon(verifying(gateway.uri(), 4))
    assert gateway.asked("other").status == 0
    gateway.ended(gateway.upgraded())
    assert fine_soon(verifying(tls, 5))
    gateway.end()
    assert not (workdir / "g.sock").exists()
    assert not gateway.pidfile.exists()


def fine_soon(client: Process) -> dict[str, Any]:
    wait_until(lambda: "begun\n" in client.output, "it has begun")
    return fine(client)


@pytest.mark.parametrize("mode", ["per-client", "shared"])
def test_upgrades_under_load(
    servers: Servers, workdir: Path, gateways: list[Upgraded], mode: str
) -> None:
    under_load(servers, workdir, gateways, mode, upgrades=2, clients=6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", ["per-client", "shared", "command"])
def test_ten_upgrades_under_load(
    servers: Servers, workdir: Path, gateways: list[Upgraded], mode: str
) -> None:
    under_load(servers, workdir, gateways, mode, upgrades=10, clients=CLIENTS)


def under_load(
    servers: Servers,
    workdir: Path,
    gateways: list[Upgraded],
    mode: str,
    *,
    upgrades: int,
    clients: int,
) -> None:
    """Upgrade and reload under clients that verify, plain and over TLS. At each deadline they are disconnected,
    connect again, and find all that they were told is written.
    """
    disk = make_image(workdir / "disk", 64 * MIB).path
    port = free_port()
    run(sys.executable, "-m", "gateway", "pki", "init", workdir / "pki")
    tls = f"nbds://localhost:{port}?tls-certificates={workdir}/pki"
    if mode == "command":
        words = ["qemu-nbd", "-f", "raw", "-t", "-e", "0", "-x", "", str(disk)]
        text = disks(f"command = {json.dumps(words)}")
    elif mode == "shared":
        text = disks(keys(servers.qemu_nbd("-f", "raw", "--shared=1", disk), "shared"))
    else:
        text = disks(f'uri = "{servers.qemu_nbd("-f", "raw", disk).uri}"')
    listen = f'[[listen]]\nuri = "nbds://127.0.0.1:{port}"\ncertificates = "{workdir}/pki"\n'
    gateway = Upgraded(workdir, listen + text)
    gateways.append(gateway)
    run(SYSTEM_PYTHON, "-c", f"open({str(disk)!r}, 'wb').truncate({64 * MIB})")
    load = [verifying(tls if each % 2 else gateway.uri(), each) for each in range(clients)]
    wait_until(lambda: all("begun\n" in each.output for each in load), "all have begun")
    for number in range(1, upgrades + 1):
        before = gateway.upgraded("--deadline", "1")
        done = attempt(sys.executable, "-m", "gateway", "reload", "--socket", gateway.socket)
        assert done.status == 0, str(done)
        gateway.ended(before)
        wait_until(
            lambda: all(each.output.count("again") >= number for each in load),  # noqa: B023
            "all have connected again",
        )
    seen = [fine(each) for each in load]
    assert all(each["reconnects"] == upgrades for each in seen), seen
    log = gateway.end()
    assert log.count("end=upgraded") == upgrades * clients
    if mode == "command":
        assert log.count("server started") == 1
        assert log.count("server taken over") == upgrades


def test_fio_and_nbdcopy_go_on_through_an_upgrade(
    servers: Servers, workdir: Path, gateways: list[Upgraded]
) -> None:
    """fio's sessions stay in the older process; nbdcopy comes to the newer one."""
    image = make_image(workdir / "image", 16 * MIB)
    fio, copy = (servers.nbdkit("memory", f"{16 * MIB}") for _ in range(2))
    text = (
        f'[upstream.fio]\nuri = "{fio.uri}"\n[upstream.copy]\nuri = "{copy.uri}"\n'
        '[[export]]\nname = "fio"\nupstream = "fio"\nupstream-name = ""\n'
        '[[export]]\nname = "copy"\nupstream = "copy"\nupstream-name = ""\n'
    )
    gateway = Upgraded(workdir, text)
    gateways.append(gateway)
    load = writing(gateway.uri("fio"), jobs=2, mib=4, depth=8)
    wait_until(lambda: sessions_of(gateway) >= 2, "fio is there")
    first = gateway.upgraded()
    nbdcopy(image.path, gateway.uri("copy"))
    nbdcopy(gateway.uri("copy"), workdir / "back")
    assert sha256(workdir / "back") == image.sha256
    assert lives(first)
    verified(load, jobs=2)
    gateway.ended(first)
    gateway.end()


def test_losses_that_were_not_told_go_along(
    servers: Servers, workdir: Path, gateways: list[Upgraded]
) -> None:
    """A server dies with what it had acknowledged, and its client with it: the next client is told,
    wherever."""
    path = workdir / "up.sock"
    server = Process("nbdkit", "--foreground", "-U", path, "memory", f"{MIB}")
    server.ready_when(path.exists, "it listens")
    uri = f"nbd+unix:///?socket={path}"
    gateway = Upgraded(workdir, disks(f'uri = "{uri}"\nreconnect-seconds = 60'))
    gateways.append(gateway)
    client = Process(
        *(SYSTEM_PYTHON, "-c"),
        "import nbd, sys, time\n"
        "h = nbd.NBD(); h.connect_uri(sys.argv[1]); h.pwrite(b'x' * 512, 0)\n"
        "print('written', flush=True); time.sleep(1000)\n",
        gateway.uri(),
    )
    wait_until(lambda: "written" in client.output, "it has written")
    server.kill()
    wait_until(lambda: "upstream is down" in gateway.log or "lost" in gateway.log, "it is seen")
    client.kill()
    path.unlink()
    again = Process("nbdkit", "--foreground", "-U", path, "memory", f"{MIB}")
    again.ready_when(path.exists, "it listens")
    wait_until(lambda: sessions_of(gateway) == 0, "the session has ended")
    asked = run(sys.executable, "-m", "gateway", "losses", "--socket", gateway.socket)
    assert "whoever opens it next will be told" in asked, gateway.log
    gateway.ended(gateway.upgraded())
    asked = run(sys.executable, "-m", "gateway", "losses", "--socket", gateway.socket)
    assert "whoever opens it next will be told" in asked, gateway.log
    told = nbdsh(
        "h.connect_uri(sys.argv[1])\n"
        "try:\n    h.flush(); print('not told')\n"
        "except nbd.Error as error: print(error.errno)\n"
        "h.flush(); print('and then durable')\n",
        "-c",
        "import sys; sys.argv[1:] = [" + repr(gateway.uri()) + "]",
    )
    assert told.splitlines() == ["EIO", "and then durable"]
    gateway.end()


def test_what_fails_changes_nothing(
    servers: Servers, workdir: Path, gateways: list[Upgraded]
) -> None:
    upstream = servers.nbdkit("memory", f"{MIB}")
    text = disks(f'uri = "{upstream.uri}"')
    gateway = Upgraded(workdir, text)
    gateways.append(gateway)
    pid = gateway.pid
    client = verifying(gateway.uri(), 0)
    wait_until(lambda: "begun\n" in client.output, "it has begun")
    gateway.write(text + "nonsense = 1\n")
    assert "nonsense: unknown key" in gateway.upgrade().err
    gateway.write(f'[[listen]]\nuri = "nbd+unix:///?socket={workdir}/no/such"\n' + text)
    assert f"there is no directory {workdir}/no" in gateway.upgrade().err
    gateway.write(text)
    assert "has ended with status 1" in gateway.upgrade("--program", "/bin/false").err
    assert "cannot start" in gateway.upgrade("--program", str(workdir / "none")).err
    assert gateway.pid == pid
    os.kill(pid, signal.SIGUSR2)
    wait_until(lambda: gateway.pid != pid, "SIGUSR2 has upgraded it")
    gateway.all.append(gateway.pid)
    assert fine(client)["reconnects"] == 0
    gateway.ended(pid)
    log = gateway.end()
    assert log.count("not upgraded, and all is as it was") >= 4


@pytest.mark.parametrize("sleep", ["exec sleep 1000", "sleep 1000; true"])
def test_no_newer_process_that_hangs_keeps_the_sockets(
    workdir: Path, gateways: list[Upgraded], sleep: str
) -> None:
    """Nor what that has started: a script may wait for the gateway that it starts."""
    hangs = workdir / "hangs"
    hangs.write_text(f"#!/bin/sh\ntouch {workdir}/begun\n{sleep}\n")
    hangs.chmod(0o755)
    port = free_port()
    text = disks('uri = "nbd://127.0.0.1:1"')
    gateway = Upgraded(workdir, text, base=f"nbd://127.0.0.1:{port}")
    gateways.append(gateway)
    asked = Process(
        *(sys.executable, "-m", "gateway", "upgrade", "--socket", gateway.socket),
        *("--program", hangs),
    )
    wait_until((workdir / "begun").exists, "the newer one hangs")
    assert "is being prepared" in gateway.upgrade().err
    os.kill(gateway.pid, signal.SIGHUP)
    wait_until(lambda: "a newer process is taking its place" in gateway.log, "nor is it reloaded")
    gateway.end()
    assert asked.wait() == 1
    socket.create_server(("127.0.0.1", port)).close()


def test_sessions_have_their_time_after_an_upgrade_too(
    servers: Servers, workdir: Path, gateways: list[Upgraded]
) -> None:
    upstream = servers.nbdkit("memory", f"{MIB}")
    gateway = Upgraded(workdir, disks(f'uri = "{upstream.uri}"'))
    gateways.append(gateway)
    gateway.ended(gateway.upgraded())
    client = verifying(gateway.uri(), 0)
    wait_until(lambda: "begun\n" in client.output, "it has begun")
    attempt(
        *(sys.executable, "-m", "gateway", "drain", "--socket", gateway.socket),
        *("--end", "--deadline", str(HANG_SECONDS)),
    )
    said = r"shutting down +clients=1 sessions_end_in_seconds=[1-9]"
    wait_until(lambda: "clients=1 sessions_end" in gateway.log, "it ends")
    assert re.search(said, gateway.log), gateway.log
    assert fine(client)["reconnects"] == 0
    gateway.end()


def test_who_is_told_to_end_ends_after_the_older_process(
    servers: Servers, workdir: Path, gateways: list[Upgraded]
) -> None:
    upstream = servers.nbdkit("memory", f"{MIB}")
    gateway = Upgraded(workdir, disks(f'uri = "{upstream.uri}"'))
    gateways.append(gateway)
    client = verifying(gateway.uri(), 0)
    wait_until(lambda: "begun\n" in client.output, "it has begun")
    older = gateway.upgraded()
    newer = gateway.pid
    os.kill(older, signal.SIGSTOP)
    os.kill(newer, signal.SIGTERM)
    wait_until(lambda: "shutting down" in gateway.log, "the newer one ends")
    os.kill(older, signal.SIGCONT)
    gateway.ended(newer)
    wait_until(lambda: "end=shutdown" in gateway.log, "it is logged")
    gateway.ended(older)
    client.stop()


TOKEN = "full-0123456789abcdef0123"


def asked_by_http(uri: str, verb: str, **arguments: object) -> Any:
    """What one is told who asks by HTTP, by POST if there is something to say; a Unix socket's path is in
    brackets."""
    path = uri.removeprefix("http+unix://")
    where = uri if path == uri else "http://localhost"
    more = ["--unix-socket", path] if path != uri else []
    said = ["--json", json.dumps(arguments)] if arguments else []
    token = ["-H", f"Authorization: Bearer {TOKEN}"]
    return json.loads(run("curl", "-sS", *more, *token, *said, f"{where}/api/v1/{verb}"))


def test_the_admin_interface_goes_along(
    servers: Servers, workdir: Path, gateways: list[Upgraded]
) -> None:
    """The upgrade is asked for there, and answered; then the newer process is asked, at the same sockets."""
    upstream = servers.nbdkit("memory", f"{4 * MIB}")
    tokens, unix, tcp = workdir / "tokens", workdir / "admin", f"http://127.0.0.1:{free_port()}"
    tokens.write_text(f"full ops {TOKEN}\n")
    tokens.chmod(0o600)
    admin = f'[admin]\nuri = ["{tcp}", "http+unix://{unix}"]\ntokens = "{tokens}"\n'
    gateway = Upgraded(workdir, admin + disks(f'uri = "{upstream.uri}"'))
    gateways.append(gateway)
    wait_until(lambda: attempt("curl", "-s", f"{tcp}/live").status == 0, "it is there")
    stays = verifying(gateway.uri(), 0)
    wait_until(lambda: "begun\n" in stays.output, "it has begun")
    first = gateway.pid
    answer = asked_by_http(tcp, "upgrade", deadline=1000)
    wait_until(lambda: gateway.pid != first, "the newer process serves")
    gateway.all.append(gateway.pid)
    assert answer["ok"] is True, answer
    for uri in (tcp, f"http+unix://{unix}"):
        wait_until(
            lambda: (asked_by_http(uri, "status")["older"] or {}).get("pid") == first,  # noqa: B023
            "the newer process answers",
        )
    os.kill(gateway.pid, signal.SIGKILL)
    wait_until(lambda: gateway.pid == first, "the older one serves again")
    for uri in (tcp, f"http+unix://{unix}"):
        wait_until(lambda: asked_by_http(uri, "status")["older"] is None, "and answers")  # noqa: B023
    gateway.upgraded()
    assert fine(stays)["reconnects"] == 0
    gateway.ended(first)
    assert unix.exists()
    gateway.end()
    assert not unix.exists()


# --- Handshakes


class HalfThere:
    """A client over TLS that goes as far as it is told: its own end of TLS is in memory."""

    STEPS = ("connected", "has said its flags", "has asked for TLS", "has said half a hello")

    def __init__(self, port: int, authority: Path) -> None:
        self.raw = RawClient.connected(port)
        context = ssl.create_default_context(cafile=authority)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")
        self._step = 0

    def go_to(self, step: int) -> None:
        while self._step < step:
            self._step += 1
            match self._step:
                case 1:
                    assert self.raw.receive(18)[:8] == b"NBDMAGIC"
                    self.raw.socket.sendall(b"\0\0\0\3")
                case 2:
                    self.raw.socket.sendall(b"IHAVEOPT" + struct.pack("!II", 5, 0))
                    assert struct.unpack("!QIII", self.raw.receive(20))[2] == 1
                case 3:
                    with suppress(ssl.SSLWantReadError):
                        self._tls.do_handshake()
                    self._hello = self._out.read()
                    self.raw.socket.sendall(self._hello[: len(self._hello) // 2])
                case _:
                    self.raw.socket.sendall(self._hello[len(self._hello) // 2 :])

    def finish(self) -> None:
        """Open the default export, and read of it."""
        self.go_to(len(self.STEPS))
        self._until(self._tls.do_handshake)
        name = struct.pack("!IH", 0, 0)
        self._say(b"IHAVEOPT" + struct.pack("!II", 7, len(name)) + name)
        while (reply := struct.unpack("!QIII", self._hear(20)))[2] != 1:
            assert reply[2] == 3, reply
            self._hear(reply[3])
        self._say(self.raw.read_request(7, 0, 512))
        assert self._hear(16 + 512)[8:] == (7).to_bytes(8) + bytes(512)
        self.raw.close()

    def _say(self, data: bytes) -> None:
        self._tls.write(data)
        self.raw.socket.sendall(self._out.read())

    def _hear(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += self._until(lambda: self._tls.read(count - len(data)))  # noqa: B023
        return data

    def _until(self, act: Callable[[], Any]) -> Any:
        while True:
            try:
                done = act()
            except ssl.SSLWantReadError:
                self._pass_on()
                self._in.write(self.raw.socket.recv(65536))
            else:
                self._pass_on()
                return done

    def _pass_on(self) -> None:
        if said := self._out.read():
            self.raw.socket.sendall(said)


def test_handshakes_over_tls_in_the_middle_of_an_upgrade(
    servers: Servers, workdir: Path, gateways: list[Upgraded]
) -> None:
    """Whoever is at any step of one comes to its end, in the process where it has begun; and a flood of whole
    ones meanwhile, none of which is refused."""
    upstream = servers.nbdkit("memory", f"{4 * MIB}")
    port = free_port()
    run(sys.executable, "-m", "gateway", "pki", "init", workdir / "pki")
    listen = (
        f'[[listen]]\nuri = "nbds://127.0.0.1:{port}"\ncertificates = "{workdir}/pki"\n'
        f"verify-client = false\nhandshake-seconds = {HANG_SECONDS:g}\n"
    )
    gateway = Upgraded(workdir, listen + disks(f'uri = "{upstream.uri}"'))
    gateways.append(gateway)
    authority = workdir / "pki" / "ca-cert.pem"
    done: list[int] = []

    def flood() -> None:
        while len(done) < 2:
            client = HalfThere(port, authority)
            client.finish()
            whole.append(1)

    whole: list[int] = []
    with ThreadPoolExecutor(4) as pool:
        floods = [pool.submit(flood) for _ in range(4)]
        try:
            for _upgrade in range(2):
                half = [HalfThere(port, authority) for _ in HalfThere.STEPS]
                for step, client in enumerate(half):
                    client.go_to(step)
                before = gateway.upgraded()
                for client in half:
                    client.finish()
                gateway.ended(before)
                done.append(1)
        finally:
            done += [1, 1]
        for each in floods:
            each.result(HANG_SECONDS)
    assert len(whole) > len(floods)
    assert "handshake failed" not in gateway.end()


# --- Tickets


def test_a_ticket_for_one_use_is_used_once_across_an_upgrade(
    servers: Servers, workdir: Path, gateways: list[Upgraded]
) -> None:
    """Its use has begun before; who uses it comes again, another one never, and neither after the end."""
    upstream = servers.nbdkit("memory", f"{4 * MIB}")
    text = disks(f'uri = "{upstream.uri}"') + f'[tickets]\ndirectory = "{workdir}/tickets"\n'
    gateway = Upgraded(workdir, text)
    gateways.append(gateway)
    made = (sys.executable, "-m", "gateway", "export")
    said = ("--socket", gateway.socket, "--upstream", "disks", "--upstream-name", "")
    run(*made, "add", "once", "--once", *said)
    client = verifying(gateway.uri("once"), 0)
    wait_until(lambda: "begun\n" in client.output, "its use has begun")
    older = gateway.upgraded()
    run(*made, "add", "later", *said)
    assert attempt("nbdinfo", "--size", gateway.uri("later")).status == 0
    second = verifying(gateway.uri("once"), 1)  # the same Unix user: a part of the use
    wait_until(lambda: "begun\n" in second.output, "it is a part of it")
    os.kill(gateway.pid, signal.SIGKILL)
    wait_until(lambda: gateway.pid == older, "the older one serves again")
    listed = json.loads(run(*made, "list", "--json", "--socket", gateway.socket))
    assert {each["export"] for each in listed["tickets"]} == {"once", "later"}
    assert fine(client)["reconnects"] == 0
    second.stop()
    wait_until(lambda: "ticket is over" in gateway.log, "its use is over")
    gateway.ended(gateway.upgraded())
    assert attempt("nbdinfo", "--size", gateway.uri("once")).status
    assert attempt("nbdinfo", "--size", gateway.uri("later")).status == 0
    gateway.end()


# --- Deaths


def test_a_server_of_a_killed_process_is_started_once(
    workdir: Path, gateways: list[Upgraded]
) -> None:
    """The newer process waits for the end of what the older one had started: two would have the disk open."""
    disk = make_image(workdir / "disk", 4 * MIB).path
    words = json.dumps(["qemu-nbd", "-f", "raw", "-t", "-e", "0", "-x", "", str(disk)])
    gateway = Upgraded(workdir, disks(f"command = {words}"))
    gateways.append(gateway)
    client = verifying(gateway.uri(), 0)
    wait_until(lambda: "begun\n" in client.output, "it has begun")
    older = gateway.upgraded()
    os.kill(older, signal.SIGKILL)
    wait_until(lambda: gateway.asked().status == 0, "the newer process serves")
    started = re.findall(r"server started .*pid=(\d+)", gateway.log)
    assert len(started) == 2
    assert not lives(int(started[0]))
    assert lives(int(started[1]))
    client.kill()
    gateway.end()
    assert not lives(int(started[1]))

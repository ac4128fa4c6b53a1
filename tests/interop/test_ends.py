"""Peers that stall, die or leave: whoever is left must notice, and nobody else may."""

from __future__ import annotations

import errno
import os
import signal
import socket
from functools import partial
from pathlib import Path

import pytest

from .clients import nbdcopy, nbdinfo, qemu_io, script
from .conftest import Image, sha256
from .gateways import MODE, Gateways
from .loads import reading, reported
from .processes import Process, attempt, wait_until
from .rawclient import RawClient
from .servers import Servers, Upstream

MIB = 1 << 20
# What one gateway may hold however its clients behave (acceptance).
RESIDENT_LIMIT = 200 * MIB


def slow(servers: Servers, workdir: Path, delay: str = "20ms") -> tuple[Upstream, Path]:
    """A server whose reads take their time, and the log in which they are seen to begin."""
    log = workdir / "requests.log"
    upstream = servers.nbdkit(
        # No extents: a disk without data would not be read at all.
        *("-t", "16", "--filter=log", "--filter=delay", "--filter=noextents", "memory", "256M"),
        *(f"logfile={log}", f"rdelay={delay}"),
    )
    return upstream, log


def requests(log: Path, name: str = "Read") -> int:
    """How many requests have reached the server."""
    return log.read_text().count(f"{name} id=") if log.exists() else 0


def test_a_client_that_asks_for_2000_mib_and_never_reads(
    servers: Servers, via: Gateways, image: Image, workdir: Path
) -> None:
    gateway = via.before(servers.start("qemu-raw", image.path))
    nbdcopy(gateway.uri(), workdir / "first")
    before = gateway.process.descriptors()

    with RawClient(gateway.uri()) as client:
        asked = b"".join(client.read_request(n, n % 64 * MIB, MIB) for n in range(2000))
        # Whether all 56 kB of requests are taken is the gateway's choice; that it stops is not.
        client.socket.setblocking(False)
        try:
            sent = client.socket.send(asked)
        except BlockingIOError:
            sent = 0
        assert sent > 0
        # Others go on, with all of their data.
        for _ in range(3):
            nbdcopy(gateway.uri(), workdir / "copy")
            assert sha256(workdir / "copy") == image.sha256
        if isinstance(gateway.process, Process) and MODE == "gateway":
            assert gateway.process.resident_bytes() < RESIDENT_LIMIT
    wait_until(lambda: gateway.process.descriptors() <= before, "the client's link is gone")


def test_reads_and_writes_do_not_wait_for_each_other(
    servers: Servers, via: Gateways, workdir: Path
) -> None:
    disk = workdir / "sparse"
    with disk.open("wb") as file:
        file.truncate(256 * MIB)
        for at in range(0, 32 * MIB, 16 * 1024):
            file.seek(at)
            file.write(b"x" * 4096)
    told = script("both_ways", via(servers.qemu_nbd("-f", "raw", "-t", disk)))
    assert told["answered"] == told["asked"]


def test_what_was_asked_before_a_goodbye_is_done(
    servers: Servers, via: Gateways, workdir: Path
) -> None:
    """libnbd shuts its sending side down behind DISC, and takes the answers."""
    disk, count = workdir / "disk", 100
    disk.touch()
    os.truncate(disk, MIB)
    whole_blocks = ("blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=32M")
    upstream = servers.nbdkit("--filter=blocksize-policy", "file", disk, *whole_blocks)
    assert script("farewell", via(upstream), count) == {"well": count}
    content = disk.read_bytes()
    for number in range(count):
        assert content[number * 8192 + 100 :].startswith(b"%07d," % number * 75)


def test_a_killed_client_leaves_the_gateway_serving(
    servers: Servers, via: Gateways, dirty: Path, workdir: Path
) -> None:
    gateway = via.before(servers.start("qemu-raw", dirty))
    nbdinfo(gateway.uri())
    before = gateway.process.descriptors()
    copy = workdir / "copy"
    # In small pieces, so that it takes a second.
    client = Process("nbdcopy", "--request-size=4096", gateway.uri(), copy)
    wait_until(lambda: copy.exists() and copy.stat().st_blocks > 1000, "the copy is under way")
    client.kill()
    assert client.wait() == -signal.SIGKILL, "it was faster than we are"
    qemu_io(gateway.uri(), "write -P 7 0 1M", "read -P 7 0 1M")
    wait_until(lambda: gateway.process.descriptors() <= before, "its connections are gone")


def test_a_killed_client_does_not_take_nbdkit_along(
    servers: Servers, via: Gateways, workdir: Path
) -> None:
    """nbdkit 1.32 aborts when a connection is closed under its answers (raw_send_socket).

    So whoever stands between them takes the answers first, and closes then.
    """
    upstream, log = slow(servers, workdir)
    gateway = via.before(upstream)
    for n in range(10):
        wanted = requests(log) + 16
        with RawClient(gateway.uri()) as client:
            for cookie in range(16):
                client.socket.sendall(client.read_request(cookie, cookie * MIB, MIB))
            all_begun = partial(lambda count: requests(log) >= count, wanted)
            wait_until(all_begun, "the server works on all of it")
            if n % 2:
                # A reset instead of an end, as the kernel sends for a killed program's TCP.
                client.receive(16)
        if not via.repairs:
            return
        qemu_io(gateway.uri(), "write -P 7 0 64k", "read -P 7 0 64k")
    assert upstream.process.running


def test_an_upstream_killed_in_mid_load_ends_its_clients(
    servers: Servers, via: Gateways, workdir: Path
) -> None:
    upstream, log = slow(servers, workdir)
    gateway = via.before(upstream, survives=False)
    client = reading(gateway.uri())
    wait_until(lambda: requests(log) > 50, "the load is well under way")
    upstream.process.kill()
    assert client.wait() == 0, client.output
    report = reported(client)
    assert report["good"] > 0
    assert report["died"]
    if MODE == "gateway":
        # EIO for what was under way; what was on its way meanwhile finds a closed door.
        assert report["unanswered"] == 0
        assert set(report["bad"]) <= {str(errno.EIO), str(errno.ENOTCONN)}
        assert gateway.process.running
        # A client that comes now is told so, and does not wait.
        assert attempt("nbdinfo", gateway.uri()).status != 0


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_commands_in_flight_get_eio_when_the_upstream_dies(
    tcp: bool, servers: Servers, via: Gateways, workdir: Path
) -> None:
    """Every one is answered, and then the connection ends: nobody has to guess."""
    upstream, log = slow(servers, workdir, delay="10")
    with RawClient(via.before(upstream, tcp=tcp, survives=False).uri()) as client:
        for n in range(8):
            client.socket.sendall(client.read_request(n, n * MIB, MIB))
        wait_until(lambda: requests(log) == 8, "the server works on all of it")
        upstream.process.kill()
        if via.repairs:
            answers = sorted(client.reply(MIB)[:2] for _ in range(8))
            assert answers == [(n, errno.EIO) for n in range(8)]
        with pytest.raises((EOFError, ConnectionResetError)):
            client.receive(1)


def test_sigterm_drains(servers: Servers, via: Gateways, workdir: Path) -> None:
    """What was asked before SIGTERM is answered; then the connection ends; then the gateway."""
    upstream, log = slow(servers, workdir, delay="1500ms")
    gateway = via.before(upstream)
    with RawClient(gateway.uri()) as client:
        for n in range(8):
            client.socket.sendall(client.read_request(n, n * MIB, MIB))
        wait_until(lambda: requests(log) == 8, "the server works on all of it")
        if MODE == "gateway":
            # nbdkit itself answers ESHUTDOWN, and then waits for its client.
            gateway.process.signal(signal.SIGTERM)
        answers = [client.reply(MIB) for _ in range(8)]
        assert sorted(answer[:2] for answer in answers) == [(n, 0) for n in range(8)]
        if MODE != "gateway":
            return
        with pytest.raises((EOFError, ConnectionResetError)):
            client.receive(1)
    assert isinstance(gateway.process, Process)
    assert gateway.process.wait() == 0
    assert "Traceback" not in gateway.process.output
    via.forget(gateway)


def test_sigterm_with_idle_clients_ends_at_once(
    servers: Servers, via: Gateways, image: Image
) -> None:
    gateway = via.before(servers.start("nbdkit", image.path))
    with RawClient(gateway.uri()) as client:
        if MODE != "gateway":
            return  # nbdkit sometimes waits for its client, and socat's children serve on
        gateway.process.signal(signal.SIGTERM)
        with pytest.raises((EOFError, ConnectionResetError)):
            client.receive(1)
    assert isinstance(gateway.process, Process)
    assert gateway.process.wait() == 0
    via.forget(gateway)


def test_a_half_closing_client_gets_its_answers(
    servers: Servers, via: Gateways, workdir: Path
) -> None:
    upstream, log = slow(servers, workdir, delay="300ms")
    with RawClient(via(upstream)) as client:
        for n in range(4):
            client.socket.sendall(client.read_request(n, n * MIB, MIB))
        wait_until(lambda: requests(log) == 4, "the server works on all of it")
        client.socket.shutdown(socket.SHUT_WR)
        cookies = sorted(client.reply(MIB)[0] for _ in range(4))
        assert cookies == [0, 1, 2, 3]
        with pytest.raises((EOFError, ConnectionResetError)):
            client.receive(1)


def test_an_upstream_that_is_not_there_is_an_error_and_no_hang(
    servers: Servers, via: Gateways, image: Image
) -> None:
    upstream = servers.start("nbdkit", image.path)
    uri = via(upstream)
    nbdinfo(uri)
    upstream.process.stop()
    refused = attempt("nbdinfo", uri)
    assert refused.status != 0

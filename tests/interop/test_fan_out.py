"""Several connections for each client, to real servers: all of them are used, and nothing else shows."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from .bundles import Requests, connections, keys, wait_for_connections
from .clients import nbdcopy, nbdinfo, nbdsh, qemu_io, script
from .conftest import make_image, sha256
from .gateways import MODE, Before
from .loads import ended, reading, verified, writing
from .processes import Process, attempt, run, wait_until
from .servers import Servers, Upstream

pytestmark = pytest.mark.skipif(MODE != "gateway", reason="only the gateway fans out")

MIB = 1 << 20
SIZE = 128 * MIB


def empty(path: Path, size: int = SIZE) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def four(servers: Servers, disk: Path) -> Upstream:
    """qemu-nbd for four connections and no more."""
    return servers.qemu_nbd("-f", "raw", "--cache=writeback", "--shared=4", disk)


def logged(servers: Servers, workdir: Path, *arguments: str | Path) -> tuple[Upstream, Requests]:
    """nbdkit, and what reaches it."""
    log = workdir / "requests.log"
    upstream = servers.nbdkit("--filter=log", *arguments, f"logfile={log}")
    return upstream, Requests(log)


def fio(gateway: Before, jobs: int) -> Process:
    """The line of test_load, with FLUSHes."""
    return writing(gateway.uri(), jobs=jobs, mib=SIZE // jobs // MIB, depth=32)


def has_grown(disk: Path, requests: Requests | None) -> bool:
    """Say whether fio has written more than it leaves uncompared, over all connections as far as is known."""
    if requests is None:
        return disk.stat().st_blocks * 512 > 4 * MIB
    over_all = all(len(requests.connections(name)) >= 4 for name in ("Write", "Read"))
    return over_all and "Flush" in requests.names()


@pytest.mark.parametrize(("mode", "jobs"), [(4, 1), ("shared:4", 4)])
@pytest.mark.parametrize("kind", ["qemu-nbd", "nbdkit-memory", "nbdkit-file"])
def test_fio_verifies_what_it_wrote(
    kind: str, mode: int | str, jobs: int, servers: Servers, workdir: Path
) -> None:
    requests = None
    disk = empty(workdir / "disk")
    if kind == "qemu-nbd":
        upstream = four(servers, disk)
    else:
        plugin = ("memory", "128M") if kind == "nbdkit-memory" else ("file", disk)
        upstream, requests = logged(servers, workdir, *plugin)
    gateway = Before(workdir, keys(upstream, mode))
    load = fio(gateway, jobs)
    wait_for_connections(upstream, 4, "under load")
    wait_until(lambda: has_grown(disk, requests), "fio has written, and compared some of it")
    verified(load, jobs=jobs)
    wait_for_connections(upstream, 0, "all clients have left")
    assert "instead of 4" not in gateway.end()


def test_four_connections_for_each_of_four_clients(servers: Servers, workdir: Path) -> None:
    upstream = servers.nbdkit("memory", "128M")
    gateway = Before(workdir, keys(upstream, 4))
    load = fio(gateway, 4)
    wait_for_connections(upstream, 16, "under load")
    verified(load, jobs=4)
    wait_for_connections(upstream, 0, "all clients have left")
    gateway.end()


@pytest.mark.parametrize("kind", ["qemu-nbd", "nbdkit"])
@pytest.mark.parametrize("stripe", ["1M", "4M"])
def test_all_commands_where_every_long_one_spans_stripes(
    kind: str, stripe: str, servers: Servers, workdir: Path
) -> None:
    disk = make_image(workdir / "disk", 64 * MIB).path
    upstream = four(servers, disk) if kind == "qemu-nbd" else servers.nbdkit("file", disk)
    gateway = Before(workdir, keys(upstream, 4, f'stripe = "{stripe}"'))
    uri = gateway.uri()
    report = script(
        *("depth", uri, "--longest", 3 * MIB + 512, "--length", 64 * MIB, "--operations", 600),
    )
    assert sum(report["done"].values()) == 600
    if kind == "nbdkit":  # the other has no place for a fifth connection
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, upstream.uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, disk)
    gateway.end()


def test_fio_with_blocks_that_do_not_divide_a_stripe(servers: Servers, workdir: Path) -> None:
    upstream, requests = logged(servers, workdir, "memory", "128M")
    gateway = Before(workdir, keys(upstream, 4))
    done = attempt(
        *("fio", "--name=verify", "--ioengine=nbd", f"--uri={gateway.uri()}", "--rw=randwrite"),
        *("--bs=1032k", "--verify=crc32c", "--verify_backlog=16", "--verify_fatal=1"),
        *("--verify_state_save=0", "--size=128m", "--iodepth=8"),
    )
    assert done.status == 0, str(done)
    assert len(requests.connections("Write")) == 4
    gateway.end()


@pytest.mark.parametrize("command", ["zero", "trim"])
def test_zeroes_and_trim_over_many_stripes(command: str, servers: Servers, workdir: Path) -> None:
    """They go as they are, with a FLUSH behind, and not in pieces of a stripe; what is read then, and written
    then, over any connection, is as it should be.
    """
    disk = workdir / "disk"
    disk.write_bytes(b"\xff" * 64 * MIB)
    upstream, requests = logged(servers, workdir, "file", disk)
    gateway = Before(workdir, keys(upstream, 4, "connections-required = true"))
    said = nbdsh(
        "MIB = 1 << 20\n"
        f"h.connect_uri({gateway.uri()!r})\n"
        "model = bytearray(b'\\xff' * 64 * MIB)\n"
        "def write(spots, byte, length):\n"
        "    data = bytes([byte]) * length\n"
        "    cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), at) for at in spots]\n"
        "    while h.aio_in_flight(): h.poll(-1)\n"
        "    assert all(h.aio_command_completed(cookie) for cookie in cookies)\n"
        "    for at in spots: model[at:at + length] = data\n"
        "def check():\n"
        "    assert h.pread(32 * MIB, 0) == model[:32 * MIB]\n"
        "    assert h.pread(32 * MIB, 32 * MIB) == model[32 * MIB:]\n"
        "write([n * MIB - 4096 for n in range(1, 63)], 1, 8192)\n"
        "first, length = MIB + 512, 29 * MIB + 1024\n"
        f"h.{command}(length, first)\n"
        "model[first:first + length] = bytes(length)\n"
        "check()\n"
        "write([n * 4 * MIB + 700000 for n in range(15)], 0x55, 3 * MIB)\n"
        "check()\n"
        "print('right')"
    )
    assert said == "right\n"
    names = requests.names()
    name = command.capitalize()
    assert names.count(name) == 1
    assert names[names.index(f"...{name}") + 1] == "Flush"
    assert len(requests.connections("Read")) == 4
    gateway.end()


def test_a_long_trim_by_others_programs(servers: Servers, workdir: Path) -> None:
    disk = workdir / "disk"
    disk.write_bytes(b"\xff" * 64 * MIB)
    upstream = four(servers, disk)
    gateway = Before(workdir, keys(upstream, 4))
    qemu_io(
        gateway.uri(),
        "discard 1M 50M",
        "write -z 2M 40M",
        "read -P 0 2M 40M",
        "read -P 0xff 51M 13M",
        "write -P 3 3000k 5000k",
        "flush",
        "read -P 3 3000k 5000k",
        "read -P 0 8000k 2000k",
    )
    qemu_io(upstream.uri, "read -P 3 3000k 5000k", "read -P 0 8000k 30M")
    gateway.end()


EXTENTS = """
found = []
def extent(context, offset, entries, error):
    for length, flags in zip(entries[::2], entries[1::2]):
        if found and found[-1][1] == flags: found[-1][0] += length
        else: found.append([length, flags])
def extents(h):
    at = 0
    found.clear()
    while at < h.get_size():
        h.block_status(h.get_size() - at, at, extent)
        at = sum(length for length, _ in found)
    return [list(each) for each in found]
"""


@pytest.mark.parametrize("kind", ["qemu-nbd", "nbdkit"])
def test_block_status_knows_what_is_not_flushed(kind: str, servers: Servers, workdir: Path) -> None:
    disk = empty(workdir / "disk", 64 * MIB)
    requests = None
    if kind == "qemu-nbd":
        upstream = servers.qemu_nbd("-f", "raw", "--cache=writeback", disk)
    else:
        upstream, requests = logged(servers, workdir, "file", disk)
    gateway = Before(workdir, keys(upstream, 4))
    said = nbdsh(
        f"{EXTENTS}\n"
        "import random\n"
        "rng = random.Random(7)\n"
        "def connected(uri):\n"
        "    h = nbd.NBD(); h.add_meta_context('base:allocation'); h.connect_uri(uri); return h\n"
        f"ours, direct = connected({gateway.uri()!r}), connected({upstream.uri!r})\n"
        "for _ in range(20):\n"
        "    for _ in range(5):\n"
        "        at = rng.randrange(0, (64 << 20) - (2 << 20), 65536)\n"
        "        ours.pwrite(b'\\x01' * rng.choice([65536, 1 << 20, 1114112]), at)\n"
        "    mine = extents(ours)\n"
        "    ours.flush()\n"
        "    assert mine == extents(direct), (mine, extents(direct))\n"
        "assert len(mine) > 10\n"
        "print('right')"
    )
    assert said == "right\n"
    if requests:
        ours = [name for name in requests.names() if name in ("Write", "Flush", "Extents")]
        behind = [one for one, other in itertools.pairwise(ours) if other == "Extents"]
        assert "Write" not in behind
    gateway.end()


def test_nbdcopy_both_ways(servers: Servers, workdir: Path) -> None:
    source = workdir / "source"
    block = random.Random(1).randbytes(4 * MIB)
    with source.open("wb") as file:
        for turn in range(16):
            file.write(block[turn * 100 :] + block[: turn * 100])
    upstream, requests = logged(servers, workdir, "memory", "64M")
    gateway = Before(workdir, keys(upstream, 4))
    nbdcopy(source, gateway.uri())
    nbdcopy(gateway.uri(), workdir / "copy", "--synchronous")
    assert sha256(workdir / "copy") == sha256(source)
    nbdcopy(upstream.uri, workdir / "copy")
    assert sha256(workdir / "copy") == sha256(source)
    assert len(requests.connections("Write")) >= 4
    wait_for_connections(upstream, 0, "nbdcopy has left")
    gateway.end()


def test_a_write_with_fua_where_the_server_has_none(servers: Servers, workdir: Path) -> None:
    """It is answered when all of its parts were written, and after a FLUSH that was sent after that."""
    upstream, requests = logged(
        *(servers, workdir, "--filter=delay", "--filter=fua", "memory", "64M"),
        "wdelay=20ms",
    )
    assert not nbdinfo(upstream.uri)["exports"][0]["can_fua"]
    # Required: then all are there before the client is, and none of its FLUSHes is for one that comes later.
    gateway = Before(workdir, keys(upstream, 4, "connections-required = true"))
    said = nbdsh(
        f"h.connect_uri({gateway.uri()!r})\n"
        "assert h.can_fua()\n"
        "h.pwrite(b'\\x07' * (5 << 20), 300000, nbd.CMD_FLAG_FUA)\n"
        "assert h.pread(5 << 20, 300000) == b'\\x07' * (5 << 20)\n"
        "print('right')"
    )
    assert said == "right\n"
    names = [name for name in requests.names() if "Write" in name or "Flush" in name]
    assert names.count("Write") == names.count("...Write") == 6
    assert names[-2:] == ["Flush", "...Flush"]
    assert names.count("Flush") == 1
    assert len(requests.connections("Write")) == 4
    gateway.end()


def test_a_server_that_promises_more_than_it_has_room_for(servers: Servers, workdir: Path) -> None:
    """CAN_MULTI_CONN of qemu-nbd with two places: the third connection stays in its queue."""
    upstream = servers.qemu_nbd("-f", "raw", "--shared=2", empty(workdir / "disk"))
    gateway = Before(workdir, keys(upstream, 4, "negotiate-seconds = 1"))
    client = reading(gateway.uri())
    fewer = "one connection instead of 4: no other could be made: "
    wait_until(lambda: fewer in gateway.log, "it makes do with less")
    ended(client)
    wait_for_connections(upstream, 0, "it has left")
    log = gateway.end()
    assert "has connected and not greeted for 1 s" in log


def test_all_four_are_required(servers: Servers, workdir: Path) -> None:
    upstream = servers.qemu_nbd("-f", "raw", "--shared=1", empty(workdir / "disk"))
    gateway = Before(workdir, keys(upstream, 4, "connections-required = true"))
    done = attempt("qemu-img", "info", "-f", "raw", gateway.uri())
    assert done.status != 0
    assert (
        "connections-required = true: one connection instead of 4: the server does not" in done.err
    )
    wait_for_connections(upstream, 0, "the client was refused")
    gateway.end()


def test_no_connection_stays_behind_clients_that_come_and_go(
    servers: Servers, workdir: Path
) -> None:
    upstream = servers.nbdkit("memory", "128M")
    gateway = Before(workdir, keys(upstream, 4))
    nbdinfo(gateway.uri())
    wait_for_connections(upstream, 0, "the first has left")
    before = gateway.process.descriptors()
    for turn in range(10):
        clients = [Process("nbdinfo", "--json", gateway.uri()) for _ in range(4)]
        killed = Process("nbdcopy", gateway.uri(), "null:")
        if turn % 2:
            wait_until(lambda: connections(upstream) > 0, "somebody is there")
        killed.kill()
        for client in clients:
            assert client.wait() == 0, client.output
            assert json.loads(client.output)["exports"][0]["export-size"] == SIZE
    wait_for_connections(upstream, 0, "all have left")
    wait_until(lambda: gateway.process.descriptors() <= before, "its sockets are closed")
    gateway.end()

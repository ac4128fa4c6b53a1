"""A whole fleet on one machine: three members of etcd, gateways behind the real haproxy, and a server in this
process that knows which gateway each of its connections is from.

The kernel says whose a connection to the server is (SO_PEERCRED, or /proc for TCP). From that comes its own
log, and what it holds against it: *two writers* are seen where a connection writes to a disk although another
gateway has written there since that connection was accepted. For a gateway that becomes the home of a disk
makes new connections, and none of those outlives its time as the home.

What is written is volatile until it is flushed, or written with FUA, and the disk can say what is stable: so
that a FLUSH which lies is seen at once (`tests.tools.oracle`).

The fence is asked for by a program, as gateways have it (`[fleet] fence`). It closes all connections of a
gateway and takes none of it until that one has a lease in etcd again: then it has noticed what it has lost.

Over TCP the server can be `blocked` for one gateway: what that has sent lies in the kernel then.

Each gateway goes to each member of etcd by a relay of its own, so that one can be cut off from etcd and not
from the server."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import trio

from gateway.embedded import Server
from gateway.embedded.disk import Data, MemoryDisk
from gateway.fleet.answers import EtcdRefused, EtcdUnavailable
from gateway.fleet.etcd import Etcd
from tests.fleet.etcds import PATIENT_SECONDS, Members, free_ports
from tests.fleet.etcds import running as etcd_running
from tests.fleet.running import OneGateway, answers, write_pki
from tests.interop.processes import Process
from tests.tools.cutter import Relay, cutter
from tests.tools.patience import HANG_SECONDS
from tests.tools.stamps import BLOCK_BYTES, stamps_of

LOOK_AGAIN_SECONDS = 0.02

READ_BYTES = 64 << 10

GATEWAY = """\
[[listen]]
uri = "nbd+unix:///?socket={at}/{name}.sock"
[control]
socket = "{at}/{name}.control"
[upstream.u]
uri = "{server}"
canonical-names = true
unflushed = "{unflushed}"
late-write-seconds = {late:g}
[fleet]
etcd = {etcd}
name = "{name}"
address = "nbds://127.0.0.1:{port}"
certificates = "{at}/pki"
lease-seconds = {lease}
"""

FENCE = """\
#!{python}
import socket, sys
asks = socket.socket(socket.AF_UNIX)
asks.connect("{at}/fence.sock")
asks.sendall(sys.argv[1].encode())
asks.shutdown(socket.SHUT_WR)
sys.exit(asks.recv(1) != b"y")
"""

HAPROXY = """\
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    option redispatch
listen nbd
    bind unix@{at}/nbd.sock
    balance roundrobin
"""


@dataclass(eq=False)
class FromGateway:
    """A connection to the server."""

    gateway: str
    pid: int
    accepted: int
    """When, as the server counts."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


_connection: ContextVar[FromGateway] = ContextVar("_connection")


class JudgedDisk(MemoryDisk):
    """A disk that is volatile until a FLUSH, and sees two writers."""

    def __init__(self, name: str, blocks: int, log: ServerLog) -> None:
        super().__init__(blocks * BLOCK_BYTES)
        self._name, self._log = name, log
        self._stable = bytearray(blocks * BLOCK_BYTES)
        self._dirty: set[int] = set()
        self._last: dict[int, int] = {}
        """When each gateway has written last."""
        self.writes = 0

    def stamp(self, block: int) -> int:
        """Give what is stable of a block."""
        at = block * BLOCK_BYTES
        return stamps_of(self._stable[at : at + BLOCK_BYTES], block)[0]

    def stamps(self) -> list[int]:
        """Give what there is."""
        return stamps_of(bytes(self._view))

    async def write(self, offset: int, data: Data, *, fua: bool = False) -> None:
        self._judge()
        await super().write(offset, data, fua=fua)
        await self._changed(offset, len(data), fua=fua)

    async def zero(self, offset: int, length: int, **how: bool) -> None:
        self._judge()
        await super().zero(offset, length, **how)
        await self._changed(offset, length, fua=how.get("fua", False))

    async def _changed(self, offset: int, length: int, *, fua: bool) -> None:
        changed = range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES))
        self._dirty.update(changed)
        if fua:
            self._settle(changed)

    async def flush(self) -> None:
        self._settle(list(self._dirty))

    def _settle(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            at = block * BLOCK_BYTES
            self._stable[at : at + BLOCK_BYTES] = self._view[at : at + BLOCK_BYTES]
            self._dirty.discard(block)

    def _judge(self) -> None:
        self.writes += 1
        ours, now = _connection.get(), next(self._log.clock)
        for pid, last in self._last.items():
            if pid != ours.pid and last > ours.accepted:
                whose = self._log.names.get(pid, str(pid))
                self._log.two_writers.append(
                    f"{self._name}: {ours.gateway} writes at {now} over a connection of {ours.accepted}, and"
                    f" {whose} has written at {last}"
                )
        self._last[ours.pid] = now


@dataclass
class ServerLog:
    """What the server has seen."""

    clock: count[int] = field(default_factory=count)
    names: dict[int, str] = field(default_factory=dict)
    two_writers: list[str] = field(default_factory=list)
    fenced: int = 0


class WatchedServer:
    """The server, and the fence before it."""

    def __init__(self, at: Path, disks: dict[str, JudgedDisk], log: ServerLog) -> None:
        self._at = at
        self._server = Server(dict(disks))
        self._log = log
        self._connections: set[FromGateway] = set()
        self._shut_out: set[str] = set()
        self.may_read: dict[str, trio.Event] = {}
        """Gateways from which nothing is read until then."""
        self.port = 0
        """Of TCP, where it listens at that as well."""
        self.has_lease: Callable[[str], Awaitable[bool]]
        """Says whether a gateway has a lease."""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = [await _listening(self._at / name) for name in ("u.sock", "fence.sock")]
        tcp = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = tcp[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._serve, [listeners[0], *tcp])
            nursery.start_soon(trio.serve_listeners, self._cut_off, listeners[1:])
            task_status.started()

    async def _serve(self, stream: trio.SocketStream) -> None:
        pid = whose(stream, self._log.names)
        name = self._log.names.get(pid, "somebody")
        async with stream:
            if name in self._shut_out:
                if not await self.has_lease(name):
                    return
                self._shut_out.discard(name)
            ours = FromGateway(name, pid, next(self._log.clock))
            self._connections.add(ours)
            try:
                with ours.scope:
                    _connection.set(ours)
                    if stream.socket.family == socket.AF_UNIX:
                        await self._server.serve(stream)
                    else:
                        await self._serve_when_it_may(stream, name)
            finally:
                self._connections.discard(ours)

    async def _serve_when_it_may(self, stream: trio.SocketStream, name: str) -> None:
        """Read nothing while the server is blocked for this gateway."""
        near, far = trio.socket.socketpair()
        inside, outside = trio.SocketStream(near), trio.SocketStream(far)

        async def requests() -> None:
            with suppress(trio.BrokenResourceError):
                while True:
                    if name in self.may_read:
                        await self.may_read[name].wait()
                    data = await stream.receive_some(READ_BYTES)
                    if not data:
                        break
                    await outside.send_all(data)
            with suppress(trio.BrokenResourceError):
                await outside.send_eof()

        async def replies() -> None:
            with suppress(trio.BrokenResourceError):
                while data := await outside.receive_some(READ_BYTES):
                    await stream.send_all(data)

        async with inside, outside, trio.open_nursery() as nursery:
            nursery.start_soon(requests)
            nursery.start_soon(replies)
            await self._server.serve(inside)
            nursery.cancel_scope.cancel()

    def block(self, name: str) -> None:
        """Read nothing that a gateway sends, until `unblock`."""
        self.may_read[name] = trio.Event()

    def unblock(self, name: str) -> None:
        self.may_read.pop(name).set()

    def connections_of(self, name: str) -> int:
        """Say how many connections a gateway has."""
        return sum(each.gateway == name for each in self._connections)

    async def _cut_off(self, stream: trio.SocketStream) -> None:
        name = b""
        while piece := await stream.receive_some():
            name += piece
        self._log.fenced += 1
        self._shut_out.add(name.decode())
        for each in list(self._connections):
            if each.gateway == name.decode():
                each.scope.cancel()
        while any(each.gateway == name.decode() for each in self._connections):
            await trio.sleep(LOOK_AGAIN_SECONDS)
        with suppress(trio.BrokenResourceError):
            await stream.send_all(b"y")


def whose(stream: trio.SocketStream, pids: Collection[int]) -> int:
    """Give which of several processes is at the other end of a connection."""
    if stream.socket.family == socket.AF_UNIX:
        said = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("3i", said)[0])
    port = f":{stream.socket.getpeername()[1]:04X}"
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(port)}
    for pid in pids:
        with suppress(OSError):
            for each in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    if str(each.readlink()) in inodes:
                        return pid
    return 0


async def _listening(path: Path) -> trio.SocketListener:
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen(64)
    return trio.SocketListener(sock)


@dataclass(eq=False)
class FleetWorld:
    """All of it."""

    at: Path
    gateways: dict[str, OneGateway]
    members: Members
    relays: dict[str, list[Relay]]
    """To etcd, of each gateway."""
    disks: dict[str, JudgedDisk]
    log: ServerLog
    etcd: Etcd
    server: WatchedServer

    @property
    def socket(self) -> Path:
        """Where clients come."""
        return self.at / "nbd.sock"

    def start(self, name: str) -> None:
        one = self.gateways[name]
        one.start()
        assert one.process is not None
        self.log.names[one.process.pid] = name

    async def homes(self) -> dict[str, str]:
        """Give which gateway is the home of each disk, by its name at the server."""
        found, _revision = await self.etcd.below("/nbd-gateway/homes/")
        said = [json.loads(each.value) for each in found]
        return {each["disk"].rpartition(" ")[2]: each["gateway"] for each in said}

    async def has_lease(self, name: str) -> bool:
        try:
            return bool((await self.etcd.get(f"/nbd-gateway/members/{name}")).revision)
        except (EtcdUnavailable, EtcdRefused):
            return False


@asynccontextmanager
async def fleet_world(
    at: Path,
    *,
    names: Sequence[str] = "abc",
    exports: Sequence[str] = ("d0",),
    entries: Sequence[str] = (),
    blocks: int = 128,
    lease: int = 8,
    late: float = 0,
    fence: bool = True,
    unflushed: str = "assume-durable",
    more: str = "",
    tcp: bool = False,
) -> AsyncIterator[FleetWorld]:
    """Have it, until the block ends. Clients come to `entries` (default: all). `tcp`: so the gateways go to the
    server.
    """
    write_pki(at / "pki")
    log = ServerLog()
    disks = {name: JudgedDisk(name, blocks, log) for name in exports}
    async with AsyncExitStack() as stack:
        members = stack.enter_context(etcd_running(at / "etcd", 3))
        await answers(members)
        etcd = await stack.enter_async_context(Etcd(members.uris, seconds=PATIENT_SECONDS))
        relays: dict[str, list[Relay]] = {}
        with free_ports(len(names)) as ports:
            pass
        if fence:
            (at / "fence").write_text(FENCE.format(python=sys.executable, at=at))
            (at / "fence").chmod(0o700)
        server = WatchedServer(at, disks, log)
        nursery = await stack.enter_async_context(trio.open_nursery())
        await nursery.start(server.run)
        there = f"nbd://127.0.0.1:{server.port}" if tcp else f"nbd+unix:///?socket={at}/u.sock"
        gateways = {}
        for name, port in zip(names, ports, strict=True):
            relays[name] = []
            for uri in members.uris:
                address = ("127.0.0.1", int(uri.rpartition(":")[2]))
                relays[name].append(await stack.enter_async_context(cutter(address)))
            uris = [each.uri.replace("nbd:", "http:") for each in relays[name]]
            text = GATEWAY.format(
                at=at,
                name=name,
                port=port,
                server=there,
                lease=lease,
                late=late,
                unflushed=unflushed,
                etcd=json.dumps(uris),
            )
            text += f'fence = ["{at}/fence"]\n' if fence else ""
            (at / f"{name}.toml").write_text(text + more)
            gateways[name] = OneGateway(at, name)
            stack.callback(gateways[name].kill)
        world = FleetWorld(at, gateways, members, relays, disks, log, etcd, server)
        server.has_lease = world.has_lease
        with trio.fail_after(HANG_SECONDS):
            for name in names:
                world.start(name)
            for each in gateways.values():
                await each.serves()
        servers = [f"    server {n} unix@{at}/{n}.sock check inter 200ms" for n in entries or names]
        (at / "haproxy.cfg").write_text("\n".join([HAPROXY.format(at=at), *servers, ""]))
        balancer = Process("haproxy", "-db", "-f", at / "haproxy.cfg")
        stack.callback(_ended, balancer)
        with trio.fail_after(HANG_SECONDS):
            while not world.socket.exists():  # it is put in place when it is listened at
                await trio.sleep(LOOK_AGAIN_SECONDS)
        yield world
        nursery.cancel_scope.cancel()


def _ended(process: Process) -> None:
    process.kill()
    with suppress(ValueError):
        Process.started.remove(process)


def goes_on(one: OneGateway) -> None:
    """Have a gateway go on that was stopped, if it is there."""
    if one.process is not None and one.process.poll() is None:
        os.kill(one.process.pid, signal.SIGCONT)

"""A relay between a client and a server that does to their connections what networks do.

It passes bytes on, blindly, over real sockets of this machine, until it is told to cut them, to hold them, or
to let nobody in. Held, it reads no more than one piece for each direction, so that both ends feel it.

Cutting "after n bytes" is exact: n bytes of that direction have been handed to the kernel for the receiver, and
not one more. With RST they may be lost on the way where it is slow to read; with FIN they are not. A Unix
socket knows no RST: it is closed, with what is unread in it; its peer sees that as ECONNRESET or as the end.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trio

Address = tuple[str, int] | Path
"""Host and port, or the path of a Unix socket."""

Towards = Literal["server", "client"]

PIECE_BYTES = 64 * 1024
"""What is read at a time, and all that is kept of a direction."""

MAX_CONNECTIONS = 64
"""At a time: a test that opens more has gone wrong, and waits."""

FIN_SECONDS = 5
"""How long an end may go on sending once it was told that nothing more will come."""

_GONE = (OSError, trio.ClosedResourceError)
"""What a socket raises that is broken, or that somebody here has closed."""

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, of 0 seconds: closing sends RST."""


@dataclass
class _Cut:
    """What waits for so many bytes."""

    left: int
    reset: bool
    then: Callable[[], object]


class Relay:
    """Made by `cutter`."""

    def __init__(self, upstream: Address, listen: Address) -> None:
        self.address = listen
        self.connections = 0
        """So far."""
        self.passed: dict[Towards, int] = {"server": 0, "client": 0}
        """Bytes, of all connections."""
        self._upstream = upstream
        self._pairs: set[_Pair] = set()
        self._cuts: dict[Towards, _Cut | None] = {"server": None, "client": None}
        self._goes_on = trio.Event()
        self._goes_on.set()
        self._cut_done = trio.Event()
        self._listener: trio.socket.SocketType | None = None
        self._accepting = trio.CancelScope()
        self._listens = trio.Event()

    @property
    def uri(self) -> str:
        """Where clients connect to."""
        if isinstance(self.address, Path):
            return f"nbd+unix:///?socket={self.address}"
        return f"nbd://{self.address[0]}:{self.address[1]}"

    @property
    def open(self) -> int:
        """Connections that are there."""
        return len(self._pairs)

    def cut(self, *, reset: bool = True) -> int:
        """End all connections on both sides, now, with RST or FIN; give how many there were."""
        pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            pair.cut(reset)
        self._goes_on.set()
        return len(pairs)

    def cut_after(
        self,
        count: int,
        towards: Towards,
        *,
        reset: bool = True,
        then: Callable[[], object] = lambda: None,
    ) -> trio.Event:
        """Cut all connections once exactly `count` more bytes were passed on in a direction, and call `then` in
        the same moment; give the event of it.
        """
        done = self._cut_done = trio.Event()

        def ended() -> None:
            then()
            done.set()

        self._cuts[towards] = _Cut(count, reset, ended)
        if not count:
            self._count(towards, 0)
        return done

    def hold(self) -> None:
        """Pass nothing on, in either direction; who connects waits as well."""
        self._goes_on = trio.Event()

    def go_on(self) -> None:
        """Pass everything on again."""
        self._goes_on.set()

    def refuse(self) -> None:
        """Let nobody connect: ECONNREFUSED, until `accept`. Connections stay."""
        self._accepting.cancel()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            if isinstance(self.address, Path):
                self.address.unlink()

    def accept(self) -> None:
        """Listen again, at the same address; who connects from now on is served."""
        if self._listener is None:
            self._listener = _listen(self.address)
            if not isinstance(self.address, Path):
                host, port = self._listener.getsockname()
                self.address = host, port
            self._accepting = trio.CancelScope()
            self._listens.set()

    # --- What it does meanwhile

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            limit = trio.Semaphore(MAX_CONNECTIONS)
            while True:
                self._listens = trio.Event()
                if self._listener is not None:
                    with self._accepting:
                        await self._accept(nursery, limit)
                if self._listener is None:
                    await self._listens.wait()

    async def _accept(self, nursery: trio.Nursery, limit: trio.Semaphore) -> None:
        listener = self._listener
        while listener is not None and listener is self._listener:
            await limit.acquire()
            try:
                client, _ = await listener.accept()
            except BaseException as error:
                limit.release()
                if not isinstance(error, _GONE):
                    raise
            else:
                self.connections += 1
                nursery.start_soon(self._serve, client, limit)

    async def _serve(self, client: trio.socket.SocketType, limit: trio.Semaphore) -> None:
        server: trio.socket.SocketType | None = None
        try:
            with client:
                await self._goes_on.wait()
                server = await _connect(self._upstream)
                if server is None:
                    return
                with server:
                    await self._both_ways(_Pair(client, server))
        finally:
            limit.release()

    async def _both_ways(self, pair: _Pair) -> None:
        self._pairs.add(pair)
        try:
            with pair.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pass_on, pair, pair.client, pair.server, "server")
                    nursery.start_soon(self._pass_on, pair, pair.server, pair.client, "client")
        finally:
            self._pairs.discard(pair)
        if pair.swallows:
            with trio.move_on_after(FIN_SECONDS):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_swallow, pair.client)
                    nursery.start_soon(_swallow, pair.server)

    async def _pass_on(
        self,
        pair: _Pair,
        source: trio.socket.SocketType,
        target: trio.socket.SocketType,
        towards: Towards,
    ) -> None:
        buffer = memoryview(bytearray(PIECE_BYTES))
        try:
            while count := await source.recv_into(buffer):
                at = 0
                while at < count:
                    await self._goes_on.wait()
                    cut = self._cuts[towards]
                    most = count - at if cut is None else min(count - at, cut.left)
                    # What was sent has to be counted before anything else happens: no checkpoint between.
                    sent = _send_now(target, buffer[at : at + most])
                    if sent is None:
                        await trio.lowlevel.wait_writable(target)
                        continue
                    at += sent
                    self._count(towards, sent)
                    await trio.lowlevel.checkpoint()
            with suppress(OSError):
                target.shutdown(socket.SHUT_WR)
        except _GONE:
            # One end has gone: the other learns it in the same way.
            self._pairs.discard(pair)
            pair.cut(reset=True)

    def _count(self, towards: Towards, count: int) -> None:
        self.passed[towards] += count
        cut = self._cuts[towards]
        if cut is not None:
            cut.left -= count
            if not cut.left:
                self._cuts[towards] = None
                self.cut(reset=cut.reset)
                cut.then()


class _Pair:
    """One connection: both its halves."""

    def __init__(self, client: trio.socket.SocketType, server: trio.socket.SocketType) -> None:
        self.client, self.server = client, server
        self.scope = trio.CancelScope()
        self.swallows = False

    def cut(self, reset: bool) -> None:
        """End it on both sides at once, before anybody else runs."""
        for end in (self.client, self.server):
            with suppress(OSError):
                if not reset:
                    # Not closed yet: with unread bytes in it, that would be a RST.
                    end.shutdown(socket.SHUT_WR)
                    continue
                if end.family != socket.AF_UNIX:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.close()
        self.swallows = not reset
        self.scope.cancel()


def _send_now(target: trio.socket.SocketType, data: memoryview) -> int | None:
    """Send what the kernel takes; None if that is nothing."""
    try:
        return os.write(target.fileno(), data)
    except BlockingIOError:
        return None


async def _swallow(end: trio.socket.SocketType) -> None:
    with suppress(*_GONE):
        while await end.recv(PIECE_BYTES):
            pass


async def _connect(address: Address) -> trio.socket.SocketType | None:
    unix = isinstance(address, Path)
    sock = trio.socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    try:
        await sock.connect(str(address) if unix else address)
        if not unix:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


def _listen(address: Address) -> trio.socket.SocketType:
    unix = isinstance(address, Path)
    sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    try:
        if not unix:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(str(address) if isinstance(address, Path) else address)
        sock.listen(MAX_CONNECTIONS)
    except BaseException:
        sock.close()
        raise
    return trio.socket.from_stdlib_socket(sock)


@asynccontextmanager
async def cutter(upstream: Address, listen: Address = ("127.0.0.1", 0)) -> AsyncIterator[Relay]:
    """A relay before `upstream`, which listens at `listen` (a free port of the loopback). When it ends, all
    connections are cut.
    """
    relay = Relay(upstream, listen)
    relay.accept()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay._run)
            yield relay
            relay.cut()
            nursery.cancel_scope.cancel()
    finally:
        relay.refuse()

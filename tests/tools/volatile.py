"""A server in this process that caches what is written, and can be made to crash.

    `Store`            what is seen, what is stable, and what lies between; pure
    `VolatileDisk`     a disk of `gateway.embedded` over a store, whose commands can be held
    `VolatileServer`   crashes, is down for a while, and is started again

A WRITE is seen at once, and is on stable storage after a FLUSH; with FUA, its own range is. A crash leaves what
is stable and, of the rest, whatever the test says: nothing, all, or any pieces in any order, because a cache
writes back what it likes when it likes. A FLUSH may cover only what came over one connection, as it does
without CAN_MULTI_CONN; and one that fails leaves what it should have written seen as before, and never stable:
as Linux does, which marks such pages clean.

A command is carried out and answered in two steps. Free, both come at once. Held, it stands in `disk.pending`
until the test says `carry_out` and `answer`: in any order, one without the other, or never. A connection that
is cut does not take its commands along: they are still pending and may be carried out late, as by qemu-nbd. A
crash does.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from random import Random
from typing import cast

import trio

from gateway.embedded import Server
from gateway.embedded.disk import Data, Extent
from gateway.embedded.personality import PLAIN, Personality
from tests.tools.stamps import BLOCK_BYTES

CONNECTION: ContextVar[int] = ContextVar("connection")
"""Whose command it is: the how manieth connection of the server's, from 0."""


# --- What is stored

ANY = -1
"""All connections."""


@dataclass(frozen=True)
class Piece:
    """Bytes that are written and not stable."""

    offset: int
    data: bytes
    connection: int = ANY
    """Whose FLUSH covers it."""
    doomed: bool = False
    """It can never be stable any more."""

    @property
    def end(self) -> int:
        return self.offset + len(self.data)

    def outside(self, start: int, end: int) -> Iterable[Piece]:
        """Give what of it lies outside a range."""
        if self.offset < start:
            yield replace(self, data=self.data[: max(0, start - self.offset)])
        if self.end > end:
            at = max(self.offset, end)
            yield replace(self, offset=at, data=self.data[at - self.offset :])


Keep = Callable[[list[Piece]], Iterable[Piece]]
"""Given what is not stable, in the order in which it was written: what reaches stable storage nevertheless,
in the order in which it does."""


def nothing(_pieces: list[Piece]) -> Iterable[Piece]:
    """All is lost."""
    return ()


def everything(pieces: list[Piece]) -> Iterable[Piece]:
    """All is there."""
    return pieces


def torn(pieces: Iterable[Piece], grain: int = BLOCK_BYTES) -> list[Piece]:
    """Give the same in smaller pieces, none of which crosses a multiple of `grain`."""
    return [
        replace(
            piece,
            offset=at,
            data=piece.data[
                at - piece.offset : min(at - at % grain + grain, piece.end) - piece.offset
            ],
        )
        for piece in pieces
        for at in (
            piece.offset,
            *range(piece.offset - piece.offset % grain + grain, piece.end, grain),
        )
    ]


def some(random: Random, *, tear: bool = True, shuffle: bool = False) -> Keep:
    """Any of them, each by itself; with `tear`, any blocks of each; with `shuffle`, in any order."""

    def keep(pieces: list[Piece]) -> Iterable[Piece]:
        likely = random.choice((0.1, 0.5, 0.9))
        kept = [piece for piece in (torn(pieces) if tear else pieces) if random.random() < likely]
        if shuffle:
            random.shuffle(kept)
        return kept

    return keep


class Store:
    """Bytes, as they are seen and as they are stable."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen = bytearray(size)
        self.stable = bytearray(size)
        self.unstable: list[Piece] = []

    def read(self, offset: int, length: int) -> bytes:
        """Give what is seen."""
        return bytes(self.seen[offset : offset + length])

    def write(self, offset: int, data: Data, *, fua: bool = False, connection: int = ANY) -> None:
        """Write; with `fua`, its range is stable then."""
        piece = Piece(offset, bytes(data), connection)
        self.seen[offset : piece.end] = piece.data
        if fua:
            self.stable[offset : piece.end] = piece.data
            # What lay below may not come out later.
            self.unstable = [
                rest for old in self.unstable for rest in old.outside(offset, piece.end)
            ]
        else:
            self.unstable.append(piece)

    def flush(self, connection: int = ANY) -> None:
        """Make stable what came over a connection, or everything."""
        left: list[Piece] = []
        for piece in self.unstable:
            if piece.doomed or (ANY != piece.connection != connection != ANY):
                left.append(piece)
            else:
                self.stable[piece.offset : piece.end] = piece.data
                # What lay below may not come out later.
                left = [rest for old in left for rest in old.outside(piece.offset, piece.end)]
        self.unstable = left

    def fail(self, connection: int = ANY) -> None:
        """Fail a FLUSH: what it should have made stable never will be, but is seen."""
        self.unstable = [
            piece if ANY != piece.connection != connection != ANY else replace(piece, doomed=True)
            for piece in self.unstable
        ]

    def adopt(self, connection: int) -> None:
        """Have any FLUSH cover what came over a connection."""
        self.unstable = [
            replace(piece, connection=ANY) if piece.connection == connection else piece
            for piece in self.unstable
        ]

    def become(self, content: Data) -> None:
        """Be another disk, or an older state of this one."""
        self.unstable = []
        self.stable[:] = content
        self.seen[:] = content

    def crash(self, keep: Keep = nothing) -> int:
        """Lose what is not stable, but for what is kept; give how many bytes are seen no more."""
        for piece in keep([piece for piece in self.unstable if not piece.doomed]):
            self.stable[piece.offset : piece.end] = piece.data
        self.unstable = []
        lost = sum(one != other for one, other in zip(self.seen, self.stable, strict=True))
        self.seen[:] = self.stable
        return lost


# --- A disk, and commands that wait


@dataclass(eq=False)
class Pending:
    """A command that has come."""

    command: str
    """"read", "write", "zero", "trim", "flush" or "cache"."""
    offset: int
    length: int
    fua: bool
    connection: int
    """The how manieth of the server's, from 0."""
    data: bytes = b""
    done: bool = False
    """It was carried out."""
    _run: Callable[[], bytes] = bytes
    _error: int = 0
    _answered: trio.Event = field(default_factory=trio.Event)
    _among: list[Pending] = field(default_factory=list)

    @property
    def range(self) -> range:
        """Its bytes."""
        return range(self.offset, self.offset + self.length)

    def carry_out(self) -> None:
        """Do it, and do not answer yet."""
        assert not self.done, "it was carried out before"
        self.data = self._run() or self.data
        self.done = True

    def answer(self) -> None:
        """Answer, after carrying it out if that was not done."""
        if not self.done:
            self.carry_out()
        self._leave()

    def fail(self, number: int = errno.EIO) -> None:
        """Answer with an error, whether it was carried out or not."""
        self._error = number
        self._leave()

    def _leave(self) -> None:
        if self in self._among:
            self._among.remove(self)
        self._answered.set()


class VolatileDisk:
    """A disk of `gateway.embedded`. All of a server's connections use it."""

    read_only = False
    immediate = False

    def __init__(self, size: int) -> None:
        self.store = Store(size)
        self.size = size
        self.pending: list[Pending] = []
        """What is not answered, in the order in which it came; what came in one piece, in any."""
        self.holds: Callable[[Pending], bool] = lambda _: False
        """Whether a command that comes is held. What is held already stays so."""
        self.counts: Counter[str] = Counter()
        """Commands that were carried out, "fua" among them, and "crash"."""
        self.incarnation = 0
        self._came = trio.lowlevel.ParkingLot()

    def hold(self, *commands: str) -> None:
        """Hold these commands from now on, or all if none is named."""
        self.holds = lambda pending: not commands or pending.command in commands

    def release(self) -> None:
        """Hold nothing any more, and answer what is pending, in order."""
        self.holds = lambda _: False
        for pending in list(self.pending):
            pending.answer()

    async def held(self, count: int = 1) -> list[Pending]:
        """Wait until so many are pending; give all that are."""
        while len(self.pending) < count:
            await self._came.park()
        return list(self.pending)

    def crash(self, keep: Keep = nothing) -> int:
        """Lose the cache, and all commands; give how many bytes are seen no more."""
        self.incarnation += 1
        self.pending.clear()
        self.counts["crash"] += 1
        return self.store.crash(keep)

    # --- Disk

    async def read(self, offset: int, length: int) -> Data:
        return await self._do("read", offset, length, run=lambda: self.store.read(offset, length))

    async def write(self, offset: int, data: Data, *, fua: bool = False) -> None:
        payload = bytes(data)

        def run() -> bytes:
            self.store.write(offset, payload, fua=fua)
            return b""

        await self._do("write", offset, len(payload), fua=fua, data=payload, run=run)

    async def flush(self) -> None:
        def run() -> bytes:
            self.store.flush()
            return b""

        await self._do("flush", 0, 0, run=run)

    async def zero(self, offset: int, length: int, *, fua: bool = False, **_how: bool) -> None:
        await self._zero("zero", offset, length, fua)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self._zero("trim", offset, length, fua)

    async def _zero(self, command: str, offset: int, length: int, fua: bool) -> None:
        def run() -> bytes:
            self.store.write(offset, bytes(length), fua=fua)
            return b""

        await self._do(command, offset, length, fua=fua, run=run)

    async def cache(self, offset: int, length: int) -> None:
        await self._do("cache", offset, length, run=bytes)

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """All is data: a structured READ comes to `read` whole, then."""
        return [(length, 0)]

    async def _do(
        self,
        command: str,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        data: bytes = b"",
        run: Callable[[], bytes],
    ) -> bytes:
        await trio.lowlevel.checkpoint_if_cancelled()  # a crash has taken it along before it began
        incarnation = self.incarnation

        def run_and_count() -> bytes:
            assert incarnation == self.incarnation, "a crash has taken it along"
            self.counts[command] += 1
            self.counts["fua"] += fua
            return run()

        number = CONNECTION.get(-1)
        pending = Pending(
            command, offset, length, fua, number, data, _run=run_and_count, _among=self.pending
        )
        self.pending.append(pending)
        self._came.unpark_all()
        if not self.holds(pending):
            pending.answer()
        try:
            await pending._answered.wait()
        finally:
            pending._leave()
        if incarnation != self.incarnation:
            await trio.sleep_forever()  # whoever has crashed says nothing any more
        if pending._error:
            raise OSError(pending._error, "as the test wants it")
        return pending.data


# --- A server


class _Stream:
    """A connection that can be the last that a server sends on: what `Server` uses of a SocketStream, which
    does not let itself be subclassed.
    """

    def __init__(self, stream: trio.SocketStream, server: VolatileServer) -> None:
        self.socket = stream.socket
        self._stream = stream
        self._server = server

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        left = self._server.sends_still
        if left is None or len(data) < left:
            if left is not None:
                self._server.sends_still = left - len(data)
            await self._stream.send_all(data)
            return
        self._server.sends_still = None
        await self._stream.send_all(memoryview(data)[:left])
        self._server.crash(self._server.keep_at_the_end)
        raise trio.BrokenResourceError

    async def __aenter__(self) -> _Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stream.aclose()


class VolatileServer(Server):
    """A server of one `VolatileDisk`, the default export."""

    def __init__(self, size: int, personality: Personality = PLAIN) -> None:
        self.disk = VolatileDisk(size)
        super().__init__({"": self.disk}, personality)
        self.down = False
        """Nobody is served: it closes what connects. See also `gateway_before`'s `refuse`."""
        self.sends_still: int | None = None
        self.keep_at_the_end: Keep = nothing
        self._living: dict[trio.SocketStream, trio.CancelScope] = {}

    @property
    def open(self) -> int:
        """Connections that are there."""
        return len(self._living)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one client until it has gone, or the server crashes."""
        if self.down:
            await stream.aclose()
            return
        CONNECTION.set(self.connections)
        with trio.CancelScope() as scope:
            self._living[stream] = scope
            try:
                await super().serve(cast("trio.SocketStream", _Stream(stream, self)))
            finally:
                self._living.pop(stream, None)

    def crash(self, keep: Keep = nothing) -> int:
        """Close every connection this moment, lose what the cache has but for what is kept, and serve nobody
        until `start`. Give how many bytes are seen no more.
        """
        self.down = True
        self.sends_still = None
        living, self._living = self._living, {}
        for stream, scope in living.items():
            stream.socket.close()
            scope.cancel()
        return self.disk.crash(keep)

    def cut_one(self, number: int) -> None:
        """Close one of the connections that there are, and live on."""
        stream, scope = list(self._living.items())[number]
        stream.socket.close()
        scope.cancel()

    def crash_after_sending(self, count: int, keep: Keep = nothing) -> None:
        """Crash once exactly so many more bytes (1 or more) were sent to clients, all of them together."""
        self.sends_still, self.keep_at_the_end = count, keep

    def start(self) -> None:
        """Serve again, what is stable."""
        self.down = False

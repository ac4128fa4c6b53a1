"""The server's side of a schedule: a disk with a volatile cache, at two addresses, and all that befalls it.

Commands wait (`held`) until somebody says what becomes of them, or are answered at once (`free`). A connection
that is cut does not take its commands along: they may be carried out `late`, as long as the gateway has to
reckon with that. One that is silent stays open, and what comes over it is never carried out.

Everything that the oracle has to know it is told from here.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from struct import Struct
from typing import Any, cast

import trio

from gateway.embedded.disk import Data
from tests.tools.history import Trouble
from tests.tools.oracle import NOT_TRIED, Oracle
from tests.tools.schedules.geometry import BLOCKS, SIZE, parts
from tests.tools.schedules.settings import LATE_SECONDS, Settings
from tests.tools.stamps import BLOCK_BYTES
from tests.tools.volatile import (
    ANY,
    CONNECTION,
    Pending,
    Store,
    VolatileDisk,
    VolatileServer,
    everything,
    nothing,
    some,
)

CARRIED_OUT_SECONDS = LATE_SECONDS - 5
"""So long after its connection was cut a command may be carried out: less than the gateway waits."""

_STAMP = Struct(">Q")


class WindowedStore(Store):
    """What is remembered of a disk: its windows, side by side."""

    def __init__(self) -> None:
        super().__init__(BLOCKS * BLOCK_BYTES)

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        for at, inside, count in parts(offset, length):
            data[at : at + count] = self.seen[inside : inside + count]
        return bytes(data)

    def write(self, offset: int, data: Data, *, fua: bool = False, connection: int = ANY) -> None:
        view = memoryview(data)
        for at, inside, count in parts(offset, len(view)):
            super().write(inside, view[at : at + count], fua=fua, connection=connection)

    def stamp(self, block: int) -> int:
        """Give the stamp that a block has on stable storage."""
        return int(_STAMP.unpack_from(self.stable, block * BLOCK_BYTES)[0])


class _Socket:
    """A socket that says when the peer has closed: what `Peer` uses of a Trio socket."""

    def __init__(self, inner: trio.socket.SocketType, ended: object, number: int) -> None:
        self._inner = inner
        self._ended = cast("World", ended)
        self._number = number

    async def recv_into(self, view: memoryview) -> int:
        try:
            count = await self._inner.recv_into(view)
        except OSError:
            self._ended.connection_ended(self._number)
            raise
        if not count:
            self._ended.connection_ended(self._number)
        return count


class _Stream:
    """What `Server` uses of a SocketStream."""

    def __init__(self, stream: trio.SocketStream, world: World, number: int) -> None:
        self.socket = _Socket(stream.socket, world, number)
        self._stream = stream

    async def send_all(self, data: Data) -> None:
        await self._stream.send_all(data)

    async def __aenter__(self) -> _Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stream.aclose()


class Disk(VolatileDisk):
    """A disk whose FLUSHes cover what the server promises, and fail if they are to."""

    def __init__(self, world: World) -> None:
        super().__init__(SIZE)
        self.store = self.remembered = WindowedStore()
        self._world = world

    async def write(self, offset: int, data: Data, *, fua: bool = False) -> None:
        await self._change("write", offset, bytes(data), fua)

    async def _zero(self, command: str, offset: int, length: int, fua: bool) -> None:
        await self._change(command, offset, bytes(length), fua)

    async def _change(self, command: str, offset: int, data: bytes, fua: bool) -> None:
        number = CONNECTION.get()

        def run() -> bytes:
            # What comes late over a connection that was cut any FLUSH covers, as what came before.
            covered_by = ANY if number in self._world.cut_off else number
            self.store.write(offset, data, fua=fua, connection=covered_by)
            stamps = {
                _STAMP.unpack_from(data, at + block)[0]
                for at, _, count in parts(offset, len(data))
                for block in range(0, count, BLOCK_BYTES)
            }
            self._world.oracle.carried(stamps, number)
            if not fua:
                self._world.written[number] += 1
                self._world.unflushed.add(number)
            return b""

        await self._do(command, offset, len(data), fua=fua, data=data, run=run)

    async def _do(self, command: str, offset: int, length: int, **more: Any) -> bytes:
        data = await super()._do(command, offset, length, **more)
        self._world.answered.add(CONNECTION.get())
        return data

    async def flush(self) -> None:
        number, world = CONNECTION.get(), self._world
        covers = ANY if world.settings.multi_conn else number
        failed: list[int] = []
        fails_too: list[int] = []
        world.flushing[id(fails_too)] = covers, fails_too
        fails_too += [error for theirs, error in world.failing if theirs == covers]
        # What was not answered when the gateway sent it, it does not take for covered.
        covers_all, written = not world.oracle.is_written_to, world.written[number]

        def run() -> bytes:
            world.flushing.pop(id(fails_too), None)
            is_heard = number in world.there and number not in world.cut_off
            if is_heard and (fails_too or world.errors):
                # Of two at once, both fail: that a server may say 0 to the other one is not mended here.
                error = fails_too[0] if fails_too else world.errors.pop(0)
                failed.append(error)
                if error not in NOT_TRIED:
                    world.failing.append((covers, error))
                    world.have_failed.add(number)
                if error not in NOT_TRIED and not fails_too:
                    for other_covers, other in world.flushing.values():
                        if other_covers == covers:
                            other.append(error)
                if error not in NOT_TRIED and not fails_too:  # else it is the loss of the other one
                    self.store.fail(covers)
                world.oracle.flush_failed(error, None if covers == ANY else {number})
            elif not fails_too:  # else it would fail, and nobody hear of it
                self.store.flush(covers)
                if covers_all and written == world.written[number]:
                    world.unflushed.discard(number)
            return b""

        try:
            await self._do("flush", 0, 0, run=run)
        finally:
            if failed and failed[0] not in NOT_TRIED:
                world.failing.remove((covers, failed[0]))
        if failed:
            raise OSError(failed[0], "as the schedule wants it")


def _drop(pending: Pending) -> None:
    """It does not happen. If that is answered all the same, a FLUSH was not tried, and has lost nothing."""
    pending.fail(errno.ENOMEM if pending.command == "flush" else errno.EIO)


@dataclass(eq=False)
class Connection:
    """One that is there."""

    stream: trio.SocketStream
    scope: trio.CancelScope


class World(VolatileServer):
    """A server at two addresses, with one disk and one cache."""

    def __init__(self, settings: Settings, oracle: Oracle, nursery: trio.Nursery) -> None:
        super().__init__(SIZE, settings.personality())
        self.written: Counter[int] = Counter()
        """How often something was written over each connection that is not durable by that."""
        self.unflushed: set[int] = set()
        """Connections over which something was written after the last FLUSH that went over them."""
        self.disk = disk = Disk(self)
        self.exports = {"": disk}
        disk.holds = self._holds
        self.settings = settings
        self.oracle = oracle
        self.store = disk.remembered
        oracle.stable = self.store.stamp
        self.random = Random(0)
        """Of who is to be held."""
        self.free = False
        """Nothing is held, but what is silent."""
        self.there: dict[int, Connection] = {}
        """Connections, by their numbers."""
        self.silent: dict[int, Trouble] = {}
        self.errors: list[int] = []
        """What the next FLUSHes fail with."""
        self.flushing: dict[int, tuple[int, list[int]]] = {}
        """FLUSHes that the server has and has not done: for which connection, and whether they have failed."""
        self.failing: list[tuple[int, int]] = []
        """Those that have failed, and are not answered: for which connection, and the error. Those that come
        meanwhile fail as well."""
        self.have_failed: set[int] = set()
        """Connections over which any has."""
        self.answered: set[int] = set()
        """Connections over which a command was."""
        self.used: dict[int, int] = {}
        """Those that clients use, and since when, as the oracle counts: what was asked first, perhaps to see
        which disk it is, is answered."""
        self.held: Callable[[], bool] = lambda: False
        """Says whether sessions are held, and connections with them."""
        self.cut_off: dict[int, float] = {}
        """Connections that we have cut, and when."""
        self._loss: Trouble | None = None
        """That it goes, which it has begun."""
        self._keep = "none"
        self._nursery = nursery
        self._paths: list[Path] = []
        self._listening: list[trio.CancelScope] = []

    # --- Where it is

    def listen(self, *paths: Path) -> None:
        """Take connections at these addresses."""
        self._paths = list(paths)
        self.down = False
        for path in paths:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))
                sock.listen(64)
                listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup()))
            scope = trio.CancelScope()
            self._listening.append(scope)
            self._nursery.start_soon(self._accept, listener, scope)

    async def _accept(self, listener: trio.SocketListener, scope: trio.CancelScope) -> None:
        with scope:
            async with listener:
                while True:
                    stream = await listener.accept()
                    self._nursery.start_soon(self.serve, stream)

    def close_doors(self) -> None:
        """Take no connections."""
        self.down = True
        for scope in self._listening:
            scope.cancel()
        self._listening.clear()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def start(self) -> None:
        """Serve again, what is stable."""
        if self.goes:
            self.kill(self.random, self._keep, silent=False)
        if self.down:
            self.listen(*self._paths)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one client until it has gone, or was cut off."""
        number = self.connections
        if self.down:
            await stream.aclose()
            return
        CONNECTION.set(number)
        with trio.CancelScope() as scope:
            self.there[number] = Connection(stream, scope)
            try:
                served = _Stream(stream, self, number)
                await super(VolatileServer, self).serve(cast("trio.SocketStream", served))
            finally:
                if (
                    self.there.pop(number, None) is not None
                ):  # it has ended by itself, perhaps by DISC
                    self.connection_ended(number)
                if number not in self.silent:
                    stream.socket.close()

    def connection_ended(self, number: int) -> None:
        """The gateway has closed a connection: what it has not waited for does not happen."""
        if self.goes and number not in self.cut_off:
            self.cut_off[number] = (
                trio.current_time()
            )  # it need not wait for all, so that may come late
            self.store.adopt(number)
            self.unflushed.discard(number)
            self.forget_late(0)
        elif number not in self.cut_off:
            self.oracle.closed(number)
            if number in self.unflushed:
                self.unflushed.discard(number)
                self.oracle.left(number)
            for pending in list(self.disk.pending):
                if pending.connection == number:
                    _drop(pending)

    # --- What becomes of commands

    def _holds(self, pending: Pending) -> bool:
        if pending.connection in self.silent:
            return True
        if pending.connection in self.cut_off and not self._may_come(pending):
            return True  # until it is dropped
        return not self.free and self.random.random() < self.settings.held

    @property
    def waiting(self) -> list[Pending]:
        """Commands that can be carried out."""
        return [each for each in self.disk.pending if each.connection not in self.silent]

    def carry_out(self, pending: Pending) -> None:
        """Do a command, and do not answer yet."""
        if pending.connection in self.cut_off and not self._may_come(pending):
            _drop(pending)  # it was read after its connection was cut
        elif not pending.done and pending.command != "flush":
            # A FLUSH that fails has to be answered: else nobody could know of it.
            pending.carry_out()

    def answer(self, pending: Pending) -> None:
        """Answer a command, after carrying it out."""
        if pending.connection in self.cut_off and not self._may_come(pending):
            _drop(pending)
            return
        pending.answer()

    def _may_come(self, pending: Pending) -> bool:
        seconds = CARRIED_OUT_SECONDS if self.settings.late_write_seconds else 0
        return trio.current_time() < self.cut_off[pending.connection] + seconds

    def answer_all(self) -> None:
        """Answer all that can be."""
        for pending in list(self.waiting):
            self.answer(pending)

    def forget_late(self, seconds: float) -> None:
        """Drop what would be carried out too late, if that comes to be after so many seconds."""
        limit = CARRIED_OUT_SECONDS if self.settings.late_write_seconds else 0
        for pending in self.waiting:
            cut = self.cut_off.get(pending.connection)
            if cut is not None and cut + limit <= trio.current_time() + seconds:
                _drop(pending)

    # --- What befalls it

    def kill(self, random: Random, keep: str, silent: bool) -> str:
        """Have it lose its cache, or what of it is not kept, and all its connections; `silent`: they stay open,
        and nothing comes over them any more.
        """
        keeping = {"none": nothing, "all": everything, "some": some(random)}[keep]
        loss, self._loss = self._loss or self.oracle.lose(), None
        self.goes = False
        self.close_doors()
        if silent:
            self._silence(set(self.there))
        self._end(set(self.there) - self.silent.keys())
        self.disk.crash(keeping)
        self.oracle.dead(loss)
        stamps = [self.store.stamp(block) for block in range(BLOCKS)]
        # With replay, what is gone is written again.
        lost = self.oracle.check_stable(stamps, gone=not self.settings.lossless)
        return f"kept {keep}{', connections stay open' if silent else ''}: {lost} blocks lost"

    def rewind(self, random: Random, snapshot: bytes) -> str:
        """Kill it, and have it come back as it was when a snapshot was taken."""
        said = self.kill(random, "all", silent=False)
        before = [self.store.stamp(block) for block in range(BLOCKS)]
        self.store.become(snapshot)
        after = [self.store.stamp(block) for block in range(BLOCKS)]
        return f"{said}, and now it is older by {self.oracle.rewind(before, after)} writes"

    def stop(self, random: Random, keep: str) -> str:
        """Have it end in good order: it answers all, closes, and flushes its cache or not."""
        self.answer_all()
        return self.kill(random, keep, silent=False)

    def go(self, keep: str) -> None:
        """Have it begin to go in good order, as nbdkit does: until it is started anew it answers what it has,
        refuses what comes, and takes no connections. `keep`: what of its cache there is then.
        """
        self._loss, self._keep = self.oracle.lose(in_order=True), keep
        self.goes = True
        self.close_doors()

    def cut(self, numbers: set[int]) -> bool:
        """Cut connections; it lives. Say whether there were any."""
        # A FLUSH that fails has to be answered, and the answer be read: else nobody could know of it.
        numbers = (numbers & self.there.keys()) - (self.have_failed - self.silent.keys())
        if not numbers:
            return False
        self.oracle.cut(numbers, self._witnesses(numbers))
        now = trio.current_time()
        for number in numbers:
            self.cut_off[number] = now
            self.store.adopt(number)
            if number not in self.silent:
                with suppress(OSError):
                    self.there[number].stream.socket.shutdown(socket.SHUT_RDWR)
        lost = numbers & self.silent.keys()
        self._end(lost)
        for pending in list(self.disk.pending):
            if pending.connection in lost:
                _drop(pending)
        self.speak(numbers)
        self.forget_late(0)
        return True

    def at_rest(self) -> None:
        """The gateway has done what there was to do."""
        waiting = {pending.connection for pending in self.disk.pending}
        for number in self.answered - self.used.keys() - waiting:
            self.used[number] = self.oracle.now

    def _witnesses(self, but: set[int]) -> dict[int, int]:
        """Give connections over which the gateway can FLUSH, and since when."""
        if self.held() or self.goes:
            return {}
        well = self.there.keys() - but - self.silent.keys() - self.cut_off.keys()
        return {number: self.used[number] for number in sorted(well & self.used.keys())}

    def _silence(self, numbers: set[int]) -> None:
        numbers = numbers - self.silent.keys()
        if numbers:
            silence = self.oracle.silence(numbers)
            self.silent.update(dict.fromkeys(numbers, silence))

    def silence(self, numbers: set[int]) -> None:
        """Answer nothing any more over connections that stay open."""
        self._silence(numbers & self.there.keys())

    def speak(self, numbers: set[int]) -> None:
        """Be silent no more there: they have been cut, or what has come is answered now."""
        for number in numbers & self.silent.keys():
            silence = self.silent.pop(number)
            if silence not in self.silent.values():
                self.oracle.dead(silence)

    def end_silence(self) -> None:
        """Cut what is silent."""
        self.cut(set(self.silent))
        self.speak(set(self.silent))

    def _end(self, numbers: set[int]) -> None:
        for number in numbers:
            connection = self.there.pop(number)
            connection.stream.socket.close()
            connection.scope.cancel()

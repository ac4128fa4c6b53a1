"""A server with a volatile cache, for the model of a bundle: it does what proto.md lets it do, and no more.

Everything is counted in blocks, and a block holds one value (0: zeros). What is written is in the *journal*
until it is on the *stable* disk; a restart carries over any part of the journal, and in any schedule a block's
newest value of what was carried over wins. A FLUSH makes stable what was answered before it came, and by chance
more. Commands are carried out and answered in any order.

A connection that `goes` answers with ESHUTDOWN whatever it likes, done or not.

A server that is `weak` has a cache for each connection, as CAN_MULTI_CONN may be read: what one connection has
written, another sees when it was flushed, and by chance before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from gateway.bundle.line import Line
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.framing import EXTENDED, Framing
from tests.scan.peers import Feeder, Request, read_requests

BLOCK = 16
BLOCKS = 80
SIZE = BLOCK * BLOCKS
CONTEXT = 7
"""The server's id of base:allocation."""
NOWHERE = (Cmd.FLUSH, Cmd.BLOCK_STATUS, Cmd.CACHE)
"""Commands for which it does not matter over which line they go."""


class Broken(AssertionError):
    """A promise was broken."""


def content(value: int, blocks: int = 1) -> bytes:
    return value.to_bytes(4, "big") * (BLOCK // 4 * blocks)


def values(data: bytes | bytearray) -> list[int]:
    """Read a value a block; all of a block has to be of one write."""
    found = []
    for at in range(0, len(data), BLOCK):
        value = int.from_bytes(data[at : at + 4], "big")
        if data[at : at + BLOCK] != content(value):
            raise Broken(
                f"the block at {at} is of several writes: {bytes(data[at : at + BLOCK])!r}"
            )
        found.append(value)
    return found


@dataclass(eq=False)
class Entry:
    """What a command has changed and is not on the stable disk."""

    number: int
    connection: Connection
    values: dict[int, int]
    known: bool = False
    """It was answered, or has been read."""


@dataclass(eq=False)
class Asked:
    """A command that a connection has read."""

    request: Request
    covers: list[Entry] = field(default_factory=list)
    """Of a FLUSH: what it must make stable."""
    entry: Entry | None = None
    reply: bytes | None = None

    @property
    def blocks(self) -> range:
        request = self.request
        return range(request.offset // BLOCK, (request.offset + request.length) // BLOCK)


@dataclass
class Late:
    """A command of a connection that is gone, which is carried out nevertheless."""

    asked: Asked
    connection: Connection
    until: float


class Server:
    """One process, and its disk."""

    def __init__(self, random: Random, *, weak: bool, by_range: bool) -> None:
        self._random = random
        self._weak = weak
        self._by_range = by_range
        self._number = 0
        self.stable = [(0, 0)] * BLOCKS  # (number of the entry, value)
        self._base = list(self.stable)  # what every connection sees
        self._latest = list(self.stable)
        self.journal: list[Entry] = []
        self.late: list[Late] = []
        self.connections: list[Connection] = []
        self.flushes_that_fail = 0
        self.note_failed: Callable[[], None] = _nobody
        self.pace = 0.7
        """How likely a command is carried out in a round."""
        self._failed_to_keep: list[Entry] = []
        self.has_failed = False
        self.failed: Connection | None = None
        """Where a FLUSH has failed, until that is told."""

    def restart(self) -> None:
        """Lose what is not stable, but by chance some of it."""
        chance = self._random.choice((0, 0, 0.5, 0.9))
        for entry in self.journal:
            self._make_stable(entry, chance)
        self.journal.clear()
        self.late.clear()
        self._base = list(self.stable)
        self._latest = list(self.stable)

    def _make_stable(self, entry: Entry, chance: float = 1) -> None:
        for block, value in entry.values.items():
            if self.stable[block][0] < entry.number and self._random.random() < chance:
                self.stable[block] = entry.number, value

    def _show(self, entry: Entry) -> None:
        for block, value in entry.values.items():
            if self._base[block][0] < entry.number:
                self._base[block] = entry.number, value

    def seen(self, connection: Connection, block: int) -> tuple[int, int]:
        """What a connection sees in a block."""
        if not self._weak:
            return self._latest[block]
        return max(self._base[block], connection.own.get(block, (0, 0)))

    def read(self, connection: Connection, blocks: range) -> list[int]:
        seen = [self.seen(connection, block) for block in blocks]
        numbers = {number for number, _value in seen}
        for entry in self.journal:
            if entry.number in numbers:
                entry.known = True
        return [value for _number, value in seen]

    def write(self, connection: Connection, changed: dict[int, int], *, fua: bool) -> Entry:
        self._number += 1
        entry = Entry(self._number, connection, changed)
        for block, value in changed.items():
            self._latest[block] = connection.own[block] = self._number, value
        if fua:
            self._make_stable(entry)
            self._show(entry)
        else:
            self.journal.append(entry)
            if self._random.random() < 0.2:
                self._show(entry)
        return entry

    def flush(self, covers: list[Entry]) -> int:
        """Give the error."""
        if self.flushes_that_fail and covers:
            self.flushes_that_fail -= 1
            # It says so once, also of what it has done and not answered.
            for entry in list(self.journal) if self._random.random() < 0.5 else covers:
                self._show(entry)
                if entry in self.journal:
                    self.journal.remove(entry)
                    self._failed_to_keep.append(entry)
            return Errno.EIO
        more = self._random.random() < 0.3
        for entry in [each for each in self.journal if more or each in covers]:
            self._make_stable(entry)
            self._show(entry)
            self.journal.remove(entry)
        return 0

    def told_failure(self) -> None:
        """Somebody has the reply to the FLUSH that failed."""
        self.failed = None
        self._failed_to_keep.clear()

    def fail_again(self) -> None:
        """Nobody has: it is said to the next one."""
        self.failed = None
        self.flushes_that_fail += 1
        self.journal += self._failed_to_keep
        self._failed_to_keep.clear()

    def do_late(self, now: float, chance: float) -> None:
        """Carry out what is overdue, and by chance more."""
        for late in list(self.late):
            if late.until <= now or self._random.random() < chance:
                self.late.remove(late)
                late.connection.carry_out(late.asked)

    def check_one_line(self, connection: Connection, asked: Asked) -> None:
        """While a block is in use over one connection, or what was written there is not flushed, it is not used
        over another.
        """
        if not self._by_range or asked.request.command in NOWHERE:
            return
        blocks = set(asked.blocks)
        writes = asked.request.command != Cmd.READ
        for other in self.connections:
            if other is connection:
                continue
            for each in other.asked:
                if each.request.command in NOWHERE:
                    continue
                if (writes or each.request.command != Cmd.READ) and blocks & set(each.blocks):
                    raise Broken(f"{asked.request} while {each.request} is under way elsewhere")
        if len(blocks) > 16 * 4:
            return  # it goes as one, and is flushed behind
        for entry in self.journal:
            other = entry.connection
            if entry.known and other is not connection and other in self.connections:
                values = entry.values
                if any(self.stable[each][0] < entry.number for each in blocks & values.keys()):
                    raise Broken(f"{asked.request} over another line than what is not flushed")


def _nobody() -> None:
    pass


class Connection:
    """One connection of it."""

    def __init__(self, random: Random, server: Server, line: Line, framing: Framing) -> None:
        self._random = random
        self._server = server
        self.line = line
        self._framing = framing
        self._feeder = Feeder(line.scan)
        self.asked: list[Asked] = []
        self.own: dict[int, tuple[int, int]] = {}
        self.out = b""
        self.served = 0
        self.goes = False
        self.most = self._random.choice((7, 100, 4000))
        server.connections.append(self)

    def receive(self) -> bool:
        """Take what the line has to send."""
        if not self.line.to_send:
            return False
        sent = b"".join(bytes(piece) for piece in self.line.to_send)
        self.line.to_send.clear()
        for request in read_requests(sent, extended=self._framing is EXTENDED):
            asked = Asked(request)
            if request.command == Cmd.FLUSH:
                asked.covers = [each for each in self._server.journal if each.known]
            self._server.check_one_line(self, asked)
            self.asked.append(asked)
            self.served += 1
        return True

    def work(self) -> bool:
        """Carry out a command, answer one, or let a piece of the replies through."""
        did = False
        waiting = [asked for asked in self.asked if asked.reply is None]
        if waiting and self._random.random() < self._server.pace:
            asked = self._random.choice(waiting)
            if self.goes and self._random.random() < 0.8:
                self._refuse(asked)
            else:
                self.carry_out(asked)
            did = True
        ready = [asked for asked in self.asked if asked.reply is not None]
        if ready and self._random.random() < 0.7:
            self._answer(self._random.choice(ready))
            did = True
        if self.out and self._random.random() < 0.7:
            size = self._random.randint(1, self.most)
            piece, self.out = self.out[:size], self.out[size:]
            self._feeder.feed(piece)
            if self._feeder.sent:
                raise Broken("a line's scanner has something for a client")
            did = True
        return did

    def _refuse(self, asked: Asked) -> None:
        """Answer ESHUTDOWN, perhaps behind a part of the data, or when it has been done for all that."""
        request, framing = asked.request, self._framing
        refusal = framing.failure(request.cookie, request.offset, Errno.ESHUTDOWN)
        if request.command == Cmd.READ:
            if framing.chunked and self._random.random() < 0.5:
                blocks = asked.blocks[: self._random.randint(1, len(asked.blocks))]
                data = b"".join(content(each) for each in self._server.read(self, blocks))
                at = request.offset
                refusal = (
                    framing.data_head(request.cookie, at, at, len(data), done=False)
                    + data
                    + refusal
                )
        elif request.command != Cmd.FLUSH and self._random.random() < 0.5:
            self.carry_out(asked)
        asked.reply = refusal

    def _answer(self, asked: Asked) -> None:
        self.asked.remove(asked)
        if asked.entry is not None:
            asked.entry.known = True
        assert asked.reply is not None
        self.out += asked.reply

    def carry_out(self, asked: Asked) -> None:
        request, server, framing = asked.request, self._server, self._framing
        cookie, fua = request.cookie, bool(request.flags & CmdFlag.FUA)
        asked.reply = framing.success(cookie, request.offset, read=False)
        match request.command:
            case Cmd.READ:
                asked.reply = self._data(request, server.read(self, asked.blocks))
            case Cmd.WRITE:
                changed = dict(zip(asked.blocks, values(request.data), strict=True))
                asked.entry = server.write(self, changed, fua=fua)
            case Cmd.WRITE_ZEROES:
                if request.flags & CmdFlag.FAST_ZERO and self._random.random() < 0.5:
                    asked.reply = framing.failure(cookie, request.offset, Errno.ENOTSUP)
                    return
                asked.entry = server.write(self, dict.fromkeys(asked.blocks, 0), fua=fua)
            case Cmd.TRIM:
                chance = self._random.choice((0, 0.5, 1))
                some = [block for block in asked.blocks if self._random.random() < chance]
                asked.entry = server.write(self, dict.fromkeys(some, 0), fua=fua)
            case Cmd.FLUSH:
                error = server.flush(asked.covers)
                if error:
                    server.failed, server.has_failed = self, True
                    server.note_failed()
                    asked.reply = framing.failure(cookie, request.offset, error)
            case Cmd.BLOCK_STATUS:
                seen = [server.seen(self, block)[1] for block in asked.blocks]
                extents = [(BLOCK, 0 if value else 3) for value in seen]
                status = framing.status(cookie, request.offset, CONTEXT, extents, done=False)
                asked.reply = status + framing.end(cookie, request.offset)

    def _data(self, request: Request, found: list[int]) -> bytes:
        framing, cookie, start = self._framing, request.cookie, request.offset
        data = b"".join(content(value) for value in found)
        if not framing.chunked:
            return framing.success(cookie, start, read=True) + data
        cut = self._random.randint(0, len(data))
        parts = [(a, b) for a, b in ((0, cut), (cut, len(data))) if a < b]
        self._random.shuffle(parts)
        return b"".join(
            framing.data_head(cookie, start, start + a, b - a, done=(a, b) == parts[-1]) + data[a:b]
            for a, b in parts
        )

    @property
    def silent(self) -> bool:
        """It has nothing to say that it knows already."""
        return not self.out and not any(asked.reply for asked in self.asked)

    def die(self, late_until: float | None) -> None:
        """Go; what was not carried out may be carried out yet, until then."""
        if self._random.random() < 0.5:
            self.receive()  # it had them all
        self._server.connections.remove(self)
        for asked in self.asked:
            if asked.reply is None and late_until is not None and self._random.random() < 0.6:
                self._server.late.append(Late(asked, self, late_until))
        if self._server.failed is self:
            self._server.fail_again()
        if self.out and self._random.random() < 0.5:
            self._feeder.feed(self.out[: self._random.randrange(len(self.out))])

"""One client in the transmission phase: reads requests, carries them out, sends replies.

There are two tasks and a nursery. The reader takes requests off the stream, as many as one receive brought, and
starts a task for each (or, for a disk that never waits, carries it out on the spot). Whole replies go to the
outbox, and the sender sends what has gathered there. So replies are never interleaved, several leave in one
system call, and if the peer does not read, the reader goes on until the bounds below are met.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from gateway.embedded.disk import Data, Extent, ServedDisk
from gateway.embedded.faults import Faults, Request
from gateway.embedded.inbox import Inbox, RecordInbox
from gateway.embedded.peer import Cut, FaultyStream, PeerGone, Stalled
from gateway.embedded.personality import Personality
from gateway.protocol.commands import (
    RefusedCommand,
    WordRule,
    carries_payload,
    legal_commands,
    longest,
    longest_drain,
    normal_error,
    refusal,
    subset_refusal,
)
from gateway.protocol.errors import Hangup
from gateway.protocol.export import Offer
from gateway.wire import limits, transmission
from gateway.wire.constants import BASE_ALLOCATION, Cmd, CmdFlag, Errno, name_of
from gateway.wire.errors import WireError

MAX_IN_FLIGHT = 64
"""Requests taken and not answered; qemu's client sends 16 on a connection, libnbd and the kernel up to 64
and more, which then wait in the socket."""

MAX_IN_FLIGHT_BYTES = limits.MAX_REQUEST_BYTES
"""Data of those requests, in either direction. One request of any size is always taken."""

STATUS_COST_BYTES = limits.MIB
"""What a BLOCK_STATUS counts: the longest answer that a disk gives."""


HOLE = 1 << 0

Message = tuple[Data, ...]
"""A simple reply or a chunk, in the pieces that it is sent of."""

Reply = list[Message]


@dataclass(slots=True)
class Negotiated:
    """The result of a negotiation."""

    disk: ServedDisk
    offer: Offer
    """What the client is held to, which may be more than it was told."""
    dirty: Callable[[int, int], list[Extent]] | None = None
    """What the dirty bitmap knows of a range."""
    received: bytes = b""
    """What came after the last option."""


class Transmission:
    """One connection after its negotiation."""

    def __init__(
        self,
        peer: FaultyStream,
        opened: Negotiated,
        personality: Personality,
        faults: Faults,
        *,
        goes: Callable[[], bool] = lambda: False,
    ) -> None:
        """`goes` says whether the server goes: then every new request is refused."""
        by_record = peer.is_secure and personality.one_request_a_record
        self._inbox = (RecordInbox if by_record else Inbox)(peer, opened.received)
        self._peer = peer
        self._disk = opened.disk
        self._dirty = opened.dirty
        self._personality = personality
        self._faults = faults
        self._goes = goes
        self._offer = opened.offer
        self._rules = legal_commands(opened.offer)
        self._framing = opened.offer.framing
        # Only where a reply is held up may others overtake it: other tests find them in order.
        self._on_the_spot = opened.disk.immediate and faults.delay is None
        # (pieces, cost in bytes) of replies that have to be sent
        self._outbox: list[tuple[list[Data], int]] = []
        self._posted = trio.lowlevel.ParkingLot()
        self._read_all = False  # nothing more will be posted
        self._in_flight = 0
        self._in_flight_bytes = 0
        self._room = trio.lowlevel.ParkingLot()
        self._end: Exception | None = None

    async def run(self) -> None:
        """Serve until the client has gone. Raises `PeerGone`, `WireError`, `Hangup`, `Cut` or `Stalled` if
        it did not go with DISC.
        """
        async with trio.open_nursery() as everything:
            everything.start_soon(self._send_replies, everything.cancel_scope)
            async with trio.open_nursery() as commands:
                try:
                    await self._take_requests(commands)
                except (PeerGone, WireError, Hangup) as end:
                    self._end = end
                except Cut as end:
                    self._end = end
                    everything.cancel_scope.cancel()
            # Everything that was under way is finished: "DISC".
            self._read_all = True
            self._posted.unpark_all()
        if self._end is not None:
            raise self._end

    # --- Requests

    async def _take_requests(self, commands: trio.Nursery) -> None:
        size = self._offer.size
        unaligned = self._offer.alignment - 1
        framing = self._framing
        while True:
            magic, word, cookie, offset, length = await self._inbox.request(framing.request)
            if magic != framing.request_magic:
                raise WireError(f"a request begins with {magic:#010x}")
            command = word & 0xFFFF
            if command == Cmd.DISC:
                return
            if command == self._faults.close_on_command:
                raise Cut
            request = Request(word, cookie, offset, length)
            rule = self._rules.get(word)
            refused = None
            # A READ or WRITE that is plainly legal needs no closer look.
            if (
                rule is None
                or command > Cmd.WRITE
                or not 0 < length <= min(rule.longest, size - offset)
                or (offset | length) & unaligned
            ):
                refused = refusal(self._offer, word, offset, length)
            cost = 0 if refused else _cost(command, length)
            while not self._has_room(cost):
                await self._room.park()
            self._in_flight += 1
            self._in_flight_bytes += cost
            if self._goes():
                refused = _GOES
            if refused is not None or rule is None:
                await self._refuse(request, refused or _NOT_LEGAL)
                continue
            early = None
            if command == Cmd.WRITE and self._faults.answer_early is not None:
                early = self._faults.answer_early(request)
            if early is not None:
                reply = self._error(request, early, "too early") if early else self._done(request)
                self._in_flight += 1  # the early reply counts for itself
                await self._post(request, reply, 0)
            data: Data = b""
            if carries_payload(self._offer, word):
                # Bounded by `refusal`: by the maximum payload, or by how many contexts there are.
                data = await self._inbox.data(length, keep=not self._on_the_spot)
            if early is not None:
                if not early:
                    await _COMMANDS[rule.command](self, request, rule.flags, data)
                self._settle([], cost)
            elif self._on_the_spot:
                await self._carry_out(request, rule, data, cost)
            else:
                commands.start_soon(self._carry_out, request, rule, data, cost)

    def _has_room(self, cost: int) -> bool:
        if not self._in_flight:
            return True
        return (
            self._in_flight < MAX_IN_FLIGHT and self._in_flight_bytes + cost <= MAX_IN_FLIGHT_BYTES
        )

    async def _refuse(self, request: Request, refused: RefusedCommand) -> None:
        """Answer a request that is not legal, and skip its data to stay in step."""
        error = refused.error
        if refused is not _GOES:
            error = self._personality.only_error or error
        too_long = request.length > longest(self._offer, Cmd.WRITE)
        reply = self._error(request, error, refused.text)
        if not carries_payload(self._offer, request.word):
            await self._post(request, reply, 0)
        elif too_long and self._personality.closes_after_long_write:
            await self._post(request, reply, 0)
            raise Hangup(refused.text)
        elif request.length > longest_drain(self._offer, request.word):
            raise Hangup(refused.text)
        else:
            await self._inbox.skip(request.length)
            await self._post(request, reply, 0)

    async def _carry_out(self, request: Request, rule: WordRule, data: Data, cost: int) -> None:
        try:
            if not request.length and rule.command is not Cmd.FLUSH:
                # "Zero-length": unspecified; BLOCK_STATUS, which has no answer then, was refused.
                reply = self._done(request)
            else:
                reply = await _COMMANDS[rule.command](self, request, rule.flags, data)
        except OSError as error:
            said = error.strerror or str(error) or "the disk failed"
            number = error.errno if self._personality.raw_errors and error.errno else None
            reply = self._error(
                request,
                number or _errno(request, error),
                f"{name_of(Cmd, rule.command)}: {said}",
            )
        await self._post(request, reply, cost)

    async def _post(self, request: Request, reply: Reply, cost: int) -> None:
        """Hand a reply to the sender."""
        faults = self._faults
        pieces = [piece for message in reply for piece in message]
        if faults.touches_replies:
            event = faults.delay(request) if faults.delay is not None else None
            if event is not None:
                await event.wait()
            if request.command in faults.never_reply:
                pieces = []
            elif faults.on_reply is not None:
                pieces = list(faults.on_reply(request, [b"".join(message) for message in reply]))
        self._settle(pieces, cost)

    def _settle(self, pieces: list[Data], cost: int) -> None:
        self._outbox.append((pieces, cost))
        self._posted.unpark_all()

    async def _send_replies(self, everything: trio.CancelScope) -> None:
        try:
            while True:
                while self._outbox:
                    replies, self._outbox = self._outbox, []
                    await self._peer.send(piece for pieces, _ in replies for piece in pieces)
                    self._in_flight -= len(replies)
                    self._in_flight_bytes -= sum(cost for _, cost in replies)
                    self._room.unpark_all()
                if self._read_all:
                    return
                await self._posted.park()
        except (PeerGone, Cut, Stalled) as end:
            self._end = end
            everything.cancel()

    # --- Commands

    async def _read(self, request: Request, flags: int, _data: Data) -> Reply:
        offset, length = request.offset, request.length
        dense = flags & CmdFlag.DF or length < self._personality.sparse_read_bytes
        if dense or not self._framing.chunked:
            return [await self._content(request, offset, length, done=True)]
        extents = await self._disk.extents(offset, length)
        told = sum(extent_length for extent_length, _ in extents)
        if told < length:
            extents.append((length - told, 0))
        reply: Reply = []
        for number, (piece, status) in enumerate(extents, start=1):
            done = number == len(extents)
            if status & HOLE:
                asked = request.offset
                chunk = self._framing.hole(request.cookie, asked, offset, piece, done=done)
                reply.append((chunk,))
            else:
                reply.append(await self._content(request, offset, piece, done=done))
            offset += piece
        return reply

    async def _content(self, request: Request, offset: int, length: int, *, done: bool) -> Message:
        at, count = self._counted(offset, length)
        content = await self._disk.read(at, count)
        head = self._framing.data_head(request.cookie, request.offset, offset, length, done=done)
        return (head, content) if count == length else (head, content, bytes(length - count))

    async def _write(self, request: Request, flags: int, data: Data) -> Reply:
        at, count = self._counted(request.offset, request.length)
        await self._disk.write(at, memoryview(data)[:count], fua=bool(flags & CmdFlag.FUA))
        return self._done(request)

    def _counted(self, offset: int, length: int) -> tuple[int, int]:
        """Give what the server makes of an offset and a length that it counts in units of its own."""
        unit = self._personality.counts_in
        return offset - offset % unit, length - length % unit

    async def _flush(self, request: Request, _flags: int, _data: Data) -> Reply:
        await self._disk.flush()
        return self._done(request)

    async def _trim(self, request: Request, flags: int, _data: Data) -> Reply:
        fua = bool(flags & CmdFlag.FUA)
        block = self._personality.trims_blocks_of
        if block == 1:
            await self._disk.trim(request.offset, request.length, fua=fua)
        else:  # what was trimmed reads as zeros there, as it mostly does
            start = request.offset // block * block
            end = min(-(-(request.offset + request.length) // block) * block, self._disk.size)
            await self._disk.zero(start, end - start, fua=fua, may_trim=True, fast=False)
        return self._done(request)

    async def _cache(self, request: Request, flags: int, data: Data) -> Reply:
        if self._framing.chunked and self._personality.cache_answers_data:
            if request.length > longest(self._offer, Cmd.READ):
                return self._error(request, Errno.EINVAL, "CACHE of too many bytes")
            return await self._read(request, flags, data)
        await self._disk.cache(request.offset, request.length)
        return self._done(request)

    async def _write_zeroes(self, request: Request, flags: int, _data: Data) -> Reply:
        await self._disk.zero(
            request.offset,
            min(request.length, self._personality.zeroes_at_most or request.length),
            fua=bool(flags & CmdFlag.FUA),
            may_trim=not flags & CmdFlag.NO_HOLE,
            fast=bool(flags & CmdFlag.FAST_ZERO),
        )
        return self._done(request)

    async def _block_status(self, request: Request, flags: int, data: Data) -> Reply:
        """One chunk for each context, or each that the payload names; no extent goes beyond what was asked."""
        contexts = self._offer.contexts
        length = request.length
        if request.flags & CmdFlag.PAYLOAD_LEN:
            length, ids = transmission.decode_status_payload(bytes(data))
            refused = subset_refusal(self._offer, request.offset, length, ids)
            if refused is not None:
                error = self._personality.only_error or refused.error
                return self._error(request, error, refused.text)
            contexts = tuple(context for context in contexts if context.id in ids)
        reply: Reply = []
        for number, context in enumerate(contexts, start=1):
            if context.name == BASE_ALLOCATION:
                extents = await self._disk.extents(request.offset, length)
                only_one = self._personality.single_extent
            else:
                assert self._dirty is not None
                extents = self._dirty(request.offset, length)
                only_one = False
            if only_one or flags & CmdFlag.REQ_ONE:
                del extents[1:]
            elif self._personality.empty_extents:
                extents = [e for size, status in extents for e in ((size, status), (0, status))]
                del extents[-1]
            done = number == len(contexts)
            asked = request.offset
            chunk = self._framing.status(request.cookie, asked, context.id, extents, done=done)
            reply.append((chunk,))
        return reply

    # --- Replies

    def _done(self, request: Request) -> Reply:
        """Success, and no data."""
        if self._framing.chunked and self._personality.only_chunks:
            return [(self._framing.end(request.cookie, request.offset),)]
        read = request.command == Cmd.READ
        return [(self._framing.success(request.cookie, request.offset, read=read),)]

    def _error(self, request: Request, error: int, text: str) -> Reply:
        return [(self._framing.failure(request.cookie, request.offset, error, text),)]


_COMMANDS: dict[Cmd, Callable[[Transmission, Request, int, Data], Awaitable[Reply]]] = {
    Cmd.READ: Transmission._read,
    Cmd.WRITE: Transmission._write,
    Cmd.FLUSH: Transmission._flush,
    Cmd.TRIM: Transmission._trim,
    Cmd.CACHE: Transmission._cache,
    Cmd.WRITE_ZEROES: Transmission._write_zeroes,
    Cmd.BLOCK_STATUS: Transmission._block_status,
}

_GOES = RefusedCommand(Errno.ESHUTDOWN, "the server is shutting down")
_NOT_LEGAL = RefusedCommand(Errno.EINVAL, "the command is not legal")


def _cost(command: int, length: int) -> int:
    if command in (Cmd.READ, Cmd.WRITE):
        return length
    return STATUS_COST_BYTES if command == Cmd.BLOCK_STATUS else 0


def _errno(request: Request, error: OSError) -> Errno:
    """Give what proto.md has for an error of the disk: its own value or the one next to it, else EIO."""
    number = error.errno or errno.EIO
    normal = normal_error(request.word, number)
    return Errno.EIO if normal is Errno.EINVAL and number != errno.EINVAL else normal

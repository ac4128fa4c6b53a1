"""How a command is served by an upstream that cannot take it as it stands.

One generator for each command (see `jobs` for what they yield): requests over the upstream's maximum are
cut, at multiples of the maximum in upstream offsets; unaligned ones are widened, by read-modify-write where
they write; what the upstream lacks is done with what it has (FUA by FLUSH, WRITE_ZEROES by WRITE).

What several pieces come to: the first error is the command's. Pieces of a READ or WRITE go out together,
those of a command without data one after the other, so that its first error is the last thing that happens.

"Size constraints", "Request types" and "Command flags" in proto.md; nbd-reference 2.2 and 2.4.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice

from gateway.jobs.extents import LONGEST_EXTENT, evened, mended_extents
from gateway.jobs.steps import Answer, Claim, Job, Lasting, Settled
from gateway.protocol.asks import Ask, Data, Outcome
from gateway.protocol.commands import FUA_MATTERS
from gateway.wire import limits
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.extents import Extents
from gateway.wire.transmission import MAX_DECODED_EXTENTS

WINDOW = 8
"""Pieces of one READ or WRITE that are under way at a time: enough to keep a server busy."""

MOST_PIECES_WITH_FUA = 2
"""Up to so many pieces, each has FUA. More would cost more than one FLUSH."""

_ZEROES = memoryview(bytes(limits.MIB))

Steps = Generator[list[Ask] | Claim, list[Outcome], Answer | None]
"""A part of a job; it returns an answer if there was an error."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an upstream takes; lengths in bytes."""

    size: int
    minimum: int
    """Offsets and lengths are multiples of this; except that a range may end at the end of the export."""
    longest_payload: int
    """Of a READ or WRITE; a multiple of `minimum`."""
    longest_zeroes: int
    longest_effect: int
    """Of a TRIM or CACHE."""
    longest_status: int
    fua: bool
    flush: bool
    write_zeroes: bool
    read_flags: int = 0
    """Command flags of every READ."""
    status_flags: int = 0
    """Command flags of every BLOCK_STATUS, beside the client's."""
    trim_alignment: int = 1
    """TRIM works on whole blocks of this size, which is at least `minimum`."""

    def down(self, offset: int) -> int:
        """Give the beginning of the block that `offset` is in."""
        return offset - offset % self.minimum

    def up(self, offset: int) -> int:
        """Give the end of the block that ends at or after `offset`, or of the export."""
        return min(self.down(offset + self.minimum - 1), self.size)


def translate(
    upstream: Abilities,
    command: Cmd,
    flags: int,
    offset: int,
    length: int,
    data: Data = b"",
) -> Job:
    """Give the job for a command of the client that is legal and not empty. BLOCK_STATUS is `status`'s."""
    fua = bool(flags & CmdFlag.FUA) and command in FUA_MATTERS
    passed = flags & (CmdFlag.NO_HOLE | CmdFlag.FAST_ZERO)
    match command:
        case Cmd.READ:
            return _read(upstream, offset, length)
        case Cmd.WRITE:
            return _write(upstream, offset, memoryview(data), fua=fua)
        case Cmd.WRITE_ZEROES:
            return _write_zeroes(upstream, offset, length, passed, fua=fua)
        case Cmd.TRIM:
            return _trim(upstream, offset, length, fua=fua)
        case Cmd.CACHE:
            return _cache(upstream, offset, length)
        case Cmd.FLUSH:
            return _flush()
        case _:
            raise ValueError(f"{command.name} is not translated here")


def _read(upstream: Abilities, offset: int, length: int) -> Job:
    start, end = upstream.down(offset), upstream.up(offset + length)
    content: list[tuple[int, Data]] = []
    pieces = _cut(start, end, upstream.longest_payload)
    flags = upstream.read_flags
    while asks := [Ask(Cmd.READ, at, size, flags) for at, size in islice(pieces, WINDOW)]:
        outcomes = yield asks
        for ask, outcome in zip(asks, outcomes, strict=True):
            if outcome.error:
                return _failed(outcome, offset, length)
            first, last = max(ask.offset, offset), min(ask.offset + ask.length, offset + length)
            content.append(
                (first, memoryview(outcome.data)[first - ask.offset : last - ask.offset])
            )
    return Answer(data=content)


def _write(upstream: Abilities, offset: int, data: memoryview, *, fua: bool) -> Job:
    end = offset + len(data)
    start, behind = upstream.down(offset), upstream.up(end)
    if upstream.minimum > 1:
        yield Claim(start, behind)
    durable = _durability(upstream, _count(start, behind, upstream.longest_payload), fua=fua)
    if durable.flush:
        yield Lasting()
    failed = yield from _write_claimed(upstream, offset, data, durable.flags)
    if failed is None and durable.flush:
        failed = yield from _flushed(offset, end)
    return failed or Answer()


def _write_claimed(upstream: Abilities, offset: int, data: memoryview, flags: int) -> Steps:
    """Write it together with what stands around it in its first and its last block."""
    end = offset + len(data)
    start, behind = upstream.down(offset), upstream.up(end)
    if (start, behind) != (offset, end):
        edges = [start] if start < offset else []
        last = upstream.down(behind - 1)
        if end < behind and last not in edges:
            edges.append(last)
        reads = upstream.read_flags
        asks = [Ask(Cmd.READ, edge, upstream.up(edge + 1) - edge, reads) for edge in edges]
        outcomes = yield asks
        whole = bytearray(behind - start)
        for ask, outcome in zip(asks, outcomes, strict=True):
            if outcome.error:
                return _failed(outcome, offset, len(data))
            whole[ask.offset - start : ask.end - start] = outcome.data
        whole[offset - start : end - start] = data
        data = memoryview(whole)
    pieces = _cut(start, behind, upstream.longest_payload)
    widened = (start, behind) != (offset, end)
    while asks := [
        Ask(
            *(Cmd.WRITE, at, size, flags, data[at - start : at - start + size]),
            (max(at, offset), min(at + size, end)) if widened else None,
        )
        for at, size in islice(pieces, WINDOW)
    ]:
        outcomes = yield asks
        for outcome in outcomes:
            if outcome.error:
                return _failed(outcome, offset, end - offset)
    return None


def _write_zeroes(upstream: Abilities, offset: int, length: int, flags: int, *, fua: bool) -> Job:
    end = offset + length
    start, behind = upstream.up(offset), upstream.down(end)
    fast = bool(flags & CmdFlag.FAST_ZERO)
    if fast and (start, behind) != (offset, end):
        return Answer(Errno.ENOTSUP, "the range is not aligned to the server's blocks")
    if upstream.minimum > 1:
        yield Claim(upstream.down(offset), upstream.up(end))
    longest = upstream.longest_zeroes if upstream.write_zeroes else len(_ZEROES)
    durable = _durability(upstream, 2 + _count(start, behind, longest), fua=fua)
    if durable.flush:
        yield Lasting()
    # What is not a whole block is written, with what stands around it.
    parts = [(offset, start), (behind, end)] if start < behind else [(offset, end)]
    failed: Answer | None = None
    for first, last in parts:
        if failed is None and first < last:
            zeroes = memoryview(bytes(last - first))
            failed = yield from _write_claimed(upstream, first, zeroes, durable.flags)
    if failed is None and start < behind:
        zero = _zero_pieces if upstream.write_zeroes else _written_zeroes
        failed = yield from zero(upstream, start, behind, flags | durable.flags)
    if failed is None and durable.flush:
        failed = yield from _flushed(offset, end)
    return failed or Answer()


def _zero_pieces(upstream: Abilities, start: int, end: int, flags: int) -> Steps:
    """FAST_ZERO refused once something has been zeroed cannot be told any more: the client reads it as
    "nothing was touched". So that piece and the rest are done the slow way.
    """
    for at, size in _cut(start, end, upstream.longest_zeroes):
        [outcome] = yield [Ask(Cmd.WRITE_ZEROES, at, size, flags)]
        if outcome.error == Errno.ENOTSUP and flags & CmdFlag.FAST_ZERO and at > start:
            flags &= ~CmdFlag.FAST_ZERO
            [outcome] = yield [Ask(Cmd.WRITE_ZEROES, at, size, flags)]
        if outcome.error:
            return _failed(outcome, start, end - start)
    return None


def _written_zeroes(upstream: Abilities, start: int, end: int, flags: int) -> Steps:
    flags &= CmdFlag.FUA
    pieces = _cut(start, end, min(upstream.longest_payload, len(_ZEROES)))
    while asks := [
        Ask(Cmd.WRITE, at, size, flags, _ZEROES[:size]) for at, size in islice(pieces, WINDOW)
    ]:
        outcomes = yield asks
        for outcome in outcomes:
            if outcome.error:
                return _failed(outcome, start, end - start)
    return None


def _trim(upstream: Abilities, offset: int, length: int, *, fua: bool) -> Job:
    """Trim whole blocks only. To trim more would lose data; to trim less is always legal."""
    alignment = upstream.trim_alignment
    start, end = -(-offset // alignment) * alignment, (offset + length) // alignment * alignment
    if start >= end:
        return Answer()
    if upstream.minimum > 1:
        yield Claim(start, end)
    durable = _durability(upstream, _count(start, end, upstream.longest_effect), fua=fua)
    if durable.flush:
        yield Lasting()
    for at, size in _cut(start, end, upstream.longest_effect):
        [outcome] = yield [Ask(Cmd.TRIM, at, size, durable.flags)]
        if outcome.error:
            return _failed(outcome, offset, length)
    failed: Answer | None = None
    if durable.flush:
        failed = yield from _flushed(offset, offset + length)
    return failed or Answer()


def _cache(upstream: Abilities, offset: int, length: int) -> Job:
    start, end = upstream.down(offset), upstream.up(offset + length)
    for at, size in _cut(start, end, upstream.longest_effect):
        [outcome] = yield [Ask(Cmd.CACHE, at, size)]
        if outcome.error:
            return _failed(outcome, offset, length)
    return Answer()


def _flush() -> Job:
    [outcome] = yield [Ask(Cmd.FLUSH, 0, 0)]
    if not outcome.error:
        [outcome] = yield Settled()
    return Answer(outcome.error, outcome.text)


@dataclass(frozen=True, slots=True)
class _Durability:
    """How FUA is kept: command flags of each piece, and whether a FLUSH follows the last."""

    flags: int
    flush: bool


def _durability(upstream: Abilities, pieces: int, *, fua: bool) -> _Durability:
    """Keep FUA with FUA, if the upstream has it and there are few pieces; else with one FLUSH after them."""
    if not fua:
        return _Durability(0, flush=False)
    if upstream.fua and (pieces <= MOST_PIECES_WITH_FUA or not upstream.flush):
        return _Durability(CmdFlag.FUA, flush=False)
    return _Durability(0, flush=True)


def _flushed(offset: int, end: int) -> Steps:
    [outcome] = yield [Ask(Cmd.FLUSH, 0, 0)]
    return _failed(outcome, offset, end - offset) if outcome.error else None


def status(
    upstream: Abilities,
    flags: int,
    offset: int,
    length: int,
    wanted: tuple[tuple[int, int | None], ...],
    reach: int,
) -> Job:
    """BLOCK_STATUS for the contexts `wanted`: the client's id, and the link's (None: answered here with
    status 0, which says nothing and is always true of `base:allocation`). `reach`: how far after `offset`
    the client may see, in bytes.

    Clients are known that take the end of one context's answer for the end of all, and that ask for the same
    range again where a part of it was answered. So all contexts are told up to the same byte, and as much of
    the range as one reply can tell: pieces that the upstream bears are asked for in turn.
    """
    start, end = upstream.down(offset), upstream.up(offset + length)
    longest = LONGEST_EXTENT - LONGEST_EXTENT % upstream.minimum
    end = min(end, start + max(longest, upstream.longest_status))
    one = bool(flags & CmdFlag.REQ_ONE)
    # The one extent of a range that begins earlier might end before the range that is asked for.
    passed = flags & CmdFlag.REQ_ONE | upstream.status_flags if start == offset else 0
    theirs = [context for _ours, context in wanted if context is not None]
    found: dict[int, Extents] = {}
    at = start
    while theirs and at < end:
        piece = min(end - at, upstream.longest_status)
        [outcome] = yield [Ask(Cmd.BLOCK_STATUS, at, piece, passed)]
        if outcome.error and not found:
            return _failed(outcome, offset, length)
        if outcome.error:
            break  # what was found before is an answer
        # The last extent of all may reach beyond the range; what we tell of it is judged below.
        until = piece if at + piece < end else reach + offset - at
        more = evened(
            [(c, mended_extents(outcome.status[c], piece, until, one=False)) for c in theirs]
        )
        found = {c: found[c].and_then(each) if found else each for c, each in more}
        enough = any(
            len(each) >= MAX_DECODED_EXTENTS or (one and len(each) > 1) for each in found.values()
        )
        if enough or more[0][1].total < piece:
            break
        at += piece
    told = []
    for ours, context in wanted:
        if context is None:
            extents = Extents.of([(length, 0)])
        else:
            extents = found[context].behind(offset - start)[:MAX_DECODED_EXTENTS]
        mended = mended_extents(extents, length, reach, one=one)
        if not mended:
            return Answer(Errno.EIO, "the server gave no extent that is not empty")
        told.append((ours, mended))
    return Answer(status=told)


# --- Ranges


def _count(start: int, end: int, longest: int) -> int:
    """Give how many pieces `_cut` gives."""
    return 0 if start >= end else (end - 1) // longest - start // longest + 1


def _cut(start: int, end: int, longest: int) -> Iterator[tuple[int, int]]:
    """Cut a range into pieces (offset, length), at multiples of `longest`."""
    while start < end:
        behind = min(end, start - start % longest + longest)
        yield start, behind - start
        start = behind


def _failed(outcome: Outcome, offset: int, length: int) -> Answer:
    """Give the answer for an ask that failed; where, only if that is inside what the client asked for."""
    at = outcome.offset
    inside = at is not None and offset <= at < offset + length
    return Answer(outcome.error, outcome.text, at if inside else None)

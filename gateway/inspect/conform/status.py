"""BLOCK_STATUS: its extents are as proto.md has them, and true."""

from __future__ import annotations

from gateway.inspect.conform.bench import UNIT, Bench, NotOffered, compare
from gateway.inspect.conform.client import MAX_CHUNKS, Broken, RawClient
from gateway.inspect.conform.promise import Promise
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.constants import TransmissionFlag as Flag

HOLE = 1 << 0
ZERO = 1 << 1
"""Status flags of base:allocation."""


async def _status_covers(bench: Bench) -> None:
    readings = await bench.readings()
    client = await bench.main()
    size, grain = bench.export.size, bench.grain
    for offset, length in readings:
        await _extents(client, size, offset, length)
        if length > 2 * grain:
            await _extents(client, size, offset + grain, length - 2 * grain)
    last = (size - 1) // grain * grain
    await _extents(client, size, last, size - last)
    await _extents(client, size, max(0, last - UNIT), size - max(0, last - UNIT))


async def _extents(
    client: RawClient, size: int, offset: int, length: int, *, flags: int = 0
) -> list[tuple[int, int]]:
    """Ask for extents, and judge them; give length in bytes and status flags of each. Raises `Broken`."""
    extents = (await client.do(Cmd.BLOCK_STATUS, offset, length, flags=flags)).extents
    what = f"BLOCK_STATUS of {length} bytes at {offset}"
    if not all(extent for extent, _ in extents):
        raise Broken(f"no extent of length 0 from {what}", f"{_shown(extents)}")
    if sum(extent for extent, _ in extents[:-1]) >= length:
        # "the sum of the length fields of the first N-1 extents (if any) MUST be less than the requested
        # length"
        raise Broken(f"from {what} no extent that begins behind it", _shown(extents))
    if offset + sum(extent for extent, _ in extents) > size:
        raise Broken(f"from {what} no extent behind the export's end, {size}", _shown(extents))
    return extents


def _shown(extents: list[tuple[int, int]]) -> str:
    few = ", ".join(f"{length}" for length, _ in extents[:8])
    return f"extents of {few}" + (f" and {len(extents) - 8} more" if len(extents) > 8 else "")


async def _status_one(bench: Bench) -> None:
    readings = await bench.readings()
    client = await bench.main()
    for offset, length in readings:
        extents = await _extents(client, bench.export.size, offset, length, flags=CmdFlag.REQ_ONE)
        if len(extents) != 1 or extents[0][0] > length:
            what = f"BLOCK_STATUS of {length} bytes at {offset} with REQ_ONE"
            raise Broken(f"one extent of at most {length} bytes from {what}", _shown(extents))


async def _status_knows_data(bench: Bench) -> None:
    client = await bench.main()
    pattern = bench.pattern()
    await bench.lay(client, pattern)
    for offset, length in bench.ranges(pattern.start, pattern.end):
        for start, extent, status in await _told(bench, client, offset, length):
            first, behind = start - pattern.start, start + extent - pattern.start
            for unit in range(first // UNIT, -(-behind // UNIT)):
                if status & (HOLE | ZERO) and pattern.is_data(unit):
                    at = max(start, pattern.start + unit * UNIT)
                    raise Broken(f"data at {at}, where it was written", _status_name(status))


async def _status_zero_is_zero(bench: Bench) -> None:
    readings = await bench.readings()
    client = await bench.main()
    # With DF, if it is offered: a server that looks up holes in a wrong place does so for READs as well (Q-S6).
    flags = CmdFlag.DF if bench.offers(Flag.SEND_DF) else 0
    for offset, length in readings:
        for start, extent, status in await _told(bench, client, offset, length):
            if not status & ZERO:
                continue
            for at, piece in bench.ranges(start, start + extent):
                reply = await client.ask(Cmd.READ, at, piece, flags=flags)
                if reply.error == Errno.EOVERFLOW and flags:
                    raise NotOffered("READ with DF is refused with EOVERFLOW, as it may")
                if reply.error:
                    raise Broken(f"READ of {piece} bytes at {at} to succeed", str(reply))
                compare(at, bytes(piece), reply.data, "zeros, as BLOCK_STATUS said,")


async def _told(
    bench: Bench, client: RawClient, offset: int, length: int
) -> list[tuple[int, int, int]]:
    """Give all extents of a range of at most 1 MiB: offset and length in bytes, status flags. We ask as often
    as it takes. Raises `Broken`.
    """
    told: list[tuple[int, int, int]] = []
    at, end = offset, offset + length
    while at < end:
        for extent, status in await _extents(client, bench.export.size, at, end - at):
            cut = min(extent, end - at)
            told.append((at, cut, status))
            at += cut
        if len(told) > MAX_CHUNKS:
            raise Broken(f"at most {MAX_CHUNKS} extents in {length} bytes at {offset}", "more")
    return told


def _status_name(status: int) -> str:
    names = [name for bit, name in ((HOLE, "HOLE"), (ZERO, "ZERO")) if status & bit]
    return f"status {' and '.join(names)}"


PROMISES: tuple[Promise, ...] = (
    Promise(
        "status-extents",
        "BLOCK_STATUS gives extents from the offset, none empty, within the export",
        "Structured reply types: BLOCK_STATUS",
        _status_covers,
        writes=False,
        allocation=True,
    ),
    Promise(
        "status-req-one",
        "BLOCK_STATUS with REQ_ONE gives one extent within the request",
        "Command flags: REQ_ONE",
        _status_one,
        writes=False,
        allocation=True,
    ),
    Promise(
        "status-data",
        "base:allocation does not tell data as holes or zeros",
        "base:allocation metadata context",
        _status_knows_data,
        allocation=True,
    ),
    Promise(
        "status-zero",
        "what base:allocation tells as ZERO reads as zeros",
        "base:allocation metadata context",
        _status_zero_is_zero,
        writes=False,
        allocation=True,
    ),
)

"""What is read is what was written, FLUSH, FUA and TRIM are taken, and CACHE is only a hint."""

from __future__ import annotations

from gateway.inspect.conform.bench import UNIT, Bench, NotOffered, Pattern, compare
from gateway.inspect.conform.client import Broken, HungUp, RawClient
from gateway.inspect.conform.promise import Promise
from gateway.wire.constants import Chunk, Cmd, CmdFlag, Errno, name_of
from gateway.wire.constants import TransmissionFlag as Flag


async def _read_gives_what_was_written(bench: Bench) -> None:
    client = await bench.main()
    pattern = bench.pattern()
    await bench.lay(client, pattern)
    whole = "what was written"
    for offset, length in bench.ranges(pattern.start, pattern.end):
        compare(offset, pattern.content(offset, length), await client.read(offset, length), whole)
    # Begin and end within units.
    start, length = pattern.start + bench.grain, UNIT - bench.grain
    if length:
        await bench.holds(client, start, pattern.content(start, length), whole)


async def _unaligned(bench: Bench) -> None:
    client = await bench.main()
    pattern = bench.pattern(dense=True, units=2)
    await bench.lay(client, pattern)
    offset, length = pattern.start + UNIT - 333, 1000
    there = pattern.content(offset, length)
    reply = await client.ask(Cmd.READ, offset, length)
    if not reply.error:
        compare(offset, there, reply.data, "what was written, by an unaligned READ,")
    else:
        bench.note(f"an unaligned READ is refused, which it may be: {reply}")
    changed = bytes(byte ^ 0xFF for byte in there)
    reply = await client.ask(Cmd.WRITE, offset, data=changed)
    if reply.error:
        bench.note(f"an unaligned WRITE is refused, which it may be: {reply}")
        changed = there
    # A server may have taken an unaligned request for another one. To see what came of it we read whole units.
    before = pattern.content(pattern.start, offset - pattern.start)
    behind = pattern.content(offset + length, pattern.end - offset - length)
    what = "what an unaligned WRITE has to leave"
    await bench.holds(client, pattern.start, before + changed + behind, what)


async def _df_gives_one_chunk(bench: Bench) -> None:
    client = await bench.main()
    pattern = bench.pattern()
    await bench.lay(client, pattern)
    edge = next(n for n in range(1, pattern.units) if pattern.is_data(n) != pattern.is_data(n - 1))
    middle = pattern.start + edge * UNIT
    half = UNIT // 2
    if half % bench.grain == 0:
        # "the server MUST support unfragmented reads in which the client's request length does not exceed
        # 65,536 bytes"
        await _unfragmented(client, pattern, middle - half, UNIT, must=True)
    if bench.piece >= 2 * UNIT:
        await _unfragmented(client, pattern, middle - UNIT, 2 * UNIT, must=False)
    longest = min(bench.piece, pattern.end - pattern.start)
    await _unfragmented(client, pattern, pattern.start, longest, must=False)


async def _unfragmented(
    client: RawClient, pattern: Pattern, offset: int, length: int, *, must: bool
) -> None:
    reply = await client.ask(Cmd.READ, offset, length, flags=CmdFlag.DF)
    what = f"READ with DF of {length} bytes"
    if reply.error == Errno.EOVERFLOW and not must and not reply.contents:
        return
    if reply.error:
        raise Broken(f"{what} to succeed" + ("" if must else ", or EOVERFLOW"), str(reply))
    kinds = [name_of(Chunk, kind) for kind, _, _ in reply.contents]
    if len(kinds) != 1:
        raise Broken(f"one content chunk for {what}", f"{len(kinds)}: {', '.join(kinds)}"[:200])
    # "the server MUST use NBD_REPLY_TYPE_OFFSET_DATA with the zeroes explicitly present". One large hole would
    # show as zeros where data is.
    compare(offset, pattern.content(offset, length), reply.data, f"what was written, by {what},")


async def _df_agrees(bench: Bench) -> None:
    readings = await bench.readings()
    client = await bench.main()
    for offset, length in readings:
        one = await client.ask(Cmd.READ, offset, length, flags=CmdFlag.DF)
        if one.error == Errno.EOVERFLOW:
            raise NotOffered(f"READ of {length} bytes with DF is refused with EOVERFLOW, as it may")
        if one.error:
            raise Broken(f"READ of {length} bytes at {offset} with DF to succeed", str(one))
        several = await client.read(offset, length)
        compare(offset, one.data, several, "without DF what READ gives with it,")


# --- FLUSH, FUA, TRIM, CACHE


async def _flush(bench: Bench) -> None:
    await (await bench.main()).do(Cmd.FLUSH)


async def _fua_write(bench: Bench) -> None:
    client = await bench.main()
    pattern = bench.pattern(dense=True, units=1)
    await bench.write(client, pattern.start, pattern.data(0), flags=CmdFlag.FUA)
    await bench.holds(client, pattern.start, pattern.data(0), "what was written with FUA")


async def _fua_trim(bench: Bench) -> None:
    pattern = bench.pattern(units=1)
    await (await bench.main()).do(Cmd.TRIM, pattern.start, UNIT, flags=CmdFlag.FUA)


async def _fua_elsewhere(bench: Bench) -> None:
    client = await bench.main()
    await client.read(0, bench.grain, flags=CmdFlag.FUA)
    if bench.offers(Flag.SEND_FLUSH):
        await client.do(Cmd.FLUSH, flags=CmdFlag.FUA)
    if bench.export.contexts:
        await client.do(Cmd.BLOCK_STATUS, 0, bench.grain, flags=CmdFlag.FUA)


async def _trim_keeps_to_its_range(bench: Bench) -> None:
    client = await bench.main()
    pattern = bench.pattern(dense=True, units=8)
    await bench.lay(client, pattern)
    # "MAY round offset up and length down": never the other way (Q-S25).
    start, end = pattern.start + 2 * UNIT + bench.grain, pattern.end - 2 * UNIT - bench.grain
    await client.do(Cmd.TRIM, start, end - start)
    await bench.untouched_around(client, pattern, start, end, "TRIM")


async def _cache(bench: Bench) -> None:
    client = await bench.main()
    offered = bench.offers(Flag.SEND_CACHE)
    before = await client.read(0, UNIT)
    try:
        # Clients are known to send it where it was not offered: "server implementations exist which support the
        # command without advertising this bit".
        reply = await client.ask(Cmd.CACHE, 0, UNIT)
    except HungUp:
        if offered:
            raise
        await bench.drop()
        raise NotOffered("SEND_CACHE not set, and the server hangs up at CACHE") from None
    compare(0, before, await client.read(0, UNIT), "behind CACHE what was read before it,")
    if reply.error and not offered:
        raise NotOffered(f"SEND_CACHE not set, and CACHE refused: {reply}")
    if reply.error:
        bench.note(f"CACHE is offered and fails, which it may: {reply}")
    elif not offered:
        bench.note("CACHE is served without being offered, which it may")


PROMISES: tuple[Promise, ...] = (
    Promise(
        "read-back",
        "READ gives what was written",
        "Request types: WRITE",
        _read_gives_what_was_written,
    ),
    Promise(
        "unaligned",
        "an unaligned READ or WRITE is done as it was asked, or refused",
        "Size constraints",
        _unaligned,
    ),
    Promise(
        "df-one-chunk",
        "READ with DF gives one content chunk",
        "Request types: READ",
        _df_gives_one_chunk,
        Flag.SEND_DF,
        structured=True,
    ),
    Promise(
        "df-agrees",
        "READ gives the same with DF and without",
        "Request types: READ",
        _df_agrees,
        Flag.SEND_DF,
        writes=False,
        structured=True,
    ),
    Promise(
        "flush", "FLUSH is taken", "Transmission flags: SEND_FLUSH", _flush, Flag.SEND_FLUSH, False
    ),
    Promise(
        "fua-write",
        "WRITE is taken with FUA",
        "Command flags: FUA",
        _fua_write,
        Flag.SEND_FUA,
    ),
    Promise(
        "fua-trim",
        "TRIM is taken with FUA",
        "Command flags: FUA",
        _fua_trim,
        Flag.SEND_FUA | Flag.SEND_TRIM,
    ),
    Promise(
        "fua-elsewhere",
        "commands that do not write are taken with FUA",
        "Command flags: FUA",
        _fua_elsewhere,
        Flag.SEND_FUA,
        writes=False,
    ),
    Promise(
        "trim-range",
        "TRIM changes nothing beside its range",
        "Request types: TRIM",
        _trim_keeps_to_its_range,
        Flag.SEND_TRIM,
    ),
    Promise(
        "cache",
        "CACHE is answered without data",
        "Request types: CACHE",
        _cache,
        writes=False,
    ),
)

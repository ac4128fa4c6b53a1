"""The promises, in a table, and for each the check that it is kept.

A check raises `Broken` where the specification says MUST, or where a client would be misled; where it says
SHOULD and the server does otherwise, that is a note beside a pass. A request that is not legal has to be
refused by an error, and the connection has to survive it: a server that hangs up there costs its client
everything else that was under way. Behind each check the connection is asked whether it is still in step.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import blake2b

from gateway.conform.bench import UNIT, Bench, NotOffered, Pattern, compare
from gateway.conform.client import MAX_CHUNKS, Broken, Client, HungUp, Reply
from gateway.protocol.export import UNRESTRICTED_MAXIMUM
from gateway.wire.constants import Chunk, Cmd, CmdFlag, Errno, name_of
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.limits import MAX_REQUEST_BYTES, MIB

LONG_ZEROES_BYTES = 128 * MIB
"""The WRITE_ZEROES that is asked for: nbd-server 3.15 to 3.27 (Q-N1) and nbdkit's file plugin on NFS (Q-K2)
zero no more than the first 64 MiB, and report success."""

WRONG_ZEROES_BYTES = 64 * MIB

MARK_EVERY_BYTES = 8 * MIB
"""How far apart data lies that such a WRITE_ZEROES has to wipe out, besides its last MiB."""

UNKNOWN_COMMAND = 0xFEED
"""Far from the numbers that extensions have taken: 8, RESIZE, would be one."""

UNKNOWN_FLAG = 1 << 14
"""A command flag that nobody has given a meaning."""

HOLE = 1 << 0
ZERO = 1 << 1
"""Status flags of base:allocation."""

NO_FLAG = Flag(0)

Check = Callable[[Bench], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Promise:
    """One line of the table."""

    name: str
    """For programs."""
    sentence: str
    section: str
    """Where in proto.md it is written."""
    check: Check
    flags: Flag = NO_FLAG
    """Transmission flags that make the promise; all of them."""
    writes: bool = True
    """The check changes the export."""
    structured: bool = False
    """It is about structured replies."""
    allocation: bool = False
    """It is about base:allocation."""

    def missing(self, bench: Bench) -> str | None:
        """Say why the server does not make this promise; None: it does."""
        lacking = [flag for flag in self.flags if not bench.offers(flag)]
        if lacking:
            return f"{' and '.join(flag.name or '' for flag in lacking)} not set"
        if self.structured and not bench.export.structured:
            return "no structured replies"
        if self.allocation and not bench.export.contexts:
            return "no base:allocation"
        if self.writes and bench.offers(Flag.READ_ONLY):
            return "the export is read-only"
        return None


# --- READ and WRITE


async def _read_gives_what_was_written(bench: Bench) -> None:
    client = await bench.main()
    pattern = bench.pattern()
    await bench.lay(client, pattern)
    whole = "what was written"
    for offset, length in bench.ranges(pattern.start, pattern.end):
        compare(offset, pattern.content(offset, length), await client.read(offset, length), whole)
    # Ends that are no unit's.
    start, length = pattern.start + bench.grain, UNIT - bench.grain
    if length:
        await bench.holds(client, start, pattern.content(start, length), whole)


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
    client: Client, pattern: Pattern, offset: int, length: int, *, must: bool
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
    # "the server MUST use NBD_REPLY_TYPE_OFFSET_DATA with the zeroes explicitly present": a hole of all of it
    # would show as zeros where data is.
    compare(offset, pattern.content(offset, length), reply.data, f"what was written, by {what},")


async def _readings(bench: Bench) -> list[tuple[int, int]]:
    """Give what is read to compare ways of reading: a pattern, or what is there if that must stay."""
    if bench.offers(Flag.READ_ONLY):
        return list(bench.samples())
    client = await bench.main()
    pattern = bench.pattern()
    await bench.lay(client, pattern)
    return list(bench.ranges(pattern.start, pattern.end))


async def _df_agrees(bench: Bench) -> None:
    readings = await _readings(bench)
    client = await bench.main()
    for offset, length in readings:
        one = await client.ask(Cmd.READ, offset, length, flags=CmdFlag.DF)
        if one.error == Errno.EOVERFLOW:
            raise NotOffered(f"READ of {length} bytes with DF is refused with EOVERFLOW, as it may")
        if one.error:
            raise Broken(f"READ of {length} bytes at {offset} with DF to succeed", str(one))
        several = await client.read(offset, length)
        compare(offset, one.data, several, "without DF what READ gives with it,")


async def _simple_agrees(bench: Bench) -> None:
    readings = await _readings(bench)
    # One connection after the other: without CAN_MULTI_CONN nothing is promised to two at once.
    await bench.leave()
    async with bench.another(structured=False) as simple:
        found = [_digest(await simple.read(offset, length)) for offset, length in readings]
    client = await bench.main()
    for (offset, length), expected in zip(readings, found, strict=True):
        if _digest(await client.read(offset, length)) != expected:
            span = f"between {offset} and {offset + length}"
            raise Broken(f"by structured replies what simple ones give {span}", "other data")


def _digest(data: bytes | bytearray) -> bytes:
    return blake2b(data, digest_size=16).digest()


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


async def _fua_zeroes(bench: Bench) -> None:
    await _zero_part(bench, CmdFlag.FUA)


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
    await _around(bench, client, pattern, start, end, "TRIM")


async def _around(
    bench: Bench, client: Client, pattern: Pattern, start: int, end: int, what: str
) -> None:
    """Hold that a dense pattern is whole but for what lies from `start` to `end`. Raises `Broken`."""
    before = pattern.content(pattern.start, start - pattern.start)
    await bench.holds(client, pattern.start, before, f"before the range of {what} what was there")
    behind = pattern.content(end, pattern.end - end)
    await bench.holds(client, end, behind, f"behind the range of {what} what was there")


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


# --- WRITE_ZEROES


async def _long_zeroes(bench: Bench) -> None:
    client = await bench.main()
    start = UNIT
    length = min(LONG_ZEROES_BYTES, bench.export.size // UNIT * UNIT - 2 * UNIT)
    if length <= WRONG_ZEROES_BYTES:
        bench.note(
            f"the export has room for {length} bytes only; where servers go wrong is above"
            f" {WRONG_ZEROES_BYTES}"
        )
    reply = await _wiped(bench, client, start, length)
    most = _longest(bench)
    if reply.error in (Errno.EOVERFLOW, Errno.EINVAL) and length > most:
        # "MAY reply with an NBD_EOVERFLOW or NBD_EINVAL error if the oversize request would require too many
        # server resources"
        bench.note(f"of {length} bytes: {reply}; asked for {most} instead")
        length = most - most % UNIT
        reply = await _wiped(bench, client, start, length)
    if reply.error:
        raise Broken(f"WRITE_ZEROES of {length} bytes to succeed", str(reply))


async def _wiped(bench: Bench, client: Client, start: int, length: int) -> Reply:
    """Zero a range with data in it, and hold that the data is gone, and what lies around it is not. The range
    begins behind the first unit of the export, and ends before the last. Raises `Broken`.
    """
    end = start + length
    tail = max(start, end - MIB)
    marks = [*range(start, tail, MARK_EVERY_BYTES), *range(tail, end, UNIT), start - UNIT, end]
    data = bench.pattern(dense=True, units=1).data(0)
    for offset in marks:
        await bench.write(client, offset, data)
    reply = await client.ask(Cmd.WRITE_ZEROES, start, length)
    if not reply.error:
        what = f"WRITE_ZEROES of {length} bytes at {start}"
        for offset in marks[:-2]:
            at = offset - start
            await bench.holds(client, offset, bytes(UNIT), f"zeros behind {what}, {at} bytes in,")
        for offset in marks[-2:]:
            await bench.holds(client, offset, data, f"around {what} what was there")
    return reply


def _longest(bench: Bench) -> int:
    """Give the longest payload that the server takes, in bytes."""
    sizes = bench.export.block_sizes
    return MAX_REQUEST_BYTES if sizes is None else sizes.maximum


async def _zeroes_no_hole(bench: Bench) -> None:
    await _zero_part(bench, CmdFlag.NO_HOLE)


async def _zero_part(bench: Bench, flag: CmdFlag) -> None:
    """Zero, with a flag, what is aligned to as little as the server takes. Raises `Broken`."""
    client = await bench.main()
    pattern = bench.pattern(dense=True, units=8)
    await bench.lay(client, pattern)
    start, end = pattern.start + 2 * UNIT + bench.grain, pattern.end - 2 * UNIT - bench.grain
    await client.do(Cmd.WRITE_ZEROES, start, end - start, flags=flag)
    what = f"WRITE_ZEROES with {flag.name}"
    await bench.holds(client, start, bytes(end - start), f"zeros behind {what}")
    await _around(bench, client, pattern, start, end, what)


async def _fast_zero(bench: Bench) -> None:
    client = await bench.main()
    pattern = bench.pattern(dense=True, units=4)
    await bench.lay(client, pattern)
    start, length = pattern.start + UNIT, 2 * UNIT
    reply = await client.ask(Cmd.WRITE_ZEROES, start, length, flags=CmdFlag.FAST_ZERO)
    if reply.error not in (0, Errno.ENOTSUP):
        raise Broken("WRITE_ZEROES with FAST_ZERO to succeed, or ENOTSUP", str(reply))
    if reply.error:
        bench.note("it is never fast here: ENOTSUP")
        content = pattern.content(start, length)
        await bench.holds(client, start, content, "behind ENOTSUP what was there")
    else:
        await bench.holds(client, start, bytes(length), "zeros behind WRITE_ZEROES with FAST_ZERO")
    await _around(bench, client, pattern, start, start + length, "WRITE_ZEROES with FAST_ZERO")


# --- BLOCK_STATUS


async def _status_covers(bench: Bench) -> None:
    readings = await _readings(bench)
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
    client: Client, size: int, offset: int, length: int, *, flags: int = 0
) -> list[tuple[int, int]]:
    """Ask for extents, length in bytes and status flags, and judge them. Raises `Broken`."""
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
    readings = await _readings(bench)
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
    readings = await _readings(bench)
    client = await bench.main()
    # With DF, where there is any: a server that looks up its holes in a wrong place does it for both (Q-S6).
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
    bench: Bench, client: Client, offset: int, length: int
) -> list[tuple[int, int, int]]:
    """Give all extents of a range of at most 1 MiB, asked for as often as it takes: offset and length in bytes,
    status flags. Raises `Broken`.
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


# --- What is not legal


def _refused(bench: Bench, what: str, reply: Reply, *errors: Errno) -> None:
    """Judge the answer to a request that is not legal: an error, and one of these SHOULD it be."""
    usual = " or ".join(error.name for error in errors)
    if not reply.error:
        raise Broken(f"{what} to be refused with {usual}", str(reply))
    if reply.error not in errors:
        bench.note(f"{what} is refused with {reply}, and should be with {usual}")


def _past_the_end(command: Cmd, *errors: Errno) -> Check:
    async def check(bench: Bench) -> None:
        client = await bench.main()
        grain = bench.grain
        end = -(-bench.export.size // grain) * grain
        wrapped = 2**64 - grain  # whose sum with a length of two grains is that of a legal request
        for offset in (end - grain, end, 2**63, wrapped):
            data = bytes(2 * grain) if command is Cmd.WRITE else b""
            length = 2 * grain
            reply = await client.ask(command, offset, length, data=data)
            what = f"{command.name} of {length} bytes at {offset} of {bench.export.size}"
            _refused(bench, what, reply, *errors)

    return check


async def _unknown_command(bench: Bench) -> None:
    reply = await (await bench.main()).ask(UNKNOWN_COMMAND)
    _refused(bench, f"command {UNKNOWN_COMMAND:#x}", reply, Errno.EINVAL)


async def _unknown_flag(bench: Bench) -> None:
    reply = await (await bench.main()).ask(Cmd.READ, 0, bench.grain, flags=UNKNOWN_FLAG)
    _refused(bench, f"READ with command flag {UNKNOWN_FLAG:#x}", reply, Errno.EINVAL)


async def _unknown_flag_of_write(bench: Bench) -> None:
    client = await bench.main()
    pattern = bench.pattern(dense=True, units=2)
    await bench.write(client, pattern.start, pattern.data(0))
    other = pattern.data(1)[: bench.grain]
    reply = await client.ask(Cmd.WRITE, pattern.start, flags=UNKNOWN_FLAG, data=other)
    _refused(bench, f"WRITE with command flag {UNKNOWN_FLAG:#x}", reply, Errno.EINVAL)
    await bench.holds(
        client, pattern.start, pattern.data(0), "behind the refused WRITE what was there"
    )


async def _too_long_write(bench: Bench) -> None:
    sizes = bench.export.block_sizes
    if sizes is None or sizes.maximum == UNRESTRICTED_MAXIMUM:
        raise NotOffered("no maximum told")
    # Whole units, so that it can be sent as one of them, many times.
    times = sizes.maximum // UNIT + 1
    if (times + 2) * UNIT > bench.export.size:
        raise NotOffered(f"the export has no room for a WRITE over the maximum, {sizes.maximum}")
    client = await bench.main()
    pattern = bench.pattern(dense=True, units=2)
    old, new = pattern.data(0), pattern.data(1)
    start, end = UNIT, (times + 1) * UNIT
    marks = [start, start + (times // 2) * UNIT, end - UNIT]
    for offset in (*marks, start - UNIT, end):
        await bench.write(client, offset, old)
    if bench.offers(Flag.SEND_FLUSH):
        await client.do(Cmd.FLUSH)
    what = f"a WRITE of {times * UNIT} bytes, with a maximum of {sizes.maximum},"
    try:
        reply = await client.ask(Cmd.WRITE, start, data=new, times=times)
        await client.read(0, bench.grain)
        bench.note(f"{what} is answered with {reply}")
    except HungUp:
        reply = None
        bench.note(f"{what} ends the connection, as it may")
        await bench.drop()
        client = await bench.main()
    for offset in (start - UNIT, end):
        await bench.holds(client, offset, old, f"around {what} what was there")
    for offset in marks:
        found = b"".join([await client.read(offset + at, n) for at, n in bench.ranges(0, UNIT)])
        if found != new and (found != old or (reply is not None and not reply.error)):
            raise Broken(
                f"after {what} what was there before, or all of it, at {offset}", "neither"
            )


async def _nothing(bench: Bench) -> None:
    said = []
    for command, flag in (
        (Cmd.READ, NO_FLAG),
        (Cmd.WRITE, NO_FLAG),
        (Cmd.TRIM, Flag.SEND_TRIM),
        (Cmd.CACHE, Flag.SEND_CACHE),
        (Cmd.WRITE_ZEROES, Flag.SEND_WRITE_ZEROES),
    ):
        if (flag and not bench.offers(flag)) or (
            command in (Cmd.WRITE, Cmd.TRIM, Cmd.WRITE_ZEROES) and bench.offers(Flag.READ_ONLY)
        ):
            continue
        client = await bench.main()
        try:
            said.append(f"{command.name}: {await client.ask(command)}")
            await bench.in_step()
        except Broken as broken:
            said.append(f"{command.name}: {broken.came}")
            await bench.drop()
    bench.note(f"unspecified; here {'; '.join(said)}")


# --- Several connections


async def _flush_is_seen(bench: Bench) -> None:
    await _seen(bench, read_before=False, fua=False)


async def _flush_is_seen_after_reading(bench: Bench) -> None:
    await _seen(bench, read_before=True, fua=False)


async def _fua_is_seen(bench: Bench) -> None:
    await _seen(bench, read_before=True, fua=True)


async def _seen(bench: Bench, *, read_before: bool, fua: bool) -> None:
    """Write on one connection, make it visible, and read it on another. Raises `Broken`."""
    first = await bench.main()
    old, new = (bench.pattern(dense=True, units=1) for _ in range(2))
    start = old.start
    await bench.write(first, start, old.data(0))
    if bench.offers(Flag.SEND_FLUSH):
        await first.do(Cmd.FLUSH)
    async with bench.another() as second:
        if read_before:
            await bench.holds(second, start, old.data(0), "what was written before it connected")
        await bench.write(first, start, new.data(0), flags=CmdFlag.FUA if fua else 0)
        if read_before and not fua:
            early = await second.read(start, bench.grain)
            if early != new.data(0)[: bench.grain]:
                bench.note("before FLUSH, the other connection does not see it: that is allowed")
        if not fua and bench.offers(Flag.SEND_FLUSH):
            await first.do(Cmd.FLUSH)
        by = "with FUA" if fua else "and made visible by FLUSH"
        what = f"on a second connection what was written on the first {by},"
        await bench.holds(second, start, new.data(0), what)


async def _flush_covers_others(bench: Bench) -> None:
    first = await bench.main()
    old, new = (bench.pattern(dense=True, units=1) for _ in range(2))
    await bench.write(first, old.start, old.data(0))
    await first.do(Cmd.FLUSH)
    await bench.holds(first, old.start, old.data(0), "what was written")
    async with bench.another() as second:
        await bench.write(second, old.start, new.data(0))
        await first.do(Cmd.FLUSH)
        what = "behind a FLUSH on the first connection what was written on the second,"
        await bench.holds(first, old.start, new.data(0), what)


_MULTI = Flag.CAN_MULTI_CONN
_ZEROES = Flag.SEND_WRITE_ZEROES
_EINVAL, _ENOSPC = Errno.EINVAL, Errno.ENOSPC
# "The server SHOULD return ENOSPC if it receives a write request including one or more sectors beyond the size
# of the device" ("Error values"); "SHOULD report an EINVAL error if the client's request … would exceed the
# export size" ("Size constraints").
_PAST = (_ENOSPC, _EINVAL)


PROMISES: tuple[Promise, ...] = (
    Promise(
        "read-back",
        "READ gives what was written",
        "Request types: WRITE",
        _read_gives_what_was_written,
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
        "fua-write-zeroes",
        "WRITE_ZEROES is taken with FUA",
        "Command flags: FUA",
        _fua_zeroes,
        Flag.SEND_FUA | _ZEROES,
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
    Promise(
        "write-zeroes-long",
        "WRITE_ZEROES of 128 MiB zeroes all of them",
        "Request types: WRITE_ZEROES",
        _long_zeroes,
        _ZEROES,
    ),
    Promise(
        "write-zeroes-no-hole",
        "WRITE_ZEROES is taken with NO_HOLE",
        "Command flags: NO_HOLE",
        _zeroes_no_hole,
        _ZEROES,
    ),
    Promise(
        "fast-zero",
        "WRITE_ZEROES with FAST_ZERO zeroes, or changes nothing",
        "Request types: WRITE_ZEROES",
        _fast_zero,
        _ZEROES | Flag.SEND_FAST_ZERO,
    ),
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
    Promise(
        "read-past-end",
        "READ past the end is refused",
        "Error values",
        _past_the_end(Cmd.READ, _EINVAL),
        writes=False,
    ),
    Promise(
        "write-past-end",
        "WRITE past the end is refused",
        "Error values",
        _past_the_end(Cmd.WRITE, *_PAST),
    ),
    Promise(
        "trim-past-end",
        "TRIM past the end is refused",
        "Error values",
        _past_the_end(Cmd.TRIM, _EINVAL),
        Flag.SEND_TRIM,
    ),
    Promise(
        "write-zeroes-past-end",
        "WRITE_ZEROES past the end is refused",
        "Request types: WRITE_ZEROES",
        _past_the_end(Cmd.WRITE_ZEROES, *_PAST),
        _ZEROES,
    ),
    Promise(
        "status-past-end",
        "BLOCK_STATUS past the end is refused",
        "Request types: BLOCK_STATUS",
        _past_the_end(Cmd.BLOCK_STATUS, _EINVAL),
        writes=False,
        allocation=True,
    ),
    Promise(
        "unknown-command",
        "an unknown command is refused",
        "Error values",
        _unknown_command,
        writes=False,
    ),
    Promise(
        "unknown-flag",
        "READ with an unknown command flag is refused",
        "Error values",
        _unknown_flag,
        writes=False,
    ),
    Promise(
        "unknown-flag-write",
        "WRITE with an unknown command flag is refused, and its data skipped",
        "Error values",
        _unknown_flag_of_write,
    ),
    # From here on, connections come and go.
    Promise(
        "simple-agrees",
        "READ gives the same in structured replies and in simple ones",
        "Request types: READ",
        _simple_agrees,
        writes=False,
        structured=True,
    ),
    Promise(
        "multi-conn-flush",
        "what a FLUSH covers is seen on other connections",
        "Transmission flags: CAN_MULTI_CONN",
        _flush_is_seen,
        _MULTI,
    ),
    Promise(
        "multi-conn-stale",
        "also on one that has read the old data",
        "Transmission flags: CAN_MULTI_CONN",
        _flush_is_seen_after_reading,
        _MULTI,
    ),
    Promise(
        "multi-conn-others",
        "a FLUSH covers what other connections wrote",
        "Transmission flags: CAN_MULTI_CONN",
        _flush_covers_others,
        _MULTI | Flag.SEND_FLUSH,
    ),
    Promise(
        "multi-conn-fua",
        "what is written with FUA is seen on other connections",
        "Transmission flags: CAN_MULTI_CONN",
        _fua_is_seen,
        _MULTI | Flag.SEND_FUA,
    ),
    Promise(
        "write-too-long",
        "a WRITE over the maximum spoils nothing",
        "Size constraints",
        _too_long_write,
    ),
    Promise(
        "zero-length",
        "requests of no bytes (noted, not judged)",
        "Request types",
        _nothing,
        writes=False,
    ),
)

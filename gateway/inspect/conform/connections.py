"""Checks that need more than one connection, or may lose one."""

from __future__ import annotations

from hashlib import blake2b

from gateway.inspect.conform.bench import UNIT, Bench, NotOffered
from gateway.inspect.conform.client import Broken, HungUp
from gateway.inspect.conform.promise import NO_FLAG, Promise
from gateway.protocol.export import UNRESTRICTED_MAXIMUM
from gateway.wire.constants import Cmd, CmdFlag
from gateway.wire.constants import TransmissionFlag as Flag


async def _simple_agrees(bench: Bench) -> None:
    readings = await bench.readings()
    # One connection after the other: without CAN_MULTI_CONN two at once are promised nothing.
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


async def _too_long_write(bench: Bench) -> None:
    sizes = bench.export.block_sizes
    if sizes is None or sizes.maximum == UNRESTRICTED_MAXIMUM:
        raise NotOffered("no maximum told")
    # Whole units, so that the payload can be one unit, sent many times.
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


PROMISES: tuple[Promise, ...] = (
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
        Flag.CAN_MULTI_CONN,
    ),
    Promise(
        "multi-conn-stale",
        "a FLUSH is seen also where the old data was read before",
        "Transmission flags: CAN_MULTI_CONN",
        _flush_is_seen_after_reading,
        Flag.CAN_MULTI_CONN,
    ),
    Promise(
        "multi-conn-others",
        "a FLUSH covers what other connections wrote",
        "Transmission flags: CAN_MULTI_CONN",
        _flush_covers_others,
        Flag.CAN_MULTI_CONN | Flag.SEND_FLUSH,
    ),
    Promise(
        "multi-conn-fua",
        "what is written with FUA is seen on other connections",
        "Transmission flags: CAN_MULTI_CONN",
        _fua_is_seen,
        Flag.CAN_MULTI_CONN | Flag.SEND_FUA,
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

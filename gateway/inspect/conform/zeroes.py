"""WRITE_ZEROES: all of it, and nothing else."""

from __future__ import annotations

from gateway.inspect.conform.bench import UNIT, Bench
from gateway.inspect.conform.client import Broken, RawClient, Reply
from gateway.inspect.conform.promise import Promise
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.limits import MAX_REQUEST_BYTES, MIB

LONG_ZEROES_BYTES = 128 * MIB
"""The length of the WRITE_ZEROES that we send: nbd-server 3.15 to 3.27 (Q-N1) and nbdkit's file plugin on NFS
(Q-K2) zero no more than the first 64 MiB, and report success."""

WRONG_ZEROES_BYTES = 64 * MIB
"""How much those servers zero; a shorter WRITE_ZEROES shows nothing."""

MARK_EVERY_BYTES = 8 * MIB
"""How far apart we put the data that such a WRITE_ZEROES has to wipe out, besides its last MiB."""


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
        length = max(UNIT, most - most % UNIT)
        reply = await _wiped(bench, client, start, length)
    if reply.error:
        raise Broken(f"WRITE_ZEROES of {length} bytes to succeed", str(reply))


async def _wiped(bench: Bench, client: RawClient, start: int, length: int) -> Reply:
    """Zero a range with data in it. Hold that the data is gone, and that the data around it is not. The range
    begins after the first unit of the export, and ends before the last. Raises `Broken`.
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


async def _fua_zeroes(bench: Bench) -> None:
    await _zero_part(bench, CmdFlag.FUA)


async def _zeroes_no_hole(bench: Bench) -> None:
    await _zero_part(bench, CmdFlag.NO_HOLE)


async def _zero_part(bench: Bench, flag: CmdFlag) -> None:
    """Zero, with a flag, a range with the least alignment that the server takes. Raises `Broken`."""
    client = await bench.main()
    pattern = bench.pattern(dense=True, units=8)
    await bench.lay(client, pattern)
    start, end = pattern.start + 2 * UNIT + bench.grain, pattern.end - 2 * UNIT - bench.grain
    await client.do(Cmd.WRITE_ZEROES, start, end - start, flags=flag)
    what = f"WRITE_ZEROES with {flag.name}"
    await bench.holds(client, start, bytes(end - start), f"zeros behind {what}")
    await bench.untouched_around(client, pattern, start, end, what)


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
    await bench.untouched_around(
        client, pattern, start, start + length, "WRITE_ZEROES with FAST_ZERO"
    )


PROMISES: tuple[Promise, ...] = (
    Promise(
        "write-zeroes-long",
        "WRITE_ZEROES of 128 MiB zeroes all of them",
        "Request types: WRITE_ZEROES",
        _long_zeroes,
        Flag.SEND_WRITE_ZEROES,
    ),
    Promise(
        "write-zeroes-no-hole",
        "WRITE_ZEROES is taken with NO_HOLE",
        "Command flags: NO_HOLE",
        _zeroes_no_hole,
        Flag.SEND_WRITE_ZEROES,
    ),
    Promise(
        "fua-write-zeroes",
        "WRITE_ZEROES is taken with FUA",
        "Command flags: FUA",
        _fua_zeroes,
        Flag.SEND_FUA | Flag.SEND_WRITE_ZEROES,
    ),
    Promise(
        "fast-zero",
        "WRITE_ZEROES with FAST_ZERO zeroes, or changes nothing",
        "Request types: WRITE_ZEROES",
        _fast_zero,
        Flag.SEND_WRITE_ZEROES | Flag.SEND_FAST_ZERO,
    ),
)

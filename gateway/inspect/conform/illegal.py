"""What is not legal is refused with an error, and the connection goes on."""

from __future__ import annotations

from gateway.inspect.conform.bench import Bench
from gateway.inspect.conform.client import Broken, Reply
from gateway.inspect.conform.promise import Check, Promise
from gateway.wire.constants import Cmd, Errno
from gateway.wire.constants import TransmissionFlag as Flag

UNKNOWN_COMMAND = 0xFEED
"""Far from the numbers that extensions have taken: 8, RESIZE, would be one."""

UNKNOWN_FLAG = 1 << 14
"""A command flag that nobody has given a meaning."""


def _refused(bench: Bench, what: str, reply: Reply, *errors: Errno) -> None:
    """Judge the answer to a request that is not legal: it has to be an error, and SHOULD be one of these."""
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
        wrapped = 2**64 - grain  # plus two grains, it overflows to a legal end
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


_EINVAL, _ENOSPC = Errno.EINVAL, Errno.ENOSPC
# "The server SHOULD return ENOSPC if it receives a write request including one or more sectors beyond the size
# of the device" ("Error values"); "SHOULD report an EINVAL error if the client's request … would exceed the
# export size" ("Size constraints").
_PAST = (_ENOSPC, _EINVAL)


PROMISES: tuple[Promise, ...] = (
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
        Flag.SEND_WRITE_ZEROES,
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
)

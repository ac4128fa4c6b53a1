"""No command gets around a protected range or out of a window: in no framing, by no arithmetic, past no hook.

What is refused is known by its error, and believed by the server's bytes: at the end all of the disk is what
the commands that were allowed made of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import pytest

from gateway.embedded import MemoryDisk, Personality, Server
from gateway.embedded.personality import WITHOUT_EXTENDED_HEADERS, WITHOUT_STRUCTURED_REPLIES
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.handshake import BlockSizes
from gateway.wire.limits import KIB, MIB
from tests.embedded.peers import Client
from tests.sessions.asking import error_of
from tests.sessions.gateways import Gateway, gateway_before

pytestmark = pytest.mark.real

SIZE = 4 * MIB
BLOCK = 4096
LARGE = range(MIB + 1000, MIB + 80_000)
SMALL = range(2 * MIB + 1000, 2 * MIB + 1100)
"""In one block, with bytes on both sides that may be written."""
PROTECTED = (LARGE, SMALL)
WINDOW = range(512 * KIB + 512, 3 * MIB + 512)
"""Whole blocks, none of which is one of the server's."""
ALL = range(SIZE)
BEHIND_THE_LAST = 2**64

PERSONALITIES = {
    "extended": Personality("extended"),
    "structured": Personality("structured", unsupported=WITHOUT_EXTENDED_HEADERS),
    "simple": Personality("simple", unsupported=WITHOUT_STRUCTURED_REPLIES),
    "blocks": Personality("blocks", block_sizes=BlockSizes(BLOCK, BLOCK, 32 * MIB)),
}

# --- Chains that come to the same

HOOK = '{ use = "delay", all = "1ns" }'
INTO_WINDOW = f'{{ use = "window", offset = {WINDOW.start}, size = {len(WINDOW)} }}'


def protect(base: int = 0, more: str = "") -> str:
    """The policy, in the offsets of a view that begins at `base`."""
    ranges = ", ".join(f'"{each.start - base}+{len(each)}"' for each in PROTECTED)
    return f'{{ use = "protect", ranges = [{ranges}]{more} }}'


HERE = protect()
INSIDE = protect(WINDOW.start)
COMPARED = protect(more=', unchanged = "allow"')

CHAINS: dict[str, tuple[range, Sequence[str]]] = {
    "protect": (ALL, [HERE]),
    "hook protect": (ALL, [HOOK, HERE]),
    "protect hook": (ALL, [HERE, HOOK]),
    "window protect": (WINDOW, [INTO_WINDOW, HERE]),
    "protect window": (WINDOW, [INSIDE, INTO_WINDOW]),
    "hook window protect": (WINDOW, [HOOK, INTO_WINDOW, HERE]),
    "window hook protect": (WINDOW, [INTO_WINDOW, HOOK, HERE]),
    "window protect hook": (WINDOW, [INTO_WINDOW, HERE, HOOK]),
    "hook protect window": (WINDOW, [HOOK, INSIDE, INTO_WINDOW]),
    "protect hook window": (WINDOW, [INSIDE, HOOK, INTO_WINDOW]),
    "protect window hook": (WINDOW, [INSIDE, INTO_WINDOW, HOOK]),
    "compare": (ALL, [COMPARED]),
    "window compare hook": (WINDOW, [INTO_WINDOW, COMPARED, HOOK]),
}
COMPARING = frozenset(name for name in CHAINS if "compare" in name)

CONFIG = """
[[export]]
name = "vm"
upstream = "main"
upstream-name = ""
policies = [ {} ]
"""
IN_A_RULE = """
[[export]]
name = "vm"
upstream = "main"
upstream-name = ""
policies = [ {} ]
[[rule]]
policies = [ {} ]
"""

# --- A client that keeps a record

DIALECTS = [
    *(("extended", "structured"), ("extended", "extended"), ("structured", "extended")),
    *(("simple", "structured"), ("blocks", "EXPORT_NAME"), ("blocks", "extended")),
]
"""A server and a client: of the same framing, and of others."""


@dataclass
class Attacker:
    """A client that knows what the disk should hold."""

    client: Client
    seen: range
    """What it is shown of the disk."""
    holds: bytearray
    wrong: list[str] = field(default_factory=list)

    async def tries(
        self, command: Cmd, offset: int, length: int, flags: int = 0, data: bytes = b""
    ) -> int:
        """Send a request; give its error."""
        cookie = await self.client.send(command, offset, length, flags=flags, data=data)
        return await error_of(self.client, cookie)

    async def changes(
        self, command: Cmd, start: int, end: int, flags: int = 0, byte: int = 0x5A
    ) -> int:
        """Try to change a range of the disk, which may lie outside of what is seen."""
        data = bytes([byte]) * (end - start) if command is Cmd.WRITE else b""
        offset = (start - self.seen.start) % BEHIND_THE_LAST
        return await self.tries(command, offset, end - start, flags, data)

    async def is_let(self, command: Cmd, start: int, end: int, flags: int = 0) -> None:
        """Change what may be changed."""
        error = await self.changes(command, start, end, flags)
        if error == Errno.ENOTSUP and flags & CmdFlag.FAST_ZERO:
            return  # not by a policy: the server's blocks are larger, and nothing has been done
        if error:
            self.wrong.append(f"{command.name} {flags:#x} {start}-{end}: {Errno(error).name}")
        byte = 0x5A if command is Cmd.WRITE else 0
        self.holds[start:end] = bytes([byte]) * (end - start)
        if command is Cmd.TRIM and not error:  # what it reads as is anybody's guess
            await self.is_let(Cmd.WRITE, start, end)

    async def is_stopped(
        self, command: Cmd, start: int, end: int, flags: int = 0, *, by: frozenset[int]
    ) -> None:
        error = await self.changes(command, start, end, flags)
        if error not in by:
            self.wrong.append(f"{command.name} {flags:#x} {start}-{end}: error {error}")

    async def reads(self, offset: int, length: int) -> bytes:
        if self.client.negotiation.structured:
            return await self.client.read(offset, length)
        await self.client.send(Cmd.READ, offset, length)
        _cookie, error, data = await self.client.simple_reply()
        assert not error
        return data


@asynccontextmanager
async def attacking(
    gateway: Gateway, how: str, seen: range, content: bytes, *, has_contexts: bool = True
) -> AsyncIterator[Attacker]:
    client = gateway.client()
    async with client.stream:
        if how == "EXPORT_NAME":
            await client.greeting()
            client.negotiation.export_name("vm")
            told = await client.answered()
        else:
            structured, extended = how != "simple", how == "extended"
            contexts = ["base:allocation"] if structured and has_contexts else []
            told = await client.go(
                "vm", structured=structured, extended=extended, contexts=contexts
            )
        assert told.export is not None
        assert told.export.size == len(seen)
        yield Attacker(client, seen, bytearray(content))


# --- What it tries

F, N, Z = CmdFlag.FUA, CmdFlag.NO_HOLE, CmdFlag.FAST_ZERO
WAYS = [
    *((Cmd.WRITE, flags) for flags in (0, F)),
    *((Cmd.WRITE_ZEROES, flags) for flags in (0, F, N, N | F, Z, Z | F, Z | N, Z | N | F)),
    *((Cmd.TRIM, flags) for flags in (0, F)),
]


def touching(protected: range) -> Iterator[tuple[int, int]]:
    """Ranges that touch a protected one."""
    start, end = protected.start, protected.stop
    middle = (start + end) // 2
    return iter(
        [
            (start, end),
            (start, start + 1),
            (end - 1, end),
            (middle, middle + 10),
            (start - 1, start + 1),
            (end - 1, end + 1),
            (start - 10_000, middle),
            (middle, end + 10_000),
            (start - 1, end + 1),
            (start - start % BLOCK, end - end % BLOCK + BLOCK),
            (start - 100_000, end + 100_000),
        ]
    )


def beside(protected: range) -> Iterator[tuple[int, int]]:
    """Ranges that touch none, as near as can be."""
    start, end = protected.start, protected.stop
    return iter(
        [
            (start - 1, start),
            (end, end + 1),
            (start - 5000, start),
            (end, end + 5000),
            (start - start % BLOCK - BLOCK, start),
            (end, end - end % BLOCK + 2 * BLOCK),
        ]
    )


REFUSALS = frozenset({Errno.EPERM, Errno.EINVAL, Errno.ENOSPC})


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize(("personality", "how"), DIALECTS)
async def test_nothing_gets_at_what_is_protected(personality: str, chain: str, how: str) -> None:
    content = Random(1).randbytes(SIZE)
    disk = MemoryDisk(SIZE)
    await disk.write(0, content, fua=False)
    seen, policies = CHAINS[chain]
    server = Server({"": disk}, PERSONALITIES[personality])
    async with gateway_before(server, upstream=CONFIG.format(", ".join(policies))) as gateway:
        has_contexts = personality != "simple"
        async with attacking(gateway, how, seen, content, has_contexts=has_contexts) as attacker:
            for protected in PROTECTED:
                await attack(attacker, protected, comparing=chain in COMPARING)
            await overflow(attacker, extended=how == "extended")
            await leave_the_window(attacker)
            assert not attacker.wrong, "\n".join(attacker.wrong)
            assert await attacker.reads(0, len(seen)) == attacker.holds[seen.start : seen.stop]
    assert bytes(await disk.read(0, SIZE)) == attacker.holds


async def attack(attacker: Attacker, protected: range, *, comparing: bool) -> None:
    for command, flags in WAYS:
        # What is compared is read first, which is not fast.
        error = Errno.ENOTSUP if comparing and flags & CmdFlag.FAST_ZERO else Errno.EPERM
        for start, end in touching(protected):
            await attacker.is_stopped(command, start, end, flags, by=frozenset({error}))
        for start, end in beside(protected):
            await attacker.is_let(command, start, end, flags)


async def overflow(attacker: Attacker, *, extended: bool) -> None:
    """Ranges whose end comes round to the beginning, if somebody counts in 64 bits."""
    # The client's offset of the first protected byte.
    inside = LARGE.start - attacker.seen.start
    ranges = [(BEHIND_THE_LAST - 1, 2), (BEHIND_THE_LAST - 1, 1), (BEHIND_THE_LAST - 512, 1024)]
    ranges += [(BEHIND_THE_LAST - BLOCK, inside + 2 * BLOCK), (2**63 - 512, 1024)]
    long = [
        *((BEHIND_THE_LAST - length, inside + 100 + length) for length in (1, 2**32, 2**63)),
        *((offset, BEHIND_THE_LAST - 1) for offset in (0, inside, BEHIND_THE_LAST - 1)),
        *((offset, BEHIND_THE_LAST - offset + inside + 1) for offset in (inside + 1000, 2**40)),
        *((offset, 2**32 + 10) for offset in (0, inside)),
        *((offset, 2**63) for offset in (0, inside, 2**63)),
    ]
    if extended:
        ranges += long
    commands = [Cmd.READ, Cmd.CACHE, Cmd.TRIM, Cmd.WRITE_ZEROES, Cmd.WRITE]
    for command in commands:
        for offset, length in ranges:
            carries = command is Cmd.WRITE
            if carries and length > 2 * MIB:
                continue  # nobody would send it
            data = b"o" * length if carries else b""
            error = await attacker.tries(command, offset, length, data=data)
            if error not in REFUSALS:
                attacker.wrong.append(f"{command.name} of {length} at {offset}: error {error}")


async def leave_the_window(attacker: Attacker) -> None:
    seen = attacker.seen
    outside = [
        (seen.stop, seen.stop + 1),
        (seen.stop - 1, seen.stop + 1),
        (seen.stop, seen.stop + BLOCK),
        (seen.start - 1, seen.start),
        (seen.start - 1, seen.start + 1),
        (seen.start - BLOCK, seen.start),
        (0 - BLOCK, 0),
    ]
    for command in (*(command for command, _ in WAYS), Cmd.READ, Cmd.CACHE):
        for start, end in outside:
            await attacker.is_stopped(command, start, end, by=REFUSALS)
    if attacker.client.negotiation.structured:
        for start, end in outside:
            await attacker.is_stopped(Cmd.BLOCK_STATUS, start, end, by=REFUSALS)


@pytest.mark.parametrize("inner", [HOOK, COMPARED, HERE])
@pytest.mark.parametrize("outer", [f"{HOOK}, {INSIDE}", f"{INSIDE}, {HOOK}", INSIDE])
async def test_the_rules_policies_and_the_exports_hold_together(outer: str, inner: str) -> None:
    content = Random(2).randbytes(SIZE)
    disk = MemoryDisk(SIZE)
    await disk.write(0, content, fua=False)
    config = IN_A_RULE.format(inner, f"{outer}, {INTO_WINDOW}")
    async with (
        gateway_before(Server({"": disk}), upstream=config) as gateway,
        attacking(gateway, "structured", WINDOW, content) as attacker,
    ):
        for protected in PROTECTED:
            await attack(attacker, protected, comparing=False)
        await overflow(attacker, extended=False)
        await leave_the_window(attacker)
        assert not attacker.wrong, "\n".join(attacker.wrong)
    assert bytes(await disk.read(0, SIZE)) == attacker.holds


@pytest.mark.parametrize("chain", CHAINS)
async def test_blocks_that_are_read_changed_and_written_keep_what_is_protected(chain: str) -> None:
    """Many writes at once on both sides of a few protected bytes of one block, and into them."""
    content = Random(3).randbytes(SIZE)
    disk = MemoryDisk(SIZE)
    await disk.write(0, content, fua=False)
    seen, policies = CHAINS[chain]
    server = Server({"": disk}, PERSONALITIES["blocks"])
    async with (
        gateway_before(server, upstream=CONFIG.format(", ".join(policies))) as gateway,
        attacking(gateway, "simple", seen, content) as attacker,
    ):
        client, refused = attacker.client, set()
        for number in range(300):
            kind, byte = number % 3, bytes([number % 251 + 1])
            start = (SMALL.start - 50, SMALL.stop, SMALL.start + 20)[kind] + number % 50
            length = 50 - number % 50
            cookie = await client.send(
                Cmd.WRITE, start - seen.start, data=byte * length, cookie=number + 1
            )
            if kind == 2:
                refused.add(cookie)
                assert start + length <= SMALL.stop
            elif kind == 0:
                assert start + length == SMALL.start
        for _ in range(300):
            cookie, error, _data = await client.simple_reply()
            assert error == (Errno.EPERM if cookie in refused else 0)
    there = bytes(await disk.read(0, SIZE))
    assert there[SMALL.start : SMALL.stop] == content[SMALL.start : SMALL.stop]
    assert there[: SMALL.start - 50] == content[: SMALL.start - 50]
    assert there[SMALL.stop + 100 :] == content[SMALL.stop + 100 :]
    assert there[SMALL.start - 50 : SMALL.start] != content[SMALL.start - 50 : SMALL.start]


@pytest.mark.parametrize("behind", ["", ', { use = "window", offset = 512 }'])
@pytest.mark.parametrize("how", ["simple", "structured", "extended"])
async def test_block_sizes_are_held_to_on_the_fast_path(behind: str, how: str) -> None:
    policies = f'{{ use = "blocksize", minimum = {BLOCK} }}{behind}'
    seen = range(512 if behind else 0, SIZE)
    seen = seen[: len(seen) - len(seen) % BLOCK]
    async with (
        gateway_before(Server({"": MemoryDisk(SIZE)}), upstream=CONFIG.format(policies)) as gateway,
        attacking(gateway, how, seen, bytes(SIZE)) as attacker,
    ):
        for command in (Cmd.READ, Cmd.WRITE, Cmd.TRIM, Cmd.WRITE_ZEROES, Cmd.CACHE):
            for offset, length in ((512, BLOCK), (BLOCK - 512, BLOCK), (0, 512), (0, BLOCK + 1)):
                data = bytes(length) if command is Cmd.WRITE else b""
                error = await attacker.tries(command, offset, length, data=data)
                assert error == Errno.EINVAL, (command.name, offset, length)
            data = bytes(BLOCK) if command is Cmd.WRITE else b""
            assert not await attacker.tries(command, BLOCK, BLOCK, data=data)

"""What docs/behaviour.md says a client is told that is not what the upstream says, and what it may cost."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
import trio

from gateway.access.loading import catalogue, options
from gateway.config import Listen
from gateway.embedded import PERSONALITIES, Faults, MemoryDisk, Request, Server
from gateway.embedded.personality import lacking
from gateway.jobs.jobs import MAX_JOB_BYTES
from gateway.losses.witnesses import MOST_WITNESSES, PIECE_BYTES
from gateway.scan.memory import MAX_KEPT_BYTES
from gateway.scan.traffic import MAX_IN_FLIGHT
from gateway.upstream.listed import LISTING_SECONDS
from gateway.wire import limits
from gateway.wire.constants import Cmd, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes, ListedExport
from gateway.wire.limits import GIB, KIB, MIB
from tests.embedded.peers import Bytes
from tests.sessions.gateways import gateway_before

PAGE = (Path(__file__).parents[2] / "docs/behaviour.md").read_text()
HANDSHAKE_SECONDS = Listen.model_fields["handshake_seconds"].default
CLIENTS = Listen.model_fields["max_connections"].default

NUMBERS = [
    f"{limits.MAX_REQUEST_BYTES // MIB} MiB at most, also for one that has",
    f"{limits.DEFAULT_MAXIMUM_PAYLOAD // MIB} MiB where it says nothing",
    f"done in pieces of {limits.WRITE_ZEROES_PIECE_BYTES // MIB} MiB",
    f"upstream, in pieces of {limits.EFFECT_PIECE_BYTES // GIB} GiB",
    f"what the upstream said up to {LISTING_SECONDS} s ago",
    f"| {CLIENTS:,} for each `[[listen]]`",
    f"a place, for {HANDSHAKE_SECONDS:g} s (`handshake-seconds`)",
    f"| {MAX_IN_FLIGHT} in a session",
    f"while {MAX_JOB_BYTES // MIB} MiB of data are held",
    f"WRITEs of {MAX_KEPT_BYTES // MIB} MiB and the last one",
    f"at most {MOST_WITNESSES} of up to {PIECE_BYTES // KIB} KiB are looked at",
]


@pytest.mark.parametrize("number", NUMBERS)
def test_its_numbers_are_those_of_the_code(number: str) -> None:
    assert number in " ".join(PAGE.split())


def test_the_policies_that_bound_a_client_have_these_options() -> None:
    [text] = re.findall(r"(?ms)^## What one client can cost the others\n(.*?)^## ", PAGE)
    named = dict.fromkeys(re.findall(r"policies\.md#([a-z]+)\)", text))
    have = {option.name for name in named for option in options(catalogue().find(name))}
    meant = {"connections-per-identity", "in-flight", "request-size", "enforce", "per"}
    meant |= {"bytes-per-second", "operations-per-second"}
    assert len(named) >= 6
    assert all(f"`{option}" in text for option in meant)
    assert meant <= have


SIZE = 8 * MIB
BLOCKS = BlockSizes(512, 4096, 0xFFFFFFFF)


def recorded(seen: list[Request]) -> Faults:
    def on_reply(request: Request, reply: list[bytes]) -> list[bytes]:
        seen.append(request)
        return reply

    return Faults(on_reply=on_reply)


async def test_sizes_and_flags() -> None:
    told_nothing = replace(PERSONALITIES["plain"], block_sizes=None)
    large = replace(
        PERSONALITIES["plain"], block_sizes=BLOCKS, flags=lacking(Flag.SEND_WRITE_ZEROES)
    )
    for personality, expected in (
        (large, BlockSizes(512, 4096, 64 * MIB)),
        (told_nothing, BlockSizes(1, 4096, 32 * MIB)),
    ):
        server = Server({"": MemoryDisk(SIZE + 100)}, personality)
        async with gateway_before(server) as gateway:
            client = gateway.client()
            async with client.stream:
                told = await client.go()
                assert told.export is not None
                assert told.block_sizes == expected
                assert told.export.size == SIZE + (100 if personality is told_nothing else 0)
                assert told.export.flags & Flag.SEND_WRITE_ZEROES


@pytest.mark.parametrize("minimum", [1, 512])
async def test_block_sizes_unasked(minimum: int) -> None:
    """The upstream tells nobody who does not ask."""
    blocks = replace(BLOCKS, minimum=minimum)
    server = Server({"": MemoryDisk(SIZE)}, replace(PERSONALITIES["plain"], block_sizes=blocks))
    async with gateway_before(server) as gateway:
        client = gateway.client()
        async with client.stream:
            told = await client.go(wanted=())
            assert (told.block_sizes is not None) == (minimum > 1)


async def test_no_bytes_and_any_alignment() -> None:
    seen: list[Request] = []
    personality = replace(PERSONALITIES["plain"], block_sizes=BLOCKS)
    server = Server({"": MemoryDisk(SIZE)}, personality, faults=recorded(seen))
    async with gateway_before(server) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go(contexts=["base:allocation"])
            for command in (Cmd.READ, Cmd.WRITE, Cmd.TRIM, Cmd.CACHE, Cmd.WRITE_ZEROES):
                assert not await client.error(command, 0, 0), command
            assert await client.error(Cmd.BLOCK_STATUS, 0, 0) == Errno.EINVAL
            assert not seen
            assert not await client.error(Cmd.WRITE, 3, data=b"abc")
            assert await client.read(2, 5) == b"\0abc\0"
    assert all(request.offset % 512 == request.length % 512 == 0 for request in seen)


async def test_zeroes_go_in_pieces_and_the_first_error_ends_them() -> None:
    size = 96 * MIB
    pieces: list[tuple[int, int]] = []

    def on_reply(request: Request, reply: list[bytes]) -> list[bytes]:
        pieces.append((request.offset, request.length))
        return reply

    class Failing(MemoryDisk):
        async def zero(self, offset: int, length: int, **how: bool) -> None:
            if offset == 32 * MIB:
                raise OSError(Errno.EIO, "a bad block")
            await super().zero(offset, length, **how)

    failing = Failing(size)
    await failing.write(0, b"x" * size)
    server = Server({"": failing}, faults=Faults(on_reply=on_reply))
    async with gateway_before(server) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go()
            assert await client.error(Cmd.WRITE_ZEROES, 0, size) == Errno.EIO
    assert pieces[:2] == [(0, 32 * MIB), (32 * MIB, 32 * MIB)]
    assert not any(await failing.read(0, 32 * MIB))
    assert bytes(await failing.read(64 * MIB, 4)) == b"xxxx"


async def test_a_list_may_be_two_seconds_old(autojump_clock: trio.testing.MockClock) -> None:
    exports = {"old": MemoryDisk(SIZE)}
    server = Server(exports)

    async def listed() -> set[str]:
        client = gateway.client()
        async with client.stream:
            await client.greeting()
            client.negotiation.list_exports()
            return {export.name for export in (await client.answered()).exports}

    async with gateway_before(server, seconds=60) as gateway:
        assert await listed() == {"old"}
        exports["new"] = MemoryDisk(SIZE)
        assert await listed() == {"old"}
        client = gateway.client()
        async with client.stream:
            assert (await client.go("new")).export is not None  # and is there all the same
        await trio.sleep(LISTING_SECONDS + 1)
        assert await listed() == {"old", "new"}


async def test_a_name_that_is_none_is_left_out_of_the_list(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server({"good": MemoryDisk(SIZE)})
    listed = [ListedExport(Bytes(b"caf\xe9\n")), ListedExport("good", "words")]
    server.listed = lambda: listed  # type: ignore[method-assign]
    with structlog.testing.capture_logs() as lines:
        async with gateway_before(server, seconds=60) as gateway:
            for _ in range(2):
                client = gateway.client()
                async with client.stream:
                    await client.greeting()
                    client.negotiation.list_exports()
                    assert (await client.answered()).exports == (ListedExport("good", "words"),)
                await trio.sleep(LISTING_SECONDS + 1)
    [said] = [line for line in lines if line["event"] == "exports left out of the list"]
    assert (said["names"], said["count"]) == ([r"caf\xe9\n"], 1)

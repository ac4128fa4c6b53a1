"""`read-only = true`, and what becomes of dirty bitmaps under it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import structlog

from gateway.embedded import PERSONALITIES, MemoryDisk, Server
from gateway.wire.constants import BASE_ALLOCATION, DIRTY_BITMAP, Cmd, Errno, Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.limits import MIB
from tests.sessions.gateways import gateway_before

BITMAP = DIRTY_BITMAP + "backup"
SERVER = replace(PERSONALITIES["plain"], contexts=(BASE_ALLOCATION, BITMAP))
READ_ONLY = "read-only = true"
STABLE_ONLY = READ_ONLY + "\ncontexts.stable-only = true"


def server(*, read_only: bool = False) -> Server:
    return Server({"": MemoryDisk(MIB, read_only=read_only)}, SERVER)


async def test_what_changes_the_disk_is_refused() -> None:
    async with gateway_before(server(), export=READ_ONLY) as gateway:
        client = gateway.client()
        async with client.stream:
            told = await client.go()
            assert told.export is not None
            assert told.export.flags & Flag.READ_ONLY
            assert not told.export.flags & (Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES)
            assert await client.error(Cmd.WRITE, data=b"1") == Errno.EPERM
            assert await client.error(Cmd.TRIM, 0, 512) == Errno.EPERM
            assert await client.error(Cmd.WRITE_ZEROES, 0, 512) == Errno.EPERM
            assert not await client.error(Cmd.FLUSH)
            assert await client.read(0, 512) == bytes(512)


@pytest.mark.parametrize("read_only_there", [False, True])
async def test_a_bitmap_that_may_move_is_there_and_the_log_says_so(read_only_there: bool) -> None:
    with structlog.testing.capture_logs() as lines:
        async with gateway_before(server(read_only=read_only_there), export=READ_ONLY) as gateway:
            client = gateway.client()
            async with client.stream:
                await client.go(contexts=[BITMAP])
                assert [len(extents) for extents in (await client.status(0, MIB)).values()] == [1]
    warned = [line["event"] for line in lines if line["log_level"] == "warning"]
    assert warned == ([] if read_only_there else ["a dirty bitmap may change while it is read"])


async def test_a_bitmap_that_may_move_is_hidden_on_request() -> None:
    async with gateway_before(server(), export=STABLE_ONLY) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.structured()
            client.negotiation.ask_contexts("", [], select=False)
            listed = await client.answered()
            assert [context.name for context in listed.contexts] == [BASE_ALLOCATION]
            client.negotiation.ask_contexts("", [BASE_ALLOCATION, BITMAP], select=True)
            refused = await client.refused()
            assert refused.reply == Rep.ERR_POLICY  # left out, it would read as "all clean" (Q-C8)
            client.negotiation.ask_contexts("", [BASE_ALLOCATION], select=True)
            assert len((await client.answered()).contexts) == 1
            client.negotiation.go("", ())
            await client.answered()
            assert len(await client.status(0, MIB)) == 1


async def test_a_bitmap_of_a_disk_that_nobody_writes_is_stable() -> None:
    async with gateway_before(server(read_only=True), export=STABLE_ONLY) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.structured()
            client.negotiation.ask_contexts("", [], select=False)
            listed = await client.answered()
            assert [context.name for context in listed.contexts] == [BASE_ALLOCATION, BITMAP]
            client.negotiation.ask_contexts("", [BITMAP], select=True)
            assert len((await client.answered()).contexts) == 1


async def test_of_a_writable_view_everybody_knows_that_it_moves() -> None:
    async with gateway_before(server(), export="contexts.stable-only = true") as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go(contexts=[BITMAP])
            assert len(await client.status(0, MIB)) == 1

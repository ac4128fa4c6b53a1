"""What the quirks are for, end to end: a client before an embedded server that has the oddity."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.embedded import PERSONALITIES, MemoryDisk, Request, Server
from gateway.embedded.faults import Faults
from gateway.wire import limits
from gateway.wire.constants import BASE_ALLOCATION, DIRTY_BITMAP, Chunk, Cmd, CmdFlag
from tests.embedded.personalities import like_nbd_server
from tests.sessions.gateways import gateway_before

SIZE = 8 * limits.MIB
OFFSET = PERSONALITIES["qemu-3.0-offset"].offset_bytes
BITMAP = DIRTY_BITMAP + "bitmap0"
OLD_QEMU = PERSONALITIES["qemu-3.0-offset"]
DATA = bytes(range(1, 129)) * 1024


async def sparse_disk(offset: int = 0) -> MemoryDisk:
    """An image of whose part from `offset` on the first 128 KiB are data; before it is a hole."""
    disk = MemoryDisk(offset + SIZE)
    await disk.write(offset, DATA, fua=False)
    return disk


async def test_q_s6_reads_of_an_export_with_an_offset_are_right() -> None:
    server = Server({"": await sparse_disk(OFFSET)}, OLD_QEMU)
    async with gateway_before(server) as gateway:
        for extended in (False, True):
            client = gateway.client()
            async with client.stream:
                await client.go(extended=extended, contexts=[BASE_ALLOCATION, BITMAP])
                assert await client.read(0, len(DATA)) == DATA
                status = await client.ask(Cmd.BLOCK_STATUS, 0, SIZE)
                told = dict(chunk.status for chunk in status if chunk.kind != Chunk.NONE)
                assert sum(length for length, _ in told[1]) == SIZE
                assert {state for _, state in told[1]} == {0}
                assert 2 in told  # the bitmap is the server's own


async def test_q_s6_without_the_repair_would_be_wrong() -> None:
    """The embedded server really does it: else the test above proves nothing."""
    server = Server({"": await sparse_disk(OFFSET)}, OLD_QEMU)
    async with gateway_before(server, upstream='quirks = ["qemu-multi-conn-bit"]') as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go()
            assert await client.read(0, len(DATA)) == bytes(len(DATA))


async def test_trusted_allocation_is_passed_on() -> None:
    server = Server({"": await sparse_disk()}, PERSONALITIES["qemu-3.0"])
    async with gateway_before(server, upstream="trust-allocation = true") as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go(contexts=[BASE_ALLOCATION])
            status = await client.ask(Cmd.BLOCK_STATUS, 4 * limits.MIB, limits.MIB)
            assert status[0].extents == [(limits.MIB, 3)]


async def test_q_s3_bitmaps_are_listed_though_the_server_forgets_them() -> None:
    async with gateway_before(Server({"": MemoryDisk(SIZE)}, OLD_QEMU)) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.structured()
            client.negotiation.ask_contexts("", [], select=False)
            listed = await client.answered()
            assert [context.name for context in listed.contexts] == [BASE_ALLOCATION, BITMAP]


def recorded(seen: list[Request]) -> Faults:
    def on_reply(request: Request, reply: list[bytes]) -> list[bytes]:
        seen.append(request)
        return reply

    return Faults(on_reply=on_reply)


async def test_q_n2_df_is_not_sent_to_nbd_server_and_holds_all_the_same() -> None:
    seen: list[Request] = []
    server = Server({"": await sparse_disk()}, like_nbd_server(), faults=recorded(seen))
    async with gateway_before(server) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go()
            [chunk] = await client.ask(Cmd.READ, 0, 2 * limits.MIB, flags=CmdFlag.DF)
            assert chunk.data == DATA + bytes(2 * limits.MIB - len(DATA))
    assert [request.flags for request in seen if request.command == Cmd.READ] == [0]


@pytest.mark.parametrize(
    ("offset", "length", "upstream"),
    [(0, 8192, (0, 8192)), (100, 8192, (4096, 4096)), (4096, 5000, (4096, 4096)), (1, 4096, None)],
)
async def test_q_s25_trims_of_an_old_server_are_narrowed(
    offset: int, length: int, upstream: tuple[int, int] | None
) -> None:
    seen: list[Request] = []
    oldstyle = replace(PERSONALITIES["plain"], oldstyle=True)
    server = Server({"": MemoryDisk(SIZE)}, oldstyle, faults=recorded(seen))
    async with gateway_before(server) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go(structured=False)
            _, error, _ = await client.simple_reply_to(Cmd.TRIM, offset, length)
            assert not error
    assert [
        (request.offset, request.length) for request in seen if request.command == Cmd.TRIM
    ] == [upstream] * bool(upstream)

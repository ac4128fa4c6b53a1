"""The matrix: clients of every dialect before upstreams of every dialect, held to a model of the disk."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from gateway.embedded import PERSONALITIES, MemoryDisk, Personality, Server
from gateway.embedded.personality import (
    EXPORT_NAME_ONLY,
    WITHOUT_EXTENDED_HEADERS,
    WITHOUT_STRUCTURED_REPLIES,
    lacking,
)
from gateway.wire import limits
from gateway.wire.constants import SIMPLE_REPLY_MAGIC, Chunk, Cmd, CmdFlag, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes
from gateway.wire.transmission import encode_status_payload, is_error
from tests.embedded.peers import Client
from tests.sessions.gateways import Gateway, gateway_before
from tests.sessions.matrix import DIALECTS, structured, table

pytestmark = pytest.mark.real

SIZE = 80 * limits.MIB
ALLOCATION = "base:allocation"
HOLE_AND_ZERO = 3

PLAIN = PERSONALITIES["plain"]
UPSTREAMS: dict[str, Personality] = {
    "oldstyle": replace(PLAIN, oldstyle=True),
    "EXPORT_NAME": replace(PLAIN, unsupported=EXPORT_NAME_ONLY, leaves_payload=True),
    "simple": replace(PLAIN, unsupported=WITHOUT_STRUCTURED_REPLIES),
    "structured": replace(PLAIN, unsupported=WITHOUT_EXTENDED_HEADERS),
    "extended": PLAIN,
}


def bare(flags: int) -> Personality:
    """A server without what the gateway can do in its place."""
    return replace(PLAIN, flags=lambda disk, chunked: flags)


VARIANTS = {
    "as it is": PLAIN,
    "blocks of 4096, at most 1 MiB": replace(PLAIN, block_sizes=BlockSizes(4096, 4096, limits.MIB)),
    "no FUA, no WRITE_ZEROES, no DF": bare(Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_TRIM),
}


@asynccontextmanager
async def opened(gateway: Gateway, dialect: str) -> AsyncIterator[Client]:
    """A client of a dialect that has opened the default export."""
    client = gateway.client()
    async with client.stream:
        if dialect == "oldstyle":
            assert (await client.receive(152))[8:16] == bytes.fromhex("0000420281861253")
        elif dialect == "EXPORT_NAME":
            await client.greeting()
            client.negotiation.export_name("")
            await client.answered()
        else:
            contexts = (ALLOCATION,) if structured(dialect) else ()
            extended = dialect == "extended"
            await client.greeting()
            if extended:
                client.negotiation.ask_extended_headers()
                await client.answered()
            elif contexts:
                client.negotiation.ask_structured_replies()
                await client.answered()
            if contexts:
                client.negotiation.ask_contexts("", contexts, select=True)
                await client.event()  # an upstream without contexts has none to select
            client.negotiation.go("", ())
            await client.answered()
        yield client
        disc = client.framing.encode_request(Cmd.DISC, 0, 0, 0, 0)
        await client.stream.send_all(disc)
        assert await client.stream.receive_some() == b""


Told = tuple[int, bytes, dict[int, list[tuple[int, int]]]]


async def ask(
    client: Client, command: Cmd, offset: int, length: int, *, flags: int = 0, data: bytes = b""
) -> Told:
    """The error, the data and the extents of a command."""
    cookie = await client.send(command, offset, length, flags=flags, data=data)
    length = len(data) or length
    wanted = length if command is Cmd.READ else 0
    content, error, status = bytearray(b"?" * wanted), 0, {}
    simple = False
    if not client.negotiation.extended:
        head = await client.receive(16)
        simple = int.from_bytes(head[:4]) == SIMPLE_REPLY_MAGIC
        if simple:
            assert int.from_bytes(head[8:]) == cookie
            error = int.from_bytes(head[4:8])
            if wanted and not error:
                assert not client.negotiation.structured
                content[:] = await client.receive(wanted)
        else:
            client.unread(head)
    if not simple:
        for chunk in await client.reply(cookie):
            if is_error(chunk.kind):
                error = error or chunk.error
            elif chunk.kind == Chunk.OFFSET_DATA:
                at = chunk.offset - offset
                content[at : at + len(chunk.data)] = chunk.data
            elif chunk.kind == Chunk.OFFSET_HOLE:
                at, hole = chunk.offset - offset, int.from_bytes(chunk.payload[8:])
                content[at : at + hole] = bytes(hole)
            elif chunk.kind != Chunk.NONE:
                context, extents = chunk.status
                status[context] = extents
    return error, bytes(content), status


async def use(client: Client, model: bytearray, *, sizes: list[int], contexts: bool) -> None:
    """All commands, of many sizes and alignments, against a model of the disk."""
    rng = random.Random(1)
    for length in sizes:
        offset = rng.randrange(SIZE - length)
        data = rng.randbytes(min(length, 65536)) * (length // 65536 + 1)
        data = data[:length]
        flags = rng.choice([0, CmdFlag.FUA])
        assert await ask(client, Cmd.WRITE, offset, 0, flags=flags, data=data) == (0, b"", {})
        model[offset : offset + length] = data
        around = max(0, offset - 700)
        wanted = min(length + 1400, SIZE - around, 64 * limits.MIB)
        flags = CmdFlag.DF if structured_client(client) and rng.random() < 0.5 else 0
        error, content, _ = await ask(client, Cmd.READ, around, wanted, flags=flags)
        assert not error
        assert content == model[around : around + wanted], (length, offset)
        zero_at, zero = offset + length // 3, length // 2 + 1
        zero = min(zero, SIZE - zero_at)
        assert await ask(client, Cmd.WRITE_ZEROES, zero_at, zero) == (0, b"", {})
        model[zero_at : zero_at + zero] = bytes(zero)
        assert await ask(client, Cmd.FLUSH, 0, 0) == (0, b"", {})
        error, content, _ = await ask(client, Cmd.READ, around, wanted)
        assert (error, content) == (0, bytes(model[around : around + wanted]))
        if contexts:
            error, _, status = await ask(client, Cmd.BLOCK_STATUS, zero_at, zero)
            assert not error
            check_extents(status, model, zero_at, zero)
    # What is trimmed may read as anything: nothing else may change.
    assert await ask(client, Cmd.TRIM, 3 * limits.MIB + 100, limits.MIB) == (0, b"", {})
    trimmed = slice(3 * limits.MIB + 100, 4 * limits.MIB + 100)
    error, content, _ = await ask(client, Cmd.READ, 0, 8 * limits.MIB)
    assert not error
    model[trimmed] = content[trimmed]
    assert content == model[: 8 * limits.MIB]
    assert (await ask(client, Cmd.READ, SIZE - 1, 2))[0] == Errno.EINVAL
    assert (await ask(client, Cmd.WRITE, SIZE - 1, 0, data=b"xy"))[0] == Errno.ENOSPC


def structured_client(client: Client) -> bool:
    return client.negotiation.structured


def check_extents(
    status: dict[int, list[tuple[int, int]]], model: bytearray, offset: int, length: int
) -> None:
    assert list(status) == [1]
    at = offset
    assert sum(size for size, _ in status[1][:-1]) < length
    for size, state in status[1]:
        assert size > 0
        if state == HOLE_AND_ZERO:
            assert not any(model[at : at + size])
        at += size


@pytest.mark.parametrize("client", DIALECTS)
@pytest.mark.parametrize("upstream", DIALECTS)
async def test_every_client_is_served_by_every_upstream(upstream: str, client: str) -> None:
    disk = MemoryDisk(SIZE)
    server = Server({"": disk}, UPSTREAMS[upstream])
    listen = 'style = "oldstyle"' if client == "oldstyle" else ""
    model = bytearray(SIZE)
    async with (
        gateway_before(server, listen=listen) as gateway,
        opened(gateway, client) as peer,
    ):
        contexts = structured(upstream) and structured(client)
        await use(peer, model, sizes=[1, 512, 4097, 3 * limits.MIB], contexts=contexts)
    assert bytes(await disk.read(0, SIZE)) == bytes(model)


@pytest.mark.parametrize("client", DIALECTS)
@pytest.mark.parametrize("upstream", ["simple", "structured", "extended"])
@pytest.mark.parametrize("variant", VARIANTS)
async def test_what_an_upstream_lacks_is_done_here(
    variant: str, upstream: str, client: str
) -> None:
    """Small and odd requests, and those of 32 and 64 MiB, before servers that take neither."""
    disk = MemoryDisk(SIZE)
    personality = replace(VARIANTS[variant], unsupported=UPSTREAMS[upstream].unsupported)
    listen = 'style = "oldstyle"' if client == "oldstyle" else ""
    model = bytearray(SIZE)
    async with (
        gateway_before(Server({"": disk}, personality), listen=listen) as gateway,
        opened(gateway, client) as peer,
    ):
        contexts = structured(upstream) and structured(client)
        long = [64 * limits.MIB] if personality.block_sizes is not PLAIN.block_sizes else []
        sizes = [1, 512, 5000, 33 * limits.KIB, *long]
        await use(peer, model, sizes=sizes, contexts=contexts)
    assert bytes(await disk.read(0, SIZE)) == bytes(model)


CUT_READS = {
    # what the upstream is, and a READ that it cannot take as it is
    "over its maximum": (BlockSizes(1, 4096, limits.MIB), 0, limits.MIB + 1),
    "across a multiple of its maximum": (BlockSizes(1, 4096, limits.MIB), limits.MIB - 256, 512),
    "not aligned": (BlockSizes(4096, 4096, 65536), 1, 65536),
}


@pytest.mark.parametrize("client", ["structured", "extended"])
@pytest.mark.parametrize("upstream", ["simple", "structured", "extended"])
@pytest.mark.parametrize(("block_sizes", "offset", "length"), CUT_READS.values(), ids=CUT_READS)
@pytest.mark.parametrize("df", [True, False], ids=["has DF", "has no DF"])
async def test_a_read_with_df_comes_in_one_chunk(
    df: bool, block_sizes: BlockSizes, offset: int, length: int, upstream: str, client: str
) -> None:
    disk = MemoryDisk(8 * limits.MIB)
    data = random.Random(1).randbytes(length)
    await disk.write(offset, data, fua=False)
    personality = replace(UPSTREAMS[upstream], block_sizes=block_sizes)
    if not df:
        personality = replace(personality, flags=lacking(Flag.SEND_DF))
    async with (
        gateway_before(Server({"": disk}, personality)) as gateway,
        opened(gateway, client) as peer,
    ):
        chunks = await peer.ask(Cmd.READ, offset, length, flags=CmdFlag.DF)
        contents = [chunk for chunk in chunks if chunk.kind != Chunk.NONE]
        assert [(chunk.offset, chunk.data) for chunk in contents] == [(offset, data)]


async def test_neighbours_in_a_block_are_kept_from_eight_connections_at_once() -> None:
    """512-byte writes, interleaved so that every block of 4096 bytes is written from all of them."""
    blocks, minimum = 64, 4096
    disk = MemoryDisk(SIZE)
    server = Server({"": disk}, VARIANTS["blocks of 4096, at most 1 MiB"])
    async with gateway_before(server) as gateway, trio.open_nursery() as nursery:

        async def write_every_eighth(sector: int) -> None:
            async with opened(gateway, "structured") as client:
                cookies = {
                    await client.send(
                        Cmd.WRITE, block * minimum + sector * 512, data=bytes([sector + 1]) * 512
                    )
                    for block in range(blocks)
                }
                for _ in range(blocks):
                    cookie, error, _ = await client.simple_reply()
                    assert not error
                    cookies.remove(cookie)

        for sector in range(8):
            nursery.start_soon(write_every_eighth, sector)
    one = b"".join(bytes([sector + 1]) * 512 for sector in range(8))
    assert bytes(await disk.read(0, blocks * minimum)) == one * blocks


async def test_long_lengths_of_an_extended_client_reach_a_structured_upstream() -> None:
    size = 8 * limits.GIB
    disk = MemoryDisk(size)
    await disk.write(size - 100, b"x" * 100, fua=False)
    server = Server({"": disk}, UPSTREAMS["structured"])
    async with gateway_before(server) as gateway, opened(gateway, "extended") as client:
        told = await ask(client, Cmd.WRITE_ZEROES, limits.GIB, size - limits.GIB - 50)
        assert told == (0, b"", {})
        error, content, _ = await ask(client, Cmd.READ, size - 100, 100)
        assert (error, content) == (0, bytes(50) + b"x" * 50)
        at = 0
        while at < size:
            error, _, status = await ask(client, Cmd.BLOCK_STATUS, at, size - at)
            assert not error
            at += sum(length for length, _ in status[1])
        assert at == size


@pytest.mark.parametrize("upstream", ["structured", "extended"])
async def test_block_status_for_some_contexts(upstream: str) -> None:
    names = (ALLOCATION, "qemu:dirty-bitmap:b")
    personality = replace(UPSTREAMS[upstream], contexts=names)
    async with gateway_before(Server({"": MemoryDisk(SIZE)}, personality)) as gateway:
        client = gateway.client()
        async with client.stream:
            answered = await client.go(extended=True, contexts=names)
            assert answered.export is not None
            assert answered.export.flags & Flag.BLOCK_STATUS_PAYLOAD

            async def subset(length: int, ids: list[int]) -> Told:
                data = encode_status_payload(length, ids)
                return await ask(client, Cmd.BLOCK_STATUS, 0, 0, data=data)

            for ids in ([1], [2], [1, 2], [2, 1]):
                error, _, status = await subset(4096, ids)
                assert not error
                assert sorted(status) == sorted(ids)
            for length, ids in [
                (4096, [3]),
                (4096, [1, 1]),
                (4096, []),
                (SIZE + 1, [1]),
                (0, [1]),
            ]:
                assert (await subset(length, ids))[0] == Errno.EINVAL
            assert (await ask(client, Cmd.BLOCK_STATUS, 0, 0, data=bytes(11)))[0] == Errno.EINVAL
            assert not (await ask(client, Cmd.BLOCK_STATUS, 0, 4096))[0]
            # A payload where none is allowed is read, and the connection lives.
            told = await ask(client, Cmd.TRIM, 0, 0, data=b"12345")
            assert told[0] == Errno.EINVAL
            assert not (await ask(client, Cmd.READ, 0, 512))[0]


async def test_status_payload_is_told_in_info_and_where_contexts_are() -> None:
    async with gateway_before(Server({"": MemoryDisk(SIZE)})) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.greeting()
            client.negotiation.ask_extended_headers()
            await client.answered()
            flags = []
            for ask_again in (client.negotiation.ask_info, client.negotiation.go):
                ask_again("", ())
                told = await client.answered()
                assert told.export is not None
                flags.append(told.export.flags)
            # A GO right behind the INFO: "MUST give the same information".
            assert flags[0] == flags[1]
            assert flags[0] & Flag.BLOCK_STATUS_PAYLOAD
        client = gateway.client()
        async with client.stream:
            told = await client.go(extended=True)
            assert told.export is not None
            assert not told.export.flags & Flag.BLOCK_STATUS_PAYLOAD


def test_the_table_in_the_docs_is_this_one() -> None:
    manual = Path(__file__).parents[2] / "docs" / "behaviour.md"
    assert table() in manual.read_text()

"""The personality qemu-3.0, trait by trait; the numbers are nbd-reference.md's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.embedded import PERSONALITIES, MemoryDisk, Server, make_server
from gateway.embedded.dirty import GRAIN_BYTES
from gateway.embedded.disk import BLOCK_BYTES
from gateway.protocol.client_role import Answered, Style
from gateway.quirks import Evidence, recognised
from gateway.uri import Legacy
from gateway.wire.constants import Chunk, Cmd, CmdFlag, Errno, HandshakeFlag, Info, Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes
from gateway.wire.limits import MIB
from tests.embedded.peers import Client, connected

QEMU = PERSONALITIES["qemu-3.0"]
WORST = PERSONALITIES["qemu-3.0-incoherent"]
BITMAP = "qemu:dirty-bitmap:bitmap0"
SIZE = 64 * MIB


def qemu(*, read_only: bool = False) -> Server:
    return Server({"": MemoryDisk(SIZE, read_only=read_only)}, QEMU)


def told_flags(told: Answered) -> Flag:
    assert told.export is not None
    return Flag(told.export.flags)


@pytest.mark.parametrize("read_only", [False, True])
async def test_f1_the_fingerprint(read_only: bool) -> None:
    async with connected(qemu(read_only=read_only)) as client:
        await client.structured()
        client.negotiation.ask_info("", ())
        info = await client.refused()
        client.negotiation.go("", (Info.BLOCK_SIZE,))
        go = await client.answered()
        assert client.negotiation.handshake_flags == (
            HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
        )
        evidence = Evidence(
            Style.FIXED_NEWSTYLE, told_flags(go), go.block_sizes, unasked_info=info.reply
        )
        assert [quirk.name for quirk in recognised(evidence)] == ["qemu-multi-conn-bit"]


@pytest.mark.parametrize("read_only", [False, True])
async def test_q_s1_bit_8_is_set_and_bits_10_and_11_are_not(read_only: bool) -> None:
    async with connected(qemu(read_only=read_only)) as client:
        flags = told_flags(await client.go())
        assert flags & Flag.CAN_MULTI_CONN
        assert not flags & (Flag.SEND_CACHE | Flag.SEND_FAST_ZERO)


async def test_at_worst_a_client_that_believes_bit_8_reads_old_data() -> None:
    server = Server({"": MemoryDisk(SIZE)}, WORST)
    async with connected(server) as writer, connected(server) as reader:
        await writer.go()
        await reader.go()
        assert await reader.read(0, 4096) == bytes(4096)
        await writer.ask(Cmd.WRITE, 0, data=b"n" * 4096)
        assert await writer.read(0, 4096) == b"n" * 4096
        assert await reader.read(0, 4096) == bytes(4096)
        # Not even one FLUSH mends it, though CAN_MULTI_CONN promises that ...
        await writer.ask(Cmd.FLUSH)
        assert await reader.read(0, 4096) == bytes(4096)
        # ... only one on each connection.
        await reader.ask(Cmd.FLUSH)
        assert await reader.read(0, 4096) == b"n" * 4096


async def test_at_worst_a_write_is_written_through_by_fua_and_at_the_end() -> None:
    disk = MemoryDisk(SIZE)
    server = Server({"": disk}, WORST)
    async with connected(server) as client:
        await client.go()
        await client.ask(Cmd.WRITE, 0, data=b"a")
        assert bytes(await disk.read(0, 1)) == b"\0"
        await client.ask(Cmd.WRITE, 4096, data=b"b", flags=CmdFlag.FUA)
        assert bytes(await disk.read(4096, 1)) == b"b"
        assert bytes(await disk.read(0, 1)) == b"\0"
        await client.send(Cmd.DISC)
        assert await client.rest() == b""
    assert bytes(await disk.read(0, 1)) == b"a"


async def test_at_worst_a_write_destroys_what_another_connection_wrote_beside_it() -> None:
    disk = MemoryDisk(SIZE)
    server = Server({"": disk}, WORST)
    async with connected(server) as one, connected(server) as other:
        await one.go()
        await other.go()
        assert await other.read(0, 1024) == bytes(1024)
        await one.ask(Cmd.WRITE, 0, data=b"1" * 512)
        await one.ask(Cmd.FLUSH)
        await other.ask(Cmd.WRITE, 512, data=b"2" * 512)
        await other.ask(Cmd.FLUSH)
    assert bytes(await disk.read(0, 1024)) == bytes(512) + b"2" * 512


async def test_q_s1_connections_are_coherent_as_the_real_ones_were() -> None:
    server = qemu()
    async with connected(server) as writer, connected(server) as reader:
        await writer.go()
        await reader.go()
        await reader.read(0, 4096)
        await writer.ask(Cmd.WRITE, 0, data=b"n" * 4096)
        assert await reader.read(0, 4096) == b"n" * 4096


async def test_q_s2_cache_is_answered_with_content() -> None:
    async with connected(qemu()) as client:
        await client.go()
        await client.ask(Cmd.WRITE, BLOCK_BYTES, data=b"x" * BLOCK_BYTES)
        hole, data = await client.ask(Cmd.CACHE, 0, 2 * BLOCK_BYTES)
        assert (hole.kind, data.kind) == (Chunk.OFFSET_HOLE, Chunk.OFFSET_DATA)
        assert data.data == b"x" * BLOCK_BYTES
        assert await client.error(Cmd.CACHE, 0, 32 * MIB + 1) == Errno.EINVAL


async def test_q_s2_cache_is_all_right_with_simple_replies() -> None:
    async with connected(qemu()) as client:
        await client.go(structured=False)
        await client.send(Cmd.CACHE, 0, 4096)
        assert await client.simple_reply() == (1, 0, b"")


async def listed(client: Client, *queries: str) -> list[str]:
    client.negotiation.ask_contexts("", queries, select=False)
    return [context.name for context in (await client.answered()).contexts]


async def test_q_s3_the_bitmap_is_listed_only_to_those_who_ask() -> None:
    async with connected(qemu()) as client:
        await client.structured()
        assert await listed(client) == ["base:allocation"]
        assert await listed(client, "base:") == ["base:allocation"]
        assert await listed(client, "qemu:") == [BITMAP]
        assert await listed(client, "qemu:dirty-bitmap:") == [BITMAP]
        assert await listed(client, BITMAP) == [BITMAP]
        assert await listed(client, "qemu:dirty-bitmap:other") == []


async def test_q_s3_the_bitmap_tells_what_was_written() -> None:
    async with connected(qemu()) as client:
        await client.go(contexts=["base:allocation", BITMAP])
        await client.ask(Cmd.WRITE, GRAIN_BYTES, data=b"x")
        await client.ask(Cmd.FLUSH)
        _base, bitmap = await client.ask(Cmd.BLOCK_STATUS, 0, SIZE)
        assert bitmap.extents == [
            (GRAIN_BYTES, 0),
            (GRAIN_BYTES, 1),
            (SIZE - 2 * GRAIN_BYTES, 0),
        ]
        assert bitmap.done
        _base, bitmap = await client.ask(Cmd.BLOCK_STATUS, 0, SIZE, flags=CmdFlag.REQ_ONE)
        assert bitmap.extents == [(GRAIN_BYTES, 0)]


async def test_q_s5_base_allocation_is_one_extent() -> None:
    async with connected(qemu()) as client:
        await client.go(contexts=["base:allocation"])
        await client.ask(Cmd.WRITE, BLOCK_BYTES, data=b"x")
        (chunk,) = await client.ask(Cmd.BLOCK_STATUS, 0, 3 * BLOCK_BYTES)
        assert chunk.extents == [(BLOCK_BYTES, 3)]


async def test_q_s7_info_without_block_size_is_refused_after_all_was_told() -> None:
    async with connected(qemu()) as client:
        await client.greeting()
        client.negotiation.ask_info("", ())
        refused = await client.refused()
        assert refused.reply == Rep.ERR_BLOCK_SIZE_REQD
        assert refused.told.export is not None
        assert refused.told.export.size == SIZE
        assert refused.told.block_sizes == BlockSizes(512, 4096, 32 * MIB)
        client.negotiation.ask_info("", (Info.BLOCK_SIZE,))
        assert (await client.answered()).export is not None


@pytest.mark.parametrize(("asked", "minimum"), [((Info.BLOCK_SIZE,), 512), ((), 1)])
async def test_q_s8_the_minimum_is_512_to_those_who_ask_and_1_works(
    asked: tuple[int, ...], minimum: int
) -> None:
    async with connected(qemu()) as client:
        told = await client.go(wanted=asked)
        assert told.block_sizes == BlockSizes(minimum, 4096, 32 * MIB)
        assert await client.error(Cmd.WRITE, 3, data=b"abc") == 0
        assert await client.read(2, 5) == b"\0abc\0"


@pytest.mark.parametrize("name", ["qemu-3.0", "qemu-3.0-offset", "qemu-2.5"])
async def test_q_s9_the_size_is_rounded_up_to_512(name: str) -> None:
    server = make_server(Legacy(name, 5 * 512 + 511))
    described = server.describe("", None, structured=False)
    assert described.size == 6 * 512
    async with connected(server) as client:
        await client.greeting()
        client.negotiation.export_name("")
        await client.answered()
        await client.send(Cmd.WRITE, 5 * 512, data=b"t" * 512)
        assert await client.simple_reply() == (1, 0, b"")
        assert await client.simple_reply_to(Cmd.READ, 5 * 512, 512) == (2, 0, b"t" * 512)


async def test_q_s6_with_an_offset_data_reads_as_the_holes_of_another_place() -> None:
    async with connected(make_server(Legacy("qemu-3.0-offset", SIZE))) as client:
        told = await client.go(contexts=["base:allocation"])
        assert told.export is not None
        assert told.export.size == SIZE
        await client.ask(Cmd.WRITE, 0, data=b"d" * BLOCK_BYTES)
        [hole] = await client.ask(Cmd.READ, 0, BLOCK_BYTES)
        assert hole.kind == Chunk.OFFSET_HOLE
        [status] = await client.ask(Cmd.BLOCK_STATUS, 0, BLOCK_BYTES)
        assert status.extents == [(BLOCK_BYTES, 3)]
        [data] = await client.ask(Cmd.READ, 0, BLOCK_BYTES, flags=CmdFlag.DF)
        assert data.data == b"d" * BLOCK_BYTES


async def test_one_client_at_a_time_is_spoken_to() -> None:
    """As with `-e 1`, the default: who believes bit 8 waits for an answer to its second connection."""
    server = Server({"": MemoryDisk(SIZE)}, PERSONALITIES["qemu-3.0-alone"])
    greeted = trio.Event()

    async with connected(server) as first:
        assert told_flags(await first.go()) & Flag.CAN_MULTI_CONN
        async with connected(server) as second, trio.open_nursery() as nursery:

            async def wait_for_a_greeting() -> None:
                await second.greeting()
                greeted.set()

            nursery.start_soon(wait_for_a_greeting)
            await wait_all_tasks_blocked()
            assert await first.read(0, 512) == bytes(512)
            assert not greeted.is_set()
            await first.send(Cmd.DISC)
            await greeted.wait()


@pytest.mark.parametrize(
    ("command", "offset", "length", "flags"),
    [
        (Cmd.WRITE, SIZE - 1, 2, 0),
        (Cmd.WRITE_ZEROES, SIZE - 1, 2, 0),
        (Cmd.TRIM, SIZE - 1, 2, 0),
        (Cmd.READ, SIZE, 1, 0),
        (Cmd.READ, 0, 32 * MIB + 1, 0),
        (Cmd.WRITE_ZEROES, 0, 512, CmdFlag.FAST_ZERO),
        (Cmd.BLOCK_STATUS, 0, 512, 0),
        (77, 0, 0, 0),
    ],
)
async def test_q_s12_every_refusal_is_einval(
    command: int, offset: int, length: int, flags: int
) -> None:
    async with connected(qemu()) as client:
        await client.go()
        data = bytes(length) if command == Cmd.WRITE else b""
        assert await client.error(command, offset, length, flags=flags, data=data) == Errno.EINVAL


@pytest.mark.parametrize("command", [Cmd.WRITE, Cmd.TRIM, Cmd.WRITE_ZEROES])
async def test_q_s12_and_q_s18_a_read_only_export(command: Cmd) -> None:
    async with connected(qemu(read_only=True)) as client:
        flags = told_flags(await client.go())
        assert flags & Flag.READ_ONLY
        assert flags & Flag.SEND_TRIM
        assert flags & Flag.SEND_WRITE_ZEROES
        data = b"x" * 512 if command == Cmd.WRITE else b""
        assert await client.error(command, 0, 512, data=data) == Errno.EINVAL


async def test_q_s13_a_long_write_is_refused_and_the_connection_closed() -> None:
    async with connected(qemu()) as client:
        await client.go()
        cookie = await client.send(Cmd.WRITE, 0, 32 * MIB + 1)
        (refused,) = await client.reply(cookie)
        assert refused.error == Errno.EINVAL
        assert await client.rest() == b""


async def test_q_s19_a_name_of_257_bytes_is_invalid() -> None:
    longest = "é" * 128
    server = Server({longest: MemoryDisk(SIZE), longest + "x": MemoryDisk(SIZE)}, QEMU)
    async with connected(server) as client:
        await client.structured()
        client.negotiation.ask_contexts(longest + "x", (), select=False)
        assert (await client.refused()).reply == Rep.ERR_INVALID
        client.negotiation.ask_info(longest + "x", (Info.BLOCK_SIZE,))
        assert (await client.refused()).reply == Rep.ERR_INVALID
        client.negotiation.ask_info(longest, (Info.BLOCK_SIZE,))
        assert (await client.answered()).export is not None
    async with connected(server) as client:
        await client.greeting()
        client.negotiation.export_name(longest + "x")
        with pytest.raises(EOFError):
            await client.event()


async def test_q_s11_without_a_name_it_greets_oldstyle_with_bit_8() -> None:
    server = Server({"": MemoryDisk(SIZE)}, replace(QEMU, oldstyle=True))
    async with connected(server) as client:
        greeted = await client.greeting()
        assert greeted.style is Style.OLDSTYLE
        assert greeted.export is not None
        assert greeted.export.flags & Flag.CAN_MULTI_CONN

"""Old servers, as new clients see them through the gateway: everything works, whatever the server lacks.

Each has a test beside it that goes to the server directly and finds what is wrong there: without it the first
would prove nothing.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import structlog
import trio
import trio.testing

from gateway.embedded import PERSONALITIES, MemoryDisk, Personality, Request, Server
from gateway.embedded.faults import Faults
from gateway.embedded.personality import PLAIN, WITHOUT_EXTENDED_HEADERS
from gateway.upstream.ladder import Rung
from gateway.wire.constants import BASE_ALLOCATION, SIMPLE_REPLY_MAGIC, Cmd, CmdFlag, Errno, Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.limits import GIB, MIB
from tests.embedded.peers import Client, connected
from tests.sessions.gateways import gateway_before

SIZE = 256 * MIB
LEGACY = sorted(PERSONALITIES.keys() - {"plain"})
DATA = bytes(range(1, 256)) * (3 * MIB // 255)


async def told_error(
    client: Client, command: int, offset: int, length: int = 0, *, data: bytes = b""
) -> int:
    """The error of a reply, whatever its framing."""
    cookie = await client.send(command, offset, length, data=data)
    magic = await client.receive(4)
    client.unread(magic)
    if int.from_bytes(magic) == SIMPLE_REPLY_MAGIC:
        return (await client.simple_reply())[1]
    *_, last = await client.reply(cookie)
    return last.error if last.kind & 0x8000 else 0


async def read(client: Client, offset: int, length: int) -> bytes:
    if client.negotiation.structured or client.negotiation.extended:
        return await client.read(offset, length)
    _, error, data = await client.simple_reply_to(Cmd.READ, offset, length)
    assert not error
    return data


@pytest.mark.parametrize("framing", ["simple", "structured", "extended"])
@pytest.mark.parametrize("legacy", LEGACY)
async def test_every_client_before_every_old_server(legacy: str, framing: str) -> None:
    """Splitting (Q-N1, Q-S24), emulated commands, the ladder (Q-N8, Q-S23), GO in place of INFO (Q-N21)."""
    personality = PERSONALITIES[legacy]
    disk = MemoryDisk(SIZE + personality.offset_bytes)
    async with gateway_before(Server({"": disk}, personality)) as gateway:
        client = gateway.client()
        async with client.stream:
            told = await client.go(
                structured=framing == "structured", extended=framing == "extended"
            )
            assert told.export is not None
            assert told.export.size == SIZE
            assert told.export.flags & Flag.SEND_WRITE_ZEROES
            assert not await told_error(client, Cmd.WRITE, 1, data=DATA)
            assert await read(client, 1, len(DATA)) == DATA
            assert not await told_error(client, Cmd.WRITE, 127 * MIB, data=b"\1" * MIB)
            assert not await told_error(client, Cmd.WRITE, 128 * MIB, data=b"\2")
            assert not await told_error(client, Cmd.WRITE_ZEROES, 4096, 128 * MIB - 4096)
            assert await read(client, 127 * MIB, MIB + 1) == bytes(MIB) + b"\2"
            assert not await told_error(client, Cmd.TRIM, 100, 300)
            assert await read(client, 1, 99) == DATA[:99]
            assert await read(client, 400, 3696) == DATA[399:4095]
            assert not await told_error(client, Cmd.FLUSH, 0)
            assert await told_error(client, Cmd.WRITE, SIZE, data=b"\1") == Errno.ENOSPC
            assert await told_error(client, Cmd.READ, SIZE, 1) == Errno.EINVAL
    assert bytes(await disk.read(personality.offset_bytes, 100)) == b"\0" + DATA[:99]


async def test_q_s24_directly_a_long_request_is_refused() -> None:
    async with connected(Server({"": MemoryDisk(SIZE)}, PERSONALITIES["qemu-2.5"])) as client:
        await client.greeting()
        client.negotiation.export_name("")
        await client.answered()
        _, error, _ = await client.simple_reply_to(Cmd.READ, 0, MIB + 1)
        assert error == Errno.EINVAL


async def test_q_s25_directly_a_trim_takes_more_than_it_is_told() -> None:
    disk = MemoryDisk(SIZE)
    await disk.write(0, b"\1" * 8192, fua=False)
    async with connected(Server({"": disk}, PERSONALITIES["qemu-2.5"])) as client:
        await client.greeting()
        client.negotiation.export_name("")
        await client.answered()
        _, error, _ = await client.simple_reply_to(Cmd.TRIM, 100, 200)
        assert not error
    assert bytes(await disk.read(0, 8192)) == bytes(4096) + b"\1" * 4096


async def test_directly_what_is_counted_in_sectors_goes_to_the_wrong_place() -> None:
    """The quirk `qemu-sectors`."""
    disk = MemoryDisk(SIZE)
    async with connected(Server({"": disk}, PERSONALITIES["qemu-2.5"])) as client:
        await client.greeting()
        client.negotiation.export_name("")
        await client.answered()
        assert not await told_error(client, Cmd.WRITE, 5000, data=b"\1" * 1000)
        _, error, data = await client.simple_reply_to(Cmd.READ, 5000, 1000)
        assert (error, data) == (0, b"\1" * 512 + bytes(488))
    assert bytes(await disk.read(4608, 1024)) == b"\1" * 512 + bytes(512)


@pytest.mark.parametrize(
    ("legacy", "size", "minimum"),
    [
        (PERSONALITIES["qemu-2.5"], MIB, 512),
        (replace(PLAIN, oldstyle=True), MIB, 512),
        (PERSONALITIES["nbd-server-3.14"], MIB, 512),
        (PERSONALITIES["nbd-server-3.14"], MIB + 777, 1),
        (replace(PLAIN, oldstyle=True), 100, 1),
        (PERSONALITIES["nbd-server-3.24"], MIB + 777, 1),  # it knows INFO
    ],
    ids=["qemu-2.5", "oldstyle", "nbd-server-3.14", "odd size", "less than a sector", "with INFO"],
)
async def test_a_server_that_cannot_tell_block_sizes_is_sent_sectors(
    legacy: Personality, size: int, minimum: int
) -> None:
    """And the tail of the export, as far as it goes. Clients are told so, and served whatever they send."""
    asked: list[Request] = []

    def on_reply(request: Request, reply: list[bytes]) -> list[bytes]:
        asked.append(request)
        return reply

    disk = MemoryDisk(size)
    model = bytearray(size)
    server = Server({"": disk}, legacy, faults=Faults(on_reply=on_reply))
    random = Random(size)
    async with gateway_before(server) as gateway:
        client = gateway.client()
        async with client.stream:
            told = await client.go()
            assert told.export is not None
            assert told.block_sizes is not None
            assert (told.export.size, told.block_sizes.minimum) == (size, minimum)
            for turn in range(60):
                length = random.randint(1, min(size, 3000))
                offset = random.choice([0, size - length, random.randint(0, size - length)])
                fill = bytes([turn]) * length
                match turn % 3:
                    case 0:
                        assert not await told_error(client, Cmd.WRITE_ZEROES, offset, length)
                        model[offset : offset + length] = bytes(length)
                    case _:
                        assert not await told_error(client, Cmd.WRITE, offset, data=fill)
                        model[offset : offset + length] = fill
                around = max(0, offset - 100), min(size, offset + length + 100)
                assert await read(client, around[0], around[1] - around[0]) == model[slice(*around)]
    assert bytes(await disk.read(0, size)) == model
    if legacy is not PERSONALITIES["nbd-server-3.24"]:
        ends = [request.offset + request.length for request in asked]
        assert all(not request.offset % 512 for request in asked)
        assert all(not end % 512 or end == size for end in ends)


async def test_q_s23_directly_an_option_ends_the_connection() -> None:
    async with connected(Server({"": MemoryDisk(SIZE)}, PERSONALITIES["qemu-2.5"])) as client:
        await client.greeting()
        client.negotiation.ask_structured_replies()
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await client.event()


async def test_q_n1_directly_only_64_mib_are_zeroed() -> None:
    disk = MemoryDisk(SIZE)
    await disk.write(64 * MIB, b"\1", fua=False)
    async with connected(Server({"": disk}, PERSONALITIES["nbd-server-3.24"])) as client:
        await client.go(structured=False)
        _, error, _ = await client.simple_reply_to(Cmd.WRITE_ZEROES, 0, 128 * MIB)
        assert not error
    assert bytes(await disk.read(64 * MIB, 1)) == b"\1"


async def test_q_n21_directly_info_says_size_0_and_nothing_more() -> None:
    async with connected(
        Server({"": MemoryDisk(SIZE)}, PERSONALITIES["nbd-server-3.24"])
    ) as client:
        await client.greeting()
        client.negotiation.ask_info("", (3,))
        told = await client.answered()
        assert told.export is not None
        assert (told.export.size, told.block_sizes, told.name) == (0, None, None)


async def test_q_s7_an_info_that_asks_for_nothing_is_answered() -> None:
    async with gateway_before(Server({"": MemoryDisk(SIZE)}, PERSONALITIES["qemu-3.0"])) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.greeting()
            client.negotiation.ask_info("", ())
            told = await client.answered()
            assert told.export is not None
            assert told.export.size == SIZE


async def test_q_s19_a_name_that_is_too_long_there_is_refused_and_the_client_stays() -> None:
    async with gateway_before(Server({"": MemoryDisk(SIZE)}, PERSONALITIES["qemu-3.0"])) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.greeting()
            client.negotiation.go("n" * 300, ())
            assert (await client.refused()).reply == Rep.ERR_INVALID
            client.negotiation.go("", ())
            await client.answered()


async def test_q_n21_size_0_of_an_info_is_not_believed() -> None:
    server = Server({"": MemoryDisk(SIZE)}, PERSONALITIES["nbd-server-3.24"])
    async with gateway_before(server) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.greeting()
            client.negotiation.ask_info("", ())
            told = await client.answered()
            assert told.export is not None
            assert told.export.size == SIZE
            client.negotiation.go("", ())
            await client.answered()
    assert server.connections == 1  # the link that the INFO opened is the one that the GO got


def like_old_nbdkit(seen: list[Request], size: int = SIZE) -> Server:
    flags = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_FUA | Flag.SEND_TRIM | Flag.SEND_DF
    personality = replace(
        PERSONALITIES["plain"],
        unsupported=WITHOUT_EXTENDED_HEADERS,
        block_sizes=None,
        tells_names=False,
        flags=lambda disk, structured: int(flags),
    )

    def on_reply(request: Request, reply: list[bytes]) -> list[bytes]:
        seen.append(request)
        return reply

    return Server({"": MemoryDisk(size)}, personality, faults=Faults(on_reply=on_reply))


@pytest.mark.parametrize("extended", [False, True])
async def test_q_k1_a_status_is_asked_for_one_extent_at_a_time(extended: bool) -> None:
    seen: list[Request] = []
    async with gateway_before(like_old_nbdkit(seen)) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go(extended=extended, contexts=[BASE_ALLOCATION])
            assert await client.status(0, MIB) == {1: [(MIB, 3)]}
    [request] = seen
    assert request.flags == CmdFlag.REQ_ONE


async def test_q_k7_a_second_selection_is_made_on_another_connection() -> None:
    server = Server({"": MemoryDisk(SIZE)}, PERSONALITIES["plain"])
    async with gateway_before(server) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.structured()
            client.negotiation.ask_contexts("", [BASE_ALLOCATION], select=True)
            assert len((await client.answered()).contexts) == 1
            client.negotiation.ask_contexts("", ["x:y"], select=True)
            assert not (await client.answered()).contexts
            assert server.connections == 2


async def test_q_s30_a_server_that_hung_up_on_a_slow_client_is_dialled_anew(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server({"": MemoryDisk(SIZE)}, PERSONALITIES["plain"], handshake_seconds=2)
    async with gateway_before(server, handshake_seconds=100) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.structured()
            client.negotiation.ask_contexts("", [BASE_ALLOCATION], select=True)
            await client.answered()
            await trio.sleep(3)
            client.negotiation.go("", ())
            await client.answered()
            assert await client.status(0, 4096) == {1: [(4096, 3)]}
    assert server.connections == 2
    assert (
        gateway.service.servers["main"].ladder.first(trio.current_time()) == Rung.FULL
    )  # time is to blame, not an option


async def test_each_repair_is_logged_once_and_counted() -> None:
    server = Server({"": MemoryDisk(SIZE)}, PERSONALITIES["qemu-3.0"])
    with structlog.testing.capture_logs() as lines:
        async with gateway_before(server) as gateway:
            for _ in range(3):
                client = gateway.client()
                async with client.stream:
                    await client.go()
    said = [line["quirk"] for line in lines if line["event"] == "repairing"]
    assert sorted(said) == ["qemu-multi-conn-bit", "qemu-offset-reads"]
    told = gateway.service.servers["main"].told
    assert told.repaired == dict.fromkeys(said, 3)
    assert told.cleared == {"CAN_MULTI_CONN": 3}


async def test_q_l8_a_trim_of_almost_4_gib_goes_in_pieces() -> None:
    seen: list[Request] = []
    length = 4 * GIB - 512
    async with gateway_before(like_old_nbdkit(seen, 8 * GIB)) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go(structured=False)
            _, error, _ = await client.simple_reply_to(Cmd.TRIM, 0, length)
            assert not error
    assert [request.offset for request in seen if request.command == Cmd.TRIM] == [
        number * GIB for number in range(4)
    ]
    assert sum(request.length for request in seen if request.command == Cmd.TRIM) == length

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import pytest
import trio

from gateway.embedded import Faults, MemoryDisk, Request, Server
from gateway.wire import handshake, transmission
from gateway.wire.constants import Chunk, Cmd, Errno, Opt
from gateway.wire.limits import MIB
from tests.embedded.peers import connected

SIZE = 1 * MIB


def broken(faults: Faults) -> Server:
    return Server({"": MemoryDisk(SIZE)}, faults=faults)


CONVERSATION = (
    handshake.CLIENT_FLAGS.pack(3)
    + handshake.encode_option(Opt.STRUCTURED_REPLY)
    + handshake.encode_option(Opt.GO, handshake.encode_info_request("", ()))
    + transmission.encode_request(Cmd.WRITE, 0, 1, 0, 5, b"hello")
    + transmission.encode_request(Cmd.READ, 0, 2, 0, 7)
    + transmission.encode_request(Cmd.READ, 0, 3, SIZE, 1)
    + transmission.DISC
)


async def converse(server: Server) -> bytes:
    async with connected(server) as client:
        await client.stream.send_all(CONVERSATION)
        try:
            return await client.rest()
        except trio.BrokenResourceError:
            return b"reset"


async def test_cut_at_every_byte_of_a_conversation() -> None:
    whole = await converse(Server({"": MemoryDisk(SIZE)}))
    assert whole.startswith(b"NBDMAGIC")
    assert b"hello\0\0" in whole
    for count in range(len(whole) + 1):
        async with connected(broken(Faults(cut_after_bytes=count))) as client:
            await client.stream.send_all(CONVERSATION)
            received = await client.receive(count)
            assert received == whole[:count]
            # Nothing more, whether by FIN or, as we had said more than it read, by RST.
            with suppress(trio.BrokenResourceError):
                assert await client.rest() == b""


async def test_cut_counted_from_transmission() -> None:
    faults = Faults(cut_after_bytes=18, count_from_transmission=True)
    async with connected(broken(faults)) as client:
        await client.go(structured=False)
        await client.send(Cmd.READ, 0, 4)
        assert await client.receive(18) == transmission.encode_simple_reply(1) + b"\0\0"
        assert await client.rest() == b""


async def test_cut_before_transmission_begins() -> None:
    faults = Faults(cut_after_bytes=0, count_from_transmission=True)
    async with connected(broken(faults)) as client:
        await client.go()
        assert await client.rest() == b""


@pytest.mark.parametrize("count", [0, 5, 18, 60])
async def test_stall_in_negotiation(count: int, autojump_clock: trio.abc.Clock) -> None:
    async with connected(broken(Faults(stall_after_bytes=count))) as client:
        await client.stream.send_all(CONVERSATION)
        assert len(await client.receive(count)) == count
        with trio.move_on_after(1000) as patience:
            await client.rest()
        assert patience.cancelled_caught


async def test_stall_in_transmission(autojump_clock: trio.abc.Clock) -> None:
    faults = Faults(stall_after_bytes=3, count_from_transmission=True)
    async with connected(broken(faults)) as client:
        await client.go()
        for _ in range(100):
            await client.send(Cmd.READ, 0, 4096)
        await client.receive(3)
        with trio.move_on_after(1000) as patience:
            await client.rest()
        assert patience.cancelled_caught


async def test_faults_of_the_nth_connection() -> None:
    def faults(number: int) -> Faults:
        return Faults(cut_after_bytes=9) if number == 1 else Faults()

    server = Server({"": MemoryDisk(SIZE)}, faults=faults)
    whole = await converse(server)
    assert await converse(server) in (whole[:9], b"reset")
    assert await converse(server) == whole
    assert server.connections == 3


async def test_close_on_command() -> None:
    async with connected(broken(Faults(close_on_command=Cmd.FLUSH))) as client:
        await client.go()
        await client.ask(Cmd.WRITE, 0, data=b"x")
        await client.send(Cmd.FLUSH)
        assert await client.rest() == b""


async def test_never_reply() -> None:
    async with connected(broken(Faults(never_reply=frozenset({Cmd.WRITE})))) as client:
        await client.go()
        for _ in range(200):
            await client.send(Cmd.WRITE, 0, data=b"x")
        assert await client.read(0, 2) == b"x\0"
        await client.send(Cmd.DISC)
        assert await client.rest() == b""


async def test_delay() -> None:
    gate = trio.Event()

    def delay(request: Request) -> trio.Event | None:
        return gate if request.command == Cmd.WRITE else None

    async with connected(broken(Faults(delay=delay))) as client:
        await client.go()
        write = await client.send(Cmd.WRITE, 0, data=b"x")
        # It is carried out, and not answered.
        assert await client.read(0, 1) == b"x"
        gate.set()
        assert [chunk.kind for chunk in await client.reply(write)] == [Chunk.NONE]


async def test_a_reply_is_replaced() -> None:
    def unknown_cookie(request: Request, _reply: list[bytes]) -> Iterable[bytes]:
        yield transmission.encode_chunk(request.cookie + 1000, Chunk.NONE)

    async with connected(broken(Faults(on_reply=unknown_cookie))) as client:
        await client.go()
        cookie = await client.send(Cmd.FLUSH)
        assert (await client.chunk())[0] == cookie + 1000


async def test_replies_are_reordered() -> None:
    kept: list[bytes] = []

    def swap(_request: Request, reply: list[bytes]) -> Iterable[bytes]:
        if not kept:
            kept.extend(reply)
            return []
        return [*reply, *kept]

    async with connected(broken(Faults(on_reply=swap))) as client:
        await client.go()
        first = await client.send(Cmd.READ, 0, 4)
        second = await client.send(Cmd.FLUSH)
        await client.reply(second)
        await client.reply(first)


async def test_a_hook_is_given_whole_chunks() -> None:
    seen: list[tuple[Request, list[bytes]]] = []

    def look(request: Request, reply: list[bytes]) -> Iterable[bytes]:
        seen.append((request, reply))
        return reply

    async with connected(broken(Faults(on_reply=look))) as client:
        await client.go()
        await client.ask(Cmd.WRITE, 65536, data=b"x")
        chunks = await client.ask(Cmd.READ, 0, 131072)
        assert await client.error(Cmd.READ, SIZE, 1) == Errno.EINVAL
    (write, _), (read, reply), (refused, _) = seen
    assert (write.command, read.command, refused.offset) == (Cmd.WRITE, Cmd.READ, SIZE)
    assert [len(chunk) for chunk in reply] == [20 + len(chunk.payload) for chunk in chunks]
    assert len(reply) == 2


async def test_with_simple_replies_a_hook_is_given_one_item() -> None:
    seen: list[list[bytes]] = []

    def look(_request: Request, reply: list[bytes]) -> Iterable[bytes]:
        seen.append(reply)
        return reply

    async with connected(broken(Faults(on_reply=look))) as client:
        await client.go(structured=False)
        await client.send(Cmd.READ, 0, 4)
        await client.simple_reply()
    assert seen == [[transmission.encode_simple_reply(1) + bytes(4)]]


@pytest.mark.parametrize("error", [0, Errno.ENOSPC])
async def test_a_write_is_answered_when_its_header_has_come(error: int) -> None:
    """And only once, though its data is read; what is behind it is understood."""
    faults = Faults(answer_early=lambda request: error if request.offset == 0 else None)
    async with connected(broken(faults)) as client:
        await client.go(structured=False)
        head = transmission.encode_request(Cmd.WRITE, 0, 7, 0, 5)
        await client.stream.send_all(head)
        assert await client.simple_reply() == (7, error, b"")
        await client.stream.send_all(b"hello")
        await client.send(Cmd.WRITE, 512, data=b"other")
        assert (await client.simple_reply())[1] == 0
        data = bytes(5) if error else b"hello"
        assert (await client.simple_reply_to(Cmd.READ, 0, 5))[1:] == (0, data)
        assert (await client.simple_reply_to(Cmd.READ, 512, 5))[1:] == (0, b"other")

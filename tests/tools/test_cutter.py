"""The cutting relay, before a server that says back what it hears."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from gateway.embedded import MemoryDisk, Server
from gateway.wire.constants import Cmd
from tests.embedded.peers import Client
from tests.tools.cutter import Relay, Towards, cutter
from tests.tools.patience import HANG_SECONDS

MANY = 100_000
"""More than one piece."""


@asynccontextmanager
async def echo(ended: Callable[[int], object] = lambda heard: None) -> AsyncIterator[Relay]:
    """A relay before a server that sends back what comes, and says how much that was."""

    async def serve(stream: trio.SocketStream) -> None:
        heard, says_back = 0, True
        with suppress(trio.BrokenResourceError):
            while data := await stream.receive_some(1000):
                heard += len(data)
                try:
                    if says_back:
                        await stream.send_all(data)
                except trio.BrokenResourceError:
                    says_back = False
        ended(heard)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        host, port = listener.socket.getsockname()
        with trio.fail_after(HANG_SECONDS):
            async with cutter((host, port)) as relay:
                yield relay
        nursery.cancel_scope.cancel()


async def connect(relay: Relay) -> trio.SocketStream:
    assert not isinstance(relay.address, Path)
    return await trio.open_tcp_stream(*relay.address)


async def received(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await stream.receive_some(count - len(data))
        assert piece, data
        data += piece
    return data


async def everything(stream: trio.SocketStream) -> tuple[bytes, bool]:
    """All that comes until the end, and whether that was a RST."""
    data = b""
    try:
        while piece := await stream.receive_some():
            data += piece
    except trio.BrokenResourceError:
        return data, True
    return data, False


async def test_it_passes_on_what_comes() -> None:
    async with echo() as relay, await connect(relay) as client:
        payload = bytes(range(256)) * (MANY // 256)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, payload)
            assert await received(client, len(payload)) == payload
        assert relay.passed == {"server": len(payload), "client": len(payload)}
        assert (relay.connections, relay.open) == (1, 1)
        await client.send_eof()
        assert await everything(client) == (b"", False)


@pytest.mark.parametrize("reset", [True, False])
async def test_all_are_cut_at_once(reset: bool) -> None:
    async with echo() as relay:
        clients = [await connect(relay) for _ in range(3)]
        for client in clients:
            await client.send_all(b"hello")
            assert await received(client, 5) == b"hello"
        assert relay.cut(reset=reset) == 3
        for client in clients:
            assert await everything(client) == (b"", reset)
            await client.aclose()
        async with await connect(relay) as client:
            await client.send_all(b"again")
            assert await received(client, 5) == b"again"


@pytest.mark.parametrize("towards", ["server", "client"])
@pytest.mark.parametrize("count", [0, 1, 999, 70_000])
async def test_cut_after_exactly_so_many_bytes(towards: Towards, count: int) -> None:
    heard, hears = trio.open_memory_channel[int](1)
    async with echo(heard.send_nowait) as relay, await connect(relay) as client:
        await client.send_all(b"hello")
        assert await received(client, 5) == b"hello"
        told: list[int] = []
        cut = relay.cut_after(
            count, towards, reset=False, then=lambda: told.append(relay.passed[towards])
        )
        before = relay.passed[towards]

        async def send() -> None:
            with suppress(trio.BrokenResourceError):
                while True:
                    await client.send_all(bytes(1000))

        if towards == "client":
            await client.send_all(bytes(MANY))
            data, was_reset = await everything(client)
            assert (len(data), was_reset) == (count, False)
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await cut.wait()
                nursery.cancel_scope.cancel()
            assert await hears.receive() == 5 + count
        await cut.wait()
        assert told == [before + count]
        assert relay.passed[towards] == before + count
        assert not relay.open


async def test_held_it_moves_nothing_and_then_everything() -> None:
    async with echo() as relay, await connect(relay) as client:
        await client.send_all(b"hello")
        assert await received(client, 5) == b"hello"
        relay.hold()
        await client.send_all(b"waits")
        async with await connect(relay) as other:
            await other.send_all(b"also")
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert relay.passed == {"server": 5, "client": 5}
            relay.go_on()
            assert await received(client, 5) == b"waits"
            assert await received(other, 4) == b"also"


async def test_what_is_held_can_be_cut() -> None:
    async with echo() as relay, await connect(relay) as client:
        relay.hold()
        await client.send_all(b"never")
        await trio.testing.wait_all_tasks_blocked(0.05)
        relay.cut()
        assert (await everything(client))[0] == b""
        assert relay.passed["server"] == 0


async def test_nobody_is_let_in_for_a_while() -> None:
    async with echo() as relay, await connect(relay) as client:
        await client.send_all(b"hello")
        assert await received(client, 5) == b"hello"
        for _ in range(2):
            relay.refuse()
            with pytest.raises(OSError, match="to connect"):
                await connect(relay)
            await client.send_all(b"stays")
            assert await received(client, 5) == b"stays"
            relay.accept()
            async with await connect(relay) as other:
                await other.send_all(b"other")
                assert await received(other, 5) == b"other"


async def test_between_unix_sockets(workdir: Path) -> None:
    ours, theirs = workdir / "ours", workdir / "theirs"
    with trio.socket.socket(socket.AF_UNIX) as sock:
        await sock.bind(str(theirs))
        sock.listen()
        server = Server({"": MemoryDisk(1 << 20)})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, server.serve, [trio.SocketListener(sock)])
            async with cutter(theirs, ours) as relay:
                assert relay.uri == f"nbd+unix:///?socket={ours}"
                async with await trio.open_unix_socket(ours) as stream:
                    client = Client(stream)
                    await client.go()
                    assert await client.error(Cmd.WRITE, 0, data=b"x" * 512) == 0
                    # Half of a WRITE's payload.
                    cut = relay.cut_after(28 + 256, "server")
                    await client.send(Cmd.WRITE, 0, data=b"y" * 512)
                    await cut.wait()
                    assert (await everything(stream))[0] == b""
                async with await trio.open_unix_socket(ours) as stream:
                    client = Client(stream)
                    await client.go()
                    assert await client.read(0, 512) == b"x" * 512
            assert not ours.exists()
            nursery.cancel_scope.cancel()

"""Sessions whose link dies, through a gateway: they go on, and end only when nothing comes back that can serve
them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import structlog
import trio
import trio.testing

from gateway.bundle.again import MOST_PAUSE_SECONDS, SHORT_SECONDS, Pause
from gateway.embedded import Faults, MemoryDisk, Request, Server
from gateway.wire.constants import Cmd, Errno
from gateway.wire.transmission import DISC, encode_simple_reply
from tests.embedded.peers import Client
from tests.sessions.asking import BLOCK, CONTENT, flush, opened, read, write
from tests.sessions.gateways import Gateway
from tests.sessions.restarts import SIZE, disk, restarting, went_back
from tests.tools.defaults import SURVIVAL, mode_with


async def test_what_was_not_flushed_is_told_once_to_everybody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Also to a session that has written nothing, and over its new link."""
    async with restarting(disk()) as (gateway, server):
        one, other = await opened(gateway), await opened(gateway)
        async with one.stream, other.stream:
            assert await write(one) == 0
            assert await flush(one) == 0
            assert await write(one, BLOCK) == 0
            server.kill()
            assert await read(one, 0) == (0, CONTENT)  # that was flushed
            await went_back(gateway)
            for client in (one, other):
                assert await read(client, BLOCK) == (Errno.EIO, b"")
                assert await read(client, 0) == (0, CONTENT)
            assert await write(one, 2 * BLOCK) == 0
            assert await flush(one) == Errno.EIO
            assert await flush(one) == 0
            assert await read(one, BLOCK) == (0, CONTENT)
            assert await read(other, BLOCK) == (Errno.EIO, b"")
            assert await write(other, BLOCK) == 0  # what is there now is known
            assert await read(other, BLOCK) == (0, CONTENT)
            assert await flush(other) == Errno.EIO
            assert await flush(other) == 0


async def test_a_flush_that_fails_for_one_taints_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failing = True

    def on_reply(request: Request, reply: list[bytes]) -> list[bytes]:
        if failing and request.command == Cmd.FLUSH:
            return [encode_simple_reply(request.cookie, Errno.EIO)]
        return reply

    server = Server({"": MemoryDisk(SIZE)}, faults=Faults(on_reply=on_reply))
    async with restarting(server) as (gateway, _server):
        one, other = await opened(gateway), await opened(gateway)
        async with one.stream, other.stream:
            assert await write(one) == 0
            assert await flush(one) == Errno.EIO
            failing = False
            assert await flush(one) == 0
            assert await read(other) == (Errno.EIO, b"")
            assert await flush(other) == Errno.EIO
            assert await flush(other) == 0


async def test_nobody_is_served_by_a_server_that_has_shrunk(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with structlog.testing.capture_logs() as lines:
        async with restarting(disk()) as (gateway, server):
            client = await opened(gateway)
            async with client.stream:
                assert await write(client) == 0
                server.kill(disk(size=SIZE // 2))
                assert not await client.stream.receive_some()
    [end] = [line for line in lines if line["event"] == "session ended"]
    assert f"size {SIZE // 2} instead of {SIZE}" in end["why"]


async def test_sessions_end_when_nothing_has_come_back_for_so_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    mode = mode_with(survival=replace(SURVIVAL, reconnect_seconds=10))
    async with restarting(disk(), mode) as (gateway, server):
        client = await opened(gateway)
        async with client.stream:
            server.kill(down=True)
            begun = trio.current_time()
            await client.send(Cmd.READ, 0, BLOCK)
            assert (await client.simple_reply())[1] == Errno.EIO
            assert not await client.stream.receive_some()
            assert trio.current_time() - begun == pytest.approx(10, abs=1)


async def test_a_server_that_is_back_in_time_costs_nobody_anything(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with restarting(disk()) as (gateway, server):
        client = await opened(gateway)
        async with client.stream:
            server.kill(down=True)
            await client.send(Cmd.READ, 0, BLOCK)
            await trio.sleep(50)
            server.down = False
            assert (await client.simple_reply())[1:] == (0, bytes(BLOCK))
            await went_back(gateway)
            assert await write(client) == 0
            server.kill()
            await client.stream.send_all(DISC)
            assert not await client.stream.receive_some()


ENDS: dict[str, Callable[[Gateway, Client], object]] = {
    "vanishes": lambda _gateway, client: client.stream.socket.close(),
    "shutdown": lambda gateway, _client: gateway.service.drain(),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_ends_while_there_is_no_link(
    end: Callable[[Gateway, Client], object], autojump_clock: trio.testing.MockClock
) -> None:
    """`gateway_before` looks whether anything is left."""
    async with restarting(disk()) as (gateway, server):
        client = await opened(gateway)
        server.kill(down=True)
        await trio.testing.wait_all_tasks_blocked()
        await client.send(Cmd.READ, 0, BLOCK)
        await trio.testing.wait_all_tasks_blocked()
        end(gateway, client)
        await trio.aclose_forcefully(client.stream)
        with trio.fail_after(40):
            while gateway.service.hub.sessions:
                await trio.sleep(0.1)


async def test_a_server_that_lies_each_time_is_not_asked_again_and_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def lie(request: Request, reply: list[bytes]) -> list[bytes]:
        return [b"\xff" * 32]

    server = Server({"": MemoryDisk(SIZE)}, faults=Faults(on_reply=lie))
    async with restarting(server) as (gateway, made):
        client = await opened(gateway)
        async with client.stream:
            await client.send(Cmd.READ, 0, BLOCK)
            before = made.connected
            with trio.move_on_after(30):
                await client.simple_reply()
            assert made.connected - before < 15


def test_pauses_grow_and_end_with_a_link_that_lasts() -> None:
    pause = Pause()
    now, seconds = 0.0, []
    for _ in range(7):
        pause.made(now)
        pause.lost(now + SHORT_SECONDS / 2)
        seconds.append(pause.seconds)
    assert seconds == [0.25, 0.5, 1, 2, 4, MOST_PAUSE_SECONDS, MOST_PAUSE_SECONDS]
    pause.made(now)
    pause.lost(now + SHORT_SECONDS)
    assert not pause.seconds


async def test_sessions_live_on_again_and_again(autojump_clock: trio.testing.MockClock) -> None:
    """Also what came over a link that was made anew is remembered, and told when that dies."""
    async with restarting(disk()) as (gateway, server):
        client = await opened(gateway)
        async with client.stream:
            for number in itertools.count(1):
                assert await write(client, number * BLOCK) == 0
                server.kill()
                assert await read(client, number * BLOCK) == (Errno.EIO, b"")
                await went_back(gateway)
                assert await flush(client) == Errno.EIO
                assert await flush(client) == 0
                server.kill()
                assert await write(client) == 0  # before it has a link of its own again
                await went_back(gateway)
                server.kill()
                assert await read(client) == (Errno.EIO, b"")
                assert await flush(client) == Errno.EIO
                await went_back(gateway)
                if number == 5:
                    break
                await trio.sleep(2 * SHORT_SECONDS)

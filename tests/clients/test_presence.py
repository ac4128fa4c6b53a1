"""Who leaves is not waited for, whenever that was; who has something to say yet, is."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from gateway.clients.presence import Presence
from gateway.hub.hub import Hub
from gateway.net.drive import PeerClosed, has_left
from tests.tools.patience import HANG_SECONDS


@asynccontextmanager
async def client() -> AsyncIterator[tuple[Presence, trio.socket.SocketType, socket.socket]]:
    """Give the presence of a client, our socket and its own."""
    near, far = socket.socketpair()
    hub = Hub()
    with trio.fail_after(HANG_SECONDS), near, far:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hub.run)
            ours = trio.socket.from_stdlib_socket(near)
            stream = trio.SocketStream(ours)
            yield Presence(hub, ours, lambda: has_left(stream)), ours, far
            nursery.cancel_scope.cancel()
        hub.close()


async def seen() -> None:
    """Whatever the hub may see of the client by now, it has."""
    await trio.testing.wait_all_tasks_blocked(0.01)


async def at_once() -> str:
    return "answered"


async def test_who_leaves_in_the_middle_is_not_waited_for() -> None:
    async with client() as (presence, _ours, theirs):

        async def leave() -> None:
            theirs.close()
            await trio.sleep_forever()

        async def negotiate() -> None:
            with presence.needed():
                assert await presence.patiently(at_once) == "answered"
                await presence.patiently(leave)

        with pytest.raises(PeerClosed):
            await negotiate()


async def test_who_has_left_before_is_not_waited_for() -> None:
    async with client() as (presence, ours, theirs):

        async def negotiate() -> None:
            with presence.needed():
                await presence.patiently(at_once)
                theirs.close()
                assert not await ours.recv(1)
                await seen()
                await presence.patiently(trio.sleep_forever)

        with pytest.raises(PeerClosed):
            await negotiate()


async def test_who_has_something_to_say_yet_is_there() -> None:
    async with client() as (presence, ours, theirs):
        said = b""

        async def negotiate() -> None:
            nonlocal said
            with presence.needed():
                theirs.send(b"?")
                theirs.shutdown(socket.SHUT_WR)
                for _ in range(2):
                    await presence.patiently(seen)
                said = await ours.recv(1)
                await presence.patiently(trio.sleep_forever)

        with pytest.raises(PeerClosed):
            await negotiate()
        assert said == b"?"


async def test_who_leaves_while_nobody_is_asked_is_found_by_who_reads() -> None:
    async with client() as (presence, ours, theirs):
        with presence.needed():
            await presence.patiently(at_once)
            theirs.close()
            assert not await ours.recv(1)
            await seen()


async def test_it_is_not_watched_any_more_afterwards() -> None:
    async with client() as (presence, ours, _theirs):
        with presence.needed():
            await presence.patiently(at_once)
        other = Presence(presence._hub, ours, lambda: False)
        with other.needed():
            assert await other.patiently(at_once) == "answered"  # the hub takes it again

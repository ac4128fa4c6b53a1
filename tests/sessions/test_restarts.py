"""Servers that die while they are asked for an export: clients get all that they would get of one that lives,
and sessions go on with what they were promised.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from gateway.embedded import PERSONALITIES, Faults, MemoryDisk, Server
from gateway.embedded.faults import CLOSES_BEFORE_GREETING
from gateway.sessions.pausing import Pauses
from gateway.sessions.reconnecting import OPEN_SECONDS
from gateway.sessions.surviving import BECOME_QUIET_SECONDS
from gateway.upstream.ladder import Rung
from gateway.wire.constants import BASE_ALLOCATION, Cmd
from gateway.wire.limits import MIB
from tests.embedded.peers import Client, socket_pair
from tests.sessions.gateways import Gateway, gateway_before

MODES = ['"per-client"', '"shared"', "2"]
MORTAL = pytest.mark.parametrize("mode", MODES)


@dataclass
class Mortal:
    """A server of which all connections can be cut; the next ones have the faults that are given."""

    nursery: trio.Nursery
    faults: list[Faults] = field(default_factory=list)
    refuses: int = 0
    made: int = 0
    serving: list[trio.CancelScope] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = Server({"": MemoryDisk(MIB)}, faults=self._faults)

    def _faults(self, _number: int) -> Faults:
        return self.faults.pop(0) if self.faults else Faults()

    def refuse(self) -> bool:
        self.refuses -= 1
        return self.refuses >= 0

    def connect(self) -> trio.SocketStream:
        ours, theirs = socket_pair()
        self.made += 1
        self.nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, stream: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self.serving.append(scope)
            async with stream:
                await self.server.serve(stream)
        self.serving.remove(scope)

    def die(self, faults: list[Faults], *, refuses: int = 0) -> None:
        self.faults, self.refuses = faults, refuses
        for scope in self.serving:
            scope.cancel()


@asynccontextmanager
async def before(mode: str) -> AsyncIterator[tuple[Gateway, Mortal]]:
    async with trio.open_nursery() as nursery:
        mortal = Mortal(nursery)
        async with gateway_before(
            mortal.connect,
            upstream=f"connections = {mode}",
            refuse=mortal.refuse,
            seconds=300,
            negotiate_seconds=30,
        ) as gateway:
            yield gateway, mortal
        nursery.cancel_scope.cancel()


async def has_all(client: Client) -> None:
    """A client that asks for it has base:allocation, and is served."""
    told = await client.go(contexts=[BASE_ALLOCATION])
    assert told.export is not None
    await goes_on(client)


async def goes_on(client: Client) -> None:
    assert await client.read(0, 512) == bytes(512)
    assert await client.status(0, MIB) == {1: [(MIB, 3)]}


@MORTAL
@pytest.mark.parametrize("deaths", [1, 2, 3, 5])
@pytest.mark.parametrize("option", [1, 2, 3, 4])
@pytest.mark.parametrize("refuses", [0, 1])
async def test_a_session_goes_on_and_others_begin_whatever_dies(
    mode: str, deaths: int, option: int, refuses: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with before(mode) as (gateway, mortal):
        client, another = gateway.client(), gateway.client()
        async with client.stream, another.stream:
            await has_all(client)
            mortal.die([Faults(cut_at_option=option)] * deaths, refuses=refuses)
            await goes_on(client)
            await has_all(another)
            assert gateway.service.servers["main"].ladder.first(trio.current_time()) is Rung.FULL


@MORTAL
async def test_a_new_client_beside_a_session_that_reconnects_has_all_as_well(
    mode: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Both meet the same deaths, which is more of them than either would have thought of alone."""
    async with before(mode) as (gateway, mortal):
        client, another = gateway.client(), gateway.client()
        async with client.stream, another.stream:
            await has_all(client)
            cut = Faults(cut_at_option=1)
            mortal.die([cut, CLOSES_BEFORE_GREETING, cut, cut, CLOSES_BEFORE_GREETING, cut])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(goes_on, client)
                nursery.start_soon(has_all, another)


@MORTAL
@pytest.mark.parametrize("option", [1, 2, 3, 4, 5])
async def test_a_first_client_has_all_of_a_server_that_dies_once(
    mode: str, option: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with before(mode) as (gateway, mortal):
        mortal.faults = [Faults(cut_at_option=option)]
        client = gateway.client()
        async with client.stream:
            await has_all(client)


@MORTAL
@pytest.mark.parametrize("refuses", [0, 1])
async def test_a_paused_export_is_resumed_over_links_like_those_that_it_had(
    mode: str, refuses: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with before(mode) as (gateway, mortal):
        pauses = Pauses(gateway.service, gateway.nursery)
        client = gateway.client()
        async with client.stream:
            await has_all(client)
            await pauses.pause("")
            mortal.die([Faults(cut_at_option=1)] * 50)
            await trio.sleep(5)
            mortal.faults, mortal.refuses = [Faults(cut_at_option=1)] * 7, refuses
            await pauses.resume("")
            await goes_on(client)
            gateway.nursery.cancel_scope.cancel()


async def test_a_link_lost_in_a_pause_is_lost_once(autojump_clock: trio.testing.MockClock) -> None:
    """Who has lived on without it is held again when there is another one, and let go on if half a WRITE
    keeps it from being quiet.
    """
    async with before('"per-client"') as (gateway, mortal):
        pauses = Pauses(gateway.service, gateway.nursery)
        client = gateway.client()
        async with client.stream:
            await has_all(client)
            await pauses.pause("", lasts=10)
            mortal.die([], refuses=10**6)
            await trio.sleep(10 + OPEN_SECONDS + 5)
            assert not gateway.service.paused
            whole = client.framing.encode_request(Cmd.WRITE, 0, 77, 0, 512) + bytes(512)
            await client.stream.send_all(whole[:100])
            mortal.refuses = 0
            await trio.sleep(4 * BECOME_QUIET_SECONDS)
            await client.stream.send_all(whole[100:])
            assert await client.simple_reply() == (77, 0, b"")
            assert await client.read(0, 512) == bytes(512)
            gateway.nursery.cancel_scope.cancel()


async def test_a_session_of_an_old_server_lives_through_its_restarts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for name in ("qemu-2.5", "nbd-server-3.14"):
        async with before('"per-client"') as (gateway, mortal):
            mortal.server.personality = PERSONALITIES[name]
            client = gateway.client()
            async with client.stream:
                await client.go()
                for refuses in (0, 1):
                    mortal.die([Faults(cut_at_option=1)] if refuses else [], refuses=refuses)
                    assert await client.read(0, 512) == bytes(512)
                made = mortal.made
                another = gateway.client()
                async with another.stream:
                    await another.go()
                assert mortal.made == made + 1

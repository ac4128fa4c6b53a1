"""Connections that are made before a client comes, and health checks; the clock jumps."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import trio
import trio.testing

from gateway.config.connections import PER_CLIENT, Connections
from gateway.embedded import PERSONALITIES, Faults, MemoryDisk, Personality, Server
from gateway.net.dial import DialError
from gateway.protocol.errors import Refusal
from gateway.sessions.service import Paused
from gateway.status.shown import upstreams_shown
from gateway.upstream import server as upstream
from gateway.upstream.errors import Full
from gateway.upstream.greeting import greeted
from gateway.upstream.ladder import Rung
from gateway.upstream.link import Link, Terms
from gateway.upstream.listing import exports_of
from gateway.upstream.negotiation import WARM_ANSWER_SECONDS, Negotiation
from gateway.upstream.news import CameBack, News, TurnedAway, Unwell, WellAgain, WentDown
from gateway.upstream.warm import (
    FIRST_PAUSE_SECONDS,
    MOST_PAUSE_SECONDS,
    RENEW_SECONDS,
    Warm,
    check_health,
)
from gateway.wire import limits
from gateway.wire.constants import Cmd
from gateway.wire.framing import SIMPLE
from gateway.wire.handshake import encode_oldstyle_greeting
from tests.embedded.peers import socket_pair
from tests.sessions.gateways import gateway_before
from tests.tools.defaults import mode_with
from tests.upstream.servers import server_to

pytestmark = pytest.mark.real

GREETING_BYTES = 18
PLAIN = PERSONALITIES["plain"]
OLDSTYLE = replace(PLAIN, oldstyle=True)
TERMS = Terms("", structured=True)
KINDS = {
    "simple": Terms("", structured=False),
    "structured": TERMS,
    "extended": Terms("", structured=True, extended=True),
    "contexts": Terms("", structured=True, queries=("base:allocation",)),
}


@dataclass
class Far:
    """A server, and what becomes of connections to it."""

    nursery: trio.Nursery
    personality: Personality = PLAIN
    seconds: float = math.inf
    """How long it lets a connection negotiate."""
    faults: Callable[[int], Faults] = lambda _number: Faults()
    at_a_time: int = 1000
    """How many it serves; others wait in its queue."""
    up: bool = True
    dialled: list[float] = field(default_factory=list)
    live: dict[int, trio.CancelScope] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    """Of connections that did not end in good order: without ABORT or DISC."""

    def __post_init__(self) -> None:
        self._room = trio.Semaphore(self.at_a_time)
        self._server = Server(
            {"": MemoryDisk(limits.MIB)},
            self.personality,
            faults=lambda number: self.faults(number),
            handshake_seconds=self.seconds,
            log=self._say,
        )

    def _say(self, text: str) -> None:
        if "Broken pipe" not in text:  # the answer to ABORT, which is not waited for
            self.said.append(text)

    async def connect(self) -> trio.SocketStream:
        return self.dial()

    def dial(self) -> trio.SocketStream:
        self.dialled.append(trio.current_time())
        if not self.up:
            raise DialError("nobody listens", down=True)
        near, far = socket_pair()
        number = len(self.dialled) - 1
        self.live[number] = trio.CancelScope()
        self.nursery.start_soon(self._serve, far, number)
        return near

    async def _serve(self, stream: trio.SocketStream, number: int) -> None:
        try:
            async with stream, self._room:
                with self.live[number]:
                    await self._server.serve(stream)
        finally:
            del self.live[number]

    def die(self) -> None:
        """End all connections, and be down."""
        self.up = False
        for scope in self.live.values():
            scope.cancel()


@dataclass
class Setting:
    far: Far
    server: upstream.Server
    told: list[News]
    scope: trio.CancelScope
    """Of who sees to the connections ahead."""

    async def client(self, terms: Terms = TERMS) -> Link:
        """Open an export as a client's."""
        negotiation = Negotiation(self.server, warm=True)
        try:
            return await negotiation.go(terms)
        finally:
            await negotiation.aclose()

    async def left(self, link: Link) -> None:
        link.socket.send(link.export.framing.encode_request(Cmd.DISC, 0, 0, 0, 0))
        link.close()
        await trio.testing.wait_all_tasks_blocked()

    async def served(self) -> None:
        """A first client comes and goes; what is kept is kept."""
        await self.left(await self.client())
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def before(
    count: int = 1,
    *,
    check_seconds: float = 0,
    slots: float = math.inf,
    personality: Personality = PLAIN,
    seconds: float = math.inf,
    at_a_time: int = 1000,
    faults: Callable[[int], Faults] = lambda _number: Faults(),
) -> AsyncIterator[Setting]:
    """A server, of which so many connections are kept ready."""
    async with trio.open_nursery() as servers:
        far = Far(servers, personality, seconds, faults, at_a_time)
        server = server_to(
            "main",
            far.connect,
            negotiate_seconds=5,
            max_connections=slots,
            chance=lambda: 1.0,
        )
        told: list[News] = []
        server.tell = told.append
        async with trio.open_nursery() as keepers:
            if count:
                keepers.start_soon(Warm(server, count).run)
            if check_seconds:
                keepers.start_soon(check_health, server, check_seconds)
            await trio.testing.wait_all_tasks_blocked()
            yield Setting(far, server, told, keepers.cancel_scope)
            keepers.cancel_scope.cancel()
        servers.cancel_scope.cancel()


# --- What they are for


@pytest.mark.parametrize("terms", KINDS.values(), ids=KINDS)
async def test_a_client_costs_no_dial(autojump_clock: trio.testing.MockClock, terms: Terms) -> None:
    async with before(count=2) as it:
        await it.served()
        assert set(it.far.live) == {1, 2}
        it.far.up = False
        for _ in range(2):
            link = await it.client(terms)
            assert link.export.structured == terms.structured
            assert link.export.extended == terms.extended
            assert link.export.size == limits.MIB
            assert bool(link.export.contexts) == (terms.queries is not None)
            await it.left(link)
        with pytest.raises(Refusal):
            await it.client(terms)
        assert it.far.said == []


async def test_none_is_made_before_the_first_client_has_its_export(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with before() as it:
        await trio.sleep(1000)
        with pytest.raises(Refusal):
            await it.client(replace(TERMS, name="none"))
        await trio.sleep(1000)
        assert len(it.far.dialled) == 1
        await it.served()
        assert len(it.far.dialled) == 3
        assert len(it.far.live) == 1


async def test_none_is_for_two_clients() -> None:
    """Not even one that only asked, and had no export."""
    async with before() as it:
        await it.served()
        for number in range(1, 6):
            assert set(it.far.live) == {number}
            negotiation = Negotiation(it.server, warm=True)
            await negotiation.describe(TERMS)
            await negotiation.aclose()
            await trio.testing.wait_all_tasks_blocked()
        assert len(it.far.dialled) == 7


async def test_many_clients_at_once_get_one_each() -> None:
    async with before(count=3) as it:
        await it.served()
        links: list[Link] = []

        async def client() -> None:
            links.append(await it.client())

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(client)
        assert len({link.socket.fileno() for link in links}) == 10
        assert len(it.far.live) >= 10
        for link in links:
            await it.left(link)
        assert it.far.said == []


async def test_a_link_that_takes_the_place_of_another_is_dialled() -> None:
    async with before() as it:
        await it.served()
        it.far.up = it.server.connector.patient = False
        with pytest.raises(Refusal):
            await Negotiation(it.server).go(TERMS)
        assert set(it.far.live) == {1}


@pytest.mark.parametrize("wanted", [PER_CLIENT, Connections(shared=True)], ids=str)
async def test_a_client_that_lives_on_is_connected_anew(
    autojump_clock: trio.testing.MockClock, wanted: Connections
) -> None:
    async with trio.open_nursery() as servers:
        far = Far(servers)
        async with gateway_before(far.dial, upstream="warm = 1", mode=mode_with(wanted)) as gateway:
            client = gateway.client()
            async with client.stream:
                await client.go()
                await trio.testing.wait_all_tasks_blocked()
                own, ahead = far.live
                [shown] = await upstreams_shown(gateway.service, {})
                assert (shown["connections"], shown["ready"]) == (1, 1)
                far.live[own].cancel()
                assert await client.read(0, 512) == bytes(512)
                assert set(far.live) == {ahead, ahead + 1}
            await trio.testing.wait_all_tasks_blocked()
            assert set(far.live) == {ahead}


@pytest.mark.parametrize(
    ("wanted", "takes"),
    [
        (PER_CLIENT, 1),
        (Connections(shared=True), 1),
        (Connections(count=2), 0),
        (Connections(shared=True, count=2), 0),
    ],
    ids=str,
)
async def test_several_links_are_made_together(
    autojump_clock: trio.testing.MockClock, wanted: Connections, takes: int
) -> None:
    """Some might lead to the server of before, and the others to the one that has its address now."""
    async with trio.open_nursery() as servers:
        far = Far(servers)
        async with gateway_before(far.dial, upstream="warm = 3", mode=mode_with(wanted)) as gateway:
            [main] = gateway.service.servers.values()
            for up in (True, False):
                far.up = up
                client = gateway.client()
                async with client.stream:
                    if up or takes:
                        await client.go()
                    else:
                        await client.greeting()
                        client.negotiation.go("", ())
                        await client.refused()
                    await trio.testing.wait_all_tasks_blocked()
                await trio.testing.wait_all_tasks_blocked()
                assert main.warm is not None
                assert main.warm.count == 3 - (0 if up else takes)


# --- Dead ones


@pytest.mark.parametrize("fault", ["cut_after_bytes", "stall_after_bytes"])
async def test_a_client_whose_connection_is_dead_is_connected_anew(
    autojump_clock: trio.testing.MockClock, fault: str
) -> None:
    """It is dead, and has not been seen to be: the server ends at the first option, or had lost its power."""

    def faults(number: int) -> Faults:
        if number != 1:
            return Faults()
        if fault == "cut_after_bytes":
            return Faults(cut_after_bytes=GREETING_BYTES + 1)
        return Faults(stall_after_bytes=GREETING_BYTES)

    async with before(faults=faults) as it:
        await it.served()
        assert set(it.far.live) == {1}
        began = trio.current_time()
        link = await it.client()
        took = trio.current_time() - began
        assert took == (WARM_ANSWER_SECONDS if fault == "stall_after_bytes" else 0)
        assert link.rung is Rung.FULL
        assert it.server.ladder.first(trio.current_time()) is Rung.FULL
        await it.left(link)


async def test_who_has_had_a_dead_one_does_not_try_the_others() -> None:
    """Nor does a server that loses its way at the first option get to do so on all of them."""

    def faults(number: int) -> Faults:
        return Faults(cut_after_bytes=GREETING_BYTES + 1 if 1 <= number <= 3 else None)

    async with before(count=3, slots=3, faults=faults) as it:
        await it.served()
        assert set(it.far.live) == {1, 2, 3}
        link = await it.client()
        assert set(it.far.live) >= {1, 2, 4}
        await it.left(link)


async def test_one_that_the_server_closes_is_replaced_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As qemu does after 10 s."""
    async with before(seconds=10) as it:
        await it.served()
        began = trio.current_time()
        await trio.sleep(99)
        assert [at - began for at in it.far.dialled[1:]] == list(range(0, 100, 10))
        assert len(it.far.live) == 1


async def test_what_a_server_closes_again_and_again_is_replaced_after_longer_and_longer_breaks(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with before(seconds=1) as it:
        await it.served()
        await trio.sleep(1000)
        times = it.far.dialled[1:]
        breaks = [after - at - 1 for at, after in pairwise(times)]
        doubled = [FIRST_PAUSE_SECONDS * 2**i for i in range(7)]
        assert breaks[:7] == doubled
        assert set(breaks[7:]) == {MOST_PAUSE_SECONDS}


async def test_a_server_that_is_down_is_not_hammered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with before(count=16) as it:
        await it.served()
        assert len(it.far.live) == 16
        await trio.sleep(100)
        dialled = len(it.far.dialled)
        it.far.die()
        await trio.sleep(1000)
        assert len(it.far.dialled) - dialled < 10 + 1000 / MOST_PAUSE_SECONDS
        assert it.told == [WentDown("nobody listens")]  # and nobody was turned away
        it.far.up = True
        await trio.sleep(MOST_PAUSE_SECONDS + 1)
        assert isinstance(it.told[1], CameBack)
        assert len(it.far.live) == 16


async def test_several_that_end_with_their_server_are_one_failure(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with before(count=16) as it:
        await it.served()
        for _ in range(3):
            it.far.die()
            it.far.up = True
            await trio.sleep(FIRST_PAUSE_SECONDS * 4 + 1)
            assert len(it.far.live) == 16


async def test_a_client_that_is_served_ends_the_breaks(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with before(seconds=1) as it:
        await it.served()
        await trio.sleep(200)
        while it.far.live:
            await trio.sleep(1)
        dialled = len(it.far.dialled)
        await it.served()
        await trio.sleep(2 * FIRST_PAUSE_SECONDS)
        assert len(it.far.dialled) == dialled + 2
        await trio.sleep(2)
        assert len(it.far.dialled) == dialled + 3


async def test_after_a_restart_the_next_client_has_the_new_server() -> None:
    async with before(count=4) as it:
        await it.served()
        it.far.die()
        it.far.up = True
        link = await it.client()
        assert link.export.size == limits.MIB
        await it.left(link)


async def test_an_old_one_is_replaced(autojump_clock: trio.testing.MockClock) -> None:
    async with before() as it:
        await it.served()
        for number in range(1, 4):
            assert set(it.far.live) == {number}
            await trio.sleep(RENEW_SECONDS)
            await trio.testing.wait_all_tasks_blocked()
        assert it.far.said == []


async def test_an_oldstyle_server_has_them_as_well() -> None:
    async with before(personality=OLDSTYLE) as it:
        await it.served()
        it.far.up = False
        link = await it.client()
        assert link.export.size == limits.MIB
        await it.left(link)


async def test_an_oldstyle_server_is_left_with_disc() -> None:
    near, far = socket_pair()

    async def connect() -> trio.SocketStream:
        return near

    server = server_to("main", connect)
    async with far:
        await far.send_all(encode_oldstyle_greeting(limits.MIB, 1))
        slot = await server.slot()
        await (await greeted(server, slot, patient=False)).aclose()
        assert await far.receive_some() == SIMPLE.encode_request(Cmd.DISC, 0, 0, 0, 0)
        assert await far.receive_some() == b""


# --- Slots


async def test_it_gives_way_to_who_needs_the_slot(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with before(slots=1) as it:
        first = await it.client()
        await trio.sleep(10)
        assert len(it.far.dialled) == 1  # the slot is taken
        await it.left(first)
        await trio.sleep(10)
        assert set(it.far.live) == {1}
        began = trio.current_time()
        assert [each.name for each in await exports_of(it.server)] == [""]
        assert trio.current_time() == began
        await trio.sleep(10)
        link = await it.client()
        with pytest.raises(Full):
            await it.server.slot(patient=False)
        assert trio.current_time() == began + 10
        await it.left(link)
        assert it.far.said == []


async def test_it_gives_way_to_who_is_led_to_the_same_server_in_another_way() -> None:
    """As an export is that was switched to where others are by the configuration."""
    async with before(slots=1) as it:
        await it.served()
        assert it.server.warm is not None
        assert it.server.warm.count == 1
        there = server_to("there", it.far.connect, slots=it.server.slots)
        slot = await there.slot(patient=False)
        await trio.testing.wait_all_tasks_blocked()
        assert not it.far.live
        with pytest.raises(Full, match="max-connections = 1 lets"):
            await it.server.slot(patient=False)
        slot.leave()


async def test_it_is_not_in_front_of_a_client_in_the_queue_of_a_server_for_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with before(at_a_time=1) as it:
        first = await it.client()
        await trio.sleep(1)
        assert set(it.far.live) == {0, 1}
        links: list[Link] = []

        async def second() -> None:
            links.append(await it.client())

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second)
            await trio.sleep(1)
            await it.left(first)
        assert trio.current_time() - began == 1
        await it.left(links[0])


# --- The end of all


async def test_they_are_left_in_good_order() -> None:
    async with before(count=16) as it:
        await it.served()
        assert len(it.far.live) == 16
        it.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not it.far.live
        assert it.far.said == []
        assert it.server.warm is None


async def test_none_is_kept_while_an_export_is_paused_nor_by_who_shuts_down_or_is_replaced(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server({"": MemoryDisk(limits.MIB)}, handshake_seconds=math.inf)
    async with gateway_before(server, upstream="warm = 2", seconds=1000) as gateway:
        service = gateway.service
        [main] = service.servers.values()

        async def warm() -> int:
            await trio.testing.wait_all_tasks_blocked()
            return 0 if main.warm is None else main.warm.count

        async def after_a_client() -> int:
            client = gateway.client()
            async with client.stream:
                await client.go()
                return await warm()

        assert await warm() == 0
        assert await after_a_client() == 2
        service.paused["x"] = Paused()
        service.note_change()
        assert await warm() == 0
        del service.paused["x"]
        service.note_change()
        assert await warm() == 0
        assert await after_a_client() == 2
        other = server_to("main", main.connector.connects[0])
        service.reconfigure(service.config, service.access, {"main": other})
        assert await warm() == 0
        service.reconfigure(service.config, service.access, {"main": main})
        assert await after_a_client() == 2
        for ticks in range(12):  # paused, and resumed while those are still being left
            service.paused["x"] = Paused()
            service.note_change()
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            del service.paused["x"]
            service.note_change()
            await trio.testing.wait_all_tasks_blocked()
            assert await after_a_client() == 2
        service.drain()
        assert await warm() == 0


# --- Health checks


async def test_a_server_that_nobody_asks_for_is_looked_at(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with before(count=0, check_seconds=30) as it:
        began = trio.current_time()
        await trio.sleep(65)
        await it.served()
        await trio.sleep(61)
        assert [at - began for at in it.far.dialled] == [30, 60, 65, 95, 125]
        assert not it.far.live
        assert it.far.said == []
        assert it.told == []


async def test_the_log_knows_before_a_client(autojump_clock: trio.testing.MockClock) -> None:
    async with before(count=0, check_seconds=30) as it:
        it.far.up = False
        await trio.sleep(100)
        assert it.told == [WentDown("nobody listens")]
        assert len(it.far.dialled) == 3
        began = trio.current_time()
        with pytest.raises(Refusal):
            await it.client()
        assert trio.current_time() == began
        it.far.up = True
        await trio.sleep(31)
        assert [type(news) for news in it.told[1:]] == [TurnedAway, CameBack]


async def test_a_server_that_does_not_greet_is_told_of_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    well = False
    async with before(
        count=0, check_seconds=30, faults=lambda _: Faults(cut_after_bytes=None if well else 9)
    ) as it:
        await trio.sleep(100)
        [unwell] = it.told
        assert isinstance(unwell, Unwell)
        assert "at its greeting" in unwell.why
        well = True
        await trio.sleep(100)
        assert it.told[1:] == [WellAgain()]
        assert len(it.far.dialled) == 6


async def test_there_is_no_check_while_all_slots_are_taken(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with before(count=0, check_seconds=30, slots=1) as it:
        link = await it.client()
        await trio.sleep(100)
        assert len(it.far.dialled) == 1
        await it.left(link)
        await trio.sleep(30)
        assert len(it.far.dialled) == 2


async def test_none_is_looked_at_that_nobody_said_it_of(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server({"": MemoryDisk(limits.MIB)})
    for keys, connections in (("", 0), ("health-check-seconds = 30", 3)):
        async with gateway_before(server, upstream=keys, seconds=1000):
            await trio.sleep(100)
        assert server.connections == connections

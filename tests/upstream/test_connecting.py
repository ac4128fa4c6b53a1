"""Connecting to a server that is down, slow, full or on its way back; the clock jumps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import pytest
import structlog
import trio

from gateway.config import Config, parse
from gateway.embedded import PERSONALITIES, MemoryDisk, Server
from gateway.embedded.faults import SILENT_AFTER_GREETING, Faults
from gateway.net.dial import DialError
from gateway.net.drive import close_stream
from gateway.upstream import server as upstream
from gateway.upstream.configured import Servers, servers_of
from gateway.upstream.errors import Full, Silent, Unreachable
from gateway.upstream.handshake import Reached
from gateway.upstream.link import Terms
from gateway.upstream.listed import LastList
from gateway.upstream.listing import exports_of
from gateway.upstream.negotiation import Negotiation
from gateway.upstream.news import CameBack, News, TurnedAway, WentDown
from gateway.wire import limits
from gateway.wire.constants import Rep, TransmissionFlag
from gateway.wire.handshake import ListedExport
from tests.embedded.peers import Client, socket_pair
from tests.sessions.gateways import gateway_before
from tests.upstream.servers import server_to

pytestmark = pytest.mark.real

TERMS = Terms("", structured=True)


class Place:
    """Where an upstream is, and when it was connected to. It refuses until the clock says `up_at`."""

    def __init__(
        self,
        up_at: float = float("inf"),
        *,
        hangs: bool = False,
        silent: bool = False,
        greets: bool = True,
    ) -> None:
        self.began = trio.current_time()
        self.up_at = self.began + up_at
        self.hangs = hangs
        self.silent = silent
        self.greets = greets
        self.attempts: list[float] = []
        self.ends: list[trio.SocketStream] = []

    async def connect(self) -> trio.SocketStream:
        self.attempts.append(trio.current_time() - self.began)
        if self.hangs:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        if trio.current_time() < self.up_at:
            raise DialError("nobody listens", down=True)
        near, far = socket_pair()
        if self.silent:
            self.ends.append(far)
        else:
            if self.greets:
                await far.send_all(b"N")
            far.socket.close()
        return near


def server_of(place: Place, *, told: list[News] | None = None) -> upstream.Server:
    """A server whose back-offs are as long as they get."""
    server = server_to("main", place.connect, negotiate_seconds=5, chance=lambda: 1.0)
    if told is not None:
        server.tell = told.append
    return server


async def outcome(connect: Callable[[], Awaitable[Reached]]) -> tuple[float, str]:
    """How long connecting takes, and what is said if it fails."""
    began = trio.current_time()
    try:
        await close_stream((await connect()).stream)
    except Unreachable as error:
        return trio.current_time() - began, error.text
    return trio.current_time() - began, ""


async def test_a_server_that_restarts_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    told: list[News] = []
    place = Place(up_at=3)
    assert await outcome(server_of(place, told=told).connector.connect) == (3.75, "")
    assert place.attempts == [0, 0.25, 0.75, 1.75, 3.75]
    [down, back] = told
    assert down == WentDown("nobody listens")
    assert isinstance(back, CameBack)
    assert (back.outage.seconds, back.outage.failures) == (3.75, 4)


async def test_a_client_is_told_when_its_time_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told: list[News] = []
    place = Place()
    seconds, text = await outcome(server_of(place, told=told).connector.connect)
    assert text == "upstream 'main' is unreachable: nobody listens"
    assert seconds == 10
    assert place.attempts == [0, 0.25, 0.75, 1.75, 3.75, 7.75, 10]
    assert told == [WentDown("nobody listens"), TurnedAway()]


async def test_a_thousand_clients_ask_a_dead_server_no_oftener_than_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    place = Place()
    server = server_of(place)
    await outcome(server.connector.connect)
    alone, place.attempts = place.attempts, []
    outcomes: list[tuple[float, str]] = []

    async def client() -> None:
        outcomes.append(await outcome(server.connector.connect))

    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(client)
    why = "upstream 'main' is unreachable: nobody listens"
    assert len(alone) == 7
    assert place.attempts == []
    assert outcomes == [(0, why)] * 1000  # the outage is too old for more
    await trio.sleep(100)  # all is forgotten: it may be another outage
    place.began = trio.current_time()
    place.attempts.clear()
    outcomes.clear()
    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(client)
    assert place.attempts == alone
    assert {text for _seconds, text in outcomes} == {why}


async def test_when_it_is_back_all_are_served(autojump_clock: trio.testing.MockClock) -> None:
    place = Place(up_at=1)
    server = server_of(place)
    outcomes: list[tuple[float, str]] = []

    async def client() -> None:
        outcomes.append(await outcome(server.connector.connect))

    await trio.sleep(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client)
        await trio.sleep(0.1)
        for _ in range(50):
            nursery.start_soon(client)
    assert [text for _seconds, text in outcomes] == [""] * 51
    assert place.attempts[:4] == [0, 0.25, 0.75, 1.75]
    assert place.attempts[4:] == [1.75] * 50


async def test_a_probe_whose_client_leaves_is_taken_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    place = Place()
    server = server_of(place)
    outcomes: list[tuple[float, str]] = []
    leaves = trio.CancelScope()

    async def leaver() -> None:
        with leaves:
            await server.connector.connect()

    async def waiter() -> None:
        outcomes.append(await outcome(server.connector.connect))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leaver)
        await trio.sleep(0.1)
        place.hangs = True
        await trio.sleep(0.4)
        nursery.start_soon(waiter)
        await trio.sleep(0.5)
        assert place.attempts == [0, 0.25]  # the one that probes hangs
        place.hangs, place.up_at = False, place.began
        leaves.cancel()
    assert leaves.cancelled_caught
    assert outcomes == [(0.5, "")]


async def test_a_server_that_takes_no_connection(autojump_clock: trio.testing.MockClock) -> None:
    place = Place(hangs=True)
    server = server_of(place)
    why = "upstream 'main' is unreachable: it did not take a connection within 10 s"
    assert await outcome(server.connector.connect) == (10, why)
    assert await outcome(server.connector.connect) == (0, why)
    assert place.attempts == [0]


async def test_what_waiting_does_not_mend_is_told_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def connect() -> trio.SocketStream:
        raise DialError("no such program")

    server = server_to("main", connect)
    for _ in range(2):
        seconds, text = await outcome(server.connector.connect)
        assert (seconds, text) == (0, "upstream 'main' is unreachable: no such program")


async def test_a_list_waits_for_nobody(autojump_clock: trio.testing.MockClock) -> None:
    place = Place()
    began = trio.current_time()
    with pytest.raises(Unreachable, match="nobody listens"):
        await exports_of(server_of(place))
    assert trio.current_time() == began
    assert place.attempts == [0]


async def test_a_failure_to_list_is_not_remembered(autojump_clock: trio.testing.MockClock) -> None:
    """It is for those alone who have waited for it; a list is for all who come in the next two seconds."""
    asked: list[float] = []

    async def ask() -> list[ListedExport]:
        asked.append(trio.current_time() - began)
        await trio.sleep(0.5)
        if len(asked) == 1:
            raise Unreachable("it is away")
        return [ListedExport("disk")]

    listed = LastList()
    began = trio.current_time()
    outcomes: list[object] = []

    async def want(after: float) -> None:
        await trio.sleep(after)
        try:
            outcomes.append([each.name for each in await listed.exports(ask)])
        except Unreachable:
            outcomes.append("refused")

    async with trio.open_nursery() as nursery:
        for after in (0, 0.1, 0.6, 0.7, 3.0, 3.2):
            nursery.start_soon(want, after)
    assert outcomes == ["refused"] * 2 + [["disk"]] * 4
    assert asked == [0, 0.6, 3.2]


async def test_a_server_that_leaves_a_client_in_its_queue_is_recognised(
    autojump_clock: trio.testing.MockClock,
) -> None:
    place = Place(up_at=0, silent=True)
    with pytest.raises(Silent) as caught:
        await Negotiation(server_of(place)).go(TERMS)
    assert trio.current_time() - place.began == 5
    await place.ends[0].aclose()
    assert caught.value.text.startswith(
        "upstream 'main' has connected and not greeted for 5 s: probably it serves as many clients as it may"
    )


async def test_of_a_command_that_never_greeted_it_is_not_said_that_it_has_clients(
    autojump_clock: trio.testing.MockClock,
) -> None:
    place = Place(up_at=0, silent=True)
    server = server_to("main", place.connect, command=("sleep", "inf"))
    with pytest.raises(Silent) as caught:
        await Negotiation(server).go(TERMS)
    assert caught.value.text.startswith(
        "upstream 'main' was started and has not greeted for 30 s: perhaps the program does not take the socket"
    )
    # One that has greeted once takes it, and is full.
    place.silent = False
    await (await server.connector.connect()).stream.aclose()
    place.silent = True
    with pytest.raises(Silent, match="probably it serves as many clients as it may"):
        await Negotiation(server).go(TERMS)
    for end in place.ends:
        await end.aclose()


@pytest.mark.parametrize(
    ("same_storage", "read_only", "multi_conn"),
    [(False, False, True), (True, False, False), (True, True, True)],
)
async def test_multi_conn_is_not_believed_of_several_servers(
    same_storage: bool, read_only: bool, multi_conn: bool
) -> None:
    async with trio.open_nursery() as nursery:
        ours = Server({"": MemoryDisk(limits.MIB, read_only=read_only)})

        async def connect() -> trio.SocketStream:
            near, far = socket_pair()
            nursery.start_soon(ours.serve, far)
            return near

        server = server_to("main", connect, same_storage=same_storage)
        link = await Negotiation(server).go(TERMS)
        link.socket.close()
        assert bool(link.export.flags & TransmissionFlag.CAN_MULTI_CONN) is multi_conn
        nursery.cancel_scope.cancel()


async def test_an_attempt_of_a_client_in_a_hurry_proves_nothing_to_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    place = Place()
    server = server_of(place)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome, server.connector.connect)
        await trio.sleep(7)
        place.hangs = True  # its last attempt has 2.25 s
    assert trio.current_time() - place.began == 10
    place.hangs, place.up_at = False, 0
    assert await outcome(server.connector.connect) == (0, "")


# --- Several places


def server_at(*places: Place, same_storage: bool = False) -> upstream.Server:
    connects = [place.connect for place in places]
    return server_to("main", *connects, same_storage=same_storage, chance=lambda: 1.0)


async def test_the_next_is_taken_at_once_and_the_first_again_when_it_is_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    first, second = Place(), Place(up_at=0)
    server = server_at(first, second)
    told: list[News] = []
    server.tell = told.append
    assert await outcome(server.connector.connect) == (0, "")
    assert (first.attempts, second.attempts) == ([0], [0])
    await trio.sleep(0.1)
    assert await outcome(server.connector.connect) == (0, "")
    assert (first.attempts, second.attempts) == ([0], [0, 0.1])
    first.up_at = 0
    await trio.sleep(0.9)
    assert await outcome(server.connector.connect) == (0, "")
    assert (first.attempts, second.attempts) == ([0, 1], [0, 0.1])
    [down, back] = told
    assert down == WentDown("nobody listens", entirely=False)
    assert isinstance(back, CameBack)
    assert not back.entirely


async def test_with_same_storage_the_server_that_worked_last_is_kept_to(
    autojump_clock: trio.testing.MockClock,
) -> None:
    first, second = Place(), Place(up_at=0)
    server = server_at(first, second, same_storage=True)
    assert await outcome(server.connector.connect) == (0, "")
    first.up_at = 0
    await trio.sleep(1)
    assert await outcome(server.connector.connect) == (0, "")
    assert (first.attempts, second.attempts) == ([0], [0, 1])


async def test_a_first_that_takes_no_connection_leaves_time_for_the_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert await outcome(server_at(Place(hangs=True), Place(up_at=0)).connector.connect) == (5, "")


async def test_a_mistake_in_one_place_does_not_keep_from_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def mistaken() -> trio.SocketStream:
        raise DialError("there is no such name")

    place = Place(up_at=0)
    assert await outcome(server_to("main", mistaken, place.connect).connector.connect) == (0, "")


async def test_all_reasons_are_told(autojump_clock: trio.testing.MockClock) -> None:
    seconds, text = await outcome(server_at(Place(), Place(hangs=True)).connector.connect)
    assert seconds <= 10
    assert "nobody listens; uris[1] did not take a connection within" in text


SEVERAL = "upstream 'main' has several uris, which may lead to different disks"


@pytest.mark.parametrize(
    ("read_only", "upstream_keys", "export", "served"),
    [
        (False, "", "", False),
        (True, "", "", True),
        (False, "same-storage = true", "", True),
        (False, "", "read-only = true", True),
        (False, "", 'policies = [{ use = "readonly" }]', True),
        (False, "", 'policies = [{ use = "readonly", mode = "observe" }]', False),
    ],
)
@pytest.mark.parametrize("go", [True, False])
async def test_what_may_be_written_is_not_served_of_several_places(
    read_only: bool, upstream_keys: str, export: str, served: bool, go: bool
) -> None:
    server = Server({"": MemoryDisk(limits.MIB, read_only=read_only)})
    rest = export or 'description = "x"'
    async with gateway_before(server, upstream=upstream_keys, export=rest, places=2) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.structured()
            if go:
                client.negotiation.go("", [])
            else:
                client.negotiation.ask_info("", [])
            if served:
                await client.answered()
            else:
                refused = await client.refused()
                assert refused.reply == Rep.ERR_POLICY
                assert refused.text.startswith(SEVERAL)


async def test_a_reload_that_adds_a_server_keeps_to_the_address_and_the_locks() -> None:
    def config(upstream_keys: str) -> Config:
        return parse(f'[[listen]]\nuri = "nbd://h"\n[upstream.main]\n{upstream_keys}\n', "test")

    async with trio.open_nursery() as nursery:
        before = servers_of(config('uri = "nbd://a"'), nursery, None)
        more = servers_of(config('uris = ["nbd://b", "nbd://a"]'), nursery, None, before)
        other = servers_of(config('uris = ["nbd://b", "nbd://c"]'), nursery, None, before)
    [dialler] = before.backends["main"].diallers
    assert more.backends["main"].diallers[1] is dialler
    assert more.servers["main"].disks is before.servers["main"].disks
    assert other.servers["main"].disks is not before.servers["main"].disks


# --- No more connections than may be


async def told_who_is_too_many(client: Client) -> str:
    await client.structured()
    client.negotiation.go("", [])
    refused = await client.refused()
    assert refused.reply == Rep.ERR_SHUTDOWN
    return refused.text


FULL = "upstream 'main' is in use: max-connections = 2 lets it have no more connections"


async def test_who_is_too_many_waits_and_is_told(autojump_clock: trio.testing.MockClock) -> None:
    server = Server({"": MemoryDisk(limits.MIB)})
    async with gateway_before(server, upstream="max-connections = 2") as gateway:
        first, second, third = (gateway.client() for _ in range(3))
        async with first.stream, second.stream, third.stream:
            await first.go()
            await second.go()
            began = trio.current_time()
            assert await told_who_is_too_many(third) == FULL
            assert trio.current_time() - began == 10
            fourth = gateway.client()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fourth.go)
                await trio.sleep(3)
                await first.stream.aclose()
            assert trio.current_time() - began < 20
            third.negotiation.list_exports()
            before = trio.current_time()
            assert (await third.refused()).text == FULL
            assert trio.current_time() == before
            await fourth.stream.aclose()


async def test_every_end_of_a_connection_leaves_its_place(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whatever becomes of a client, the next one has the only place."""
    server = Server({"": MemoryDisk(limits.MIB)})
    refuse = False
    async with gateway_before(
        server, upstream="max-connections = 1", refuse=lambda: refuse, seconds=1000
    ) as gateway:

        async def client_that(does: Callable[[Client], Awaitable[object]]) -> None:
            client = gateway.client()
            async with client.stream:
                await does(client)

        async def unknown(client: Client) -> None:
            await client.structured()
            client.negotiation.go("none", [])
            await client.refused()

        async def asks_only(client: Client) -> None:
            await client.structured()
            client.negotiation.ask_info("", [])
            await client.answered()

        async def lists(client: Client) -> None:
            await client.structured()
            client.negotiation.list_exports()
            await client.answered()

        async def leaves(client: Client) -> None:
            await client.structured()
            client.negotiation.go("", [])
            await client.stream.send_all(client.negotiation.data_to_send())

        for does in (unknown, asks_only, lists, leaves, Client.go, Client.go):
            began = trio.current_time()
            await client_that(does)
            assert trio.current_time() - began < 10
        refuse = True
        await client_that(told_who_is_too_many)
        refuse = False
        await trio.sleep(100)
        await client_that(Client.go)


async def test_a_second_question_does_not_need_a_second_place(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Where policies look at the disk, INFO is answered over a link that is kept for GO."""
    server = Server({"": MemoryDisk(limits.MIB)})
    looks = 'policies = [{ use = "delay", open = 0.1 }]'
    keys = "max-connections = 1"
    async with gateway_before(server, upstream=keys, export=looks) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.structured()
            began = trio.current_time()
            for _ in range(2):
                client.negotiation.ask_info("", [])
                await client.answered()
            client.negotiation.go("", [])
            await client.answered()
            assert trio.current_time() - began < 1


@pytest.mark.parametrize("looks", ["", 'policies = [{ use = "delay", open = 0.1 }]'])
async def test_a_list_after_a_question_does_not_need_a_second_place(
    looks: str, autojump_clock: trio.testing.MockClock
) -> None:
    """As nbdinfo of libnbd 1.22 asks."""
    server = Server({"": MemoryDisk(limits.MIB)})
    keys = "max-connections = 1"
    async with gateway_before(server, upstream=keys, export=looks) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.structured()
            for _ in range(2):
                client.negotiation.ask_info("", [])
                await client.answered()
                client.negotiation.list_exports()
                await client.answered()
            client.negotiation.go("", [])
            await client.answered()


async def test_the_limit_holds_through_a_reload() -> None:
    def config(more: str) -> Config:
        text = f'[[listen]]\nuri = "nbd://h"\n[upstream.main]\nuri = "nbd://a"\n{more}\n'
        return parse(text, "test")

    def in_force(servers: Servers) -> upstream.Server:
        server = servers.servers["main"]
        server.come_into_force(lambda _news: None)
        return server

    async with trio.open_nursery() as nursery:
        two = servers_of(config("max-connections = 2"), nursery, None)
        slots = [await in_force(two).slot() for _ in range(2)]
        one = servers_of(config("max-connections = 1"), nursery, None, two)
        server = in_force(one)
        for slot in slots:
            with pytest.raises(Full, match="max-connections = 1 lets"):
                await server.slot(patient=False)
            slot.leave()
            slot.leave()
        await server.slot(patient=False)
        await in_force(servers_of(config(""), nursery, None, one)).slot(patient=False)


async def test_the_log_is_told_of_servers_that_a_reload_brings() -> None:
    server = server_of(Place())
    with structlog.testing.capture_logs() as said:
        async with gateway_before(Server({"": MemoryDisk(limits.MIB)})) as gateway:
            service = gateway.service
            service.reconfigure(service.config, service.access, {"main": server})
            server.tell(WentDown("nobody listens"))
    assert [line["event"] for line in said] == ["upstream is down"]


async def test_the_log_says_once_that_it_is_down_and_once_that_it_is_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    up = False
    server = Server({"": MemoryDisk(limits.MIB)})

    async def refused(times: int) -> None:
        for _ in range(times):
            client = gateway.client()
            async with client.stream:
                await client.structured()
                client.negotiation.go("", [])
                await client.refused()

    with structlog.testing.capture_logs() as said:
        async with gateway_before(server, seconds=1000, refuse=lambda: not up) as gateway:
            gateway.nursery.start_soon(gateway.service.turned_away.run)
            await refused(3)
            await trio.sleep(61)
            await refused(2)
            await trio.sleep(61)
            up = True
            client = gateway.client()
            async with client.stream:
                await client.go()
            gateway.nursery.cancel_scope.cancel()
    events = [line for line in said if "upstream" in line["event"]]
    assert [(line["event"], line.get("count")) for line in events] == [
        ("upstream is down", None),
        ("clients turned away: upstream is down", 1),
        ("clients turned away: upstream is down", 2),
        ("clients turned away: upstream is down", 2),
        ("upstream is back", None),
    ]
    assert {line["upstream"] for line in events} == {"main"}
    assert events[0]["why"] == "nobody listens"


async def test_who_waits_with_a_session_is_not_turned_away(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    up = True
    server = Server({"": MemoryDisk(limits.MIB)})
    links: list[trio.SocketStream] = []

    def connect() -> trio.SocketStream:
        ours, theirs = socket_pair()
        nursery.start_soon(server.serve, theirs)
        links.append(theirs)
        return ours

    with structlog.testing.capture_logs() as said:
        async with gateway_before(connect, seconds=1000, refuse=lambda: not up) as gateway:
            gateway.nursery.start_soon(gateway.service.turned_away.run)
            client = gateway.client()
            async with client.stream:
                await client.go()
                up = False
                links[0].socket.shutdown(trio.socket.SHUT_RDWR)
                assert not await client.stream.receive_some()
            gateway.nursery.cancel_scope.cancel()
    assert not [line for line in said if "turned away" in line["event"]]
    [over] = [line for line in said if "given up" in line["event"]]
    assert "for 60 s there was no other: nobody listens" in over["why"]


async def test_a_session_keeps_its_place_while_its_link_is_lost(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    up = True
    server = Server({"": MemoryDisk(limits.MIB)})
    links: list[trio.SocketStream] = []

    def connect() -> trio.SocketStream:
        ours, theirs = socket_pair()
        nursery.start_soon(server.serve, theirs)
        links.append(theirs)
        return ours

    keys = "max-connections = 1\nconnect-seconds = 200"
    async with gateway_before(
        connect, upstream=keys, refuse=lambda: not up, seconds=1000
    ) as gateway:
        first, second = gateway.client(), gateway.client()
        async with first.stream, second.stream:
            await first.go()
            gateway.nursery.start_soon(second.go)
            await trio.sleep(1)
            up = False
            links[0].socket.shutdown(trio.socket.SHUT_RDWR)
            await trio.sleep(10)
            up = True
            await trio.sleep(100)
            assert len(links) == 2
            with trio.move_on_after(1):
                assert await first.stream.receive_some(), "its session has ended"
            gateway.nursery.cancel_scope.cancel()


# --- A forwarder that has no server behind it, and a server that is silent


async def test_a_connection_that_is_closed_before_its_greeting_is_one_that_is_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told: list[News] = []
    place = Place(up_at=0, greets=False)
    server = server_of(place, told=told)

    async def comes_up() -> None:
        await trio.sleep(3)
        place.greets = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(comes_up)
        assert await outcome(server.connector.connect) == (3.75, "")
    assert place.attempts == [0, 0.25, 0.75, 1.75, 3.75]
    why = "it closed the connection before its greeting"
    assert told[0] == WentDown(why)
    assert isinstance(told[1], CameBack)


async def test_a_thousand_clients_ask_a_forwarder_no_oftener_than_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    place = Place(up_at=0, greets=False)
    server = server_of(place)
    await outcome(server.connector.connect)
    alone, place.attempts = place.attempts, []
    assert len(alone) == 7
    await trio.sleep(100)  # it may be another outage
    place.began = trio.current_time()
    outcomes: list[tuple[float, str]] = []

    async def client() -> None:
        outcomes.append(await outcome(server.connector.connect))

    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(client)
    assert place.attempts == alone
    why = "upstream 'main' is unreachable: it closed the connection before its greeting"
    assert outcomes == [(10, why)] * 1000


async def test_a_forwarder_that_takes_its_time_to_close_is_asked_by_one_for_all(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As haproxy, which tries its server a few times before it closes."""
    place = Place(up_at=0, silent=True)
    server = server_of(place)

    async def closes() -> None:
        while True:
            await trio.sleep(1)
            while place.ends:
                place.ends.pop().socket.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(closes)
        async with trio.open_nursery() as clients:
            clients.start_soon(outcome, server.connector.connect)
            await trio.sleep(2)
            for _ in range(100):
                clients.start_soon(outcome, server.connector.connect)
        nursery.cancel_scope.cancel()
    assert len(place.attempts) == 6


async def test_one_that_we_started_and_that_ends_at_once_is_not_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    place = Place(up_at=0, greets=False)
    server = server_to("main", place.connect, command=("serve",))
    why = "upstream 'main' is unreachable: it closed the connection before its greeting"
    assert await outcome(server.connector.connect) == (0, why)


async def refused_of(client: Client, ask: Callable[[], None]) -> float:
    """How long it takes until a client is refused what it asks for."""
    began = trio.current_time()
    ask()
    assert (await client.refused()).reply == Rep.ERR_SHUTDOWN
    return trio.current_time() - began


async def test_a_server_that_has_said_nothing_is_left_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    place = Place(0, silent=True)
    server = server_to("main", place.connect)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exports_of, server)
        await trio.testing.wait_all_tasks_blocked()
        assert place.ends
        nursery.cancel_scope.cancel()
    assert trio.current_time() == place.began
    assert await place.ends[0].receive_some() == b""
    for end in place.ends:
        await trio.aclose_forcefully(end)


@pytest.mark.parametrize("connections", ['"per-client"', '"shared"', "2"])
@pytest.mark.parametrize("faults", [SILENT_AFTER_GREETING, Faults(stall_after_bytes=0)])
async def test_a_silent_server_costs_a_client_its_time_for_opening_once(
    faults: Faults, connections: str, autojump_clock: trio.testing.MockClock
) -> None:
    """qemu asks SET_META_CONTEXT, and then GO, whatever became of that; its monitor stands still meanwhile."""
    server = Server({"": MemoryDisk(limits.MIB)}, faults=faults)
    keys = f"connections = {connections}"
    async with gateway_before(server, upstream=keys, handshake_seconds=100) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.structured()
            negotiation = client.negotiation
            asks = partial(negotiation.ask_contexts, "", ["base:allocation"], select=True)
            assert await refused_of(client, asks) == 5
            assert await refused_of(client, partial(negotiation.go, "", [])) == 0
            # Another export is another matter.
            assert await refused_of(client, partial(negotiation.go, "other", [])) == 5


async def test_answers_that_come_slowly_all_count(autojump_clock: trio.testing.MockClock) -> None:
    """Each of them comes within the time for all."""
    server = Server({"": MemoryDisk(limits.MIB)})
    async with trio.open_nursery() as nursery:

        async def slowly(near: trio.SocketStream, far: trio.SocketStream) -> None:
            async with near, far:
                while data := await far.receive_some():
                    await trio.sleep(2)
                    await near.send_all(data)

        async def connect() -> trio.SocketStream:
            ours, near = socket_pair()
            far, theirs = socket_pair()
            nursery.start_soon(server.serve, theirs)
            nursery.start_soon(slowly, near, far)
            nursery.start_soon(_pass_on, near, far)
            return ours

        slow = server_to("main", connect, negotiate_seconds=5)
        began = trio.current_time()
        with pytest.raises(Silent, match="has not opened the export within 5 s in all"):
            await Negotiation(slow).go(TERMS)
        assert trio.current_time() - began == 5
        nursery.cancel_scope.cancel()


async def _pass_on(near: trio.SocketStream, far: trio.SocketStream) -> None:
    with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
        while data := await near.receive_some():
            await far.send_all(data)


async def test_clients_that_wait_for_one_that_meets_a_silent_server_are_told_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server({"": MemoryDisk(limits.MIB)}, faults=SILENT_AFTER_GREETING)
    keys = 'connections = "shared"'
    async with gateway_before(server, upstream=keys, handshake_seconds=100) as gateway:
        took: list[float] = []

        async def one() -> None:
            client = gateway.client()
            async with client.stream:
                await client.structured()
                took.append(await refused_of(client, partial(client.negotiation.go, "", [])))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
        assert took == [5] * 5
        assert server.connections == 1


# --- A server that has room for those that it serves


@pytest.mark.parametrize("keys", ["connections = 2", "warm = 1"])
async def test_one_more_than_a_server_takes_is_no_news_while_it_serves(
    keys: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The second of two links, or one that is made ahead."""
    room = 1
    server = Server({"": MemoryDisk(limits.MIB)})

    with structlog.testing.capture_logs() as said:
        async with gateway_before(
            server, upstream=keys, refuse=lambda: server.connections >= room, seconds=1000
        ) as gateway:
            [main] = gateway.service.servers.values()
            client = gateway.client()
            async with client.stream:
                await client.go()
                await trio.sleep(100)
                assert not main.down
                assert await client.read(0, 512) == bytes(512)
                room = 2
                other = gateway.client()
                async with other.stream:
                    await other.go()
    assert not [line for line in said if "down" in line["event"]]


async def test_what_is_one_more_is_news_when_nothing_is_served(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told: list[News] = []
    server = server_of(Place(), told=told)
    with pytest.raises(Unreachable):
        await server.connector.connect(beside=True, for_client=False)
    assert told == [WentDown("nobody listens")]


# --- A server for one connection


async def test_a_server_that_ends_with_its_first_connection_is_recognised(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As an old qemu-nbd without -t: it loses its way at the first option, and that was its one client."""
    server = Server({"": MemoryDisk(limits.MIB)}, PERSONALITIES["qemu-2.5"])
    one_alone = (
        "(it has taken one connection, and none after that: a server that serves a single one, as qemu-nbd"
        " without -t, ends with it)"
    )
    with structlog.testing.capture_logs() as said:
        async with gateway_before(server, refuse=lambda: server.connections > 0) as gateway:
            client = gateway.client()
            async with client.stream:
                await client.structured()
                client.negotiation.go("", [])
                text = (await client.refused()).text
    assert text == (
        f"upstream 'main' is unreachable: nobody listens {one_alone}; before that, at an option:"
        " the peer closed the connection"
    )
    [down] = [line for line in said if line["event"] == "upstream is down"]
    assert down["why"] == f"nobody listens {one_alone}"

"""Clients whose disk has its home at another gateway, through the gateway where they came in: the other one is
in the test's own process, and the fleet says what the test has it say.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import structlog
import trio
import trio.testing

from gateway.access.rules import Grant
from gateway.clients.client import serve_given
from gateway.config import PER_CLIENT, Connections, Route, Upstream
from gateway.embedded import MemoryDisk, Server
from gateway.fleet.led import HomePeer
from gateway.handover.given import Given
from gateway.identity import Identity
from gateway.net.dial import DialError
from gateway.protocol.client_role import Answered, Refused
from gateway.sessions.holding import Holding, Within
from gateway.sessions.led import led_grant, led_settings
from gateway.upstream.backends import Backend
from gateway.upstream.recipe import Recipe
from gateway.upstream.server import Server as Upstream_
from gateway.wire.constants import Cmd, Errno, Info, Rep
from tests.embedded.peers import Client, socket_pair
from tests.sessions.asking import BLOCK, CONTENT, flush, opened, read, write
from tests.sessions.forgetful import FOR_ITSELF
from tests.sessions.gateways import Gateway, gateway_before
from tests.sessions.restarts import SIZE, disk, went_back
from tests.tools.defaults import MODE

NAME = "disk"


@dataclass
class OneElsewhere:
    """A fleet in which another gateway is the home of every disk (`gateway.sessions.led.Gateways`)."""

    home: Gateway
    given: list[Given] = field(default_factory=list)
    why_not: str = ""
    peers: list[HomePeer] = field(default_factory=list)
    """Where the connections have led."""

    def cut(self) -> None:
        """Cut all that leads to the home."""
        for running in list(self.home.service.running):
            running.relaying.cut()

    async def leads(self, client: Given, server: Upstream_) -> Upstream_ | None:
        self.given.append(client)

        async def connect() -> trio.SocketStream:
            if self.why_not:
                raise DialError(self.why_not, down=True)
            ours, theirs = socket_pair()
            listen = self.home.service.config.listen[0]
            serve = partial(serve_given, self.home.service, listen)
            self.home.nursery.start_soon(serve, theirs, client)
            return ours

        settings = led_settings(server.settings, 10, 10)

        def peer_of(_stream: object) -> HomePeer:
            self.peers.append(HomePeer(None, ""))
            return self.peers[-1]

        target, disks = server.recipe.backend.target, ("home", "main")
        backend = Backend(target, (connect,), peer_of=peer_of, disks=disks)
        return Upstream_(Recipe("main", settings, backend, at_home=True))


@dataclass
class Moved:
    """The fleet as it is at a home (`gateway.sessions.led.Gateways`): so many times the disk is elsewhere."""

    times: int
    asked: int = 0

    async def leads(self, _client: Given, server: Upstream_) -> Upstream_ | None:
        self.asked += 1
        if self.asked > self.times:
            return None

        async def connect() -> trio.SocketStream:
            raise DialError("it is led on", down=False)

        backend = Backend(server.recipe.backend.target, (connect,))
        return Upstream_(Recipe("elsewhere", server.settings, backend, at_home=True))


@asynccontextmanager
async def led(
    server: Server, *, at_home: str = "", here: str = "read-only = true\n"
) -> AsyncIterator[tuple[Gateway, OneElsewhere]]:
    """Have a gateway that leads its clients to another one before `server`. What the exports of both say
    differs, so that what is done twice is seen.
    """
    upstream = "canonical-names = true\n"
    tls = 'tls = "allow"\ncertificates = "/nowhere"\n'
    async with (
        gateway_before(
            server, seconds=3000, export=at_home, mode=MODE, listen=tls, upstream=upstream
        ) as home,
        gateway_before(disk(), seconds=3000, export=here, mode=MODE, upstream=upstream) as entry,
    ):
        fleet = OneElsewhere(home)
        entry.service.gateways = fleet
        yield entry, fleet


def test_what_is_granted_is_as_the_home_tells_it() -> None:
    route = Route("u", "there", "words", "refuse", True, True, True, True, (), True, 3)
    granted = led_grant(Grant("here", route, "rule 1", (), 1, ("would",)))
    assert granted.route == Route(
        "u", "here", None, "refuse", False, False, False, True, (), True, 3
    )
    assert (granted.rule_name, granted.chain, granted.would) == (1, (), ())


def test_how_a_home_is_spoken_to() -> None:
    every = Upstream().model_copy(
        update={
            "connections": Connections(shared=True),
            "unflushed": "replay",
            "sole_writer": True,
            "stall_seconds": 3,
            "same_storage": True,
            "max_connections": 1,
            "reconnect_seconds": 7,
        }
    )
    settings = led_settings(every, 80, 9)
    assert settings.connections == PER_CLIENT
    assert (settings.unflushed, settings.stall_seconds, settings.quirks) == ("sticky", 0, ())
    assert (settings.connect_seconds, settings.negotiate_seconds) == (80, 10 + 30)
    assert (settings.keepalive_seconds, settings.user_timeout_seconds) == (9, 9)
    assert (settings.same_storage, settings.max_connections) == (False, None)
    assert settings.reconnect_seconds == 7  # the operator's word
    trusted = every.model_copy(update={"unflushed": "assume-durable"})
    assert led_settings(trusted, 80, 9).unflushed == "assume-durable"


async def test_nothing_is_done_twice_and_the_home_is_asked_by_our_name(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server({NAME: MemoryDisk(SIZE)})
    here = 'read-only = true\ndescription = "of the entry"\nupstream-name = "other"\n'
    async with led(server, at_home='description = "of the home"\n', here=here) as (entry, fleet):
        client = entry.client()
        wanted = (Info.DESCRIPTION, Info.NAME)
        answered = await client.go(NAME, structured=False, wanted=wanted)
        async with client.stream:
            assert (answered.description, answered.name) == ("of the home", NAME)
            assert await write(client) == 0  # the home does not say read-only
            assert await read(client) == (0, CONTENT)
            [given] = fleet.given
            [running] = fleet.home.service.running
            assert running.membership.session.client.id == given.session_id


async def test_the_home_knows_who_it_is_and_whether_it_came_over_tls(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server({NAME: MemoryDisk(SIZE)})
    async with led(server, at_home='tls = "require"\n') as (entry, fleet):
        client = entry.client()
        async with client.stream:
            await client.greeting()
            client.negotiation.go(NAME, ())
            assert (await client.refused()).reply == Rep.ERR_UNKNOWN
        who = replace(Identity.at("192.0.2.1", 7), tls_version="TLSv1.3", cipher="X")
        ours, theirs = socket_pair()
        given = replace(fleet.given[0], identity=who)
        listen = fleet.home.service.config.listen[0]
        fleet.home.nursery.start_soon(serve_given, fleet.home.service, listen, theirs, given)
        over_tls = Client(ours)
        async with ours:
            await over_tls.go(NAME, structured=False)
            [running] = fleet.home.service.running
            assert running.membership.session.client.identity == who


@pytest.mark.parametrize("unflushed", [True, False])
async def test_a_session_lives_on_without_its_home_and_is_told_once(
    unflushed: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """A FLUSH speaks for all (CAN_MULTI_CONN), and others write by other gateways: so it is, too, if nothing is
    unflushed here.
    """
    async with led(disk()) as (entry, fleet):
        client, other = await opened(entry), await opened(entry)
        async with client.stream, other.stream:
            assert await write(client) == 0
            assert unflushed or await flush(client) == 0
            fleet.why_not = "it is dead"
            fleet.cut()
            cookie = await client.send(Cmd.FLUSH)
            await trio.sleep(5)
            fleet.why_not = ""
            assert (await client.simple_reply())[:2] == (cookie, Errno.EIO)
            assert await flush(client) == 0
            assert [await flush(other), await flush(other)] == [Errno.EIO, 0]
            assert await read(client) == (0, CONTENT)
            await went_back(entry)


async def test_where_the_home_has_kept_all_nobody_is_told_of_a_loss(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nor does anybody wait for what may come late: nothing was begun that was not answered."""
    async with led(disk()) as (entry, fleet):
        client, other = await opened(entry), await opened(entry)
        async with client.stream, other.stream:
            assert await write(client) == 0
            holding = Holding(fleet.home.service)
            await holding.hold([""], Within(60), who="a test")
            late = entry.service.config.upstream["main"].late_write_seconds
            began = trio.current_time()
            again = await client.send(Cmd.WRITE, BLOCK, data=CONTENT)
            await trio.testing.wait_all_tasks_blocked()
            for each in fleet.peers:
                each.has_kept = True
            fleet.cut()
            holding.let_go_on("")
            assert (await client.simple_reply())[:2] == (again, 0)
            assert trio.current_time() - began < late
            assert await flush(other) == await flush(client) == 0
            assert await read(client, BLOCK) == (0, CONTENT)
            await went_back(entry)
            fleet.cut()  # what this one has kept nobody knows
            assert [await flush(client), await flush(client)] == [Errno.EIO, 0]


async def test_what_the_home_says_no_to_is_said_in_its_words(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limit = 'policies = [{ use = "limit", connections = 1 }]\n'
    async with led(disk(), at_home=limit) as (entry, fleet):
        first = await opened(entry)
        async with first.stream:
            said = []
            for gateway in (entry, fleet.home):
                client = gateway.client()
                async with client.stream:
                    await client.greeting()
                    client.negotiation.go("", ())
                    said.append(await client.refused())
            assert said[0] == said[1]
            assert said[0].reply == Rep.ERR_POLICY


@pytest.mark.parametrize("times", [1, 2])
async def test_a_disk_has_moved_when_its_client_opens_it(
    times: int, autojump_clock: trio.testing.MockClock
) -> None:
    """It is not led on from where it was the home: where it came in, the home is asked for once more."""
    async with led(disk()) as (entry, fleet):
        fleet.home.service.gateways = Moved(times)
        client = entry.client()
        async with client.stream:
            await client.structured()
            client.negotiation.go("", ())
            said = await client.event()
            assert len(fleet.peers) == 2
            if times == 1:
                assert isinstance(said, Answered)
                assert await client.read(0, BLOCK) == bytes(BLOCK)
            else:
                assert isinstance(said, Refused)
                assert said.reply == Rep.ERR_SHUTDOWN
                assert "another gateway" in said.text


async def test_a_disk_moves_while_a_link_to_it_is_made_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with led(disk()) as (entry, fleet):
        client = await opened(entry)
        async with client.stream:
            assert (await write(client), await flush(client)) == (0, 0)
            at_home = fleet.home.service.gateways = Moved(2)
            fleet.cut()
            assert await read(client) == (0, CONTENT)
            assert at_home.asked == 3
            await went_back(entry)


async def test_who_is_denied_has_no_home_looked_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rule = '[[rule]]\nwho = { network = "192.0.2.1" }\n'
    async with led(disk(), here=rule) as (entry, fleet):
        client = entry.client()
        async with client.stream:
            await client.greeting()
            client.negotiation.go("", ())
            await client.refused()
        assert not fleet.given


async def test_nobody_serves_it(autojump_clock: trio.testing.MockClock) -> None:
    async with led(disk()) as (entry, fleet):
        fleet.why_not = "its home is b: it does not answer"
        client = entry.client()
        async with client.stream:
            await client.greeting()
            client.negotiation.go("", ())
            refused = await client.refused()
        assert refused.reply == Rep.ERR_SHUTDOWN
        assert "its home is b" in refused.text


@pytest.mark.parametrize("differ", [1, 2])
async def test_others_may_have_written_over_what_was_flushed(
    differ: int, autojump_clock: trio.testing.MockClock
) -> None:
    """One place that differs does not make it another disk, though a FLUSH speaks for its own writes alone."""
    image = MemoryDisk(SIZE)
    with structlog.testing.capture_logs() as lines:
        async with led(Server({"": image}, FOR_ITSELF)) as (entry, fleet):
            client = await opened(entry)
            async with client.stream:
                for at in range(2):
                    assert await write(client, at * BLOCK) == 0
                    assert await flush(client) == 0
                for at in range(differ):
                    await image.write(at * BLOCK, bytes(BLOCK), fua=False)
                fleet.cut()
                await client.send(Cmd.READ, 2 * BLOCK, BLOCK)
                _cookie, error, _data = await client.simple_reply()
                assert bool(error) is (differ == 2)
    given_up = [line for line in lines if line["event"] == "upstream connections given up"]
    assert [("another disk" in line["why"]) for line in given_up] == [True] * (differ == 2)

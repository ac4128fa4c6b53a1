"""Two upstreams with one address: clients of one share connections, and clients of the other have their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, cast

import pytest
import trio
import trio.testing

from gateway.config import Connections
from gateway.links.opening import OwnNegotiation
from gateway.links.shared import AskedOtherwise
from gateway.protocol.client_role import Answered
from gateway.upstream.link import Terms
from gateway.upstream.recipe import Recipe
from gateway.upstream.server import Server as Upstream
from tests.embedded.peers import Client
from tests.sessions.asking import opened, write
from tests.sessions.forgetful import FOR_ITSELF, SIZE, SOON, at_rest
from tests.sessions.gateways import Gateway, gateway_before
from tests.tools.volatile import VolatileDisk, VolatileServer

if TYPE_CHECKING:
    from gateway.links.trunk import Trunk

UPSTREAM = """
[upstream.other]
uri = "nbd://127.0.0.1"
[[export]]
name = "shared"
upstream = "other"
upstream-name = "b"
[[export]]
name = "*"
upstream = "main"
"""


class Standing:
    """All that is asked of a trunk by who only sees whether there is one."""

    def __init__(self) -> None:
        self.stands = True


@dataclass
class House:
    gateway: Gateway
    clients: list[Client] = field(default_factory=list)

    async def opened(self, name: str) -> Client:
        self.clients.append(await opened(self.gateway, name))
        return self.clients[-1]

    async def looked_at(self, name: str) -> Client:
        """A client that has asked INFO of an export."""
        self.clients.append(client := self.gateway.client())
        await client.greeting()
        client.negotiation.ask_info(name, ())
        assert isinstance(await client.event(), Answered)
        return client

    @property
    def links(self) -> list[tuple[str, str]]:
        """What each session has."""
        running = self.gateway.service.running
        return sorted((each.name, type(each.opened.uplink).__name__) for each in running)


@asynccontextmanager
async def two_ways() -> AsyncIterator[House]:
    server = VolatileServer(SIZE, FOR_ITSELF)
    server.exports = {"a": server.disk, "b": VolatileDisk(SIZE)}
    async with gateway_before(server, seconds=3000, mode=SOON, upstream=UPSTREAM) as gateway:
        main = gateway.service.servers["main"]
        other = Upstream(Recipe("other", main.settings, main.recipe.backend))
        other.mode = replace(SOON, wanted=Connections(shared=True))
        gateway.service.servers = {**gateway.service.servers, "other": other}
        house = House(gateway)
        try:
            yield house
        finally:
            for client in house.clients:
                await trio.aclose_forcefully(client.stream)


async def goes(client: Client, name: str) -> None:
    client.negotiation.go(name, ())
    assert isinstance(await client.event(), Answered)
    await at_rest()


@pytest.mark.parametrize(
    ("first", "then", "kind"), [("a", "b", "Share"), ("b", "a", "OwnLink"), ("b", "b", "Share")]
)
async def test_whether_a_client_shares_goes_by_the_disk_that_it_opens(
    first: str, then: str, kind: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with two_ways() as house:
        await house.opened("shared")
        client = await house.looked_at(first)
        await goes(client, then)
        assert house.links == sorted([("shared", "Share"), (then, kind)])
        assert await write(client) == 0


async def test_who_has_looked_at_a_trunk_goes_on_over_it_when_all_others_have_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with two_ways() as house:
        sharing = await house.opened("shared")
        client = await house.looked_at("b")
        await sharing.stream.aclose()
        await at_rest()
        await goes(client, "b")
        assert house.links == [("b", "Share")]
        assert await write(client) == 0


async def test_no_trunk_begins_where_clients_have_links_of_their_own() -> None:
    async with two_ways() as house:
        service = house.gateway.service
        disk = service.disks.at(service.servers["main"], "b")
        with pytest.raises(AskedOtherwise):
            await service.trunks.join(disk, service.servers["main"], "b")


async def test_who_opens_a_link_while_a_trunk_begins_is_told() -> None:
    async with two_ways() as house:
        service = house.gateway.service
        disk = service.disks.at(service.servers["main"], "b")
        main = service.servers["main"]
        own = OwnNegotiation(service.trunks, main, partial(service.disks.at, main))
        refused: list[AskedOtherwise] = []

        async def opens() -> None:
            try:
                await own.open(Terms("b", structured=True))
            except AskedOtherwise as error:
                refused.append(error)

        async with trio.open_nursery() as nursery, disk.turn:
            nursery.start_soon(opens)
            await at_rest()
            disk.trunk = cast("Trunk", Standing())
        assert refused
        Standing.stands = False


async def test_who_is_about_to_open_a_link_when_a_trunk_begins_joins_that(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with two_ways() as house:
        client = await house.looked_at("b")
        await house.opened("shared")
        await goes(client, "b")
        assert house.links == [("b", "Share"), ("shared", "Share")]
        assert await write(client) == 0

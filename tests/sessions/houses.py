"""A gateway whose exports can be paused and switched, with its clients, and one of them that opens slowly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self

import trio
import trio.testing
from pydantic import PrivateAttr

from gateway.embedded import PERSONALITIES, Faults, MemoryDisk, Server
from gateway.hub.session import Session
from gateway.policy import Next, Policy, View
from gateway.sessions.pausing import Pauses
from gateway.sessions.whereabouts import Target
from gateway.wire.limits import MIB
from tests.embedded.peers import Client, socket_pair
from tests.sessions.gateways import Gateway, gateway_before
from tests.sessions.placed import place
from tests.tools.patience import HANG_SECONDS
from tests.upstream.servers import server_to

SIZE = MIB


PLAIN = PERSONALITIES["plain"]


class House:
    """A gateway before one server, and others that it may be switched to."""

    def __init__(self, gateway: Gateway, nursery: trio.Nursery) -> None:
        self.gateway = gateway
        self.service = gateway.service
        self.pauses = Pauses(gateway.service, nursery)
        self._nursery = nursery
        self.clients: list[Client] = []

    def comes(self) -> Client:
        """A client that has just connected."""
        self.clients.append(self.gateway.client())
        return self.clients[-1]

    async def client(self, name: str = "") -> Client:
        client = self.comes()
        await client.go(name, structured=False)
        await trio.testing.wait_all_tasks_blocked()
        return client

    def sessions(self) -> set[Session]:
        return self.service.hub.sessions

    def at(self, server: Server, name: str = "another") -> Target:
        async def connect() -> trio.SocketStream:
            ours, theirs = socket_pair()
            self._nursery.start_soon(server.serve, theirs)
            return ours

        before = self.service.servers["main"]
        return Target(server_to(name, connect, disks=server, mode=before.mode))


@asynccontextmanager
async def house(
    server: Server | Callable[[], trio.SocketStream], **settings: str
) -> AsyncIterator[House]:
    async with (
        trio.open_nursery() as nursery,
        gateway_before(server, seconds=3000, **settings) as gateway,  # type: ignore[arg-type] # passed on
    ):
        made = House(gateway, nursery)
        try:
            yield made
        finally:
            for client in made.clients:
                await trio.aclose_forcefully(client.stream)
            made.service.drain()
        with trio.fail_after(HANG_SECONDS):
            while made.sessions():
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


def disk_of(disk: MemoryDisk, on_reply: object = None, **more: object) -> Server:
    return Server({"": disk}, PLAIN, faults=Faults(on_reply=on_reply, **more))  # type: ignore[arg-type] # passed on


class Slow(Policy):
    """Looks at the disk before it is described, and takes its time."""

    _let_go: trio.Event = PrivateAttr(default_factory=trio.Event)

    def prepares(self) -> bool:
        return True

    async def prepare(self, behind: View, read: Next) -> Self:
        await self._let_go.wait()
        return self


@asynccontextmanager
async def opening_slowly(made: House) -> AsyncIterator[tuple[Slow, trio.Event, Client]]:
    """A client whose export is being opened, until the policy lets it."""
    slow, opened, client = Slow(), trio.Event(), made.comes()
    place(made.gateway, slow)

    async def come() -> None:
        await client.go("", structured=False)
        opened.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come)
        await trio.testing.wait_all_tasks_blocked()
        yield slow, opened, client

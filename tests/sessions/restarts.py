"""A server that can be killed, and may come back as another, with a gateway before it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from gateway.embedded import PERSONALITIES, MemoryDisk, Personality, Server
from gateway.upstream.mode import Mode
from gateway.wire.limits import MIB
from tests.embedded.peers import socket_pair
from tests.sessions.gateways import Gateway, gateway_before
from tests.tools.defaults import MODE

SIZE = 8 * MIB
PLAIN = PERSONALITIES["plain"]


class Restarts:
    """A server that can be killed, and may come back as another."""

    def __init__(self, nursery: trio.Nursery, server: Server) -> None:
        self.server = server
        self.down = False
        self.connected = 0
        self._nursery = nursery
        self._serving: dict[int, trio.CancelScope] = {}

    def connect(self) -> trio.SocketStream:
        ours, theirs = socket_pair()
        self._nursery.start_soon(self._serve, self.connected, theirs)
        self.connected += 1
        return ours

    async def _serve(self, number: int, stream: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._serving[number] = scope
            async with stream:
                await self.server.serve(stream)
        del self._serving[number]

    @property
    def there(self) -> int:
        """How many connections are there."""
        return len(self._serving)

    def cut(self, number: int) -> None:
        """Cut one connection: the first is 0."""
        self._serving[number].cancel()

    def kill(self, server: Server | None = None, *, down: bool = False) -> None:
        """Cut all connections."""
        self.server, self.down = server or self.server, down
        for scope in list(self._serving.values()):
            scope.cancel()


@asynccontextmanager
async def restarting(
    server: Server, mode: Mode | None = None
) -> AsyncIterator[tuple[Gateway, Restarts]]:
    async with trio.open_nursery() as nursery:
        made = Restarts(nursery, server)
        async with gateway_before(
            made.connect, seconds=3000, refuse=lambda: made.down, mode=mode or MODE
        ) as gateway:
            yield gateway, made
        nursery.cancel_scope.cancel()


def disk(content: bytes = b"", personality: Personality = PLAIN, size: int = SIZE) -> Server:
    made = MemoryDisk(size)
    return Server({"": made}, personality)


async def went_back(gateway: Gateway) -> None:
    """Wait until all sessions have links of their own."""
    while any(session.link is None or session.held for session in gateway.service.hub.sessions):
        await trio.sleep(0.01)

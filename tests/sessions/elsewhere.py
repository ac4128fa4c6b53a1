"""Servers that exports are switched to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing

from gateway.embedded import MemoryDisk, Server
from gateway.net.dial import DialError
from gateway.sessions.whereabouts import Target
from tests.embedded.peers import socket_pair
from tests.sessions.houses import (
    SIZE,
    House,
    disk_of,
    house,
)
from tests.upstream.servers import server_to


class There:
    """A server that one may be led to, with a count of its connections."""

    def __init__(self, server: Server, nursery: trio.Nursery) -> None:
        self.server = server
        self.nursery = nursery
        self.up = True
        self.made = self.now = self.most = 0
        self.serving: list[trio.CancelScope] = []

    def connect(self) -> trio.SocketStream:
        if not self.up:
            raise DialError("nobody is there", down=True)
        ours, theirs = socket_pair()
        self.made += 1
        self.now += 1
        self.most = max(self.most, self.now)
        self.nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, stream: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self.serving.append(scope)
            async with stream:
                await self.server.serve(stream)
        self.now -= 1

    def die(self) -> None:
        self.up = False
        for scope in self.serving:
            scope.cancel()

    def target(self, made: House, name: str = "another") -> Target:
        async def connect() -> trio.SocketStream:
            await trio.testing.wait_all_tasks_blocked()  # those that were closed have ended
            return self.connect()

        main = made.service.servers["main"]
        return Target(server_to(name, connect, disks=self.connect, mode=main.mode))


@asynccontextmanager
async def two_servers(
    mode: str = 'connections = "shared"', disk: MemoryDisk | None = None, **settings: str
) -> AsyncIterator[tuple[House, There, There]]:
    """A gateway before the first of two servers, which have disks of their own."""
    async with trio.open_nursery() as nursery:
        here = There(disk_of(disk or MemoryDisk(SIZE)), nursery)
        there = There(disk_of(MemoryDisk(SIZE)), nursery)
        async with house(here.connect, upstream=mode, **settings) as made:
            yield made, here, there
        nursery.cancel_scope.cancel()


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked(0.001)


class Slowly:
    """A server that takes a connection, and opens the export only when it may."""

    def __init__(self, made: House, server: Server) -> None:
        self.asked, self.may = trio.Event(), trio.Event()
        self.now = 0
        self._made = made
        self._server = server

    def target(self) -> Target:
        main = self._made.service.servers["main"]
        server = server_to("slow", self._connect, disks=self, mode=main.mode)
        return Target(server)

    async def _connect(self) -> trio.SocketStream:
        self.asked.set()
        await self.may.wait()
        ours, theirs = socket_pair()
        self._made._nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.now += 1
        await self._server.serve(stream)
        self.now -= 1

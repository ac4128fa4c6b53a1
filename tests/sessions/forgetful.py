"""A gateway before a server that keeps what is not flushed in its memory alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import trio
import trio.testing

from gateway.embedded.personality import PLAIN, lacking
from gateway.upstream.mode import Mode
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.limits import MIB
from tests.embedded.peers import Client
from tests.sessions.asking import opened
from tests.sessions.gateways import Gateway, gateway_before
from tests.sessions.restarts import went_back
from tests.tools.defaults import SURVIVAL, mode_with
from tests.tools.volatile import VolatileServer

SIZE = 8 * MIB

FOR_ALL = PLAIN
"""It offers CAN_MULTI_CONN: a FLUSH over one connection covers what went over any."""

FOR_ITSELF = replace(PLAIN, flags=lacking(Flag.CAN_MULTI_CONN))

SOON = mode_with(survival=replace(SURVIVAL, late_write_seconds=0))


@dataclass
class Forgetful:
    gateway: Gateway
    clients: list[Client] = field(default_factory=list)

    async def client(self, name: str = "") -> Client:
        """A client that has just opened the disk."""
        self.clients.append(await opened(self.gateway, name))
        await at_rest()
        return self.clients[-1]

    async def went_back(self) -> None:
        await at_rest()
        await went_back(self.gateway)


@asynccontextmanager
async def before(
    server: VolatileServer, mode: Mode | None = SOON, *, export: str = "", upstream: str = ""
) -> AsyncIterator[Forgetful]:
    async with gateway_before(
        server,
        seconds=3000,
        refuse=lambda: server.down,
        mode=mode,
        export=export,
        upstream=upstream,
    ) as gateway:
        house = Forgetful(gateway)
        try:
            yield house
        finally:
            server.disk.release()
            for client in house.clients:
                await trio.aclose_forcefully(client.stream)


async def at_rest() -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)

"""A whole gateway in this process, before a `World`: built from a configuration, as `gateway.app.run` does it,
and with the verbs of its control socket.

The clock jumps, and what the hub waits in real time, to save the processor of others, it does not wait here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import structlog
import trio

from gateway.admin.control import ControlAnswer, Verb
from gateway.app.switching import verbs_of
from gateway.clients.client import serve_client
from gateway.config import parse
from gateway.hub import hub as hub_module
from gateway.hub import rounds
from gateway.hub.hub import Hub
from gateway.scan import turn
from gateway.sessions.pausing import Pauses
from gateway.sessions.service import Service
from gateway.sessions.upkeep import see_to_upstreams
from gateway.upstream.configured import servers_of
from tests.embedded.peers import Client, socket_pair
from tests.tools.oracle import Oracle
from tests.tools.schedules.geometry import BLOCKS
from tests.tools.schedules.settings import Settings
from tests.tools.schedules.world import World

DRAIN_SECONDS = 60
"""The clients have gone by then, or somebody waits for something that does not come."""

HUB = {
    "POLL_SECONDS": 1e-9,
    "TURN_SECONDS": 1e9,
}
"""The hub's times that are real ones. A turn is never over, lest the machine decides who comes first."""


@contextmanager
def in_no_time() -> Iterator[None]:
    """Have the hub wait for nobody in real time."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in HUB.items():
            patch.setattr(hub_module, name, value)
        patch.setattr(rounds, "PATIENCE_SECONDS", 0.0)
        patch.setattr(rounds, "GATHER_SECONDS", 0.0)
        patch.setattr(turn, "TURN_SECONDS", 1e9)
        yield


@dataclass
class House:
    """A gateway, its server, and what they have done."""

    settings: Settings
    world: World
    oracle: Oracle
    service: Service
    nursery: trio.Nursery
    verbs: Mapping[str, Verb]
    other: str
    """The server's other address."""
    log: list[MutableMapping[str, Any]]

    def connect(self) -> Client:
        """A connection to the gateway."""
        ours, theirs = socket_pair()
        listen = self.service.config.listen[0]
        self.nursery.start_soon(partial(serve_client, self.service, listen), theirs)
        return Client(ours)

    async def ask(self, verb: str, **arguments: object) -> ControlAnswer:
        """Do what an operator asks for."""
        return await self.verbs[verb](arguments)

    @property
    def holds(self) -> bool:
        """Sessions are held: what they were sent is not read."""
        return bool(self.service.paused) or any(each.held for each in self.service.hub.sessions)

    @property
    def leaves_unread(self) -> bool:
        """What some sessions were sent is not read: they are held, or their server goes."""
        sessions = self.service.hub.sessions
        return self.holds or any(each.traffic.going.begun for each in sessions)


@asynccontextmanager
async def house(settings: Settings, workdir: Path, random: Random) -> AsyncIterator[House]:
    """A gateway and its server."""
    oracle = Oracle(
        BLOCKS,
        scope_all=settings.scope_all,
        lossless=settings.lossless,
        grain=8 if settings.minimum_block > 1 else 1,
        doubts=settings.unflushed == "verify",
        shared=settings.connections.startswith("shared"),
        bundled=settings.connections.endswith("4"),
        strict=settings.strict,
    )
    main, other = workdir / "main", workdir / "other"
    lines = structlog.testing.LogCapture()
    log = structlog.wrap_logger(None, processors=[lines])
    async with trio.open_nursery() as servers, trio.open_nursery() as hubs:
        world = World(settings, oracle, servers)
        world.random = random
        world.listen(main, other)
        uris = [f"nbd+unix:///?socket={path}" for path in (main, other)]
        config = parse(settings.config(*uris), "schedule")
        upstreams = servers_of(config, servers, None).servers
        service = Service(config, upstreams, Hub(trio.current_time), log)
        hubs.start_soon(service.hub.run)
        hubs.start_soon(see_to_upstreams, service)
        async with trio.open_nursery() as clients:
            verbs = verbs_of(service, Pauses(service, hubs), lambda: None)
            made = House(settings, world, oracle, service, clients, verbs, uris[1], lines.entries)
            world.held = lambda: made.holds
            yield made
            service.drain()
            with trio.fail_after(DRAIN_SECONDS):
                while service.relayed:
                    await trio.sleep(0.1)
            clients.cancel_scope.cancel()
        hubs.cancel_scope.cancel()
        world.close_doors()
        servers.cancel_scope.cancel()
    service.hub.close()

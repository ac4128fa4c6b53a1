"""Whole gateways in this process, before a `World`: built from a configuration, as `gateway.app.run` does it,
and with the verbs of their control socket.

At first there is one (`Standing`). An upgrade makes a newer one of it, in this process as well: it is given the
listening socket and everything else over a channel as between two processes (`gateway.upgrade`), and nothing
else of the older one.

In a fleet there are two: clients come to the one, and the other is the home of the disk, as the first is told
in place of etcd. When the home dies another one begins, after as long as it would wait for what the one before
may have sent.

The clock jumps, and what the hub waits in real time, to save the processor of others, it does not wait here.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import structlog
import trio

from gateway.admin.control import ControlAnswer, Verb
from gateway.app import ticketing
from gateway.app.doors import Doorkeeper, open_doors
from gateway.app.draining import Drained, Leaving
from gateway.app.farewell import Farewell
from gateway.app.overview import Overview
from gateway.app.standing import Listeners, Standing
from gateway.app.switching import verbs_of
from gateway.app.upgrading import Upgrading
from gateway.clients.client import serve_client, serve_given
from gateway.config import Config, parse
from gateway.hub import hub as hub_module
from gateway.hub import rounds
from gateway.hub.hub import Hub
from gateway.log.ids import new_id
from gateway.net.dial import DialError
from gateway.net.listen import Listener, take_clients
from gateway.net.options import peer_of
from gateway.scan import turn
from gateway.sessions.led import disks_at_home, led_settings
from gateway.sessions.pausing import Pauses
from gateway.sessions.service import Service
from gateway.sessions.upkeep import see_to_upstreams
from gateway.upgrade.newer import Newer
from gateway.upstream.backends import Backend
from gateway.upstream.configured import StartError, servers_of
from gateway.upstream.recipe import Recipe
from gateway.upstream.server import Server as Upstream
from tests.embedded.peers import Client, socket_pair
from tests.tools.oracle import Oracle
from tests.tools.schedules.geometry import BLOCKS
from tests.tools.schedules.settings import Settings
from tests.tools.schedules.world import World

if TYPE_CHECKING:
    from gateway.handover.given import Given
    from gateway.identity import Identity

LED_SECONDS = 100
"""So long the home of a disk is looked for, and may say nothing."""

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


class House:
    """The gateways, their server, and what they have done."""

    def __init__(
        self,
        settings: Settings,
        workdir: Path,
        world: World,
        oracle: Oracle,
        nursery: trio.Nursery,
        servers: trio.Nursery,
    ) -> None:
        self.settings = settings
        self.world = world
        self.oracle = oracle
        self.nursery = nursery
        self.servers = servers
        self.log: list[MutableMapping[str, Any]] = []
        self.all: list[Process] = []
        """Those that are there; the last one takes clients, or is about to."""
        self.main, self.other = (
            f"nbd+unix:///?socket={workdir / name}" for name in ("main", "other")
        )
        """The server's two addresses."""
        self.path = workdir / "gateway"
        self.may_fail = False
        """Newer gateways may."""
        self.more = ""
        """What the configurations of newer gateways say beside that of the settings."""
        self.home: Process | None = None
        """The home of the disk, in a fleet."""
        self._homes = 0
        self._ends = False

    def begin(self, end: socket.socket | None) -> Process:
        """Begin a gateway; with its `end` of a channel, in the place of the one before."""
        process = Process(self, end, self.path)
        self.all.append(process)
        self.nursery.start_soon(process.run)
        return process

    # --- A fleet: clients come to the one gateway, and the other is the home of the disk

    @property
    def has_home(self) -> bool:
        """There is a home, and it serves."""
        return self.home is not None and self.home.serves_now.is_set()

    def begin_home(self) -> Process:
        """Have another gateway be the home."""
        self._homes += 1
        self.home = home = Process(self, None, self.path.with_name(f"home-{self._homes}"))
        self.nursery.start_soon(home.run)
        return home

    def home_dies(self) -> None:
        """Kill the home. The next one waits for what it may have sent."""
        home, self.home = self.home, None
        assert home is not None
        home.may_die = True
        home.kill()
        self.nursery.start_soon(self._begin_home_late)

    async def _begin_home_late(self) -> None:
        await trio.sleep(self.settings.late_write_seconds)
        if not self._ends:
            self.begin_home()

    async def leads(self, client: Given, server: Upstream) -> Upstream | None:
        """See `gateway.sessions.led.Gateways`."""

        async def connect() -> trio.SocketStream:
            if self.home is None or not self.has_home:
                raise DialError("the disk has no home now", down=True)
            ours, theirs = socket_pair()
            # It may be there still from a connection before.
            self.home.come(theirs, replace(client, session_id=new_id()))
            return ours

        settings = led_settings(server.settings, LED_SECONDS, LED_SECONDS)
        target = server.recipe.backend.target
        backend = Backend(target, (connect,), disks=disks_at_home(server))
        return Upstream(Recipe(server.recipe.upstream, settings, backend, at_home=True))

    @property
    def service(self) -> Service:
        """The one that does what operators ask for."""
        return self._asked.service

    @property
    def services(self) -> list[Service]:
        """Those of all gateways that are there."""
        homes = [] if self.home is None else [self.home]
        return [each.service for each in (*self.all, *homes) if each.built]

    def connect(self) -> Client:
        """A connection to the gateway."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.path))  # somebody listens there: it waits in the queue
        return Client(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))

    async def ask(self, verb: str, **arguments: object) -> ControlAnswer:
        """Do what an operator asks for."""
        return await self._asked.verbs[verb](arguments)

    @property
    def _asked(self) -> Process:
        return next(each for each in reversed(self.all) if each.serves_now.is_set())

    @property
    def holds(self) -> bool:
        """Sessions are held: what they were sent is not read."""
        return any(
            service.paused or any(each.held for each in service.hub.sessions)
            for service in self.services
        )

    @property
    def leaves_unread(self) -> bool:
        """What some sessions were sent is not read: they are held, or their server goes."""
        sessions = [each for service in self.services for each in service.hub.sessions]
        return self.holds or any(each.traffic.going.begun for each in sessions)

    async def stop(self) -> None:
        """End all of it in good order."""
        self._ends = True
        for process in self.all:
            process.leaving.begin(0)
        with trio.fail_after(DRAIN_SECONDS):
            while self.all:
                await trio.sleep(0.1)
            if self.home is not None:
                self.home.leaving.begin(0)
                await self.home.ended.wait()


class _Upgrading(Upgrading):
    """An upgrade to a newer gateway in this process."""

    def __init__(self, house: House, *more: Any) -> None:
        super().__init__(*more)
        self._house = house

    def start(self, program: Sequence[str], end: socket.socket) -> Process:
        """See `UpgradeOffice`."""
        return self._house.begin(end.dup())


class Process:
    """What a process of its own is elsewhere: one gateway, from its beginning to its end
    (`gateway.app.upgrading.Serving`, `gateway.upgrade.office.Started`).
    """

    _numbers = count(1)

    def __init__(self, house: House, end: socket.socket | None, path: Path) -> None:
        self._path = path
        self.pid = os.getpid()
        self.built = False
        self.serves_now = trio.Event()
        self.leaving = Leaving()
        self.may_die = house.may_fail
        self._listeners: list[Listener] = []
        self._life = trio.CancelScope()
        self.clients: dict[str, tuple[Listener, Identity]] = {}
        self._house = house
        self._end = end
        self.ended = trio.Event()
        self._counts: Counter[Listener] = Counter()

    # --- As a process

    def poll(self) -> int | None:
        """See `Started`."""
        return 0 if self.ended.is_set() else None

    def kill(self) -> None:
        """See `Started`: no schedule ends one so."""
        assert self.may_die, "a newer gateway has failed"
        for listener in self._listeners:
            listener.file_is_ours = False  # who is killed removes nothing
        self._life.cancel()

    def wait(self) -> int:
        """See `Started`."""
        return 0

    async def run(self) -> None:
        """Begin, serve, and end."""
        house, end = self._house, self._end
        with self._life, nullcontext() if end is None else end:
            newer = None if end is None else Newer(end)
            if newer is not None:
                await newer.greet()
            listen = f"nbd+unix:///?socket={self._path}"
            text = house.settings.config(listen, house.main, house.other)
            config = parse(house.more + text, "schedule")
            standing = Standing(servers_of(config, house.servers, None), None, Listeners([]))
            try:
                inherited = None if newer is None else newer.inherited
                self._listeners = standing.doors.listeners
                await open_doors(standing.doors, config, inherited)
                told = None if inherited is None else inherited.tickets
                standing.tickets = await ticketing.opened_book(config, told)
                await self._serve(config, standing, newer)
            except StartError as error:
                assert newer is not None
                await newer.fail(str(error))
            finally:
                await standing.aclose()
        self.ended.set()
        if self in house.all:
            house.all.remove(self)

    async def _serve(self, config: Config, standing: Standing, newer: Newer | None) -> None:
        house = self._house
        log = structlog.wrap_logger(None, processors=[partial(_noted, house.log)])
        hub = Hub(trio.current_time)
        servers, tickets = standing.servers.servers, standing.tickets
        service = self.service = Service(config, servers, hub, log, tickets=tickets)
        if house.settings.fleet and self in house.all:
            service.gateways = house
        drained = Drained(service)
        overview = Overview(standing, self._counts, service, drained, self.leaving)
        self._farewell = Farewell(service, standing, self.leaving, self._counts)
        try:
            async with trio.open_nursery() as hubs:
                hubs.start_soon(hub.run)
                async with trio.open_nursery() as clients, trio.open_nursery() as tasks:
                    self._clients, self._tasks = clients, tasks
                    self._doors = Doorkeeper(
                        standing.doors, None, self._beside, self._taking, _obeying
                    )
                    self._upgrading = _Upgrading(
                        *(house, self, service, standing, self._doors, overview, newer, ""),
                        self.leaving,
                    )
                    pauses = Pauses(service, tasks)
                    verbs = verbs_of(service, pauses, lambda: None)
                    upgrade = {
                        "upgrade": self._upgrading.upgrade,
                        **ticketing.verbs_of(service),
                    }
                    if tickets is not None:
                        tasks.start_soon(tickets.watch)
                    self.verbs: dict[str, Verb] = self._upgrading.guarded(
                        {**verbs, **upgrade}, pauses
                    )
                    self.built = True
                    if not self._upgrading.begin(tasks):
                        self.see_to_upstreams()
                        self.serves()
                    await self.leaving.begun.wait()
                    self._upgrading.told()
                    await self._farewell.say()
                    await self._upgrading.farewell()
                    tasks.cancel_scope.cancel()
                    clients.cancel_scope.cancel()
                hubs.cancel_scope.cancel()
        finally:
            hub.close()

    def _beside(self, task: Callable[[], Awaitable[object]]) -> None:
        self._tasks.start_soon(task)

    # --- Clients

    def _taking(self, listener: Listener) -> list[Callable[[], Awaitable[object]]]:
        def take(stream: trio.SocketStream) -> None:
            self._clients.start_soon(self._client, listener, stream)

        return [partial(take_clients, each, take, lambda _errno: None) for each in listener.sockets]

    async def _client(
        self, listener: Listener, stream: trio.SocketStream, given: Given | None = None
    ) -> None:
        id_ = new_id() if given is None else given.session_id
        who = peer_of(stream.socket) if given is None else given.identity
        self.clients[id_] = listener, who
        self._counts[listener] += 1
        try:
            async with stream:
                if given is not None:
                    await serve_given(self.service, listener.settings, stream, given)
                else:
                    await serve_client(self.service, listener.settings, stream, session_id=id_)
        finally:
            del self.clients[id_]
            self._counts[listener] -= 1
            self._farewell.note_left()
            self._upgrading.client_left()

    # --- See `Serving`

    @property
    def ends(self) -> bool:
        """Nothing new is begun."""
        return self.leaving.begun.is_set() or self._upgrading.is_under_way

    def take(self, listener: Listener, stream: trio.SocketStream, given: Given) -> None:
        """Serve a client of the other gateway."""
        self.clients[given.session_id] = listener, given.identity
        self._clients.start_soon(self._client, listener, stream, given)

    def come(self, stream: trio.SocketStream, given: Given) -> None:
        """Serve a client of another gateway of the fleet."""
        self.take(self._listeners[0], stream, given)

    def serves(self) -> None:
        """Take clients from now on."""
        self.serves_now.set()
        self._doors.accept_all()

    def see_to_upstreams(self) -> None:
        """Nobody else has connections to the server."""
        self._tasks.start_soon(see_to_upstreams, self.service)


async def _obeying(_control: object) -> None:
    """There is no control socket: see `House.ask`."""


def _noted(
    lines: list[MutableMapping[str, Any]],
    _logger: object,
    level: str,
    event: MutableMapping[str, Any],
) -> MutableMapping[str, Any]:
    """Keep what is said."""
    lines.append({**event, "log_level": level})
    raise structlog.DropEvent


@asynccontextmanager
async def house(
    settings: Settings, workdir: Path, random: Random, more: str = ""
) -> AsyncIterator[House]:
    """A gateway and its server. `more`: what its configuration says beside that of the settings."""
    oracle = Oracle(
        BLOCKS,
        scope_all=settings.scope_all,
        lossless=settings.lossless,
        grain=8 if settings.minimum_block > 1 else 1,
        doubts=settings.unflushed == "verify",
        shared=settings.connections.startswith("shared"),
        bundled=settings.connections.endswith("4"),
        strict=settings.strict,
        in_fleet=settings.fleet,
    )
    async with trio.open_nursery() as servers, trio.open_nursery() as processes:
        world = World(settings, oracle, servers)
        world.random = random
        world.listen(workdir / "main", workdir / "other")
        made = House(settings, workdir, world, oracle, processes, servers)
        world.held = lambda: made.holds
        made.more = more
        await made.begin(None).serves_now.wait()
        if settings.fleet:
            await made.begin_home().serves_now.wait()
        yield made
        await made.stop()
        world.close_doors()
        servers.cancel_scope.cancel()

"""The composition root: builds everything from a configuration, runs it, and ends it in good order.

The only module that knows all others: in what order everything begins and ends is read here. What is done
meanwhile is elsewhere: clients are let in by `gateway.app.arrivals`, signals obeyed by `gateway.app.signals`,
reloads (`reload`), upgrades (`upgrading`) and the end (`farewell`) have their own modules.

It is also what one of several workers runs, which has a supervisor in the place of doors and a control socket
of its own (`gateway.workers.member`, `_Run._join`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import trio

from gateway.admin.control import ControlAnswer, ControlSocket, Verb, no_arguments
from gateway.app import ticketing
from gateway.app.arrivals import Arrivals
from gateway.app.asked import say_asked
from gateway.app.becoming import become_whom_it_says
from gateway.app.command import run_command
from gateway.app.descriptors import raise_limit
from gateway.app.doors import Doorkeeper, open_doors
from gateway.app.draining import Drained, Leaving
from gateway.app.farewell import Farewell
from gateway.app.fleet import FleetPart, ToldToEnd, fleet_of, refusals
from gateway.app.lacking import say_what_is_lacking
from gateway.app.manager import manager_of
from gateway.app.options import USUAL, RunOptions
from gateway.app.overview import Overview
from gateway.app.pidfile import Pidfile, pidfile
from gateway.app.reload import Reloader
from gateway.app.signals import HEARD, Obeying, none_held_back
from gateway.app.socket_files import SocketFiles
from gateway.app.source import ConfigSource
from gateway.app.standing import Listeners, Standing
from gateway.app.switching import verbs_of
from gateway.app.tracing import trace_of
from gateway.app.upgrading import Upgrading, newer_begun
from gateway.config import Config
from gateway.handover.homes import door_of
from gateway.hub.hub import Hub
from gateway.log import keep_recent, logger, say_left_out
from gateway.net.listen import Listener, open_listener
from gateway.sessions.pausing import Pauses
from gateway.sessions.service import Service
from gateway.sessions.upkeep import see_to_upstreams
from gateway.status import verbs as status
from gateway.status.stuck import Stuck
from gateway.upstream.backends import Backend
from gateway.upstream.configured import StartError, load_keyring, servers_of
from gateway.uri import NbdUri
from gateway.workers.number import one_each

if TYPE_CHECKING:
    from gateway.app.web import AdminDoor
    from gateway.handover.given import Given
    from gateway.identity import Identity
    from gateway.tickets.book import Book
    from gateway.tls.keyring import Keyring  # costs nothing where there is no TLS
    from gateway.upgrade.newer import Newer
    from gateway.upstream.server import Server
    from gateway.workers.member import Member


async def serve(
    config: Config,
    options: RunOptions = USUAL,
    *,
    source: ConfigSource | None = None,
    listening: Callable[[tuple[NbdUri, ...]], None] | None = None,
    member: Member | None = None,
) -> int:
    """Serve until a signal, the end of `--run` or the last client; give the exit status.

    `source` is where the configuration came from, if that can be reloaded. `listening` is called with the
    listeners' URIs once clients can connect. `member`: this process is one of several workers. Raises
    `StartError`.
    """
    raise_limit()
    # Whoever started us may have had it ignored; then the kernel would reap what we have started, and give its
    # number away (waitpid(2)).
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Signals first: whoever sees the socket may send one.
    with trio.open_signal_receiver(*HEARD) as signals, none_held_back(HEARD):
        failed: StartError | None = None
        async with trio.open_nursery() as embedded:
            newer: Newer | None = None
            try:
                manager = manager_of(os.environ)
                newer = await newer_begun()
                keyring = load_keyring(config)
                servers = servers_of(config, embedded, keyring)
                standing = Standing(servers, keyring, Listeners([]), manager)
                try:
                    inherited = None if newer is None else newer.inherited
                    if member is None:
                        await open_doors(standing.doors, config, inherited)
                    else:
                        await member.doors.open_all(config.listen, standing.doors.listeners)
                    held = None if inherited is None else inherited.pidfile
                    with pidfile(options.pidfile, held) as file:
                        if member is None:
                            become_whom_it_says(config)
                        told = None if inherited is None else inherited.tickets
                        standing.tickets = await ticketing.opened_book(config, told)
                        async with fleet_of(config, options.ends_with, signals) as part:
                            if part is not None:
                                standing.tickets = await part.opened_book(config)
                            run = _Run(
                                *(config, options, source, standing, embedded, signals, listening),
                                *(newer, file, member, part),
                            )
                            status = await run.until_the_end()
                finally:
                    await standing.aclose()
            except ToldToEnd:
                status = 0
            except StartError as error:  # as itself, not in the nursery's group
                failed = error
                if newer is not None:
                    await newer.fail(str(error))
            embedded.cancel_scope.cancel()
    if failed is not None:
        raise failed
    return status


class _Run:
    """One run of the gateway: what it serves, and when it ends."""

    def __init__(
        self,
        config: Config,
        options: RunOptions,
        source: ConfigSource | None,
        standing: Standing,
        embedded: trio.Nursery,
        signals: AsyncIterator[int],
        listening: Callable[[tuple[NbdUri, ...]], None] | None,
        newer: Newer | None = None,
        file: Pidfile | None = None,
        member: Member | None = None,
        fleet: FleetPart | None = None,
    ) -> None:
        listeners = standing.doors.listeners
        if listening is not None:
            listening(tuple(listener.uri for listener in listeners))
        log = logger(config.log)
        if member is not None:
            log = log.bind(worker=member.number)
        assert standing.servers.keeper is not None  # the first servers have made one
        self._keeper = standing.servers.keeper
        self._keeper.log = log
        for listener in listeners if member is None else ():
            log.info("listening", uri=str(listener.uri))
        standing.manager.log = log
        hub = Hub(polls=member is None or one_each(member.workers))
        hub.failed = lambda error: log.error("internal error beside the sessions", exc_info=error)
        servers, tickets = standing.servers.servers, standing.tickets
        self._service = Service(config, servers, hub, log, tickets=tickets)
        self._standing = standing
        self._options = options
        self._signals = signals
        self._member = member
        self._fleet = fleet
        opens = open_listener if member is None else member.doors.open
        self._reloader = Reloader(
            source, self._service, standing, embedded, self, opens, is_asked=member is None
        )
        self._verbs: dict[str, Verb] = {"reload": self._reload, "trace": trace_of(self._service)}
        self._stuck = Stuck(self._service, log)
        self._arrivals = Arrivals(self._service, standing, self._reloader.present, member)
        self._leaving, self._drained = Leaving(), Drained(self._service)
        counts = self._arrivals.counts
        self._overview = Overview(standing, counts, self._service, self._drained, self._leaving)
        self._farewell = Farewell(self._service, standing, self._leaving, counts)
        self._doors = Doorkeeper(standing.doors, file, self.beside, self._taking, self._obeying)
        self._upgrading = Upgrading(
            *(
                self,
                self._service,
                standing,
                self._doors,
                self._overview,
                newer,
                options.why_no_newer,
            ),
            self._leaving,
        )
        self._arrivals.is_drained = self._overview.is_drained
        self._arrivals.elsewhere = self._upgrading.clients_elsewhere
        self._arrivals.left = self._client_left
        self._status = 0

    async def until_the_end(self) -> int:
        """Serve; give the exit status."""
        try:
            async with trio.open_nursery() as hub:
                hub.start_soon(self._service.hub.run)
                hub.start_soon(self._service.hub.keep_up, say_left_out)
                async with trio.open_nursery() as clients:
                    async with trio.open_nursery() as doors:
                        self._client_tasks, self._tasks = clients, doors
                        self._begin(hub.cancel_scope)
                        await self._leaving.begun.wait()
                        self._upgrading.told()
                        await self._farewell.say()
                        if self._fleet is not None:
                            await self._fleet.member.leave()
                        await self._upgrading.farewell()
                        doors.cancel_scope.cancel()
                    clients.cancel_scope.cancel()
                hub.cancel_scope.cancel()
        finally:
            self._service.hub.close()
        for server in self._service.led_to:
            if server.told.repaired:
                repaired = dict(sorted(server.told.repaired.items()))
                self._service.log.info("repaired", upstream=server.name, sessions=repaired)
        return self._status

    def _begin(self, everything: trio.CancelScope) -> None:
        begin, reloader = self.beside, self._reloader
        pauses = Pauses(self._service, self._tasks)
        self._verbs |= verbs_of(self._service, pauses, lambda: self._standing.keyring)
        self._verbs |= ticketing.verbs_of(self._service)
        self._verbs |= status.verbs_of(self._service, self._stuck, self._overview)
        upgrade = {"upgrade": self._upgrading.upgrade}
        self._verbs = self._upgrading.guarded({**self._verbs, **upgrade}, pauses)
        if self._fleet is not None:
            self._verbs |= refusals()
        begin(self._obeying_signals().run, self._signals, partial(self._end_now, everything))
        begin(self._stuck.watch)
        begin(SocketFiles(self._doors, self._service.log).watch)
        begin(self._drained.run)
        for tally in self._arrivals.tallies:
            begin(tally)
        begin(self._service.turned_away.run)
        begin(reloader.do_what_is_asked)
        begin(reloader.watch_file)
        begin(reloader.look_again_as_time_passes)
        if self._standing.keyring is not None:
            self.watch(self._standing.keyring)
        if self._standing.tickets is not None:
            self.keep(self._standing.tickets)
        if self._fleet is not None:
            listeners = self._standing.doors.listeners
            self._overview.fleet_shown = self._fleet.shown
            self._fleet.begin(self._service, listeners, self.take)
            begin(self._fleet.run)
        if self._member is not None:
            self._join(self._member)
        elif not self._upgrading.begin(self._tasks):
            self.see_to_upstreams()
            self.serves()
        if self._options.run is not None:
            self._tasks.start_soon(self._run_command, self._options.run)

    # --- One of several workers (`gateway.workers.office`)

    def _join(self, member: Member) -> None:
        """Serve the disks whose home is here, and do what the supervisor says."""
        service = self._service
        service.homes, service.may_serve = member, member.check
        service.bookkeeper = member.borrower
        service.cares_for, service.asks_for_list = member.cares_for, member.list_of
        if service.config.admin is not None:
            from gateway.app.web import verbs_of

            self._verbs |= verbs_of(service, keep_recent(service.config.log))
        self._verbs |= member.verbs(service.hub.waker.goes_round)
        self.obey(member.control)
        self.see_to_upstreams()
        self._tasks.start_soon(member.run, self)

    def begin_to_accept(self) -> None:
        """Take clients from now on."""
        for listener in self._standing.doors.listeners:
            self.accept(listener)

    def listener_at(self, door: tuple[object, ...]) -> Listener | None:
        """Give the listener at a door."""
        there = (each for each in self._standing.doors.listeners if each.sockets)
        return next((each for each in there if door_of(each.settings.uri) == door), None)

    def drain(self, seconds: float = 0) -> None:
        """End, and let sessions go on for so long."""
        self._leaving.begin(seconds)

    @property
    def servers(self) -> Mapping[str, Server]:
        """The servers of the configuration, by their names."""
        return self._service.servers

    async def reload_to(
        self, config: Config, agreed: Callable[[], Awaitable[bool]]
    ) -> ControlAnswer:
        """Go over to another configuration, if nothing is in the way here and it is `agreed`."""
        return await self._reloader.reload_to(config, agreed)

    def beside(self, task: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Do something beside the clients. No bug of it ends the gateway."""
        self._tasks.start_soon(self._service.hub.keep_up, partial(task, *arguments))

    def _obeying_signals(self) -> Obeying:
        return Obeying(
            self._service,
            self._leaving,
            self._reloader.ask,
            partial(self.beside, self._upgrading.by_signal),
            self._write_state,
            self._member,
            self._fleet,
        )

    def _end_now(self, everything: trio.CancelScope, status: int) -> None:
        self._status = status
        everything.cancel()

    async def _write_state(self) -> None:
        from gateway.status.dump import write_state

        await write_state(self._service, self._stuck, self._overview, self._service.log)

    # --- What a reload brings

    def accept(self, listener: Listener) -> None:
        """Take clients; until draining, or a reload, closes the listener."""
        self._doors.accept(listener)

    def _taking(self, listener: Listener) -> list[Callable[[], Awaitable[object]]]:
        return self._arrivals.taking(listener, self._client_tasks)

    def obey(self, control: ControlSocket) -> None:
        """Do what is asked for over a control socket."""
        self._doors.obey(control)

    async def _obeying(self, control: ControlSocket) -> None:
        failed, heard = self._service.hub.failed, partial(say_asked, self._service.log)
        await control.run(self._verbs, self._tasks, self._arrivals.short, heard, failed)

    def serve_web(self, door: AdminDoor) -> None:
        """Have HTTP spoken at a door of `[admin]`."""
        from gateway.app.web import Web, verbs_of

        recent = keep_recent(self._service.config.log)
        verbs = {**self._verbs, **verbs_of(self._service, recent)}
        failed, heard = self._service.hub.failed, partial(say_asked, self._service.log)
        if door.ended is None:  # else it was another process's for a while
            self.beside(door.control.run, verbs, self._tasks, self._arrivals.short, heard, failed)
        self.beside(Web(door, self._service.log).run)

    def watch(self, keyring: Keyring) -> None:
        """Exchange credentials whose files change."""
        self.beside(keyring.watch, self._service.log)

    def keep(self, tickets: Book) -> None:
        """See to it that tickets end."""
        self.beside(tickets.watch)

    def see_off(self, wait: Callable[[Backend], Awaitable[None]], backend: Backend) -> None:
        """Wait for the last users of an upstream."""
        self.beside(wait, backend)

    @property
    def ends(self) -> bool:
        """Nothing new is begun."""
        return self._leaving.begun.is_set() or self._upgrading.is_under_way

    # --- What an upgrade has us do

    def serves(self) -> None:
        """Take clients and commands at all doors, and tell the manager."""
        for why in self._doors.accept_all():
            self._service.log.error("door not taken over", why=why)
        admin = self._standing.doors.admin
        if admin is not None and admin.sockets and (admin.ended is None or admin.closed.is_set()):
            admin.take_back()
            self.serve_web(admin)
        alive, line = self._service.hub.waker.goes_round, self._farewell.in_a_line
        self.beside(self._standing.manager.run, alive, line)

    def see_to_upstreams(self) -> None:
        """Nobody else has connections to the servers: see to them."""
        self.beside(see_to_upstreams, self._service)
        self.beside(say_what_is_lacking, self._service.config, self._service.log)

    def take(self, listener: Listener, stream: trio.SocketStream, given: Given) -> None:
        """Serve a client that another process has handed over."""
        self._arrivals.take(listener, stream, given, self._client_tasks)

    async def _reload(self, arguments: Mapping[str, object]) -> ControlAnswer:
        no_arguments(arguments)
        return await self._reloader.reload()

    # --- Clients

    @property
    def clients(self) -> Mapping[str, tuple[Listener, Identity]]:
        """Who is connected, by their ids."""
        return self._arrivals.clients

    def _client_left(self) -> None:
        self._farewell.note_left()
        self._upgrading.client_left()
        arrivals = self._arrivals
        if arrivals.had_one and not arrivals.counts and self._options.exit_after_last_client:
            self._leaving.begin()

    async def _run_command(self, command: str) -> None:
        """Run what we are there for: we end with it, and it with us."""
        self._status = await run_command(command, self._standing.doors.listeners[0], self._keeper)
        self._leaving.begin()

"""The supervisor: what is one for several workers (`gateway.workers`), and relays nothing.

It listens and never accepts: each worker has the same listening sockets, so a client goes to one that is idle.
It answers the control socket, starts a worker in the place of one that has died, hands clients from one to
another, and has all of them reload and drain. It has no upstreams, no keys and no sessions.

Signals are those of a gateway with one process (`gateway.app.run`): SIGTERM, or SIGINT once, has all end in
good order, and one more ends sessions that were given time, or everything at once; SIGHUP reloads; SIGUSR1 has
all write their state to the log. SIGUSR2 is refused: there is no upgrade of several yet. If it dies itself,
each worker takes no more clients and ends in good order, because the channel to it ends. A service manager
(`gateway.app.manager`) is told that we are alive when the hubs of all workers have gone round.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from gateway.access.loading import PolicyError
from gateway.admin.control import Asked
from gateway.app.arrivals import SHORTAGE_LOG_SECONDS
from gateway.app.becoming import become_whom_it_says
from gateway.app.descriptors import raise_limit, why_short
from gateway.app.doors import open_doors
from gateway.app.in_force import InForce
from gateway.app.manager import Manager, manager_of
from gateway.app.options import RunOptions
from gateway.app.pidfile import pidfile
from gateway.app.reload_all import ReloadOfAll
from gateway.app.signals import HEARD, KILLED, none_held_back
from gateway.app.source import ConfigSource
from gateway.config import Config
from gateway.handover.message import ChannelMessage
from gateway.log import keep_recent, logger
from gateway.net.tally import Tally
from gateway.sessions.transmit import LINGER_SECONDS
from gateway.upgrade.begin import VARIABLE, say_failed
from gateway.upstream.configured import StartError
from gateway.uri import NbdUri
from gateway.workers.asking import NotThere
from gateway.workers.crew import Crew
from gateway.workers.desk import UPGRADE, Desk
from gateway.workers.homes import Table, counted_by, table_of
from gateway.workers.number import number_of
from gateway.workers.worker import Worker

if TYPE_CHECKING:
    from gateway.app.web import AdminDoor

ENDING_SECONDS = 5.0
"""How much longer than its sessions a worker may take to end."""


async def supervise(
    config: Config,
    options: RunOptions,
    *,
    source: ConfigSource | None = None,
    listening: Callable[[tuple[NbdUri, ...]], None] | None = None,
) -> int:
    """Serve with several workers, as `gateway.app.run.serve` does with one. Raises `StartError`."""
    if options.run is not None or options.exit_after_last_client:
        said = "--run" if options.run is not None else "--exit-after-last-client"
        raise StartError(f"{said} is for one process: write workers = 1")
    if VARIABLE in os.environ:
        say_failed([UPGRADE])
        raise StartError(UPGRADE)
    raise_limit()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with trio.open_signal_receiver(*HEARD) as signals, none_held_back(HEARD):
        try:
            table = table_of(config, counted=counted_by(config, kept=True))
        except PolicyError as error:
            raise StartError(f"policies: {error}") from None
        async with AsyncExitStack() as stack:
            supervisor = _Supervisor(config, table, source, signals, manager_of(os.environ))
            stack.push_async_callback(supervisor.aclose)
            await open_doors(supervisor.in_force.doors, config, None)
            with pidfile(options.pidfile):
                become_whom_it_says(config)
                return await supervisor.until_the_end(listening)


class _Supervisor:
    def __init__(
        self,
        config: Config,
        table: Table,
        source: ConfigSource | None,
        signals: AsyncIterator[int],
        manager: Manager,
    ) -> None:
        self._manager = manager
        self.in_force = InForce(config, table)
        self._signals = signals
        self._log = manager.log = logger(config.log)
        self._drain = trio.Event()
        self._leaves = 0.0
        """How long sessions may go on after that; 0: they have been told to end."""
        self._leaving = trio.CancelScope()
        self._status = 0
        self._shortages: Tally[str] = Tally(SHORTAGE_LOG_SECONDS, self._say_shortage)
        workers = number_of(config)

        def brief(worker: Worker) -> Iterator[ChannelMessage]:
            return self.in_force.brief(worker.number, workers)

        self._crew = Crew(workers, self._log, brief, self._prepare, self._gone)
        self._reloads = ReloadOfAll(self.in_force, self._crew, source, manager, self._drain.is_set)
        self._desk = Desk(
            self._crew,
            lambda: (self.in_force.config, self.in_force.table),
            self._reloads.reload,
            self._told_to_end,
            time.time(),
        )

    async def aclose(self) -> None:
        """Close everything."""
        with trio.CancelScope(shield=True):
            await self.in_force.aclose()
        self._manager.close()

    async def until_the_end(self, listening: Callable[[tuple[NbdUri, ...]], None] | None) -> int:
        """Serve; give the exit status. Raises `StartError`."""
        failed = ""
        async with trio.open_nursery() as everything:
            async with trio.open_nursery() as keepers:
                for worker in self._crew.workers:
                    keepers.start_soon(self._crew.keep, worker)
                everything.start_soon(self._obey_signals, everything.cancel_scope)
                for worker in self._crew.workers:
                    await worker.first.wait()
                if self._crew.failed:
                    [failed, *_] = self._crew.failed
                    self._crew.ends = True
                    keepers.cancel_scope.cancel()
                else:
                    await self._serve(everything, listening)
                    keepers.start_soon(self._see_to_the_end, keepers.cancel_scope)
            everything.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await self._crew.kill()
        if failed:
            raise StartError(failed)
        return self._status

    async def _serve(
        self,
        tasks: trio.Nursery,
        listening: Callable[[tuple[NbdUri, ...]], None] | None,
    ) -> None:
        """Serve until it is time to drain, and have all do that."""
        if listening is not None:
            listening(tuple(listener.uri for listener in self.in_force.doors.listeners))
        for listener in self.in_force.doors.listeners:
            self._log.info("listening", uri=str(listener.uri))
        tasks.start_soon(self._shortages.run)
        tasks.start_soon(self._crew.passing.refuse_who_has_waited, self._crew.workers)
        tasks.start_soon(self._crew.lender.run)
        tasks.start_soon(self._reloads.when_wanted)
        tasks.start_soon(self._reloads.watch_file)
        tasks.start_soon(self._manager.run, self._all_are_alive, self._in_a_line)
        if self.in_force.doors.control is not None:
            tasks.start_soon(
                partial(self.in_force.doors.control.run, failed=self._failed),
                *(self._desk.verbs(), tasks, self._short, self._heard),
            )
        if self.in_force.doors.admin is not None:
            self._serve_web(self.in_force.doors.admin, tasks)
        await self._drain.wait()
        self._log.info("all workers shut down", workers=len(self._crew.workers))
        self._crew.ends = True
        for listener in self.in_force.doors.listeners:
            await listener.aclose()
        await self._manager.stopping(self._leaves + self._ending_seconds, self._in_a_line())

    def _serve_web(self, door: AdminDoor, tasks: trio.Nursery) -> None:
        """Have HTTP spoken at the door of `[admin]`."""
        from gateway.app.web import Web
        from gateway.workers.front import Front

        front = Front(self._desk, keep_recent(self.in_force.config.log), self._all_are_alive)
        verbs = {**self._desk.verbs(), **front.verbs()}
        tasks.start_soon(
            partial(door.control.run, failed=self._failed),
            *(verbs, tasks, self._short, self._heard),
        )
        tasks.start_soon(Web(door, self._log).run)

    @property
    def _ending_seconds(self) -> float:
        """How long the workers may take to end, once their sessions are told to."""
        return self.in_force.config.drain_seconds + LINGER_SECONDS + ENDING_SECONDS

    async def _see_to_the_end(self, keepers: trio.CancelScope) -> None:
        """Give the workers their time to end."""
        with trio.move_on_after(self._leaves) as self._leaving:
            await self._crew.all_gone()
        await self._crew.ended(self._ending_seconds)
        keepers.cancel()

    def _end(self, seconds: float) -> bool:
        """Have all end, and let their sessions go on for so long. Say whether that is news."""
        if self._drain.is_set() and not self._leaves:
            return False
        self._leaves = seconds
        self._leaving.deadline = trio.current_time() + seconds
        for worker in self._crew.workers:
            worker.say(ChannelMessage("drain", {"milliseconds": round(seconds * 1000)}))
        self._drain.set()
        return True

    async def _obey_signals(self, everything: trio.CancelScope) -> None:
        async for number in self._signals:
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                self._reloads.wanted.set()
            elif number == signal.SIGUSR1:
                self._crew.signal(signal.SIGUSR1)
            elif number == signal.SIGUSR2:
                self._log.warning("not upgraded: SIGUSR2 was refused, or failed", why=UPGRADE)
            elif not self._end(0 if self._drain.is_set() else self.in_force.config.leave_seconds):
                self._log.warning("all workers end at once", signal=name)
                self._status = KILLED + number
                everything.cancel()

    def _told_to_end(self, seconds: float | None) -> bool:
        return self._end(self.in_force.config.leave_seconds if seconds is None else seconds)

    # --- Who watches over us

    async def _all_are_alive(self) -> None:
        """Come back when the hubs of all workers have gone round."""
        for worker in self._crew.workers:
            if worker.serves:
                with suppress(NotThere):
                    await self._desk.inquiries.ask(worker, "alive", {})

    def _in_a_line(self) -> str:
        there = sum(worker.serves for worker in self._crew.workers)
        what = "draining" if self._drain.is_set() else "serving"
        return f"{what}; workers: {there} of {len(self._crew.workers)}"

    # --- Workers that come and go

    async def _prepare(self, worker: Worker) -> None:
        if worker.restarts:
            await self._desk.orders.prepare(worker)

    def _gone(self, worker: Worker) -> None:
        self.in_force.places.forget(worker.number)
        self._desk.past.died(worker.number)

    # --- The control socket

    def _heard(self, asked: Asked) -> None:
        """The workers that did it have a line of it as well; here are those that none has."""
        answer = asked.answer
        if answer is not None and not answer.ok:
            self._log.warning(
                "command not done",
                verb=asked.verb,
                pid=asked.by.pid,
                uid=asked.by.uid,
                **({} if asked.asked_by is None else {"asked_by": asked.asked_by}),
                why=[*answer.problems],
            )

    def _failed(self, error: BaseException) -> None:
        self._log.error("internal error of the supervisor", exc_info=error)

    def _short(self, number: int) -> None:
        self._shortages.add(why_short(number))

    def _say_shortage(self, why: str, count: int, _last: str) -> None:
        self._log.error("could not accept a client", why=why, attempts=count)

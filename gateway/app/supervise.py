"""The supervisor: what is one for several workers (`gateway.workers`), and relays nothing.

It listens and never accepts: each worker has the same listening sockets, so a client goes to one that is idle.
It answers the control socket, starts a worker in the place of one that has died, hands clients from one to
another, and has all of them reload and drain. It has no upstreams, no keys and no sessions.

Signals are those of a gateway with one process (`gateway.app.run`): SIGTERM, or SIGINT once, has all end in
good order, and one more ends sessions that were given time, or everything at once; SIGHUP reloads; SIGUSR1 has
all write their state to the log. SIGUSR2 is refused: there is no upgrade of several yet. If it dies itself,
each worker takes no more clients and ends in good order, because the channel to it ends. A service manager
(`gateway.app.manager`) is told that we are alive when the hubs of all workers have gone round.

A reload is done in two steps. First everything that may fail, here and in all workers: the file is read here
once, so all are told the same; new addresses are listened on here. If anything fails anywhere, all stay as they
were. Then all are told to go over to it. In between, clients on their way from one worker to another wait:
else one might be sent back and forth by two that know different exports.

This is longer than other modules: what of a gateway with one process is in `run`, `reload` and `standing` is
here, as far as a supervisor has it.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from gateway.access.loading import PolicyError, look_anew
from gateway.admin.control import Asked, ControlAnswer
from gateway.app.arrivals import SHORTAGE_LOG_SECONDS
from gateway.app.becoming import become_whom_it_says
from gateway.app.descriptors import raise_limit, why_short
from gateway.app.doors import open_doors
from gateway.app.manager import Manager, manager_of
from gateway.app.options import RunOptions
from gateway.app.pidfile import pidfile
from gateway.app.reload import RELOAD_SECONDS, ConfigSource, reload_on_change
from gateway.app.signals import HEARD, KILLED, none_held_back
from gateway.app.standing import Listeners
from gateway.config import Config, ConfigError, Listen
from gateway.handover.homes import door_of
from gateway.handover.message import ChannelMessage
from gateway.log import keep_recent, logger, set_up
from gateway.net.listen import Listener, ListenError, file_as_in, is_for, open_listener
from gateway.net.tally import Tally
from gateway.sessions.transmit import LINGER_SECONDS
from gateway.tls.rotation import Stamp, stamp_of
from gateway.upgrade.begin import VARIABLE, say_failed
from gateway.upstream.configured import StartError
from gateway.uri import NbdUri
from gateway.workers.crew import Crew, Worker
from gateway.workers.desk import UPGRADE, Desk, NotThere
from gateway.workers.homes import HomesMove, Table, counted_by, said_of, table_of
from gateway.workers.merged import lines
from gateway.workers.number import number_of
from gateway.workers.places import MOST_LISTENERS, Places, shared_memory

if TYPE_CHECKING:
    from gateway.app.web import AdminDoor

ENDING_SECONDS = 5.0
"""How much longer than its sessions a worker may take to end."""

NO_FILE = (
    "it came from the command line or standard input: only serve --config FILE can be reloaded"
)

COMMIT_SECONDS = 10.0
"""How long a worker may take to go over to what it has prepared, which takes no waiting."""

PREPARE_SECONDS = RELOAD_SECONDS + COMMIT_SECONDS
"""How long the workers may take to prepare a reload: one that takes longer than a reload may says so itself."""


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
            table = table_of(config, counted=counted_by(config))
        except PolicyError as error:
            raise StartError(f"policies: {error}") from None
        async with AsyncExitStack() as stack:
            supervisor = _Supervisor(config, table, source, signals, manager_of(os.environ))
            stack.push_async_callback(supervisor.aclose)
            await open_doors(supervisor.doors, config, None)
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
        self.doors = Listeners([])
        self._config = config
        self._table = table
        self._source = source
        self._tried = {} if source is None else dict(source.seen)
        self._signals = signals
        self._log = manager.log = logger(config.log)
        self._rows: dict[tuple[object, ...], int] = {}
        self._memory = shared_memory()
        self._places = Places(self._memory)
        self._drain = trio.Event()
        self._leaves = 0.0
        """How long sessions may go on after that; 0: they have been told to end."""
        self._leaving = trio.CancelScope()
        self._reload_wanted = trio.Event()
        self._status = 0
        self._shortages: Tally[str] = Tally(SHORTAGE_LOG_SECONDS, self._say_shortage)
        workers = number_of(config)
        self._crew = Crew(workers, self._log, self._brief, self._prepare, self._gone)
        self._desk = Desk(
            self._crew,
            lambda: (self._config, self._table),
            self.reload,
            self._told_to_end,
            time.time(),
        )

    async def aclose(self) -> None:
        """Close everything."""
        with trio.CancelScope(shield=True):
            await self.doors.aclose()
        self._manager.close()
        os.close(self._memory)

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
            listening(tuple(listener.uri for listener in self.doors.listeners))
        for listener in self.doors.listeners:
            self._log.info("listening", uri=str(listener.uri))
        tasks.start_soon(self._shortages.run)
        tasks.start_soon(self._crew.refuse_who_has_waited)
        tasks.start_soon(self._crew.lender.run)
        tasks.start_soon(self._reload_when_asked)
        tasks.start_soon(self._watch_file)
        tasks.start_soon(self._manager.run, self._all_are_alive, self._in_a_line)
        if self.doors.control is not None:
            tasks.start_soon(
                partial(self.doors.control.run, failed=self._failed),
                *(self._desk.verbs(), tasks, self._short, self._heard),
            )
        if self.doors.admin is not None:
            self._serve_web(self.doors.admin, tasks)
        await self._drain.wait()
        self._log.info("all workers shut down", workers=len(self._crew.workers))
        self._crew.ends = True
        for listener in self.doors.listeners:
            await listener.aclose()
        await self._manager.stopping(self._leaves + self._ending_seconds, self._in_a_line())

    def _serve_web(self, door: AdminDoor, tasks: trio.Nursery) -> None:
        """Have HTTP spoken at the door of `[admin]`."""
        from gateway.app.web import Web
        from gateway.workers.front import Front

        front = Front(self._desk, keep_recent(self._config.log), self._all_are_alive)
        verbs = {**self._desk.verbs(), **front.verbs()}
        tasks.start_soon(
            partial(door.control.run, failed=self._failed),
            *(verbs, tasks, self._short, self._heard),
        )
        tasks.start_soon(Web(door, self._log).run)

    @property
    def _ending_seconds(self) -> float:
        """How long the workers may take to end, once their sessions are told to."""
        return self._config.drain_seconds + LINGER_SECONDS + ENDING_SECONDS

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
                self._reload_wanted.set()
            elif number == signal.SIGUSR1:
                self._crew.signal(signal.SIGUSR1)
            elif number == signal.SIGUSR2:
                self._log.warning("not upgraded: SIGUSR2 was refused, or failed", why=UPGRADE)
            elif not self._end(0 if self._drain.is_set() else self._config.leave_seconds):
                self._log.warning("all workers end at once", signal=name)
                self._status = KILLED + number
                everything.cancel()

    def _told_to_end(self, seconds: float | None) -> bool:
        return self._end(self._config.leave_seconds if seconds is None else seconds)

    # --- Who watches over us

    async def _all_are_alive(self) -> None:
        """Come back when the hubs of all workers have gone round."""
        for worker in self._crew.workers:
            if worker.serves:
                with suppress(NotThere):
                    await self._desk.ask(worker, "alive", {})

    def _in_a_line(self) -> str:
        there = sum(worker.serves for worker in self._crew.workers)
        what = "draining" if self._drain.is_set() else "serving"
        return f"{what}; workers: {there} of {len(self._crew.workers)}"

    # --- What a worker is told

    def _brief(self, worker: Worker) -> Iterator[ChannelMessage]:
        """Give what a new worker is told: the doors, and what it serves. Raises `OSError`."""
        for listener in self.doors.listeners:
            yield from self._door(listener)
        said = {
            "worker": worker.number,
            "workers": len(self._crew.workers),
            "homes": said_of(self._table),
        }
        config = _in_memory(self._config)
        try:
            memory = os.dup(self._memory)
        except OSError:
            os.close(config)
            raise
        yield ChannelMessage("serve", said, descriptors=(config, memory))

    def _door(self, listener: Listener) -> Iterator[ChannelMessage]:
        door = door_of(listener.settings.uri)
        row = self._rows.setdefault(door, len(self._rows) % MOST_LISTENERS)
        said = {"door": list(door), "port": listener.uri.port or 0, "place": row}
        for each in listener.sockets:
            yield ChannelMessage("door", said, descriptors=(os.dup(each.socket.fileno()),))

    async def _prepare(self, worker: Worker) -> None:
        if worker.restarts:
            await self._desk.prepare(worker)

    def _gone(self, worker: Worker) -> None:
        self._places.forget(worker.number)
        self._desk.past.died(worker.number)

    # --- Reload

    async def _reload_when_asked(self) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted = trio.Event()
            await self.reload()

    async def _watch_file(self) -> None:
        """Reload when a file of it has changed, where the configuration says so, until cancelled."""
        if self._source is not None:
            await reload_on_change(
                lambda: self._tried, lambda: self._config.control.reload_on_change, self.reload
            )

    async def reload(self) -> ControlAnswer:
        """Have all go over to another configuration, or none; and say what came of it."""
        async with self._crew.turn, self._manager.reloading():
            done, problems, went_over = await self._reload()
        for problem in () if went_over else problems:
            self._log.error("configuration stays as it was", why=problem)
        if went_over:
            self._log.info("configuration reloaded", what="; ".join(done))
        return ControlAnswer(went_over, done, problems)

    async def _reload(self) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
        """Give what was done, what is in the way, and whether it was gone over to."""
        if self._source is None:
            return (
                (),
                ("it came from the command line: only serve --config FILE can be reloaded",),
                False,
            )
        if self._drain.is_set():
            return (), ("the gateway is shutting down",), False
        look_anew()
        tried: dict[Path, Stamp] = {}
        load = partial(self._source.load, lambda path: tried.update({path: stamp_of(path)}))
        self._tried = tried
        try:
            config = await trio.to_thread.run_sync(load, abandon_on_cancel=True)
            table = self._homes_of(config)
        except ConfigError as error:
            return (), tuple(map(str, error.problems)), False
        except (HomesMove, PolicyError) as error:
            return (), (f"{self._source.path}: {error}",), False
        async with AsyncExitStack() as opened:
            try:
                following = await self._listeners_of(config, opened)
            except ListenError as error:
                return (), (f"{self._source.path}: {error}",), False
            workers = [worker for worker in self._crew.workers if worker.serves]
            try:
                problems = await self._prepared(workers, config, table, following)
            except OSError as error:  # a descriptor too many
                problems = (f"the workers cannot be told of it: {error.strerror}",)
            if problems:
                for worker in workers:
                    worker.say(ChannelMessage("cancelled"))
                return (), problems, False
            opened.pop_all()
        return await self._commit(workers, config, table, following)

    def _homes_of(self, config: Config) -> Table:
        """Give the table of homes of another configuration. Raises `HomesMove`, `PolicyError`."""
        if number_of(config) != len(self._crew.workers):
            raise HomesMove(
                f"workers: there are {len(self._crew.workers)} of them; with {number_of(config)}, disks would"
                " have other homes than they have: that takes a restart"
            )
        if (config.user, config.group) != (self._config.user, self._config.group):
            raise HomesMove("another user or group takes a new start")
        if config.control.socket != self._config.control.socket:
            raise HomesMove("control.socket: with several workers, another one takes a restart")
        if config.admin != self._config.admin:
            raise HomesMove("admin: with several workers, another one takes a restart")
        return table_of(config, counted=counted_by(config), before=self._table)

    async def _listeners_of(
        self, config: Config, opened: AsyncExitStack
    ) -> list[tuple[Listen, Listener]]:
        """Give the listeners of a configuration: those that are there, and new ones."""
        found = []
        for settings in config.listen:
            here = next((e for e in self.doors.listeners if is_for(e.settings, settings)), None)
            if here is None:
                here = await open_listener(settings)
                opened.push_async_callback(here.aclose)
            found.append((settings, here))
        return found

    async def _prepared(
        self,
        workers: list[Worker],
        config: Config,
        table: Table,
        following: list[tuple[Listen, Listener]],
    ) -> tuple[str, ...]:
        """Have all workers do what may fail; give what is in the way."""
        for worker in workers:
            worker.prepared, worker.problems = trio.Event(), []
            worker.reloaded = trio.Event()
            for _settings, listener in following:
                if listener not in self.doors.listeners:
                    for door in self._door(listener):
                        worker.say(door)
            said = {"homes": said_of(table)}
            worker.say(ChannelMessage("reload", said, descriptors=(_in_memory(config),)))
        with trio.move_on_after(PREPARE_SECONDS) as limit:
            for worker in workers:
                await worker.prepared.wait()
        if limit.cancelled_caught:
            late = [each for each in workers if not each.prepared.is_set()]
            return tuple(
                f"worker {each.number} (process {each.process.pid}) was not ready for it within"
                f" {PREPARE_SECONDS:g} s"
                for each in late
                if each.process is not None
            ) or ("it took too long",)
        gone = [f"worker {each.number} has ended meanwhile" for each in workers if not each.serves]
        return (*lines([(each.number, each.problems) for each in workers]), *gone)

    async def _commit(
        self,
        workers: list[Worker],
        config: Config,
        table: Table,
        following: list[tuple[Listen, Listener]],
    ) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
        """Go over to it. From the first word on it is what a worker gets that is started."""
        self._crew.holds = True
        self._config, self._table = config, table
        set_up(config.log)
        for worker in workers:
            worker.say(ChannelMessage("commit"))
        problems: list[str] = []
        for settings, listener in following:
            before = listener.settings
            listener.take_over(settings)
            if (before.socket_mode, before.socket_owner) != (
                settings.socket_mode,
                settings.socket_owner,
            ):
                try:
                    with file_as_in(settings):
                        pass
                except ListenError as error:
                    problems.append(str(error))
        now = [listener for _settings, listener in following]
        gone = [each for each in self.doors.listeners if each not in now]
        self.doors.listeners[:] = now
        for listener in gone:
            await listener.aclose()
        with trio.move_on_after(COMMIT_SECONDS):
            for worker in workers:
                await worker.reloaded.wait()
        late = [each for each in workers if not each.reloaded.is_set()]
        for worker in late:  # it comes again, with the new configuration
            self._log.error("worker has not gone over to a configuration", worker=worker.number)
            worker.kill()
        self._crew.go_on()
        there = [each for each in workers if each not in late and each.serves]
        problems += lines([(each.number, each.problems) for each in there])
        return lines([(each.number, each.done) for each in there]), tuple(problems), True

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
                why=[*answer.problems],
            )

    def _failed(self, error: BaseException) -> None:
        self._log.error("internal error of the supervisor", exc_info=error)

    def _short(self, number: int) -> None:
        self._shortages.add(why_short(number))

    def _say_shortage(self, why: str, count: int, _last: str) -> None:
        self._log.error("could not accept a client", why=why, attempts=count)


def _in_memory(config: Config) -> int:
    """Put a configuration into a file in memory, and give its descriptor."""
    descriptor = os.memfd_create("nbd-gateway-configuration", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        pickle.dump(config, file)
    return descriptor

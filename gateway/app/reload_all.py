"""Another configuration for all workers: all go over to it, or none.

First everything that may fail, here and in all workers: the file is read here once, so all are told the same;
new addresses are listened on here. If anything fails anywhere, all stay as they were. Then all are told to go
over to it. In between, clients on their way from one worker to another wait: else one might be sent back and
forth by two that know different exports.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

import trio

from gateway.access.loading import PolicyError
from gateway.admin.control import ControlAnswer
from gateway.app.in_force import InForce, in_memory
from gateway.app.manager import Manager
from gateway.app.reload import RELOAD_SECONDS
from gateway.app.source import ConfigFiles, ConfigSource
from gateway.config import Config, ConfigError, Listen
from gateway.handover.message import ChannelMessage
from gateway.log import set_up
from gateway.net.listen import Listener, ListenError, file_as_in, is_for, open_listener
from gateway.workers.crew import Crew
from gateway.workers.homes import HomesMove, Table, counted_by, said_of, table_of
from gateway.workers.merged import lines
from gateway.workers.number import number_of
from gateway.workers.worker import Worker

COMMIT_SECONDS = 10.0
"""How long a worker may take to go over to what it has prepared, which takes no waiting."""

PREPARE_SECONDS = RELOAD_SECONDS + COMMIT_SECONDS
"""How long the workers may take to prepare a reload: one that takes longer than a reload may says so itself."""


class ReloadOfAll:
    """Exchanges what is in force. `ends` says whether the gateway does."""

    def __init__(
        self,
        in_force: InForce,
        crew: Crew,
        source: ConfigSource | None,
        manager: Manager,
        ends: Callable[[], bool],
    ) -> None:
        self._in_force = in_force
        self._crew = crew
        self._files = ConfigFiles(source)
        self._manager = manager
        self._ends = ends
        self.wanted = trio.Event()
        """Somebody wants it who does not wait for it."""

    async def when_wanted(self) -> None:
        """Reload whenever it is `wanted`, until cancelled."""
        while True:
            await self.wanted.wait()
            self.wanted = trio.Event()
            await self.reload()

    async def watch_file(self) -> None:
        """Reload when a file of it has changed, where the configuration says so, until cancelled."""
        await self._files.watch(lambda: self._in_force.config.control.reload_on_change, self.reload)

    async def reload(self) -> ControlAnswer:
        """Have all go over to another configuration, or none; and say what came of it."""
        async with self._crew.turn, self._manager.reloading():
            done, problems, went_over = await self._reload()
        for problem in () if went_over else problems:
            self._crew.log.error("configuration stays as it was", why=problem)
        if went_over:
            self._crew.log.info("configuration reloaded", what="; ".join(done))
        return ControlAnswer(went_over, done, problems)

    async def _reload(self) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
        """Give what was done, what is in the way, and whether it was gone over to."""
        if self._files.source is None:
            why = "it came from the command line: only serve --config FILE can be reloaded"
            return (), (why,), False
        if self._ends():
            return (), ("the gateway is shutting down",), False
        try:
            config = await self._files.read()
            table = self._homes_of(config)
        except ConfigError as error:
            return (), tuple(map(str, error.problems)), False
        except (HomesMove, PolicyError) as error:
            return (), (f"{self._files.where}{error}",), False
        async with AsyncExitStack() as opened:
            try:
                following = await self._listeners_of(config, opened)
            except ListenError as error:
                return (), (f"{self._files.where}{error}",), False
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
        if (config.user, config.group) != (self._in_force.config.user, self._in_force.config.group):
            raise HomesMove("another user or group takes a new start")
        if config.control.socket != self._in_force.config.control.socket:
            raise HomesMove("control.socket: with several workers, another one takes a restart")
        if config.admin != self._in_force.config.admin:
            raise HomesMove("admin: with several workers, another one takes a restart")
        return table_of(config, counted=counted_by(config, kept=True), before=self._in_force.table)

    async def _listeners_of(
        self, config: Config, opened: AsyncExitStack
    ) -> list[tuple[Listen, Listener]]:
        """Give the listeners of a configuration: those that are there, and new ones."""
        found = []
        for settings in config.listen:
            here = next(
                (e for e in self._in_force.doors.listeners if is_for(e.settings, settings)), None
            )
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
                if listener not in self._in_force.doors.listeners:
                    for door in self._in_force.door(listener):
                        worker.say(door)
            said = {"homes": said_of(table)}
            worker.say(ChannelMessage("reload", said, descriptors=(in_memory(config),)))
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
        self._crew.passing.holds = True
        self._in_force.config, self._in_force.table = config, table
        set_up(config.log)
        for worker in workers:
            worker.say(ChannelMessage("commit"))
        problems: list[str] = []
        for settings, listener in following:
            before = listener.settings
            listener.take_over(settings)
            try:
                with file_as_in(settings, before):
                    pass
            except ListenError as error:
                problems.append(str(error))
        now = [listener for _settings, listener in following]
        gone = [each for each in self._in_force.doors.listeners if each not in now]
        self._in_force.doors.listeners[:] = now
        for listener in gone:
            await listener.aclose()
        with trio.move_on_after(COMMIT_SECONDS):
            for worker in workers:
                await worker.reloaded.wait()
        late = [each for each in workers if not each.reloaded.is_set()]
        for worker in late:  # it comes again, with the new configuration
            self._crew.log.error(
                "worker has not gone over to a configuration", worker=worker.number
            )
            worker.kill()
        self._crew.passing.go_on()
        there = [each for each in workers if each not in late and each.serves]
        problems += lines([(each.number, each.problems) for each in there])
        return lines([(each.number, each.done) for each in there]), tuple(problems), True

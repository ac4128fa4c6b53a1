"""One schedule: its steps, carried out, and the end, in which everybody has to be right."""

from __future__ import annotations

import errno
import tempfile
import traceback
from collections.abc import Callable, Collection, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import trio
import trio.testing

from gateway.upstream.circuits import MOST_BACK_OFF_SECONDS
from gateway.wire.constants import Errno
from tests.tools.schedules import settings as all_settings
from tests.tools.schedules import steps as all_steps
from tests.tools.schedules.clients import Visitor, visitor
from tests.tools.schedules.geometry import BLOCKS, FIRST_BLOCKS
from tests.tools.schedules.house import House, house, in_no_time
from tests.tools.schedules.settings import Asked, Settings
from tests.tools.schedules.steps import Step
from tests.tools.stamps import Broken

MOST_CLIENTS = 4
MOST_UNDER_WAY = 8
"""Of one client."""

DOWN_SECONDS = 25
"""So long the server may be away: less than clients wait for it (`reconnect-seconds`)."""

END_SECONDS = 400
"""So long everything may take to be answered in the end: all times of a gateway together, and more."""

FINAL_FLUSHES = 4
"""So often a session may be told in the end: of several losses at several times, one after the other."""

WAITS = (0.01, 0.01, 0.3, 2.0, 40.0)

DEADLINES = (None, 0.0, 0.0, 1.0, 5.0)
"""Of upgrades, in seconds."""

ERRORS: tuple[int, ...] = (
    Errno.EIO,
    Errno.EIO,
    Errno.ENOSPC,
    Errno.EPERM,
    Errno.EINVAL,
    Errno.ENOTSUP,
    Errno.ENOMEM,
    Errno.EOVERFLOW,
    errno.ESTALE,
)
"""What a FLUSH may fail with. The last is none of proto.md's: of a file that is gone from under its server."""


@dataclass
class Outcome:
    """How a schedule went."""

    seed: int
    settings: Settings
    steps: Sequence[Step]
    problem: str = ""
    events: list[str] = field(default_factory=list)
    """What happened, for people."""
    log: list[MutableMapping[str, Any]] = field(default_factory=list)
    """What the gateway said."""

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.settings}"]
        lines += [f"  {event}" for event in self.events]
        lines += [f"  WRONG: {self.problem}"] if self.problem else []
        return "\n".join(lines)


class Schedule:
    """One that is under way."""

    def __init__(self, house: House, outcome: Outcome, stop: Callable[[], None]) -> None:
        self.house = house
        self.world, self.oracle = house.world, house.oracle
        self.outcome = outcome
        self.clients: list[Visitor] = []
        self._stop = stop
        self._packets = 0
        self._names = 0
        self._switched = False
        self._down_since = 0.0
        self._operating = 0
        self._upgrading = False
        """A newer gateway is being made, or an older one is there still."""
        self._snapshot: bytes | None = None

    # --- To be told

    def found(self, problem: str) -> None:
        """Note what is wrong, and end."""
        if not self.outcome.problem:
            self.outcome.problem = problem
        self._stop()

    def _say(self, event: str) -> None:
        self.outcome.events.append(f"{self.oracle.now:4} {event}")

    async def _settle(self) -> None:
        await trio.testing.wait_all_tasks_blocked()
        self.world.at_rest()
        if not self.house.leaves_unread:
            flushes = any(pending.command == "flush" for pending in self.world.disk.pending)
            self.oracle.settled(proves=flushes)

    # --- The steps

    async def run(self, steps: Sequence[Step]) -> None:
        """Carry out all of it. Raises `Broken`."""
        for step in steps:
            random = Random(step.number)
            await getattr(self, f"_{step.what}")(random)
            if random.random() < 0.75:
                await self._settle()
            elif random.random() < 0.5:
                await trio.lowlevel.checkpoint()
            if self.world.down and trio.current_time() - self._down_since > DOWN_SECONDS:
                await self._start(random)
        await self._end()

    def _one(self, random: Random) -> Visitor | None:
        there = [each for each in self.clients if each.there]
        return random.choice(there) if there else None

    async def _open(self, random: Random) -> None:
        self.clients = [each for each in self.clients if not each.leaving]
        if len(self.clients) < MOST_CLIENTS:
            self._comes(random.choice(self._exports()))

    def _exports(self) -> list[str]:
        alias = self.house.settings.alias
        if not alias or (alias == "switch" and not self._switched):
            return ["x"]
        return ["x", "y"]

    def _comes(self, export: str) -> Visitor:
        self._names += 1
        name = f"client {self._names}"
        comes = visitor(
            self.oracle,
            self.house.connect(),
            name,
            export,
            self.found,
            self.house.settings,
        )
        self.clients.append(comes)
        self._say(f"{name} opens {export}")
        self.house.nursery.start_soon(comes.live)
        return comes

    async def _ask(self, random: Random) -> None:
        client = self._one(random)
        if client is None or client.under_way >= MOST_UNDER_WAY:
            return
        count = random.choice((1, 1, 1, 2, 3))
        await self._send(client, [self._command(random) for _ in range(count)])

    def _command(self, random: Random) -> Asked:
        return _command(random, self.house.settings)

    async def _flush(self, random: Random) -> None:
        client = self._one(random)
        if client is not None and client.under_way < MOST_UNDER_WAY:
            await self._send(client, [Asked("flush")])

    async def _send(self, client: Visitor, commands: Sequence[Asked]) -> None:
        self._packets += 1
        self._say(f"{client.name}: {', '.join(map(str, commands))}")
        await client.ask(commands, self._packets)

    async def _serve(self, random: Random) -> None:
        for _ in range(random.choice((1, 1, 2, 5))):
            waiting = self.world.waiting
            if not waiting:
                return
            pending = random.choice(waiting)
            if random.random() < 0.8 or self.house.settings.fails:
                # A FLUSH that fails is to concern what was answered, and nothing else.
                self.world.answer(pending)
            else:
                self.world.carry_out(pending)

    async def _leave(self, random: Random) -> None:
        client = self._one(random)
        if client is not None:
            self._say(f"{client.name} leaves")
            await client.leave()

    async def _vanish(self, random: Random) -> None:
        client = self._one(random)
        if client is not None:
            half = random.choice((None, self._command(random)))
            self._say(f"{client.name} vanishes" + (f" in the middle of {half}" if half else ""))
            await client.vanish(half)

    async def _wait(self, random: Random) -> None:
        seconds = random.choice(WAITS)
        if self.world.down:
            seconds = min(seconds, 2.0)
        await self._pass(seconds)

    async def _pass(self, seconds: float) -> None:
        self._say(f"{seconds:g} s pass")
        if seconds > 0.5:
            # A server that takes its time for so long is silent, and that is said otherwise.
            self.world.forget_late(seconds)
            self.world.answer_all()
            self.world.free = True
        await trio.sleep(seconds)
        self.world.free = False

    async def _kill(self, random: Random) -> None:
        if self.world.down:
            return
        silent = self.house.settings.connections == "per-client" and random.random() < 0.1
        said = self.world.kill(random, self._keep(random), silent)
        self._down_since = trio.current_time()
        self._say(f"the server is killed: {said}")
        if random.random() < 0.7:
            if random.random() < 0.5:
                await self._settle()
            await self._start(random)

    async def _rewind(self, random: Random) -> None:
        """The first takes a snapshot, the next goes back to it."""
        if not self.house.settings.older or self.world.down:
            return
        if self._snapshot is None:
            self._snapshot = bytes(self.world.store.stable)
            self._say("a snapshot is taken")
            return
        if self.house.holds or self._operating:
            return
        snapshot, self._snapshot = self._snapshot, None
        self._say(f"the server is killed: {self.world.rewind(random, snapshot)}")
        self._down_since = trio.current_time()
        await self._settle()
        await self._start(random)

    async def _end_server(self, random: Random) -> None:
        said = self.world.stop(random, self._keep(random))
        self._down_since = trio.current_time()
        self._say(f"the server ends: {said}")
        await self._start(random)

    async def _halt(self, random: Random) -> None:
        if self.world.down:
            return
        if random.random() < 0.3:
            await self._end_server(random)
            return
        self._say("the server goes")
        self.world.go(self._keep(random))
        self._down_since = trio.current_time()

    def _keep(self, random: Random) -> str:
        return (
            random.choice(("none", "none", "some", "all")) if self.house.settings.loses else "all"
        )

    async def _start(self, _random: Random) -> None:
        if self.world.down:
            self._say("the server is started")
            self.world.start()

    async def _cut(self, random: Random) -> None:
        numbers = _some(random, self.world.there)
        if numbers:
            self._say(f"connections {numbers} are cut")
            self.world.cut(set(numbers))

    async def _silence(self, random: Random) -> None:
        numbers = _some(random, self.world.there)
        if numbers:
            self._say(f"connections {numbers} say nothing any more")
            self.world.silence(set(numbers))

    async def _speak(self, random: Random) -> None:
        if self.world.silent:
            self._say("connections that say nothing are cut")
            self.world.end_silence()

    async def _fail(self, random: Random) -> None:
        if self.house.settings.fails:
            error = random.choice(ERRORS)
            self._say(f"the next FLUSH is to fail with {errno.errorcode[error]}")
            self.world.errors = [error]

    async def _move(self, random: Random) -> None:
        world = self.world
        if world.down or world.goes or not self.house.has_home:
            return
        self._say(f"the home dies, and connections {sorted(world.there)} with it")
        if not world.cut(set(world.there)):
            self.oracle.cut()
        self.house.home_dies()

    # --- Operators

    def _operate(self, verb: str, **arguments: object) -> None:
        if self.house.settings.fleet:
            return  # it is refused there

        async def operate() -> None:
            self._operating += 1
            try:
                answer = await self.house.ask(verb, **arguments)
            finally:
                self._operating -= 1
                self.oracle.operated()
            self._say(f"{verb}: {'done' if answer.ok else answer.problems}")

        self._say(f"{verb} {arguments}")
        self.house.nursery.start_soon(operate)

    async def _pause(self, random: Random) -> None:
        self._operate("pause", export=random.choice(self._exports()), within=2)

    async def _resume(self, random: Random) -> None:
        for export in self.house.service.paused:
            self._operate("resume", export=export)

    async def _switch(self, random: Random) -> None:
        alias, arguments = self.house.settings.alias, {}
        if self.house.settings.fleet:
            return
        if alias in ("name", "upstream") or (alias == "switch" and self._switched):
            return
        if alias == "switch" or random.random() < 0.6:
            arguments = {"uri": self.house.other}
        close_first = random.random() < 0.3

        async def switch() -> None:
            self._operating += 1
            try:
                answer = await self.house.ask(
                    "switch", export="x", within=2, **arguments, **{"close-first": close_first}
                )
            finally:
                self._operating -= 1
                self.oracle.operated()
            self._switched = self._switched or (answer.ok and bool(arguments))
            self._say(f"switch: {'done' if answer.ok else answer.problems}")

        self._say(f"switch x {'there' if arguments else 'back'}{', closing first' * close_first}")
        self.house.nursery.start_soon(switch)

    async def _upgrade(self, random: Random) -> None:
        if self._upgrading or self.house.settings.fleet:
            return
        deadline = random.choice(DEADLINES)
        self._upgrading = True

        async def upgrade() -> None:
            older = self.house.all[-1]
            try:
                answer = await self.house.ask("upgrade", deadline=deadline)
                self._say(f"upgrade: {'done' if answer.ok else answer.problems}")
                if answer.ok:
                    if deadline is not None:
                        self.oracle.ends_sessions()
                    await older.ended.wait()
                    self.oracle.sessions_go_on()
                    self._say("the older gateway has ended")
            finally:
                self._upgrading = False

        until = "" if deadline is None else f", which ends its sessions after {deadline:g} s"
        self._say(f"a newer gateway takes the place of this one{until}")
        self.house.nursery.start_soon(upgrade)

    # --- The end

    async def _end(self) -> None:
        self._say("the end: everything is to be answered")
        self.world.errors = []
        self.world.free = True
        self.world.end_silence()
        self.world.start()
        self.world.forget_late(1e9)
        await self._until_answered()
        for client in [each for each in self.clients if each.there]:
            await self._check(client)
        # Who comes before a back-off is over may be told what the last one was. The clock jumps.
        await trio.sleep(MOST_BACK_OFF_SECONDS + 1)
        newcomer = self._comes("x")
        await self._until(lambda: newcomer.ready or newcomer.leaving)
        if newcomer.leaving:
            raise Broken("who comes in the end is not let in")
        await self._check(newcomer)
        for client in self.clients:
            if client.there:
                await client.leave()
        await self._settle()
        self.oracle.check_final([self.world.store.stamp(block) for block in range(BLOCKS)])

    async def _until_answered(self) -> None:
        def done() -> bool:
            return (
                not self.oracle._under_way
                and not self._operating
                and all(each.ready or each.leaving for each in self.clients)
            )

        await self._until(done)

    async def _until(self, done: Callable[[], bool]) -> None:
        limit = trio.current_time() + END_SECONDS
        while True:
            self.world.answer_all()
            await self._settle()
            if done():
                return
            if trio.current_time() > limit:
                self.oracle.check_answered()
                raise Broken("what was begun does not come to an end")
            for export in list(self.house.service.paused):
                if not self._operating:
                    self._operate("resume", export=export)
            await trio.sleep(0.5)

    async def _check(self, client: Visitor) -> None:
        """FLUSH until that succeeds, and read everything."""
        if client.session.has_to_end:  # its connection may not have been made again yet
            await trio.sleep(MOST_BACK_OFF_SECONDS + 1)
            await self._settle()
        if not client.there or client.leaving:  # meanwhile
            return
        if client.session.has_to_end:
            raise Broken(f"{client.name} goes on, on a disk without what it has flushed")
        for _ in range(FINAL_FLUSHES):
            tellings = len(self.oracle.tellings)
            await self._send(client, [Asked("flush")])
            await self._until_answered()
            if len(self.oracle.tellings) == tellings or client.leaving:
                break
        else:
            raise Broken(f"{client.name}: {FINAL_FLUSHES} FLUSHes have failed in the end")
        if client.leaving:
            return
        for start, count in ((0, FIRST_BLOCKS), (FIRST_BLOCKS, BLOCKS - FIRST_BLOCKS)):
            await self._send(client, [Asked("read", start, count)])
        await self._until_answered()


def _command(random: Random, settings: Settings) -> Asked:
    # What a policy does in several steps comes more often where there is one.
    zeros, fua = 10 if "zero" in settings.policies else 2, 6 if settings.policies else 1
    kind = random.choices(
        ("write", "read", "flush", "fua", "zero", "trim"), (10, 5, 5, fua, zeros, 0.3)
    )[0]
    if kind == "flush":
        return Asked(kind)
    if kind == "zero" and random.random() < 0.3:
        return Asked(kind, 0, BLOCKS)
    first, last = random.choice(((0, FIRST_BLOCKS), (FIRST_BLOCKS, BLOCKS)))
    count = random.randint(1, 8)
    return Asked(kind, random.randint(first, last - count), count)


def _some(random: Random, there: Collection[int]) -> list[int]:
    numbers = sorted(there)
    return numbers if not numbers or random.random() < 0.4 else [random.choice(numbers)]


def plan_of(seed: int, *, upgrades: bool = True) -> tuple[Settings, list[Step]]:
    """Give what a seed stands for; or stood for, when there were no `upgrades`, and no fleet."""
    random = Random(seed)
    settings, steps = all_settings.draw(random), all_steps.draw(random)
    more = Random(f"{seed}, older")
    older = replace(settings, older=True)
    if older.possible and more.random() < 0.3:
        times = more.choice((2, 2, 4))
        settings, steps = older, all_steps.mixed_with(more, steps, all_steps.REWIND, times)
    more = Random(f"{seed}, in a fleet")
    if upgrades and more.random() < 0.15:
        in_fleet = all_settings.in_fleet(settings)
        steps = all_steps.mixed_with(more, steps, all_steps.MOVE, more.choice((1, 2, 4)))
        return in_fleet, steps
    more = Random(f"{seed}, upgraded")
    if upgrades and more.random() < 0.3:
        times = more.choice((1, 2, 4))
        steps = all_steps.mixed_with(more, steps, all_steps.UPGRADE, times)
    return settings, steps


def run(seed: int, settings: Settings, steps: Sequence[Step]) -> Outcome:
    """Carry out a schedule."""
    outcome = Outcome(seed, settings, steps)
    # Trio shuffles tasks that may run: by its own random numbers, in an order of its own.
    tasks: Any = trio._core._run
    tasks._r, tasks._ALLOW_DETERMINISTIC_SCHEDULING = Random(seed), True
    with in_no_time(), tempfile.TemporaryDirectory(prefix="nbd-") as name:
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(_run, outcome, Path(name), clock=clock)
    return outcome


async def _run(outcome: Outcome, workdir: Path) -> None:
    scope = trio.CancelScope()
    try:
        with scope:
            async with house(outcome.settings, workdir, Random(outcome.seed)) as made:
                outcome.log = made.log
                await Schedule(made, outcome, scope.cancel).run(outcome.steps)
    except BaseExceptionGroup as group:
        if not outcome.problem:
            outcome.problem = _said(group)


def _said(error: BaseException) -> str:
    """Say what went wrong first, and where."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, Broken):
        return str(error)
    return "".join(traceback.format_exception(error))

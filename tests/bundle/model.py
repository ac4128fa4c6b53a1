"""Schedules of sessions over one bundle, held to what a disk means; for `test_model`.

Theory
------

Every block of a disk is a register; see `tests.sessions.registers` for what a READ may give then, and what an
answered FLUSH means. Here the connections die, with or without the server, and come again, and the rules get
these additions:

- A *loss* is a moment in which no connection is left that was in use (the server may have restarted), or in
  which the server fails a FLUSH. In the modes that tell the sessions (`sticky`, `verify`), what was answered
  and not yet flushed then is lost to each session *that has been told* since, by a FLUSH that failed, or that
  came after one was told: it may be there, or not. To all others it is not: they get EIO, or what was written.
- A session's FLUSH fails only if there was a loss since it was last told, and a READ only where the loss was.
- In the other modes nothing fails, and nothing is lost: with `replay` whatever the server does, with
  `assume-durable` while it does not restart.
- A write whose connection died may fail with `unknown_writes = "eio"`; then it may happen at any time.
- A command of a dead connection is carried out up to `late_write_seconds` later, if its server lives on. That
  may be a WRITE of bytes that were there before, so that nobody can tell by the disk whether it was done.
- A command over which two connections have died may fail, if nothing else was under way at the second death. A
  server that has said that it goes is no such death, and then its connections die as others do.
- If two have died over a FLUSH or WRITE of a recovery's own, with nothing beside it the second time, that is a
  loss in any mode (`Mends`); so it is when a row of recoveries has cost `MOST_DEATHS`.
- `late_write_seconds` is waited for, but not when the server is known to have ended (`World.known_ends`).

One random number generator decides everything, so a seed is a schedule. The stripe and the disk are small, and
so are the bounds on what is under way, so that everything that can be in the way of something is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random

from gateway.bundle import ports, work
from gateway.bundle.deadly import MOST_DEATHS, MOST_WRITE_DEATHS
from gateway.bundle.line import Line
from gateway.bundle.lines import State
from gateway.bundle.ports import Port
from gateway.jobs.fences import Fences
from gateway.losses.eras import KEPT, Era
from gateway.losses.rule import Losses, Trail
from gateway.losses.survival import Doubt, Unanswered
from gateway.protocol.asks import Ask, Done, Outcome
from gateway.protocol.export import Export, offer, view_of
from gateway.quirks import Dialect
from gateway.scan.plan import Plan, plan
from gateway.scan.traffic import Traffic
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.framing import EXTENDED, SIMPLE, STRUCTURED, Framing
from gateway.wire.handshake import MetaContext
from gateway.wire.ranges import Range
from tests.bundle.server import (
    BLOCK,
    BLOCKS,
    CONTEXT,
    SIZE,
    Broken,
    Connection,
    Server,
    content,
    values,
)
from tests.tools.defaults import SURVIVAL, bundle_of

NEVER = 10**9
STRIPE = 4 * BLOCK
LATE_SECONDS = 30.0
MOST_ROUNDS = 20_000
OUR_CONTEXT = 1

FLAGS = (
    Flag.HAS_FLAGS
    | Flag.SEND_FLUSH
    | Flag.SEND_FUA
    | Flag.SEND_TRIM
    | Flag.SEND_WRITE_ZEROES
    | Flag.SEND_FAST_ZERO
    | Flag.SEND_CACHE
    | Flag.CAN_MULTI_CONN
)

WRITES = (Cmd.WRITE, Cmd.WRITE_ZEROES, Cmd.TRIM)
COMMANDS: tuple[Cmd, ...] = (
    *(Cmd.READ,) * 6,
    *(Cmd.WRITE,) * 8,
    *(Cmd.WRITE_ZEROES,) * 2,
    *(Cmd.FLUSH,) * 3,
    Cmd.TRIM,
    Cmd.CACHE,
    Cmd.BLOCK_STATUS,
)
REPEATED = (*(Cmd.READ,) * 3, *(Cmd.WRITE,) * 6, Cmd.FLUSH)
"""Those where the same is written again and again."""
_FLUSHES = (Cmd.FLUSH, Cmd.BLOCK_STATUS, Cmd.TRIM, Cmd.WRITE_ZEROES)
"""What is answered when a FLUSH is, or may be."""
TELLING = (Doubt.STICKY, Doubt.VERIFY)
"""Modes in which a loss is told."""

LONGEST = 10
"""Blocks of a READ or WRITE."""
MOST_PIECES = 20

MOST_SESSIONS = 4
"""That come later."""

BOUNDS = (
    (work, "LINE_COMMANDS"),
    (work, "LINE_BYTES"),
    (work, "MOST_WRITES"),
    (ports, "TURN_BYTES"),
    (ports, "COMMAND_BYTES"),
)
"""Those that are smaller here."""

PATIENCE = 300
"""Rounds in which nothing happens, by chance, before a schedule is taken to have stuck."""


# --- What may be


@dataclass(eq=False)
class Loss:
    """A moment in which the server may have lost what was not flushed."""

    at: int
    blocks: set[int]
    known: bool = False
    """It has been found."""
    told: dict[Session, int] = field(default_factory=dict)
    """Sessions that have been told, or need not be; since when."""
    left: set[Session] = field(default_factory=set)
    """Sessions that have come since, while others were there who are to be told."""


@dataclass(eq=False)
class Write:
    """Something that fills blocks with a value (None: a TRIM, after which anything may be there)."""

    blocks: range
    value: int | None
    began: int
    ended: int = NEVER
    laid: int = NEVER
    """When the bundle had its answer, which its session takes later."""
    seen: dict[int, int] = field(default_factory=dict)
    """By block, when it had been read: there it has happened then, and does not happen again."""
    flushed: bool = False
    loss: Loss | None = None

    def certain(self, session: Session) -> bool:
        """It is there, or something newer, for all that the session knows."""
        if self.loss is not None and self.laid < session.told_at:
            return False  # whatever was answered before EIO is in doubt
        loss = self.loss
        return self.ended != NEVER and (loss is None or session not in {*loss.told, *loss.left})


class History:
    """All writes, by their block, and what follows from them."""

    def __init__(self, answered: Callable[[], list[Write]]) -> None:
        """`answered` gives writes that have been answered, and not yet to their sessions."""
        self._answered = answered
        self.now = 0
        first = Write(range(BLOCKS), 0, -2, -1, flushed=True)
        self.writes = [first]
        self._of = [[first] for _ in range(BLOCKS)]
        self.losses: list[Loss] = []
        self.may_give_up = False
        """A recovery may take for lost what nothing else has lost."""
        self.given_up = 0
        """How often one has."""

    def add(self, write: Write) -> None:
        self.writes.append(write)
        for block in write.blocks:
            self._of[block].append(write)

    def may_be_read(self, session: Session, block: int, value: int, began: int) -> bool:
        """Say whether a READ that began then may be given a value now; it is given then."""
        writes = self._of[block]
        last = max((w.began for w in writes if w.ended < began and w.certain(session)), default=-9)
        left = [w for w in writes if min(w.ended, w.seen.get(block, NEVER)) >= last]
        if any(w.value is None for w in left):
            left = writes
        found = [write for write in left if write.value == value]
        if value and len(found) == 1:  # else it may have been another one
            found[0].seen.setdefault(block, self.now)
        return bool(found)

    def last(self, block: int) -> Write:
        """Give what was asked last to be written there."""
        return self._of[block][-1]

    def check_stable(self, write: Write, server: Server, why: str) -> None:
        for block in write.blocks:
            lasting = [w.value for w in self._of[block] if w.ended >= write.began]
            if None not in lasting and server.stable[block][1] not in lasting:
                value = server.stable[block][1]
                raise Broken(f"{why}: block {block} is {value} on the stable disk, not {lasting}")

    def lose(self, within: range | None = None) -> None:
        """Now is a loss; `within`: of what fills any of these blocks and no other."""
        unflushed = [
            write
            for write in self.writes
            if not write.flushed and (within is None or {*write.blocks} <= {*within})
        ]
        loss = Loss(self.now, {block for write in unflushed for block in write.blocks})
        self.losses.append(loss)
        answered = self._answered()
        for write in unflushed:
            if (write.ended != NEVER or write in answered) and write.loss is None:
                write.loss = loss
        # One that was lost before stays with that loss: who was told of it knows.

    def find(self) -> None:
        """The bundle has found what is lost."""
        if all(loss.known for loss in self.losses):
            if not self.may_give_up:
                raise Broken("what is taken to be lost is not")
            self.given_up += 1
        self.now += 1
        self.lose()  # with what was answered in between
        for loss in self.losses:
            loss.known = True

    def tell(self, session: Session) -> None:
        for loss in self.losses:
            if loss.known:
                loss.told.setdefault(session, self.now)


# --- A session


@dataclass(eq=False)
class Command:
    """An ask under way."""

    ask: Ask
    began: int
    write: Write | None = None
    unknown: bool = False
    """It was under way when a connection died."""
    deaths: Counter[int] = field(default_factory=Counter)
    """By where its parts begin: connections that died over them, for which nobody else is to
    blame."""
    may_be_deadly: bool = False
    """It may be what takes the server down: nothing else was under way at the second of these deaths."""

    last_death: dict[int, int] = field(default_factory=dict)
    """When that was, of each part."""

    def note_death(self, at: int, *, made: int, now: int, alone: bool) -> None:
        """A connection has died over a part of it, and over nothing else if that was `alone`. One that was made
        before the last of these died may have died with it.
        """
        if made <= self.last_death.get(at, -1):
            return
        self.last_death[at] = now
        self.deaths[at] += 1
        self.may_be_deadly = self.may_be_deadly or (self.deaths[at] >= 2 and alone)


@dataclass
class Mends:
    """What recoveries have asked over which connections have died: that may be deadly as well."""

    deaths: Counter[tuple[Cmd, int, int]] = field(default_factory=Counter)
    last_death: dict[tuple[Cmd, int, int], int] = field(default_factory=dict)
    in_a_row: int = 0
    """Over anything, since the bundle was up."""
    last: int = -1

    def note_death(self, ask: Ask, *, made: int, now: int, alone: bool) -> bool:
        """A connection has died over this: say whether what it is for may be given up now."""
        key = ask.command, ask.offset, ask.length
        if made > self.last:
            self.in_a_row += 1
            self.last = now
        if made > self.last_death.get(key, -1):
            self.deaths[key] += 1
            self.last_death[key] = now
        deadly = ask.command is not Cmd.READ and self.deaths[key] >= MOST_WRITE_DEATHS and alone
        return deadly or self.in_a_row >= MOST_DEATHS


@cache
def _plan_of(export: Export) -> Plan:
    return plan(offer(view_of(export), structured=False), export, Dialect())


class Session:
    """Asks what overlaps, and checks every answer."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.random
        self.debt = world.losses.open()
        self.traffic = Traffic(_plan_of(world.export), debt=self.debt, fences=world.fences)
        self.told_at = -NEVER
        """When a FLUSH of it failed last."""
        self.port = Port(self.traffic, self._wake)
        self.woken = False
        self.left = self._random.randint(1, 25)
        self.most = self._random.choice((1, 3, 8))
        self.under_way: dict[int, Command] = {}
        self._command_of: dict[Done, Command] = {}
        self._number = 0
        self.over = False
        self.joined = world.history.now
        for loss in world.history.losses:
            if loss.told:  # others have been told
                loss.told[self] = self.joined
            elif loss.known and any(not each.over for each in world.sessions):
                loss.left.add(self)

    def _wake(self) -> None:
        self.woken = True

    def step(self) -> bool:
        """Ask something, or take answers."""
        did = False
        if self.left and len(self.under_way) < self.most and self._random.random() < 0.7:
            self.left -= 1
            self.ask(self._some_ask())
            did = True
        if self.woken and self._random.random() < 0.7:
            self.woken = False
            self._world.bundle.answers(self.port)
            did = True
        return did

    def leave(self) -> None:
        self.over = True
        self._world.bundle.leave(self.port)
        self._world.losses.end(self.debt)

    def ask(self, ask: Ask) -> None:
        world = self._world
        world.history.now += 1
        command = self._command(ask)
        done = self._done(command)
        fences = self.traffic.fences
        if ask.command in WRITES and fences.bar(ask.offset, ask.end):
            world.fenced += 1

            def go_on() -> None:
                if not self.over:
                    world.bundle.ask(self.port, ask, done)

            fences.wait(ask.offset, ask.end, go_on)
        else:
            world.bundle.ask(self.port, ask, done)

    def adopt(self, ask: Ask) -> None:
        """Have something be under way that was asked over a link that is gone."""
        self._world.history.now += 1
        command = self._command(ask)
        command.unknown = True
        self._world.bundle.adopt(self.port, ask, self._done(command))

    def _command(self, ask: Ask) -> Command:
        command = Command(ask, self._world.history.now)
        if ask.command in WRITES:
            blocks = range(ask.offset // BLOCK, ask.end // BLOCK)
            value: int | None = 0
            if ask.command is Cmd.WRITE:
                value = values(bytes(ask.data))[0]
            elif ask.command is Cmd.TRIM:
                value = None
            command.write = Write(blocks, value, command.began)
            self._world.history.add(command.write)
        return command

    def _done(self, command: Command) -> Callable[[Outcome], None]:
        self._number += 1
        number = self._number
        self.under_way[number] = command
        flush = self.debt.read() if command.ask.command is Cmd.FLUSH else None

        def done(outcome: Outcome) -> None:
            if flush is None or outcome.error or self.debt.losses.settle(flush, settled):
                answered(outcome)

        def settled() -> None:
            if not self.over:
                answered(Outcome())

        def answered(outcome: Outcome) -> None:
            if flush is not None:
                error, text = self.debt.losses.answer(flush, outcome.error, outcome.text)
                outcome = Outcome(error, text)
            if self.over:
                raise Broken("a session that has gone is answered")
            if self.under_way.pop(number, None) is None:
                raise Broken(f"{command.ask} is answered twice")
            self._world.history.now += 1
            self._check(command, outcome)

        self._command_of[done] = command
        return done

    def note_laid(self, done: Done) -> None:
        """Its port is given an answer."""
        command = self._command_of.get(done)
        if command is not None and command.write is not None:
            command.write.laid = self._world.history.now

    @property
    def answered_writes(self) -> list[Write]:
        """What its port has for it."""
        commands = [
            self._command_of[done] for done, outcome in self.port.answered if not outcome.error
        ]
        return [each.write for each in commands if each.write is not None]

    def _some_ask(self) -> Ask:
        random = self._random
        command = random.choice(self._world.commands)
        if command is Cmd.FLUSH or (
            command is Cmd.BLOCK_STATUS and not self._world.framing.chunked
        ):
            return Ask(Cmd.FLUSH, 0, 0)
        hot = self._world.hot
        start = random.choice((random.randrange(BLOCKS), random.randrange(hot)))
        if self._world.sluggish:
            start = random.randrange(hot)
        count = min(random.choice((1, 1, 2, 3, 6, LONGEST)), BLOCKS - start)
        if command not in (Cmd.READ, Cmd.WRITE) and random.random() < 0.4:
            start, count = random.choice(((0, BLOCKS), (1, BLOCKS - 2), (3, BLOCKS - 8)))
        data, flags = b"", 0
        if command is Cmd.WRITE:
            value = self._world.new_value()
            there = self._world.history.last(start)
            if there.value and random.random() < self._world.same:  # its bytes, once more
                start, count, value = there.blocks.start, len(there.blocks), there.value
            data = content(value, count)
        if command in WRITES and random.random() < 0.3:
            flags |= CmdFlag.FUA
        if command is Cmd.WRITE_ZEROES and random.random() < 0.3:
            flags |= CmdFlag.FAST_ZERO
        return Ask(command, start * BLOCK, count * BLOCK, flags, data)

    # --- Answers

    def _check(self, command: Command, outcome: Outcome) -> None:
        world, ask, write = self._world, command.ask, command.write
        if world.given_up:
            return
        if outcome.error:
            self._check_failed(command, outcome)
            return
        match ask.command:
            case Cmd.READ:
                self._check_read(command, values(outcome.data))
            case Cmd.FLUSH:
                self._check_flush(command)
            case Cmd.BLOCK_STATUS:
                self._check_status(command, outcome)
        if write:
            write.ended = world.history.now
            if ask.flags & CmdFlag.FUA:
                write.flushed = True
                if write.value is not None:
                    world.history.check_stable(write, world.server, f"{ask}, with FUA")

    def _check_failed(self, command: Command, outcome: Outcome) -> None:
        world, ask = self._world, command.ask
        history = world.history
        if outcome.error == Errno.ENOTSUP and ask.flags & CmdFlag.FAST_ZERO:
            return  # some of it may be zeros: in pieces, it is no promise that nothing was touched
        if outcome.error != Errno.EIO:
            raise Broken(f"{ask} failed with {outcome}")
        if command.unknown and command.write and world.unknown is Unanswered.EIO:
            return
        if command.may_be_deadly:
            world.taken_for_deadly += 1
            if ask.command is Cmd.FLUSH:
                history.tell(self)
                self.told_at = history.now
            return
        owed = [
            loss
            for loss in history.losses
            if loss.known and loss.told.get(self, NEVER) > command.began
        ]
        if ask.command is Cmd.FLUSH:
            if not owed:
                raise Broken("a FLUSH failed, and there is nothing to tell")
            history.tell(self)
            self.told_at = history.now
        elif ask.command is Cmd.BLOCK_STATUS and world.server.has_failed:
            pass  # it is not known whether all lines see the same then
        elif ask.command in (Cmd.READ, Cmd.BLOCK_STATUS):
            blocks = set(range(ask.offset // BLOCK, ask.end // BLOCK))
            if not any(loss.blocks & blocks for loss in owed):
                raise Broken(f"{ask} failed with {outcome}, and nothing is lost there")
        elif not any(loss.at >= command.began for loss in owed):
            raise Broken(f"{ask} failed with {outcome}")

    def _check_read(self, command: Command, found: list[int]) -> None:
        history = self._world.history
        for block, value in enumerate(found, start=command.ask.offset // BLOCK):
            if not history.may_be_read(self, block, value, command.began):
                raise Broken(f"{command.ask} gave {value} in block {block}")

    def _check_status(self, command: Command, outcome: Outcome) -> None:
        block = command.ask.offset // BLOCK
        [extents] = outcome.status.values()
        assert list(outcome.status) == [OUR_CONTEXT]
        for length, flags in extents:
            if flags and not self._world.history.may_be_read(self, block, 0, command.began):
                raise Broken(f"{command.ask} says that block {block} is zeros")
            block += length // BLOCK

    def _check_flush(self, command: Command) -> None:
        world = self._world
        for write in world.history.writes:
            if not write.flushed and write.ended < command.began and write.certain(self):
                if write.value is not None:
                    world.history.check_stable(write, world.server, f"FLUSH of {command.began}")
                write.flushed = write.loss is None


# --- Everything together


class Watched(Losses):
    """Tells the history when something is found to be lost."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self._history = history

    def _lose(
        self,
        taken: Mapping[Trail, list[Era]],
        why: str,
        *,
        said: bool = False,
        known: bool = False,
        alone: bool = False,
    ) -> None:
        super()._lose(taken, why, said=said, known=known, alone=alone)
        if any(eras and (said or not trail.believed) for trail, eras in taken.items()):
            self._history.find()

    def done_before(self, trail: Trail, ranges: Iterable[Range]) -> None:
        ranges = list(ranges)
        for start, end in ranges:
            self._history.lose(range(start // BLOCK, end // BLOCK))
        super().done_before(trail, ranges)

    def flush_failed(self, trail: Trail, error: int, text: str = "") -> None:
        super().flush_failed(trail, error, text)
        if not all(loss.known for loss in self._history.losses):
            self._history.find()  # nothing is lost; those who asked are told all the same


class Process:
    """What is known of the server that a line leads to."""

    provable = True
    ended = False

    def gone(self) -> bool:
        return self.ended

    def serves(self, sock: object) -> None:
        pass


class World:
    """A server, a bundle and its sessions."""

    def __init__(self, seed: int, doubt: Doubt | None = None, *, repeats: bool = False) -> None:
        self.random = random = Random(seed)
        self.now = 0.0
        self.count = random.choice((1, 1, 2, 3, 4))
        self.doubt = doubt or random.choice(list(Doubt))
        self.unknown = random.choice((Unanswered.REISSUE, Unanswered.REISSUE, Unanswered.EIO))
        self.late_seconds = random.choice((0.0, LATE_SECONDS))
        self.strong = random.random() < 0.15
        self.deadly = random.choice((0, 0.003, 0.01, 0.03))
        self.hot = random.choice((4, 12, BLOCKS))
        self.framing: Framing = random.choice((SIMPLE, STRUCTURED, EXTENDED))
        self.export = Export(
            SIZE,
            int(FLAGS),
            structured=self.framing.chunked,
            extended=self.framing is EXTENDED,
            contexts=(MetaContext(CONTEXT, "base:allocation"),) if self.framing.chunked else (),
        )
        self.sessions: list[Session] = []
        # Much is late, in few places: what comes late is on top of something newer then.
        self.sluggish = random.random() < 0.3 or repeats
        if self.sluggish:
            self.unknown, self.late_seconds = Unanswered.REISSUE, LATE_SECONDS
            self.deadly, self.hot = 0.02, 3
        self.same = random.choice((0, 0.2))
        """How likely a WRITE is of what is there."""
        self.commands = COMMANDS
        self.repeats = self.sluggish and (random.random() < 0.5 or repeats)
        if self.repeats:
            # And much of it is there already, in one place: then it is found, and comes late all the same.
            self.same, self.hot, self.commands = 0.5, 1, REPEATED
        self.history = History(self._answered_writes)
        weak = not self.strong and random.random() < 0.7
        self.server = Server(random, weak=weak, by_range=not self.strong)
        self.server.pace = 0.15 if self.sluggish else 0.7
        if self.doubt in TELLING and random.random() < 0.2:
            self.server.flushes_that_fail = 1
        self.server.note_failed = self._note_failed
        self.losses = Watched(self.history)
        self.fences = Fences()
        self.said: list[str] = []
        self.bundle = bundle_of(
            self.export,
            self.count,
            self.losses.trail(None, KEPT[self.doubt]),
            clock=lambda: self.now,
            stripe_bytes=STRIPE,
            strong=self.strong,
            survival=replace(
                SURVIVAL,
                unflushed=self.doubt,
                replay_bytes=random.choice((8 * BLOCK, 40 * BLOCK, 1000 * BLOCK)),
                unknown_writes=self.unknown,
                late_write_seconds=self.late_seconds,
            ),
            say=lambda what, _details: self.said.append(what),
            fences=self.fences,
        )
        ports_of_it = self.bundle.work.ports
        lay = ports_of_it.answer

        def answer(task: ports.Task, outcome: Outcome) -> None:
            for session in self.sessions:
                session.note_laid(task.done)
            lay(task, outcome)

        ports_of_it.answer = answer  # type: ignore[method-assign] # to know when
        self.connections: dict[int, Connection] = {}
        self._made: dict[Line, int] = {}
        """When each line was linked."""
        self.gives_up = random.random() < 0.1
        self.given_up = False
        self._value = 0
        self.deaths = 0
        self.departures = 0
        """Connections that were left because their server was going."""
        self.taken_for_deadly = 0
        self.mends = Mends()
        self.restarts = 0
        self.late_done = 0
        self.fenced = 0
        """Writes that have waited for a fence."""
        self.process = Process()
        self.known_ends = random.random() < 0.5
        self.came = 0
        self.adopted = False
        self.sessions += [Session(self) for _ in range(random.randint(1, 3))]
        if random.random() < 0.1:
            self._adopt()

    def new_value(self) -> int:
        self._value += 1
        return self._value

    def _answered_writes(self) -> list[Write]:
        return [write for session in self.sessions for write in session.answered_writes]

    def _adopt(self) -> None:
        if self.count > 1:
            return
        self.adopted = True
        connection = Connection(self.random, self.server, self._new_line(0), self.framing)
        for session in self.sessions:
            while session.left and len(session.under_way) < session.most:
                session.left -= 1
                ask = session._some_ask()
                connection.line.traffic.asks.send(ask, lambda _outcome: None)
                session.adopt(ask)
        for _ in range(self.random.randrange(20)):
            connection.receive()
            waiting = [asked for asked in connection.asked if asked.reply is None]
            if waiting:
                connection.carry_out(self.random.choice(waiting))
        connection.die(self._late_until())

    def _late_until(self) -> float | None:
        return self.now + self.late_seconds * self.random.random() if self.late_seconds else None

    def _new_line(self, number: int) -> Line:
        ids = {"base:allocation": OUR_CONTEXT}
        return Line(number, self.export, Dialect(), ids, self.process)

    # --- Steps

    def run(self) -> None:
        """Run until everything is answered."""
        before = [getattr(module, name) for module, name in BOUNDS]
        work.MOST_WRITES = self.random.choice((4, 1000))
        work.LINE_COMMANDS = self.random.choice((1, 4, 128))
        work.LINE_BYTES = self.random.choice((BLOCK, 20 * BLOCK, 10000 * BLOCK))
        ports.TURN_BYTES, ports.COMMAND_BYTES = 4 * BLOCK, BLOCK
        try:
            self._run()
        finally:
            for (module, name), bound in zip(BOUNDS, before, strict=True):
                setattr(module, name, bound)

    def _run(self) -> None:
        idle = 0
        for _ in range(MOST_ROUNDS):
            if self._over:
                break
            did = [step() for step in self._steps()]
            idle = 0 if any(did) else idle + 1
            if idle > PATIENCE:
                under_way = [each.under_way for each in self.sessions]
                raise Broken(f"stuck in {self.bundle.state}: {under_way}")
        else:
            raise Broken("no end")
        self._check_at_the_end()

    @property
    def _over(self) -> bool:
        return all(each.over or not (each.left or each.under_way) for each in self.sessions)

    def _steps(self) -> list[Callable[[], bool]]:
        steps: list[Callable[[], bool]] = [each.step for each in self.sessions if not each.over]
        steps += [self._push, self._receive, self._work, self._die, self._link, self._pass_time]
        steps += [self._go, self._leave]
        steps.append(self._come_or_go)
        self.random.shuffle(steps)
        return steps

    def _push(self) -> bool:
        if self.random.random() < 0.8:
            self.bundle.push()
            if self.bundle.state is State.UP:
                self.mends.in_a_row, self.history.may_give_up = 0, False
            unflushed = self.bundle.unflushed
            if not self.adopted and unflushed.bytes > max(
                self.bundle.survival.replay_bytes, LONGEST * BLOCK
            ):
                raise Broken(f"{unflushed.bytes} bytes are kept")
            if len(unflushed) > work.MOST_WRITES + MOST_PIECES:
                raise Broken(f"{len(unflushed)} writes are kept")
        return False

    def _receive(self) -> bool:
        return any(each.receive() for each in self.connections.values())

    def _work(self) -> bool:
        did = False
        for connection in self.connections.values():
            self._note_failed()
            did = connection.work() or did
            failed = self.server.failed
            if failed and failed.silent:
                self.server.told_failure()
        return did

    def _note_failed(self) -> None:
        """A FLUSH has failed: what it did not make stable may be lost until that is known."""
        if self.server.failed is not None:
            self.history.now += 1
            self.history.lose()

    def _die(self) -> bool:
        if not self.connections or self.random.random() > self.deadly:
            return False
        all_of_them = self.random.random() < 0.4
        restarts = all_of_them and self.doubt is not Doubt.ASSUME_DURABLE
        restarts = restarts and not self.sluggish and self.random.random() < 0.6
        chosen = list(self.connections)
        if not all_of_them:
            chosen = [self.random.choice(chosen)]
        self.random.shuffle(chosen)
        for number in chosen:
            self._lose(number)
        if restarts:
            self.restarts += 1
            self.server.restart()
            self.process.ended, self.process = self.known_ends, Process()
        return True

    def _go(self) -> bool:
        """The server goes in good order."""
        if not self.connections or self.random.random() > self.deadly / 2:
            return False
        for connection in self.connections.values():
            connection.goes = True
        return True

    def _leave(self) -> bool:
        """Leave connections, as who has their sockets does."""
        left = [
            line for line in self.bundle.to_be_left if line.is_done or self.bundle.is_late(line)
        ]
        if not left or self.random.random() < 0.5:
            return False
        self.departures += 1
        self._lose(left[0].number)
        if not self.connections and self.doubt is not Doubt.ASSUME_DURABLE and not self.sluggish:
            self.server.restart()
            self.process.ended, self.process = self.known_ends, Process()
        return True

    def _note_deaths(self, line: Line) -> None:
        """Note what may have taken the server down."""
        if line.goes:
            return
        under_way = self.bundle.work.pieces.under_way
        commands = {done: each for s in self.sessions for done, each in s._command_of.items()}
        for piece in [piece for piece in under_way if piece.line is line]:
            alone = len(under_way) == 1
            if piece.task is None and self.mends.note_death(
                piece.ask, made=self._made[line], now=self.history.now, alone=alone
            ):
                self.history.may_give_up = True
            if piece.task is not None and piece.task.done in commands:
                died_over = [commands[piece.task.done]]
            elif piece.task is None and piece.ask.command is Cmd.FLUSH:
                open_ = [each for s in self.sessions for each in s.under_way.values()]
                died_over = [each for each in open_ if each.ask.command in _FLUSHES]
            else:
                continue
            for command in died_over:
                command.note_death(
                    piece.ask.offset,
                    made=self._made[line],
                    now=self.history.now,
                    alone=alone,
                )

    def _lose(self, number: int) -> None:
        connection = self.connections.pop(number)
        self._note_deaths(connection.line)
        connection.die(self._late_until())
        self.deaths += 1
        self.history.now += 1
        for session in self.sessions:
            for command in session.under_way.values():
                command.unknown = True
        if not any(each.served for each in self.connections.values()) and self.doubt in TELLING:
            self.history.lose()
        self.bundle.lost(connection.line, "it died")

    def _link(self) -> bool:
        missing = [number for number in range(self.count) if number not in self.connections]
        if not missing or self.random.random() > 0.3 or self.given_up:
            return False
        if any(each.goes for each in self.connections.values()):
            return False
        if self.gives_up and self.deaths and self.random.random() < 0.2:
            self.given_up = True
            if self.doubt is Doubt.REPLAY:
                self.history.lose()  # what there is nobody left to write again to
            self.bundle.give_up("it does not come back")
            return True
        number = self.random.choice(missing)
        line = self._new_line(number)
        self.connections[number] = Connection(self.random, self.server, line, self.framing)
        self.history.now += 1
        self._made[line] = self.history.now
        self.bundle.linked(line)
        return True

    def _pass_time(self) -> bool:
        """A little, or as much as it takes for something to be due."""
        if self.random.random() < 0.9:
            return False
        due = self.bundle.due
        if self.random.random() < 0.3 and due < self.now + 1000:
            self.now = max(self.now, due)
        else:
            self.now += self.random.choice((0.01, 1, 10))
        before = len(self.server.late)
        self.server.do_late(self.now, self.random.choice((0, 0.1, 0.3)))
        self.late_done += before - len(self.server.late)
        before = len(self.fences.standing)
        self.fences.look(self.now)
        if self.bundle.due <= self.now or self.bundle.hopes:
            self.bundle.tick()
        return due < self.now + 1000 or before > 0

    def _come_or_go(self) -> bool:
        if self.random.random() > 0.005:
            return False
        if self.random.random() < 0.5:
            self.random.choice(self.sessions).leave()
            self.sessions = [each for each in self.sessions if not each.over]
        if self.came < MOST_SESSIONS and (not self.sessions or self.random.random() < 0.5):
            self.came += 1
            self.sessions.append(Session(self))
        return True

    # --- The end

    def _check_at_the_end(self) -> None:
        bundle = self.bundle
        self.deadly = 0
        for session in self.sessions:
            session.left = 0
        self._finish()
        if not self.given_up:
            # What is left is what was written, and a FLUSH makes it stable.
            self.now += 1000
            self.server.do_late(self.now, 1)
            session = Session(self)
            session.left = 0
            self.sessions.append(session)
            session.ask(Ask(Cmd.READ, 0, SIZE))
            self._finish()
            for each in self.sessions:
                each.ask(Ask(Cmd.FLUSH, 0, 0))
            self._finish()
        pieces = bundle.work.pieces
        if pieces or pieces.alone or pieces.bytes:
            raise Broken(f"left: {pieces}")

    def _finish(self) -> None:
        for _ in range(MOST_ROUNDS):
            if self.bundle.idle and not any(each.under_way for each in self.sessions):
                return
            for step in self._steps():
                if step != self._come_or_go:
                    step()
            due = min([self.bundle.due, *(f.late.until for f in self.fences.standing)])
            if due < self.now + 1000:
                self.now = max(self.now, due)
                self.server.do_late(self.now, 0)
                self.fences.look(self.now)
                self.bundle.tick()
        raise Broken(f"stuck at the end in {self.bundle.state}")


def run(seed: int, doubt: Doubt | None = None) -> World:
    """Run one schedule."""
    world = World(seed, doubt)
    world.run()
    return world

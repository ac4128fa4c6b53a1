"""Who asks what when: the core of a bundle. See the package's docstring for what must hold.

The life of an ask: it waits in its session's *port*; ports take turns, so that a session with much to do
holds up nobody. When it is its turn it is cut into *pieces*, one for each stripe. A piece waits while it must
not overtake another (`_conflict`), then it goes to its line. When the last piece is answered, so is the ask.

The bundle is in one of these states:

- UP: pieces go out;
- SETTLING: lines have come or gone; no piece goes out, and those under way are waited for;
- MENDING: nothing is under way but what a recovery asks (`recovery`), which goes on step by step;
- DOWN: there is no line;
- OVER: there will be none any more; every ask fails.

Pieces that a line left unanswered when it died are *orphans*. They are what recovery begins with, in the
order in which they were sent, and what it has not settled goes out again first when the bundle is up.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from gateway.protocol.commands import WRITE_CLASS
from gateway.protocol.export import Export
from gateway.relay.bundle import stripes
from gateway.relay.bundle.ledger import Ledger
from gateway.relay.bundle.line import Line
from gateway.relay.bundle.unflushed import Keep, Unflushed
from gateway.relay.scan.asks import Ask, Done, Outcome
from gateway.relay.scan.traffic import Traffic
from gateway.upstream.mode import DEFAULTS, Doubt, Survival
from gateway.wire import limits
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.constants import TransmissionFlag as Flag

LINE_COMMANDS = 128
"""Asks that are under way on one line: as many as one session may have. What is beyond that waits here, where
it can be shared out fairly."""

LINE_BYTES = 4 * limits.MIB
"""Data of asks under way on one line, unless it is one alone: what somebody else's small request has to wait
for. More would serve a fast link to far away; with 16 a small client had a quarter of the requests that it
has with 4, and the large one beside it had less as well."""

TURN_BYTES = 256 * limits.KIB
"""What a port may begin when it is its turn: less would cost more turns than it is worth."""

COMMAND_BYTES = 4 * limits.KIB
"""What a command without data counts as in that."""


RESTARTED = "the connection to the server was lost, and what it had not flushed may be gone"

UNKNOWN = (
    "the connection to the server was lost, and not made again; what it had not flushed may be gone"
)

MOST_LOSSES = 10
"""How often a command is asked that each time takes the server down, or out of step. More than a server that is
killed again and again will have under way by chance; and then it fails, so that the others may go on."""

SUSPECT_LOSSES = 3
"""From so many on it goes alone: of all that were under way each time, only the one that takes the server down
is to fail, and not those that were there by chance."""

MOST_WRITES = 1024
"""Writes that are kept to be looked for, or written again, between two FLUSHes: to look through more would take
longer than the FLUSH."""

_TELLS = (Cmd.READ, Cmd.BLOCK_STATUS)
"""Commands whose answer would show what is there in place of what is lost."""


KEPT = {
    Doubt.STICKY: Keep.RANGES,
    Doubt.ASSUME_DURABLE: Keep.RANGES,
    Doubt.VERIFY: Keep.DIGESTS,
    Doubt.REPLAY: Keep.DATA,
}
"""What has to be kept of what is not flushed."""


class State(Enum):
    """See the module's docstring."""

    UP = "up"
    SETTLING = "settling"
    MENDING = "mending"
    DOWN = "down"
    OVER = "over"


@dataclass(slots=True, eq=False)
class Port:
    """A session's way into a bundle."""

    traffic: Traffic | None
    """None: nobody's; nobody has to be told of a loss through it."""
    wake: Callable[[], None]
    """Called when `answered` has become more than nothing; whoever is woken calls `Bundle.answers`."""
    waiting: deque[Task] = field(default_factory=deque)
    answered: list[tuple[Done, Outcome]] = field(default_factory=list)
    credit: int = 0
    """Bytes that it may begin in this turn."""


@dataclass(slots=True, eq=False)
class Task:
    """An ask of a session."""

    ask: Ask
    done: Done
    port: Port
    missing: int = 0
    outcome: Outcome = field(default_factory=Outcome)
    written: bool = False
    """Parts of it have been acknowledged to us, and not yet to whoever asked."""


@dataclass(slots=True, eq=False)
class Piece:
    """What goes to one line: a part of a task, or what a recovery asks."""

    ask: Ask
    done: Callable[[Piece, Outcome], None]
    task: Task | None = None
    slot: int | None = None
    """Which line; None: that of its stripe."""
    alone: bool = False
    """It overlaps nothing that is under way, and nothing begins that overlaps it."""
    losses: int = 0
    """How many lines have died while it was under way."""
    unknown: int = 0
    """How often it was under way on a line that died."""
    lost_at: float = -math.inf
    """When that was."""
    not_before: float = -math.inf
    line: Line | None = None

    @property
    def writes(self) -> bool:
        """It changes the disk."""
        return self.ask.command in WRITE_CLASS

    @property
    def suspect(self) -> bool:
        """It may be what takes the server down."""
        return self.losses >= SUSPECT_LOSSES


_FlushAsked = tuple[Port | None, Callable[[Outcome], None]]
"""Whose FLUSH it is, and whom to tell of its outcome."""

Steps = Generator[list[tuple[Ask, int | None]], list[Outcome], None]
"""A recovery: it yields asks that go out together, each with the slot of its line (None: that of its stripe),
and is sent their outcomes."""


@dataclass(slots=True)
class _Mending:
    steps: Steps
    outcomes: list[Outcome | None] = field(default_factory=list)
    missing: int = 0


class Bundle:
    """The lines of one export. `export` is what was promised of it.

    `clock` gives seconds. `say` is told what the operator should know. `changed` is called when a line has gone
    or `due` has changed.
    """

    def __init__(
        self,
        export: Export,
        count: int,
        ledger: Ledger,
        *,
        clock: Callable[[], float],
        stripe: int = stripes.LEAST_STRIPE_BYTES,
        strong: bool = False,
        survival: Survival = DEFAULTS,
        say: Callable[[str, Mapping[str, object]], None] = lambda _what, _details: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.export = export
        self.count = count
        """How many lines it wants."""
        self.survival = survival
        self.ledger = ledger
        self.unflushed = Unflushed(KEPT[survival.unflushed])
        self.state = State.DOWN
        self.lines: dict[int, Line] = {}
        """By slot. Those in use are `_in_use`; others wait for a standstill."""
        self.lost_at = -math.inf
        """When the last line of all was lost."""
        self.why = ""
        """Why there is no line, or will be none."""
        self._clock = clock
        self._say = say
        self._changed = changed
        self._stripe = stripe
        self._strong = strong
        self._flags = export.flags
        self._flushes = bool(self._flags & Flag.SEND_FLUSH and not self._flags & Flag.READ_ONLY)
        self._orders = survival.unflushed in (Doubt.REPLAY, Doubt.VERIFY)
        self._in_use: list[Line] = []
        self._total_loss = True  # since lines were in order last, there was a time without any
        self._under_way: dict[Piece, None] = {}
        self._bytes = 0
        self._held: list[Piece] = []
        self._alone = 0  # pieces of that kind, held or under way
        self._orphans: list[Piece] = []
        self._suspicious = False  # there may be suspects
        self._suspect_waits = False  # one could go, if nothing were under way
        self._turns: deque[Port] = deque()
        self._flush_asked: list[_FlushAsked] = []
        self._flush_under_way: list[_FlushAsked] | None = None
        self._mending: _Mending | None = None
        self.spare: Line | None = None
        """A line for READs alone, while another is stalled."""
        self._stall_seconds = survival.stall_seconds or math.inf
        shared = Flag.READ_ONLY | (Flag.CAN_MULTI_CONN if self._flushes else 0)
        self._one_view = bool(self._flags & shared)  # what is flushed is seen over any connection
        self._not_before = -math.inf  # when the next recovery may begin
        self._woken: dict[Port, None] = {}
        self._pumping = False

    # --- What sessions call

    def ask(self, port: Port, ask: Ask, done: Done) -> None:
        """Ask; `done` is called by `answers`, once."""
        if not port.waiting:
            self._turns.append(port)
        port.waiting.append(Task(ask, done, port))

    def begin_without(self, why: str, unflushed: Unflushed, since: float) -> None:
        """Take over from a link that has died, with what was written over it and not flushed; it was made at
        `since`.
        """
        assert self.state is State.DOWN
        self.unflushed = unflushed
        self.why = why
        self._lose_all(since)

    def adopt(self, port: Port, ask: Ask, done: Done) -> None:
        """Take over what was asked over a link that is gone, before there is a line."""
        assert self.state is State.DOWN
        task = Task(ask, done, port, missing=1)
        if ask.command is Cmd.FLUSH:
            self._flush(lambda outcome: self._complete(task, outcome), task.port)
        else:
            self._orphan(Piece(ask, self._answered, task))

    def answers(self, port: Port) -> None:
        """Hand out what has been answered to a port."""
        while port.answered:
            answered, port.answered = port.answered, []
            for done, outcome in answered:
                done(outcome)

    def leave(self, port: Port) -> None:
        """A session has ended: what it has not begun is forgotten, and nobody is told of the rest."""
        port.waiting.clear()
        port.answered.clear()
        port.wake = _nobody
        port.traffic = None
        if port in self._turns:
            self._turns.remove(port)
        self._woken.pop(port, None)

    @property
    def settled(self) -> bool:
        """Nothing is left that a line has not answered, or that waits for something of that kind."""
        return not (self._orphans or self._held)

    @property
    def idle(self) -> bool:
        """Nothing is asked that is not answered."""
        return not (
            self._turns or self._under_way or self._held or self._orphans or self._flush_asked
        )

    # --- A line that says nothing

    def heard(self, line: Line) -> None:
        """Bytes have come from a line."""
        line.heard_at = self._clock()
        if line.stalled:
            line.stalled = False
            self._changed()

    @property
    def wants_spare(self) -> bool:
        """A line has not said anything for `stall_seconds`, and READs might be answered by another."""
        stalled = any(line.stalled for line in self._in_use)
        return stalled and self._one_view and self.state is State.UP

    def spare_linked(self, line: Line) -> None:
        """A link has been made for READs that a stalled line does not answer: it is asked them as well. Whoever
        answers first is believed.
        """
        self.spare = line
        for piece in list(self._under_way):
            if piece.line is not None and piece.line.stalled and self._may_be_read_elsewhere(piece):
                self._ask_line(line, piece)

    def spare_lost(self) -> None:
        """It has gone again, or is not wanted any more: what only it was asked goes out again."""
        spare, self.spare = self.spare, None
        if spare is not None:
            spare.traffic.asks.drop()
            mine = [piece for piece in self._under_way if piece.line is spare]
            for piece in mine:
                self._no_more_under_way(piece)
            self._held[:0] = mine

    def _may_be_read_elsewhere(self, piece: Piece) -> bool:
        """Say whether another connection surely shows what this READ has to show: where all that was written is
        flushed.
        """
        ask = piece.ask
        if piece.task is None or ask.command is not Cmd.READ or not self._one_view:
            return False
        if self.unflushed.touches(ask.offset, ask.end):
            return False
        return not any(
            each.writes and each.ask.offset < ask.end and ask.offset < each.ask.end
            for each in (*self._under_way, *self._held)
        )

    def _look_for_stalls(self, now: float) -> None:
        for line in self._in_use:
            if line.under_way and now >= line.heard_at + self._stall_seconds and not line.stalled:
                line.stalled = True
                waited = round(now - line.heard_at, 1)
                self.say("the server answers nothing", seconds=waited, commands=line.under_way)
                if not self._one_view:
                    self.say(
                        "reads wait as well: without CAN_MULTI_CONN no other connection is good"
                    )
                self._changed()

    # --- What the driver calls

    def push(self) -> None:
        """Send what may be sent: it lies in the lines' `to_send` then. Never calls back but `Port.wake`."""
        if not self._pumping:
            self._pumping = True
            try:
                self._push()
            finally:
                self._pumping = False
        self._wake()

    def _push(self) -> None:
        self._go_on_mending()
        if self.state is State.SETTLING and not self._under_way and not self._too_early:
            self._mend()
        if self.state is State.OVER:
            self._fail_all()
        if self.state is State.UP:
            self._release_held()
            self._take_turns()
            self._send_flush()

    def _wake(self) -> None:
        while self._woken:
            port = next(iter(self._woken))
            del self._woken[port]
            port.wake()

    def linked(self, line: Line) -> None:
        """A link has been made for a slot that had none."""
        self.lines[line.number] = line
        line.heard_at = line.made_at = self._clock()
        if self.state is State.DOWN and not self._too_early:
            self._mend()
        elif self.state in (State.DOWN, State.UP):
            self.state = State.SETTLING
            self._changed()

    def lost(self, line: Line, why: str) -> None:
        """A line's link has died. Nothing comes from it any more."""
        if self.lines.get(line.number) is not line:
            return
        del self.lines[line.number]
        line.traffic.asks.drop()
        mine = [piece for piece in self._under_way if piece.line is line]
        for piece in mine:
            self._no_more_under_way(piece)
            if piece.task is None:
                if piece.writes:  # what was written again may come on top of what is newer
                    self._not_before = self._clock() + self.survival.late_write_seconds
                continue
            piece.losses += 1
            self._suspicious = self._suspicious or piece.suspect
            if piece.losses < MOST_LOSSES:
                self._orphan(piece)
            else:
                text = f"{piece.losses} connections in a row were lost over this, the last: {why}"
                piece.done(piece, Outcome(Errno.EIO, text))
        if self._flush_under_way is not None and any(p.ask.command is Cmd.FLUSH for p in mine):
            self._flush_asked[:0] = self._flush_under_way
            self._flush_under_way = None
        self.why = why
        in_use = line in self._in_use
        if self.state is State.MENDING and in_use:
            self._break_off()
        if self.state is State.OVER:
            pass
        elif not self.lines:
            self._lose_all(line.made_at)
            self.state = State.DOWN
        elif in_use:
            if not any(each in self.lines.values() for each in self._in_use):
                self._lose_all(
                    line.made_at
                )  # those that are left were made later: they prove nothing
            self.state = State.SETTLING
        self._changed()

    def _lose_all(self, since: float) -> None:
        self._total_loss = True
        self.lost_at = self._clock()
        if self.survival.unflushed is Doubt.STICKY and self.unflushed:
            self.taint(RESTARTED, since=since)

    def _orphan(self, piece: Piece) -> None:
        piece.unknown += piece.writes
        piece.lost_at = self._clock()
        self._orphans.append(piece)

    def end(self) -> None:
        """Nobody asks any more. If what was written is in doubt, others have to be told."""
        trusted = self.survival.unflushed is Doubt.ASSUME_DURABLE
        if self._total_loss and self.unflushed and not trusted:
            self.ledger.lose(UNKNOWN, self.unflushed.ranges)
            self.unflushed.forget()

    def give_up(self, why: str) -> None:
        """There will be no line any more: everything fails."""
        self.end()
        self.why = why
        self._break_off()
        self.state = State.OVER

    def tick(self) -> None:
        """Time has passed: `due` has come."""
        now = self._clock()
        for piece in self._held:
            if piece.not_before <= now:
                piece.not_before = -math.inf
        self._look_for_stalls(now)

    @property
    def due(self) -> float:
        """When `tick` and `push` are to be called next, if nothing else happens before."""
        times = [piece.not_before for piece in self._held if piece.not_before > -math.inf]
        if self.state is State.SETTLING and self._too_early:
            times.append(self._not_before)
        times += [
            line.heard_at + self._stall_seconds
            for line in self._in_use
            if line.under_way and not line.stalled
        ]
        return min(times, default=math.inf)

    @property
    def _too_early(self) -> bool:
        return self._clock() < self._not_before

    # --- Turns

    def _take_turns(self) -> None:
        """Begin what is asked, port by port, while there is room."""
        while self._turns and self.state is State.UP and self._room():
            port = self._turns[0]
            if port.credit <= 0:
                port.credit += TURN_BYTES
            while port.waiting and port.credit > 0 and self._room():
                if self._must_flush_first(port.waiting[0].ask):
                    return
                task = port.waiting.popleft()
                length = task.ask.length if task.ask.command in (Cmd.READ, Cmd.WRITE) else 0
                port.credit -= max(length, COMMAND_BYTES)
                self._begin(task)
            if not port.waiting:
                port.credit = 0
                self._turns.popleft()
            elif port.credit <= 0:
                self._turns.rotate(-1)

    def _room(self) -> bool:
        lines = len(self._in_use)
        count = len(self._under_way) + len(self._held)
        if count >= LINE_COMMANDS * lines:
            # What is put off takes nobody's place: it may be much, and its time is long.
            count -= sum(-math.inf < piece.not_before < math.inf for piece in self._held)
        return count < LINE_COMMANDS * lines and self._bytes < LINE_BYTES * lines

    def _must_flush_first(self, ask: Ask) -> bool:
        """Say whether a write has to wait because as much is kept as may be; a FLUSH is on its way then."""
        unflushed = self.unflushed
        if unflushed.keep is Keep.RANGES or ask.command not in WRITE_CLASS:
            return False
        coming = [piece for piece in (*self._under_way, *self._held) if piece.writes]
        writes = len(unflushed) + len(coming)
        kept, most = 0, self.survival.replay_bytes
        if unflushed.keep is Keep.DATA:
            kept = unflushed.bytes + sum(len(piece.ask.data) for piece in coming)
        much = kept + len(ask.data) > most // 2 or writes >= MOST_WRITES // 2
        if much and unflushed and self._flush_under_way is None:
            self._flush(_nobody_waits)
        return bool(kept and kept + len(ask.data) > most) or writes >= MOST_WRITES

    def _begin(self, task: Task) -> None:
        ask = task.ask
        match ask.command:
            case Cmd.FLUSH:
                self._flush(lambda outcome: self._complete(task, outcome), task.port)
            case Cmd.BLOCK_STATUS if self.count > 1 and self._flushes and self.unflushed:
                # What one line has written, another need not know before it is flushed.
                self._flush(lambda outcome: self._ask_status(task, outcome))
            case Cmd.BLOCK_STATUS:
                self._ask_status(task, Outcome())
            case _:
                self._cut(task)

    def _ask_status(self, task: Task, flushed: Outcome) -> None:
        if (
            flushed.error and self.state is not State.MENDING
        ):  # that puts the lines in order as well
            self._complete(task, flushed)
            return
        task.missing = 1
        self._put(Piece(task.ask, self._answered, task, slot=0))

    def _cut(self, task: Task) -> None:
        ask = task.ask
        whole = self.count == 1 or stripes.stripes(ask.offset, ask.end, self._stripe) == 1
        if whole:
            task.missing = 1
            self._put(Piece(ask, self._answered, task))
            return
        many = stripes.stripes(ask.offset, ask.end, self._stripe) > stripes.MOST_STRIPES
        if many and ask.command not in (Cmd.READ, Cmd.WRITE):
            task.missing = 1
            if ask.command in WRITE_CLASS:
                self._put(Piece(ask, self._answered_whole, task, slot=0, alone=True))
            else:
                self._put(Piece(ask, self._answered, task, slot=0))
            return
        parts = list(stripes.cut(ask.offset, ask.end, self._stripe))
        task.missing = len(parts)
        if ask.command is Cmd.READ:
            task.outcome.data = bytearray(ask.length)
        data = memoryview(ask.data)
        for offset, length in parts:
            at = offset - ask.offset
            part = Ask(ask.command, offset, length, ask.flags, data[at : at + length])
            self._put(Piece(part, self._answered, task))

    # --- Pieces

    def _put(self, piece: Piece) -> None:
        """Send a piece, or hold it until it may be sent."""
        self._alone += piece.alone
        if self.state is State.UP and self._may_go(piece, self._held) and not self._barred(piece):
            self._send(piece)
        else:
            self._held.append(piece)

    def _barred(self, piece: Piece) -> bool:
        """Say whether a piece that may go has to wait nevertheless: a suspect goes alone."""
        if not self._suspicious:
            return False
        if self._suspect_waits or any(each.suspect for each in self._under_way):
            return True
        self._suspect_waits = piece.suspect and bool(self._under_way)
        return self._suspect_waits

    def _may_go(self, piece: Piece, before: list[Piece]) -> bool:
        if piece.not_before > -math.inf:
            return False
        if not self._alone and not (self._orders and piece.writes):
            return True
        return not any(self._conflict(piece, each) for each in before) and not any(
            self._conflict(piece, each) for each in self._under_way
        )

    def _conflict(self, one: Piece, other: Piece) -> bool:
        if one.ask.offset >= other.ask.end or other.ask.offset >= one.ask.end:
            return False
        if not (one.writes or other.writes):
            return False
        return one.alone or other.alone or (self._orders and one.writes and other.writes)

    def _release_held(self) -> None:
        """Send what may go by now, in the order in which it came."""
        held, self._held = self._held, []
        self._suspect_waits = False
        for piece in held:
            if self._may_go(piece, self._held) and not self._barred(piece):
                self._send(piece)
            else:
                self._held.append(piece)
        if self._suspicious:
            self._suspicious = any(piece.suspect for piece in (*self._held, *self._under_way))

    def _send(self, piece: Piece) -> None:
        ask, task = piece.ask, piece.task
        if task is not None and ask.command in _TELLS and self._is_lost(task, ask):
            self._alone -= piece.alone
            lost = Outcome(Errno.EIO, "the server may have lost what was written here")
            self._part_done(piece, lost)
            return
        line = self._line_for(piece)
        piece.line = line
        self._under_way[piece] = None
        self._bytes += _bytes_of(ask)
        self._ask_line(line, piece)

    def _ask_line(self, line: Line, piece: Piece) -> None:
        if not line.under_way:
            line.heard_at = self._clock()
            if self._stall_seconds < math.inf:
                self._changed()
        line.ask(piece.ask, lambda outcome: self._reply(piece, line, outcome))

    def _is_lost(self, task: Task, ask: Ask) -> bool:
        traffic = task.port.traffic
        return traffic is not None and bool(traffic.lost) and traffic.is_lost(ask.offset, ask.end)

    def _line_for(self, piece: Piece) -> Line:
        line = self._usual_line_for(piece)
        if line.stalled and self.spare is not None and self._may_be_read_elsewhere(piece):
            return self.spare
        return line

    def _usual_line_for(self, piece: Piece) -> Line:
        lines = self._in_use
        if len(lines) == 1:
            return lines[0]
        if piece.slot is not None:
            return lines[piece.slot % len(lines)]
        if self._strong:
            return min(lines, key=lambda line: line.under_way)
        return lines[stripes.slot(piece.ask.offset, self._stripe, len(lines))]

    def _no_more_under_way(self, piece: Piece) -> None:
        del self._under_way[piece]
        self._bytes -= _bytes_of(piece.ask)
        piece.line = None

    def _reply(self, piece: Piece, line: Line, outcome: Outcome) -> None:
        if piece not in self._under_way or (piece.line is not line and outcome.error):
            return  # another line has answered it, or will
        self._no_more_under_way(piece)
        piece.done(piece, outcome)

    def _answered(self, piece: Piece, outcome: Outcome) -> None:
        """A piece of a task has its answer."""
        self._alone -= piece.alone
        if piece.writes and not outcome.error:
            self._note_written(piece.ask)
        self._part_done(piece, outcome)

    def _answered_whole(self, piece: Piece, outcome: Outcome) -> None:
        """The same, where it went over one line for the stripes of all: they must know of it before the task is
        done, and before whatever waits for it.
        """
        if outcome.error or not self._flushes:
            self._answered(piece, outcome)
            return
        self._note_written(piece.ask)
        # It keeps others away until then, as one that waits.
        piece.not_before = math.inf
        self._held.insert(0, piece)

        def flushed(flush: Outcome) -> None:
            self._held.remove(piece)
            self._alone -= 1
            self._part_done(piece, flush if flush.error else outcome)

        self._flush(flushed)

    def _note_written(self, ask: Ask) -> None:
        self.ledger.written(ask.offset, ask.end)
        if self._flushes:
            if ask.flags & CmdFlag.FUA:
                self.unflushed.replaced(ask)
            else:
                self.unflushed.add(ask)

    def _part_done(self, piece: Piece, outcome: Outcome) -> None:
        task = piece.task
        assert task is not None
        task.missing -= 1
        task.written = task.written or (piece.writes and not outcome.error)
        if task.outcome.error:
            pass  # the first is the task's
        elif piece.ask is task.ask:
            task.outcome = outcome
        elif outcome.error:
            task.outcome.error, task.outcome.text = outcome.error, outcome.text
            task.outcome.offset = outcome.offset
        elif piece.ask.command is Cmd.READ:
            at = piece.ask.offset - task.ask.offset
            task.outcome.data[at : at + piece.ask.length] = outcome.data
        if not task.missing:
            self._complete(task, task.outcome)

    def _complete(self, task: Task, outcome: Outcome) -> None:
        port = task.port
        if port.wake is _nobody:
            return
        port.answered.append((task.done, outcome))
        self._woken[port] = None

    # --- FLUSH

    def _flush(self, done: Callable[[Outcome], None], port: Port | None = None) -> None:
        """Flush all that has been answered until now: with the next FLUSH that is sent. One that has been sent
        is not good enough. `port`: whose FLUSH it is; None: ours.
        """
        self._flush_asked.append((port, done))

    def _send_flush(self) -> None:
        if not self._flush_asked or self._flush_under_way is not None:
            return
        asked, self._flush_asked = self._flush_asked, []
        mark = self.unflushed.mark()

        def flushed(_piece: Piece, outcome: Outcome) -> None:
            self._flush_under_way = None
            if outcome.error:
                self._flush_failed(outcome)
            else:
                self.unflushed.flushed(mark)
            for _port, done in asked:
                done(outcome)

        self._flush_under_way = asked
        self._send(Piece(Ask(Cmd.FLUSH, 0, 0), flushed, slot=0))

    def _flush_failed(self, outcome: Outcome) -> None:
        """The server has lost something, and does not say so twice: all sessions have to hear of it."""
        self.taint(f"a FLUSH of the server has failed: {outcome.text or outcome.error}")

    def _fail_unfinished(self, why: str) -> None:
        """Of what is lost, a part belongs to commands that are not done yet. Whoever is told of the loss now
        hears later that they are done, and would take them to be durable after his next FLUSH. So they fail.

        The same goes for what is under way when a FLUSH fails: the server may have done it before.
        """
        for piece in (*self._under_way, *self._orphans, *self._held):
            task, ask = piece.task, piece.ask
            if task is None or not piece.writes or ask.flags & CmdFlag.FUA:
                continue
            partly = task.written and self.unflushed.touches(task.ask.offset, task.ask.end)
            if partly or piece.line is not None:
                task.outcome.error, task.outcome.text = Errno.EIO, why

    # --- Mending

    def _mend(self) -> None:
        """Nothing is under way any more: put the lines in order."""
        from gateway.relay.bundle.recovery import recovery

        self.state = State.MENDING
        before = self._in_use
        # What a line knows that was there all the time, or else any.
        staying = [line for line in before if line in self.lines.values()]
        self._in_use = staying or sorted(self.lines.values(), key=lambda line: line.number)[:1]
        self._mending = _Mending(recovery(self, restarted=self._total_loss))
        self._go_on_mending(begin=True)

    def _go_on_mending(self, *, begin: bool = False) -> None:
        mending = self._mending
        while mending is not None and not mending.missing:
            outcomes = [outcome for outcome in mending.outcomes if outcome is not None]
            try:
                asks = next(mending.steps) if begin else mending.steps.send(outcomes)
            except StopIteration:
                self._mended()
                return
            begin = False
            mending.outcomes = [None] * len(asks)
            mending.missing = len(asks)
            for number, (ask, slot) in enumerate(asks):
                self._send(Piece(ask, _collected(mending, number), slot=slot))

    def _mended(self) -> None:
        self._mending = None
        self._total_loss = False
        self.state = State.SETTLING if self.new_lines else State.UP
        orphans, self._orphans = self._orphans, []
        for piece in orphans:
            if piece.unknown and not piece.alone:  # what overlaps it waits
                piece.alone = True
                self._alone += 1
        self._held[:0] = orphans
        self._changed()

    def _break_off(self) -> None:
        """A recovery cannot go on as it is: it begins anew, with the lines that there are then."""
        if self._mending is not None:
            self._mending.steps.close()
            self._mending = None
            for piece in [piece for piece in self._under_way if piece.task is None]:
                piece.done = _ignored

    # --- What a recovery may do

    @property
    def new_lines(self) -> bool:
        """There are lines that are not in use."""
        return len(self._in_use) < len(self.lines)

    def use_new_lines(self) -> None:
        """Use all lines that there are."""
        self._in_use = sorted(self.lines.values(), key=lambda line: line.number)

    @property
    def orphans(self) -> list[Piece]:
        """Pieces that died with their lines unanswered, in the order in which they were sent."""
        return self._orphans

    def settle(self, piece: Piece, outcome: Outcome) -> None:
        """An orphan has its answer."""
        self._orphans.remove(piece)
        self._answered(piece, outcome)

    def fail_flushes_of_debtors(self) -> None:
        """A FLUSH of whoever has to be told of a loss, by this bundle or another, may not succeed over a line
        that was made after it.
        """
        ports = {port for port, _done in self._flush_asked} | {*self._turns}
        for port in ports:
            if port is not None and port.traffic is not None and port.traffic.unflushed:
                self.fail_flushes(port.traffic.unflushed, {port})

    def fail_flushes(self, why: str, of: Collection[Port | None] | None = None) -> None:
        """Nobody's FLUSH that was asked before a loss may succeed after it (or only nobody's of these)."""
        lost = Outcome(Errno.EIO, why)
        asked, self._flush_asked = self._flush_asked, []
        for port, done in asked:
            if of is None or port in of:
                done(lost)
            else:
                self._flush_asked.append((port, done))
        for port in self._turns if of is None else [each for each in self._turns if each in of]:
            flushes = [task for task in port.waiting if task.ask.command is Cmd.FLUSH]
            for task in flushes:
                port.waiting.remove(task)
                self._complete(task, lost)
        for port in [port for port in self._turns if not port.waiting]:
            self._turns.remove(port)

    def taint(self, why: str, *, since: float | None = None) -> None:
        """What is not flushed is taken to be lost, and everybody has to be told. `since`: a link was found dead
        that was made then.
        """
        self._fail_unfinished(why)
        ranges = self.unflushed.ranges
        self.say(
            "writes may be lost: each session's next FLUSH fails, and until then READs of them",
            why=why,
            sessions=len(self.ledger.traffics),
            bytes=sum(end - start for start, end in ranges),
        )
        if since is None:
            self.ledger.lose(why, ranges)
        else:
            self.ledger.lose(why, ranges, at=self._clock(), since=since)
        self.unflushed.forget()
        self.fail_flushes(why)

    def now(self) -> float:
        """Give the time."""
        return self._clock()

    def say(self, what: str, **details: object) -> None:
        """Tell the operator."""
        self._say(what, details)

    # --- The end

    def _fail_all(self) -> None:
        gone = Outcome(Errno.EIO, self.why)
        asked, self._flush_asked = self._flush_asked, []
        for _port, done in asked:
            done(gone)
        orphans, self._orphans = self._orphans, []
        held, self._held = self._held, []
        for piece in (*orphans, *held):
            if piece.not_before == math.inf:
                self._held.append(piece)  # a FLUSH that is under way answers it
                continue
            self._alone -= piece.alone
            self._part_done(piece, gone)
        turns, self._turns = self._turns, deque()
        for port in turns:
            tasks, port.waiting = port.waiting, deque()
            for task in tasks:
                self._complete(task, gone)


def _bytes_of(ask: Ask) -> int:
    return ask.length if ask.command in (Cmd.READ, Cmd.WRITE) else 0


def _collected(mending: _Mending, number: int) -> Callable[[Piece, Outcome], None]:
    def done(_piece: Piece, outcome: Outcome) -> None:
        mending.outcomes[number] = outcome
        mending.missing -= 1

    return done


def _ignored(_piece: Piece, _outcome: Outcome) -> None:
    pass


def _nobody() -> None:
    pass


def _nobody_waits(_outcome: Outcome) -> None:
    pass

"""The core of a bundle: lines come and go, and what is asked goes on. See the package's docstring for what must
hold.

A bundle is always in one of the states of `State`. It goes down when it has no line, or settles when there are
others than before; at the standstill that follows it is mended and is up again (`standstill`). What sessions
ask waits meanwhile; how it goes out is in `work`.

Pieces that a line left unanswered when it died are *orphans*. They are what recovery begins with, in the
order in which they were sent, and what it has not settled goes out again first when the bundle is up.

A line whose server goes in good order (`gateway.scan.going`) is there until it is left: the bundle
settles at once, so that nothing is sent any more, and mends when the line is gone. A server that is up and
answers nothing but ESHUTDOWN is as good as down: such a line does not end the time that a server may be away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from gateway.bundle.again import SHORT_SECONDS
from gateway.bundle.line import Line
from gateway.bundle.lines import Lines, State
from gateway.bundle.pieces import MOST_LOSSES, Piece
from gateway.bundle.ports import Port
from gateway.bundle.recovery import RESTARTED
from gateway.bundle.stalls import Stalls
from gateway.bundle.standstill import Standstill
from gateway.bundle.work import Work
from gateway.jobs.fences import Fences, Late
from gateway.losses.rule import Flushed, Trail
from gateway.losses.survival import Doubt, Survival
from gateway.peer import UNKNOWN, Peer
from gateway.protocol.asks import Ask, Done, Outcome
from gateway.protocol.export import Export
from gateway.scan.going import GOES_SECONDS
from gateway.wire.constants import Cmd, Errno
from gateway.wire.ranges import Range


class Bundle(Standstill):
    """The lines of one export that act as one. `export` is what was promised of it, `count` is how many lines
    are wanted, and `trail` is what is written over them. `fences` are the disk's.

    `clock` gives seconds. `say` is told what the operator should know, `wrote_again` how many bytes were
    written once more after a loss. `changed` is called when a line has gone, or `due` has changed.
    """

    def __init__(
        self,
        export: Export,
        count: int,
        trail: Trail,
        *,
        clock: Callable[[], float],
        stripe_bytes: int,
        strong: bool,
        survival: Survival,
        say: Callable[[str, Mapping[str, object]], None] = lambda _what, _details: None,
        changed: Callable[[], None] = lambda: None,
        fences: Fences | None = None,
        wrote_again: Callable[[int], None] = lambda _bytes: None,
    ) -> None:
        lines = Lines(count, stripe_bytes=stripe_bytes, strong=strong)
        self._stalls = Stalls(survival.stall_seconds, clock, changed)
        work = Work(
            export,
            lines,
            trail,
            survival,
            self._stalls,
            clock,
            say,
            Fences() if fences is None else fences,  # they are falsy while there are none
            changed,
            wrote_again,
        )
        super().__init__(lines, work, trail, survival, clock, changed)
        self.ask = work.ports.ask
        """What sessions call to ask."""
        trail.believed = survival.unflushed is Doubt.ASSUME_DURABLE
        trail.flush = self._prove
        trail.changed = self._proved
        trail.waits = self._waits_on_purpose
        trail.cut = _never  # lines are read, whatever clients take
        self.lost_at = -math.inf
        """When the last line of all was lost, in seconds."""
        self._adopted: Late | None = None  # the link that this bundle takes over from
        self._pushing = False
        self._has_served = False  # one of those that have gone since all had
        self.to_be_left: list[Line] = []
        """Lines whose server goes. Whoever has their sockets leaves them when they are done, or when one
        `is_late`."""

    # --- What sessions call

    def adopt(self, port: Port, ask: Ask, done: Done) -> None:
        """Take over what was asked over a link that is gone. There is no line yet."""
        assert self.state is State.DOWN
        self._adopted = self._adopted or self._late_from(UNKNOWN)
        self.work.adopt(port, ask, done, self._adopted)

    def answers(self, port: Port) -> None:
        """Hand out what has been answered to a port."""
        while port.answered:
            answered, port.answered = port.answered, []
            for done, outcome in answered:
                done(outcome)

    def leave(self, port: Port) -> None:
        """A session has ended: `Work.leave`."""
        self.work.leave(port)

    @property
    def idle(self) -> bool:
        """Everything that was asked is answered."""
        return not (self.work.ports or self.work.pieces or self.work.flushes)

    # --- What the driver calls

    def push(self) -> None:
        """Send what may be sent: put it into the lines' `to_send`. This calls nobody back but by
        `Port.wake`.
        """
        if not self._pushing:
            self._pushing = True
            due = self.work.pieces.due
            try:
                self._push()
            finally:
                self._pushing = False
            if self.work.pieces.due < due:  # something has been put off that may go then
                self._changed()
        self.work.ports.wake()

    def _push(self) -> None:
        self._has_news = False
        if self._mending is not None:
            self._go_on_mending()
        lines, still = self.lines, not self.work.pieces.under_way
        if lines.state is State.SETTLING and still and not self._waits:
            self._mend()
        if lines.state is State.OVER:
            self.work.fail_all(self.why)
        if lines.state is State.UP:
            self.work.go_on()

    def heard(self, line: Line) -> None:
        """Bytes have come from a line."""
        self._stalls.heard(line)

    def tick(self) -> None:
        """Time has passed: `due` has come."""
        now = self._clock()
        self.work.pieces.time_has_come(now)
        self.work.room.time_has_come(now)
        stalled = self._stalls.found(self.lines.in_use, now)
        for line, seconds in stalled:
            waited, commands = round(seconds, 1), line.under_way
            self.work.say("the server answers nothing", seconds=waited, commands=commands)
            if not self.work.one_view:
                self.work.say(
                    "reads wait as well: without CAN_MULTI_CONN no other connection is good"
                )
        if stalled:
            self._changed()

    @property
    def due(self) -> float:
        """When `tick` and `push` are to be called next, if nothing else happens before; in seconds."""
        mends_at = math.inf
        if self.state is State.SETTLING and self._too_early:
            mends_at = max((late.until for late in self._late), default=0.0)
        elif self.state is State.SETTLING and not (self._waits or self.work.pieces.under_way):
            mends_at = -math.inf  # its time has come while nobody looked
        if self._has_news:
            mends_at = -math.inf
        leave_by = min((line.leave_by for line in self.to_be_left), default=math.inf)
        stalls_at = self._stalls.due(self.lines.in_use)
        return min(self.work.pieces.due, self.work.room.due, mends_at, stalls_at, leave_by)

    @property
    def hopes(self) -> bool:
        """Something waits that may go on as soon as a process has ended, which `tick` and `push` find out."""
        waits = self.state is State.SETTLING and self._too_early
        lates = [*self.work.pieces.lates, *(self._late if waits else ())]
        return any(late.peer.provable for late in lates)

    def _waits_on_purpose(self) -> bool:
        """It has no line yet, or must not be mended before what was written can hardly come late any more."""
        return self.state is State.DOWN or (self.state is State.SETTLING and self._too_early)

    # --- What is written, and not flushed

    def _prove(self, done: Flushed) -> None:
        """Others have to know what is durable: have a FLUSH sent."""
        self.work.flushes.want(lambda outcome: done(outcome.error, outcome.text))
        self._note_news()

    def _proved(self) -> None:
        """Nobody else can prove any more that what is left of dead lines is durable."""
        self._note_news()

    # --- Lines come and go

    def begin_without(self, why: str, peer: Peer = UNKNOWN) -> None:
        """Take over from a link to `peer` that has died. What was written over that is in the trail."""
        assert self.state is State.DOWN
        self._adopted = self._late_from(peer)
        self._left.append(peer)
        self.why = why
        self._was_up = True
        self._lose_all()

    def linked(self, line: Line) -> None:
        """A link has been made for a number that had none."""
        self._heed(line)
        line.deaths_before = self._deaths
        self.lines.by_number[line.number] = line
        line.heard_at = line.made_at = self._clock()
        if self.state is State.DOWN and not self._waits:
            self._mend()
        elif self.state in (State.DOWN, State.UP):
            self.lines.state = State.SETTLING
            self._changed()

    def _heed(self, line: Line) -> None:
        """Have the line left if its server goes, unless sessions end with it."""
        if self.survival.reconnect_seconds:
            line.traffic.going.heed(lambda: self._goes(line))

    def _goes(self, line: Line) -> None:
        """A line's server has said that it goes."""
        line.leave_by = self._clock() + GOES_SECONDS
        self.to_be_left.append(line)
        if self.state is State.UP and line is not self.lines.spare:
            self.lines.state = State.SETTLING
        self._changed()

    def is_late(self, line: Line) -> bool:
        """Say whether we have waited long enough for a line whose server goes."""
        return self._clock() >= line.leave_by

    def lost(self, line: Line, why: str) -> None:
        """A line's link has died. Nothing comes from it any more."""
        lines = self.lines
        if lines.by_number.get(line.number) is not line:
            return
        del lines.by_number[line.number]
        line.traffic.asks.drop()
        self.why = why
        if line.goes:
            self.to_be_left.remove(line)
        late = self._late_from(line.peer)
        self._deaths += 1
        self._left.append(line.peer)
        self._left_behind(self.work.pieces.end_on(line), line, late)
        stood = self._clock() - line.made_at >= SHORT_SECONDS
        self._has_served = self._has_served or not line.goes or line.has_answered or stood
        in_use = line in lines.in_use
        if self.state is State.MENDING and in_use:
            self._break_off()
        if self.state is State.OVER:
            pass
        elif not lines:
            self._lose_all()
            lines.state = State.DOWN
        elif in_use:
            if not lines.staying:  # those that are left were made later: they prove nothing
                self._lose_all()
            else:
                self._trail.losses.shaken(self._trail)
            lines.state = State.SETTLING
        self._changed()

    def _left_behind(self, pieces: list[Piece], line: Line, late: Late) -> None:
        """Deal with pieces that were under way on a line that has died."""
        for piece in pieces:
            if piece.task is not None:
                if not line.goes:
                    self.work.pieces.lose(piece, line, self._deaths)
                if piece.losses < MOST_LOSSES:
                    self.work.orphan(piece, late)
                    continue
                times = f"{piece.losses} connections in a row were lost over this"
                piece.done(piece, Outcome(Errno.EIO, f"{times}, the last: {self.why}"))
                continue
            if piece.writes:  # what was written again may come on top of what is newer
                self._late.append(late)
            self._lose_own(piece.ask, line)

    def _lose_own(self, ask: Ask, line: Line) -> None:
        """Something that the bundle itself has asked was under way on a line that has died."""
        is_wanted = ask.command is Cmd.FLUSH and self.work.flushes.under_way is not None
        if is_wanted or self.state is not State.MENDING:
            if ask.command is Cmd.FLUSH:
                self.work.flush_lost(line, self._deaths)
        elif not line.goes:
            # One that was there all the time may have died with the others, before this was sent.
            blamed = line.deaths_before >= self._mends_since
            self.work.deadly.lose(ask, line, self._deaths, blamed=blamed)

    def _lose_all(self) -> None:
        """All lines are gone. If they refused everything from the moment they were made, the server has been
        away since before them.
        """
        self._total_loss = self._was_up = True
        if self._has_served or math.isinf(self.lost_at):
            self.lost_at = self._clock()
        self._has_served = False
        # A home may say yet that it has kept all (`Peer.kept`).
        doubt = self.survival.unflushed is not Doubt.STICKY or not self.survival.through_us
        self._trail.losses.died(self._trail, RESTARTED, doubt=doubt)

    def spare_linked(self, line: Line) -> None:
        """A link has been made for READs that a stalled line does not answer."""
        self._heed(line)
        self.lines.spare = line
        self.work.ask_spare_as_well(line)

    def spare_lost(self) -> None:
        """The spare line has gone, or is not wanted any more. What only it was asked goes out again."""
        spare, self.lines.spare = self.lines.spare, None
        if spare is not None:
            if spare.goes:
                self.to_be_left.remove(spare)
            spare.traffic.asks.drop()
            self.work.pieces.held[:0] = self.work.pieces.end_on(spare)

    @property
    def wants_spare(self) -> bool:
        """A line has said nothing for `stall_seconds`, and another line might answer READs."""
        stalled = any(line.stalled for line in self.lines.in_use)
        return stalled and self.work.one_view and self.state is State.UP

    @property
    def is_in_doubt(self) -> bool:
        """What was written may be lost, and we are still finding out, or mending that."""
        return self._total_loss and bool(self.unflushed) and not self._trail.believed

    @property
    def is_to_be_flushed(self) -> bool:
        """Something was written and is not flushed, and has to be."""
        return bool(self.unflushed) and bool(self.survival.reconnect_seconds)

    def say_farewell(self) -> bool:
        """Nobody asks any more. If anything was written, have it flushed; say whether that is so."""
        if not (self.is_to_be_flushed and self.state is State.UP):
            return False
        self.work.flushes.want(lambda _outcome: None)
        return True

    def left(self) -> None:
        """Its lines have been closed."""
        self._forget_barrier()
        for piece in self.work.pieces.under_way:
            if piece.writes and piece.line is not None:
                self.work.keep_away(piece.ask, self._late_from(piece.line.peer))
        self._trail.losses.left(self._trail, trusted=not self.survival.reconnect_seconds)

    def hand_on_trail(self) -> Trail:
        """Give what was written to the session that goes on with the only line alone."""
        trail = self._trail
        trail.lost, trail.changed, trail.waits = _nobody_minds, _nothing, _never
        self._trail = self.work.trail = trail.losses.trail(None)
        return trail


def _nobody_minds(_why: str, _ranges: list[Range]) -> None:
    pass


def _nothing() -> None:
    pass


def _never() -> bool:
    return False

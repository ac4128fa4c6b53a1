"""What is asked of lines and has no answer yet, and what must wait for what.

A *piece* is what goes to one line: a part of a task, or what the bundle asks by itself. It is *held* until it
may go, *under way* until its line has answered, and an *orphan* if that line dies first.

Pieces that overlap may pass each other as a rule: the server may do what is under way in any order, and clients
that care wait for the answer. Two kinds may not:

- one that is `alone`, if either of the two writes: it goes over a line that has not all of its bytes, or is
  asked a second time and may have been done, or be done yet, the first time;
- writes, where what is kept of them is looked for or written again after a loss (`in_order`): it is kept in the
  order in which it was acknowledged, and that has to be the disk's.

And one that was under way on a line that has died is *suspect*, for a request may be what takes a server down:
nothing else goes with it the next time. So if the next line dies as well, that was over this piece alone. It is
answered EIO and not asked a third time, and whoever has asked what else was under way at first notices
nothing. An innocent one is taken for guilty only if its server is killed by chance at that very moment, which
nobody can tell apart. Several lines that die with one server are one death: so a death counts only if its line
was made after the last one that did. And a server that says that it goes (`gateway.scan.going`) puts
nobody under suspicion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from gateway.bundle.line import Line
from gateway.bundle.ports import Task
from gateway.jobs.fences import Late, still_coming
from gateway.losses.eras import LONG_AGO
from gateway.protocol.asks import Ask, Outcome
from gateway.protocol.commands import WRITE_CLASS

SUSPECT_LOSSES = 1
"""After so many losses, no other piece goes with this one. Of all that were under way at first, only the one
that takes the server down is to fail, and not those that were there by chance."""

MOST_LOSSES = 2
"""So many lines may die over one piece. If more might, its neighbours would lose their sessions, for all of
them wait each time for the server to come back."""

AT_ONCE = -math.inf
"""`Piece.not_before` of a piece that need not wait."""

WHEN_FLUSHED = math.inf
"""`Piece.not_before` of a piece that was answered and waits for a FLUSH, which takes it out."""


@dataclass(slots=True, eq=False)
class Piece:
    """What goes to one line."""

    ask: Ask
    done: Callable[[Piece, Outcome], None]
    task: Task | None = None
    """The task that it is a part of. None: it is the bundle's own."""
    nth: int | None = None
    """Which of the lines in use; None: that of its stripe."""
    alone: bool = False
    """It overlaps nothing that is under way, and nothing begins that overlaps it, unless both only read."""
    losses: int = 0
    """How many lines have died while it was under way, each of them made after the last had died."""
    lost_at: int = 0
    """The number of the last death of a line that counts."""
    unknown: int = 0
    """How often it may have been done, or may be done yet, on a line that died."""
    lates: list[Late] = field(default_factory=list)
    """The same, of each of those lines. As long as it may be done there, it is not asked again."""
    not_before: float = AT_ONCE
    """When it may go at the latest, in seconds. It may go sooner if nothing of its `lates` can come any
    more."""
    asked: int = LONG_AGO
    """What `Losses.asked` gave when it was sent last."""
    gone_over: int = 0
    """What `Witnesses.gone_over` was then."""
    line: Line | None = None
    """The line that it is under way on."""

    @property
    def writes(self) -> bool:
        """It changes the disk."""
        return self.ask.command in WRITE_CLASS

    @property
    def left(self) -> bool:
        """Nobody waits for it any more."""
        return self.task is not None and self.task.port.left

    @property
    def suspect(self) -> bool:
        """It may be what takes the server down."""
        return self.losses >= SUSPECT_LOSSES


class Pieces:
    """The pieces of one bundle."""

    def __init__(self, *, in_order: bool) -> None:
        self._in_order = in_order
        self.held: list[Piece] = []
        """In the order in which they may go."""
        self.under_way: dict[Piece, None] = {}
        """In the order in which they were sent."""
        self.orphans: list[Piece] = []
        """In the order in which they were sent."""
        self.bytes = 0
        """Data of those under way."""
        self.alone: set[Piece] = set()
        """Those that are `alone`, wherever they are."""
        self._suspicious = False  # there may be suspects
        self._suspects_under_way = 0
        self._suspect_waits = False  # one could go, if nothing were under way

    def __bool__(self) -> bool:
        return bool(self.under_way or self.held or self.orphans)

    def __repr__(self) -> str:
        under_way, alone = list(self.under_way), self.alone
        return f"{self.held=} {under_way=} {self.orphans=} {alone=} {self.bytes=}"

    @property
    def writes(self) -> list[Piece]:
        """The pieces that change the disk, and may still be answered or sent as they are."""
        return [piece for piece in (*self.under_way, *self.held) if piece.writes]

    @property
    def suspect_under_way(self) -> bool:
        """A suspect is under way, beside which nothing else may go."""
        return bool(self._suspects_under_way)

    @property
    def put_off(self) -> list[Piece]:
        """Those that are held until their time has come."""
        return [piece for piece in self.held if AT_ONCE < piece.not_before < WHEN_FLUSHED]

    @property
    def lates(self) -> set[Late]:
        """The writes for which those wait."""
        return {late for piece in self.put_off for late in piece.lates}

    def release(self) -> Iterator[Piece]:
        """Give the held pieces that may go now, in the order in which they came. Each has to begin before the
        next one is asked for.
        """
        held, self.held = self.held, []
        self._suspect_waits = False
        for piece in held:
            if self.may_go(piece):
                yield piece
            else:
                self.held.append(piece)
        if self._suspicious:
            self._suspicious = any(piece.suspect for piece in (*self.held, *self.under_way))

    def may_go(self, piece: Piece) -> bool:
        """Say whether a piece may go that comes after all that are held."""
        return not self._must_wait(piece) and not self._barred(piece)

    def _must_wait(self, piece: Piece) -> bool:
        if piece.not_before > AT_ONCE:
            return True
        if not self.alone and not (self._in_order and piece.writes):
            return False
        return any(self._conflict(piece, each) for each in (*self.held, *self.under_way))

    def _barred(self, piece: Piece) -> bool:
        """Say whether a piece has to wait although it passes no other: nothing goes beside a suspect."""
        if not self._suspicious:
            return False
        if self._suspect_waits or self._suspects_under_way:
            return True
        self._suspect_waits = piece.suspect and bool(self.under_way)
        return self._suspect_waits

    def _conflict(self, one: Piece, other: Piece) -> bool:
        if not one.ask.overlaps(other.ask) or not (one.writes or other.writes):
            return False
        return one.alone or other.alone or (self._in_order and one.writes and other.writes)

    def begin(self, piece: Piece, line: Line) -> None:
        """A piece goes to a line."""
        piece.line = line
        self.under_way[piece] = None
        self._suspects_under_way += piece.suspect
        self.bytes += piece.ask.data_bytes

    def end(self, piece: Piece) -> None:
        """It is not under way any more: it has been answered, or its line is gone."""
        del self.under_way[piece]
        self._suspects_under_way -= piece.suspect
        self.bytes -= piece.ask.data_bytes
        piece.line = None

    def end_on(self, line: Line) -> list[Piece]:
        """End all that are under way on a line, and give them in the order in which they were sent."""
        ended = [piece for piece in self.under_way if piece.line is line]
        for piece in ended:
            self.end(piece)
        return ended

    def lose(self, piece: Piece, line: Line, deaths: int) -> None:
        """A piece was under way on a line that has died. `deaths`: how many lines of the bundle have died by
        now.
        """
        if line.deaths_before >= piece.lost_at:
            piece.losses += 1
            piece.lost_at = deaths
        self.look_at(piece)

    def look_at(self, piece: Piece) -> None:
        """Take note of a piece over which lines may have died already."""
        self._suspicious = self._suspicious or piece.suspect

    def put_off_for(self, piece: Piece, lates: Iterable[Late]) -> None:
        """Have a piece wait as long as any of these old writes may still be done, for they could go over it."""
        for late in lates:
            piece.lates.append(late)
            piece.not_before = max(piece.not_before, late.until)

    def leave_alone(self, piece: Piece) -> None:
        """From now on it is `alone`, until it is `done_with`."""
        piece.alone = True
        self.alone.add(piece)

    def done_with(self, piece: Piece) -> None:
        """Others need not wait for it any more."""
        self.alone.discard(piece)

    def hold_orphans(self) -> list[Piece]:
        """Hold the orphans before all other pieces. Whatever overlaps one that may have been done waits. Give
        what is forgotten instead, because nobody waits for it.
        """
        forgotten = self.forget_those_left(orphans=True)
        orphans, self.orphans = self.orphans, []
        for piece in orphans:
            if piece.unknown:
                self.leave_alone(piece)
        self.held[:0] = orphans
        return forgotten

    def forget_those_left(self, *, orphans: bool) -> list[Piece]:
        """Forget pieces for which nobody waits: they are not asked, or not again. Their client has gone; since
        then others may have written there, and that must not be undone. A piece that was answered and waits for
        a FLUSH stays. Give what is forgotten.
        """
        forgotten = []
        lists = (self.held, self.orphans) if orphans else (self.held,)
        for pieces in lists:
            for piece in [each for each in pieces if each.left]:
                if piece.not_before < WHEN_FLUSHED:
                    pieces.remove(piece)
                    self.done_with(piece)
                    forgotten.append(piece)
        return forgotten

    def drop_all(self) -> list[Piece]:
        """Take out all that is not under way, for nothing goes any more. What waits for a FLUSH stays: the
        FLUSH's answer ends it.
        """
        dropped = [each for each in (*self.orphans, *self.held) if each.not_before < WHEN_FLUSHED]
        self.orphans = []
        self.held = [each for each in self.held if each.not_before == WHEN_FLUSHED]
        return dropped

    def time_has_come(self, now: float) -> None:
        """Release pieces that waited for this time, or for old writes that cannot come any more."""
        coming = set(still_coming(self.lates, now))
        for piece in self.put_off:
            if piece.not_before <= now or coming.isdisjoint(piece.lates):
                piece.not_before = AT_ONCE

    @property
    def due(self) -> float:
        """When the next piece may go."""
        times = [piece.not_before for piece in self.held if piece.not_before > AT_ONCE]
        return min(times, default=math.inf)

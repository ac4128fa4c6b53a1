"""Carries a recovery out: asks what its steps ask, and sends it the outcomes, until it has come to its end. The
steps are in `recovery`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from gateway.bundle.pieces import Piece
from gateway.bundle.work import Work
from gateway.protocol.asks import Ask, Outcome
from gateway.wire.constants import Cmd, Errno

Together = list[tuple[Ask, int | None]]
"""Asks that go out together, each with which of the lines in use it goes to (None: that of its stripe)."""

Steps = Generator[Together, list[Outcome], None]
"""A recovery: it yields what it asks, and is sent the outcomes, in the same order."""


class Mending:
    """A recovery that is being carried out. `work` sends what it asks, and answers none of it at once. What
    takes the server down is not asked for ever (`deadly`): it fails.
    """

    def __init__(self, steps: Steps, work: Work) -> None:
        self._steps = steps
        self._work = work
        self._outcomes: list[Outcome] = []
        self._begun = False
        self._held: list[Piece] = []
        """Pieces that go when nothing else is under way."""
        self._missing = 0

    def go_on(self) -> bool:
        """Go on as far as there are answers. Say whether that is to the end."""
        while not self._missing:
            if self._held:
                self._send(self._held.pop(0))
                continue
            try:
                asked = self._steps.send(self._outcomes) if self._begun else next(self._steps)
            except StopIteration:
                return True
            self._begun = True
            self._ask(asked)
        return False

    def _ask(self, asked: Together) -> None:
        deadly = self._work.deadly
        self._outcomes = []
        for number, (ask, nth) in enumerate(asked):
            why_not = deadly.why_not(ask)
            self._outcomes.append(Outcome(Errno.EIO, why_not) if why_not else Outcome())
            if not why_not:
                self._held.append(Piece(ask, self._collected(number), nth=nth))
        if not deadly.suspected:
            together, self._held = self._held, []
            for piece in together:
                self._send(piece)

    def _send(self, piece: Piece) -> None:
        self._missing += 1
        if piece.ask.command is Cmd.FLUSH:
            piece.done = self._noted(piece.done)
        self._work.send(piece)

    def _collected(self, number: int) -> Callable[[Piece, Outcome], None]:
        def done(_piece: Piece, outcome: Outcome) -> None:
            self._outcomes[number] = outcome
            self._missing -= 1

        return done

    def _noted(self, done: Callable[[Piece, Outcome], None]) -> Callable[[Piece, Outcome], None]:
        """Note what a FLUSH comes to, even if this recovery does not go on: the server does not say twice that
        it has lost something.
        """
        sent = self._work.trail.losses.sent()

        def answered(piece: Piece, outcome: Outcome) -> None:
            self._work.flush_answered(sent, outcome)
            done(piece, outcome)

        return answered

    def break_off(self) -> None:
        """It cannot go on. What its READs and WRITEs under way come to does not matter any more."""
        self._steps.close()

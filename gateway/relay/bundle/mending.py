"""How a recovery is carried out: its steps are asked, and it is sent the outcomes, until it has come to its
end. What the steps are is in `recovery`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from gateway.relay.bundle.pieces import Piece
from gateway.relay.bundle.work import Work
from gateway.relay.scan.asks import Ask, Outcome
from gateway.wire.constants import Cmd

Asked = list[tuple[Ask, int | None]]
"""Asks that go out together, each with the slot of its line (None: that of its stripe)."""

Steps = Generator[Asked, list[Outcome], None]
"""A recovery: it yields what it asks, and is sent the outcomes, in the same order."""


class Mending:
    """A recovery that is being carried out. `work` sends what it asks, and answers none of it at once."""

    def __init__(self, steps: Steps, work: Work) -> None:
        self._steps = steps
        self._work = work
        self._outcomes: list[Outcome] = []
        self._begun = False
        self._missing = 0

    def go_on(self) -> bool:
        """Go on as far as the answers go; say whether that is to the end."""
        while not self._missing:
            try:
                asked = self._steps.send(self._outcomes) if self._begun else next(self._steps)
            except StopIteration:
                return True
            self._begun = True
            self._outcomes = [Outcome() for _ in asked]
            self._missing = len(asked)
            for number, (ask, slot) in enumerate(asked):
                collect = self._collected(number)
                if ask.command is Cmd.FLUSH:
                    collect = self._noted(collect)
                self._work.send(Piece(ask, collect, slot=slot))
        return False

    def _collected(self, number: int) -> Callable[[Piece, Outcome], None]:
        def done(_piece: Piece, outcome: Outcome) -> None:
            self._outcomes[number] = outcome
            self._missing -= 1

        return done

    def _noted(self, done: Callable[[Piece, Outcome], None]) -> Callable[[Piece, Outcome], None]:
        """A FLUSH is sent: what it comes to is noted even if nobody goes on with this recovery. The server does
        not say twice that it has lost something.
        """
        sent = self._work.trail.losses.sent()

        def answered(piece: Piece, outcome: Outcome) -> None:
            self._work.flush_answered(sent, outcome)
            done(piece, outcome)

        return answered

    def break_off(self) -> None:
        """It cannot go on. Nobody minds what its READs and WRITEs come to that are under way."""
        self._steps.close()

"""Who waits for which FLUSH.

A FLUSH covers what was answered before it was sent (nbd-reference.md, 4.1). So whoever wants one may have it
together with all others who want one, as long as it has not been sent; one that is under way already would be a
lie to him. There is one under way at a time, so that those who come meanwhile share the next.

One that a line has died over is `suspect`, as pieces are: it goes again with nothing beside it, and for those
alone who waited for it then.
"""

from __future__ import annotations

from gateway.bundle.line import Line
from gateway.bundle.pieces import SUSPECT_LOSSES
from gateway.protocol.asks import Done


class Flushes:
    """Those of one bundle."""

    def __init__(self) -> None:
        self.under_way: list[Done] | None = None
        """Who waits for the one that has been sent; None: there is none."""
        self._wanted: list[Done] = []
        self._again: list[Done] = []
        """Who waited for one that a line has died over."""
        self.losses = 0
        """Over how many lines in a row one has been asked that have died, counted as those of pieces."""
        self.lost_at = 0

    def __bool__(self) -> bool:
        """Somebody wants one that has not been sent."""
        return bool(self._wanted or self._again)

    def want(self, done: Done) -> None:
        """Have `done` told what the next one that is sent comes to."""
        self._wanted.append(done)

    def want_again(self, done: Done, losses: int) -> None:
        """The same for who has waited for one elsewhere, over which so many links have died: it is for those
        alone who did.
        """
        self.losses = max(self.losses, losses)
        self._again.append(done)

    @property
    def suspect(self) -> bool:
        """The next one may be what takes the server down."""
        return self.losses >= SUSPECT_LOSSES

    def sent(self) -> None:
        """One is sent for all who want one, or have it sent again."""
        if self._again:
            self.under_way, self._again = self._again, []
        else:
            self.under_way, self._wanted = self._wanted, []

    def answered(self) -> list[Done]:
        """It has its answer: give those who wait for it."""
        self.losses = 0
        waiting, self.under_way = self.under_way or [], None
        return waiting

    def lose(self, line: Line, deaths: int) -> None:
        """The line has died over which one was under way, as so many lines of the bundle have by now."""
        if line.deaths_before >= self.lost_at:
            self.losses += 1
            self.lost_at = deaths

    def lost(self) -> None:
        """It has no answer, and will have none: they want another."""
        waiting, self.under_way = self.under_way or [], None
        self._again += waiting

    def take_out(self) -> list[Done]:
        """Give those who want one and are not to have one."""
        wanted, self._wanted, self._again = self._again + self._wanted, [], []
        return wanted

"""Who waits for which FLUSH.

A FLUSH covers what was answered before it was sent (nbd-reference.md, 4.1). So all who want one may share the
next that is sent. They may not share one that is under way already: it need not cover what was answered since.

Only one FLUSH is under way at a time. Those who want one meanwhile share the next. If a line dies over a FLUSH,
the next one is `suspect`, as pieces are: it goes with nothing beside it, and only for those who waited for the
first.
"""

from __future__ import annotations

from gateway.bundle.line import Line
from gateway.bundle.pieces import SUSPECT_LOSSES
from gateway.protocol.asks import Done


class Flushes:
    """The FLUSHes of one bundle."""

    def __init__(self) -> None:
        self.under_way: list[Done] | None = None
        """Who waits for the FLUSH that was sent. None: there is none."""
        self._wanted: list[Done] = []
        self._again: list[Done] = []
        """Who waited for a FLUSH over which a line has died."""
        self.losses = 0
        """How many lines in a row have died over a FLUSH, counted as for pieces."""
        self.lost_at = 0

    def __bool__(self) -> bool:
        """Somebody wants one that has not been sent."""
        return bool(self._wanted or self._again)

    def want(self, done: Done) -> None:
        """Call `done` with what the next FLUSH that is sent comes to."""
        self._wanted.append(done)

    def want_again(self, done: Done, losses: int) -> None:
        """Do the same for somebody who has waited elsewhere for a FLUSH over which so many links have died. The
        next one is then only for those who did.
        """
        self.losses = max(self.losses, losses)
        self._again.append(done)

    @property
    def suspect(self) -> bool:
        """The next one may be what takes the server down."""
        return self.losses >= SUSPECT_LOSSES

    def sent(self) -> None:
        """A FLUSH is sent for all who want one, or only for those who want one again."""
        if self._again:
            self.under_way, self._again = self._again, []
        else:
            self.under_way, self._wanted = self._wanted, []

    def answered(self) -> list[Done]:
        """The FLUSH has its answer. Give those who wait for it."""
        self.losses = 0
        waiting, self.under_way = self.under_way or [], None
        return waiting

    def lose(self, line: Line, deaths: int) -> None:
        """A FLUSH was under way on a line that has died. `deaths`: how many lines of the bundle have died by
        now.
        """
        if line.deaths_before >= self.lost_at:
            self.losses += 1
            self.lost_at = deaths

    def lost(self) -> None:
        """The FLUSH will have no answer. Those who waited for it want another one."""
        waiting, self.under_way = self.under_way or [], None
        self._again += waiting

    def take_out(self) -> list[Done]:
        """Take out those who want one, for there will be none."""
        wanted, self._wanted, self._again = self._again + self._wanted, [], []
        return wanted

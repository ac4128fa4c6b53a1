"""Who waits for which FLUSH.

A FLUSH covers what was answered before it was sent (nbd-reference.md, 4.1). So whoever wants one may have it
together with all others who want one, as long as it has not been sent; one that is under way already would be a
lie to him. There is one under way at a time, so that those who come meanwhile share the next.
"""

from __future__ import annotations

from gateway.relay.scan.asks import Done


class Flushes:
    """Those of one bundle."""

    def __init__(self) -> None:
        self.under_way: list[Done] | None = None
        """Who waits for the one that has been sent; None: there is none."""
        self._wanted: list[Done] = []

    def __bool__(self) -> bool:
        """Somebody wants one that has not been sent."""
        return bool(self._wanted)

    def want(self, done: Done) -> None:
        """Have `done` told what the next one that is sent comes to."""
        self._wanted.append(done)

    def sent(self) -> None:
        """One is sent for all who want one."""
        self.under_way, self._wanted = self._wanted, []

    def answered(self) -> list[Done]:
        """It has its answer: give those who wait for it."""
        waiting, self.under_way = self.under_way or [], None
        return waiting

    def lost(self) -> None:
        """It has no answer, and will have none: they want another."""
        waiting, self.under_way = self.under_way or [], None
        self._wanted[:0] = waiting

    def take_out(self) -> list[Done]:
        """Give those who want one and are not to have one."""
        wanted, self._wanted = self._wanted, []
        return wanted

"""Who waits for which FLUSH.

A FLUSH covers what was answered before it was sent (nbd-reference.md, 4.1). So whoever wants one may have it
together with all others who want one, as long as it has not been sent; one that is under way already would be a
lie to him. There is one under way at a time, so that those who come meanwhile share the next.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from gateway.relay.bundle.ports import Port
from gateway.relay.scan.asks import Done, Outcome

Wanted = tuple[Port | None, Done]
"""Whose FLUSH it is (None: the bundle's own), and who is told of its outcome."""


def why_failed(outcome: Outcome) -> str:
    """Say why what was not flushed is taken to be lost."""
    return f"a FLUSH of the server has failed: {outcome.text or outcome.error}"


class Flushes:
    """Those of one bundle."""

    def __init__(self) -> None:
        self.under_way: list[Wanted] | None = None
        """Who waits for the one that has been sent; None: there is none."""
        self._wanted: list[Wanted] = []

    def __bool__(self) -> bool:
        """Somebody wants one that has not been sent."""
        return bool(self._wanted)

    def __iter__(self) -> Iterator[Port]:
        """Give the ports whose FLUSHes have not been sent."""
        return iter([port for port, _done in self._wanted if port is not None])

    def want(self, done: Done, port: Port | None = None) -> None:
        """Have `done` told what the next one that is sent comes to."""
        self._wanted.append((port, done))

    def sent(self) -> None:
        """One is sent for all who want one."""
        self.under_way, self._wanted = self._wanted, []

    def answered(self) -> list[Done]:
        """It has its answer: give those who wait for it."""
        waiting, self.under_way = self.under_way or [], None
        return [done for _port, done in waiting]

    def lost(self) -> None:
        """It has no answer, and will have none: they want another."""
        waiting, self.under_way = self.under_way or [], None
        self._wanted[:0] = waiting

    def take_out(self, of: Collection[Port | None] | None = None) -> list[Done]:
        """Give those (of some ports, or all) who want one and are not to have one."""
        wanted, self._wanted = self._wanted, []
        out = []
        for port, done in wanted:
            if of is None or port in of:
                out.append(done)
            else:
                self._wanted.append((port, done))
        return out

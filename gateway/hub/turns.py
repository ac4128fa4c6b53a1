"""Whose turn it is among sockets that are ready: fair by the time that each takes, not by turns alone.

One client's turn may be a thousand times as long as another's: a map of 131,072 extents, a buffer full of
requests that are answered here. If we served them one after the other as they come, a client that asks for a
single block would wait for a few such clients each time. So if there is not time for all, whoever has taken
least goes first, as a kernel does with processes.

As long as there is time for all, nobody waits for long, and we forget how much each has taken. A newcomer,
while there is not time for all, begins with the least that any of those has taken who are ready as well: nobody
saves up for a long turn.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.hub.crowd import AGAIN, GONE, LEFT
from gateway.scan.turn import TURN_SECONDS

SLICE_SECONDS = 0.001
"""How long we serve sockets, if there is not time for all, before we look which others have become ready. A
look costs a thousandth of it."""

LONG_SECONDS = TURN_SECONDS
"""After a turn that takes longer (each turn that was ended does) we look at once if others are ready: a client
that asks for little waits for one such turn, and not for several. A look costs a hundredth of it, and makes
batches smaller, so we do not look if nobody else is ready."""


class Turns:
    """Descriptors that are `ready`, with their events, and how long each has been served."""

    def __init__(self) -> None:
        self.ready: dict[int, int] = {}
        self._whose: dict[int, object] = {}
        self._taken: dict[int, float] = {}
        """In seconds, since there was time for all."""

    def belongs(self, descriptor: int, whose: object) -> None:
        """A descriptor is there, and shares its turns with the others that are `whose`."""
        self._whose[descriptor] = whose

    def others_wait(self, descriptor: int) -> bool:
        """Say whether anybody is ready other than the owner of this descriptor: nobody waits for himself."""
        whose = self._whose
        its = whose.get(descriptor)
        return any(each not in whose or whose[each] is not its for each in self.ready)

    def add(self, events: Iterable[tuple[int, int]]) -> None:
        """These are ready, for these events."""
        ready = self.ready
        if not ready:
            ready.update(events)
            return
        for descriptor, event in events:
            ready[descriptor] = ready.get(descriptor, 0) | event

    def order(self) -> list[int]:
        """Give those that are ready in the order of their turns."""
        taken = self._taken
        if not taken:
            return list(self.ready)
        least = self._least_of(self.ready)
        return sorted(self.ready, key=lambda each: taken.get(each, least))

    def _least_of(self, descriptors: Iterable[int]) -> float:
        """Give the least that any of these has taken; a thousand that are not ready are not looked at."""
        taken = self._taken
        return min((taken[each] for each in descriptors if each in taken), default=0.0)

    def overran(self, took: Iterable[tuple[int, float]]) -> None:
        """There was not time for all. These have had their turns, of so many seconds. The next look finds the
        others ready again, if they still are. Only what is told once is kept: that somebody has gone, or wants
        to be called again.
        """
        taken, took = self._taken, list(took)
        least = self._least_of([*self.ready, *(descriptor for descriptor, _seconds in took)])
        for descriptor in self.ready:
            taken.setdefault(descriptor, least)
        for descriptor, seconds in took:
            taken[descriptor] = taken.get(descriptor, least) + seconds
        self._keep_what_is_told_once()

    def _keep_what_is_told_once(self) -> None:
        ready, once = self.ready, GONE | LEFT | AGAIN
        for descriptor in [each for each, events in ready.items() if not events & once]:
            del ready[descriptor]

    def all_served(self) -> None:
        """There was time for all."""
        self._taken.clear()

    def forget(self, descriptor: int) -> None:
        """A descriptor is there no more; another may get its number."""
        self.ready.pop(descriptor, None)
        self._taken.pop(descriptor, None)
        self._whose.pop(descriptor, None)

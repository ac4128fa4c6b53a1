"""Whose turn it is among sockets that are ready: fair by the time that each takes, not by turns alone.

One client's turn may be a thousand times as long as another's: a map of 131,072 extents, a buffer full of
requests that are answered here. Served one after the other as they come, a few such clients would keep one
that asks for a single block waiting for all of them, every time. So where there is not time for all, whoever
has taken least goes first, as processes do before a kernel.

As long as there is time for all, nobody waits for long, and nothing of it is remembered: who had much then owes
nothing. And who comes while there is not time for all begins with no less than those who are there have had:
nobody saves up for a long turn.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.hub.crowd import AGAIN, GONE, LEFT
from gateway.scan.turn import TURN_SECONDS

SLICE_SECONDS = 0.001
"""How long sockets are served before we look which others have become ready, if there is not time for all. A
look costs a thousandth of it."""

LONG_SECONDS = TURN_SECONDS
"""A turn that takes longer, as each does that was ended, is followed by such a look at once if others are
ready: whoever asks for little waits for one such turn, and not for several. A look costs a hundredth of it, and
smaller batches, so nobody has it done for himself alone."""


class Turns:
    """Descriptors that are `ready`, with their events, and how long each has been served."""

    def __init__(self) -> None:
        self.ready: dict[int, int] = {}
        self._whose: dict[int, object] = {}
        self._taken: dict[int, float] = {}
        """In seconds, since there was time for all."""

    def belongs(self, descriptor: int, whose: object) -> None:
        """A descriptor is there, and has its turns together with others of the same one."""
        self._whose[descriptor] = whose

    def others_wait(self, descriptor: int) -> bool:
        """Say whether anybody is ready but whose descriptor this is: nobody waits for himself."""
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
        least = min(taken.values())
        return sorted(self.ready, key=lambda each: taken.get(each, least))

    def overran(self, took: Iterable[tuple[int, float]]) -> None:
        """There was not time for all. These have had their turns, of so many seconds. The others are found
        ready again by the next look, if they want to be. But that somebody has gone, or wants to be called
        again, is not told twice.
        """
        taken = self._taken
        least = min(taken.values(), default=0.0)
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
        """It is there no more; another may come by its number."""
        self.ready.pop(descriptor, None)
        self._taken.pop(descriptor, None)
        self._whose.pop(descriptor, None)

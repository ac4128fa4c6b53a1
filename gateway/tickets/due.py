"""When each ticket is to be looked at, because it may be over then.

A heap of times, on the steady clock. A ticket that is used, removed or renewed leaves its old time in there,
because to look for that would take longer than to pass by it when it comes. The heap is made anew when most of
its times are old, so a ticket that is renewed all day long takes no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

from gateway.tickets.kept import IssuedTicket

SPARE = 50
"""Times that may be old ones, beside one for each ticket: a heap of a few tickets is not made anew all the
time."""


class Due:
    """When to look at which of the tickets that there are. `sooner` is called when there is a time that may be
    before all others.
    """

    def __init__(self, there: Mapping[str, IssuedTicket], sooner: Callable[[], None]) -> None:
        self._there = there
        self._sooner = sooner
        self._heap: list[tuple[float, int, IssuedTicket]] = []
        self._number = count()

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_at(self) -> float:
        """When to look at any of them, on the steady clock."""
        return self._heap[0][0] if self._heap else inf

    def look_later(self, kept: IssuedTicket) -> None:
        """Have a ticket looked at when it may be over."""
        at = kept.next_look()
        if at >= kept.looked_at:
            return  # it is looked at before that
        kept.looked_at = at
        heappush(self._heap, (at, next(self._number), kept))
        if len(self._heap) > 2 * len(self._there) + SPARE:
            self._sort_anew()  # most are of times that are renewed
        self._sooner()

    def take(self, steady: float) -> IssuedTicket | None:
        """Give a ticket that is to be looked at by now, and not again before somebody says so."""
        while self._heap and self._heap[0][0] <= steady:
            at, _number, kept = heappop(self._heap)
            if at == kept.looked_at and self._there.get(kept.name) is kept:
                kept.looked_at = inf
                return kept
        return None

    def reckon_anew(self) -> None:
        """The clock on the wall was set. What is left of a ticket may become less by that, and never more."""
        for kept in self._there.values():
            before = kept.due
            kept.counts_from_now()
            kept.due = min(kept.due, before)
        self._sort_anew()

    def _sort_anew(self) -> None:
        for kept in self._there.values():
            kept.looked_at = kept.next_look()
        waiting = (each for each in self._there.values() if each.looked_at < inf)
        self._heap = [(each.looked_at, next(self._number), each) for each in waiting]
        heapify(self._heap)

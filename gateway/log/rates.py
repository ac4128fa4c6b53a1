"""How many lines the log may have in a second, and of whom.

Anybody who can connect can cause lines: a client that asks for an export that is not there may do it ten
thousand times a second. So the lines of one client about one event are bounded, and so are all together. What
is left out is counted, and the counts are said.

A bound for everything alone would let a flood push out the lines that an operator needs. So the bounds are
nested: clients together have half of the lines, and one client half of that. Lines that no client caused
("upstream is down") have at least the other half, of which one event may take no more than half. Clients from
very many addresses can crowd out each other's lines, but not those.

A bound holds for every second, wherever it begins. Only lines of the last second count, and of those there are
no more than the bound for everything: so that is all that is remembered, however many addresses come.

The clock is passed in. Lines may come from any thread, and in the middle of another one (see `writer`).
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

SECOND = 1.0

LINES = 200
"""A second, in all: more is read by nobody, and is some 40 kB that a disk or a network has to take."""

LINES_OF_CLIENTS = LINES // 2
"""Caused by clients, all together."""

LINES_OF_ONE = LINES_OF_CLIENTS // 2
"""Of one client address; or of one event, where no client caused it (all sessions of a trunk that is lost)."""

LINES_OF_A_KIND = 10
"""Of one client address and event: who does the same ten times a second is no person."""

MAX_NAMED = 8
"""Events and clients that are named when lines are counted that were left out: the others are one number."""

OTHERS = "others"


@dataclass
class LeftOut:
    """Lines that were not said."""

    lines: int = 0
    events: Counter[str] = field(default_factory=Counter)
    clients: Counter[str] = field(default_factory=Counter)

    def add(self, origin: str | None, event: str) -> None:
        """Count one."""
        self.lines += 1
        _count(self.events, event)
        if origin is not None:
            _count(self.clients, origin)


def _count(named: Counter[str], name: str) -> None:
    named[name if name in named or len(named) < MAX_NAMED else OTHERS] += 1


_Kind = tuple[str | None, ...]
"""What a bound is for: everything (), clients ("clients",), an origin, an origin and an event."""


class Rates:
    """Says which lines are said. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._said: deque[tuple[float, tuple[_Kind, ...]]] = deque()  # within the last second
        self._counts: Counter[_Kind] = Counter()  # of those
        self._left_out = LeftOut()

    def admits(self, origin: str | None, event: str) -> bool:
        """Say whether a line may be said, and count it. `origin` is the client that caused it, if one did."""
        bounds: dict[_Kind, int] = {(): LINES - 1}  # one is for what `take_left_out` gives
        if origin is None:
            bounds[None, event] = LINES_OF_ONE
        else:
            bounds["clients",] = LINES_OF_CLIENTS
            bounds["client", origin] = LINES_OF_ONE
            bounds["client", origin, event] = LINES_OF_A_KIND
        with self._lock:
            now = self._clock()
            self._forget(now - SECOND)
            if any(self._counts[kind] >= bound for kind, bound in bounds.items()):
                self._left_out.add(origin, event)
                return False
            self._said.append((now, tuple(bounds)))
            self._counts.update(bounds.keys())
        return True

    def take_left_out(self) -> LeftOut | None:
        """Give what was left out since the last time, if anything was."""
        with self._lock:
            left_out, self._left_out = self._left_out, LeftOut()
        return left_out if left_out.lines else None

    def _forget(self, until: float) -> None:
        while self._said and self._said[0][0] <= until:
            _, kinds = self._said.popleft()
            for kind in kinds:
                self._counts[kind] -= 1
                if not self._counts[kind]:
                    del self._counts[kind]

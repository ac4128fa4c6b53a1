"""How many lines the log may have in a second, and of whom.

Anybody who can connect can cause lines: a client that asks for an export that is not there may do it ten
thousand times a second. So there is a bound for the lines of one client about one event, and for all lines
together. Lines that are left out are counted, and the log says how many.

With a bound for all lines alone, a flood would push out the lines that an operator needs. So the bounds are
nested: clients together have half of the lines, and one client half of that. At least the other half is for
lines that no client caused ("upstream is down"), and one event may take half of that. Clients from very many
addresses can crowd out each other's lines, but not these.

A bound holds for every second, wherever it begins. Only lines of the last second count, and there are no more
of them than the bound for all lines. So we remember no more than that, however many addresses come.

The clock is passed in. Lines may come from any thread, and in the middle of another one (see `writer`).
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

SECOND = 1.0

LINES = 200
"""Lines a second, in all: nobody reads more, and they are some 40 kB that a disk or a network has to take."""

LINES_OF_CLIENTS = LINES // 2
"""Lines that clients have caused, all together."""

LINES_OF_ONE = LINES_OF_CLIENTS // 2
"""Lines of one client address; or of one event that no client caused (all sessions of a trunk that is lost)."""

LINES_OF_A_KIND = 10
"""Lines of one client address about one event: no person does the same ten times a second."""

MAX_NAMED = 8
"""How many events, and clients, are named when we say what was left out. The others are one number."""

OTHERS = "others"


@dataclass
class LeftOut:
    """Lines that were left out."""

    lines: int = 0
    events: Counter[str] = field(default_factory=Counter)
    clients: Counter[str] = field(default_factory=Counter)

    def add(self, origin: str | None, event: str) -> None:
        """Count a line."""
        self.lines += 1
        _count(self.events, event)
        if origin is not None:
            _count(self.clients, origin)


def _count(named: Counter[str], name: str) -> None:
    named[name if name in named or len(named) < MAX_NAMED else OTHERS] += 1


_Kind = tuple[str | None, ...]
"""What a bound is for: all lines (), clients ("clients",), an origin, an origin and an event."""


class Rates:
    """Decides which lines are written. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._said: deque[tuple[float, tuple[_Kind, ...]]] = deque()  # within the last second
        self._counts: Counter[_Kind] = Counter()  # of those
        self._left_out = LeftOut()

    def admits(self, origin: str | None, event: str) -> bool:
        """Say whether a line may be written, and count it. `origin`: the client that caused it, if one did."""
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

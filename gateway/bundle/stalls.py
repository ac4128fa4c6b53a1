"""Lines that say nothing.

A line is *stalled* when something is under way on it, and nothing has come from it for `seconds`, not even a
part of a reply. That is no reason to give it up: it may still be writing what it was asked to write. But
another line may be asked for READs, where that surely shows the same (`Bundle.wants_spare`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from gateway.bundle.line import Line


class Stalls:
    """Finds the lines that are stalled. `changed` is called when that, or `due`, may have changed."""

    def __init__(
        self, seconds: float, clock: Callable[[], float], changed: Callable[[], None]
    ) -> None:
        """If `seconds` is 0, no line is ever stalled."""
        self._seconds = seconds or math.inf
        self._clock = clock
        self._changed = changed

    def asks(self, line: Line) -> None:
        """A line is going to be asked something."""
        if not line.under_way:
            line.heard_at = self._clock()
            if self._seconds < math.inf:
                self._changed()

    def heard(self, line: Line) -> None:
        """Bytes have come from a line."""
        line.heard_at = self._clock()
        if line.stalled:
            line.stalled = False
            self._changed()

    def found(self, lines: Iterable[Line], now: float) -> list[tuple[Line, float]]:
        """Give the lines that are stalled from now on, each with how many seconds it has said nothing."""
        found = []
        for line in lines:
            if line.under_way and now >= line.heard_at + self._seconds and not line.stalled:
                line.stalled = True
                found.append((line, now - line.heard_at))
        return found

    def due(self, lines: Iterable[Line]) -> float:
        """Give when the next line will be stalled if it goes on saying nothing."""
        waited = [line.heard_at for line in lines if line.under_way and not line.stalled]
        return min(waited, default=math.inf) + self._seconds

"""What happens when: a clock that jumps from one event to the next. Whoever has the same seed sees the same."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from itertools import count
from typing import Any


class World:
    """Time is in seconds, and begins at 0. Events of one moment happen in the order in which they were asked
    for.
    """

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.chance = random.Random(seed)
        self._number = count()
        self._events: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []

    def later(self, seconds: float, do: Callable[..., object], *arguments: Any) -> None:
        """Have something happen in so many seconds."""
        event = (self.now + seconds, next(self._number), do, arguments)
        heapq.heappush(self._events, event)

    def run(self, until: float, enough: Callable[[], bool] = lambda: False) -> None:
        """Have everything happen until a moment, or until there is `enough`."""
        while self._events and self._events[0][0] <= until and not enough():
            self.now, _number, do, arguments = heapq.heappop(self._events)
            do(*arguments)
        if not enough():
            self.now = until

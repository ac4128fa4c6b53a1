"""How long somebody may wait for a peer in all, however many answers he waits for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Allowance:
    """So many seconds, which are spent while somebody waits on it. If several wait at once, they are spent
    once.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        """How many seconds there were at first."""
        self.why = ""
        """What was said when none were left."""
        self._left = seconds
        self._waiting = 0
        self._since = 0.0

    @property
    def left(self) -> float:
        """How many are left."""
        spent = trio.current_time() - self._since if self._waiting else 0.0
        return max(0.0, self._left - spent)

    def take(self, seconds: float) -> None:
        """Spend so many on something that nobody waits for here."""
        self._left = max(0.0, self._left - seconds)

    def give(self, seconds: float) -> None:
        """Add so many."""
        self.seconds += seconds
        self._left += seconds

    @contextmanager
    def spend(self) -> Iterator[None]:
        """Wait for something in this block. Raises `trio.TooSlowError` when nothing is left."""
        if not self._waiting:
            self._since = trio.current_time()
        self._waiting += 1
        try:
            with trio.fail_after(self.left):
                yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.take(trio.current_time() - self._since)

"""Says seldom what happens often: a flood of clients must not become a flood of log lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import trio


class Tally:
    """Counts events by what is said of them, of which there must be few kinds.

    `say(what, count)` is told of the first at once, and then no oftener than every `seconds` how many there
    were since.
    """

    def __init__(self, seconds: float, say: Callable[[str, int], None]) -> None:
        self._seconds = seconds
        self._say = say
        self._counts: Counter[str] = Counter()
        self._added = trio.Event()

    def add(self, what: str) -> None:
        """Count one."""
        self._counts[what] += 1
        self._added.set()

    async def run(self) -> None:
        """Say what is counted, until cancelled; then what was left."""
        try:
            while True:
                await self._added.wait()
                self._added = trio.Event()
                self._tell()
                await trio.sleep(self._seconds)
        finally:
            self._tell()

    def _tell(self) -> None:
        counts, self._counts = self._counts, Counter()
        for what, count in counts.items():
            self._say(what, count)

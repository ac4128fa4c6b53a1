"""Says seldom what happens often: a flood of clients must not become a flood of log lines."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import trio

_What = TypeVar("_What", bound=Hashable)


class Tally(Generic[_What]):
    """Counts events by what is said of them, of which there must be few kinds.

    `say(what, count, last)` is told of the first at once, and then no oftener than every `seconds` how many
    there were since, and of the last of them what it was about.
    """

    def __init__(self, seconds: float, say: Callable[[_What, int, str], None]) -> None:
        self._seconds = seconds
        self._say = say
        self._counts: dict[_What, tuple[int, str]] = {}
        self._added = trio.Event()

    def add(self, what: _What, about: str = "") -> None:
        """Count one, which is `about` somebody."""
        before, _ = self._counts.get(what, (0, ""))
        self._counts[what] = before + 1, about
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
        counts, self._counts = self._counts, {}
        for what, (count, last) in counts.items():
            self._say(what, count, last)

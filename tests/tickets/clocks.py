"""Two clocks that a test sets, in place of the machine's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gateway.tickets.book import Book
from gateway.tickets.clock import Clock

NOW = 1_900_000_000.0
"""On the wall."""


class Clocks:
    """What they say."""

    def __init__(self, wall: float = NOW) -> None:
        self.wall = wall
        self.steady = 5000.0

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.steady)

    def go_on(self, seconds: float) -> None:
        """Time passes."""
        self.wall += seconds
        self.steady += seconds


@contextmanager
def all_go_by(clocks: Clocks) -> Iterator[None]:
    """Have each book that is made meanwhile go by these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Book.__init__, "__defaults__", (clocks.clock(),))
        yield


def go_by(book: Book, clocks: Clocks) -> None:
    """Have a book go by these from now on."""
    book._clock = clocks.clock()
    book._apart = book._clock.apart

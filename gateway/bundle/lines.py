"""The lines of a bundle: which there are, which of them are in use, and which of them has which byte.

A new line is used from the next standstill on. A line that is gone keeps its place until then. So as long as
pieces go out, every byte has the line that it had before.

What was done over one line, the others need not know. So when lines are put in order again, we ask a line that
was there all the time, if there is one.
"""

from __future__ import annotations

from enum import Enum

from gateway.bundle import stripes
from gateway.bundle.line import Line


class State(Enum):
    """What a bundle does at this moment."""

    UP = "up"
    """Pieces go out."""
    SETTLING = "settling"
    """Lines have come or gone. No piece goes out, and we wait for those under way."""
    MENDING = "mending"
    """Nothing is under way but what a recovery asks, which goes on step by step."""
    DOWN = "down"
    """There is no line."""
    OVER = "over"
    """There will be none any more; every ask fails."""


class Lines:
    """The lines of one bundle."""

    def __init__(self, count: int, *, stripe_bytes: int, strong: bool) -> None:
        """`strong`: any line shows at once what another has done, so each has all bytes."""
        self.count = count
        """How many are wanted."""
        self.stripe_bytes = stripe_bytes
        self._strong = strong
        self.state = State.DOWN
        self.by_number: dict[int, Line] = {}
        """All that there are but the spare one, by their numbers."""
        self.in_use: list[Line] = []
        """The lines that pieces go to. A line that is gone stays among them until the next standstill."""
        self.spare: Line | None = None
        """A line for READs alone, while another one is stalled."""

    def __len__(self) -> int:
        """How many there are."""
        return len(self.by_number)

    @property
    def new(self) -> bool:
        """There are some that are not in use."""
        return len(self.in_use) < len(self)

    @property
    def staying(self) -> list[Line]:
        """Those in use that are still there."""
        return [line for line in self.in_use if line in self.by_number.values()]

    def use_all(self) -> None:
        """Use all that there are."""
        self.in_use = sorted(self.by_number.values(), key=lambda line: line.number)

    def use_staying(self) -> None:
        """Use the lines that were there all the time. If there is none, use any one line: nobody knows more
        than that.
        """
        if staying := self.staying:
            self.in_use = staying
        else:
            self.use_all()
            del self.in_use[1:]

    def usual(self, offset: int, nth: int | None) -> Line:
        """Give the nth line in use; None: the one that has a byte."""
        lines = self.in_use
        if len(lines) == 1:
            return lines[0]
        if nth is not None:
            return lines[nth % len(lines)]
        if self._strong:
            return min(lines, key=lambda line: line.under_way)
        return lines[stripes.nth(offset, self.stripe_bytes, len(lines))]

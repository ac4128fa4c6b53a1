"""Ranges of an upstream's export that one command has to itself for a while.

A WRITE that does not fill whole blocks of the upstream is read-modify-write here: between the read and the
write nobody else may write to those blocks, from whichever session. So all sessions of one upstream's
export share one `RangeLocks`, and where blocks are larger than a byte every command that writes takes its
range, in upstream offsets, widened to blocks.

Who comes later waits for whoever overlaps before it, granted or not: nobody is overtaken, so nobody starves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Held:
    """One claim on the bytes from `start` up to `end`."""

    start: int
    end: int
    granted: Callable[[], None] = field(repr=False)
    """Called when a claim that had to wait is granted; never inside `claim`."""
    waits_for: int = 0
    """How many earlier claims overlap this one."""


class RangeLocks:
    """The claims on one export. At most `MAX_IN_FLIGHT` for each session, so lists are short."""

    def __init__(self) -> None:
        self._claims: list[Held] = []
        self._to_tell: list[Held] = []
        self._telling = False

    def claim(self, held: Held) -> bool:
        """Claim a range; say whether it is granted at once. Otherwise `held.granted` is called later."""
        held.waits_for = sum(_overlap(held, other) for other in self._claims)
        self._claims.append(held)
        return not held.waits_for

    def release(self, held: Held) -> None:
        """Give a claim up, granted or not."""
        at = self._claims.index(held)
        del self._claims[at]
        for other in self._claims[at:]:
            if _overlap(held, other):
                other.waits_for -= 1
                if not other.waits_for:
                    self._to_tell.append(other)
        if self._telling:  # the loop below will come to it: no recursion from grant to grant
            return
        self._telling = True
        try:
            while self._to_tell:
                self._to_tell.pop(0).granted()
        finally:
            self._telling = False


def _overlap(one: Held, other: Held) -> bool:
    return one.start < other.end and other.start < one.end

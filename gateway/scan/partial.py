"""What has come of a structured reply that takes more than one chunk, and whether that is all."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from gateway.wire.constants import Errno
from gateway.wire.extents import Extents


@dataclass(slots=True)
class Partial:
    """What has come of a structured reply that takes more than one chunk."""

    covered: list[tuple[int, int]] = field(default_factory=list)
    """Of a READ: ranges (start, end) that have come, sorted, disjoint, neighbours merged."""
    contexts: set[int] = field(default_factory=set)
    """Of a BLOCK_STATUS: ids whose chunk has come."""
    status: list[tuple[int, Extents]] = field(default_factory=list)
    """The extents of those that the client selected, by its ids: it is told when all have come."""
    failed: bool = False
    """An error chunk has come."""
    error: Errno | None = None
    """The first, where the client can be told of one alone, at the end."""

    def cover(self, start: int, end: int) -> bool:
        """Add a range; say False if some of it has come before."""
        covered = self.covered
        at = bisect_left(covered, (start, end))
        before = covered[at - 1] if at else (-1, -1)
        behind = covered[at] if at < len(covered) else None
        if before[1] > start or (behind and behind[0] < end):
            return False
        first, last = at, at  # the ranges that the new one touches
        if before[1] == start:
            start, first = before[0], at - 1
        if behind and behind[0] == end:
            end, last = behind[1], at + 1
        covered[first:last] = [(start, end)]
        return True

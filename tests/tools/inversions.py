"""Values that come back after newer ones were read, as when a write is issued again. Pure.

Of a history without losses, with a stamp for each write, it is known when an order of all commands explains it
(Gibbons and Korach, "Testing Shared Memories", 1997): take each write with the READs that gave it; if the
first of them to end has done so before the last began, the value was surely there in between. No two values
were there at once, and none came and went while another was surely there.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import pairwise

Zones = dict[int, tuple[int, int]]
"""Of a block, for each stamp: when the first of its commands ended, and the last began."""


def inversions(blocks: Sequence[Zones]) -> list[str]:
    """Give the blocks in which no order of all commands explains what was read, and why."""
    found = []
    for number, zones in enumerate(blocks):
        held = sorted((end, begin, stamp) for stamp, (end, begin) in zones.items() if end < begin)
        for one, other in pairwise(held):
            if other[0] < one[1]:
                found.append(
                    f"block {number} had stamp {one[2]} until {one[1]}, and {other[2]} from {other[0]}"
                )
        starts = [end for end, _, _ in held]
        for stamp, (end, begin) in zones.items():
            at = bisect(starts, begin) - 1
            if begin <= end and at >= 0 and end < held[at][1]:
                found.append(
                    f"block {number} had stamp {held[at][2]} from {held[at][0]} to {held[at][1]}, "
                    f"and {stamp} in between, from {begin} to {end}"
                )
    return found

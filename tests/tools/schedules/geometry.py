"""Which parts of the disk a schedule is about.

The disk has 32 blocks of interest, in two windows: its beginning, and around its first mebibyte, where stripes
meet. They are numbered as if they lay side by side; everything else reads as zeros.
"""

from __future__ import annotations

from collections.abc import Iterator

from gateway.wire.limits import MIB
from tests.tools.stamps import BLOCK_BYTES

WINDOWS = ((0, 8192), (MIB - 4096, MIB + 4096))
"""From where to where: the parts of the disk that are remembered."""

BLOCKS = sum(end - start for start, end in WINDOWS) // BLOCK_BYTES
FIRST_BLOCKS = WINDOWS[0][1] // BLOCK_BYTES
"""Of the first window."""

SIZE = 2 * MIB

BORDER_BLOCK = FIRST_BLOCKS + (MIB - WINDOWS[1][0]) // BLOCK_BYTES
"""The first of the second stripe."""


def offset_of(block: int) -> int:
    """Give where on the disk a block lies."""
    at = block * BLOCK_BYTES
    return at if block < FIRST_BLOCKS else at - WINDOWS[0][1] + WINDOWS[1][0]


def length_of(start: int, count: int) -> int:
    """Give how many bytes a command of so many blocks has: it may reach over what lies between the windows."""
    return offset_of(start + count - 1) + BLOCK_BYTES - offset_of(start)


def parts(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Give of a range, for each window: where it begins in the range and in the store, and how long it is."""
    at = 0
    for start, end in WINDOWS:
        first, last = max(start, offset), min(end, offset + length)
        if first < last:
            yield first - offset, at + first - start, last - first
        at += end - start

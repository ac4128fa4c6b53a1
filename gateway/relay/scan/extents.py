"""Extents of block status, (length in bytes, status flags), as proto.md wants them told.

"Structured reply types", BLOCK_STATUS.
"""

from __future__ import annotations

Extents = list[tuple[int, int]]

STATUS_TOO_LONG = "the server gave a status of more than 32 bits"

LONGEST_EXTENT = 2**32 - 1
"""What a BLOCK_STATUS chunk without extended headers can say of one extent."""


def mended_extents(extents: Extents, length: int, reach: int, *, one: bool) -> Extents:
    """Give the extents of a reply as proto.md wants them; `length`: bytes asked for, `reach`: bytes from
    the request's offset to the end of the export, `one`: REQ_ONE was set.

    Empty ones are left out (Q-S4), what lies behind the export is cut (Q-S10), and so is what begins behind
    the range that was asked for: fewer extents are always legal.
    """
    mended: Extents = []
    at = 0
    for size, flags in extents:
        if not size:
            continue
        size = min(size, (length if one else reach) - at)
        mended.append((size, flags))
        at += size
        if one or at >= length:
            break
    return mended


def cut_front(extents: Extents, count: int) -> Extents:
    """Leave out the first `count` bytes."""
    left: Extents = []
    for size, flags in extents:
        gone = min(size, count)
        count -= gone
        if size > gone:
            left.append((size - gone, flags))
    return left


def narrowed(extents: Extents, alignment: int) -> Extents | None:
    """Give extents that 32 bits can say: the list ends with the first that is longer, cut to whole blocks of
    `alignment` bytes. None if a status has more than 32 bits: it cannot be told then.
    """
    narrow: Extents = []
    for size, flags in extents:
        if flags >> 32:
            return None
        if size > LONGEST_EXTENT:
            narrow.append((LONGEST_EXTENT - LONGEST_EXTENT % alignment, flags))
            break
        narrow.append((size, flags))
    return narrow

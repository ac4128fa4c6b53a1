"""Extents of block status, as many as a reply can have, without an object for each.

qemu tells up to 131,072 extents of each context in one reply. A gateway that made a tuple of each would do
nothing else for a tenth of a second. So lengths and flags stay what they are on the wire, arrays of 32 or 64
bits. What has to be known of all of them (their sum, whether one is empty) is computed from the arrays.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

NARROW, WIDE = "I", "Q"
"""Type codes of arrays of 32 and 64 bits."""

_SWAPPED = sys.byteorder == "little"

_FEW = 64
"""Up to so many extents are looked at one by one."""


class Extents(Sequence[tuple[int, int]]):
    """Extents in the order of the disk: (length in bytes, status flags). They never change."""

    __slots__ = ("_total", "flags", "lengths")

    def __init__(self, lengths: array[int], flags: array[int]) -> None:
        """Take both as arrays of the same type code and length."""
        self.lengths = lengths
        self.flags = flags
        self._total: int | None = None

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]]) -> Extents:
        """Make them of (length, status flags) pairs."""
        if isinstance(pairs, Extents):
            return pairs
        known = list(pairs)
        return cls(array(WIDE, [pair[0] for pair in known]), array(WIDE, [p[1] for p in known]))

    @classmethod
    def decoded(cls, body: bytes | memoryview, typecode: str, most: int) -> Extents:
        """Take the first `most` from the wire, where lengths and flags have the width of `typecode`. `body`
        holds whole extents.
        """
        words = array(typecode)
        words.frombytes(body[: most * 2 * words.itemsize])
        if _SWAPPED:
            words.byteswap()
        return cls(words[0::2], words[1::2])

    def encoded(self, typecode: str) -> memoryview:
        """Give them as they are on the wire. Raises OverflowError if a value does not fit into 32 bits."""
        lengths, flags = self.lengths, self.flags
        if typecode == NARROW and lengths.typecode == WIDE:
            lengths, flags = array(NARROW, lengths), array(NARROW, flags)
        # A narrow value becomes a wide one by zeros before it.
        step = 2 if lengths.typecode == typecode else 4
        words = array(lengths.typecode, bytes(len(lengths) * step * lengths.itemsize))
        words[step // 2 - 1 :: step] = lengths
        words[step - 1 :: step] = flags
        if _SWAPPED:
            words.byteswap()
        return memoryview(words).cast("B")

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, index: slice) -> Extents: ...
    def __getitem__(self, index: int | slice) -> tuple[int, int] | Extents:
        if isinstance(index, slice):
            return Extents(self.lengths[index], self.flags[index])
        return self.lengths[index], self.flags[index]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.lengths, self.flags, strict=True)

    def __repr__(self) -> str:
        return f"Extents({list(self)!r})"

    @property
    def total(self) -> int:
        """Give how many bytes they cover."""
        if self._total is None:
            self._total = sum(self.lengths)
        return self._total

    def first(self, count: int) -> Extents:
        """Give the extents of the first `count` bytes, or all if they cover no more."""
        if self.total <= count:
            return self
        whole, rest = _whole_within(self.lengths, count)
        cut = self[: whole + 1 if rest else whole]
        if rest:
            cut.lengths[-1] = rest
        return cut

    def begun_before(self, count: int) -> Extents:
        """Give the extents that begin in the first `count` bytes, each whole."""
        if not self or self.total - self.lengths[-1] < count:
            return self
        whole, _rest = _whole_within(self.lengths, count - 1)
        return self[: whole + 1]

    def behind(self, count: int) -> Extents:
        """Give the extents without the first `count` bytes."""
        if not count:
            return self
        whole, rest = _whole_within(self.lengths, count)
        left = self[whole:] if whole else Extents(self.lengths[:], self.flags)
        if rest and left:
            left.lengths[0] -= rest
        return left

    def and_then(self, others: Extents) -> Extents:
        """Give these and those that lie behind them, which have the same width. Where both meet with the same
        status, they become one extent.
        """
        if not self or not others or self.flags[-1] != others.flags[0]:
            return Extents(self.lengths + others.lengths, self.flags + others.flags)
        met = self.lengths[-1] + others.lengths[0]
        if self.lengths.typecode == NARROW and met >> 32:
            return Extents(self.lengths + others.lengths, self.flags + others.flags)
        joined = Extents(self.lengths + others.lengths[1:], self.flags + others.flags[1:])
        joined.lengths[len(self) - 1] = met
        return joined

    def without_empty(self) -> Extents:
        """Give them without the empty ones."""
        lengths = self.lengths
        # One look at the bytes is mostly enough, and ten times as quick.
        if bytes(lengths.itemsize) not in lengths.tobytes() or all(lengths):
            return self
        left = [number for number, length in enumerate(lengths) if length]
        return Extents(
            array(lengths.typecode, [lengths[number] for number in left]),
            array(lengths.typecode, [self.flags[number] for number in left]),
        )


def _whole_within(lengths: array[int], count: int) -> tuple[int, int]:
    """Give how many extents lie whole within the first `count` bytes, and how many of these bytes are left. We
    sum them up by halves, which is quicker than one by one.
    """
    low, high = 0, len(lengths)
    while high - low > _FEW:
        middle = (low + high) // 2
        covered = sum(lengths[low:middle])
        if covered <= count:
            count -= covered
            low = middle
        else:
            high = middle
    while low < high and lengths[low] <= count:
        count -= lengths[low]
        low += 1
    return low, count

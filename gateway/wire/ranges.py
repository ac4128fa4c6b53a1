"""Ranges of bytes, as (start, end): cut out of each other, merged, compared. The end is not part of a range."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

Range = tuple[int, int]
"""(start, end), in bytes; the end is not part of it."""


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Give the same bytes in as few ranges as can be, in order."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def without(ranges: Iterable[Range], start: int, end: int) -> list[Range]:
    """Give ranges without the bytes from `start` up to `end`."""
    left = []
    for first, last in ranges:
        if first < start:
            left.append((first, min(last, start)))
        if last > end:
            left.append((max(first, end), last))
    return [each for each in left if each[0] < each[1]]


def touched(ranges: Iterable[Range], start: int, end: int) -> bool:
    """Say whether any of the bytes from `start` up to `end` are in the ranges."""
    return any(max(first, start) < min(last, end) for first, last in ranges)


def fewer(ranges: Iterable[Range], most: int) -> list[Range]:
    """Give the same bytes in at most so many ranges. To get there, close the smallest gaps between them."""
    found = merged(ranges)
    if len(found) <= most:
        return found
    gaps = sorted((right[0] - left[1], at) for at, (left, right) in enumerate(pairwise(found)))
    closed = {at for _bytes, at in gaps[: len(found) - most]}
    left: list[Range] = [found[0]]
    for at, (start, end) in enumerate(found[1:]):
        if at in closed:
            left[-1] = left[-1][0], end
        else:
            left.append((start, end))
    return left

"""What two ways of the same differ by, from runs in pairs: one after the other, the other one first each time.
Pure.

A machine's speed changes by more than what is measured here, from minute to minute. Within a pair it is much
the same, so what counts is the difference within each pair, and of those the median. How far that may be off is
said by the order of the differences alone: of so many, the true median lies between the k-th from below and the
k-th from above at most times, whatever the differences look like.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from statistics import median
from typing import NamedTuple

CONFIDENCE = 0.95
"""In so many of a hundred runs the interval has the true median in it, at least."""

LEAST_PAIRS = 6
"""With fewer there is no such interval: five differences are all on one side by chance once in 16 times."""


class Interval(NamedTuple):
    """A median, and between what it lies."""

    lower: float
    middle: float
    upper: float


def interval_of(differences: Sequence[float]) -> Interval:
    """Give the median of all, and between which of them it lies. Raises `ValueError` if there are too few."""
    count = len(differences)
    if count < LEAST_PAIRS:
        raise ValueError(f"expected {LEAST_PAIRS} pairs or more, got {count}")
    inner, outside = 0, 2 * 0.5**count
    while outside + 2 * comb(count, inner + 1) * 0.5**count <= 1 - CONFIDENCE:
        inner += 1
        outside += 2 * comb(count, inner) * 0.5**count
    ordered = sorted(differences)
    return Interval(ordered[inner], median(ordered), ordered[-1 - inner])


def share(values: Sequence[float], part: float) -> float:
    """Give the value under which this part of all is (0.99: all but one of a hundred)."""
    return sorted(values)[min(int(part * len(values)), len(values) - 1)]

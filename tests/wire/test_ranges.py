"""Ranges are sets of bytes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.ranges import Range, fewer, merged, touched, without

AT = st.integers(0, 40)
RANGES = st.lists(
    st.tuples(AT, st.integers(1, 8)).map(lambda each: (each[0], sum(each))), max_size=8
)
CUT = st.tuples(AT, AT).map(sorted)


def bytes_of(ranges: list[Range]) -> set[int]:
    return {at for start, end in ranges for at in range(start, end)}


@given(RANGES)
def test_merged(ranges: list[Range]) -> None:
    found = merged(ranges)
    assert bytes_of(found) == bytes_of(ranges)
    assert all(one[1] < other[0] for one, other in pairwise(found))
    assert all(start < end for start, end in found)


@given(RANGES, CUT)
def test_without(ranges: list[Range], cut: list[int]) -> None:
    found = without(ranges, *cut)
    assert bytes_of(found) == bytes_of(ranges) - set(range(*cut))
    assert all(start < end for start, end in found)


@given(RANGES, CUT)
def test_touched(ranges: list[Range], cut: list[int]) -> None:
    assert touched(ranges, *cut) == bool(bytes_of(ranges) & set(range(*cut)))


@given(RANGES, st.integers(1, 8))
def test_fewer(ranges: list[Range], most: int) -> None:
    """All that was there, in no more than so many; and no set of so many ranges has less in it."""
    found = fewer(ranges, most)
    exact = merged(ranges)
    assert len(found) <= most
    assert bytes_of(found) >= bytes_of(ranges)
    assert all(one[1] < other[0] for one, other in pairwise(found))
    gaps = sorted(right[0] - left[1] for left, right in pairwise(exact))
    closed = sum(gaps[: max(0, len(exact) - most)])
    assert len(bytes_of(found)) == len(bytes_of(exact)) + closed


def test_fewer_closes_the_least_gaps() -> None:
    assert fewer([(0, 1), (9, 10), (11, 12), (20, 21)], 3) == [(0, 1), (9, 12), (20, 21)]

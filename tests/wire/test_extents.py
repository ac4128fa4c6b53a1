"""Extents, as many as there are, mean what a list of them means."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.extents import NARROW, WIDE, Extents

Pairs = list[tuple[int, int]]

pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), max_size=200)


def states(extents: Pairs | Extents) -> list[int]:
    """The status of each byte."""
    return [flags for length, flags in extents for _ in range(length)]


@pytest.mark.parametrize("typecode", [NARROW, WIDE])
@given(pairs, st.integers(0, 50))
def test_decoded_and_encoded(typecode: str, known: Pairs, most: int) -> None:
    form = ">II" if typecode == NARROW else ">QQ"
    body = b"".join(struct.pack(form, *pair) for pair in known)
    extents = Extents.decoded(body, typecode, most)
    assert list(extents) == known[:most]
    assert extents.encoded(typecode) == body[: most * struct.calcsize(form)]
    other = ">QQ" if typecode == NARROW else ">II"
    told = b"".join(struct.pack(other, *pair) for pair in known[:most])
    assert extents.encoded(WIDE if typecode == NARROW else NARROW) == told


@given(pairs, st.integers(0, 2000), st.booleans())
def test_ranges(known: Pairs, count: int, narrow: bool) -> None:
    extents = Extents.of(known)
    if narrow:
        extents = Extents.decoded(extents.encoded(NARROW), NARROW, len(known))
    whole = states(known)
    assert extents.total == len(whole)
    assert states(extents.first(count)) == whole[:count]
    assert states(extents.behind(count)) == whole[count:]
    assert list(extents.without_empty()) == [pair for pair in known if pair[0]]
    full = extents.without_empty()
    assert full.lengths.typecode == extents.lengths.typecode
    begun = full.begun_before(max(1, count))
    assert list(begun) == list(full)[: len(begun)]
    assert sum(length for length, _ in list(begun)[:-1]) < max(1, count)
    assert begun.total >= min(count, len(whole))
    assert list(extents) == known  # which nothing has changed


@given(pairs, pairs)
def test_those_that_lie_behind(known: Pairs, others: Pairs) -> None:
    joined = Extents.of(known).and_then(Extents.of(others))
    assert states(joined) == states(known) + states(others)
    if known and others:
        assert len(joined) == len(known) + len(others) - (known[-1][1] == others[0][1])


def test_what_meets_stays_within_32_bits() -> None:
    long = Extents.decoded(struct.pack(">II", 2**31, 1), NARROW, 1)
    assert list(long.and_then(long)) == [(2**31, 1), (2**31, 1)]
    wide = Extents.of([(2**31, 1)])
    assert list(wide.and_then(wide)) == [(2**32, 1)]

"""Which line has which byte."""

from __future__ import annotations

import pytest

from gateway.bundle.stripes import cut, nth, stripes


@pytest.mark.parametrize(
    ("start", "end", "parts"),
    [
        (0, 1, [(0, 1)]),
        (0, 10, [(0, 10)]),
        (9, 11, [(9, 1), (10, 1)]),
        (10, 20, [(10, 10)]),
        (5, 35, [(5, 5), (10, 10), (20, 10), (30, 5)]),
        (7, 7, []),
    ],
)
def test_cut(start: int, end: int, parts: list[tuple[int, int]]) -> None:
    assert list(cut(start, end, 10)) == parts


@pytest.mark.parametrize("start", range(21))
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 16, 30])
def test_parts_are_the_range_and_each_has_one_line(start: int, length: int) -> None:
    parts = list(cut(start, start + length, 8))
    assert len(parts) == stripes(start, start + length, 8)
    assert [at for offset, size in parts for at in range(offset, offset + size)] == list(
        range(start, start + length)
    )
    for offset, size in parts:
        assert len({nth(at, 8, 3) for at in range(offset, offset + size)}) == 1


def test_lines_take_turns() -> None:
    assert [nth(at, 10, 3) for at in (0, 9, 10, 20, 29, 30, 40)] == [0, 0, 1, 2, 2, 0, 1]


def test_one_line_has_everything() -> None:
    assert {nth(at, 10, 1) for at in range(100)} == {0}

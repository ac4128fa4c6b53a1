"""What a server says becomes lines, however it is cut, and is never more than is meant to be told."""

from __future__ import annotations

import os
from itertools import pairwise

import trio
from hypothesis import given
from hypothesis import strategies as st

from gateway.net.hearing import MAX_LINE_BYTES, MOST_LINES_A_SECOND, Heard, hear_out


def heard(pieces: list[bytes], clock: list[float] | None = None) -> list[str]:
    told: list[str] = []
    times = iter(clock or [])
    it = Heard(told.append, lambda: next(times, 0.0))
    for piece in [*(each for each in pieces if each), b""]:
        it.hear(piece)
    return told


@given(st.lists(st.text("ab\u00fc ", max_size=9), max_size=20), st.lists(st.integers(0, 200)))
def test_lines_are_the_same_however_they_are_cut(lines: list[str], cuts: list[int]) -> None:
    data = "\n".join(lines).encode()
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = [data[a:b] for a, b in pairwise(edges)]
    assert heard(pieces) == [line for line in lines if line]  # empty ones say nothing


def test_what_is_too_much_is_left_out_and_counted() -> None:
    many = b"x\n" * (MOST_LINES_A_SECOND + 7)
    told = heard([many, b"y\n"], [1.0, 2.0])
    assert told == ["x"] * MOST_LINES_A_SECOND + ["(7 lines of it are left out)", "y"]
    assert heard([many], [1.0])[-1] == "(7 lines of it are left out)"


def test_a_line_without_an_end_comes_in_pieces() -> None:
    told = heard([b"z" * (2 * MAX_LINE_BYTES + 5)])
    assert [len(each) for each in told] == [MAX_LINE_BYTES, MAX_LINE_BYTES, 5]


async def test_a_pipe_is_heard_to_its_end() -> None:
    ours, theirs = os.pipe()
    told: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear_out, ours, told.append)
        os.write(theirs, b"a line\nand \xff")
        os.close(theirs)
    assert told == ["a line", "and \ufffd"]

"""A connection is left before a server ends it, and LIST is tried while there is room for that."""

from __future__ import annotations

import pytest

from gateway.upstream.option_room import MOST_FOR_ONE, MOST_OPTIONS, OptionRoom


def looked_at(names: int | None) -> int:
    """Give how many exports there is room for, each of which takes all the options that one may, where LIST
    tells so many names (None: it is not asked).
    """
    room, asked, exports = OptionRoom(), 1, 0
    while room.has(asked):
        if names is not None and room.is_for_list(asked):
            asked += 1
            room.grow(names)
            assert room.has(asked)
        asked += MOST_FOR_ONE
        exports += 1
    borne = MOST_OPTIONS * (1 + (names if names is not None and names > 1 else 0))
    assert asked < borne  # and ABORT
    return exports


@pytest.mark.parametrize("names", [None, 0, 1])
def test_without_a_list_there_is_no_more(names: int | None) -> None:
    assert looked_at(names) == 7


@pytest.mark.parametrize("names", [2, 3, 1000])
def test_all_that_a_list_tells_may_be_looked_at(names: int) -> None:
    assert looked_at(names) > names


def test_a_list_is_asked_once() -> None:
    room = OptionRoom()
    asked = [number for number in range(MOST_OPTIONS) if room.is_for_list(number)]
    assert asked  # any of these is the moment
    room.grow(1000)
    assert not any(room.is_for_list(number) for number in range(MOST_OPTIONS * 1000))

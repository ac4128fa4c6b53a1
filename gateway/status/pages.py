"""What goes into one answer of many, and in which order. Whoever wants the rest asks again, with the last that
he has got; meanwhile some may have gone, that one among them, and others may have come. So each has a place
that does not depend on who else is there, and a page has those that come next: what is there from the first
page to the last is shown once.

Clients choose names of up to 4,096 bytes, and JSON writes six letters for some of them. So a page is bounded by
its bytes as well as by its number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, TypeVar

import trio

from gateway.admin.control import MAX_ANSWER_BYTES
from gateway.admin.pieces import InPieces

PAGE = 200
"""Sessions or exports in one answer: some hundred bytes each, which become JSON one by one (`InPieces`)."""

PAGE_BYTES = MAX_ANSWER_BYTES // 2
"""How long the JSON of a page may be before its last one: that has some 30 KiB at most."""

PLACED_AT_A_TIME = 100
"""How many are put in order before the others have their turn: about a fifth of a millisecond."""

_Each = TypeVar("_Each")


def in_slices(all_: Sequence[_Each], size: int) -> Iterator[Sequence[_Each]]:
    """Give a few at a time."""
    for start in range(0, len(all_), size):
        yield all_[start : start + size]


async def next_ones(
    all_: Iterable[_Each], place: Callable[[_Each], Any], after: Any, most: int
) -> list[_Each]:
    """Give those that have the next places after one (None: the first places), so many at most, in order."""
    found: list[tuple[Any, _Each]] = []
    for some in in_slices(list(all_), PLACED_AT_A_TIME):
        placed = [(place(each), each) for each in some]
        new = [each for each in placed if after is None or each[0] > after]
        if len(found) == most:
            last = found[-1][0]
            new = [each for each in new if each[0] < last]
        if new:
            new.sort(key=itemgetter(0))
            # Two runs in order: to sort them is to merge them.
            found = sorted([*found, *new], key=itemgetter(0))[:most]
        await trio.lowlevel.checkpoint()
    return [each for _place, each in found]


class AnswerPage:
    """One answer, as it fills, with no more than `most` in it."""

    def __init__(self, most: int = PAGE) -> None:
        self._most = most
        self.shown = InPieces()
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        """Nothing more may go into it."""
        return len(self.shown) >= self._most or self._bytes >= PAGE_BYTES

    def add(self, shown: dict[str, Any]) -> None:
        """Put one more into it, while it is not full."""
        self._bytes += self.shown.add(shown)

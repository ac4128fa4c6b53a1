"""What the supervisor has lent to which worker of a number that holds for all of them together. Pure.

A policy that counts all who pass its place (`gateway.policy.Headcount`) would be as many times as generous as
there are workers, if each counted its own. So before a session joins it, its worker borrows one of each number
that the session counts in, and gives it back when the session has ended. Never is more lent than may be,
whatever the order in which workers ask: there is one book. All that a session needs is lent, or nothing of it.

That is asked once for each session that is opened, and never for a request. A worker that has died owes
nothing: its sessions were cut with it.

How many may be is said by who asks, for the configuration in force is known there; after a reload with a
smaller number there may be more lent than may be, and nobody loses what he has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Key = str
"""Stands for a place in the configuration, and what is counted there (`borrower.key_of`)."""


@dataclass(frozen=True, slots=True)
class NoneLeft:
    """Why nothing is lent: of the wants, which one, and how many are lent of it."""

    want: int
    lent: int


class LendingBook:
    """The book. What nobody has borrowed has no entry, so there are no more than sessions count in."""

    def __init__(self) -> None:
        self._lent: Counter[Key] = Counter()
        self._owed: dict[int, Counter[Key]] = {}

    def __len__(self) -> int:
        return len(self._lent)

    def lent(self, key: Key) -> int:
        """Give how many are lent."""
        return self._lent[key]

    def borrow(self, worker: int, wants: Sequence[tuple[Key, int]]) -> NoneLeft | None:
        """Lend a worker one of each key, of which there may be so many; or say why not, and lend nothing."""
        for number, (key, most) in enumerate(wants):
            if self._lent[key] >= most:
                return NoneLeft(number, self._lent[key])
        owed = self._owed.setdefault(worker, Counter())
        for key, _most in wants:
            self._lent[key] += 1
            owed[key] += 1
        return None

    def give_back(self, worker: int, keys: Iterable[Key]) -> None:
        """Take one of each key back. What a worker does not owe is passed over: it was forgotten."""
        owed = self._owed.get(worker, Counter())
        for key in keys:
            if owed[key]:
                self._take(owed, key, 1)
            else:
                del owed[key]

    def forget(self, worker: int) -> None:
        """A worker has died, and owes nothing any more."""
        owed = self._owed.pop(worker, Counter())
        for key, number in list(owed.items()):
            self._take(owed, key, number)

    def owed(self) -> Iterator[tuple[int, Key, int]]:
        """Give what each worker owes."""
        for worker, owed in self._owed.items():
            for key, number in owed.items():
                yield worker, key, number

    def _take(self, owed: Counter[Key], key: Key, number: int) -> None:
        for counts in (owed, self._lent):
            counts[key] -= number
            if not counts[key]:
                del counts[key]

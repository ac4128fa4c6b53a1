"""Sessions, requests, bytes and errors, by export.

Clients may ask for any name, and with patterns any of them may be an export. So only the first `MOST_EXPORTS`
names that are used have numbers of their own, until the gateway ends; all others are counted together. A name
that has numbers of its own never loses them: what was counted once stays where it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MOST_EXPORTS = 1000
"""Exports with numbers of their own: some hundred bytes each, and more than anybody looks at."""

OTHER = "other"
"""What all other exports are called together. An export may have this name, too; then it is one of them."""


@dataclass
class Totals:
    """What was done. `errors` and `refused` are counted by command and error."""

    sessions: int = 0
    """How many have begun."""
    ended: Counter[str] = field(default_factory=Counter)
    """How many have ended, by the cause."""
    requests: Counter[str] = field(default_factory=Counter)
    """How many the clients have made, by command; what was refused is among them."""
    bytes: Counter[str] = field(default_factory=Counter)
    """How many bytes those were about that were not refused."""
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many of them have failed."""
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many of these without the server."""

    def add(self, other: Totals) -> None:
        """Add what others have done."""
        self.sessions += other.sessions
        self.ended.update(other.ended)
        self.requests.update(other.requests)
        self.bytes.update(other.bytes)
        self.errors.update(other.errors)
        self.refused.update(other.refused)

    def as_said(self) -> dict[str, object]:
        """Give it in names and numbers."""
        return {
            "sessions": self.sessions,
            "ended": dict(self.ended),
            "requests": dict(self.requests),
            "bytes": dict(self.bytes),
            "errors": in_words(self.errors),
            "refused": in_words(self.refused),
        }


def in_words(errors: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Give errors by command and error in one word each: "READ EIO"."""
    return {" ".join(what): times for what, times in errors.items()}


def together(several: Iterable[Totals]) -> Totals:
    """Give the sum."""
    sum_ = Totals()
    for each in several:
        sum_.add(each)
    return sum_


class Counts:
    """The totals of all exports."""

    def __init__(self, most_exports: int = MOST_EXPORTS) -> None:
        self._most_exports = most_exports
        self._by_export: dict[str, Totals] = {}
        self._others = Totals()
        self._all = Totals()

    def add(self, export: str, done: Totals) -> None:
        """Add what was done with an export."""
        self.of(export).add(done)
        self._all.add(done)

    def all(self) -> Totals:
        """Give the totals of all exports, as they are now."""
        return together([self._all])

    def of(self, export: str) -> Totals:
        """Give the totals of an export."""
        found = self._by_export.get(export)
        if found is not None:
            return found
        if len(self._by_export) >= self._most_exports or export == OTHER:
            return self._others
        made = self._by_export[export] = Totals()
        return made

    def by_export(self) -> dict[str, Totals]:
        """Give the totals of all exports that were used."""
        others = {OTHER: self._others} if self._others.sessions else {}
        return {**self._by_export, **others}

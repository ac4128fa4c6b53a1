"""Sessions, requests, bytes and errors, by export.

Clients may ask for any name, and with patterns any of them may be an export. So only the first `MOST_EXPORTS`
names that are used have numbers of their own, until the gateway ends; all others are counted together. A name
that has numbers of its own never loses them: what was counted once stays where it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.counts.seconds import ByCommand, as_said

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
    refused_by: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """How many of these by a policy: by its name, and what it has refused."""
    losses: int = 0
    """How often something may have been lost that a session relies on, counted for each of them."""
    replayed_bytes: int = 0
    """How many bytes were written once more after a loss, counted with each export of the disk. Sessions have
    no part in it, so `add` leaves it out."""
    seconds: ByCommand = field(default_factory=ByCommand)
    """How long some of them took. Sessions add to it as they go on (`gateway.scan.timing`), so `add` does
    not.
    """

    def add(self, other: Totals) -> None:
        """Add what others have done."""
        self.sessions += other.sessions
        self.ended.update(other.ended)
        self.requests.update(other.requests)
        self.bytes.update(other.bytes)
        self.errors.update(other.errors)
        self.refused.update(other.refused)
        self.refused_by.update(other.refused_by)
        self.losses += other.losses

    def as_said(self) -> dict[str, object]:
        """Give it in names and numbers."""
        return {
            "sessions": self.sessions,
            "ended": dict(self.ended),
            "requests": dict(self.requests),
            "bytes": dict(self.bytes),
            "errors": in_words(self.errors),
            "refused": in_words(self.refused),
            "refused_by": _by_policy(self.refused_by),
            "losses": self.losses,
            "replayed_bytes": self.replayed_bytes,
            "seconds": as_said(self.seconds),
        }


def in_words(errors: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Give errors by command and error in one word each: "READ EIO"."""
    return {" ".join(what): times for what, times in errors.items()}


def _by_policy(refused: Mapping[tuple[str, str, str], int]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (policy, *what), times in refused.items():
        found.setdefault(policy, {})[" ".join(what)] = times
    return found


def together(several: Iterable[Totals]) -> Totals:
    """Give the sum."""
    sum_ = Totals()
    for each in several:
        sum_.add(each)
    return sum_


class Became(StrEnum):
    """What becomes of a client that has connected."""

    SESSION = "session"
    """It has opened an export."""
    LEFT = "left"
    """It has gone before that: it was refused, has only asked, or only looked whether somebody listens."""
    HUNG_UP_ON = "hung-up-on"
    """What it sent was no NBD, or there was no other answer."""
    TLS_FAILED = "tls-failed"
    """The same because of TLS, its own or that with the upstream."""
    TOO_SLOW = "too-slow"
    """It took longer than it may."""
    INTRODUCED_WRONGLY = "not-introduced"
    """The load balancer said nothing that can be understood."""
    HANDED_OVER = "handed-over"
    """Another process of the gateway serves its disk, and has it now."""
    TURNED_AWAY = "turned-away"
    """As many were there as may be."""


class Counts:
    """The totals of all exports."""

    def __init__(self, most_exports: int = MOST_EXPORTS) -> None:
        self._most_exports = most_exports
        self._by_export: dict[str, Totals] = {}
        self._others = Totals()
        self._all = Totals()
        self.handshakes: Counter[tuple[str, str]] = Counter()
        """How many clients have come to a listener (its URI), by what became of each: see `Became`."""
        self.ended: Counter[tuple[str, str]] = Counter()
        """How many sessions have ended, by the URI of the listener that they came by, and the cause."""
        self.tls: Counter[tuple[str, str]] = Counter()
        """How many of them have gone over to TLS, by listener and version."""
        self.upstream_seconds: dict[str, ByCommand] = {}
        """How long upstreams had the requests that were timed, by name. An upstream has its name from an
        operator, so there are not many."""

    def all(self) -> Totals:
        """Give the totals of all exports, as they are now."""
        totals = together([self._all])
        totals.seconds = self._all.seconds
        totals.replayed_bytes = self._all.replayed_bytes
        return totals

    def times(self, export: str, upstream: str) -> tuple[tuple[ByCommand, ByCommand], ByCommand]:
        """Give where a session adds how long its requests take, and how long the upstream has them."""
        whole = self._all.seconds, self.of(export).seconds
        return whole, self.upstream_seconds.setdefault(upstream, ByCommand())

    def add(self, export: str, done: Totals) -> None:
        """Add what was done with an export."""
        self.of(export).add(done)
        self._all.add(done)

    def add_replayed(self, exports: Collection[str], size: int) -> None:
        """Add bytes that were written once more for the clients of these exports; of none, if all have gone."""
        self._all.replayed_bytes += size
        for totals in {id(found): found for found in map(self.of, exports or (OTHER,))}.values():
            totals.replayed_bytes += size

    def of(self, export: str) -> Totals:
        """Give the totals of an export."""
        found = self._by_export.get(export)
        if found is not None:
            return found
        if len(self._by_export) >= self._most_exports or export == OTHER:
            return self._others
        made = self._by_export[export] = Totals()
        return made

    def name_of(self, export: str) -> str:
        """Give the name under which an export is counted that was used."""
        return export if export in self._by_export else OTHER

    def by_export(self) -> dict[str, Totals]:
        """Give the totals of all exports that were used."""
        others = {OTHER: self._others} if self._others != Totals() else {}
        return {**self._by_export, **others}

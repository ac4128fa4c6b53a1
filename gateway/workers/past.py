"""What workers have done that have died: no number that only grows may get smaller because a worker is started
anew. Pure.

Whoever counts over the gateway's lifetime, as Prometheus does, takes a number that has become smaller for one
that began anew, and counts all of it again. So what each worker has last said is kept, and when it has died, it
is added to what is said from then on: what it has done, not what it was doing. What it did since it was last
asked is lost with it; so nothing is told that was not told before.

Listeners and upstreams that no worker has any more are left out: a reload has taken them away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gateway.workers import merged

Shown = merged.Shown

IS_DOING: Shown = {
    "draining": False,
    "older": None,
    "fleet": None,
    "sessions_end_in_seconds": None,
    "waits_for_sessions": [],
    "sessions": 0,
    "negotiations": 0,
    "stuck_sessions": 0,
    "stuck": [],
    "paused": [],
    "pauses": [],
    "switched": {},
    "disks_with_losses_untold": 0,
    "certificates": [],
    "expiries": [],
}
"""Of `status`: what is true of a worker that is there, and what of one that is none."""

A_LISTENER_IS: Shown = {"clients": 0, "drained": False, "sessions_end_in_seconds": None}
AN_UPSTREAM_IS: Shown = {
    "state": "unknown",
    "why": None,
    "sessions": 0,
    "connections": 0,
    "ready": 0,
}


class Past:
    """What each worker has last said, by its number, and what those have done that have died."""

    def __init__(self) -> None:
        self._last: dict[int, Mapping[str, Any]] = {}
        self._gone: Shown | None = None
        self._last_counts: dict[int, Sequence[Mapping[str, Any]]] = {}
        self._gone_counts: dict[str, Shown] = {}

    def died(self, worker: int) -> None:
        """A worker has died."""
        last = self._last.pop(worker, None)
        if last is not None:
            ended = {**last, **IS_DOING}
            ended["listeners"] = [{**each, **A_LISTENER_IS} for each in last["listeners"]]
            ended["came_by"] = [{**each, "sessions": {}} for each in last["came_by"]]
            ended["upstreams"] = [{**each, **AN_UPSTREAM_IS} for each in last["upstreams"]]
            self._gone = merged.status_of([ended] if self._gone is None else [self._gone, ended])
        rows = [_done_of(each) for each in self._last_counts.pop(worker, ())]
        self._gone_counts = _by_export([*self._gone_counts.values(), *rows])

    def status(self, said: Mapping[int, Mapping[str, Any]]) -> Shown:
        """Put `status` together, of what workers have said now, one at least, and of what those said before
        that are there and say nothing.
        """
        self._last |= said
        live = [*self._last.values()]
        if self._gone is None:
            return merged.status_of(live)
        gone = dict(self._gone)
        for key, name in (("listeners", "listener"), ("upstreams", "upstream")):
            there = {each[name] for one in live for each in one[key]}
            gone[key] = [each for each in gone[key] if each[name] in there]
        return merged.status_of([*live, gone])

    def counts(self, said: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[Shown]:
        """Put together what was done with each export."""
        self._last_counts |= said
        rows = [each for one in self._last_counts.values() for each in one]
        return [*_by_export([*rows, *self._gone_counts.values()]).values()]


def _done_of(row: Mapping[str, Any]) -> Shown:
    """Give what was done with an export, and nothing of what was being done."""
    nothing: Shown = {name: {} if isinstance(each, Mapping) else 0 for name, each in row.items()}
    return {**nothing, "export": row["export"], "totals": row["totals"]}


def _by_export(rows: Iterable[Mapping[str, Any]]) -> dict[str, Shown]:
    found: dict[str, Shown] = {}
    for row in rows:
        before = found.get(row["export"])
        if before is None:
            found[row["export"]] = dict(row)
        else:
            numbers = [{**each, "export": 0} for each in (before, row)]
            found[row["export"]] = {**merged.added(numbers), "export": row["export"]}
    return found

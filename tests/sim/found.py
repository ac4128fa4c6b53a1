"""What the runs are asked for, and docs/scale.md's tables of what they have found. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.fleet.lease import RENEWALS
from gateway.fleet.member import AT_ONCE
from tests.sim.engine import Costs, Step
from tests.sim.fleet import Asked, Seen

COSTS = Path(__file__).parent / "costs.json"
DISKS_OF_ONE = 100
"""So many disks a gateway has in these runs: a thousand have 100,000."""
RACK = 40
"""So many gateways stand in one rack."""
UNBOUNDED = 1_000_000
FLEETS = (1, 3, 10, 30, 100, 300, 1000)


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the page: its columns, what is run for each row, and what the row says of it."""

    head: tuple[str, ...]
    runs: tuple[Asked, ...]
    row: Callable[[Asked, Seen], tuple[str, ...]]


def costs_of(text: str) -> Costs:
    """Read what `python -m tests.sim.measure` wrote."""
    said = json.loads(text)
    steps = {name: Step(**said[name]) for name in ("renewal", "read", "write")}
    return Costs(**steps, key_removed=said["key_removed"], notice=said["notice"])


def _homeless(seen: Seen) -> tuple[str, ...]:
    if not seen.homeless:
        return ("", "", "")
    last = f"{seen.of(1):.1f}" if not seen.still_homeless else "not within 300"
    return (f"{seen.of(0.5):.1f}", f"{seen.of(0.99):.1f}", last)


def _renewals(asked: Asked, seen: Seen) -> tuple[str, ...]:
    a_second = asked.gateways * RENEWALS / asked.lease_seconds
    waits = f"{1000 * seen.longest_renewal:.0f} ms"
    return (f"{asked.gateways:,}", f"{a_second:.1f}", f"{100 * seen.busy:.1f} %", waits)


def _rack(asked: Asked, seen: Seen) -> tuple[str, ...]:
    gone = len(seen.homeless) + seen.still_homeless
    return (f"{asked.gateways:,}", f"{asked.lost}", f"{gone:,}", *_homeless(seen))


def _bounded(asked: Asked, seen: Seen) -> tuple[str, ...]:
    at_once = "as many as come" if asked.at_once == UNBOUNDED else str(asked.at_once)
    waits = f"{seen.longest_renewal:.1f} s"
    etcd = "as measured" if asked.slower == 1 else f"{asked.slower:g} times slower"
    stopped, lost = f"{seen.had_to_stop:,}", f"{seen.lost_their_lease:,}"
    return (etcd, at_once, waits, stopped, lost, *_homeless(seen))


def _sharded(asked: Asked, seen: Seen) -> tuple[str, ...]:
    return (str(asked.etcds), f"{seen.longest_renewal:.1f} s", *_homeless(seen))


def _fleet(gateways: int, lost: int, **other: int) -> Asked:
    at_once = other.pop("at_once", AT_ONCE)
    return Asked(gateways, DISKS_OF_ONE * gateways, lost, at_once, **other)


_WITHIN = ("half have a home after s", "99 % after s", "the last after s")
TABLES = {
    "renewals": Table(
        ("gateways", "renewals a second", "of etcd's time", "the longest renewal"),
        tuple(_fleet(gateways, 0) for gateways in FLEETS),
        _renewals,
    ),
    "rack": Table(
        ("gateways", "of these lost", "disks lost", *_WITHIN),
        tuple(_fleet(gateways, min(RACK, max(1, gateways // 3))) for gateways in FLEETS[1:]),
        _rack,
    ),
    "bounded": Table(
        (
            "etcd",
            "disks a gateway takes at once",
            "the longest renewal",
            "others had to stop",
            "others lost their lease",
            *_WITHIN,
        ),
        tuple(
            _fleet(1000, 500, at_once=at_once, slower=slower)
            for slower in (1, 4)
            for at_once in (1, AT_ONCE, 16, 64, UNBOUNDED)
        ),
        _bounded,
    ),
    "sharded": Table(
        ("etcds", "the longest renewal", *_WITHIN),
        tuple(_fleet(1000, 500, etcds=etcds) for etcds in (1, 2, 4, 8)),
        _sharded,
    ),
}


def table(rows: Iterable[Sequence[str]], head: Sequence[str]) -> str:
    """Give a table of Markdown."""
    rule = ["---:" for _ in head]
    return "\n".join("| " + " | ".join(each) + " |" for each in (head, rule, *rows))


def costs_table(costs: Costs) -> str:
    """Give what was measured."""

    def row(name: str, step: Step) -> tuple[str, ...]:
        return (name, f"{1000 * step.alone:.1f} ms", f"{1 / step.busy:,.0f}")

    steps = (("renewal", costs.renewal), ("read", costs.read), ("transaction", costs.write))
    return table([row(*each) for each in steps], ("", "alone", "a second, at most"))

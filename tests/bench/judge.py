"""From samples to verdicts; pure.

A sample of None is a measurement that failed. One failure of the judged contestant spoils its row: a
gateway that breaks once in five rounds is not fast. A peer that fails once is taken at the median of
its other rounds; one that never succeeds leaves the floors that name it not judged, which is not
success either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from statistics import median
from types import MappingProxyType

from tests.bench.rows import PURE, AtMost, AtMostPerRequest, Bound, Row

Samples = Mapping[str, Sequence[float | None]]
Medians = Mapping[str, float | None]


class Verdict(StrEnum):
    """What the table's last column says."""

    GOAL_REACHED = "goal reached"
    REACHED = "reached"
    NOT_REACHED = "NOT REACHED"
    NOT_JUDGED = "not judged"


PASSED = frozenset({Verdict.GOAL_REACHED, Verdict.REACHED})


def medians(row: Row, samples: Samples) -> dict[str, float | None]:
    """The median of each contestant that was tried; None for one that has none."""
    return {name: _median(row, name, values) for name, values in samples.items()}


def _median(row: Row, name: str, values: Sequence[float | None]) -> float | None:
    good = [value for value in values if value is not None]
    if not good or (name == row.judged and len(good) < len(values)):
        return None
    return median(good)


def ratio(subject: float | None, peer: float | None) -> float | None:
    """How many times as fast, or None if that cannot be said."""
    if subject is None or not peer:
        return None
    return subject / peer


NO_COSTS: Medians = MappingProxyType({})


def holds(bound: Bound, judged: str, found: Medians, costs: Medians = NO_COSTS) -> bool | None:
    """Whether a contestant keeps a bound; None if what it compares with was not measured. `costs` are processor
    times per request.
    """
    subject = found.get(judged)
    if subject is None:
        return False if judged in found else None
    if isinstance(bound, AtMost):
        return subject <= bound.amount
    if isinstance(bound, AtMostPerRequest):
        times = ratio(costs.get(judged), costs.get(bound.peer))
        return None if times is None else times <= bound.factor
    times = ratio(subject, found.get(bound.peer))
    return None if times is None else times >= bound.factor


def verdict(row: Row, found: Medians, costs: Medians = NO_COSTS) -> Verdict:
    """One word about a row."""
    return _verdict(row.judged, row.floors, row.goals, found, costs)


def verdict_of_pure(row: Row, found: Medians, costs: Medians = NO_COSTS) -> Verdict | None:
    """One word about the gateway without its pump; None if nothing is asked of it, or it was not there."""
    if not row.pure or PURE not in found:
        return None
    return _verdict(PURE, row.pure, row.goals, found, costs)


def spread(values: Sequence[float | None]) -> float | None:
    """How far the samples are apart, as a share of their median."""
    good = [value for value in values if value is not None]
    return (max(good) - min(good)) / median(good) if len(good) > 1 and median(good) else None


def _verdict(
    judged: str, floored: Sequence[Bound], aimed: Sequence[Bound], found: Medians, costs: Medians
) -> Verdict:
    floors = [holds(floor, judged, found, costs) for floor in floored]
    if False in floors:
        return Verdict.NOT_REACHED
    if None in floors:
        return Verdict.NOT_JUDGED
    if all(holds(goal, judged, found, costs) for goal in aimed):
        return Verdict.GOAL_REACHED
    return Verdict.REACHED

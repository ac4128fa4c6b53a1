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

from tests.bench.rows import AtMost, Bound, Row

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


def holds(bound: Bound, row: Row, found: Medians) -> bool | None:
    """Whether a bound is kept; None if what it compares with was not measured."""
    subject = found.get(row.judged)
    if subject is None:
        return False if row.judged in found else None
    if isinstance(bound, AtMost):
        return subject <= bound.amount
    times = ratio(subject, found.get(bound.peer))
    return None if times is None else times >= bound.factor


def verdict(row: Row, found: Medians) -> Verdict:
    """One word about a row."""
    floors = [holds(floor, row, found) for floor in row.floors]
    if False in floors:
        return Verdict.NOT_REACHED
    if None in floors:
        return Verdict.NOT_JUDGED
    if all(holds(goal, row, found) for goal in row.goals):
        return Verdict.GOAL_REACHED
    return Verdict.REACHED

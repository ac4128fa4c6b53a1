"""Rounds: every contestant in turn, again and again, so that a busy minute hits all of them alike."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.bench.measure import measure
from tests.bench.peers import Stage
from tests.bench.processes import Broken
from tests.bench.rows import Row


@dataclass
class Outcome:
    """What was measured of one row: samples in its unit, None where one failed, and why."""

    row: Row
    samples: dict[str, list[float | None]]
    problems: list[str] = field(default_factory=list)


def run_row(
    row: Row, stage: Stage, *, peers: Sequence[str], rounds: int, seconds: float
) -> Outcome:
    """Measures those of a row's contestants that were asked for."""
    names = [name for name in row.peers if name.partition("+")[0] in peers]
    outcome = Outcome(row, {name: [] for name in names})
    for number in range(rounds):
        # Each round begins with another one, so that nobody always comes after the same neighbour.
        shift = number % len(names) if names else 0
        for name in names[shift:] + names[:shift]:
            outcome.samples[name].append(_sample(outcome, name, stage, seconds))
    return outcome


def _sample(outcome: Outcome, name: str, stage: Stage, seconds: float) -> float | None:
    try:
        value = measure(outcome.row, name, stage, seconds)
    except Broken as error:
        outcome.problems.append(f"{name}: {error}")
        print(f"  {outcome.row.name}: {name}: {error}", file=sys.stderr)
        return None
    print(f"  {outcome.row.name}: {name}: {value:.2f} {outcome.row.unit}", file=sys.stderr)
    return value

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
    costs: dict[str, list[float | None]] = field(default_factory=dict)
    """Processor time per request of a contestant, with all its threads and children, in microseconds."""
    idle: dict[str, list[float | None]] = field(default_factory=dict)
    """What share of the machine's processors had nothing to do meanwhile."""


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
        sample = measure(outcome.row, name, stage, seconds)
    except Broken as error:
        outcome.problems.append(f"{name}: {error}")
        print(f"  {outcome.row.name}: {name}: {error}", file=sys.stderr)
        return None
    cost = ""
    if sample.microseconds is not None:
        outcome.costs.setdefault(name, []).append(sample.microseconds)
        cost = f", {sample.microseconds:.1f} us a request"
    if sample.idle is not None:
        outcome.idle.setdefault(name, []).append(sample.idle)
    print(
        f"  {outcome.row.name}: {name}: {sample.value:.2f} {outcome.row.unit}{cost}",
        file=sys.stderr,
    )
    return sample.value

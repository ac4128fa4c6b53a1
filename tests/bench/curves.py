"""How much of what there can be more of: the points of the curves, their configurations, and what the numbers
say; pure.

A curve varies one thing and leaves all else as it is in `Point()`. So several curves can share a point, which
is measured once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Point:
    """How many there are of each."""

    sessions: int = 16
    exports: int = 1
    policies: int = 0
    rules: int = 0


@dataclass(frozen=True)
class Curve:
    """A line of points that differ in one thing."""

    kind: str
    """A field of `Point`."""
    numbers: tuple[int, ...]
    title: str

    def point(self, number: int) -> Point:
        """The point where there are so many."""
        return replace(Point(), **{self.kind: number})


CURVES = (
    Curve("sessions", (1, 4, 16, 64, 256, 1000), "sessions that are open"),
    Curve("exports", (1, 10, 100, 1000), "exports in the configuration"),
    Curve("policies", (0, 1, 5, 10, 20, 50), "policies of the export"),
    Curve("rules", (1, 10, 100, 1000), "rules, of which the last one matches"),
)

READ, OPENING, WRITE, LATE_OPENING = "READ", "opening", "WRITE", "opening after WRITEs"
ACTS = (READ, OPENING, WRITE, LATE_OPENING)
"""What is counted, in this order: a request of 4 KiB; a client that connects, opens an export, reads once and
leaves, beside sessions that have read; and beside sessions that have written and not flushed."""

Samples = Sequence[float | None]
"""Microseconds of the gateway's processor time for one act; None where it could not be measured."""

FLAT = 1.25
"""So many times the first value of a curve are noise still: samples of one point are a tenth apart."""

MOST_CONNECTIONS = 2000

_POLICIES = (
    '{ use = "limit", connections = 1000000, in-flight = 128 }',
    '{ use = "blocksize", maximum = "32M" }',
    '{ use = "protect", ranges = ["1023M+1M"] }',
    '{ use = "commands", deny = ["TRIM"], longest-request = "8M" }',
    '{ use = "contexts", allow = ["base:allocation"] }',
    '{ use = "flags", mask = ["CAN_MULTI_CONN"] }',
    '{ use = "zero", how = "notrim" }',
    '{ use = "window", offset = 0 }',
    '{ use = "truncate", round-down = "1M" }',
    '{ use = "trim", how = "none" }',
)
"""They restrict what the load does not do. When they have all been taken, the first is taken again."""


def configuration(point: Point, listen: str, upstream: str) -> str:
    """The configuration of a gateway at one point, in TOML."""
    policies = ", ".join(_POLICIES[i % len(_POLICIES)] for i in range(point.policies))
    return "\n".join(
        [
            "[[listen]]",
            f'uri = "{listen}"',
            f"max-connections = {MOST_CONNECTIONS}",
            "[upstream.main]",
            f'uri = "{upstream}"',
            *(
                f'[[export]]\nname = "{name}"\nupstream = "main"\nupstream-name = ""\n'
                f"policies = [ {policies} ]"
                for name in names(point)
            ),
            *(f'[[rule]]\nwho = {{ network = "{network}" }}' for network in _networks(point)),
            "",
        ]
    )


def _networks(point: Point) -> list[str]:
    """One for each rule; clients come from the last one."""
    others = (f"10.{number // 256}.{number % 256}.0/24" for number in range(point.rules - 1))
    return [*others, "127.0.0.0/8"] if point.rules else []


def names(point: Point) -> list[str]:
    """Of the exports."""
    return [f"disk-{number}" for number in range(point.exports)]


def names_of_sessions(point: Point) -> list[str]:
    """Which export each session opens: they are spread over all."""
    there = names(point)
    return [there[number * len(there) // point.sessions] for number in range(point.sessions)]


@dataclass(frozen=True)
class Found:
    """A whole run."""

    samples: Mapping[Point, Mapping[str, Samples]]
    facts: Mapping[str, str]
    problems: Sequence[str]

    def value(self, point: Point, act: str) -> float | None:
        """The median in microseconds. A point that failed once has none, as in `tests.bench.judge`."""
        samples = self.samples.get(point, {}).get(act, ())
        good = [each for each in samples if each is not None]
        return median(good) if good and len(good) == len(samples) else None

    def values(self, curve: Curve, act: str) -> list[tuple[int, float]]:
        """What there is of a curve."""
        found = [(number, self.value(curve.point(number), act)) for number in curve.numbers]
        return [(number, value) for number, value in found if value is not None]


def shape(values: Sequence[tuple[int, float]]) -> str:
    """Says whether a curve is flat, and what it does if not: its values are those of more and more."""
    if len(values) < 2:
        return "not measured"
    (least, first), (most, last) = values[0], values[-1]
    if last > FLAT * first:
        each = (last - first) / (most - least)
        return f"grows {last / first:.1f} x, by {_number(each)} µs for each"
    number, peak = max(values, key=lambda each: each[1])
    if peak > FLAT * first:
        return f"grows {peak / first:.1f} x up to {number}, and falls"
    lowest, low = min(values, key=lambda each: each[1])
    if low * FLAT < first and last > FLAT * low:
        rise = f"grows {last / low:.1f} x from there"
        return f"falls to {low / first:.2f} x up to {lowest}, and {rise}"
    if last * FLAT < first:
        return f"falls to {last / first:.2f} x"
    return "flat"


def terminal(found: Found) -> str:
    """All curves, what went wrong, and the surroundings."""
    lines: list[str] = []
    for curve in _measured(found):
        rows = _cells(found, curve)
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        aligned = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        ]
        lines += [aligned[0], "-" * len(aligned[0]), *aligned[1:]]
        lines += [f"{act}: {shape(found.values(curve, act))}" for act in ACTS] + [""]
    return "\n".join([*lines, *found.problems, _surroundings(found)]) + "\n"


BEGIN = "<!-- scale:begin -->"
END = "<!-- scale:end -->"


def markdown(found: Found) -> str:
    """The same for docs/performance.md."""
    lines: list[str] = []
    for curve in _measured(found):
        head, *rows = (" | ".join(row) for row in _cells(found, curve))
        lines += [
            f"![Processor time by the number of {curve.title}]({chart_name(curve)})",
            "",
            *(f"| {row} |" for row in (head, " | ".join(["---:"] * (1 + len(ACTS))), *rows)),
            "",
            *(f"- {act}: {shape(found.values(curve, act))}" for act in ACTS),
            "",
        ]
    around = [f"- {' '.join(line.split())}" for line in (*found.problems, _surroundings(found))]
    return "\n".join([*lines, *around])


def chart_name(curve: Curve) -> str:
    """The chart's file beside the page."""
    return f"scale-{curve.kind}.svg"


def replace_marked(page: str, body: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with another run between the markers."""
    before, begun, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not begun or not ended:
        raise ValueError(f"the page has no {begin} with {end} after it")
    return f"{before}{begin}\n{body}\n{end}{after}"


def to_json(found: Found) -> str:
    """All samples."""
    whole = {
        "facts": dict(found.facts),
        "problems": list(found.problems),
        "points": [
            {**asdict(point), "microseconds": samples} for point, samples in found.samples.items()
        ],
    }
    return json.dumps(whole, indent=2) + "\n"


def from_json(text: str) -> Found:
    """An earlier run."""
    whole: dict[str, Any] = json.loads(text)
    things = [field.name for field in fields(Point)]
    samples = {
        Point(**{thing: each[thing] for thing in things}): each["microseconds"]
        for each in whole["points"]
    }
    return Found(samples, whole["facts"], whole["problems"])


def _measured(found: Found) -> list[Curve]:
    # Of other curves there is the point at most that all share.
    return [
        curve
        for curve in CURVES
        if sum(curve.point(number) in found.samples for number in curve.numbers) > 1
    ]


def _cells(found: Found, curve: Curve) -> list[tuple[str, ...]]:
    head = (curve.title, *(f"{act}, µs" for act in ACTS))
    return [
        head,
        *(
            (f"{number:,}", *(_number(found.value(curve.point(number), act)) for act in ACTS))
            for number in curve.numbers
        ),
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "failed"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _surroundings(found: Found) -> str:
    return ", ".join(f"{name} {value}" for name, value in found.facts.items())

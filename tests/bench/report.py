"""What a run says: the table for people, JSON for programs, and the page in docs/."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.judge import PASSED, Medians, Verdict, holds, medians, ratio, verdict
from tests.bench.rows import DIRECT, GATEWAY, HAPROXY, NBDKIT, PLAIN, QEMU_NBD, ROWS, Bound, Row
from tests.bench.run import Outcome

BEGIN = "<!-- bench:begin -->"
END = "<!-- bench:end -->"

_TITLES = {
    DIRECT: "direct",
    GATEWAY: "gateway",
    NBDKIT: "nbdkit",
    QEMU_NBD: "qemu-nbd",
    HAPROXY: "haproxy",
}
_HEAD = ("load", "unit", *_TITLES.values(), "the gateway is", "floor", "goal", "verdict")
_NUMBERS = range(2, 2 + len(_TITLES))  # the columns that align to the right
_NOTHING = "-"


@dataclass(frozen=True)
class Report:
    """A whole run."""

    outcomes: Sequence[Outcome]
    facts: dict[str, str]
    rounds: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Every floor was seen to be reached."""
        return bool(self.outcomes) and all(word in PASSED for word in self.verdicts)

    @property
    def verdicts(self) -> list[Verdict]:
        return [verdict(each.row, medians(each.row, each.samples)) for each in self.outcomes]


def terminal(report: Report) -> str:
    """The table, what went wrong, and the surroundings."""
    rows = [_HEAD, *_cells(report)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = [
        "  ".join(_pad(cell, widths[i], i) for i, cell in enumerate(row)).rstrip() for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join([*lines, "", *_problems(report), *_surroundings(report)]) + "\n"


def markdown(report: Report) -> str:
    """The same for docs/performance.md."""
    rule = ["---:" if i in _NUMBERS else "---" for i in range(len(_HEAD))]
    table = ["| " + " | ".join(row) + " |" for row in (_HEAD, rule, *_cells(report))]
    chart = "![Throughput relative to a direct connection](performance.svg)"
    around = [f"- {line}" for line in (*_problems(report), *_surroundings(report))]
    return "\n".join([chart, "", *table, "", *around])


def replace_marked(page: str, body: str) -> str:
    """The page with what stands between the markers replaced."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{body}\n{END}{after}"


def to_json(report: Report) -> str:
    """All samples, not only what was made of them."""
    rows = []
    for each, word in zip(report.outcomes, report.verdicts, strict=True):
        found = medians(each.row, each.samples)
        rows.append(
            {
                "name": each.row.name,
                "unit": each.row.unit,
                "samples": each.samples,
                "medians": found,
                "ratios": _ratios(each.row, found),
                "floors": _judged(each.row.floors, each.row, found),
                "goals": _judged(each.row.goals, each.row, found),
                "verdict": word,
                "problems": each.problems,
            }
        )
    whole = {
        "facts": report.facts,
        "rounds": report.rounds,
        "seconds": report.seconds,
        "passed": report.passed,
        "rows": rows,
    }
    return json.dumps(whole, indent=2) + "\n"


def from_json(text: str) -> Report:
    """An earlier run, judged by the floors of today; rows that are gone are left out."""
    whole: dict[str, Any] = json.loads(text)
    known = {row.name: row for row in ROWS}
    outcomes = [
        Outcome(known[row["name"]], row["samples"], row["problems"])
        for row in whole["rows"]
        if row["name"] in known
    ]
    return Report(outcomes, whole["facts"], whole["rounds"], whole["seconds"])


def write_docs(report: Report, page: Path) -> None:
    """Puts the run's table on the page."""
    page.write_text(replace_marked(page.read_text(), markdown(report)))


def column(peer: str) -> str:
    """Variants of a contestant stand in its column."""
    return peer.partition("+")[0]


def _cells(report: Report) -> list[tuple[str, ...]]:
    return [
        _row_cells(each.row, medians(each.row, each.samples), word)
        for each, word in zip(report.outcomes, report.verdicts, strict=True)
    ]


def _row_cells(row: Row, found: Medians, word: Verdict) -> tuple[str, ...]:
    # The judged one comes last, so that it has the column even beside a variant of itself.
    values = {column(name): _number(found[name]) for name in found}
    if row.judged in found:
        values[column(row.judged)] = _number(found[row.judged])
    ratios = [
        f"{value:.2f} x {name}" for name, value in _ratios(row, found).items() if value is not None
    ]
    return (
        row.name,
        row.unit,
        *(values.get(name, _NOTHING) for name in PLAIN),
        ", ".join(ratios) or _NOTHING,
        ", ".join(map(str, row.floors)),
        ", ".join(map(str, row.goals)),
        word,
    )


def _ratios(row: Row, found: Medians) -> dict[str, float | None]:
    subject = found.get(row.judged)
    return {name: ratio(subject, value) for name, value in found.items() if name != row.judged}


def _judged(bounds: Sequence[Bound], row: Row, found: Medians) -> dict[str, bool | None]:
    return {str(bound): holds(bound, row, found) for bound in bounds}


def _number(value: float | None) -> str:
    if value is None:
        return "failed"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _pad(cell: str, width: int, index: int) -> str:
    return cell.rjust(width) if index in _NUMBERS else cell.ljust(width)


def _problems(report: Report) -> list[str]:
    return [
        f"{each.row.name}: {' '.join(problem.split())}"
        for each in report.outcomes
        for problem in each.problems
    ]


def _surroundings(report: Report) -> list[str]:
    facts = ", ".join(f"{name} {value}" for name, value in report.facts.items())
    return [f"medians of {report.rounds} rounds, {report.seconds:g} s each", facts]

"""What a run says: the table for people, JSON for programs, and the page in docs/."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.judge import (
    PASSED,
    Medians,
    Verdict,
    holds,
    medians,
    ratio,
    spread,
    verdict,
    verdict_of_pure,
)
from tests.bench.rows import (
    DIRECT,
    GATEWAY,
    HAPROXY,
    NBDKIT,
    PLAIN,
    PURE,
    QEMU_NBD,
    ROWS,
    Bound,
    Row,
)
from tests.bench.run import Outcome

BEGIN = "<!-- bench:begin {} -->"
END = "<!-- bench:end {} -->"
"""Around what was measured on one kind of processor."""
NEXT_KIND = "<!-- bench:next-kind -->"
"""Before this the section of another kind is put."""

_TITLES = {
    DIRECT: "direct",
    GATEWAY: "gateway",
    PURE: "without pump",
    NBDKIT: "nbdkit",
    QEMU_NBD: "qemu-nbd",
    HAPROXY: "haproxy",
}
_HEAD = (
    *("load", "unit", *_TITLES.values(), "the gateway is", "floor", "goal", "verdict"),
    *("floor without pump", "verdict without pump"),
)
_COST_HEAD = ("load", *list(_TITLES.values())[1:], "idle", "spread")
_COST_NUMBERS = range(1, len(_COST_HEAD))
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
        words = [*self.verdicts, *(word for word in self.verdicts_of_pure if word is not None)]
        return bool(self.outcomes) and all(word in PASSED for word in words)

    @property
    def verdicts(self) -> list[Verdict]:
        """Of the judged contestant, a row each."""
        return [verdict(each.row, *_found(each)) for each in self.outcomes]

    @property
    def verdicts_of_pure(self) -> list[Verdict | None]:
        """Of the gateway without its pump."""
        return [verdict_of_pure(each.row, *_found(each)) for each in self.outcomes]


def terminal(report: Report) -> str:
    """The table, what went wrong, and the surroundings."""
    lines = _aligned([_HEAD, *_cells(report)], _NUMBERS)
    if costs := _cost_cells(report):
        lines += ["", _COST_TITLE, "", *_aligned([_COST_HEAD, *costs], _COST_NUMBERS)]
    return "\n".join([*lines, "", *_problems(report), *_surroundings(report)]) + "\n"


def _aligned(rows: Sequence[tuple[str, ...]], numbers: range) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(widths[i]) if i in numbers else cell.ljust(widths[i])
            for i, cell in enumerate(row)
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return lines


def markdown(report: Report) -> str:
    """The same for docs/performance.md."""
    table = _table([_HEAD, *_cells(report)], _NUMBERS)
    if costs := _cost_cells(report):
        table += ["", _COST_TITLE, "", *_table([_COST_HEAD, *costs], _COST_NUMBERS)]
    chart = f"![Throughput relative to a direct connection]({chart_name(kind(report))})"
    around = [f"- {line}" for line in (*_problems(report), *_surroundings(report))]
    return "\n".join([chart, "", *table, "", *around])


def _table(rows: Sequence[tuple[str, ...]], numbers: range) -> list[str]:
    rule = tuple("---:" if i in numbers else "---" for i in range(len(rows[0])))
    return ["| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:])]


def kind(report: Report) -> str:
    """The kind of processor that it was measured on."""
    return report.facts.get("processors", "an unknown processor")


def chart_name(processors: str) -> str:
    """The chart's file beside the page."""
    words = re.findall(r"[a-z0-9]+", processors.lower().replace("(r)", "").replace("(tm)", ""))
    return f"performance-{'-'.join(words)}.svg"


def replace_marked(page: str, processors: str, body: str) -> str:
    """The page with the section of one kind of processor replaced, or added."""
    begin, end = BEGIN.format(processors), END.format(processors)
    if begin not in page:
        before, found, after = page.partition(NEXT_KIND)
        if not found:
            raise ValueError(f"the page has no {NEXT_KIND}")
        page = f"{before}### {processors}\n\n{begin}\n{end}\n\n{NEXT_KIND}{after}"
    before, _, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not ended:
        raise ValueError(f"the page has {begin}, and no {end}")
    return f"{before}{begin}\n{body}\n{end}{after}"


def to_json(report: Report) -> str:
    """All samples, not only what was made of them."""
    rows = []
    for each, word in zip(report.outcomes, report.verdicts, strict=True):
        found, costs = _found(each)
        rows.append(
            {
                "name": each.row.name,
                "unit": each.row.unit,
                "samples": each.samples,
                "medians": found,
                "microseconds": each.costs,
                "idle": each.idle,
                "ratios": _ratios(each.row, found),
                "floors": _judged(each.row.floors, each.row.judged, found, costs),
                "goals": _judged(each.row.goals, each.row.judged, found, costs),
                "floors without pump": _judged(each.row.pure, PURE, found, costs),
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
        Outcome(
            known[row["name"]],
            row["samples"],
            row["problems"],
            row.get("microseconds", {}),
            row.get("idle", {}),
        )
        for row in whole["rows"]
        if row["name"] in known
    ]
    return Report(outcomes, whole["facts"], whole["rounds"], whole["seconds"])


def write_docs(report: Report, page: Path) -> None:
    """Puts the run's table on the page."""
    page.write_text(replace_marked(page.read_text(), kind(report), markdown(report)))


def column(peer: str) -> str:
    """Variants of a contestant stand in its column."""
    return peer.partition("+")[0]


def _found(outcome: Outcome) -> tuple[Medians, Medians]:
    """The medians of what was measured, and of the processor times."""
    return medians(outcome.row, outcome.samples), medians(outcome.row, outcome.costs)


def _cells(report: Report) -> list[tuple[str, ...]]:
    words = zip(report.outcomes, report.verdicts, report.verdicts_of_pure, strict=True)
    return [_row_cells(each.row, _found(each)[0], word, pure) for each, word, pure in words]


_COST_TITLE = (
    "Processor time per request in microseconds, with all threads and children; what share of the machine's "
    "processors was idle beside the judged one; and how far its samples are apart:"
)


def _cost_cells(report: Report) -> list[tuple[str, ...]]:
    return [_costs_of(each) for each in report.outcomes if any(each.costs.values())]


def _costs_of(outcome: Outcome) -> tuple[str, ...]:
    row, costs = outcome.row, _found(outcome)[1]
    values = {column(name): _number(costs[name]) for name in costs}
    if row.judged in costs:
        values[column(row.judged)] = _number(costs[row.judged])
    idle = medians(row, outcome.idle).get(row.judged)
    apart = spread(outcome.samples.get(row.judged, ()))
    return (
        row.name,
        *(values.get(name, _NOTHING) for name in PLAIN[1:]),
        *(_NOTHING if share is None else f"{share:.0%}" for share in (idle, apart)),
    )


def _row_cells(row: Row, found: Medians, word: Verdict, pure: Verdict | None) -> tuple[str, ...]:
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
        ", ".join(map(str, row.pure)) or _NOTHING,
        pure or _NOTHING,
    )


def _ratios(row: Row, found: Medians) -> dict[str, float | None]:
    subject = found.get(row.judged)
    return {name: ratio(subject, value) for name, value in found.items() if name != row.judged}


def _judged(
    bounds: Sequence[Bound], judged: str, found: Medians, costs: Medians
) -> dict[str, bool | None]:
    return {str(bound): holds(bound, judged, found, costs) for bound in bounds}


def _number(value: float | None) -> str:
    if value is None:
        return "failed"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _problems(report: Report) -> list[str]:
    return [
        f"{each.row.name}: {' '.join(problem.split())}"
        for each in report.outcomes
        for problem in each.problems
    ]


def _surroundings(report: Report) -> list[str]:
    facts = ", ".join(f"{name} {value}" for name, value in report.facts.items())
    return [f"medians of {report.rounds} rounds, {report.seconds:g} s each", facts]

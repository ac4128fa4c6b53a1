"""`make bench`, or by hand: measures, prints the table, and fails if a floor is not reached."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench import chart, machine, report
from tests.bench.peers import COMMANDS, GATEWAY_VARIABLE, ROOT, stage
from tests.bench.processes import Broken, allow_many_files
from tests.bench.profiling import profile
from tests.bench.rows import PLAIN, ROWS, Row
from tests.bench.run import run_row

PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench-results"

ROUNDS = 5
"""Fewer do not make a median to go by; docs/ is only written from at least as many."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 if every floor was reached, 1 if not, 2 if nothing could be measured."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return _render(options) if options.render else _bench(options)
    except Broken as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _bench(options: argparse.Namespace) -> int:
    rows = [row for row in ROWS if re.search(options.rows, row.name, re.IGNORECASE)]
    if not rows:
        raise Broken(f"no row matches {options.rows!r}; there are:\n" + "\n".join(map(_name, ROWS)))
    if options.profile and len(rows) > 1:
        raise Broken("--profile takes one row, and these match:\n" + "\n".join(map(_name, rows)))
    allow_many_files()
    with stage() as standing:
        if options.profile:
            profile(rows[0], standing, options.seconds)
            return 0
        outcomes = [
            run_row(
                row,
                standing,
                peers=options.peers,
                rounds=options.rounds,
                seconds=options.seconds,
            )
            for row in rows
        ]
    found = report.Report(outcomes, machine.facts(), options.rounds, options.seconds)
    print(report.terminal(found))
    RESULTS.mkdir(exist_ok=True)
    saved = RESULTS / time.strftime("%Y%m%dT%H%M%SZ.json", time.gmtime())
    saved.write_text(report.to_json(found))
    print(f"{saved.relative_to(ROOT)}", file=sys.stderr)
    complete = rows == list(ROWS) and set(options.peers) >= set(PLAIN) and options.rounds >= ROUNDS
    if options.write_docs is None:
        options.write_docs = complete and not os.environ.get(GATEWAY_VARIABLE)
    return _finish(found, options)


def _render(options: argparse.Namespace) -> int:
    found = report.from_json(options.render.read_text())
    print(report.terminal(found))
    return _finish(found, options)


def _finish(found: report.Report, options: argparse.Namespace) -> int:
    if options.write_docs:
        report.write_docs(found, PAGE)
        chart.draw(found, PAGE.with_name(report.chart_name(report.kind(found))))
    if options.chart:
        chart.draw(found, options.chart)
    return 0 if found.passed else 1


def _name(row: Row) -> str:
    return f"  {row.name}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    add = parser.add_argument
    add("--rows", default="", metavar="PATTERN", help="only rows whose name this expression finds")
    add(
        "--peers",
        type=lambda text: text.split(","),
        default=list(dict.fromkeys([*PLAIN, *COMMANDS])),
        metavar="NAME,...",
        help="only these contestants; floors that name others are not judged",
    )
    add(
        "--rounds",
        type=int,
        default=int(os.environ.get("BENCH_ROUNDS", ROUNDS)),
        help="how often each is measured (BENCH_ROUNDS, %(default)s)",
    )
    add(
        "--seconds",
        type=float,
        default=float(os.environ.get("BENCH_SECONDS", "2")),
        help="how long fio runs each time (BENCH_SECONDS, %(default)s)",
    )
    add(
        "--write-docs",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="put table and chart into docs/; by itself after a full run",
    )
    add("--chart", type=Path, metavar="FILE", help="draw the chart here as well (.svg, .png)")
    add("--render", type=Path, metavar="JSON", help="measure nothing: show this earlier run")
    add("--profile", action="store_true", help="run one row with the gateway under cProfile")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

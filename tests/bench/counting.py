"""`tests/bench/run counting`: what it costs to count. The gateway as it is, and one that counts nothing.

Nobody can turn the counting off, for then `status` would be wrong. So what is measured beside the gateway is a
copy of it from which `EDITS` have taken the counting out, the compiled pump's too (a C compiler is needed). An
edit that does not fit the sources any more is an error (`tests/bench/test_counting.py` tries all of them).

What stays in both: a session's table of counts itself, and what is counted of errors and refusals, of which a
load has none. What is asked for meanwhile (`status`, `/metrics`) is not part of it either: that is
`tests.bench.notice`.

    tests/bench/run counting                     20 pairs of each row: about ten minutes
    tests/bench/run counting --pairs 6 --seconds 1 --rows 'depth 32'

Ends with 1 if what it costs may be above a row's bound: the upper end of the interval counts.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.pairs import LEAST_PAIRS, Interval, interval_of
from tests.bench.peers import PUMP_VARIABLE, ROOT, Stage, stage
from tests.bench.processes import Broken, Child, processor_seconds, run_tool
from tests.bench.rows import KIB
from tests.packing import packing

PUMP = packing("pump")

PAIRS = 20

SPARE_SECONDS = 30.0
"""What fio may take beyond its own running time."""

EXTENSION = f"_pump{sysconfig.get_config_var('EXT_SUFFIX')}"


@dataclass(frozen=True)
class Edit:
    """A text of the sources that counts, and what stands there where nothing is counted."""

    file: str
    counts: str
    without: str = ""


EDITS = (
    Edit("gateway/hub/_pump.c", "        asked.times[word->word & 0xFFFF]++;\n"),
    Edit("gateway/hub/_pump.c", "        asked.bytes[word->word & 0xFFFF] += length;\n"),
    Edit("gateway/hub/_pump.c", " && count(p, &asked) ? said : -1;", " ? said : -1;"),
    Edit(
        "gateway/scan/requests.py",
        "                asked[command := word & 0xFFFF] += 1\n"
        "                asked_bytes[command] += length\n",
        "                command = word & 0xFFFF\n",
    ),
    Edit("gateway/scan/requests.py", "        traffic.asked[kind := min(command, OTHERS)] += 1\n"),
    Edit(
        "gateway/scan/requests.py",
        "        traffic.asked_bytes[kind] += length  # of a request that is refused it says anything\n",
    ),
    Edit("gateway/sessions/seat.py", "    traffic.timing = Timing(time.monotonic, *times)\n"),
    Edit("gateway/hub/pace.py", "ROUNDS_A_SAMPLE = 16\n", "ROUNDS_A_SAMPLE = 1 << 62\n"),
)


@dataclass(frozen=True)
class Row:
    """One load, and how much of its processor time counting may take."""

    name: str
    verb: str
    depth: int
    most: float
    pump: bool = True


ROWS = (
    Row("4k read, depth 32", "read", 32, 0.01),
    Row("4k write, depth 32", "write", 32, 0.01),
    Row("4k read, depth 1", "read", 1, 0.02),
    Row("4k write, depth 1", "write", 1, 0.02),
    Row("4k read, depth 32, without pump", "read", 32, 0.01, pump=False),
    Row("4k read, depth 1, without pump", "read", 1, 0.02, pump=False),
)


def without_counting(text: str, file: str) -> str:
    """Give a source as it is where nothing is counted. Raises `Broken` if it has changed."""
    for edit in EDITS:
        if edit.file == file:
            if text.count(edit.counts) != 1:
                raise Broken(f"{file}: expected once what counts there: {edit.counts.strip()!r}")
            text = text.replace(edit.counts, edit.without)
    return text


def copied(place: Path, *, counts: bool) -> Path:
    """Make a copy of the gateway that can be run, with a pump of its own; give where it is."""
    for package in ("gateway", "policies"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / package, place / package, ignore=ignored)
    if not counts:
        for file in {edit.file for edit in EDITS}:
            source = place / file
            source.write_text(without_counting(source.read_text(), file))
    source = place / "gateway/hub/_pump.c"
    PUMP.compile_pump(source, source.with_name(EXTENSION))
    run_tool([sys.executable, "-m", "compileall", "-q", str(place)], SPARE_SECONDS)
    return place


class Gateways:
    """The two of them, with the pump and without, each begun when it is first asked for."""

    def __init__(self, standing: Stage) -> None:
        self._stage = standing
        self._there: dict[tuple[bool, bool], Child] = {}
        self._places = {
            counts: copied(standing.home / f"counts-{counts}", counts=counts)
            for counts in (True, False)
        }

    def before(self, row: Row, *, counts: bool) -> Child:
        """Give the gateway for a row."""
        key = counts, row.pump
        if key not in self._there or not self._there[key].running:
            self._there[key] = self._stage.launch(
                f"counts-{counts}-{row.pump}",
                lambda port: [
                    *(
                        "env",
                        f"PYTHONPATH={self._places[counts]}",
                        f"{PUMP_VARIABLE}={int(row.pump)}",
                    ),
                    *(sys.executable, "-P", "-m", "gateway", "serve", self._stage.upstream.uri),
                    *("--listen", f"nbd://127.0.0.1:{port}", "--log-level", "error"),
                ],
            )
        return self._there[key]


def microseconds(row: Row, child: Child, seconds: float) -> float:
    """Measure a load once: processor time for a request. Raises `Broken`."""
    command = [
        *("fio", "--name=bench", "--ioengine=nbd", f"--uri={child.uri}", f"--rw=rand{row.verb}"),
        *(f"--bs={4 * KIB}", f"--iodepth={row.depth}", "--size=1g", "--output-format=json"),
        *("--time_based", f"--runtime={round(seconds * 1000)}ms"),
    ]
    before = processor_seconds(child.pid)
    printed = run_tool(command, seconds + SPARE_SECONDS)
    used = processor_seconds(child.pid) - before
    (job,) = json.loads(printed[printed.index("{") :])["jobs"]
    requests = job[row.verb]["total_ios"]
    if not requests:
        raise Broken(f"{row.name}: fio did nothing:\n{printed[-500:]}")
    return float(1e6 * used / requests)


def costs(row: Row, gateways: Gateways, pairs: int, seconds: float) -> Interval:
    """Measure a row: what counting costs, as a share of what a request takes without. Raises `Broken`."""
    found = []
    for number in range(pairs):
        order = (True, False) if number % 2 else (False, True)
        took = {
            each: microseconds(row, gateways.before(row, counts=each), seconds) for each in order
        }
        found.append(took[True] / took[False] - 1)
        print(
            f"  {number + 1}: {row.name}: {took[False]:.2f} -> {took[True]:.2f} us", file=sys.stderr
        )
    return interval_of(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Give the exit status: 0 if all is within its bound, 1 if not, 2 if nothing could be measured."""
    parser = argparse.ArgumentParser(prog="tests/bench/run counting")
    parser.add_argument("--rows", default="", help="those that this pattern finds")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"{LEAST_PAIRS} or more")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long fio runs each time")
    options = parser.parse_args(arguments)
    rows = [row for row in ROWS if re.search(options.rows, row.name)]
    above = 0
    try:
        with stage() as standing:
            gateways = Gateways(standing)
            for row in rows:
                cost = costs(row, gateways, options.pairs, options.seconds)
                verdict = "ok" if cost.upper < row.most else "MAY BE ABOVE"
                above += verdict != "ok"
                print(
                    f"{row.name:34}{cost.middle:+7.2%}, between {cost.lower:+.2%} and"
                    f" {cost.upper:+.2%}; under {row.most:.0%}: {verdict}",
                    flush=True,
                )
    except (Broken, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 1 if above or not rows else 0


if __name__ == "__main__":
    sys.exit(main())

"""`make bench-workers`: what several workers give and cost, beside one in the same run.

Each row is measured in pairs: the gateway with one worker and with more, one after the other, again and again,
the other one first each time. What is judged is the median of the ratios of the pairs. The names of exports are
chosen so that each worker is the home of as many: how evenly a hash spreads them is another question, which
`worker_model` answers from what a request costs here.

    python -m tests.bench.workers                     all, five rounds: about a quarter of an hour
    python -m tests.bench.workers --rows 'depth 32' --rounds 1 --seconds 1
    python -m tests.bench.workers --render bench-results/workers-RUN.json --write-docs

Some floors hold only where there are enough processors for client, server and gateway; elsewhere the row is
printed. Ends with 1 if a floor is not reached, with 2 if nothing could be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import trio

from gateway.admin.asking import ask
from gateway.config import parse
from gateway.workers.homes import home_of, table_of
from tests.bench import machine, worker_model
from tests.bench.curves import replace_marked
from tests.bench.peers import ROOT, Stage, stage
from tests.bench.processes import Broken, Child, allow_many_files, processor_seconds, run_tool
from tests.bench.rows import KIB, MIB

PAGE = ROOT / "docs" / "workers.md"
CHART = PAGE.with_name("workers.svg")
RESULTS = ROOT / "bench-results"

ROUNDS = 5
"""Fewer do not make a median to go by; docs/ are only written from at least as many."""

SPARE_SECONDS = 30.0
"""What fio may take beyond its own running time."""

EXPORTS = 8

BEGIN = "<!-- workers:begin -->"
END = "<!-- workers:end -->"

START_SECONDS = 60.0
"""Until all workers of a gateway serve."""

CONFIG = """\
workers = {workers}
[control]
socket = "{control}"
{listen}
[upstream.main]
uri = "{upstream}"
canonical-names = true
"""


@dataclass(frozen=True)
class Row:
    """One load, before one worker and before several."""

    name: str
    verb: str
    block_bytes: int
    depth: int
    workers: int
    least: float | None = None
    """So many times as much as with one worker at least."""
    most_cost: float | None = None
    """So many times the processor time for a request at most."""
    processors: int = 1
    """The floor holds only where there are so many."""
    exports: int = EXPORTS
    clients: int = 1
    """Of each export."""
    tls: bool = False

    def holds(self, processors: int) -> bool:
        """Say whether the floor holds on a machine."""
        return processors >= self.processors


def _rows() -> tuple[Row, ...]:
    read, write = "read", "write"
    return (
        Row("plain 4k read, depth 32", read, 4 * KIB, 32, 2, 0.95),
        Row("plain 4k write, depth 32", write, 4 * KIB, 32, 2, 0.95),
        Row("plain 4k read, depth 1", read, 4 * KIB, 1, 2, 0.95),
        Row("plain 1M read, depth 4", read, MIB, 4, 2, 0.95),
        Row("plain 1M write, depth 4", write, MIB, 4, 2, 0.95),
        Row("plain 4k read, depth 32, one export", read, 4 * KIB, 32, 2, 0.95, exports=1),
        Row("plain 4k read, depth 1, one export", read, 4 * KIB, 1, 2, 0.95, exports=1),
        Row("plain 1M read, depth 4, one export", read, MIB, 4, 2, 0.95, exports=1),
        Row("TLS 4k read, depth 32, two clients", read, 4 * KIB, 32, 2, 1.0, exports=2, tls=True),
        Row("TLS 1M read, depth 4, two clients", read, MIB, 4, 2, 1.0, exports=2, tls=True),
        Row(
            "TLS 4k read, depth 32, two clients, 4 processors",
            *(read, 4 * KIB, 32, 2, 1.4),
            processors=4,
            exports=2,
            tls=True,
        ),
        Row(
            "TLS 1M read, depth 4, two clients, 4 processors",
            *(read, MIB, 4, 2, 1.4),
            processors=4,
            exports=2,
            tls=True,
        ),
        Row("plain 4k read, depth 32, 4 workers", read, 4 * KIB, 32, 4),
        Row("plain 1M read, depth 4, 4 workers", read, MIB, 4, 4),
        Row(COST_ROW, read, 4 * KIB, 32, 8, most_cost=1.10),
        Row("plain 4k read, depth 1, 8 workers", read, 4 * KIB, 1, 8),
    )


COST_ROW = "plain 4k read, depth 32, 8 workers"
ROWS = _rows()


@dataclass
class Found:
    """What was measured of one row: pairs of one worker and several."""

    row: Row
    speeds: list[tuple[float, float]] = field(default_factory=list)
    """In thousands of requests a second, or in MB/s where they are large."""
    costs: list[tuple[float, float]] = field(default_factory=list)
    """Processor time of the whole gateway for a request, in microseconds."""

    @property
    def ratio(self) -> float:
        """How many times as much as one worker."""
        return median(several / one for one, several in self.speeds)

    @property
    def cost_ratio(self) -> float:
        """How many times the processor time."""
        return median(several / one for one, several in self.costs)

    def verdict(self, processors: int) -> str:
        """Say whether the floor is reached: "ok", "BELOW", "ABOVE", or "" where there is none."""
        row = self.row
        if not row.holds(processors) or (row.least is None and row.most_cost is None):
            return ""
        if row.least is not None and self.ratio < row.least:
            return "BELOW"
        if row.most_cost is not None and self.cost_ratio > row.most_cost:
            return "ABOVE"
        return "ok"


# --- Measuring


class Gateways:
    """The gateways that rows are measured before, each begun when it is first asked for."""

    def __init__(self, standing: Stage) -> None:
        self._stage = standing
        self._there: dict[tuple[int, bool], tuple[Child, list[str]]] = {}

    def before(self, row: Row, workers: int) -> tuple[Child, list[str]]:
        """Give the gateway of a row, and the names of its exports, by turns at home in each worker."""
        key = workers, row.tls
        if key not in self._there or not self._there[key][0].running:
            self._there[key] = self._begun(workers, tls=row.tls)
        child, names = self._there[key]
        return child, names[: row.exports]

    def _begun(self, workers: int, *, tls: bool) -> tuple[Child, list[str]]:
        certificates = self._certificates() if tls else ""
        control = self._stage.home / f"{workers}-{tls}.control"
        text = ""

        def command(port: int) -> list[str]:
            nonlocal text
            uri = f'uri = "{"nbds" if tls else "nbd"}://127.0.0.1:{port}"\n'
            text = CONFIG.format(
                workers=workers,
                control=control,
                listen=f"[[listen]]\n{uri}{certificates}",
                upstream=self._stage.upstream.uri,
            )
            config = self._stage.home / f"workers-{port}.toml"
            config.write_text(text)
            return [*_script("serve"), "--config", str(config)]

        name = f"{workers} workers{' with TLS' if tls else ''}"
        child = self._stage.launch(name, command)
        if workers > 1:
            trio.run(all_serve, control)
        return child, names_by_turns(text, workers)

    def _certificates(self) -> str:
        pki = self._stage.home / ".pki" / "libnbd"  # where libnbd looks for them
        if not pki.exists():
            pki.parent.mkdir()
            run_tool(_script("pki", "init", str(pki)), SPARE_SECONDS)
        return f'certificates = "{pki}"\nverify-client = false\n'


async def all_serve(control: Path) -> None:
    """Wait until all workers of a gateway do. Raises `Broken`."""
    with trio.move_on_after(START_SECONDS):
        while True:
            answer = await ask(control, "status")
            if answer.data is not None and all(each["serves"] for each in answer.data["workers"]):
                return
            await trio.sleep(0.05)
    raise Broken(f"not all workers serve after {START_SECONDS:g} s")


def _script(*words: str) -> list[str]:
    return [str(Path(sys.executable).with_name("nbd-gateway")), *words]


def names_by_turns(text: str, workers: int) -> list[str]:
    """Give names of exports whose homes are the workers 0, 1, ... by turns, under a configuration."""
    config = parse(text, "the configuration")
    table = table_of(config, counted=False)
    found: list[str] = []
    for number in count():
        name = f"d{number}"
        if home_of(table, config.upstream["main"], name, workers) == len(found) % workers:
            found.append(name)
        if len(found) == EXPORTS:
            return found
    raise AssertionError("not reached")


def sample(row: Row, workers: int, gateways: Gateways, home: Path, seconds: float) -> Any:
    """Measure one load once: speed, and processor time for a request. Raises `Broken`."""
    child, names = gateways.before(row, workers)
    scheme = "nbds" if row.tls else "nbd"
    jobs = [
        word
        for name in names
        for word in (f"--name={name}", f"--uri={scheme}://127.0.0.1:{child.port}/{name}")
    ]
    command = [
        *("fio", "--ioengine=nbd", f"--rw=rand{row.verb}", f"--bs={row.block_bytes}"),
        *(f"--iodepth={row.depth}", f"--numjobs={row.clients}", "--size=1g", "--group_reporting"),
        *("--time_based", f"--runtime={round(seconds * 1000)}ms", "--output-format=json"),
    ]
    before = processor_seconds(child.pid)
    printed = run_tool(["env", f"HOME={home}", *command, *jobs], seconds + SPARE_SECONDS)
    used = processor_seconds(child.pid) - before
    done = [job[row.verb] for job in json.loads(printed[printed.index("{") :])["jobs"]]
    requests = sum(each["total_ios"] for each in done)
    if not requests:
        raise Broken(f"{row.name}: fio did nothing:\n{printed[-500:]}")
    large = row.block_bytes >= MIB
    speed = sum(each["bw_bytes"] / 1e6 if large else each["iops"] / 1e3 for each in done)
    return speed, 1e6 * used / requests


def measured(rows: Sequence[Row], rounds: int, seconds: float) -> list[Found]:
    """Measure rows. Raises `Broken`."""
    found = [Found(row) for row in rows]
    with stage() as standing:
        gateways = Gateways(standing)
        for number in range(rounds):
            for each in found:
                pair: dict[int, tuple[float, float]] = {}
                order = (1, each.row.workers) if number % 2 else (each.row.workers, 1)
                for workers in order:
                    pair[workers] = sample(each.row, workers, gateways, standing.home, seconds)
                one, several = pair[1], pair[each.row.workers]
                each.speeds.append((one[0], several[0]))
                each.costs.append((one[1], several[1]))
                print(
                    f"  {number + 1}: {each.row.name}: {one[0]:.1f} -> {several[0]:.1f},"
                    f" {one[1]:.1f} -> {several[1]:.1f} us a request",
                    file=sys.stderr,
                )
    return found


# --- What is shown

HEAD = ("row", "one worker", "workers", "several", "ratio", "us a request", "ratio", "floor", "")


def table_of_rows(found: Sequence[Found], processors: int) -> list[tuple[str, ...]]:
    """Give what is shown of each row."""
    lines: list[tuple[str, ...]] = [HEAD]
    for each in found:
        row, unit = each.row, "MB/s" if each.row.block_bytes >= MIB else "k/s"
        speeds = [median(side) for side in zip(*each.speeds, strict=True)]
        costs = [median(side) for side in zip(*each.costs, strict=True)]
        floor = "" if row.least is None else f">= {row.least:g} x"
        floor = floor if row.most_cost is None else f"<= {row.most_cost:g} x the time"
        lines.append(
            (
                row.name,
                f"{speeds[0]:.1f} {unit}",
                str(row.workers),
                f"{speeds[1]:.1f} {unit}",
                f"{each.ratio:.2f} x",
                f"{costs[0]:.1f} -> {costs[1]:.1f}",
                f"{each.cost_ratio:.2f} x",
                floor if row.holds(processors) else f"({floor} with {row.processors} processors)",
                each.verdict(processors),
            )
        )
    return lines


def terminal(found: Sequence[Found], processors: int) -> str:
    """Give the table for people at a terminal."""
    lines = table_of_rows(found, processors)
    widths = [max(len(line[at]) for line in lines) for at in range(len(HEAD))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def markdown(found: Sequence[Found], facts: dict[str, str], processors: int) -> str:
    """Give the table for docs, with the chart."""
    head, *lines = table_of_rows(found, processors)
    shown = [f"| {' | '.join(line[:-1])} |" for line in (head, ["---"] * len(HEAD), *lines)]
    said = ", ".join(f"{name} {value}" for name, value in facts.items())
    text = "\n".join([f"Medians of pairs, on: {said}.", "", *shown])
    if costs_of(found) is not None:
        text += f"\n\n![What workers give, computed from these costs]({CHART.name})"
    return text


def costs_of(found: Sequence[Found]) -> worker_model.Costs | None:
    """Give the costs that the chart is computed from, if they were measured."""
    for each in found:
        if each.row.name == COST_ROW:
            one, several = (median(side) for side in zip(*each.costs, strict=True))
            return worker_model.Costs(one, several, each.row.workers)
    return None


def draw(costs: worker_model.Costs, target: Path) -> None:
    """Draw what workers give, from 1 to 64; needs matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    from tests.bench.chart import DETERMINISTIC, INK

    colours = dict(zip(worker_model.DISKS, ("#e0823d", "#2f81f7", "#a371f7"), strict=True))
    with plt.rc_context(DETERMINISTIC):
        figure, sides = plt.subplots(1, 2, figsize=(8.5, 3.2), layout="constrained", sharey=True)
        titles = {"any": "disks that ask as fast as they can", "alike": "disks that ask alike"}
        for axes, (kind, title) in zip(sides, titles.items(), strict=True):
            for disks, colour in colours.items():
                gains = [
                    getattr(worker_model.gain(costs, disks, workers), kind)
                    for workers in worker_model.NUMBERS
                ]
                axes.plot(
                    worker_model.NUMBERS, gains, marker="o", markersize=4, color=colour, label=disks
                )
            axes.plot(worker_model.NUMBERS, worker_model.NUMBERS, color=INK, linewidth=0.6)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
            axes.set_xticks(worker_model.NUMBERS, map(str, worker_model.NUMBERS))
            axes.set_yticks(worker_model.NUMBERS, map(str, worker_model.NUMBERS))
            axes.tick_params(colors=INK, length=0)
            axes.grid(color=INK, alpha=0.25, linewidth=0.6)
            axes.set_title(title, color=INK, fontsize=9)
            for spine in axes.spines.values():
                spine.set_visible(False)
        sides[0].set_ylabel("times one worker", color=INK)
        sides[0].legend(title="disks", frameon=False, labelcolor=INK)
        figure.supxlabel("workers, each with a processor", color=INK, fontsize=9)
        figure.savefig(target, transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)


# --- Keeping it


def to_json(found: Sequence[Found], facts: dict[str, str], processors: int) -> str:
    """Give all samples."""
    rows = [{"row": each.row.name, "speeds": each.speeds, "costs": each.costs} for each in found]
    return json.dumps({"facts": facts, "processors": processors, "rows": rows}, indent=2) + "\n"


def from_json(text: str) -> tuple[list[Found], dict[str, str], int]:
    """Read an earlier run, to be judged by the floors of now. Raises `Broken`."""
    said = json.loads(text)
    known = {row.name: row for row in ROWS}
    if unknown := [each["row"] for each in said["rows"] if each["row"] not in known]:
        raise Broken(f"there is no row {unknown[0]!r} any more")
    found = [
        Found(
            known[each["row"]],
            [(one, several) for one, several in each["speeds"]],
            [(one, several) for one, several in each["costs"]],
        )
        for each in said["rows"]
    ]
    return found, said["facts"], said["processors"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Give the exit status: 0 if every floor was reached, 1 if not, 2 if nothing could be measured."""
    options = _options(arguments)
    try:
        found, facts, processors = _found(options)
    except Broken as error:
        print(f"bench-workers: {error}", file=sys.stderr)
        return 2
    print(terminal(found, processors))
    if options.write_docs:
        if (costs := costs_of(found)) is not None:
            draw(costs, CHART)
        page, body = PAGE.read_text(), markdown(found, facts, processors)
        PAGE.write_text(replace_marked(page, body, BEGIN, END))
    return 1 if any(each.verdict(processors) not in ("", "ok") for each in found) else 0


def _found(options: argparse.Namespace) -> tuple[list[Found], dict[str, str], int]:
    if options.render is not None:
        return from_json(options.render.read_text())
    rows = [row for row in ROWS if re.search(options.rows, row.name, re.IGNORECASE)]
    if not rows:
        raise Broken(f"no row matches {options.rows!r}")
    allow_many_files()
    processors = len(os.sched_getaffinity(0))
    facts = {
        "rounds": str(options.rounds),
        "load of the machine before": f"{os.getloadavg()[0]:.1f}",
        **machine.facts(),
    }
    found = measured(rows, options.rounds, options.seconds)
    RESULTS.mkdir(exist_ok=True)
    saved = RESULTS / time.strftime("workers-%Y%m%dT%H%M%SZ.json", time.gmtime())
    saved.write_text(to_json(found, facts, processors))
    print(saved.relative_to(ROOT), file=sys.stderr)
    return found, facts, processors


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.workers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rows", default="", metavar="PATTERN", help="only rows whose name this expression finds")
    add("--rounds", type=int, default=int(os.environ.get("BENCH_ROUNDS", ROUNDS)))
    add("--seconds", type=float, default=float(os.environ.get("BENCH_SECONDS", "2")))
    add("--write-docs", action="store_true", help="put table and chart into docs/workers.md")
    add("--render", type=Path, metavar="JSON", help="measure nothing: show this earlier run")
    options = parser.parse_args(arguments)
    if options.write_docs and options.render is None and options.rounds < ROUNDS:
        parser.error(f"docs are written from {ROUNDS} rounds at least")
    return options


if __name__ == "__main__":
    sys.exit(main())

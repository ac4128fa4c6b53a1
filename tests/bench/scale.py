"""What a request and an opening cost the gateway where there is much of something: python -m tests.bench.scale

`curves.py` says what there is more and more of. What is measured is the gateway's own processor time, divided
by how many requests, or openings, it served meanwhile; not how many there are in a second, for that depends on
everybody. Every point has a gateway of its own. The rounds take the points in turn, so that a busy minute hits
none of them alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.bench import machine, scale_chart
from tests.bench.client import Session, at_depth_one
from tests.bench.curves import (
    ACTS,
    CURVES,
    LATE_OPENING,
    MOST_CONNECTIONS,
    OPENING,
    READ,
    WRITE,
    Found,
    Point,
    chart_name,
    configuration,
    from_json,
    markdown,
    names,
    names_of_sessions,
    replace_marked,
    terminal,
    to_json,
)
from tests.bench.peers import ROOT
from tests.bench.processes import (
    Broken,
    Child,
    allow_many_files,
    free_port,
    processor_seconds,
)
from tests.bench.rows import GIB, KIB

PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench-results"
ROUNDS = 3
"""docs/ are only written from at least as many."""

CPU_SECONDS = 0.5
"""So much processor time each number is taken from at least: fifty ticks of the kernel's."""
_LEAST_ACTS = 100
"""As many requests, or openings, each number is taken from at least."""
_MOST_SECONDS = 15.0
"""After so long it is taken from less processor time."""
_WARM_SECONDS = 0.2
_LOOK_SECONDS = 0.05
_SETTLE_SECONDS = 1.5  # sessions that sit still give their buffers back within this
_BLOCK_BYTES = 4 * KIB


class Meter:
    """Divides a gateway's processor time by what it served, from a moment on when it is warm."""

    def __init__(
        self,
        used: Callable[[], float],
        wanted_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._used = used
        self._wanted = wanted_seconds
        self._clock = clock
        self._began: tuple[float, float, int] | None = None
        self._looks_at = clock() + _WARM_SECONDS
        self.result = 0.0
        """In microseconds."""

    def __call__(self, served: int) -> bool:
        """Whether as much was served as is wanted; `served` counts from the start."""
        now = self._clock()
        if now < self._looks_at:
            return False
        self._looks_at = now + _LOOK_SECONDS
        used = self._used()
        if self._began is None:
            self._began = (now, used, served)
            return False
        began, before, first = self._began
        enough = used - before >= self._wanted and served - first >= _LEAST_ACTS
        if not enough and now - began < _MOST_SECONDS:
            return False
        if served - first < _LEAST_ACTS or used <= before:
            text = f"{served - first} in {now - began:.1f} s, of which it used {used - before:.2f}"
            raise Broken(f"the gateway served too little to say what it costs: {text}")
        self.result = 1e6 * (used - before) / (served - first)
        return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 if all was measured, 1 if not, 2 if nothing could be."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        found = from_json(options.render.read_text()) if options.render else _run(options)
    except Broken as error:
        print(f"scale: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("scale: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    print(terminal(found))
    if options.write_docs:
        PAGE.write_text(replace_marked(PAGE.read_text(), markdown(found)))
        for curve in CURVES:
            scale_chart.draw(found, curve, PAGE.with_name(chart_name(curve)))
    return 1 if found.problems else 0


def _run(options: argparse.Namespace) -> Found:
    curves = [curve for curve in CURVES if re.search(options.curves, curve.kind)]
    points = list(dict.fromkeys(curve.point(n) for curve in curves for n in curve.numbers))
    if not points:
        known = ", ".join(curve.kind for curve in CURVES)
        raise Broken(f"no curve matches {options.curves!r}; there are {known}")
    allow_many_files()
    facts = {
        "medians of rounds": str(options.rounds),
        "load of the machine before": f"{os.getloadavg()[0]:.1f}",
        **{name: value for name, value in machine.facts().items() if name in _FACTS},
    }
    samples: dict[Point, dict[str, list[float | None]]] = {
        point: {act: [] for act in ACTS} for point in points
    }
    problems: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="nbd-scale-") as name,
        _upstream(Path(name)) as upstream,
    ):
        for number in range(options.rounds):
            # Each round begins elsewhere: a busy minute is not always the same point's.
            shift = number * len(points) // options.rounds
            for point in points[shift:] + points[:shift]:
                _measure(point, upstream, Path(name), options.seconds, samples[point], problems)
    found = Found(samples, facts, problems)
    RESULTS.mkdir(exist_ok=True)
    saved = RESULTS / time.strftime("scale-%Y%m%dT%H%M%SZ.json", time.gmtime())
    saved.write_text(to_json(found))
    print(f"{saved.relative_to(ROOT)}", file=sys.stderr)
    if options.write_docs is None:
        options.write_docs = len(curves) == len(CURVES) and options.rounds >= ROUNDS
    return found


_MOST_OF_A_PROBLEM = 300
_FACTS = ("interpreter", "kernel", "processors", "qemu-nbd")


def _measure(
    point: Point,
    upstream: Child,
    directory: Path,
    seconds: float,
    samples: dict[str, list[float | None]],
    problems: list[str],
) -> None:
    found: dict[str, float] = {}
    try:
        with _gateway(point, upstream, directory) as gateway:
            found |= _acts(point, gateway, seconds)
    except (Broken, OSError) as error:
        problems.append(f"{point}: {str(error)[:_MOST_OF_A_PROBLEM]}")
        print(f"  {point}: {error}", file=sys.stderr)
    else:
        costs = ", ".join(f"{act} {value:.1f} us" for act, value in found.items())
        print(f"  {point}: {costs}", file=sys.stderr)
    for act in ACTS:
        samples[act].append(found.get(act))


@contextlib.contextmanager
def _upstream(directory: Path) -> Iterator[Child]:
    # One thread for all connections. nbdkit has one for each at least, and a thousand of them leave the gateway
    # hardly any processor: then it is interrupted in the middle of every round, which costs it rounds. And a
    # Unix socket, because over TCP qemu-nbd 7.2 takes 40 ms to negotiate (it leaves Nagle's algorithm on).
    unix = directory / "upstream"
    command = [
        *("qemu-nbd", "-t", "-e", str(MOST_CONNECTIONS), "-k", str(unix)),
        *("--image-opts", f"driver=null-co,size={GIB},read-zeroes=off"),
    ]
    child = Child("upstream", command, 0, directory / "upstream.log", unix=unix)
    try:
        yield child
    finally:
        child.stop()


@contextlib.contextmanager
def _gateway(point: Point, upstream: Child, directory: Path) -> Iterator[Child]:
    port = free_port()
    config = directory / f"scale-{port}.toml"
    config.write_text(configuration(point, f"nbd://127.0.0.1:{port}", upstream.uri))
    script = str(Path(sys.executable).with_name("nbd-gateway"))
    command = [script, "serve", "--config", str(config)]
    child = Child("gateway", command, port, directory / f"gateway-{port}.log")
    try:
        yield child
    finally:
        child.stop()


def _acts(point: Point, gateway: Child, seconds: float) -> dict[str, float]:
    with contextlib.ExitStack() as open_now:
        sessions = []
        for name in names_of_sessions(point):
            session = Session(gateway.port, structured=True, name=name)
            open_now.callback(session.close)
            sessions.append(session)
        found = {}
        for act in ACTS:
            if act in (OPENING, LATE_OPENING):
                found[act] = _openings(gateway, names(point), seconds)
            else:
                requests = [_request(act, number) for number in range(len(sessions))]
                meter = _meter(gateway, seconds)
                at_depth_one(sessions, requests, meter)
                found[act] = meter.result
        for session in sessions:
            session.leave()
        if not gateway.running:
            raise Broken(f"the gateway ended:\n{gateway.last_words()}")
        return found


def _openings(gateway: Child, there: Sequence[str], seconds: float) -> float:
    chance = random.Random(0)  # any export: those at the end of the configuration, too
    time.sleep(_SETTLE_SECONDS)
    meter = _meter(gateway, seconds)
    count = 0
    while not meter(count):
        session = Session(gateway.port, structured=True, name=chance.choice(there))
        with contextlib.closing(session):
            session.answer(_request(READ, 0))
            session.leave()
        count += 1
    return meter.result


def _meter(gateway: Child, seconds: float) -> Meter:
    return Meter(lambda: processor_seconds(gateway.pid), seconds)


def _request(act: str, number: int) -> bytes:
    data = b"x" * _BLOCK_BYTES if act == WRITE else b""
    return Session.requests(act, [(number * 16 * _BLOCK_BYTES, _BLOCK_BYTES)]) + data


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__)
    add = parser.add_argument
    add("--curves", default="", metavar="PATTERN", help="only curves whose kind this finds")
    add("--rounds", type=int, default=ROUNDS, help="how often each is measured (%(default)s)")
    add(
        "--seconds",
        type=float,
        default=CPU_SECONDS,
        help="processor time that each number is taken from (%(default)s)",
    )
    add(
        "--write-docs",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="put tables and charts into docs/; by itself after a full run",
    )
    add("--render", type=Path, metavar="JSON", help="measure nothing: show this earlier run")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

"""One measurement of each kind of load; every one gives a number in its row's unit or raises Broken."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.client import Session
from tests.bench.floods import times_alone
from tests.bench.peers import Stage
from tests.bench.processes import (
    Broken,
    Child,
    idle_and_all_seconds,
    processor_seconds,
    resident_mib,
    run_tool,
)
from tests.bench.rows import (
    EXTENDED_CLIENT,
    GIB,
    KIB,
    MIB,
    AtRest,
    BesideFlood,
    Copy,
    Fio,
    Idle,
    Load,
    NeverReads,
    Pump,
    Row,
    Start,
)

_SPARE_SECONDS = 30.0  # what a tool may take beyond its own running time before it counts as hung
_SETTLE_SECONDS = 1.5  # idle sessions give their buffers back within this
_STUCK_SECONDS = 3.0  # how long a gateway is watched while nobody reads from it
_SAMPLE_SECONDS = 0.02
_REST_SECONDS = 10  # a tick of the kernel's is a tenth of a per cent of it


@dataclass(frozen=True)
class Sample:
    """What one measurement gave."""

    value: float
    microseconds: float | None = None
    """Processor time of the contestant for each request, where requests are counted and somebody is between."""
    idle: float | None = None


def measure(row: Row, name: str, stage: Stage, seconds: float) -> Sample:
    """One sample of one contestant."""
    load: Load = row.load
    try:
        match load:
            case Fio():
                in_thousands = row.unit == "k/s"
                uri = stage.uri(name)
                return _with_its_cost(
                    name,
                    stage,
                    lambda: _fio(load, uri, seconds, stage.home, in_thousands=in_thousands),
                )
            case Pump():
                uri, extended = stage.uri(name), name == EXTENDED_CLIENT
                return _with_its_cost(
                    name, stage, lambda: _pump(load, uri, seconds, extended=extended)
                )
            case Copy():
                return Sample(_copy(load, stage.uri(name), stage.upstream.uri))
            case Start():
                return Sample(_start(load, name, stage))
            case Idle():
                return Sample(_idle(load, name, stage))
            case AtRest():
                return Sample(_at_rest(load, name, stage))
            case NeverReads():
                return Sample(_never_reads(load, name, stage))
            case BesideFlood():
                port = int(stage.uri(name).rpartition(":")[2])
                return Sample(times_alone(load.kind, port, seconds))
    except OSError as error:
        raise Broken(str(error)) from error


def _with_its_cost(name: str, stage: Stage, load: Callable[[], tuple[float, float]]) -> Sample:
    """`load` gives a number in the row's unit, and how many requests that took."""
    pid = stage.pid(name)
    before = 0.0 if pid is None else processor_seconds(pid)
    idle_before, all_before = idle_and_all_seconds()
    value, requests = load()
    idle, everything = idle_and_all_seconds()
    microseconds = None
    if pid is not None and requests:
        microseconds = (processor_seconds(pid) - before) * 1e6 / requests
    passed = everything - all_before
    return Sample(value, microseconds, (idle - idle_before) / passed if passed else None)


def _fio(
    load: Fio, uri: str, seconds: float, home: Path, *, in_thousands: bool
) -> tuple[float, float]:
    command = [
        *("fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", f"--rw=rand{load.verb}"),
        *(() if load.reach_bytes is None else (f"--size={load.reach_bytes}",)),
        *(f"--bs={load.block_bytes}", f"--iodepth={load.depth}"),
        *(f"--numjobs={load.connections}", "--group_reporting"),
        *("--time_based", f"--runtime={round(seconds * 1000)}ms", "--output-format=json"),
    ]
    printed = run_tool(["env", f"HOME={home}", *command], seconds + _SPARE_SECONDS)
    # fio prints its warnings in front of the JSON.
    (job,) = json.loads(printed[printed.index("{") :])["jobs"]
    found = job[load.verb]
    if job["error"] or not found["total_ios"]:
        raise Broken(f"fio reports error {job['error']}")
    per_second = float(found["iops"]) / 1e3 if in_thousands else float(found["bw_bytes"]) / 1e6
    return per_second, float(found["total_ios"])


def _pump(load: Pump, uri: str, seconds: float, *, extended: bool) -> tuple[float, float]:
    session = Session(int(uri.rpartition(":")[2]), extended=extended, structured=True)
    with contextlib.closing(session):
        per_second = session.pump(load.block_bytes, load.depth, GIB, seconds)
    requests = per_second * seconds
    if load.block_bytes < MIB:
        return per_second / 1e3, requests
    return per_second * load.block_bytes / 1e6, requests


def _copy(load: Copy, uri: str, upstream: str) -> float:
    # Written onto itself through the contestant: the same bytes, so that all rounds are alike.
    ends = (uri, "null:") if load.verb == "read" else (upstream, uri)
    began = time.perf_counter()
    run_tool(["nbdcopy", f"--connections={load.connections}", "--", *ends], 4 * _SPARE_SECONDS)
    return GIB / 1e6 / (time.perf_counter() - began)


def _start(load: Start, name: str, stage: Stage) -> float:
    variables = stage.modules(compiled=load.compiled)
    child = stage.start(name, stage.upstream.uri, variables)
    used = processor_seconds(child.pid)
    child.stop()
    return used


def _idle(load: Idle, name: str, stage: Stage) -> float:
    with _sitting_still(load.sessions, name, stage) as (child, _sessions):
        return resident_mib(child.pid)


def _at_rest(load: AtRest, name: str, stage: Stage) -> float:
    """In per cent of one processor."""
    with _sitting_still(load.sessions, name, stage) as (child, sessions):
        before, began = processor_seconds(child.pid), time.monotonic()
        for _ in range(_REST_SECONDS):
            time.sleep(1)  # what is measured is a time in which nothing is asked
            if load.asks:
                sessions[0].read(0, 4 * KIB)
        used = processor_seconds(child.pid) - before
        return 100 * used / (time.monotonic() - began)


@contextlib.contextmanager
def _sitting_still(count: int, name: str, stage: Stage) -> Iterator[tuple[Child, list[Session]]]:
    with contextlib.ExitStack() as open_now:
        # nbdkit makes 16 threads for each connection unless it is told not to.
        upstream = stage.memory_server("-t", "1")
        open_now.callback(upstream.stop)
        child = stage.start(name, upstream.uri)
        open_now.callback(child.stop)
        sessions = []
        for _ in range(count):
            session = Session(child.port)
            open_now.callback(session.close)
            # A session that never did anything is the easy case: one that was active has to give
            # its buffers back.
            session.read(0, 64 * KIB)
            sessions.append(session)
        time.sleep(_SETTLE_SECONDS)
        yield child, sessions


def _never_reads(load: NeverReads, name: str, stage: Stage) -> float:
    with contextlib.ExitStack() as open_now:
        # An upstream of its own: nbdkit 1.32 aborts ("Assertion `sock >= 0' failed") when a connection
        # with many replies under way is reset, and that would be the end of all later rows.
        upstream = stage.memory_server()
        open_now.callback(upstream.stop)
        child = stage.start(name, upstream.uri)
        open_now.callback(child.stop)
        witness = Session(child.port)
        open_now.callback(witness.close)
        witness.read(0, load.request_bytes)
        stuck = Session(child.port)
        open_now.callback(stuck.close)
        before = peak = resident_mib(child.pid)
        stuck.ask_reads(load.requests, load.request_bytes, GIB)
        until = time.monotonic() + _STUCK_SECONDS
        while time.monotonic() < until:
            peak = max(peak, resident_mib(child.pid))
            time.sleep(_SAMPLE_SECONDS)
        for each in (child, upstream):
            if not each.running:
                raise Broken(f"{each.name} ended:\n{each.last_words()}")
        # Bounded is not enough: others have to be served meanwhile.
        witness.read(MIB, 4 * KIB)
        return peak - before

"""Clients that ask for as much as a server takes of what costs it most: python -m tests.bench.floods KIND PORT

A gateway serves all its clients on one thread, so that each of them is a neighbour of all others. What a flood
costs one who asks for a block at a time is a row of its own ("beside a flood").
"""

from __future__ import annotations

import contextlib
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from tests.bench.client import Session
from tests.bench.processes import Broken
from tests.bench.rows import GIB, KIB

FLOODERS = 4
BATCH = 2048
"""Requests that a flooder sends at a time; two batches are under way, so that there is always one to serve."""

STATUS_BATCH = 256
"""Its replies are longer: as many as fit into the sockets' buffers, or the flood stops itself."""

FLOOD_SECONDS = 120
"""A flooder ends by itself, whoever has forgotten it."""

_STATUS_BYTES = 64 * KIB


def _one_byte_reads(port: int) -> Iterator[None]:
    session = Session(port)
    requests = session.requests("READ", ((number, 1) for number in range(BATCH)))
    yield from session.flood(requests, BATCH)


def _unknown_commands(port: int) -> Iterator[None]:
    session = Session(port)
    requests = session.requests("unknown", ((0, 0) for _ in range(BATCH)))
    yield from session.flood(requests, BATCH)


def _status(port: int) -> Iterator[None]:
    session = Session(port, structured=True, context="base:allocation")
    places = (random.randrange(GIB // _STATUS_BYTES) * _STATUS_BYTES for _ in range(STATUS_BATCH))
    requests = session.requests("BLOCK_STATUS", ((place, _STATUS_BYTES) for place in places))
    yield from session.flood(requests, STATUS_BATCH)


def _opening(port: int) -> Iterator[None]:
    while True:
        Session(port).close()
        yield


FLOODS: dict[str, Callable[[int], Iterator[None]]] = {
    "1-byte READs": _one_byte_reads,
    "unknown commands": _unknown_commands,
    "BLOCK_STATUS": _status,
    "opening and leaving": _opening,
}


def times_alone(kind: str, port: int, seconds: float) -> float:
    """How many times as long a READ of 4 KiB takes beside four flooders as alone: medians, at depth 1. Raises
    `Broken`.
    """
    session = Session(port)
    with contextlib.closing(session):
        alone = _median_seconds(session, seconds / 2)
        with _flooded(kind, port):
            beside = _median_seconds(session, seconds)
    return beside / alone


def _median_seconds(session: Session, seconds: float) -> float:
    took = []
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        session.read(random.randrange(GIB // (4 * KIB)) * 4 * KIB, 4 * KIB)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


@contextlib.contextmanager
def _flooded(kind: str, port: int) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.bench.floods", kind, str(port)]
    flooders = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(FLOODERS)
    ]
    try:
        for each in flooders:
            assert each.stdout is not None
            each.stdout.readline()  # the first batch is answered, or it has ended
        yield
        for each in flooders:
            if each.poll() is not None:
                assert each.stderr is not None
                lines = each.stderr.read().strip().splitlines()[-1:]
                raise Broken(f"a flooder ended: {' '.join(lines)}")
    finally:
        for each in flooders:
            each.kill()
        for each in flooders:
            each.communicate()


def main() -> None:
    """Be one of them."""
    kind, port = sys.argv[1], int(sys.argv[2])
    until = time.monotonic() + FLOOD_SECONDS
    flood = FLOODS[kind](port)
    next(flood)
    print("it has begun", flush=True)
    while time.monotonic() < until:
        next(flood)


if __name__ == "__main__":
    main()

"""Clients that ask for as much as a server takes of what costs it most.

    python -m tests.bench.floods KIND PORT SECONDS

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

_BEGIN_SECONDS = 1.0
"""So long before the one who is to suffer begins, and after, a flooder is there."""

_SPARE_SECONDS = 30.0

_STATUS_BYTES = 64 * KIB


def _one_byte_reads(port: int, seconds: float) -> Iterator[None]:
    session = Session(port)
    requests = session.requests("READ", ((number, 1) for number in range(BATCH)))
    yield from session.flood(requests, BATCH, seconds)


def _unknown_commands(port: int, seconds: float) -> Iterator[None]:
    session = Session(port)
    requests = session.requests("unknown", ((0, 0) for _ in range(BATCH)))
    yield from session.flood(requests, BATCH, seconds)


def _status(port: int, seconds: float) -> Iterator[None]:
    session = Session(port, structured=True, context="base:allocation")
    places = (random.randrange(GIB // _STATUS_BYTES) * _STATUS_BYTES for _ in range(STATUS_BATCH))
    requests = session.requests("BLOCK_STATUS", ((place, _STATUS_BYTES) for place in places))
    yield from session.flood(requests, STATUS_BATCH, seconds)


def _opening(port: int, seconds: float) -> Iterator[None]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        Session(port).leave()
        yield


FLOODS: dict[str, Callable[[int, float], Iterator[None]]] = {
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
        with _flooded(kind, port, seconds + 2 * _BEGIN_SECONDS):
            beside = _median_seconds(session, seconds)
        session.leave()
    return beside / alone


def _median_seconds(session: Session, seconds: float) -> float:
    took = []
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        session.read(random.randrange(GIB // (4 * KIB)) * 4 * KIB, 4 * KIB)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


@contextlib.contextmanager
def _flooded(kind: str, port: int, seconds: float) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.bench.floods", kind, str(port), str(seconds)]
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
            # nbdkit 1.32 aborts if one is reset that has much under way: they leave in good order.
            _, complaints = each.communicate(timeout=_SPARE_SECONDS)
            if each.returncode:
                raise Broken(f"a flooder: {' '.join(complaints.strip().splitlines()[-1:])}")
    except subprocess.TimeoutExpired:
        raise Broken(f"flooders have not ended {_SPARE_SECONDS:g} s after their time") from None
    finally:
        for each in flooders:
            each.kill()
            each.communicate()


def main() -> None:
    """Be one of them."""
    kind, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    flood = FLOODS[kind](port, seconds)
    next(flood)
    print("it has begun", flush=True)
    for _ in flood:
        pass


if __name__ == "__main__":
    main()

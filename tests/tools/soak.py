"""`make soak SECONDS=3600`: schedules of new seeds until the time is over, on all processors.

    python -m tests.tools.soak --seconds 3600
    python -m tests.tools.soak --seconds 3600 --first 1000000     from this seed on, one after the other
    python -m tests.tools.soak --seconds 3600 --only "connections = 4"   those whose settings say so

Prints each seed that fails, with the smallest schedule that fails as it does, and ends with 1 if there was one.
`python -m tests.tools.schedules SEED` shows the whole of it again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import sys
import time
from collections.abc import Iterator
from itertools import count
from random import SystemRandom

from tests.tools.schedules.run import plan_of, run
from tests.tools.schedules.shrink import shrink

TOGETHER = 20
"""Seeds that a process takes at a time: about a second's."""

LOOK_SECONDS = 60.0
"""How often it is looked whether those who run them are there: they say something more often than that."""

MOST_SHOWN = 20
"""So many that fail are made small; of the others only the seed is printed."""

FIRST_SEEDS = 10**12
"""Where those begin that nobody has named."""


def _failing(seeds: range, only: str) -> tuple[int, list[tuple[int, str]]]:
    """Give how many were run, and which fail, with what was wrong."""
    failing: list[tuple[int, str]] = []
    done = 0
    for seed in seeds:
        settings, steps = plan_of(seed)
        if only and only not in str(settings):
            continue
        done += 1
        if problem := run(seed, settings, steps).problem:
            failing.append((seed, problem))
    return done, failing


def _work(first: int, only: str, behind: float, found: multiprocessing.Queue[object]) -> None:
    """Run every how manieth batch there is."""
    try:
        for start in count(first, TOGETHER * _processes()):
            if time.monotonic() > behind:
                break
            found.put(_failing(range(start, start + TOGETHER), only))
    finally:
        found.put(None)


def _processes() -> int:
    return len(os.sched_getaffinity(0))


def _results(first: int, only: str, seconds: float) -> Iterator[tuple[int, list[tuple[int, str]]]]:
    found: multiprocessing.Queue[object] = multiprocessing.Queue()
    behind = time.monotonic() + seconds
    workers = [
        multiprocessing.Process(
            target=_work, args=(first + number * TOGETHER, only, behind, found), daemon=True
        )
        for number in range(_processes())
    ]
    for worker in workers:
        worker.start()
    at_work = len(workers)
    while at_work:
        try:
            result = found.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            if any(worker.exitcode for worker in workers):  # killed, without a word
                break
            continue
        if result is None:
            at_work -= 1
        else:
            assert isinstance(result, tuple)
            yield result
    for worker in workers:
        worker.join(LOOK_SECONDS)
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("a worker has failed")


def main() -> int:
    """Give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.soak", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first", type=int, help="another one each time, unless it is given")
    parser.add_argument("--only", default="", help="words of the settings, as they are printed")
    said = parser.parse_args()
    first = SystemRandom().randrange(FIRST_SEEDS) if said.first is None else said.first
    print(f"from seed {first} on", flush=True)
    failed: list[int] = []
    done = 0
    for ran, seeds in _results(first, said.only, said.seconds):
        done += ran
        for seed, problem in seeds:
            failed.append(seed)
            print(f"seed {seed} fails: {problem}", flush=True)
            if len(failed) <= MOST_SHOWN:
                again = run(seed, *plan_of(seed))
                # The kernel has a say in the order of things: it may take several runs to see it again.
                print(shrink(again) if again.problem else "not again", flush=True)
    print(f"{done} schedules, {len(failed)} fail{': ' * bool(failed)}{', '.join(map(str, failed))}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

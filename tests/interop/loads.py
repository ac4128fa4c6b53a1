"""Loads that run until they are told to end: what a test wants to see takes as long as it takes."""

from __future__ import annotations

import json
import re
from typing import Any

from .clients import start_script
from .processes import Process, wait_until

ENDED_BY_SIGNAL = 128
"""fio's status if it was told to end, and had found nothing wrong until then."""

LONGEST_SECONDS = 3000
"""How long fio runs if nobody ends it: longer than any test."""


def reading(uri: str) -> Process:
    """16 READs in flight, until it is `ended`."""
    return start_script("load", uri)


def ended(load: Process) -> dict[str, Any]:
    """End one; what it has asked is answered first. Give its report, which has nothing bad in it."""
    wait_until(lambda: "begun\n" in load.output or not load.running, "it has begun")
    assert load.stop() == 0, load.output
    report = reported(load)
    assert (report["bad"], report["unanswered"], report["died"]) == ({}, 0, False), report
    return report


def reported(load: Process) -> dict[str, Any]:
    """Give what one that has ended says of itself."""
    report: dict[str, Any] = json.loads(load.output.splitlines()[-1])
    return report


def writing(uri: str, *, jobs: int, mib: int, depth: int, more: tuple[str, ...] = ()) -> Process:
    """fio's clients that write, FLUSH, read again and compare, each in so many MiB of its own, until they are
    `verified`.
    """
    return Process(
        *("fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k"),
        *("--verify=crc32c", "--verify_backlog=256", "--verify_fatal=1", "--fsync=64"),
        # Or it leaves a file of its own for each job where it was started.
        *("--verify_state_save=0", f"--size={mib}m", f"--offset_increment={mib}m"),
        *(f"--iodepth={depth}", f"--numjobs={jobs}", "--time_based"),
        *(f"--runtime={LONGEST_SECONDS}", *more),
    )


def verified(load: Process, *, jobs: int) -> None:
    """End fio, which has found nothing wrong."""
    assert load.stop() == ENDED_BY_SIGNAL, load.output
    assert re.findall(r": err= *(\d+)", load.output) == ["0"] * jobs, load.output

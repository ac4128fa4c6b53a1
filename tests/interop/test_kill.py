"""Servers that are killed with -9 under load, and what their clients see of it: the short form of
`tests.tools.kill_run`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.tools.kill_plan import NOBODY_CAME_FROM_ELSEWHERE, NOTHING_LOST, Plan, Report
from tests.tools.kill_run import run

from .gateways import MODE

pytestmark = pytest.mark.skipif(MODE != "gateway", reason="a relay does not survive its server")


TRIES = 4
"""Whether a kill finds anything that is not flushed is chance, and a busy machine's. A run in which none did
is no answer, so there is another."""


SHORT_SECONDS = 3
"""A second from one kill to the next: the load is at work within tenths of one, and what is not flushed is
younger than that. `Plan` has twice as long; where kills have found nothing there are more, and more runs."""


def killed(plan: Plan, workdir: Path) -> Report:
    for seed in range(plan.seed, plan.seed + TRIES):
        directory = workdir / str(seed)
        directory.mkdir()
        report: Report = trio.run(run, replace(plan, seed=seed), directory)
        print(report, report.gateway, sep="\n")
        if not {NOTHING_LOST, NOBODY_CAME_FROM_ELSEWHERE} & {*report.problems}:
            break
    return report


@pytest.mark.parametrize(
    ("mode", "server"),
    [
        ("sticky", "qemu-nbd"),
        ("replay", "nbdkit"),
        ("verify", "qemu-nbd"),
        *(
            pytest.param(mode, server, marks=pytest.mark.exhaustive)
            for mode, server in (("sticky", "nbdkit"), ("replay", "qemu-nbd"), ("verify", "nbdkit"))
        ),
    ],
)
def test_three_kills(mode: str, server: str, workdir: Path) -> None:
    report = killed(Plan(mode, server, seed=7, seconds=SHORT_SECONDS), workdir)
    assert not report.problems, report
    assert len(report.lost) >= 3


@pytest.mark.parametrize("connections", ["per-client", "4", "shared:4"])
def test_three_kills_in_other_modes(connections: str, workdir: Path) -> None:
    report = killed(Plan("sticky", seed=8, connections=connections, seconds=SHORT_SECONDS), workdir)
    assert not report.problems, report


@pytest.mark.parametrize(
    ("server", "connections"), [("nbdkit", "shared"), ("command", "per-client")]
)
def test_kills_across_upgrades(server: str, connections: str, workdir: Path) -> None:
    plan = Plan("sticky", server, seed=12, connections=connections, upgrades=2, kills=2, seconds=4)
    report = killed(plan, workdir)
    assert not report.problems, report
    assert report.counts["upgrades"] == 2


@pytest.mark.parametrize("connections", ["per-client", "4"])
def test_what_one_wrote_who_has_left_without_a_flush_is_told_the_others(
    connections: str, workdir: Path
) -> None:
    plan = Plan(
        "sticky",
        seed=11,
        connections=connections,
        readers=True,
        clients=1,
        depth=1,
        seconds=SHORT_SECONDS,
    )
    report = killed(plan, workdir)
    assert not report.problems, report
    assert report.counts["session left unflushed"]


@pytest.mark.parametrize("mode", ["replay", "sticky", "assume-durable"])
def test_three_cuts(mode: str, workdir: Path) -> None:
    report = killed(
        Plan(mode, by="cut", seed=9, late_write_seconds=2, seconds=SHORT_SECONDS), workdir
    )
    assert not report.problems, report


def test_a_server_that_is_stopped_is_waited_for(workdir: Path) -> None:
    report = killed(Plan("sticky", by="stop", seed=10, seconds=SHORT_SECONDS), workdir)
    assert not report.problems, report


def test_without_survival_the_loss_is_seen(workdir: Path) -> None:
    """The proof that those above can fail. (Where nothing is promised but to be told, a session that ends
    is.)"""
    report = killed(Plan("replay", seed=1, survival=False), workdir)
    assert any("has stamp" in each or "was lost" in each for each in report.problems), report


def test_without_survival_and_without_loss_all_is_well(workdir: Path) -> None:
    """The proof that they need not."""
    report = killed(
        Plan("assume-durable", "qemu-nbd", seed=2, survival=False, seconds=SHORT_SECONDS), workdir
    )
    assert not report.problems, report
    assert report.counts["session cut"] > 1


@pytest.mark.parametrize("silent", [False, True])
def test_three_kills_before_two_workers(workdir: Path, *, silent: bool) -> None:
    """Clients of one disk come to both, and write parts of its blocks; also where one is silent meanwhile."""
    plan = Plan("sticky", seed=12, workers=2, coarse=True, silent=silent, seconds=SHORT_SECONDS)
    report = killed(plan, workdir)
    assert not report.problems, report
    assert bool(report.counts["stopped workers"]) == silent


def test_without_homes_two_workers_are_wrong_together(workdir: Path) -> None:
    """The proof that the test before this can fail: one undoes what the other has written."""
    plan = Plan("sticky", seed=12, workers=2, coarse=True, homes=False, until_wrong=True)
    report = killed(plan, workdir)
    assert any("has stamp" in each for each in report.problems), report


@pytest.mark.parametrize("by", ["worker", "supervisor"])
def test_what_was_flushed_is_there_whichever_process_of_the_gateway_is_killed(
    by: str, workdir: Path
) -> None:
    plan = Plan("sticky", seed=13, by=by, kills=2, seconds=2, workers=2, coarse=True)
    report = killed(plan, workdir)
    assert not report.problems, report

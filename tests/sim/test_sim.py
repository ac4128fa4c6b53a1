"""The simulation of a fleet: it is as its rules say, and docs/scale.md has what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from gateway.fleet.lease import RENEWALS
from tests.fleet.etcds import running
from tests.sim import measure
from tests.sim.__main__ import PAGE, written
from tests.sim.engine import Costs, Engine, Step
from tests.sim.fleet import COMES_BACK_SECONDS, Asked, Seen, seen_of
from tests.sim.found import COSTS, TABLES, UNBOUNDED, costs_of, costs_table, table
from tests.sim.world import World

QUICK = Costs(Step(0.001, 0.0001), Step(0.001, 0.0001), Step(0.002, 0.0005), 0.00002, 0.5)
SLOW = Costs(Step(0.01, 0.001), Step(0.01, 0.001), Step(0.02, 0.01), 0.0001, 0.5)
"""With these, 50 gateways already ask for more than etcd does in time."""


def test_events_come_in_their_order() -> None:
    world, seen = World(1), []
    for seconds in (2.0, 1.0, 1.0, 3.0):
        world.later(seconds, lambda each: seen.append((world.now, each)), len(seen) + seconds)
    world.run(2.5)
    assert seen == [(1.0, 1.0), (1.0, 1.0), (2.0, 2.0)]
    assert world.now == 2.5


def test_one_waits_for_another_at_etcd() -> None:
    world = World(1)
    engine, answers = Engine(world, QUICK), []
    for _ in range(3):
        engine.ask(Step(alone=0.5, busy=1.0), lambda: answers.append(world.now))
    engine.ask(Step(alone=9.0, busy=1.0), lambda: answers.append(world.now))
    world.run(60)
    assert answers == [1.0, 2.0, 3.0, 12.0]


def test_who_asks_twice_is_told_the_same() -> None:
    asked = Asked(gateways=10, disks=500, lost=3, at_once=4)
    assert seen_of(asked, QUICK) == seen_of(asked, QUICK)
    assert seen_of(asked, QUICK) != seen_of(Asked(10, 500, 3, 4, seed=2), QUICK)


def test_a_disk_is_homeless_until_the_lease_has_ended_and_not_for_much_longer() -> None:
    seen = seen_of(Asked(gateways=10, disks=1000, lost=1, at_once=4), QUICK)
    assert len(seen.homeless) == 100
    assert not seen.still_homeless
    assert not seen.lost_their_lease
    assert seen.homeless[0] > 10 * (1 - 1 / RENEWALS)
    assert seen.homeless[-1] < 10 + QUICK.notice + COMES_BACK_SECONDS + 1


def test_without_a_fence_all_wait_for_late_writes_as_well() -> None:
    asked = Asked(gateways=10, disks=1000, lost=1, at_once=4)
    without = seen_of(asked, QUICK)
    late = seen_of(Asked(10, 1000, 1, 4, late_write_seconds=30), QUICK)
    assert late.of(0.5) == pytest.approx(without.of(0.5) + 30, abs=1)


def test_who_takes_too_much_at_once_takes_others_their_leases() -> None:
    def half_is_lost(at_once: int) -> Seen:
        return seen_of(Asked(gateways=50, disks=5000, lost=25, at_once=at_once), SLOW)

    unbounded = half_is_lost(UNBOUNDED)
    assert unbounded.lost_their_lease > 0
    assert unbounded.had_to_stop > 0
    bounded = half_is_lost(4)
    assert bounded.had_to_stop == 0
    assert bounded.lost_their_lease == 0
    assert not bounded.still_homeless
    assert bounded.longest_renewal < 10


def test_several_etcds_are_done_sooner() -> None:
    one, two = (
        seen_of(Asked(gateways=50, disks=5000, lost=25, at_once=4, etcds=etcds), SLOW)
        for etcds in (1, 2)
    )
    assert len(one.homeless) == len(two.homeless)
    assert two.of(1) < 0.8 * one.of(1)


def test_the_page_has_what_the_simulation_says() -> None:
    """As far as that is had in a moment; `python -m tests.sim` writes all of it."""
    costs, page = costs_of(COSTS.read_text()), PAGE.read_text()
    assert written(page, "costs", costs_table(costs)) == page
    for name in ("renewals", "rack"):
        each = TABLES[name]
        runs = [asked for asked in each.runs if asked.gateways <= 100]
        for asked in runs:
            assert "| " + " | ".join(each.row(asked, seen_of(asked, costs))) + " |" in page


@pytest.mark.exhaustive
def test_the_page_has_all_of_it() -> None:
    costs, page = costs_of(COSTS.read_text()), PAGE.read_text()
    for name, each in TABLES.items():
        rows = [each.row(asked, seen_of(asked, costs)) for asked in each.runs]
        assert written(page, name, table(rows, each.head)) == page


def test_a_table_needs_its_marks() -> None:
    assert written("a <!-- x -->old<!-- /x --> b", "x", "new") == "a <!-- x -->\nnew\n<!-- /x --> b"
    with pytest.raises(ValueError, match="has no <!-- x -->"):
        written("a <!-- /x --> b", "x", "new")


@pytest.mark.real
def test_etcd_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few questions: whether it says something of everything."""
    for name, few in (("ALONE", 3), ("SECONDS", 0.1), ("KEYS", (1, 50)), ("LEASES", 1)):
        monkeypatch.setattr(measure, name, few)
    with running(tmp_path / "etcd") as members:
        found = trio.run(measure.measured, members.uris[0])
    costs = costs_of(json.dumps(found))
    for step in (costs.renewal, costs.read, costs.write):
        assert step.busy > 0
        assert step.alone > 0
    assert costs.notice > 0

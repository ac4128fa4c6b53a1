"""Whole gateways, schedule by schedule; and the harness itself.

`python -m tests.tools.schedules SEED --shrink` shows what a seed that fails comes down to.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from gateway.bundle import recovery
from gateway.losses.rule import Losses
from gateway.upgrade.giving import Gifts
from tests.tools.schedules import settings, steps
from tests.tools.schedules.geometry import BLOCKS, BORDER_BLOCK, FIRST_BLOCKS, length_of, offset_of
from tests.tools.schedules.run import Outcome, plan_of, run
from tests.tools.schedules.settings import LATE_SECONDS, Settings
from tests.tools.schedules.shrink import shrink
from tests.tools.schedules.steps import Step
from tests.tools.shares import batches

SCHEDULES = 2000
"""Three minutes of a processor."""

TOGETHER = 100
"""In one test: a machine that has much else to do needs a minute for them."""


@pytest.mark.parametrize("first", batches(SCHEDULES, TOGETHER, ordinary=5 * TOGETHER))
def test_whole_gateways_keep_their_promises(first: int) -> None:
    outcomes = (run(seed, *plan_of(seed)) for seed in range(first, first + TOGETHER))
    found = [outcome for outcome in outcomes if outcome.problem]
    if found:
        seeds = ", ".join(str(outcome.seed) for outcome in found)
        pytest.fail(f"seeds {seeds} fail, the first of them so:\n{found[0]}")


FOUND = (
    *(417730015073, 519240011291, 246810000909, 246810005482, 246810010761),
    *(731000016765, 742000023368, 830000016632, 830000017299),
)
"""Seeds in which a gateway was wrong, and no other test of its size is known."""


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found(seed: int) -> None:
    assert not run(seed, *plan_of(seed, upgrades=False)).problem


def of(*steps: str, seed: int = 0, **more: object) -> Outcome:
    """Carry out steps, such as "open 1"."""
    settings = replace(Settings(held=0.0), **more)  # type: ignore[arg-type]
    return run(seed, settings, [Step(*_parsed(step)) for step in steps])


def _parsed(step: str) -> tuple[str, int]:
    what, number = step.split()
    return what, int(number)


def test_a_quiet_schedule_is_right() -> None:
    outcome = of("open 1", "ask 2", "flush 3", "leave 4", "open 5")
    assert not outcome.problem
    assert any("leaves" in event for event in outcome.events)


ALONE = replace(Settings(held=0.0), older=True, multi_conn=False)
WRITTEN = ("rewind 1", "ask 2", "flush 3")  # a snapshot; then a write alone, made safe


@pytest.mark.parametrize("trusts", [False, True])
def test_a_server_that_comes_back_older_ends_who_has_flushed_since(
    trusts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the oracle misses the end of one that goes on."""
    if trusts:
        monkeypatch.setattr(recovery, "is_another", lambda *_, strict: False)
    steps = [Step(*_parsed(step)) for step in ("open 1", *WRITTEN, "rewind 4", "open 5")]
    outcome = run(0, ALONE, steps)
    assert any("older by 1 writes" in event for event in outcome.events)
    assert ("goes on, on a disk without" in outcome.problem) == trusts
    assert bool(outcome.problem) == trusts


def test_who_has_lost_nothing_does_not_end() -> None:
    steps = [
        Step(*_parsed(step)) for step in ("open 1", "ask 2", "flush 3", "rewind 1", "rewind 4")
    ]
    outcome = run(0, ALONE, steps)
    assert any("older by 0 writes" in event for event in outcome.events)
    assert not outcome.problem


UPGRADED = {
    "before": ("open 1", "ask 2", "kill 1", "leave 4", "upgrade 2"),
    "between": ("open 1", "ask 2", "upgrade 2", "open 3", "kill 1", "leave 4", "leave 5", "wait 1"),
    "and its session ended": ("open 1", "ask 2", "kill 1", "upgrade 1"),
}
"""When something is lost: in the older gateway alone; while there are two; before the end of whoever has to be
told. By their numbers, an upgrade 1 ends sessions at once, a 2 lets them stay, and a kill 1 loses all."""


@pytest.mark.parametrize("hands_over", [True, False], ids=["hands over", "forgets"])
@pytest.mark.parametrize("connections", ["per-client", "shared"])
@pytest.mark.parametrize("when", UPGRADED)
def test_what_was_lost_in_the_older_gateway_is_told_by_the_newer_one(
    when: str, connections: str, hands_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the oracle misses what one does not hand over."""
    if not hands_over:
        monkeypatch.setattr(Gifts, "_give_losses", lambda *_: None)
    outcome = of(*UPGRADED[when], connections=connections)
    print(outcome)
    assert any("older gateway has ended" in event for event in outcome.events)
    assert ("was lost" in outcome.problem) == (not hands_over), str(outcome)
    assert bool(outcome.problem) == (not hands_over)


def test_a_seed_is_a_schedule() -> None:
    one, other = (run(5, *plan_of(5)) for _ in range(2))
    assert one.events == other.events
    assert one.problem == other.problem


def test_all_that_may_be_drawn_is_drawn() -> None:
    drawn = [settings.draw(Random(seed)) for seed in range(1000)]
    assert all(each.possible for each in drawn)
    assert {each.connections for each in drawn} == set(settings.CONNECTIONS)
    assert {each.unflushed for each in drawn} == {"sticky", "verify", "replay", "assume-durable"}
    assert {each.alias for each in drawn} == {"", "name", "upstream", "switch"}
    assert {each.policies for each in drawn} == {"", *settings.POLICIES}
    words = {step.what for seed in range(100) for step in steps.draw(Random(seed))}
    assert words == steps.STEPS.keys() | steps.CALM.keys()
    older = [plan for plan in map(plan_of, range(100)) if plan[0].older]
    assert 10 < len(older) < 50
    assert all(Step(steps.REWIND, 0).what in {step.what for step in plan} for _, plan in older)
    upgraded = [
        plan
        for _, plan in map(plan_of, range(100))
        if any(step.what == steps.UPGRADE for step in plan)
    ]
    assert 15 < len(upgraded) < 50


def test_blocks_lie_where_stripes_meet() -> None:
    assert [offset_of(block) for block in (0, FIRST_BLOCKS - 1)] == [0, 7680]
    assert offset_of(BORDER_BLOCK) == 1 << 20
    assert length_of(BORDER_BLOCK - 1, 2) == 1024
    assert length_of(0, BLOCKS) == (1 << 20) + 4096


def test_what_fails_is_made_small() -> None:
    """A step that there is not fails in any company."""
    seed, plan = 5, [Step("open", 1), *(Step("ask", number) for number in range(9))]
    outcome = run(seed, Settings(held=0.0), [*plan, Step("boom", 0)])
    assert "AttributeError" in outcome.problem
    small = shrink(outcome)
    assert [step.what for step in small.steps] == ["boom"]
    assert small.settings == Settings()


IN_FLEET = replace(
    Settings(held=0.0), fleet=True, multi_conn=False, late_write_seconds=LATE_SECONDS
)


DIES = ("open 1", "ask 2", "move 1", "kill 1", "flush 3", "ask 2")
"""The server dies as well, and what it had not flushed is gone: of that the next home knows nothing."""


def in_fleet(*words: str) -> Outcome:
    return run(0, IN_FLEET, [Step(*_parsed(step)) for step in words])


def test_a_home_that_dies_is_told_once() -> None:
    """By the gateway where its clients came in, which lives on."""
    outcome = in_fleet(*DIES)
    assert any("the home dies" in event for event in outcome.events)
    assert not outcome.problem


MEETS_TWO = (
    "open 1837504117",
    "kill 2156810797",
    "move 1811221553",
    "ask 761174151",
    "move 495873502",
)
"""What is asked meets the deaths of two homes, of which the first has no connection to the server yet."""


def test_what_meets_two_homes_that_die_may_fail() -> None:
    settings = replace(IN_FLEET, late_write_seconds=0)
    outcome = run(20264403, settings, [Step(*_parsed(step)) for step in MEETS_TWO])
    assert any("the home dies, and connections [] with it" in event for event in outcome.events)
    assert not outcome.problem


LEAVES_AN_OLDER = (
    "open 4278845053",
    "ask 1860825363",
    "ask 2027171263",
    "upgrade 3503903352",
    "leave 3446635887",
    "open 4232536498",
    "kill 1394523599",
)


def test_who_leaves_an_older_gateway_that_tells_it_to_end_is_not_told() -> None:
    """Its DISC is not read any more, and its client does not read what comes then."""
    settings = Settings(connections="shared:4", held=0.5)
    outcome = run(20266409, settings, [Step(*_parsed(step)) for step in LEAVES_AN_OLDER])
    assert any("client 1: flush" in event for event in outcome.events)
    assert not outcome.problem


def test_a_home_that_dies_and_is_not_told_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Losses, "died", lambda *_, **__: None)
    monkeypatch.setattr(Losses, "lose", lambda *_, **__: None)
    assert "succeeded" in in_fleet(*DIES).problem

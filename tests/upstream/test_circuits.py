"""Which place is tried next, and when: a table of situations, on a clock that is a number."""

from __future__ import annotations

import pytest

from gateway.upstream.circuits import (
    ANOTHER_OUTAGE_SECONDS,
    FIRST_BACK_OFF_SECONDS,
    LAST_SECONDS,
    MOST_BACK_OFF_SECONDS,
    Circuits,
    GiveUp,
    Outage,
    Try,
    Wait,
)

PATIENCE = 10.0


def of(count: int = 1, *, chance: float = 1.0, stay: bool = False) -> Circuits:
    """Places whose back-offs are as long as they get; with a chance of 0, half of that."""
    return Circuits(count, patience_seconds=PATIENCE, chance=lambda: chance, stay=stay)


def tried(circuits: Circuits, now: float, *, patient: bool = True) -> Try:
    """The attempt that a client makes that comes now."""
    step = circuits.next_step(now, now + PATIENCE, patient=patient)
    assert isinstance(step, Try)
    return step


def fail(circuits: Circuits, now: float, why: str = "refused") -> bool:
    return circuits.failed(tried(circuits, now), now, why)


def fail_from(circuits: Circuits, now: float, times: int) -> float:
    """Let it fail so many times, each as early as may be; give when the next attempt is due."""
    for _ in range(times):
        fail(circuits, now)
        step = circuits.next_step(now, now + 1000)
        now = step.until if isinstance(step, Wait) else now + MOST_BACK_OFF_SECONDS
    return now


def test_everybody_tries_what_works() -> None:
    circuits = of()
    attempts = [tried(circuits, 0), tried(circuits, 0)]
    assert [attempt.place for attempt in attempts] == [0, 0]
    assert [circuits.succeeded(attempt, 1) for attempt in attempts] == [None, None]
    assert not circuits.down


@pytest.mark.parametrize(("chance", "factor"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_back_offs_double_up_to_a_limit_and_are_jittered(chance: float, factor: float) -> None:
    circuits = Circuits(1, patience_seconds=1000, chance=lambda: chance)
    now = 0.0
    waits: list[float] = []
    for _ in range(7):
        assert isinstance(circuits.next_step(now, now + 1000), Try)
        circuits.failed(Try(0, 1, now, len(waits)), now, "refused")
        step = circuits.next_step(now, now + 1000)
        assert isinstance(step, Wait)
        waits.append(step.until - now)
        now = step.until
    expected = [0.25, 0.5, 1, 2, 4, 5, 5]
    assert expected[0] == FIRST_BACK_OFF_SECONDS
    assert expected[-1] == MOST_BACK_OFF_SECONDS
    assert waits == pytest.approx([factor * seconds for seconds in expected])


def test_who_knows_better_need_not_wait() -> None:
    circuits = of()
    due = fail_from(circuits, 0, 8)
    now = due - 1
    assert isinstance(circuits.next_step(now, now, patient=False), GiveUp)
    circuits.try_soon(now)
    assert isinstance(circuits.next_step(now, now + 1, patient=False), Try)


def test_one_probes_for_all_that_wait() -> None:
    circuits = of()
    fail(circuits, 0)
    probe = tried(circuits, 0.25)
    assert circuits.next_step(0.25, 9) == Wait(9)
    assert circuits.succeeded(probe, 0.5) == Outage(0.5, 1)
    assert isinstance(circuits.next_step(0.5, 9), Try)
    assert isinstance(circuits.next_step(0.5, 9), Try)


def test_a_probe_that_fails_says_so_to_all() -> None:
    circuits = of()
    assert fail(circuits, 0, "was refused")
    assert not fail(circuits, 0.25, "is refused still")
    assert circuits.next_step(0.25, 0.25) == GiveUp("is refused still")


def test_a_probe_that_is_abandoned_is_made_by_the_next() -> None:
    circuits = of()
    fail(circuits, 0)
    circuits.abandoned(tried(circuits, 0.25))
    assert isinstance(circuits.next_step(0.25, 9), Try)


def test_who_waits_has_a_last_attempt_when_the_time_is_over() -> None:
    circuits = of()
    due = fail_from(circuits, 0, 3)
    assert due == 1.75
    assert circuits.next_step(0.76, 1.76) == Wait(1.75)
    assert circuits.next_step(0.76, 1.5) == Wait(1.5)  # the next back-off ends too late
    last = circuits.next_step(1.5, 1.5)
    assert last == Try(0, LAST_SECONDS, 1.5, 3)
    # Others whose time is over at the same time wait for what comes of that, and try no more themselves.
    assert circuits.next_step(1.5, 1.5) == Wait(1.5 + LAST_SECONDS)
    assert circuits.next_step(1.5 + LAST_SECONDS, 1.5) == GiveUp("refused")
    circuits.failed(last, 1.51, "refused")
    assert circuits.next_step(1.51, 1.5) == GiveUp("refused")


def test_when_the_last_attempt_succeeds_all_who_wait_for_it_connect() -> None:
    circuits = of()
    fail_from(circuits, 0, 3)
    last = circuits.next_step(1.5, 1.5)
    assert isinstance(last, Try)
    circuits.succeeded(last, 1.6)
    assert circuits.next_step(1.6, 1.5) == Try(0, LAST_SECONDS, 1.6, 4)


def test_of_one_outage_there_is_one_last_attempt_whoever_came_when() -> None:
    circuits = of()
    now = 0.0
    while now < 7:
        now = fail_from(circuits, now, 1)
    fail(circuits, now)
    assert now == 7.75
    assert circuits.next_step(8, 18) == Wait(PATIENCE)
    assert circuits.next_step(9, 19) == Wait(PATIENCE)
    last = circuits.next_step(PATIENCE, 18)
    assert isinstance(last, Try)
    circuits.failed(last, PATIENCE, "refused")
    assert circuits.next_step(PATIENCE, 18) == GiveUp("refused")
    assert circuits.next_step(PATIENCE, 19) == GiveUp("refused")


def test_an_attempt_that_has_taken_all_of_the_time_was_the_last() -> None:
    circuits = of()
    fail_from(circuits, 0, 3)
    attempt = circuits.next_step(1.75, 2)
    assert isinstance(attempt, Try)
    circuits.abandoned(attempt, 2)
    assert circuits.next_step(2, 2) == GiveUp("refused")


def test_an_old_outage_is_not_waited_out() -> None:
    circuits = of()
    now = 0.0
    while now < PATIENCE:
        now = fail_from(circuits, now, 1)
    fail(circuits, now)
    assert circuits.next_step(now, now + PATIENCE) == GiveUp("refused")
    # But once the back-off has passed, somebody tries, and those who come meanwhile wait for that.
    probe = tried(circuits, now + MOST_BACK_OFF_SECONDS)
    later = now + MOST_BACK_OFF_SECONDS + 1
    assert circuits.next_step(later, later + 3) == Wait(later + 3)
    circuits.failed(probe, later, "refused again")
    assert circuits.next_step(later, later + 3) == GiveUp("refused again")


def test_who_is_not_patient_tries_once() -> None:
    circuits = of()
    circuits.failed(tried(circuits, 0, patient=False), 0, "refused")
    assert circuits.next_step(0, 10, patient=False) == GiveUp("refused")
    tried(circuits, 0.25)
    assert circuits.next_step(0.25, 10, patient=False) == Wait(10)


def test_a_failure_after_a_long_quiet_begins_another_outage() -> None:
    circuits = of()
    fail_from(circuits, 0, 6)
    then = 12.75 + ANOTHER_OUTAGE_SECONDS + 1
    assert fail(circuits, then) is False  # it was known to be down, and nobody has seen it up
    assert circuits.next_step(then, then + PATIENCE) == Wait(then + FIRST_BACK_OFF_SECONDS)


def test_what_was_begun_before_a_change_is_no_news() -> None:
    circuits = of()
    early, late = tried(circuits, 1), tried(circuits, 1)
    assert circuits.failed(early, 1, "refused")
    assert not circuits.failed(late, 1, "refused")
    assert circuits.next_step(1, 9) == Wait(1 + FIRST_BACK_OFF_SECONDS)  # it has not doubled
    probe = tried(circuits, 2)
    assert circuits.succeeded(late, 2) == Outage(1, 1)
    assert not circuits.failed(probe, 3, "timed out")
    circuits.abandoned(probe)
    assert not circuits.down


def test_time_is_shared_among_those_that_may_be_tried() -> None:
    circuits = of(3)
    first = circuits.next_step(0, 9)
    assert first == Try(0, 3, 0, 0)
    circuits.failed(first, 3, "silent")
    second = circuits.next_step(3, 9)
    assert second == Try(1, 3, 3, 0)
    circuits.failed(second, 6, "silent")
    assert circuits.next_step(6.1 + LAST_SECONDS, 6.1) == GiveUp("silent")


def test_the_first_that_works_is_taken_and_preferred_when_it_is_back() -> None:
    circuits = of(2)
    assert fail(circuits, 0)
    assert not circuits.down
    other = tried(circuits, 0)
    assert other.place == 1
    assert circuits.succeeded(other, 0) is None
    assert tried(circuits, 0.1).place == 1
    probe = tried(circuits, 0.25)
    assert probe.place == 0
    assert tried(circuits, 0.25).place == 1  # nobody waits for a probe who can be served
    assert circuits.succeeded(probe, 0.25) == Outage(0.25, 1)
    assert tried(circuits, 0.25).place == 0


def test_with_stay_the_one_that_worked_last_is_kept() -> None:
    circuits = of(2, stay=True)
    fail(circuits, 0)
    circuits.succeeded(tried(circuits, 0), 0)
    assert [tried(circuits, now).place for now in (0.1, 0.25, 100)] == [1, 1, 1]
    fail(circuits, 100)
    assert tried(circuits, 100).place == 0


def test_all_reasons_are_told_once_each() -> None:
    circuits = of(3)
    for why in ("a: refused", "b: refused", "a: refused"):
        fail(circuits, 0, why)
    assert circuits.down
    assert circuits.next_step(0, 0) == GiveUp("a: refused; b: refused")

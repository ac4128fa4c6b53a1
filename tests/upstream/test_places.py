"""Which place is tried next, and when: a table of situations, on a clock that is a number."""

from __future__ import annotations

import pytest

from gateway.upstream.places import (
    FIRST_BACK_OFF_SECONDS,
    LAST_SECONDS,
    MOST_BACK_OFF_SECONDS,
    QUIET_SECONDS,
    GiveUp,
    Outage,
    Places,
    Try,
    Wait,
)

PATIENCE = 10.0


def of(count: int = 1, *, chance: float = 1.0, stay: bool = False) -> Places:
    """Places whose back-offs are as long as they get; with a chance of 0, half of that."""
    return Places(count, patience_seconds=PATIENCE, chance=lambda: chance, stay=stay)


def tried(places: Places, now: float, *, patient: bool = True) -> Try:
    """The attempt that a client makes that comes now."""
    step = places.next_step(now, now + PATIENCE, patient=patient)
    assert isinstance(step, Try)
    return step


def fail(places: Places, now: float, why: str = "refused") -> bool:
    return places.failed(tried(places, now), now, why)


def fail_from(places: Places, now: float, times: int) -> float:
    """Let it fail so many times, each as early as may be; give when the next attempt is due."""
    for _ in range(times):
        fail(places, now)
        step = places.next_step(now, now + 1000)
        now = step.until if isinstance(step, Wait) else now + MOST_BACK_OFF_SECONDS
    return now


def test_everybody_tries_what_works() -> None:
    places = of()
    attempts = [tried(places, 0), tried(places, 0)]
    assert [attempt.place for attempt in attempts] == [0, 0]
    assert [places.succeeded(attempt, 1) for attempt in attempts] == [None, None]
    assert not places.down


@pytest.mark.parametrize(("chance", "factor"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_back_offs_double_up_to_a_limit_and_are_jittered(chance: float, factor: float) -> None:
    places = Places(1, patience_seconds=1000, chance=lambda: chance)
    now = 0.0
    waits: list[float] = []
    for _ in range(7):
        assert isinstance(places.next_step(now, now + 1000), Try)
        places.failed(Try(0, 1, now, len(waits)), now, "refused")
        step = places.next_step(now, now + 1000)
        assert isinstance(step, Wait)
        waits.append(step.until - now)
        now = step.until
    expected = [0.25, 0.5, 1, 2, 4, 5, 5]
    assert expected[0] == FIRST_BACK_OFF_SECONDS
    assert expected[-1] == MOST_BACK_OFF_SECONDS
    assert waits == pytest.approx([factor * seconds for seconds in expected])


def test_who_knows_better_need_not_wait() -> None:
    places = of()
    due = fail_from(places, 0, 8)
    now = due - 1
    assert isinstance(places.next_step(now, now, patient=False), GiveUp)
    places.try_soon(now)
    assert isinstance(places.next_step(now, now + 1, patient=False), Try)


def test_one_probes_for_all_that_wait() -> None:
    places = of()
    fail(places, 0)
    probe = tried(places, 0.25)
    assert places.next_step(0.25, 9) == Wait(9)
    assert places.succeeded(probe, 0.5) == Outage(0.5, 1)
    assert isinstance(places.next_step(0.5, 9), Try)
    assert isinstance(places.next_step(0.5, 9), Try)


def test_a_probe_that_fails_says_so_to_all() -> None:
    places = of()
    assert fail(places, 0, "was refused")
    assert not fail(places, 0.25, "is refused still")
    assert places.next_step(0.25, 0.25) == GiveUp("is refused still")


def test_a_probe_that_is_abandoned_is_made_by_the_next() -> None:
    places = of()
    fail(places, 0)
    places.abandoned(tried(places, 0.25))
    assert isinstance(places.next_step(0.25, 9), Try)


def test_who_waits_has_a_last_attempt_when_the_time_is_over() -> None:
    places = of()
    due = fail_from(places, 0, 3)
    assert due == 1.75
    assert places.next_step(0.76, 1.76) == Wait(1.75)
    assert places.next_step(0.76, 1.5) == Wait(1.5)  # the next back-off ends too late
    last = places.next_step(1.5, 1.5)
    assert last == Try(0, LAST_SECONDS, 1.5, 3)
    # Others whose time is over at the same time wait for what comes of that, and try no more themselves.
    assert places.next_step(1.5, 1.5) == Wait(1.5 + LAST_SECONDS)
    assert places.next_step(1.5 + LAST_SECONDS, 1.5) == GiveUp("refused")
    places.failed(last, 1.51, "refused")
    assert places.next_step(1.51, 1.5) == GiveUp("refused")


def test_when_the_last_attempt_succeeds_all_who_wait_for_it_connect() -> None:
    places = of()
    fail_from(places, 0, 3)
    last = places.next_step(1.5, 1.5)
    assert isinstance(last, Try)
    places.succeeded(last, 1.6)
    assert places.next_step(1.6, 1.5) == Try(0, LAST_SECONDS, 1.6, 4)


def test_of_one_outage_there_is_one_last_attempt_whoever_came_when() -> None:
    places = of()
    now = 0.0
    while now < 7:
        now = fail_from(places, now, 1)
    fail(places, now)
    assert now == 7.75
    assert places.next_step(8, 18) == Wait(PATIENCE)
    assert places.next_step(9, 19) == Wait(PATIENCE)
    last = places.next_step(PATIENCE, 18)
    assert isinstance(last, Try)
    places.failed(last, PATIENCE, "refused")
    assert places.next_step(PATIENCE, 18) == GiveUp("refused")
    assert places.next_step(PATIENCE, 19) == GiveUp("refused")


def test_an_attempt_that_has_taken_all_of_the_time_was_the_last() -> None:
    places = of()
    fail_from(places, 0, 3)
    attempt = places.next_step(1.75, 2)
    assert isinstance(attempt, Try)
    places.abandoned(attempt, 2)
    assert places.next_step(2, 2) == GiveUp("refused")


def test_an_old_outage_is_not_waited_out() -> None:
    places = of()
    now = 0.0
    while now < PATIENCE:
        now = fail_from(places, now, 1)
    fail(places, now)
    assert places.next_step(now, now + PATIENCE) == GiveUp("refused")
    # But once the back-off has passed, somebody tries, and those who come meanwhile wait for that.
    probe = tried(places, now + MOST_BACK_OFF_SECONDS)
    later = now + MOST_BACK_OFF_SECONDS + 1
    assert places.next_step(later, later + 3) == Wait(later + 3)
    places.failed(probe, later, "refused again")
    assert places.next_step(later, later + 3) == GiveUp("refused again")


def test_who_is_not_patient_tries_once() -> None:
    places = of()
    places.failed(tried(places, 0, patient=False), 0, "refused")
    assert places.next_step(0, 10, patient=False) == GiveUp("refused")
    tried(places, 0.25)
    assert places.next_step(0.25, 10, patient=False) == Wait(10)


def test_a_failure_after_a_long_quiet_begins_another_outage() -> None:
    places = of()
    fail_from(places, 0, 6)
    then = 12.75 + QUIET_SECONDS + 1
    assert fail(places, then) is False  # it was known to be down, and nobody has seen it up
    assert places.next_step(then, then + PATIENCE) == Wait(then + FIRST_BACK_OFF_SECONDS)


def test_what_was_begun_before_a_change_is_no_news() -> None:
    places = of()
    early, late = tried(places, 1), tried(places, 1)
    assert places.failed(early, 1, "refused")
    assert not places.failed(late, 1, "refused")
    assert places.next_step(1, 9) == Wait(1 + FIRST_BACK_OFF_SECONDS)  # it has not doubled
    probe = tried(places, 2)
    assert places.succeeded(late, 2) == Outage(1, 1)
    assert not places.failed(probe, 3, "timed out")
    places.abandoned(probe)
    assert not places.down


def test_time_is_shared_among_those_that_may_be_tried() -> None:
    places = of(3)
    first = places.next_step(0, 9)
    assert first == Try(0, 3, 0, 0)
    places.failed(first, 3, "silent")
    second = places.next_step(3, 9)
    assert second == Try(1, 3, 3, 0)
    places.failed(second, 6, "silent")
    assert places.next_step(6.1 + LAST_SECONDS, 6.1) == GiveUp("silent")


def test_the_first_that_works_is_taken_and_preferred_when_it_is_back() -> None:
    places = of(2)
    assert fail(places, 0)
    assert not places.down
    other = tried(places, 0)
    assert other.place == 1
    assert places.succeeded(other, 0) is None
    assert tried(places, 0.1).place == 1
    probe = tried(places, 0.25)
    assert probe.place == 0
    assert tried(places, 0.25).place == 1  # nobody waits for a probe who can be served
    assert places.succeeded(probe, 0.25) == Outage(0.25, 1)
    assert tried(places, 0.25).place == 0


def test_with_stay_the_one_that_worked_last_is_kept() -> None:
    places = of(2, stay=True)
    fail(places, 0)
    places.succeeded(tried(places, 0), 0)
    assert [tried(places, now).place for now in (0.1, 0.25, 100)] == [1, 1, 1]
    fail(places, 100)
    assert tried(places, 100).place == 0


def test_all_reasons_are_told_once_each() -> None:
    places = of(3)
    for why in ("a: refused", "b: refused", "a: refused"):
        fail(places, 0, why)
    assert places.down
    assert places.next_step(0, 0) == GiveUp("a: refused; b: refused")

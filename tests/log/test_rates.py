"""How many lines the log may have: whole schedules, by a clock that the test moves."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from gateway.log.rates import (
    LINES,
    LINES_OF_A_KIND,
    LINES_OF_CLIENTS,
    LINES_OF_ONE,
    MAX_NAMED,
    OTHERS,
    Rates,
)


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rates(clock: Clock) -> Rates:
    return Rates(clock)


def said(rates: Rates, origin: str | None, event: str, tries: int) -> int:
    """How many of so many lines are said."""
    return sum(rates.admits(origin, event) for _ in range(tries))


def test_one_client_says_the_same_ten_times(rates: Rates, clock: Clock) -> None:
    assert said(rates, "10.0.0.1", "client refused", 500) == LINES_OF_A_KIND
    assert said(rates, "10.0.0.1", "session begins", 500) == LINES_OF_A_KIND
    assert said(rates, "10.0.0.2", "client refused", 500) == LINES_OF_A_KIND
    clock.seconds += 0.999
    assert said(rates, "10.0.0.1", "client refused", 500) == 0
    clock.seconds += 0.001
    assert said(rates, "10.0.0.1", "client refused", 500) == LINES_OF_A_KIND


def test_one_client_leaves_lines_to_others(rates: Rates) -> None:
    assert sum(said(rates, "10.0.0.1", f"event {n}", 100) for n in range(100)) == LINES_OF_ONE
    assert said(rates, "10.0.0.2", "session begins", 1) == 1


def test_clients_leave_lines_to_the_gateway(rates: Rates) -> None:
    flood = sum(said(rates, f"10.0.{n}.1", "client refused", 100) for n in range(100))
    assert flood == LINES_OF_CLIENTS
    assert said(rates, None, "upstream is down", 1) == 1


def test_one_event_of_the_gateway_leaves_lines_to_others(rates: Rates) -> None:
    for n in range(100):
        said(rates, f"10.0.{n}.1", "client refused", 100)
    assert said(rates, None, "upstream connection lost", 1000) == LINES_OF_ONE
    assert said(rates, None, "upstream is down", 1) == 1


def test_no_second_has_more_wherever_it_begins(rates: Rates, clock: Clock) -> None:
    draw = random.Random(7)
    lines: list[tuple[float, str | None, str]] = []
    tried = 0
    for _ in range(40_000):
        clock.seconds += draw.choice((0, 0, 0.0001, 0.001))
        origin = draw.choice((None, "a", "b", *map(str, range(100))))
        event = f"event {draw.randrange(20)}"
        tried += 1
        if rates.admits(origin, event):
            lines.append((clock.seconds, origin, event))
    left_out = rates.take_left_out()
    assert left_out is not None
    assert left_out.lines == tried - len(lines)
    assert clock.seconds > 1005
    first, kinds = 0, Counter[tuple[str | None, str]]()
    for last, (at, origin, event) in enumerate(lines):
        while lines[first][0] <= at - 1:
            kinds[lines[first][1:]] -= 1
            first += 1
        kinds[origin, event] += 1
        assert last + 1 - first < LINES
        assert origin is None or kinds[origin, event] <= LINES_OF_A_KIND


def test_what_is_remembered_is_bounded(rates: Rates, clock: Clock) -> None:
    for n in range(100_000):
        clock.seconds += 0.0001
        rates.admits(str(n), f"event {n}")
    assert len(rates._said) < LINES
    assert len(rates._counts) < 4 * LINES
    left_out = rates.take_left_out()
    assert left_out is not None
    assert len(left_out.events) == len(left_out.clients) == MAX_NAMED + 1


def test_what_is_left_out_is_counted(rates: Rates) -> None:
    assert rates.take_left_out() is None
    said(rates, "10.0.0.1", "client refused", 100)
    said(rates, "10.0.0.2", "client refused", 12)
    said(rates, None, "upstream connection lost", 51)
    left_out = rates.take_left_out()
    assert left_out is not None
    assert left_out.lines == 93
    assert left_out.events == {"client refused": 92, "upstream connection lost": 1}
    assert left_out.clients == {"10.0.0.1": 90, "10.0.0.2": 2}
    assert rates.take_left_out() is None


def test_few_are_named(rates: Rates) -> None:
    for n in range(2 * MAX_NAMED):
        said(rates, f"10.0.0.{n}", f"event {n}", LINES_OF_A_KIND + 1)
    left_out = rates.take_left_out()
    assert left_out is not None
    for named in (left_out.events, left_out.clients):
        assert len(named) == MAX_NAMED + 1
        assert sum(named.values()) == left_out.lines
        assert named[OTHERS] == left_out.lines - MAX_NAMED

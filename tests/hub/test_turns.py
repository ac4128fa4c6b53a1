"""Who is served first where there is not time for all."""

from __future__ import annotations

from collections import Counter

from gateway.hub.crowd import GONE, LEFT, READ
from gateway.hub.turns import Turns

SLICE = 1.0
"""How long a round lasts here."""


def served(turns: Turns, wants: dict[int, float], rounds: int) -> Counter[int]:
    """How often each is served in so many rounds, that wants turns of so many seconds, always."""
    counts: Counter[int] = Counter()
    for _ in range(rounds):
        turns.ready.update(dict.fromkeys(wants, READ))
        spent, took = 0.0, []
        for descriptor in turns.order():
            del turns.ready[descriptor]
            counts[descriptor] += 1
            spent += wants[descriptor]
            took.append((descriptor, wants[descriptor]))
            if spent > SLICE and turns.ready:
                turns.overran(took)
                break
        else:
            turns.all_served()
    return counts


def test_who_asks_for_little_waits_for_nobody() -> None:
    """Sixteen whose turns take longer than a round, and one whose turns take hardly any time."""
    slow = dict.fromkeys(range(16), 5.0)
    counts = served(Turns(), {**slow, 99: 0.01}, 1000)
    assert counts[99] > 900
    among = [counts[each] for each in slow]
    assert max(among) - min(among) <= 2  # which share the rest evenly


def test_where_there_is_time_for_all_everybody_is_served() -> None:
    counts = served(Turns(), {1: 0.1, 2: 0.2, 3: 0.3}, 10)
    assert counts == {1: 10, 2: 10, 3: 10}


def test_nobody_is_made_to_pay_for_what_was_long_ago() -> None:
    turns = Turns()
    served(turns, {1: 5.0, 2: 0.01}, 50)
    served(turns, {1: 0.1, 2: 0.1}, 1)  # there was time for all
    counts = served(turns, {1: 5.0, 3: 5.0}, 100)
    assert abs(counts[1] - counts[3]) <= 2


def test_who_comes_late_has_saved_nothing_up() -> None:
    turns = Turns()
    served(turns, {1: 5.0, 2: 5.0}, 100)
    counts = served(turns, {1: 5.0, 2: 5.0, 3: 5.0}, 99)
    assert max(counts.values()) - min(counts.values()) <= 3


def test_nobody_waits_for_himself() -> None:
    turns = Turns()
    for descriptor, whose in {1: "one", 2: "one", 3: "other"}.items():
        turns.belongs(descriptor, whose)
    turns.ready.update({2: READ})
    assert not turns.others_wait(1)
    assert turns.others_wait(3)
    turns.ready.update({7: LEFT})  # nobody's, as who waits for its own end is
    assert turns.others_wait(1)
    assert turns.others_wait(8)
    turns.ready.clear()
    turns.forget(2)
    turns.ready.update({2: READ})  # another, by its number
    assert turns.others_wait(1)


def test_what_was_not_served_is_asked_for_again_but_for_who_has_gone() -> None:
    turns = Turns()
    turns.ready.update({1: READ, 2: READ, 3: READ | GONE, 4: LEFT})
    del turns.ready[1]
    turns.overran([(1, 2.0)])
    assert turns.ready == {3: READ | GONE, 4: LEFT}
    turns.forget(3)
    turns.forget(4)
    assert not turns.ready

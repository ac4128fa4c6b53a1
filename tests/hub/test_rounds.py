from __future__ import annotations

import pytest

from gateway.hub.crowd import Crowd
from gateway.hub.rounds import CALM_SECONDS, GATHER_SECONDS, PATIENCE_SECONDS, ROUNDS, Rounds


def test_who_waits_for_each_single_reply_is_polled_for() -> None:
    rounds = Rounds()
    for step in range(1000):
        assert not rounds.patience(Crowd.NONE, step * 1e-5)
        assert not rounds.gathers(Crowd.NONE, step * 1e-5)


def test_where_hubs_are_more_than_processors_none_polls() -> None:
    rounds = Rounds(polls=False)
    for step in range(1000):
        assert rounds.patience(Crowd.NONE, step * 1e-3) == PATIENCE_SECONDS


@pytest.mark.parametrize("crowd", [Crowd.LARGE, Crowd.SMALL])
def test_while_many_commands_are_under_way_the_kernel_waits(crowd: int) -> None:
    assert Rounds().patience(crowd, 0.0) == PATIENCE_SECONDS


@pytest.mark.parametrize("seconds", [1e-6, 1e-4])
def test_after_crowded_rounds_there_is_no_polling_for_as_long_as_they_lasted(
    seconds: float,
) -> None:
    """Where the peers are quick it polls again the sooner."""
    rounds = Rounds()
    for _ in range(2 * ROUNDS):
        rounds.crowded(2, seconds, 1.0)
    together = ROUNDS * seconds
    assert rounds.patience(Crowd.NONE, 1.0 + 0.9 * together) == PATIENCE_SECONDS
    assert not rounds.patience(Crowd.NONE, 1.0 + 1.1 * together)


def test_one_crowded_round_is_soon_forgotten() -> None:
    rounds = Rounds()
    rounds.crowded(2, 1e-5, 1.0)
    assert not rounds.patience(Crowd.NONE, 1.0 + 2e-5)


def test_many_small_commands_gather_and_not_where_somebody_waits_for_each_reply() -> None:
    rounds = Rounds()
    assert rounds.gathers(Crowd.SMALL, 1.0)
    assert not rounds.gathers(Crowd.LARGE, 1.0)
    rounds.calm(1.0)
    assert not rounds.gathers(Crowd.SMALL, 1.0 + CALM_SECONDS / 2)
    assert rounds.gathers(Crowd.SMALL, 1.0 + 2 * CALM_SECONDS)


def test_a_lone_clients_commands_gather_while_the_hub_sleeps() -> None:
    rounds = Rounds()
    rounds.crowded(2, 1e-4, 1.0)
    assert rounds.sleeps(1.0) == GATHER_SECONDS


def test_where_several_are_at_work_the_processor_is_given_away() -> None:
    rounds = Rounds()
    rounds.crowded(3, 1e-4, 1.0)
    assert not rounds.sleeps(1.00005)
    assert rounds.sleeps(1.0003) == GATHER_SECONDS

"""What becomes of a session: the table, over all states and events."""

from __future__ import annotations

from collections.abc import Collection
from itertools import product, starmap

import pytest

from gateway.hub.ends import MOVES, ClientIs, Event, LinkIs, NotLegal, Sides, Takes, Then, move

ALL = [*starmap(Sides, product(ClientIs, LinkIs))]
STARTS = (Sides(ClientIs.ASKING, LinkIs.OPEN), Sides(ClientIs.ASKING, LinkIs.NONE))

WHILE_IT_LASTS = frozenset(
    {Event.GOODBYE, Event.FINISH, Event.CLIENT_LOST, Event.CLIENT_LOST_IN_WRITE, Event.CLOSE}
)
"""What clients, operators and time do whenever they like."""

AT_THE_END = frozenset({Event.DONE, Event.DONE_UNFLUSHED, Event.ENDED})
SENDING = frozenset({Event.SEND_FAILED, Event.SEND_FAILED_SURVIVING})
LOST = frozenset({Event.LINK_LOST, Event.LINK_LOST_SURVIVING, Event.LINK_LOST_AT_REST})
ANOTHER = frozenset({Event.RELINKED, Event.UNLINKED})
AFTER_A_LOSS = frozenset({Event.FAILS, Event.CARRIED_OVER})

ASKING = {
    LinkIs.OPEN: SENDING | LOST | ANOTHER,
    LinkIs.MUTE: LOST | ANOTHER,
    LinkIs.CLOSED: AFTER_A_LOSS | ANOTHER,
    LinkIs.AWAY: LOST | ANOTHER,
    LinkIs.NONE: {Event.LINK_LOST_AT_REST} | ANOTHER,
}
"""What else may happen to a session that begins requests."""

ENDING = {
    LinkIs.OPEN: SENDING | LOST,
    LinkIs.MUTE: LOST,
    LinkIs.CLOSED: LOST | AFTER_A_LOSS | {Event.FAILED},
    LinkIs.AWAY: LOST,
    LinkIs.NONE: frozenset[Event](),
}
"""And to one that does not any more."""


def legal(sides: Sides) -> Collection[Event]:
    """What may happen in a state."""
    if sides.link is LinkIs.LEFT:
        return set(Event)
    if sides.client is ClientIs.ASKING:
        return WHILE_IT_LASTS | ASKING[sides.link]
    return WHILE_IT_LASTS | AT_THE_END | ENDING[sides.link]


def reached(*starts: Sides) -> set[Sides]:
    """The states that a session may come to, those included."""
    found, more = set(starts), [*starts]
    while more:
        sides = more.pop()
        news = {MOVES[sides, event].sides for event in legal(sides)} - found
        found |= news
        more += news
    return found


@pytest.mark.parametrize("sides", ALL, ids=lambda sides: f"{sides.client.name}-{sides.link.name}")
def test_what_may_happen_in_each_state(sides: Sides) -> None:
    may = legal(sides) if sides in reached(*STARTS) else ()
    for event in Event:
        if event in may:
            assert move(sides, event) is MOVES[sides, event]
        else:
            with pytest.raises(NotLegal, match=f"{event.name} where the client is"):
                move(sides, event)


def test_all_states_are_reached_but_one() -> None:
    """Who begins requests has not ended."""
    assert {*ALL} - reached(*STARTS) == {Sides(ClientIs.ASKING, LinkIs.LEFT)}


def test_a_client_never_comes_back() -> None:
    order = [*ClientIs]
    for (before, _event), becomes in MOVES.items():
        assert order.index(becomes.sides.client) >= order.index(before.client)


def test_an_end_is_the_end() -> None:
    for event in Event:
        for client in (ClientIs.STOPPING, ClientIs.TOLD, ClientIs.GONE):
            ended = Sides(client, LinkIs.LEFT)
            becomes = move(ended, event)
            assert becomes.sides == ended
            assert (becomes.takes, becomes.then) == (Takes.NEVER, Then.NOTHING)
            assert not becomes.hurries


@pytest.mark.parametrize("sides", [each for each in ALL if each in reached(*STARTS)], ids=str)
def test_each_may_be_cut_and_has_ended_then(sides: Sides) -> None:
    cut = move(sides, Event.CLOSE)
    assert cut.sides.client is not ClientIs.ASKING
    assert move(cut.sides, Event.ENDED).sides.link is LinkIs.LEFT


def test_whoever_stops_asking_has_a_reason() -> None:
    """The log says why a session has ended; so it is the reason of the first that ended it, or of the last
    that its client could not be told.
    """
    for (before, event), becomes in MOVES.items():
        stops = before.client is ClientIs.ASKING and becomes.sides.client is not ClientIs.ASKING
        untold = before.client is ClientIs.TOLD and becomes.sides.client is ClientIs.GONE
        assert (becomes.takes is Takes.ALWAYS) is (stops or untold), (before, event)


def test_nobody_waits_for_ever_for_an_end() -> None:
    """Only a client that is still there, and ends in good order, may take the time that it needs."""
    for (before, event), becomes in MOVES.items():
        first = before.client is not becomes.sides.client
        if first and becomes.sides.client in (ClientIs.TOLD, ClientIs.GONE):
            # What is lost with a link is told in two steps: the first has hurried.
            assert becomes.hurries or event is Event.FAILED


def test_a_link_comes_back_only_as_another() -> None:
    """DISC is sent where all that was begun is whole: not after half a WRITE, nor where sending has failed."""
    another = {Event.RELINKED, Event.UNLINKED, Event.CARRIED_OVER}
    for (before, event), becomes in MOVES.items():
        if becomes.then in (Then.PART, Then.FLUSH, Then.FLUSH_ALONE):
            assert before.link is becomes.sides.link is LinkIs.OPEN
        if event not in another and before.link.takes_nothing:
            assert becomes.sides.link.takes_nothing, (before, event)
        if event not in another and before.link.gives_nothing:
            assert becomes.sides.link.gives_nothing, (before, event)


def test_nothing_follows_half_a_write() -> None:
    for (before, event), becomes in MOVES.items():
        if event is Event.CLIENT_LOST_IN_WRITE and before.link is LinkIs.OPEN:
            assert becomes.sides.link.takes_nothing or before.client is ClientIs.GONE


def test_only_who_asks_lives_on() -> None:
    for (before, event), becomes in MOVES.items():
        if becomes.then in (Then.SURVIVE, Then.REST) or event in ANOTHER:
            ended = before.link is LinkIs.LEFT
            assert before.client is becomes.sides.client
            assert before.client is ClientIs.ASKING or ended


def test_who_said_goodbye_does_not_wait_for_what_is_flushed_for_it() -> None:
    said = move(STARTS[0], Event.GOODBYE).sides
    left = move(said, Event.DONE_UNFLUSHED)
    assert (left.sides.client, left.then) == (ClientIs.GONE, Then.FLUSH_ALONE)
    finished = move(STARTS[0], Event.FINISH).sides
    stays = move(finished, Event.DONE_UNFLUSHED)
    assert (stays.sides.client, stays.then) == (ClientIs.TOLD, Then.FLUSH)

"""Tickets that somebody else keeps: what another gateway or another process has done is followed in one way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import structlog

from gateway.config import parse
from gateway.tickets.book import Book
from gateway.tickets.kept import Over, text_of
from gateway.tickets.roll import REMOVED
from gateway.tickets.store import Unread
from tests.tickets.clocks import NOW, Clocks

TEXT = """
listen = [ { uri = "nbd://127.0.0.1:0" } ]
upstream.u.uri = "nbd://h"
control.socket = "c"
tickets.directory = "t"
"""
HOUR = 3600.0
USER = ["somebody", "else"]


class Kept:
    """A store in which others write."""

    place = "a store"

    def __init__(self, gateway: str | None) -> None:
        self.gateway = gateway

    async def put(self, name: str, content: Mapping[str, Any]) -> None:
        """It is there."""

    async def drop(self, names: Sequence[str]) -> None:
        """They are gone."""

    def close(self) -> None:
        """Nobody waits for it."""


class Follower:
    """A book that follows: another gateway of a fleet, or another process."""

    def __init__(self, clocks: Clocks, gateway: str | None) -> None:
        self.clocks = clocks
        self.lines = structlog.testing.LogCapture()
        self.over: dict[int, Over] = {}
        self.book = Book(Kept(gateway), parse(TEXT, "f"), clocks.clock())
        log = structlog.wrap_logger(None, processors=[self.lines])
        self.book.come_into_force(parse(TEXT, "f"), self.over.update, log)

    def follow(self, **found: Any) -> None:
        self.book.following.brought(file(**found))

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.lines.entries]


def file(name: str = "a", made: float = NOW, until: float | None = None, **more: Any) -> Any:
    said = {"name": name, "upstream": "u", "once": True}
    end = None if until is None else text_of(until)
    return {"ticket": said, "made": text_of(made), "until": end, **more}


@pytest.fixture(params=["b", None], ids=["of a fleet", "of another process"])
def follower(request: pytest.FixtureRequest) -> Follower:
    return Follower(Clocks(), request.param)


def logged(follower: Follower, *events: str) -> bool:
    """What another gateway has done is in our log. What another process has done, it has logged."""
    is_fleet = follower.book._store.gateway is not None  # type: ignore[union-attr]
    return follower.events == ([*events] if is_fleet else [])


def test_it_is_made_renewed_and_taken_away(follower: Follower) -> None:
    follower.follow(until=NOW + HOUR)
    ticket = follower.book.names["a"]
    follower.follow(until=NOW + 2 * HOUR)
    kept = follower.book.get("a")
    assert kept is not None
    assert kept.ticket is ticket
    assert kept.until == NOW + 2 * HOUR
    follower.book.following.taken_away("a")
    assert not follower.book.names
    assert follower.over == {id(ticket): REMOVED}
    assert logged(follower, "ticket made", "ticket renewed", "ticket removed")


def test_a_time_that_was_said_to_the_microsecond_is_no_other_one(follower: Follower) -> None:
    follower.follow(until=NOW + HOUR)
    kept = follower.book.get("a")
    assert kept is not None
    kept.until = NOW + HOUR + 0.000_4
    follower.follow(until=NOW + HOUR, user=USER, at=["a"])
    assert kept.kept_user == tuple(USER)
    assert logged(follower, "ticket made")


def test_another_one_of_its_name_takes_its_place(follower: Follower) -> None:
    follower.follow()
    before = follower.book.names["a"]
    follower.follow(made=NOW + 1)
    assert follower.book.names["a"] is not before
    assert follower.over == {id(before): REMOVED}
    assert logged(follower, "ticket made", "ticket removed", "ticket made")


def test_a_use_has_come_here_if_it_is_another_process_that_began_it(follower: Follower) -> None:
    follower.follow()
    follower.follow(user=USER, at=["a"])
    kept = follower.book.get("a")
    assert kept is not None
    assert kept.user == kept.kept_user == tuple(USER)
    assert kept.begun is (kept.gateway is None)


def test_what_is_to_be_removed_is_not_taken_up_when_it_is_found(follower: Follower) -> None:
    """But if another process says it, it is a new one."""
    follower.book.following.follow_end("a", REMOVED, with_file=True)
    follower.follow()
    assert not len(follower.book)
    follower.book.following.follow(file(user=None))
    assert len(follower.book) == 1


def test_what_is_no_ticket_is_told_and_changes_nothing(follower: Follower) -> None:
    follower.follow(until=NOW + HOUR)
    follower.lines.entries.clear()
    follower.follow(until=NOW + 2 * HOUR, user="somebody")
    follower.follow(name="b", user="somebody")
    follower.book.following.not_read(Unread("c.json", "is no JSON"))
    assert follower.events == ["ticket not read"] * 3
    kept = follower.book.get("a")
    assert kept is not None
    assert kept.until == NOW + HOUR
    assert len(follower.book) == 1


@pytest.mark.parametrize("missing", ["ticket", "made", "until", "user"])
def test_a_process_that_leaves_something_out_is_not_understood(
    follower: Follower, missing: str
) -> None:
    follower.follow()
    found = file(made=NOW + 1, user=None)
    del found[missing]
    with pytest.raises(KeyError, match=missing):
        follower.book.following.follow(found)
    assert not follower.over


def test_no_more_are_taken_up_than_may_be(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.tickets.following.MAX_TICKETS", 2)
    for name in ("a", "b", "c"):
        follower.follow(name=name)
    assert [*follower.book.names] == ["a", "b"]
    assert follower.lines.entries[-1]["why"] == "there are 2 tickets already"


async def test_what_is_left_of_it_may_become_less_and_never_more(follower: Follower) -> None:
    """Another process says that, too, since the clock on the wall may have been set."""
    found = file(until=NOW + HOUR, user=None)
    follower.book.following.follow(found)
    follower.book.following.follow(found, follower.clocks.steady + 10)
    follower.book.following.follow(found, follower.clocks.steady + 20)
    ticket = follower.book.names["a"]
    follower.clocks.go_on(10)
    await follower.book.look()
    assert follower.over[id(ticket)].expired
    assert not len(follower.book)


async def test_one_that_is_gone_is_not_over_at_its_time_once_more(follower: Follower) -> None:
    follower.follow(until=NOW + HOUR)
    follower.book.following.taken_away("a")
    follower.over.clear()
    follower.clocks.go_on(HOUR)
    await follower.book.look()
    assert not follower.over

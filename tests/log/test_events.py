"""The table of events is what is logged: no more, and no less."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import pytest

from gateway.config.connections import Connections
from gateway.log.events import CHAPTERS, DEBUG, ERROR, EVENTS, INFO, WARNING, Chapter, Logged
from gateway.upstream.coherence import sentence
from tests.events import PAGE, PARTS, drawn
from tests.log.sites import (
    BINDS,
    BOUND,
    FEWER,
    HANDS,
    SENTENCES,
    Found,
    Function,
    Site,
    found_in,
    sources,
)

TABLE = {event.name: (chapter, event) for chapter in CHAPTERS for event in chapter.events}


@cache
def logged() -> Found:
    """What the gateway logs. All of its source is read for it, so not before a test asks."""
    return found_in(sources())


def names(fields: tuple[tuple[str, str], ...]) -> set[str]:
    return {name for name, _meaning in fields}


def wrong(site: Site, table: dict[str, tuple[Chapter, Logged]] = TABLE) -> list[str]:
    """What a place logs that the table does not have."""
    found = []
    for name in site.events or ():
        if name not in table:
            found.append(f"{site}: the table has no {name!r}")
            continue
        chapter, event = table[name]
        if not {*site.levels} <= {*event.levels}:
            found.append(f"{site}: {name!r} is logged as {site.levels}")
        carried = names(chapter.carries)
        known = names(event.fields) | carried | names(chapter.sometimes)
        if more := (site.fields | site.bound | site.maybe) - known:
            found.append(f"{site}: {name!r} has no {sorted(more)}")
        if less := carried - site.fields - site.bound:
            found.append(f"{site}: {name!r} does not carry {sorted(less)}")
    return found


def never(found: Found, table: dict[str, tuple[Chapter, Logged]] = TABLE) -> list[str]:
    """What the table has that nobody logs."""
    missing = []
    for chapter in {chapter.title: chapter for chapter, _event in table.values()}.values():
        of_it = {event.name for event in chapter.events}
        maybe = [site.maybe for site in found.sites if of_it & {*(site.events or ())}]
        more = names(chapter.sometimes) - set[str]().union(*maybe)
        missing += [f"{chapter.title}: {each}" for each in sorted(more)]
    for name, (_chapter, event) in table.items():
        sites = [site for site in found.sites if name in (site.events or ())]
        given = set[str]().union(*(site.fields | site.bound for site in sites))
        levels = {level for site in sites for level in site.levels}
        missing += [f"{name}: {each}" for each in sorted(names(event.fields) - given)]
        missing += [f"{name}: {each}" for each in event.levels if each not in levels]
    return missing


def test_each_call_that_logs_can_be_read() -> None:
    assert not logged().problems
    assert len(logged().sites) > 80
    assert logged().binds == BINDS


def test_what_is_logged_is_in_the_table() -> None:
    assert not [each for site in logged().sites for each in wrong(site)]


def test_what_is_in_the_table_is_logged() -> None:
    assert not never(logged())


def test_no_way_of_reading_is_there_for_nothing() -> None:
    functions = {site.function for site in logged().sites}
    assert SENTENCES.keys() <= functions
    assert HANDS.keys() == logged().handing
    used = {frozenset(site.bound) for site in logged().sites}
    assert {frozenset(each) for each in BOUND.values()} <= used


def test_a_sentence_is_as_the_table_has_it() -> None:
    pattern = re.sub(r"\\\{\w+\\\}", ".+", re.escape(FEWER))
    assert re.fullmatch(pattern, sentence(Connections(count=4), 1, "there are no more"))


# --- The table


def test_each_event_is_there_once() -> None:
    assert not [
        name for name, count in Counter(event.name for event in EVENTS).items() if count > 1
    ]


TOO_LOUD = {
    "what the server had not flushed is all there",
    "what the server had not flushed was written again",
    "writes whose answers were lost are issued again: the old ones may still come, and undo newer ones",
    "writes whose answers were lost are there; newer ones over them wait: the old may still come",
}
"""Warnings that nobody needs to do anything about."""


def is_looked_at(event: Logged) -> bool:
    return bool({WARNING, ERROR} & {*event.levels}) and event.name not in TOO_LOUD


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_an_event_says_what_has_to_be_known(event: Logged) -> None:
    assert event.levels
    assert {*event.levels} <= {DEBUG, INFO, WARNING, ERROR}
    texts = [event.when, *([event.do] if event.do else [])]
    assert all(text.endswith((".", ".)")) for text in texts)
    assert not [name for name, meaning in event.fields if not meaning or meaning.endswith(".")]
    assert bool(event.do) == is_looked_at(event), "whoever looks at it has to know what to do"


# --- It is found out


CALLS = """
class Sessions:
    def begin(self, bad):
        self._log.info("session begins", size=1)
        say = self.log.warning if bad else self.log.info
        say("session ended", why="no")

    def end(self):
        said = {"a": 1}
        said |= {"b": 2}
        said["c"] = 3
        event = "one" if said else "two"
        self._log.exception(event, **said, d=4)
        structlog.get_logger().error("three", exc_info=True)
"""


def in_a_file(text: str) -> Found:
    return found_in({"gateway/made_up.py": text})


def test_calls_are_read() -> None:
    found = in_a_file(CALLS)
    assert not found.problems
    said = [(site.line, site.events, site.levels, site.fields) for site in found.sites]
    assert sorted(said, key=lambda each: each[0]) == [
        (4, ("session begins",), ("info",), {"size"}),
        (6, ("session ended",), ("warning", "info"), {"why"}),
        (13, ("one", "two"), ("error",), {"a", "b", "c", "d", "exception"}),
        (14, ("three",), ("error",), {"exception"}),
    ]
    assert found.sites[0].function == Function("gateway/made_up.py", "Sessions.begin")


@pytest.mark.parametrize(
    "call",
    [
        'log.info(f"session {what}")',
        "log.info(what)",
        'log.info("session begins", **what)',
        'log.info("session begins", **what())',
        'log.critical("session begins")',
        'log.warn("session begins")',
        "begin(log.info)",
        "getattr(log, level)(event)",
    ],
)
def test_calls_that_cannot_be_read_are_told(call: str) -> None:
    found = in_a_file(f"def begin(log, what):\n    {call}\n")
    assert found.problems
    assert not found.sites


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ('service.log.info("listenin")', "the table has no 'listenin'"),
        ('service.log.warning("listening")', r"logged as \('warning',\)"),
        ('service.log.info("listening", ur="x")', r"has no \['ur'\]"),
        ('service.log.info("session ended")', "does not carry"),
    ],
)
def test_what_the_table_lacks_is_told(call: str, why: str) -> None:
    [site] = in_a_file(call).sites
    [said] = wrong(site)
    assert re.search(why, said)


def test_what_nobody_logs_is_told() -> None:
    chapter, listening = TABLE["listening"]
    fields = (*listening.fields, ("more", "made up"))
    table = {
        "listening": (chapter, listening._replace(fields=fields, levels=(INFO, ERROR))),
        "made up": (chapter, listening._replace(name="made up")),
    }
    assert never(logged(), table) == [
        "listening: more",
        "listening: error",
        "made up: uri",
        "made up: info",
    ]


# --- Its page


def test_the_page_is_made_from_the_table() -> None:
    text = PAGE.read_text()
    assert drawn(text) == text, "the table has changed: .venv/bin/python -m tests.events"
    assert re.findall("<!-- events: (.*) -->", text) == [*PARTS]

"""Tickets are made, renewed, used and over; on the disk before they are promised."""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from gateway.access.rules import Access, Grant, NotGranted
from gateway.config import Config, NoTicket, parse
from gateway.identity import Identity
from gateway.policy import Client, Session
from gateway.tickets import store as store_module
from gateway.tickets.book import Book
from gateway.tickets.kept import REJOIN_SECONDS, Over
from gateway.tickets.store import Store, file_of
from tests.tickets.clocks import NOW, Clocks
from tests.tools.patience import HANG_SECONDS

TEXT = """
listen = [ { uri = "nbd://127.0.0.1:0" } ]
upstream.u.uri = "nbd://h"
upstream.named.uri = "nbd://h/disk"
control.socket = "c"
tickets.directory = "t"
"""
HOUR = 3600.0


class Kept:
    """A book of a directory, as a gateway has it from its start on."""

    def __init__(self, directory: Path, clocks: Clocks, text: str = TEXT) -> None:
        self.directory = directory
        self.clocks = clocks
        self.lines = structlog.testing.LogCapture()
        self.over: dict[int, Over] = {}
        store = Store(directory)
        store.clean()
        config = parse(text, "f")
        self.book = Book(store, config, clocks.clock())
        self.book.read(directory)
        self.config: Config = config.with_tickets(self.book.names)
        self.access = Access(self.config, self.book.chains)
        log = structlog.wrap_logger(None, processors=[self.lines])
        self.book.come_into_force(self.config, self.over.update, log)

    def again(self, text: str = TEXT) -> Kept:
        """Another gateway, after this one was killed: nothing of it is left but the files."""
        self.book.close()
        return Kept(self.directory, self.clocks, text)

    async def add(self, name: str = "a", until: float | None = None, **said: Any) -> None:
        said = {key.replace("_", "-"): value for key, value in said.items()}
        await self.book.add({"name": name, "upstream": "u", **said}, until, "a test")

    def find(self, name: str = "a", address: str = "10.0.0.1") -> Grant:
        return self.access.find(self.client(address), name)

    def client(self, address: str = "10.0.0.1") -> Client:
        return Client(Identity.at(address, 1), datetime.now().astimezone())

    def why_not(self, name: str = "a", address: str = "10.0.0.1") -> str:
        with pytest.raises(NotGranted) as caught:
            self.find(name, address)
        assert caught.value.hidden or name == "x"
        return str(caught.value)

    def opens(self, name: str = "a", address: str = "10.0.0.1") -> Session:
        """A session begins, as far as the policies are concerned."""
        session = Session(self.client(address), name)
        for placed in self.find(name, address).chain:
            placed.policy.join(session)
        return session

    def ends(self, session: Session, chain: Any) -> None:
        for placed in chain:
            placed.policy.leave(session)

    def files(self) -> set[str]:
        return {each.name for each in self.directory.iterdir()}


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def kept(tmp_path: Path, clocks: Clocks) -> Kept:
    return Kept(tmp_path / "t", clocks)


@contextmanager
def a_full_disk() -> Iterator[None]:
    """No file may become larger than nothing: a write fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- Where it leads, and for whom


async def test_a_ticket_leads_where_it_says_as_an_export_does(kept: Kept) -> None:
    assert kept.why_not() == "there is no export 'a'"
    await kept.add(upstream_name="disk", read_only=True, description="words", unaligned="error")
    route = kept.find().route
    assert (route.upstream, route.upstream_name, route.read_only) == ("u", "disk", True)
    assert (route.description, route.unaligned, route.hide) == ("words", "error", True)
    await kept.add("b[*]")
    assert kept.find("b[*]").route.upstream_name == "b[*]"
    assert kept.why_not("b*") == "there is no export 'b*'"
    await kept.add("c", upstream="named")
    assert kept.find("c").route.upstream_name == "disk"


async def test_it_is_for_whom_it_says(kept: Kept) -> None:
    await kept.add(who={"network": ["10.0.0.0/24"]})
    kept.find(address="10.0.0.7")
    assert kept.why_not(address="10.0.1.7") == (
        "ticket: the ticket is not for it: it comes from 10.0.1.7"
    )


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"upstream": "x"}, "there is no [upstream.x]"),
        ({"upstream": "named", "upstream_name": "x"}, 'names the export "disk" already'),
        ({"who": {"unix-user": 0}}, "no listener is a Unix socket"),
        ({"who": {"psk-user": "x"}}, "no listener has psk"),
        ({"who": {"certificate": {"cn": "x"}}}, "no listener has certificates"),
        ({"who": {"tls": True}}, "no listener has TLS"),
        ({"tls": "require"}, "no listener has TLS"),
        ({"who": {"netwrk": "x"}}, "who.netwrk: unknown key"),
        ({"onse": True}, 'onse: unknown key, did you mean "once"?'),
        ({"once": 1}, "once: expected true or false, got 1"),
        ({"read_only": "yes"}, "read-only: expected true or false"),
        ({"policies": [{"use": "limt"}]}, "policies[0].use: no policy is named"),
        ({"policies": [{"use": "limit"}]}, "policies[0]: limit: expected one of"),
        ({"policies": [{"use": "limit", "x": 1}]}, "policies[0].x: unknown option of limit"),
        ({"policies": [{"use": "exports"}]}, "it belongs into a [[rule]]"),
        ({"description": "x" * 20_000}, "description"),
        ({"until": NOW - 1}, "is over already; it is 2030"),
    ],
)
async def test_what_makes_no_ticket(kept: Kept, said: dict[str, Any], why: str) -> None:
    with pytest.raises(NoTicket) as caught:
        await kept.add(**said)
    assert why in str(caught.value)
    assert not kept.files()
    assert kept.why_not() == "there is no export 'a'"


async def test_it_has_a_name_of_its_own_and_there_are_no_more_than_may_be(
    tmp_path: Path, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports = 'export = [ { name = "x", upstream = "u" }, { name = "y*", upstream = "u" } ]\n'
    kept = Kept(tmp_path / "t", clocks, exports + TEXT)
    with pytest.raises(NoTicket, match=r'\[\[export\]\] has the name "x"'):
        await kept.add("x")
    await kept.add("y1", upstream_name="elsewhere")
    assert kept.find("y1").route.upstream_name == "elsewhere"
    assert kept.find("y2").route.upstream_name == "y2"
    with pytest.raises(NoTicket, match="there is a ticket 'y1' already"):
        await kept.add("y1")
    monkeypatch.setattr("gateway.tickets.book.MAX_TICKETS", 2)
    await kept.add("z")
    with pytest.raises(NoTicket, match="there are 2 tickets, and no more may be"):
        await kept.add("zz")


RULES = """
export = [ { name = "x", upstream = "u" } ]
[[rule]]
who = { network = "10.0.0.0/24" }
tickets = true
policies = [ { use = "readonly" } ]
[[rule]]
who = { network = "10.0.1.0/24" }
tickets = false
[[rule]]
who = { network = "10.0.2.0/24" }
"""


async def test_a_rule_may_be_for_all_tickets_or_for_none(tmp_path: Path, clocks: Clocks) -> None:
    kept = Kept(tmp_path / "t", clocks, TEXT + RULES)
    await kept.add(who={"network": ["10.0.0.0/16"]})
    assert [placed.name for placed in kept.find().chain] == ["readonly", "ticket"]
    assert "no rule" in kept.why_not("x")
    assert "no rule" in kept.why_not(address="10.0.1.1")
    kept.find("x", "10.0.1.1")
    kept.find("a", "10.0.2.1")
    kept.find("x", "10.0.2.1")
    assert "no rule" in kept.why_not(address="10.0.3.1")  # what the ticket says is no rule


# --- Time


async def test_it_is_over_in_the_moment_that_it_says(kept: Kept, clocks: Clocks) -> None:
    await kept.add(until=NOW + HOUR)
    ticket = kept.book.names["a"]
    clocks.go_on(HOUR - 1)
    await kept.book.look()
    kept.find()
    clocks.go_on(1)
    assert "was in force until 2030" in kept.why_not()  # before anybody has looked
    await kept.book.look()
    assert kept.why_not() == "there is no export 'a'"
    assert kept.over[id(ticket)].expired
    assert not len(kept.book)


async def test_a_clock_that_is_set_back_makes_none_last_longer(kept: Kept, clocks: Clocks) -> None:
    await kept.add(until=NOW + HOUR)
    clocks.go_on(HOUR / 2)
    clocks.wall -= 100 * HOUR
    await kept.book.look()
    clocks.go_on(HOUR / 2 - 1)
    kept.find()
    clocks.go_on(1)
    kept.why_not()
    clocks.wall += 10 * HOUR  # set right by NTP, or not quite: what was over stays over
    await kept.book.look()
    assert not len(kept.book)


async def test_a_clock_that_is_set_forward_ends_those_that_are_over_by_it(
    kept: Kept, clocks: Clocks
) -> None:
    await kept.add(until=NOW + HOUR)
    await kept.add("b", until=NOW + 3 * HOUR)
    clocks.wall += 2 * HOUR
    kept.why_not()
    await kept.book.look()
    assert len(kept.book) == 1
    clocks.wall -= 2 * HOUR  # that was a mistake: what is left of `b` became less, and stays so
    await kept.book.look()
    clocks.go_on(HOUR - 1)
    kept.find("b")
    clocks.go_on(1)
    kept.why_not("b")


async def test_after_a_start_it_counts_from_the_file(kept: Kept, clocks: Clocks) -> None:
    await kept.add(until=NOW + HOUR)
    clocks.go_on(HOUR / 2)
    kept = kept.again()
    clocks.go_on(HOUR / 2 - 1)
    kept.find()
    clocks.go_on(1)
    kept.why_not()
    kept = kept.again()
    await kept.book.look()
    assert not len(kept.book)


async def test_where_the_clock_is_before_the_making_it_has_what_it_was_given(
    kept: Kept, clocks: Clocks
) -> None:
    await kept.add(until=NOW + HOUR)
    clocks.wall = 0.0  # no battery
    kept = kept.again()
    clocks.go_on(HOUR - 1)
    kept.find()
    clocks.go_on(1)
    kept.why_not()


async def test_renewed_it_is_over_at_another_time(kept: Kept, clocks: Clocks) -> None:
    await kept.add(until=NOW + HOUR)
    await kept.book.renew("a", NOW + 3 * HOUR, "a test")
    clocks.go_on(2 * HOUR)
    await kept.book.look()
    kept.find()
    kept = kept.again()
    kept.find()
    await kept.book.renew("a", clocks.wall + 10, "a test")
    clocks.go_on(10)
    kept.why_not()
    with pytest.raises(NoTicket, match="there is no ticket 'a'"):
        await kept.book.renew("a", clocks.wall + HOUR, "a test")


async def test_to_renew_often_takes_no_memory(kept: Kept, clocks: Clocks) -> None:
    await kept.add(until=NOW + 10_000 * HOUR)
    for hours in range(900, 0, -1):
        kept.book.get("a").until = NOW + hours * HOUR  # type: ignore[union-attr]
        kept.book.get("a").counts_from_now()  # type: ignore[union-attr]
        kept.book._look_later(kept.book.get("a"))  # type: ignore[arg-type]
    assert len(kept.book._due) < 60
    clocks.go_on(HOUR)
    await kept.book.look()
    assert not len(kept.book)


async def test_a_book_ends_tickets_by_itself(
    kept: Kept, clocks: Clocks, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.02  # files are removed in a thread, which takes a moment
    await kept.add(until=NOW + 2)
    await kept.add("b", until=NOW + HOUR)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.book.watch)
        await trio.sleep(1)
        assert len(kept.book) == 2
        clocks.go_on(2)
        await trio.sleep(1.5)
        assert len(kept.book) == 1
        clocks.wall += 2 * HOUR
        with trio.fail_after(60):
            while len(kept.book) or kept.files():  # nobody tells us that a clock was set
                await trio.sleep(1)
        nursery.cancel_scope.cancel()


# --- One use


async def begun(kept: Kept, address: str = "10.0.0.1") -> tuple[Session, Any]:
    chain = kept.find(address=address).chain
    session = kept.opens(address=address)
    await kept.book.begin_use("a", kept.book.names["a"])
    return session, chain


async def test_a_use_is_one_clients_until_a_moment_after_its_last_session(
    kept: Kept, clocks: Clocks
) -> None:
    await kept.add(once=True)
    first, chain = await begun(kept)
    second = kept.opens()  # nbdcopy
    assert "another client uses it" in kept.why_not(address="10.0.0.2")
    kept.ends(first, chain)
    clocks.go_on(100 * HOUR)
    kept.find()
    kept.ends(second, chain)
    clocks.go_on(REJOIN_SECONDS - 1)
    third = kept.opens()  # it connects again
    clocks.go_on(HOUR)
    await kept.book.look()
    kept.ends(third, chain)
    clocks.go_on(REJOIN_SECONDS)
    assert "was for one use, and was used" in kept.why_not()
    await kept.book.look()
    assert not len(kept.book)


async def test_to_fail_is_no_use(kept: Kept) -> None:
    await kept.add(once=True)
    chain = kept.find().chain
    session = kept.opens()
    assert "another client uses it" in kept.why_not(address="10.0.0.2")
    kept.ends(session, chain)  # the server was down
    kept.find(address="10.0.0.2")


async def test_nobody_is_told_of_a_use_before_it_is_written_down(
    kept: Kept, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kept.add(once=True)
    write, goes_on = kept.book._store.write, threading.Event()  # type: ignore[union-attr]

    def slow(name: str, content: Any) -> None:
        goes_on.wait(HANG_SECONDS)
        write(name, content)

    monkeypatch.setattr(kept.book._store, "write", slow)
    told: list[Session] = []
    chain = kept.find().chain

    async def come() -> None:
        told.append((await begun(kept))[0])

    async with trio.open_nursery() as nursery:
        try:
            for _ in range(2):
                nursery.start_soon(come)
                await trio.testing.wait_all_tasks_blocked()
            assert not told
            assert kept.book.get("a").sessions == 2  # type: ignore[union-attr]
            for _ in range(2):  # both give up, and what is under way is written all the same
                chain[0].policy.leave(Session(kept.client(), "a"))
        finally:
            goes_on.set()
    kept.why_not(address="10.0.0.2")
    clocks.go_on(REJOIN_SECONDS)
    await kept.book.look()
    assert not len(kept.book)


async def test_a_use_that_has_begun_survives_a_kill(kept: Kept, clocks: Clocks) -> None:
    await kept.add(once=True)
    await begun(kept)
    kept = kept.again()
    assert "another client uses it" in kept.why_not(address="10.0.0.2")
    session, chain = await begun(kept)
    clocks.go_on(HOUR)
    await kept.book.look()
    kept.ends(session, chain)
    kept = kept.again()
    clocks.go_on(REJOIN_SECONDS)
    assert "was used" in kept.why_not()


async def test_a_use_that_cannot_be_written_down_does_not_begin(kept: Kept) -> None:
    await kept.add(once=True)
    with a_full_disk(), pytest.raises(NoTicket, match="File too large"):
        await begun(kept)
    assert not kept.book.get("a").begun  # type: ignore[union-attr]


# --- The disk


async def test_what_was_made_is_there_after_a_kill(kept: Kept) -> None:
    for number in range(20):
        await kept.add(str(number), until=None if number % 2 else NOW + HOUR, who={"tls": False})
    await kept.book.remove("7", "a test")
    kept = kept.again()
    assert [each.name for each in kept.book.after(None, 100)] == sorted(
        str(number) for number in range(20) if number != 7
    )
    assert kept.find("8").route.ticket == kept.book.names["8"]
    assert kept.book.get("8").until == NOW + HOUR  # type: ignore[union-attr]


async def test_nothing_is_made_or_renewed_on_a_full_disk_and_all_else_goes_on(
    kept: Kept, clocks: Clocks
) -> None:
    await kept.add(until=NOW + HOUR)
    with a_full_disk():
        with pytest.raises(NoTicket, match="t: File too large"):
            await kept.add("b")
        with pytest.raises(NoTicket, match="t: File too large"):
            await kept.book.renew("a", NOW + 9 * HOUR, "a test")
        kept.find()
        assert kept.why_not("b") == "there is no export 'b'"
        clocks.go_on(HOUR)
        kept.why_not()
    assert kept.files() == {file_of("a")}
    assert kept.again().why_not().startswith("ticket: the ticket was in force until")


async def test_a_directory_that_is_gone(kept: Kept) -> None:
    await kept.add()
    kept.directory.rename(kept.directory.with_name("elsewhere"))
    with pytest.raises(NoTicket, match="No such file or directory"):
        await kept.add("b")
    kept.find()
    assert await kept.book.remove("a", "a test") is None  # nothing brings it back: its file is gone
    assert kept.why_not() == "there is no export 'a'"


async def test_files_that_make_no_ticket_are_told_and_those_without_a_place_wait(
    kept: Kept, tmp_path: Path
) -> None:
    await kept.add()
    await kept.add("b", upstream="named")
    good = json.loads((kept.directory / file_of("a")).read_text())
    changes: dict[str, dict[str, Any]] = {
        "c": {"made": "yesterday"},
        "d": {"made": None},
        "e": {"until": "2026-01-01T00:00:00"},
        "f": {"user": "x"},
        "g": {"ticket": {"name": "g", "upstream": "u", "zzz": 1}},
        "h": {"made": "9999-12-31T23:59:59-23:59"},
    }
    for name, change in changes.items():
        text = {**good, "ticket": {"name": name, "upstream": "u"}, **change}
        (kept.directory / file_of(name)).write_text(json.dumps(text))
    kept = kept.again(TEXT.replace("named", "other"))
    told = [line for line in kept.lines.entries if line["event"] == "ticket not read"]
    assert {line["file"] for line in told} >= {file_of(name) for name in "cdefg"}
    [line] = [line for line in kept.lines.entries if line["event"] == "ticket is not in force"]
    assert line["why"] == "there is no [upstream.named]"
    assert kept.why_not("b") == "there is no export 'b'"
    assert len(kept.book) in (2, 3)
    config = parse(TEXT, "f")
    log = structlog.wrap_logger(None, processors=[kept.lines])
    kept.book.come_into_force(config, kept.over.update, log)
    assert "b" in kept.book.names


async def test_what_a_reload_would_put_out_of_force_is_said(kept: Kept) -> None:
    await kept.add()
    assert kept.book.misfits(kept.config) == []
    assert kept.book.misfits(parse(TEXT.replace("upstream.u.", "upstream.x."), "f")) == [
        "ticket 'a' could not be in force any more: there is no [upstream.u]"
    ]
    taken = 'export = [ { name = "a", upstream = "u" } ]\n' + TEXT
    assert kept.book.misfits(parse(taken, "f")) == [
        "ticket 'a' could not be in force any more: [[export]] has the name \"a\""
    ]


# --- Races


async def test_of_many_that_make_and_remove_one_name_each_is_whole(kept: Kept) -> None:
    came: list[bool] = []

    async def make(number: int) -> None:
        try:
            await kept.add(description=str(number))
        except NoTicket:
            came.append(False)
        else:
            came.append(True)
            assert kept.find().route.description is not None

    async def remove() -> None:
        with suppress(NoTicket):
            await kept.book.remove("a", "a test")

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(make, number)
            nursery.start_soon(remove)
    assert any(came)
    there = kept.book.get("a")
    assert kept.files() == (set() if there is None else {file_of("a")})
    again = kept.again()
    assert (again.book.get("a") is None) == (there is None)
    if there is not None:
        assert again.book.names["a"] == there.ticket


async def test_one_that_is_made_anew_before_its_file_is_removed_keeps_it(kept: Kept) -> None:
    await kept.add()
    async with trio.open_nursery() as nursery, kept.book.turn:
        nursery.start_soon(partial(kept.add, description="anew"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(kept.book.remove, "a", "a test")  # it is there until this comes
        await trio.testing.wait_all_tasks_blocked()
    await kept.add("b")
    assert kept.files() == {file_of("a"), file_of("b")}
    assert kept.again().find().route.description == "anew"


async def test_one_that_ends_while_it_is_renewed_has_ended(
    kept: Kept, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kept.add(until=NOW + HOUR)
    write = kept.book._store.write  # type: ignore[union-attr]

    def slow(name: str, content: Any) -> None:
        clocks.go_on(HOUR)
        trio.from_thread.run(kept.book.look)
        write(name, content)

    monkeypatch.setattr(kept.book._store, "write", slow)
    with pytest.raises(NoTicket, match="has ended meanwhile"):
        await kept.book.renew("a", NOW + 9 * HOUR, "a test")
    assert not kept.files()
    assert kept.why_not() == "there is no export 'a'"


async def test_who_asks_and_goes_leaves_a_whole_ticket_or_none(kept: Kept) -> None:
    with trio.CancelScope() as gone:
        gone.cancel()
        await kept.add()
    assert bool(kept.files()) == (kept.book.get("a") is not None)


@pytest.mark.real
async def test_ten_thousand(kept: Kept, clocks: Clocks) -> None:
    """They are read, found, listed and over."""
    await kept.add("00000", until=NOW + HOUR, policies=[{"use": "limit", "connections": 2}])
    content = json.loads((kept.directory / file_of("00000")).read_text())
    for number in range(1, store_module.MAX_TICKETS):
        name = f"{number:05}"
        text = json.dumps({**content, "ticket": {**content["ticket"], "name": name}})
        (kept.directory / file_of(name)).write_text(text)
    kept = kept.again()
    assert len(kept.book) == 10_000
    assert not kept.book.unread
    kept.find("09999")
    page = kept.book.after("09997", 200)
    assert [each.name for each in page] == ["09998", "09999"]
    clocks.go_on(HOUR)
    await kept.book.look()
    assert not len(kept.book)
    assert len(kept.over) == 10_000

"""Tickets of a fleet: made at one gateway, there at all, used once; beside a real etcd."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from gateway.access.rules import Access, NotGranted
from gateway.config import NoTicket, parse
from gateway.fleet.answers import EtcdKey, EtcdUnavailable
from gateway.fleet.etcd import Etcd
from gateway.fleet.tickets import EtcdTickets
from gateway.identity import Identity
from gateway.policy import Client, Session
from gateway.tickets.book import Book
from gateway.tickets.kept import REJOIN_SECONDS, Over
from tests.fleet.etcds import Members, running
from tests.fleet.joined import LOOK_AGAIN_SECONDS
from tests.fleet.running import answers
from tests.tickets.clocks import NOW, Clocks
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real

TEXT = """\
listen = [ {{ uri = "nbd://127.0.0.1:0" }} ]
upstream.u.uri = "nbd://h"
control.socket = "c"
tickets.etcd = true
[fleet]
etcd = "{etcd}"
name = "{name}"
address = "nbds://127.0.0.1:1"
certificates = "/nowhere"
prefix = "/{prefix}/"
"""
HOUR = 3600.0
ONE, TWO = "10.0.0.1", "10.0.0.2"


@dataclass
class At:
    """The tickets of one gateway."""

    book: Book
    store: EtcdTickets
    etcd: Etcd
    access: Access
    over: dict[int, Over] = field(default_factory=dict)

    async def add(self, name: str = "a", until: float | None = None, **said: object) -> None:
        await self.book.add({"name": name, "upstream": "u", **said}, until, "a test")

    def client(self, address: str) -> Client:
        return Client(Identity.at(address, 1), datetime.now().astimezone())

    async def opens(self, address: str, name: str = "a") -> Callable[[], None]:
        """Open an export as a client does; give what ends the session. Raises `NotGranted`, `NoTicket`."""
        session = Session(self.client(address), name)
        grant = self.access.find(session.client, name)
        for placed in grant.chain:
            placed.policy.join(session)

        def leave() -> None:
            for placed in grant.chain:
                placed.policy.leave(session)

        assert grant.route.ticket is not None
        try:
            await self.book.begin_use(name, grant.route.ticket)
        except NoTicket:
            leave()
            raise
        return leave


@asynccontextmanager
async def at(
    members: Members, name: str, prefix: str, clocks: Clocks, *, hears: bool = True
) -> AsyncIterator[At]:
    """Have a gateway's tickets, until it is killed. It may not hear what others change."""
    config = parse(TEXT.format(etcd=members.uris[0], name=name, prefix=prefix), "f")
    assert config.fleet is not None
    async with Etcd(members.uris, seconds=HANG_SECONDS) as etcd:
        store = EtcdTickets(etcd, config.fleet)
        book = Book(store, config, clocks.clock())
        await store.read(book)
        ours = config.with_tickets(book.names)
        here = At(book, store, etcd, Access(ours, book.chains))
        book.come_into_force(ours, here.over.update, structlog.wrap_logger(None))
        with trio.fail_after(HANG_SECONDS):
            async with trio.open_nursery() as nursery:
                if hears:
                    nursery.start_soon(store.run)
                nursery.start_soon(book.watch)
                yield here
                nursery.cancel_scope.cancel()


async def until(true: Callable[[], object]) -> None:
    while not true():
        await trio.sleep(LOOK_AGAIN_SECONDS)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with running(tmp_path_factory.mktemp("etcd")) as members:
        trio.run(answers, members)
        yield members


async def test_an_etcd_that_is_begun_anew_is_followed(tmp_path: Path) -> None:
    """It counts from one again: what it says is not older than what was known."""
    clocks = Clocks()
    with running(tmp_path / "etcd") as members:
        await answers(members)
        async with at(members, "a", "anew", clocks) as a, at(members, "b", "anew", clocks) as b:
            for name in "abcdefgh":
                await a.add(name, until=NOW + HOUR)
            await until(lambda: len(b.book) == 8)
            members.kill(0)
            shutil.rmtree(tmp_path / "etcd" / "m0")
            members.start()
            await until(lambda: not len(a.book) and not len(b.book))
            await a.add("a", until=NOW + HOUR)
            await until(lambda: b.book.get("a"))


async def test_one_that_was_made_here_is_found_gone_before_it_was_heard_of(one: Members) -> None:
    async with at(one, "a", "own", Clocks(), hears=False) as a:
        await a.add()
        [key], _revision = await a.etcd.below("/own/tickets/")
        assert await a.etcd.change([key], [], [key.key])
        await a.store.read(a.book)  # as after a compaction
        assert a.book.get("a") is None


async def test_it_is_made_renewed_and_removed_at_all(one: Members) -> None:
    clocks = Clocks()
    async with at(one, "a", "made", clocks) as a, at(one, "b", "made", clocks) as b:
        await a.add(until=NOW + HOUR)
        await until(lambda: b.book.get("a"))
        leave = await b.opens(ONE)
        with pytest.raises(NoTicket, match="there is a ticket 'a' already"):
            await b.add()
        await b.book.renew("a", NOW + 2 * HOUR, "a test")
        kept = a.book.get("a")
        assert kept is not None
        await until(lambda: kept.until == NOW + 2 * HOUR)
        ticket = b.book.names["a"]
        await a.book.remove("a", "a test")
        await until(lambda: b.over)
        assert b.over[id(ticket)] == Over("the ticket was removed", expired=False)
        leave()
        await b.add()  # the name is free again
        await until(lambda: a.book.get("a"))


async def test_of_two_at_a_time_one_is_made(one: Members) -> None:
    clocks = Clocks()
    async with at(one, "a", "two", clocks) as a, at(one, "b", "two", clocks) as b:
        done: list[str] = []

        async def add(where: At, name: str) -> None:
            try:
                await where.add(description=name)
                done.append(name)
            except NoTicket:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(add, a, "a")
            nursery.start_soon(add, b, "b")
        assert len(done) == 1
        for each in (a, b):
            await until(lambda each=each: each.book.names.get("a"))  # type: ignore[misc]
            assert each.book.names["a"].description == done[0]


async def test_it_is_there_when_all_were_killed(one: Members) -> None:
    clocks = Clocks()
    async with at(one, "a", "killed", clocks) as a:
        await a.add(until=NOW + HOUR)
        await a.add("once", once=True)
        await a.opens(ONE, "once")
    async with at(one, "b", "killed", clocks) as b:
        kept = b.book.get("a")
        assert kept is not None
        assert kept.until == NOW + HOUR
        with pytest.raises(NotGranted):
            await b.opens(TWO, "once")
        clocks.go_on(REJOIN_SECONDS + 1)
        await b.book.look()
        assert b.book.get("once") is not None  # its use was at a, and may be still
    async with at(one, "a", "killed", clocks) as a:
        clocks.go_on(REJOIN_SECONDS + 1)
        await a.book.look()
        assert a.book.get("once") is None


async def test_one_use_is_one_clients_at_all_gateways(one: Members) -> None:
    clocks = Clocks()
    async with at(one, "a", "use", clocks) as a, at(one, "b", "use", clocks) as b:
        await a.add(once=True)
        await until(lambda: b.book.get("a"))
        got: list[str] = []
        why: list[str] = []

        async def opens(where: At, address: str) -> None:
            try:
                await where.opens(address)
                got.append(address)
            except (NotGranted, NoTicket) as error:
                why.append(str(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(opens, a, ONE)
            nursery.start_soon(opens, b, TWO)
        assert len(got) == 1
        assert "another client uses it" in why[0]


async def test_a_use_is_over_when_it_is_nowhere(one: Members) -> None:
    clocks = Clocks()
    async with at(one, "a", "over", clocks) as a, at(one, "b", "over", clocks) as b:
        await a.add(once=True)
        await until(lambda: b.book.get("a"))
        here, there = a.book.get("a"), b.book.get("a")
        assert here is not None
        assert there is not None
        leave_a = await a.opens(ONE)
        await until(lambda: there.kept_user)
        with pytest.raises(NotGranted):
            await b.opens(TWO)
        leave_b = await b.opens(ONE)
        await until(lambda: here.others == {"b"})
        leave_a()
        clocks.go_on(REJOIN_SECONDS + 1)
        a.book._news.set()
        await until(lambda: not there.others)
        assert a.book.get("a") is here
        with pytest.raises(NotGranted):
            await a.opens(TWO)
        leave_b()
        clocks.go_on(REJOIN_SECONDS + 1)
        b.book._news.set()
        await until(lambda: a.book.get("a") is None)


async def test_a_name_is_free_as_soon_as_its_ticket_is_removed(one: Members) -> None:
    """Whether or not etcd's news of the removal have come."""
    clocks = Clocks()
    async with (
        at(one, "a", "free", clocks, hears=False) as a,
        at(one, "b", "free", clocks) as b,
    ):
        for _ in range(3):
            await a.add()
            await until(lambda: b.book.get("a"))
            await a.book.remove("a", "a test")
        await a.add()
        await until(lambda: b.book.get("a"))


class Hung(Etcd):
    """Gives no answer while it is `hung`: what it is asked is done, or not, and nobody is told."""

    hung = False
    does = True

    async def change(self, *said: Any) -> int:
        if self.hung and not self.does:
            raise EtcdUnavailable("it is not there")
        done = await super().change(*said)
        if self.hung:
            raise EtcdUnavailable("the answer is lost")
        return done

    async def get(self, key: str) -> EtcdKey:
        if self.hung:
            raise EtcdUnavailable("it is not there")
        return await super().get(key)


async def test_one_that_was_said_not_to_be_made_is_taken_back(
    one: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd had done it, and said so to nobody: it is away when we look."""
    monkeypatch.setattr("tests.fleet.test_tickets.Etcd", Hung)
    monkeypatch.setattr("gateway.tickets.book.LOOK_SECONDS", LOOK_AGAIN_SECONDS)
    clocks = Clocks()
    async with at(one, "a", "ghost", clocks) as a, at(one, "b", "ghost", clocks) as b:
        assert isinstance(a.etcd, Hung)
        a.etcd.hung = True
        with pytest.raises(NoTicket, match="the answer is lost"):
            await a.add()
        await until(lambda: b.book.get("a"))
        await trio.sleep(5 * LOOK_AGAIN_SECONDS)  # it looks; on a slow machine less is tried
        assert a.book.get("a") is None
        a.etcd.hung = False
        await until(lambda: not b.book.get("a"))
        assert a.book.get("a") is None
        await a.add()  # and the name is free
        await until(lambda: b.book.get("a"))


async def test_one_that_is_removed_while_etcd_is_away_does_not_come_back(
    one: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fleet.test_tickets.Etcd", Hung)
    monkeypatch.setattr("gateway.tickets.book.LOOK_SECONDS", LOOK_AGAIN_SECONDS)
    clocks = Clocks()
    async with at(one, "a", "away", clocks) as a, at(one, "b", "away", clocks) as b:
        assert isinstance(a.etcd, Hung)
        await a.add()
        await until(lambda: b.book.get("a"))
        a.etcd.hung, a.etcd.does = True, False
        why = await a.book.remove("a", "a test")
        assert why == "etcd: it is not there"
        await b.book.renew("a", NOW + HOUR, "a test")  # it is told of that
        await trio.sleep(5 * LOOK_AGAIN_SECONDS)  # it looks; on a slow machine less is tried
        assert a.book.get("a") is None
        a.etcd.hung = False
        await until(lambda: not b.book.get("a"))


async def test_of_removed_and_renewed_at_a_time_it_is_removed(one: Members) -> None:
    clocks = Clocks()
    async with (
        at(one, "a", "both", clocks, hears=False) as a,
        at(one, "b", "both", clocks) as b,
    ):
        await a.add()
        await until(lambda: b.book.get("a"))
        await b.book.renew("a", NOW + HOUR, "a test")
        assert await a.book.remove("a", "a test") is None
        await until(lambda: not b.book.get("a"))


async def test_who_has_not_heard_of_a_renewal_takes_nothing_away(one: Members) -> None:
    clocks = Clocks()
    async with at(one, "a", "late", clocks) as a:
        await a.add(until=NOW + HOUR)
        async with at(one, "b", "late", clocks, hears=False) as b:
            await a.book.renew("a", NOW + 3 * HOUR, "a test")
            clocks.go_on(2 * HOUR)  # as far as b knows, it is over
            await b.book.look()
            assert b.over
            b.book._news.set()
            await until(lambda: b.book.get("a"))  # it has found out
        assert a.book.get("a") is not None
        await a.book.renew("a", NOW + 4 * HOUR, "a test")


async def test_without_etcd_what_is_there_is_in_force_and_nothing_changes(one: Members) -> None:
    clocks = Clocks()
    async with at(one, "a", "gone", clocks) as a:
        await a.add()
        await a.add("once", once=True)
        a.etcd._members = ["http://127.0.0.1:1"]
        with pytest.raises(NoTicket, match="etcd: "):
            await a.add("b")
        with pytest.raises(NoTicket, match="etcd: "):
            await a.opens(ONE, "once")
        await a.opens(ONE)

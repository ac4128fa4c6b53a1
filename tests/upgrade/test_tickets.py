"""Exports that were made at run time go along: they are used once over both processes, and are over in both."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from gateway.sessions.service import Service
from gateway.tickets.book import Book
from gateway.tickets.kept import REJOIN_SECONDS
from gateway.tickets.store import Store, StoreError, file_of
from tests.embedded.peers import Client
from tests.tickets.clocks import Clocks, all_go_by
from tests.tools.patience import HANG_SECONDS
from tests.tools.schedules.house import House
from tests.upgrade.gateways import done, gateways, not_done, opened, read, refused

pytestmark = pytest.mark.real  # files take real time

KEPT = 'control.socket = "{0}/c"\ntickets.directory = "{0}/t"\n'

SOON, LATER = "2030-03-17T17:48:20Z", "2030-03-17T18:46:40Z"
"""After 100 seconds, and after an hour."""


@asynccontextmanager
async def with_tickets(workdir: Path) -> AsyncIterator[tuple[House, Clocks]]:
    """A gateway that keeps tickets, and what they go by."""
    clocks = Clocks()
    with all_go_by(clocks):
        async with gateways(workdir, KEPT.format(workdir)) as made:
            with trio.fail_after(HANG_SECONDS):
                yield made, clocks


async def until(true: Callable[[], object]) -> None:
    """A thread, or the other process, has something to do still."""
    while not true():
        await trio.sleep(0.001)


def book(service: Service) -> Book:
    assert service.tickets is not None
    return service.tickets


def names(service: Service) -> list[str]:
    return sorted(book(service).names)


async def add(made: House, name: str, **more: object) -> None:
    await done(made, "export-add", export=name, upstream="main", upstream_name="", **more)


def on_disk(workdir: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workdir / "t" / file_of(name)).read_text())
    return found


def files(workdir: Path) -> set[str]:
    return {each.name for each in (workdir / "t").iterdir()}


async def upgraded(made: House) -> tuple[Service, Service]:
    """Both, where the older one has a client that keeps it there."""
    before = made.service
    await done(made, "upgrade")
    older, newer = made.services
    assert older is before
    return older, newer


async def test_they_go_along_with_their_sessions_and_are_counted(workdir: Path) -> None:
    async with with_tickets(workdir) as (made, _clocks):
        await add(made, "a")
        await add(made, "b", until=SOON)
        client = await opened(made, "a")
        async with client.stream:
            older, newer = await upgraded(made)
            assert names(older) == names(newer) == ["a", "b"]
            assert (book(older).is_elsewhere, book(newer).is_elsewhere) == (True, False)
            shown = (await made.ask("export-list")).data
            assert shown is not None
            assert [each["sessions"] for each in shown["tickets"]] == [1, 0]
            other = await opened(made, "b")  # its disk is the older one's
            async with other.stream:
                assert len(older.running) == 2
                await read(other)
            await read(client)
        await until(lambda: len(made.all) == 1)
        client = await opened(made, "b")
        async with client.stream:
            await read(client)
        await done(made, "upgrade")
        assert names(made.service) == ["a", "b"]
        with pytest.raises(StoreError, match="another gateway has it"):
            Store(workdir / "t")


async def test_what_is_made_renewed_and_removed_meanwhile_holds_in_both(workdir: Path) -> None:
    async with with_tickets(workdir) as (made, clocks):
        await add(made, "a", until=SOON)
        client = await opened(made, "x")
        async with client.stream:
            older, newer = await upgraded(made)
            await add(made, "b")
            other = await opened(made, "b")
            async with other.stream:
                await read(other)
                [mine] = [each for each in older.running if each.name == "b"]
                assert mine.opened.grant.route.ticket is not None
                await done(made, "export-remove", export="b")
                assert await other.rest() == b""
            assert names(older) == names(newer) == ["a"]
            assert files(workdir) == {file_of("a")}
            await done(made, "export-renew", export="a", until=LATER)
            here, there = book(newer).get("a"), book(older).get("a")
            assert here is not None
            assert there is not None
            await until(lambda: there.until == here.until)
            clocks.go_on(500)
            for each in (older, newer):
                await book(each).look()
            assert names(older) == names(newer) == ["a"]


async def test_it_is_over_at_its_time_in_both(workdir: Path) -> None:
    """The session is the older one's, which sees it by itself; the file goes with the newer one."""
    async with with_tickets(workdir) as (made, clocks):
        await add(made, "a", until=SOON)
        client = await opened(made, "a")
        async with client.stream:
            older, newer = await upgraded(made)
            clocks.go_on(101)
            await book(older).look()
            assert await client.rest() == b""
            assert names(older) == []
            assert (await refused(made, "a")).text == "there is no export 'a'"
            await book(newer).look()
            await until(lambda: not files(workdir))


async def test_a_clock_that_is_set_makes_none_last_longer_in_the_newer_process(
    workdir: Path,
) -> None:
    """What is left goes along, and not only the time on the wall; set forward, it is over in both."""
    async with with_tickets(workdir) as (made, clocks):
        await add(made, "a", until=SOON)
        await add(made, "b", until=LATER)
        clocks.go_on(50)
        clocks.wall -= 10_000
        client = await opened(made, "x")
        async with client.stream:
            older, newer = await upgraded(made)
            clocks.go_on(51)
            for each in (older, newer):
                await book(each).look()
            assert names(older) == names(newer) == ["b"]
            clocks.wall += 20_000
            assert (await refused(made, "b")).text == "there is no export 'b'"
            for each in (older, newer):
                await book(each).look()
            assert names(older) == names(newer) == []


# --- One use


async def test_of_two_clients_in_two_processes_one_uses_it(workdir: Path) -> None:
    """The older one asks the newer one, which writes it down, or has done so for another."""
    async with with_tickets(workdir) as (made, _clocks):
        await add(made, "a", once=True)
        await add(made, "b", once=True)
        client = await opened(made, "x")  # has the disk stay
        async with client.stream:
            older, newer = await upgraded(made)
            user = await opened(made, "a")
            async with user.stream:
                assert {each.name for each in older.running} == {"x", "a"}
                assert on_disk(workdir, "a")["user"]
                kept = book(newer).get("a")
                assert kept is not None
                assert kept.begun
                # Somebody else has begun to use the other one in the newer process.
                await book(newer).begin_use_elsewhere("b", ("somebody", "else"))
                assert await refused(made, "b")
                assert on_disk(workdir, "b")["user"] == ["somebody", "else"]
                await read(user)


async def test_a_use_that_has_begun_before_goes_on_and_is_over_once(workdir: Path) -> None:
    async with with_tickets(workdir) as (made, clocks):
        await add(made, "a", once=True)
        user = await opened(made, "a")
        async with user.stream:
            older, newer = await upgraded(made)
            clocks.go_on(10 * REJOIN_SECONDS)
            await book(newer).look()
            assert names(newer) == ["a"]  # it is being used, elsewhere
            second = await opened(made, "a")
            async with second.stream:
                await read(second)
        await until(lambda: len(made.all) == 1)
        assert names(newer) == ["a"]
        clocks.go_on(REJOIN_SECONDS + 1)
        await book(newer).look()
        assert names(newer) == []
        assert older is not newer
        await until(lambda: not files(workdir))


async def test_the_older_process_does_not_say_that_a_use_is_over(workdir: Path) -> None:
    """The user's sessions may be the newer one's since."""
    async with with_tickets(workdir) as (made, clocks):
        await add(made, "a", once=True)
        stays = await opened(made, "x")
        user = await opened(made, "a")
        async with stays.stream:
            older, newer = await upgraded(made)
            await user.stream.aclose()
            await until(lambda: len(older.running) == 1)
            clocks.go_on(REJOIN_SECONDS + 1)
            await book(older).look()
            assert names(older) == ["a"]
            await until(lambda: (kept := book(newer).get("a")) and not kept.sessions)
            clocks.go_on(REJOIN_SECONDS + 1)
            await book(newer).look()
            await until(lambda: not names(older))


# --- Deaths


async def test_if_the_newer_process_dies_the_older_one_keeps_them_again(workdir: Path) -> None:
    """Also what was written and not said."""
    async with with_tickets(workdir) as (made, _clocks):
        await add(made, "a", once=True)
        await add(made, "gone")
        client = await opened(made, "x")
        async with client.stream:
            older, newer = await upgraded(made)
            book(newer).say = None  # it dies before that
            await add(made, "b")
            await done(made, "export-remove", export="gone")
            await book(newer).begin_use_elsewhere("a", ("somebody", "else"))
            assert names(older) == ["a", "gone"]
            process = made.all[1]
            process.may_die = True
            process.kill()
            await process.ended.wait()
            await add(made, "c")  # takes its turn after the directory was read
            assert names(older) == ["a", "b", "c"]
            assert await refused(made, "a")
            other = await opened(made, "b")
            async with other.stream:
                await read(other)


async def test_a_newer_process_that_cannot_be_leaves_them_as_they_were(workdir: Path) -> None:
    """One that has no place for them is refused, as a reload would be."""
    async with with_tickets(workdir) as (made, _clocks):
        await add(made, "a")
        more, made.may_fail = made.more, True
        made.more = ""
        assert "tickets.directory: 1 ticket is in" in await not_done(made, "upgrade")
        made.more = more + '[[export]]\nname = "a"\nupstream = "main"\n'
        why = "ticket 'a' could not be in force any more: [[export]] has the name \"a\""
        assert why in await not_done(made, "upgrade")
        made.more = more
        await add(made, "b")
        client = await opened(made, "b")
        async with client.stream:
            await read(client)
        await done(made, "upgrade")
        assert names(made.service) == ["a", "b"]


async def test_what_is_made_while_it_is_prepared_is_there(workdir: Path) -> None:
    """A change that is under way is done first; one that comes too late is asked for again."""
    async with with_tickets(workdir) as (made, _clocks):
        client: Client = await opened(made, "x")
        async with client.stream:
            for number in range(100):
                await add(made, f"first {number}")
            older = made.service

            async def makes() -> None:
                number = 0
                while not book(older).is_elsewhere:
                    verb = made.all[0].verbs["export-add"]
                    said = {"export": f"n{number}", "upstream": "main", "upstream-name": ""}
                    answer = await verb(said)
                    if answer.ok:
                        told.append(f"n{number}")
                    else:
                        assert (
                            "a newer process of the gateway keeps the tickets" in answer.problems[0]
                        )
                    number += 1

            told: list[str] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(makes)
                await done(made, "upgrade")
            newer = made.service
            assert told
            assert newer is not older
            assert {*told} < {*names(newer)}
            assert names(newer) == names(older)
            assert files(workdir) == {file_of(name) for name in names(newer)}

"""What is paused stays paused through an upgrade; and is paused, resumed and switched in both processes."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from gateway.wire.constants import Cmd
from gateway.wire.limits import KIB
from gateway.wire.transmission import encode_request
from tests.tools.schedules.settings import Settings
from tests.upgrade.gateways import done, gateways, not_done, opened, read

OTHER = Settings(held=0.0, alias="switch")
"""The export y is of another server."""


async def test_it_goes_on_in_both_when_it_is_resumed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The session is held in the older process, and who comes waits, wherever that is."""
    async with gateways(tmp_path) as made:
        client = await opened(made)
        async with client.stream:
            await read(client)
            await done(made, "pause", export="x", **{"for": 3600})
            await done(made, "upgrade")
            assert [list(each.paused) for each in made.services] == [["x"], ["x"]]
            answered: list[str] = []

            async def asks() -> None:
                await read(client)
                answered.append("session")

            async def comes() -> None:
                other = await opened(made)
                async with other.stream:
                    await read(other)
                    answered.append("newcomer")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(asks)
                nursery.start_soon(comes)
                await trio.sleep(100)
                assert not answered
                assert not (await made.ask("resume", export="y")).ok
                told = await done(made, "resume", export="x")
                assert told[0].startswith("'x': 1 session goes on (process ")
            assert sorted(answered) == ["newcomer", "session"]
            await trio.testing.wait_all_tasks_blocked()
            assert [list(each.paused) for each in made.services] == [[], []]


async def test_it_is_the_newer_ones_when_the_older_one_has_ended(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Its session ends at the deadline, who waits there is hung up on; the pause lasts as long as it was to."""
    async with gateways(tmp_path) as made:
        client = await opened(made)
        await done(made, "pause", export="x", holder="backup", **{"for": 100})
        before = trio.current_time()
        await done(made, "upgrade", deadline=5)
        older = made.all[0]
        waits = made.connect()
        async with client.stream, waits.stream:
            with pytest.raises((EOFError, AssertionError)):
                await waits.go("x", structured=False)
            await older.ended.wait()
            assert trio.current_time() - before < 50
            assert await client.rest() == b""
            other = await opened(made)
            assert 99 <= trio.current_time() - before <= 101
            async with other.stream:
                await read(other)


async def test_it_is_the_older_ones_again_when_the_newer_one_dies(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Also when the older one's time was over: who comes there waits again, and is not hung up on."""
    async with gateways(tmp_path) as made:
        client = await opened(made)
        async with client.stream:
            await done(made, "pause", export="x", **{"for": 3600})
            await done(made, "upgrade", deadline=1000)
            older, newer = made.all
            for paused in older.service.paused.values():
                paused.set(elsewhere=True)
            newer.may_die = True
            newer.kill()
            await newer.ended.wait()
            waits = made.connect()
            async with waits.stream, trio.open_nursery() as nursery:
                nursery.start_soon(partial(waits.go, "x", structured=False))
                await trio.sleep(100)
                assert len(older.service.running) == 1
                await done(made, "resume", export="x")


async def test_who_has_paused_it_is_known_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with gateways(tmp_path) as made:
        await done(made, "pause", export="x", holder="backup")
        await done(made, "upgrade")
        await made.all[0].ended.wait()
        assert not (await made.ask("resume", export="x", holder="another")).ok
        await done(made, "resume", export="x", holder="backup")


async def test_a_pause_of_somebody_who_is_connected_cannot_go_along(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with gateways(tmp_path) as made:
        await done(made, "pause", export="x", **{"while-connected": True})
        answer = await made.ask("upgrade")
        assert answer.problems == (
            "'x' is paused as long as a command runs that is connected to this process",
        )
        await done(made, "resume", export="x")
        await done(made, "upgrade")


# --- While two serve


async def test_who_has_sessions_in_the_older_one_is_paused_by_the_newer_one(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The session there is held, who comes waits, and by its time it goes on in both."""
    async with gateways(tmp_path) as made:
        client = await opened(made)
        async with client.stream:
            await read(client)
            await done(made, "upgrade")
            told = await done(made, "pause", export="x", for_=100)
            assert told[0].startswith("'x': 1 session held, 1 flushed, for 100 s (process ")
            assert told[1] == "'x': 0 sessions held, 0 flushed, for 100 s"
            assert [list(each.paused) for each in made.services] == [["x"], ["x"]]
            before, answered = trio.current_time(), []

            async def asks() -> None:
                await read(client)
                answered.append(trio.current_time() - before)

            async def comes() -> None:
                other = await opened(made)
                answered.append(trio.current_time() - before)
                await other.stream.aclose()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(asks)
                nursery.start_soon(comes)
            assert all(99 <= each <= 101 for each in answered), answered
            assert [list(each.paused) for each in made.services] == [[], []]


async def test_what_is_not_the_older_ones_any_more_is_paused_all_the_same(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """x has sessions there, and y, of another disk, here."""
    async with gateways(tmp_path, settings=OTHER) as made:
        client = await opened(made)
        async with client.stream:
            await done(made, "upgrade")
            other = await opened(made, "y")
            older, newer = made.services
            assert [each.name for each in older.running] == ["x"]
            assert [each.name for each in newer.running] == ["y"]
            async with other.stream:
                told = await done(made, "pause", export="*", all=True)
                assert sorted(each.partition(" flushed")[0] for each in told) == [
                    "'x': 0 sessions held, 0",
                    "'x': 1 session held, 1",
                    "'y': 0 sessions held, 0",
                    "'y': 1 session held, 1",
                ]
                await done(made, "resume", export="*", all=True)
                await read(client)
                await read(other)
                assert not older.paused
                assert not newer.paused


async def test_what_cannot_be_paused_there_is_paused_nowhere(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with gateways(tmp_path) as made:
        client = await opened(made)
        async with client.stream:
            await done(made, "upgrade")
            older, newer = made.services
            half = encode_request(Cmd.WRITE, 0, 7, 0, KIB)
            await client.stream.send_all(half)
            while all(each.relaying.between_requests for each in older.running):
                await trio.sleep(0.01)
            why = await not_done(made, "pause", export="x", within=1)
            assert "half a request" in why
            assert "(process " in why
            assert not older.paused
            assert not newer.paused
            assert not (await made.ask("pause", export="x", within=1)).misunderstood
            for nonsense in ({"export": "*"}, {"export": "x", "within": -1}):
                assert (await made.ask("pause", **nonsense)).misunderstood
            why = await not_done(made, "pause", export="none")
            assert "there is no export 'none'" in why


async def test_who_has_paused_it_and_goes_has_it_go_on_in_both(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """By `while-connected`, and by going before there is an answer."""
    async with gateways(tmp_path) as made:
        client = await opened(made)
        async with client.stream:
            await done(made, "upgrade")
            answer = await made.ask("pause", export="x", **{"while-connected": True})
            assert answer.while_connected
            assert [list(each.paused) for each in made.services] == [["x"], ["x"]]
            assert answer.undo is not None
            await answer.undo()
            await trio.testing.wait_all_tasks_blocked()
            assert [list(each.paused) for each in made.services] == [[], []]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(made.ask, "pause", export="x"))
                while not made.services[0].paused:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            while any(each.paused for each in made.services):
                await trio.sleep(0.01)
            await read(client)


async def test_what_the_newer_one_has_paused_goes_on_when_that_dies(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Who has asked was connected to it."""
    async with gateways(tmp_path) as made:
        client = await opened(made)
        async with client.stream:
            await done(made, "upgrade")
            await done(made, "pause", export="x", while_connected=True)
            older, newer = made.all
            newer.may_die = True
            newer.kill()
            await newer.ended.wait()
            await read(client)
            assert not older.service.paused


@pytest.mark.parametrize("where", ["there", "here", "nobody"])
async def test_it_is_switched_by_its_home(
    tmp_path: Path, autojump_clock: MockClock, where: str
) -> None:
    """Its sessions go over, wherever they are, and both know where it is; also if nobody has it."""
    async with gateways(tmp_path) as made:
        client, stays = await opened(made), made.connect()
        async with stays.stream:  # as long as it does, there are two
            await stays.greeting()
            if where != "there":
                await client.stream.aclose()
            await done(made, "upgrade")
            older, newer = made.services
            if where == "here":
                client = await opened(made)
                assert newer.running
            told = await done(made, "switch", export="x", uri=made.other)
            assert f"went over to {made.other}" in told[0]
            assert ("(process" in told[0]) is (where != "here")
            await trio.testing.wait_all_tasks_blocked()  # the other one is told
            assert {str(each.switched["x"].server.name) for each in made.services} == {made.other}
            other = await opened(made)
            async with other.stream, client.stream:
                await read(other)
                if where != "nobody":
                    await read(client)
                home = older if where == "there" else newer
                assert {each.opened.location.server.name for each in home.running} == {made.other}
                assert len(home.running) == 1 + (where != "nobody")
                await done(made, "switch", export="x")
                await trio.testing.wait_all_tasks_blocked()
                assert not any(each.switched for each in made.services)
                assert {each.opened.location.server.name for each in home.running} == {"main"}
                await read(other)


async def test_no_disk_gets_two_homes_by_a_switch(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """x is the older one's, and y, at the other server, the newer one's."""
    async with gateways(tmp_path, settings=OTHER) as made:
        client = await opened(made)
        async with client.stream:
            await done(made, "upgrade")
            other = await opened(made, "y")
            async with other.stream:
                why = await not_done(made, "switch", export="x", uri=made.other)
                assert "is served by the newer process" in why
                why = await not_done(made, "switch", export="y", uri=made.main)
                assert "has sessions here, and the newer process would go there" in why
                why = await not_done(made, "switch", export="*", all=True, uri=made.other)
                assert why
                await read(client)
                await read(other)
                assert not any(each.switched for each in made.services)


async def test_no_clock_on_the_wall_says_how_long_anything_lasts(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is set back and forward by years in the middle of an upgrade: its deadline and a pause are when they
    were to be."""
    async with gateways(tmp_path) as made:
        client = await opened(made)
        async with client.stream:
            await done(made, "pause", export="x", for_=100)
            before = trio.current_time()
            monkeypatch.setattr(time, "time", lambda: 0.0)
            await done(made, "upgrade", deadline=50)
            monkeypatch.setattr(time, "time", lambda: 4e9)
            assert await client.rest() == b""
            assert 49 <= trio.current_time() - before <= 60
            other = await opened(made)
            assert 99 <= trio.current_time() - before <= 101
            await other.stream.aclose()

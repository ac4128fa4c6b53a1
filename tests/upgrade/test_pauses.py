"""What is paused stays paused through an upgrade, and goes on in both processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from gateway.wire.constants import Cmd
from gateway.wire.limits import KIB
from tests.embedded.peers import Client
from tests.tools.schedules.house import House, house, in_no_time
from tests.tools.schedules.settings import Settings


@asynccontextmanager
async def gateways(workdir: Path) -> AsyncIterator[House]:
    with in_no_time():
        async with house(Settings(held=0.0), workdir, Random(0)) as made:
            yield made


async def opened(made: House) -> Client:
    client = made.connect()
    await client.go("x", structured=False)
    return client


async def read(client: Client) -> None:
    await client.send(Cmd.READ, 0, KIB, cookie=7)
    assert await client.simple_reply() == (7, 0, bytes(KIB))


async def done(made: House, verb: str, **arguments: object) -> tuple[str, ...]:
    answer = await made.ask(verb, **arguments)
    assert answer.ok, answer.problems
    return answer.done


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
                assert await done(made, "resume", export="x") == ("'x': 1 session goes on",)
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

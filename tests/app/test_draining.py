"""Clients are let go: of a listener, or all. Whole gateways, on a clock that jumps."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from gateway.admin.asking import ask
from gateway.admin.control import ControlAnswer
from gateway.app import run
from gateway.app.draining import LOOK_SECONDS, Leaving
from gateway.app.source import ConfigSource
from gateway.config import Config, parse
from gateway.wire.constants import Cmd, Rep
from tests.embedded.peers import Client

CONFIG = """
leave-seconds = 300
[[listen]]
uri = "nbd+unix:///?socket=DIR/a"
[[listen]]
uri = "nbd+unix:///?socket=DIR/b"
[upstream.main]
uri = "memory:1M"
[control]
socket = "DIR/c"
"""


class Drained:
    """A gateway that a test has let its clients go."""

    def __init__(self, workdir: Path, clock: trio.testing.MockClock) -> None:
        self.workdir = workdir
        self.clock = clock
        self.streams: list[trio.SocketStream] = []
        self.status: int | None = None
        self.text = ""
        """What a reload takes up."""

    def _config(self, _note: object) -> Config:
        return parse(self.text.replace("DIR", str(self.workdir)), "test")

    async def serve(self, text: str, listening: trio.Event) -> None:
        self.text = text
        source = ConfigSource(self.workdir / "gateway.toml", self._config, {})
        config = self._config(None)
        self.status = await run.serve(
            config, source=source, listening=lambda _uris: listening.set()
        )

    async def connect(self, listener: str = "a") -> Client:
        stream = await trio.open_unix_socket(str(self.workdir / listener))
        self.streams.append(stream)
        return Client(stream)

    async def session(self, listener: str = "a") -> Client:
        client = await self.connect(listener)
        await client.go()
        await works(client)
        return client

    async def ask(self, verb: str, arguments: Mapping[str, object] = {}) -> ControlAnswer:
        return await ask(self.workdir / "c", verb, arguments)

    async def drain(self, **arguments: object) -> tuple[str, ...]:
        answer = await self.ask("drain", arguments)
        assert answer.ok, answer
        return answer.done

    async def shown(self) -> Mapping[str, Any]:
        data = (await self.ask("status")).data
        assert data is not None
        return data

    async def pass_(self, seconds: float) -> None:
        """Have so much time pass, and all come to rest that it wakes."""
        self.clock.jump(seconds)
        await trio.testing.wait_all_tasks_blocked(0.02)


async def works(client: Client) -> None:
    cookie = await client.send(Cmd.READ, 0, 512)
    [chunk] = await client.reply(cookie)
    assert chunk.data == bytes(512)


async def ended(client: Client) -> bool:
    """It was disconnected, with nothing said that it did not ask for."""
    return await client.stream.receive_some() == b""


@asynccontextmanager
async def gateway(
    workdir: Path, clock: trio.testing.MockClock, text: str = CONFIG
) -> AsyncIterator[Drained]:
    made, listening = Drained(workdir, clock), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(made.serve, text, listening))
        await listening.wait()
        try:
            yield made
        finally:
            for stream in made.streams:
                stream.socket.close()
            nursery.cancel_scope.cancel()


async def has_ended(made: Drained) -> None:
    """Its clients have gone: it needs no time for its end."""
    for _ in range(100):
        await trio.testing.wait_all_tasks_blocked(0.01)
        if made.status is not None:
            return
    raise AssertionError("it goes on")


# --- All, because the gateway ends


async def test_sessions_go_on_and_the_gateway_ends_with_the_last(
    workdir: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with gateway(workdir, mock_clock) as made:
        one, other = await made.session(), await made.session("b")
        assert await made.drain(end=True, deadline=100) == (
            "no more clients are taken; 2 sessions may go on for 100 s",
        )
        await trio.testing.wait_all_tasks_blocked(0.02)
        for listener in ("a", "b"):  # the next gateway can listen there
            assert not (workdir / listener).exists()
        await made.pass_(90)
        await works(one)
        shown = await made.shown()
        assert (shown["draining"], shown["sessions_end_in_seconds"]) == (True, 10)
        assert [each["export"] for each in shown["waits_for_sessions"]] == ["", ""]
        await one.stream.aclose()
        await works(other)
        await other.stream.aclose()
        await has_ended(made)
    assert made.status == 0


async def test_those_that_are_left_at_the_deadline_end_in_good_order(
    workdir: Path, mock_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    async with gateway(workdir, mock_clock) as made:
        client = await made.session()
        await made.drain(end=True)
        await made.pass_(299)
        await works(client)
        await made.pass_(2)
        assert await ended(client)
        await client.stream.aclose()
        await has_ended(made)
    said = capsys.readouterr().err
    assert made.status == 0
    assert re.search(r"shutting down .*sessions_end_in_seconds=300", said)
    assert re.search(r"sessions are told to end +sessions=1", said)
    assert re.search(r"session ended .*end=shutdown", said)


async def test_a_later_word_counts_until_they_have_been_told_to_end(
    workdir: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with gateway(workdir, mock_clock) as made:
        client = await made.session()
        await made.drain(end=True, deadline=10)
        await made.drain(end=True, deadline=1000)
        await made.pass_(500)
        await works(client)
        await made.drain(end=True, deadline=0)
        assert await ended(client)
        refused = await made.ask("drain", {"end": True, "deadline": 10})
        assert refused.problems == ("all sessions have been told to end",)
        assert (await made.shown())["sessions_end_in_seconds"] is None


async def test_who_has_not_opened_an_export_yet_is_told_that_it_ends(
    workdir: Path, mock_clock: trio.testing.MockClock
) -> None:
    """It has nothing to lose, and may ask the next gateway."""
    async with gateway(workdir, mock_clock) as made:
        await made.session()
        negotiates = await made.connect()
        await negotiates.structured()
        await made.drain(end=True)
        await trio.testing.wait_all_tasks_blocked(0.02)
        negotiates.negotiation.go("", ())
        assert (await negotiates.refused()).reply == Rep.ERR_SHUTDOWN


async def test_what_is_paused_can_be_resumed_while_sessions_may_go_on(
    workdir: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with gateway(workdir, mock_clock) as made:
        client = await made.session()
        assert (await made.ask("pause", {"export": ""})).ok
        await made.drain(end=True)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert (await made.shown())["paused"] == [""]
        assert (await made.ask("resume", {"export": ""})).ok
        await works(client)
        assert not (await made.ask("pause", {"export": ""})).ok


async def test_a_gateway_that_leaves_nobody_time_ends_them_at_once(mock_clock: object) -> None:
    leaving, left = Leaving(), trio.Event()
    assert leaving.begin()
    await leaving.wait(left.wait)
    assert not leaving.begin(100)


# --- Those of a listener


async def test_sessions_of_a_drained_listener_end_at_the_deadline_and_no_others(
    workdir: Path, mock_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    async with gateway(workdir, mock_clock) as made:
        client, other = await made.session("a"), await made.session("b")
        uri = f"nbd+unix:///?socket={workdir}/a"
        assert await made.drain(listener=uri, deadline=60) == (
            f"{uri} takes no more clients; 1 is there, and may go on for 60 s",
        )
        await made.pass_(50)
        await works(client)
        shown = [each["sessions_end_in_seconds"] for each in (await made.shown())["listeners"]]
        assert shown == [10, None]
        await made.pass_(11)
        assert await ended(client)
        await made.pass_(1000)
        await works(other)
    assert capsys.readouterr().err.count("end=drain ") == 1


async def test_a_listener_that_takes_clients_again_ends_none(
    workdir: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with gateway(workdir, mock_clock) as made:
        client = await made.session()
        await made.drain(deadline=60)
        assert (await made.ask("undrain")).ok
        await made.pass_(100)
        await works(client)
        await works(await made.session())


async def test_a_listener_that_a_reload_brings_back_takes_clients_if_all_do(
    workdir: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with gateway(workdir, mock_clock) as made:
        await made.drain()
        without_b = CONFIG.replace('[[listen]]\nuri = "nbd+unix:///?socket=DIR/b"\n', "")
        for made.text, undrains in ((without_b, True), (CONFIG, False)):
            assert (await made.ask("reload")).ok
            assert not undrains or (await made.ask("undrain")).ok
        drained = [each["drained"] for each in (await made.shown())["listeners"]]
        assert drained == [False, False]
        await works(await made.session("b"))


async def test_who_negotiated_at_the_deadline_ends_when_it_has_a_session(
    workdir: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with gateway(workdir, mock_clock) as made:
        client = await made.connect()
        await client.structured()
        await made.drain(deadline=1)
        await made.pass_(1.5)
        client.negotiation.go("", ())
        await client.answered()
        await made.pass_(LOOK_SECONDS)
        assert await ended(client)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"deadline": "60"}, '"deadline" is a number of seconds'),
        ({"deadline": True}, '"deadline" is a number of seconds'),
        ({"deadline": -1}, '"deadline" is from 0 to 86400 seconds'),
        ({"deadline": 1e9}, '"deadline" is from 0 to 86400 seconds'),
        ({"deadline": float("nan")}, '"deadline" is from 0 to 86400 seconds'),
        ({"end": 1}, '"end" is true or false'),
        ({"end": True, "listener": "x"}, 'with "end" all listeners are closed'),
        ({"listener": "nbd://nowhere", "deadline": 1}, "there is no listener"),
        ({"seconds": 1}, "unknown keys seconds"),
    ],
)
async def test_a_drain_that_means_nothing_is_refused(
    workdir: Path, mock_clock: trio.testing.MockClock, arguments: dict[str, object], why: str
) -> None:
    async with gateway(workdir, mock_clock) as made:
        answer = await made.ask("drain", arguments)
        assert not answer.ok
        assert why in answer.problems[0]
        await works(await made.session())

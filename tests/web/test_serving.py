"""Connections and their bounds, on a clock that jumps: nobody waits here for ten seconds."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.protocol.h11 import H11Protocol
from trio.testing import MockClock

import gateway.web.serving as serving
from gateway.web.guard import HEALTH, Guard
from gateway.web.refusals import Refusals
from gateway.web.serving import IDLE_SECONDS, QUIET_SECONDS, SEND_SECONDS, HttpConnections
from gateway.web.settings import Door
from tests.web.pages import Answer, answer_in

GET = b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n"
LARGE = bytes(64 << 20)


class Served:
    """An application, and what becomes of it."""

    def __init__(self) -> None:
        self.callers: list[Any] = []
        self.ended = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.callers.append(scope["state"]["caller"])
        try:
            body = b""
            if scope["path"] == "/large":
                body = LARGE
            elif scope["path"] == "/body":
                await receive()
            elif scope["path"] == "/hang":
                await trio.sleep_forever()
            elif scope["path"] == "/bug":
                raise RuntimeError("a bug")
            headers = [(b"x", b"y" * (8 << 20))] if scope["path"] == "/large-head" else []
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        finally:
            self.ended += 1


class House:
    def __init__(
        self, path: Path, served: Served, connections: HttpConnections, failed: list[str]
    ) -> None:
        self.path, self.served, self.connections = path, served, connections
        self.failed = failed

    async def connect(self) -> trio.SocketStream:
        return await trio.open_unix_socket(str(self.path))

    async def ask(self, request: bytes = GET) -> Answer:
        async with await self.connect() as stream:
            await stream.send_all(request.replace(b"host", b"connection: close\r\nhost"))
            return await answer_in(stream)


@asynccontextmanager
async def house(workdir: Path, *, guarded: bool = False) -> AsyncIterator[House]:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(workdir / "s"))
    listening.listen(1000)
    listening.setblocking(False)
    served = Served()
    failed: list[str] = []
    guard = Guard(served, ["h"], lambda: None, Refusals(lambda *_line: None))
    app: Any = guard if guarded else served
    connections = HttpConnections(ASGIWrapper(app), failed.append)
    async with trio.open_nursery() as nursery:
        door = Door(listening.detach(), "unix", False)
        nursery.start_soon(connections.serve, door, nursery)
        yield House(workdir / "s", served, connections, failed)
        nursery.cancel_scope.cancel()


async def test_an_answer_and_who_has_asked(workdir: Path, autojump_clock: MockClock) -> None:
    async with house(workdir) as one:
        assert (await one.ask()).status == 200
        [caller] = one.served.callers
        assert caller.kind == "unix"
        assert caller.uid is not None
        assert (await one.ask(GET.replace(b"/x", b"/bug"))).status == 500
        assert (await one.ask()).status == 200


async def test_a_connection_is_kept_and_then_let_go(
    workdir: Path, autojump_clock: MockClock
) -> None:
    async with house(workdir) as one, await one.connect() as stream:
        for _ in range(3):
            await stream.send_all(GET)
            answer = b""
            while b"\r\n0\r\n" not in answer:
                answer += await stream.receive_some()
            assert b"HTTP/1.1 200" in answer
            await trio.sleep(IDLE_SECONDS / 2)
        began = trio.current_time()
        while await stream.receive_some():
            pass
        assert trio.current_time() - began == pytest.approx(IDLE_SECONDS / 2, abs=0.1)


async def test_a_request_that_trickles_in_is_idle(workdir: Path, autojump_clock: MockClock) -> None:
    async with house(workdir) as one:
        async with await one.connect() as stream:
            began, sent = trio.current_time(), 0
            try:
                while sent < 1000:
                    await stream.send_all(b"x")
                    sent += 1
                    await trio.sleep(1)
            except trio.BrokenResourceError:
                pass
            assert IDLE_SECONDS <= trio.current_time() - began < IDLE_SECONDS + 3
        assert not one.served.callers


async def test_who_reads_nothing_of_an_answer_is_cut(
    workdir: Path, autojump_clock: MockClock
) -> None:
    async with house(workdir) as one:
        async with await one.connect() as stream:
            await stream.send_all(GET.replace(b"/x", b"/large"))
            await trio.sleep(SEND_SECONDS / 2)
            assert len(one.connections) == 1
            await trio.sleep(SEND_SECONDS)
            assert not len(one.connections)
        assert one.served.ended == 1


async def test_who_is_cut_in_the_head_of_an_answer_fails_nothing(
    workdir: Path, autojump_clock: MockClock
) -> None:
    """Its buffers are full, as those of one are who asks for much and reads nothing; then it ends here, as for
    somebody else's sake or in a reload.
    """
    async with house(workdir) as one:
        stream = await one.connect()
        await stream.send_all(GET.replace(b"/x", b"/large-head"))
        while not one.served.callers:
            await trio.sleep(0.01)
        await trio.sleep(SEND_SECONDS / 2)
        assert len(one.connections) == 1
    await stream.aclose()
    assert one.served.ended == 1
    assert not one.failed


async def test_a_fault_of_one_connection_ends_no_other(
    workdir: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(workdir) as one, await one.connect() as stream:
        await stream.send_all(GET.replace(b"/x", b"/hang"))
        while not one.served.callers:
            await trio.sleep(0.01)

        async def breaks(_protocol: object, _event: object) -> None:
            raise RuntimeError("a bug")

        with monkeypatch.context() as patched:
            patched.setattr(H11Protocol, "handle", breaks)
            assert (await one.ask()).status == 0
        assert (await one.ask()).status == 200
        while len(one.connections) > 1:  # both who have asked have an end
            await trio.sleep(0.01)
        assert one.failed == ["RuntimeError: a bug"]


async def test_nobody_is_led_away_from_http_1_1(workdir: Path, autojump_clock: MockClock) -> None:
    """To go over is an offer, which is passed over: Java's HttpClient makes it each time."""
    offers = (
        b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
        b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    )
    async with house(workdir) as one, await one.connect() as stream:
        for offer in offers:
            await stream.send_all(GET.replace(b"host", offer + b"host"))
            answer = b""
            while b"\r\n0\r\n" not in answer:
                data = await stream.receive_some()
                assert data, answer
                answer += data
            assert answer.startswith(b"HTTP/1.1 200")


async def test_who_reads_slowly_gets_all_of_it(workdir: Path, autojump_clock: MockClock) -> None:
    async with house(workdir) as one, await one.connect() as stream:
        await stream.send_all(GET.replace(b"/x", b"/large"))
        got = 0
        while got < len(LARGE):
            await trio.sleep(SEND_SECONDS / 4)
            got += len(await stream.receive_some(4 << 20))


async def test_who_goes_before_the_answer_ends_what_answers(
    workdir: Path, autojump_clock: MockClock
) -> None:
    async with house(workdir) as one:
        stream = await one.connect()
        await stream.send_all(GET.replace(b"/x", b"/hang"))
        while not one.served.callers:
            await trio.sleep(0.01)
        await stream.aclose()
        while not one.served.ended:
            await trio.sleep(0.1)
        assert not len(one.connections)


async def test_the_idlest_has_to_go_and_nobody_who_is_at_work(
    workdir: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(workdir) as one:
        monkeypatch.setattr(serving, "MOST_CONNECTIONS", 3)
        at_work = await one.connect()
        await at_work.send_all(GET.replace(b"/x", b"/hang"))
        while not one.served.callers:
            await trio.sleep(0.01)
        idle = [await one.connect()]
        await trio.sleep(1)
        idle.append(await one.connect())
        await trio.sleep(1)
        assert (await one.ask()).status == 200
        assert await idle[0].receive_some() == b""
        await idle[1].send_all(GET.replace(b"/x", b"/hang"))
        another = await one.connect()
        await another.send_all(GET.replace(b"/x", b"/hang"))
        while len(one.served.callers) < 4:
            await trio.sleep(0.01)
        with pytest.raises(trio.BrokenResourceError):  # all are at work
            await one.ask()
        for stream in (at_work, *idle, another):
            await stream.aclose()


async def asking(one: House, path: bytes, most: int) -> list[trio.SocketStream]:
    """Have so many ask for something, and read nothing, one after the other."""
    there = []
    for number in range(most):
        there.append(await one.connect())
        await there[-1].send_all(GET.replace(b"/x", path))
        while len(one.served.callers) <= number:
            await trio.sleep(0.001)
    return there


async def test_who_takes_nothing_of_an_answer_gives_way_to_who_comes(
    workdir: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MOST_CONNECTIONS", 3)
    async with house(workdir) as one:
        there = await asking(one, b"/large", 3)
        with pytest.raises(trio.BrokenResourceError):  # they may take it still
            await one.ask()
        await trio.sleep(QUIET_SECONDS)
        assert (await one.ask()).status == 200
        assert one.served.ended == 2  # who has waited for longest, and who was answered
        for stream in there:
            await stream.aclose()


async def test_health_is_answered_however_many_are_at_work(
    workdir: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who wait for us do not give way to others who ask, who are told so."""
    monkeypatch.setattr(serving, "MOST_CONNECTIONS", 4)
    monkeypatch.setattr(serving, "MOST_AT_WORK", 2)
    async with house(workdir, guarded=True) as one:
        there = await asking(one, b"/hang", 2)
        idle = [await one.connect() for _ in range(2)]
        for _ in range(3):
            answer = await one.ask()
            assert (answer.status, answer.headers["connection"]) == (503, "close")
            assert "others are being answered" in answer.said["problems"][0]
        for path in HEALTH:
            async with await one.connect() as stream:
                await stream.send_all(GET.replace(b"/x", path.encode()))
                answer = await answer_in(stream)
            # Its place is free again, whether or not it wants to ask once more.
            assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert one.served.ended == len(HEALTH)
        for stream in (*there, *idle):
            await stream.aclose()


async def test_who_takes_nothing_gives_way_to_who_asks(
    workdir: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MOST_AT_WORK", 2)
    async with house(workdir, guarded=True) as one:
        there = [*await asking(one, b"/hang", 1)]
        there.append(await one.connect())
        await there[-1].send_all(GET.replace(b"/x", b"/large"))
        await trio.sleep(QUIET_SECONDS / 2)
        assert (await one.ask()).status == 503
        await trio.sleep(QUIET_SECONDS)
        assert (await one.ask()).status == 200
        async with await one.connect() as stream:  # those who have been answered are not at work
            for _ in range(3):
                await stream.send_all(GET)
                answer = b""
                while b"\r\n0\r\n" not in answer:
                    answer += await stream.receive_some()
                assert b"HTTP/1.1 200" in answer
        for stream in there:
            await stream.aclose()

"""The control socket, from clients that mean it and from those that do not."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from gateway.admin.asking import ControlError, ask, asking
from gateway.admin.control import (
    INTERNAL_ERROR,
    MAX_CLIENTS,
    MAX_PROBLEMS,
    MAX_REQUEST_BYTES,
    MAX_TURNED_AWAY,
    REQUEST_SECONDS,
    Asked,
    ControlAnswer,
    ControlSocket,
    Misunderstood,
    no_arguments,
)
from gateway.identity import Identity, UnixPeer
from tests.tools.patience import HANG_SECONDS


@asynccontextmanager
async def control(path: Path) -> AsyncIterator[list[str]]:
    """A control socket; gives what it has been told to do."""
    done: list[str] = []

    async def reload(arguments: Mapping[str, Any]) -> ControlAnswer:
        no_arguments(arguments)
        done.append("reload")
        return ControlAnswer(True, ("all of it",))

    def short(number: int) -> None:
        raise OSError(number, os.strerror(number))

    opened = ControlSocket(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(opened.run, {"reload": reload}, nursery, short)
        yield done
        await opened.aclose()
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def answer_to(path: Path, data: bytes, *, end: bool = False) -> Any:
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(data)
        if end:
            await stream.send_eof()
        said = b""
        while piece := await stream.receive_some():
            said += piece
        assert said.endswith(b"\n")
        return json.loads(said)


async def test_an_answer_is_as_short_as_it_has_to_be_to_be_believed(workdir: Path) -> None:
    async def fail(arguments: Mapping[str, Any]) -> ControlAnswer:
        return ControlAnswer(
            False, problems=tuple(f"{number}: " + 200 * "x" for number in range(10_000))
        )

    opened = ControlSocket(workdir / "c")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(opened.run, {"fail": fail}, nursery, lambda _number: None)
        answer = await ask(workdir / "c", "fail")
        await opened.aclose()
        nursery.cancel_scope.cancel()
    assert len(answer.problems) == MAX_PROBLEMS + 1
    assert answer.problems[-1] == "and 9800 problems more"


async def test_a_verb(workdir: Path) -> None:
    async with control(workdir / "c") as done:
        assert await ask(workdir / "c", "reload") == ControlAnswer(True, ("all of it",))
        assert done == ["reload"]
        answer = await answer_to(workdir / "c", b'{"verb": "reload"}\n')
        assert answer == {"ok": True, "done": ["all of it"], "problems": []}


HOSTILE = {
    "nothing": (b"", "the end came before"),
    "half a line": (b'{"verb": "reload"}', "the end came before"),
    "an empty line": (b"\n", "a line of JSON"),
    "garbage": (b"\xff\0\xfe\n", "a line of JSON"),
    "another protocol": (b"GET / HTTP/1.0\r\n\r\n", "got more"),
    "no object": (b"[1]\n", "a JSON object"),
    "a number": (b"1\n", "a JSON object"),
    "much too deep": (b"[" * 4000 + b"\n", "a line of JSON"),
    "no verb": (b"{}\n", '{"verb": "..."}'),
    "a verb that is none": (b'{"verb": ["reload"]}\n', '{"verb": "..."}'),
    "an unknown verb": (b'{"verb": "relaod"}\n', "the verbs are reload"),
    "an argument that is none": (b'{"verb": "reload", "now": 1}\n', "unknown keys now"),
    "half of a character": (b'{"verb": "reload", "export": "a\\ud800"}\n', "UTF-8, got '\\ud800'"),
    "half of a character in a key": (b'{"verb": "reload", "\\udcff": 1}\n', "UTF-8, got '\\udcff'"),
    "half of a character deep in it": (b'{"verb": "reload", "a": [{"b": "\\udcff"}]}\n', "UTF-8"),
    "two lines": (b'{"verb": "reload"}\n' * 2, "got more"),
    "a long line": (b" " * (MAX_REQUEST_BYTES + 1), f"no more than {MAX_REQUEST_BYTES} bytes"),
    "a flood": (b" " * (1 << 20), f"no more than {MAX_REQUEST_BYTES} bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_is_no_request(workdir: Path, name: str) -> None:
    data, words = HOSTILE[name]
    async with control(workdir / "c") as done:
        answer = await answer_to(workdir / "c", data, end=True)
        assert answer["ok"] is False
        assert words in answer["problems"][0]
        assert answer["misunderstood"] is True
        assert done == []
        assert (await ask(workdir / "c", "reload")).ok


async def test_who_says_nothing_is_hung_up_on(
    workdir: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with control(workdir / "c"), await trio.open_unix_socket(str(workdir / "c")) as stream:
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(REQUEST_SECONDS)
        assert b"no line came within" in await stream.receive_some()
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(REQUEST_SECONDS)
        assert await stream.receive_some() == b""


async def test_who_leaves_at_once_is_no_trouble(workdir: Path) -> None:
    async with control(workdir / "c") as done:
        for data in (b"", b'{"verb": "reload"}\n', b"\n"):
            stream = await trio.open_unix_socket(str(workdir / "c"))
            await stream.send_all(data)
            stream.socket.close()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert done == ["reload"]
        assert (await ask(workdir / "c", "reload")).ok


async def test_too_many(workdir: Path) -> None:
    """As many as may be are at work, so who comes is told to come again; and so are many more."""
    async with waiting(workdir / "c") as verbs:
        async with trio.open_nursery() as nursery:
            for _ in range(MAX_CLIENTS):
                nursery.start_soon(ask, workdir / "c", "wait")
            await trio.testing.wait_all_tasks_blocked(0.01)
            for _ in range(3):
                answer = await ask(workdir / "c", "wait")
                assert answer.problems == (f"{MAX_CLIENTS} others are being answered, come again",)
            verbs.goes_on.set()
        assert (await ask(workdir / "c", "wait")).ok


async def test_who_says_nothing_keeps_nobody_from_asking(workdir: Path) -> None:
    """The one that came first has to go for it, and is told why."""
    async with control(workdir / "c"), AsyncExitStack() as stack:
        there = []
        for _ in range(MAX_CLIENTS):
            there.append(await trio.open_unix_socket(str(workdir / "c")))
            await stack.enter_async_context(there[-1])
            await trio.testing.wait_all_tasks_blocked(0.01)
        for _ in range(MAX_CLIENTS + 1):
            assert (await ask(workdir / "c", "reload")).ok
        assert b"no line came, and others want to ask" in await there[0].receive_some()
        await there[-1].send_all(b'{"verb": "reload"}\n')
        assert b'"ok": true' in await there[-1].receive_some()


async def test_who_may_not_ask_keeps_nobody_from_it(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many come: those that have no time to read why are hung up on."""
    async with control(workdir / "c"), AsyncExitStack() as stack:
        stranger = Identity("?", unix=UnixPeer(1, os.geteuid() + 1, 0))
        with monkeypatch.context() as others:
            others.setattr("gateway.admin.control.peer_of", lambda _sock: stranger)
            for _ in range(2 * MAX_TURNED_AWAY + 1):
                stream = await trio.open_unix_socket(str(workdir / "c"))
                await stack.enter_async_context(stream)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert await stream.receive_some() == b""
        assert (await ask(workdir / "c", "reload")).ok


@pytest.mark.parametrize(
    ("uid", "admitted"), [(0, True), (os.geteuid(), True), (os.geteuid() + 1, False)]
)
async def test_who_may(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, uid: int, admitted: bool
) -> None:
    """The kernel's word for who it is stands in for it: a test has one user."""
    who = Identity("somebody", unix=UnixPeer(1, uid, 0))
    monkeypatch.setattr("gateway.admin.control.peer_of", lambda _: who)
    async with control(workdir / "c") as done:
        assert (await ask(workdir / "c", "reload")).ok == admitted
        assert bool(done) == admitted


async def test_nobody_is_there(workdir: Path) -> None:
    with pytest.raises(ControlError, match="no gateway listens at"):
        await ask(workdir / "c", "reload")


async def test_somebody_else_is_there(workdir: Path) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"NBDMAGIC\n")

    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(workdir / "c"))
    sock.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(sock)])
        with pytest.raises(ControlError, match="expected an answer of a gateway"):
            await ask(workdir / "c", "reload")
        nursery.cancel_scope.cancel()


def test_arguments() -> None:
    with pytest.raises(Misunderstood, match="unknown keys a, b"):
        no_arguments({"b": 1, "a": 2})


@pytest.mark.parametrize(
    "bug", [UnicodeError("a bug"), ExceptionGroup("", [OSError()]), SystemExit(1)]
)
async def test_a_bug_of_a_verb_is_told_and_ends_nothing(workdir: Path, bug: BaseException) -> None:
    said: list[BaseException] = []
    heard: list[Asked] = []

    async def fail(arguments: Mapping[str, Any]) -> ControlAnswer:
        raise bug

    async def well(arguments: Mapping[str, Any]) -> ControlAnswer:
        return ControlAnswer(True)

    opened = ControlSocket(workdir / "c")
    run = partial(opened.run, short=lambda _number: None, heard=heard.append, failed=said.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, {"fail": fail, "well": well}, nursery)
        answer = await ask(workdir / "c", "fail")
        assert answer.problems == (f"{INTERNAL_ERROR}: {bug!r}",)
        assert (await ask(workdir / "c", "well")).ok
        await opened.aclose()
        nursery.cancel_scope.cancel()
    assert said == [bug]
    assert [each.answer is not None and each.answer.ok for each in heard] == [False, True]


async def test_a_bug_of_what_undoes_ends_nothing(workdir: Path) -> None:
    said: list[BaseException] = []
    bug = UnicodeError("a bug")

    async def fail() -> None:
        raise bug

    async def verb(arguments: Mapping[str, Any]) -> ControlAnswer:
        return ControlAnswer(True, undo=fail, while_connected=True)

    opened = ControlSocket(workdir / "c")
    run = partial(opened.run, short=lambda _number: None, failed=said.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, {"verb": verb}, nursery)
        for _ in range(2):
            assert (await ask(workdir / "c", "verb")).ok
        await opened.aclose()
        with trio.fail_after(HANG_SECONDS):
            while len(said) < 2:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert said == [bug, bug]


# --- Who goes before it has its answer


class Verbs:
    """Verbs that take their time, and what became of them."""

    def __init__(self) -> None:
        self.begun, self.goes_on, self.undone = trio.Event(), trio.Event(), trio.Event()
        self.cancelled = trio.Event()
        self.heard: list[Asked] = []
        self.while_connected = False

    async def wait(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        self.begun.set()
        try:
            await self.goes_on.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return ControlAnswer(True, ("it",), undo=self._undo, while_connected=self.while_connected)

    async def _undo(self) -> None:
        self.undone.set()


@asynccontextmanager
async def waiting(path: Path) -> AsyncIterator[Verbs]:
    verbs, opened = Verbs(), ControlSocket(path)
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            run = partial(opened.run, short=lambda _number: None, heard=verbs.heard.append)
            nursery.start_soon(run, {"wait": verbs.wait}, nursery)
            yield verbs
            await opened.aclose()
            nursery.cancel_scope.cancel()


WAIT = b'{"verb": "wait", "export": "disk"}\n'


async def test_what_is_under_way_is_cancelled_when_who_asked_goes(workdir: Path) -> None:
    async with waiting(workdir / "c") as verbs:
        stream = await trio.open_unix_socket(str(workdir / "c"))
        await stream.send_all(WAIT)
        await verbs.begun.wait()
        await stream.aclose()
        await verbs.cancelled.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
    [asked] = verbs.heard
    assert (asked.verb, asked.arguments, asked.answer) == ("wait", {"export": "disk"}, None)
    assert (asked.by.pid, asked.by.uid) == (os.getpid(), os.geteuid())
    assert not verbs.undone.is_set()  # it was never done


async def test_who_only_says_nothing_more_is_still_there(workdir: Path) -> None:
    async with waiting(workdir / "c") as verbs:
        async with await trio.open_unix_socket(str(workdir / "c")) as stream:
            await stream.send_all(WAIT)
            await stream.send_eof()
            await verbs.begun.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
            verbs.goes_on.set()
            assert json.loads(await stream.receive_some())["done"] == ["it"]
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not verbs.cancelled.is_set()
        assert not verbs.undone.is_set()
    assert [asked.answer is not None and asked.answer.ok for asked in verbs.heard] == [True]


async def test_what_is_done_is_undone_if_nobody_has_read_that_it_is(workdir: Path) -> None:
    """Neither who has gone before it was said, nor who goes without having read it."""
    async with waiting(workdir / "c") as verbs:
        stream = await trio.open_unix_socket(str(workdir / "c"))
        await stream.send_all(WAIT)
        await verbs.begun.wait()
        verbs.goes_on.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not verbs.undone.is_set()  # it may be read yet
        await stream.aclose()
        await verbs.undone.wait()


async def test_what_was_told_stays(workdir: Path) -> None:
    async with waiting(workdir / "c") as verbs:
        verbs.goes_on.set()
        assert (await ask(workdir / "c", "wait")).done == ("it",)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not verbs.undone.is_set()


async def test_what_lasts_as_long_as_a_connection(workdir: Path) -> None:
    async with waiting(workdir / "c") as verbs:
        verbs.goes_on.set()
        verbs.while_connected = True
        async with AsyncExitStack() as stack:
            for _ in range(MAX_CLIENTS + 1):  # they keep nobody from asking
                answer = await stack.enter_async_context(asking(workdir / "c", "wait"))
                assert answer.ok
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not verbs.undone.is_set()
        await verbs.undone.wait()

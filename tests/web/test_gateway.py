"""The gateway is asked once for all who ask the same, answers nothing older than the question, and has rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import gateway.web.gateway as asking
from gateway.admin.asking import ControlError
from gateway.admin.control import ControlAnswer
from gateway.web.gateway import MOST_COMMANDS, REST, Busy, Gateway, NotHeard


class Asked:
    """What stands in for the control socket: it notes what is asked, and takes a second for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times: list[tuple[float, str, Mapping[str, object]]] = []
        self.fails = False
        monkeypatch.setattr(asking, "ask", self)

    async def __call__(
        self, _path: Any, verb: str, arguments: Mapping[str, object]
    ) -> ControlAnswer:
        began = trio.current_time()
        self.times.append((began, verb, arguments))
        await trio.sleep(1)
        if self.fails:
            raise ControlError("gone")
        return ControlAnswer(True, data={"began": began})


async def test_many_who_ask_the_same(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, gateway = Asked(monkeypatch), Gateway("x")
    answers: list[tuple[float, float]] = []

    async def one(after: float) -> None:
        await trio.sleep(after)
        came = trio.current_time()
        status = await gateway.status()
        answers.append((came, status["began"]))

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(one, number / 50)
    assert all(began >= came for came, began in answers)
    assert len(answers) == 100
    assert len(asked.times) in (2, 3)


async def test_it_has_rest(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "MOST_REST_SECONDS", 100.0)
    asked, gateway = Asked(monkeypatch), Gateway("x")

    async def without_end(number: int) -> None:
        while True:
            await gateway.look("sessions", {"who": str(number)})

    with trio.move_on_after(1000):
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(without_end, number)
    assert len(asked.times) <= 1000 / (1 + REST) * 1.2
    began = trio.current_time()
    await gateway.look("alive")  # is of another kind, and not behind all of those
    assert trio.current_time() - began == pytest.approx(1)


async def test_who_goes_leaves_the_question_to_the_next(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, gateway = Asked(monkeypatch), Gateway("x")
    await gateway.status()
    answers: list[object] = []

    async def one() -> None:
        answers.append(await gateway.status())

    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.1):  # he is the one who would ask
            await gateway.status()
        nursery.start_soon(one)
        await trio.sleep(0)
        nursery.start_soon(one)
    assert len(answers) == 2
    assert len(asked.times) == 2


async def test_a_gateway_that_is_gone_is_told_to_all(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, gateway = Asked(monkeypatch), Gateway("x")
    asked.fails = True
    failed = []

    async def one() -> None:
        with pytest.raises(NotHeard, match="gone"):
            await gateway.status()
        failed.append(1)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(one)
    assert len(failed) == 5
    asked.fails = False
    assert await gateway.status()


async def test_so_many_commands_and_no_more(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, gateway = Asked(monkeypatch), Gateway("x")
    async with trio.open_nursery() as nursery:
        for _ in range(MOST_COMMANDS):
            nursery.start_soon(gateway.do, "drain", {}, "me")
        await trio.sleep(0.5)
        with pytest.raises(Busy):
            await gateway.do("drain", {}, "me")
    assert (await gateway.do("drain", {}, "me")).ok
    assert asked.times[0][2] == {"asked-by": "me"}

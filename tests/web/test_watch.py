"""What was done between two looks, how long it took, and who may look on."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from gateway.admin.control import ControlAnswer
from gateway.counts.seconds import BOUNDS, Seconds, said_of
from gateway.web.gateway import NotHeard
from gateway.web.watch import (
    EVERY_SECONDS,
    MOST_UNTOLD,
    MOST_WATCHERS,
    STILL_HERE_SECONDS,
    Lookout,
    TooMany,
    latency_of,
    server_sent,
)
from tests.tools.patience import HANG_SECONDS


def status(reads: int = 0, **more: Any) -> dict[str, Any]:
    times = Seconds()
    for _ in range(reads):
        times.add(0.001)
    totals = {"requests": {"READ": reads}, "bytes": {"READ": 512 * reads}, "errors": {}}
    return {
        "started": "s",
        "uptime_seconds": 1,
        "sessions": 1,
        "stuck_sessions": 0,
        "upstreams": [],
        "paused": [],
        "totals": {**totals, "seconds": {"READ": said_of(times)}},
        **more,
    }


class Shown:
    """A gateway, as far as a lookout asks it."""

    def __init__(self) -> None:
        self.now: dict[str, Any] | None = status()
        self.lines: list[dict[str, Any]] = []

    async def status(self) -> dict[str, Any]:
        if self.now is None:
            raise NotHeard("gone")
        return self.now

    async def look(self, verb: str, arguments: dict[str, Any]) -> ControlAnswer:
        after = arguments["after"]
        return ControlAnswer(True, data={"lines": [x for x in self.lines if x["number"] > after]})


async def next_of(events: Any) -> Any:
    with trio.fail_after(HANG_SECONDS):
        return await anext(events)


async def test_points(mock_clock: trio.testing.MockClock) -> None:
    mock_clock.autojump_threshold = 0
    shown = Shown()
    lookout = Lookout(shown)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lookout.run)
        await trio.testing.wait_all_tasks_blocked()
        shown.now = status(10)
        await trio.sleep(EVERY_SECONDS + 0.1)
        shown.now = status(10, started="later")
        await trio.sleep(EVERY_SECONDS)
        nursery.cancel_scope.cancel()
    [point] = lookout.history
    assert point["requests"] == {"READ": 10}
    assert point["bytes"] == {"READ": 5120}
    assert point["latency"]["p50"] < 0.002


async def test_who_looks_on_is_told_what_changes(mock_clock: trio.testing.MockClock) -> None:
    mock_clock.autojump_threshold = 0
    shown = Shown()
    lookout = Lookout(shown)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        await lookout.look()
        nursery.start_soon(lookout.run)
        events = lookout.events()
        assert (await next_of(events))[0] == "status"
        kinds = [(await next_of(events))[0] for _ in range(3)]
        assert set(kinds) == {"point"}  # nothing else has changed
        shown.lines.append({"number": 1, "event": "<b>"})
        shown.now = status(paused=["x"])
        told = dict([await next_of(events) for _ in range(3)])
        assert told["status"]["paused"] == ["x"]
        assert told["log"] == shown.lines
        shown.now = None
        while (event := await next_of(events))[0] != "away":
            pass
        assert event[1] == {"why": "gone"}
        await events.aclose()
        nursery.cancel_scope.cancel()
    assert not lookout.watching


async def test_who_takes_nothing_is_told_no_more(mock_clock: trio.testing.MockClock) -> None:
    mock_clock.autojump_threshold = 0
    lookout = Lookout(Shown())  # type: ignore[arg-type]
    await lookout.look()
    events = lookout.events()
    await next_of(events)
    for _ in range(MOST_UNTOLD + 2):
        await lookout.look()
    assert not lookout.watching
    left = [event async for event in events]
    assert len(left) == MOST_UNTOLD


async def test_so_many_look_on_and_no_more(mock_clock: trio.testing.MockClock) -> None:
    mock_clock.autojump_threshold = 0
    lookout = Lookout(Shown())  # type: ignore[arg-type]
    await lookout.look()
    there = [lookout.events() for _ in range(MOST_WATCHERS)]
    for events in there:
        await next_of(events)
    with pytest.raises(TooMany):
        await next_of(lookout.events())
    await there.pop().aclose()
    events = lookout.events()
    await next_of(events)
    assert await next_of(events) == ("", None)  # after a while: we are still here
    assert trio.current_time() == pytest.approx(STILL_HERE_SECONDS)
    for each in [*there, events]:
        await each.aclose()
    assert not lookout.watching


@pytest.mark.parametrize(
    ("times", "p50", "p99"),
    [
        ([], None, None),
        ([0.001] * 100, 0.001, 0.001),
        ([0.0001] * 98 + [0.5, 0.5], 0.0001, 0.5),
        ([1000.0], BOUNDS[-1], BOUNDS[-1]),
    ],
)
def test_latency_is_right_within_a_factor_of_two(
    times: list[float], p50: float | None, p99: float | None
) -> None:
    histogram = Seconds()
    for each in times:
        histogram.add(each)
    found = latency_of(histogram.counts)
    if p50 is None or p99 is None:
        assert found is None
        return
    assert found is not None
    assert p50 / 2 <= found["p50"] <= 2 * p50
    assert p99 / 2 <= found["p99"] <= 2 * p99


def test_an_event_is_one_whatever_is_in_it() -> None:
    text = server_sent(("log", {"name": "a\n\nevent: status\ndata: x"})).decode()
    assert text.count("\n\n") == 1
    assert text.endswith("\n\n")
    kind, data, *rest = text.rstrip("\n").split("\n")
    assert kind == "event: log"
    assert json.loads(data.removeprefix("data: "))["name"] == "a\n\nevent: status\ndata: x"
    assert not rest
    assert server_sent(("", None)).startswith(b":")

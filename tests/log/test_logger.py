"""The log as the gateway writes it, in memory, by a clock that the test moves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import structlog
import trio
import trio.testing

from gateway.config import Log
from gateway.log import (
    MAX_NAME_CHARACTERS,
    NAMES,
    ORIGIN,
    keep_recent,
    logger,
    say_left_out,
    set_up,
)
from gateway.log.counted import COUNTED
from gateway.log.rates import LINES_OF_A_KIND

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def said(capsys: Capture) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    for line in lines:
        assert line.pop("timestamp")
    return lines


async def test_what_is_too_much_is_counted(
    capsys: Capture, autojump_clock: trio.testing.MockClock
) -> None:
    log = logger(Log(format="json"), clock=trio.current_time)
    client = log.bind(client="10.0.0.1:4711", **{ORIGIN: "10.0.0.1"})
    dropped = COUNTED.dropped
    async with trio.open_nursery() as nursery:
        nursery.start_soon(say_left_out)
        for _ in range(25):
            client.info("client refused", why="no")
        log.info("listening")
        lines = said(capsys)
        refused = {
            "event": "client refused",
            "client": "10.0.0.1:4711",
            "why": "no",
            "level": "info",
        }
        assert lines == [refused] * LINES_OF_A_KIND + [{"event": "listening", "level": "info"}]
        await trio.sleep(1.5)
        assert said(capsys) == [
            {
                "event": "log lines left out",
                "level": "warning",
                "lines": 15,
                "events": {"client refused": 15},
                "clients": {"10.0.0.1": 15},
            }
        ]
        assert COUNTED.dropped == dropped + 15
        await trio.sleep(10)
        assert said(capsys) == []
        for _ in range(11):
            client.info("client refused", why="no")
        nursery.cancel_scope.cancel()
    assert [line["event"] for line in said(capsys)] == (
        ["client refused"] * LINES_OF_A_KIND + ["log lines left out"]
    )


@pytest.mark.parametrize("kept", [False, True], ids=["gone", "kept"])
def test_what_the_level_keeps_away_counts_for_no_rate(
    kept: bool, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where the last lines are kept for who looks on, either."""
    monkeypatch.setattr("gateway.log._kept", [])
    settings = Log(format="json", level="warning")
    log = logger(settings, clock=lambda: 0.0)
    recent = keep_recent(settings) if kept else None
    client = log.bind(**{ORIGIN: "10.0.0.1"})
    for _ in range(100):
        client.info("event")
    client.warning("event")
    assert said(capsys) == [{"event": "event", "level": "warning"}]
    if recent is not None:
        assert [each["level"] for each in recent.after(0)] == ["info"] * LINES_OF_A_KIND + [
            "warning"
        ]


@pytest.mark.parametrize("format_", ["console", "json"])
def test_no_terminal_obeys_a_name(format_: Literal["console", "json"], capsys: Capture) -> None:
    """Whoever logs it: a name is one value in all events. A traceback has its lines."""
    log = logger(Log(format=format_), clock=lambda: 0.0)
    log.info("export paused", export="a\x1b[2J\u202e", sessions=1)
    line = capsys.readouterr().err
    assert r"a\x1b[2J\u202e" in line.replace(r"\\", "\\")
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    try:
        raise ValueError("oh")
    except ValueError:
        log.exception("it fails")
    assert "ValueError: oh" in capsys.readouterr().err


@pytest.mark.parametrize("key", sorted(NAMES))
def test_a_name_is_one_value_in_all_events(key: str, capsys: Capture) -> None:
    """Whoever logs it gives it as it is: it has no quotes, and a long one is cut in one place."""
    log = logger(Log(format="json"), clock=lambda: 0.0)
    long = "n" * MAX_NAME_CHARACTERS
    for name in ("it's a \x1b", long, long + "n"):
        log.info("event", **{key: name})
    assert [line[key] for line in said(capsys)] == [r"it's a \x1b", long, long + "…"]


def test_what_is_no_name_is_not_cut(capsys: Capture) -> None:
    logger(Log(format="json"), clock=lambda: 0.0).info("event", why="w" * 5000)
    assert [len(line["why"]) for line in said(capsys)] == [5000]


def test_a_reload_changes_neither_rates_nor_whose_fault_a_line_is(capsys: Capture) -> None:
    client = logger(Log(format="json"), clock=lambda: 0.0).bind(**{ORIGIN: "10.0.0.1"})
    client.info("happens")
    set_up(Log(format="console"))
    for _ in range(100):
        client.info("happens")
    assert capsys.readouterr().err.count("happens") == LINES_OF_A_KIND


def test_without_standard_error_nothing_is_said_elsewhere(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", None)
        logger(Log()).info("listening")
    assert capsys.readouterr().out == ""

"""Whoever looks holds nobody up: between two turns of the others little is done, however much there is to show.

What is counted are calls of functions, Python's and C's. A millisecond has time for some 6,000 of them on a
slow machine, and unlike a clock they are the same on all. What one call in C takes long for is bounded as well:
no more than so many bytes become JSON at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from gateway.admin.control import ControlAnswer, _line_of
from gateway.app import switching
from gateway.app.overview import Overview
from gateway.sessions.pausing import Pauses
from gateway.status.stuck import Stuck
from gateway.status.telling import tell_counts
from gateway.status.verbs import verbs_of
from tests.app.houses import LISTEN, House, house

MOST_CALLS = 3000
MOST_JSON = 40_000
"""Bytes that become JSON at a time: a third of a millisecond."""

EXPORTS = 1000
SESSIONS = 1000

CONFIG = (
    LISTEN
    + '[upstream.m]\nuri = "memory:1M"\n'
    + "".join(
        f'[[export]]\nname = "e{number}"\nupstream = "m"\nupstream-name = ""\n'
        for number in range(EXPORTS)
    )
)


class Steps(trio.abc.Instrument):
    """Counts what is called in each step of one task, and what becomes JSON."""

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self._task = task
        self.calls = self.most_calls = self.most_json = 0

    def __repr__(self) -> str:
        return f"{self.most_calls} calls, {self.most_json} bytes of JSON"

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self.calls = 0
            sys.setprofile(self._note)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            sys.setprofile(None)
            self.most_calls = max(self.most_calls, self.calls)

    def _note(self, _frame: Any, event: str, _what: Any) -> None:
        if event in ("call", "c_call"):
            self.calls += 1


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    steps = Steps(trio.lowlevel.current_task())
    dumps = json.dumps

    def noted(what: object) -> str:
        text = dumps(what)
        steps.most_json = max(steps.most_json, len(text))
        return text

    monkeypatch.setattr(json, "dumps", noted)
    trio.lowlevel.add_instrument(steps)
    try:
        yield steps
    finally:
        trio.lowlevel.remove_instrument(steps)
        sys.setprofile(None)
        monkeypatch.undo()


async def crowd(there: House) -> None:
    """Have sessions, and all exports used."""
    for number in range(SESSIONS):
        await there.session(f"e{number}")
    [running, *_] = there.service.running
    for number in range(EXPORTS):
        done = there.service.counts.of(f"e{number}")
        done.sessions = 1
        done.requests.update(READ=number, WRITE=1, FLUSH=1, TRIM=1)
        done.errors["READ", "EIO"] = 1
        for command in ("READ", "WRITE", "FLUSH"):
            done.seconds[command].add(running.began % 1)


async def test_no_step_is_long_with_a_thousand_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path, CONFIG) as there:
        await crowd(there)
        stuck = Stuck(there.service, there.service.log)
        overview = Overview(there.now, {}, there.service, None, None)  # type: ignore[arg-type] # see below
        overview.listeners_shown = list  # type: ignore[method-assign] # there is one
        overview.sessions_end_in_seconds = lambda: None  # type: ignore[method-assign]
        verbs = {
            **verbs_of(there.service, stuck, overview),
            **switching.verbs_of(there.service, Pauses(there.service, there.nursery), lambda: None),
        }
        await verbs["status"]({})  # what is looked up for the first time stays

        sent: list[bytes] = []

        async def send(line: bytes) -> None:
            sent.append(line)
            await trio.lowlevel.checkpoint()

        for verb in ("status", "sessions", "exports", "upstreams", "losses", "counts", "look"):
            answer: ControlAnswer | None = None
            await trio.lowlevel.checkpoint()
            with counted(monkeypatch) as steps:
                await trio.lowlevel.checkpoint()
                if verb == "counts":
                    await tell_counts(there.service, send)
                elif verb == "look":
                    await stuck.look()
                else:
                    answer = await verbs[verb]({})
                    line = _line_of(answer)
                await trio.lowlevel.checkpoint()
            assert (verb, steps.most_calls < MOST_CALLS, steps.most_json < MOST_JSON) == (
                *(verb, True, True),
            ), steps
            if answer is not None:
                assert json.loads(line)["data"] == json.loads(json.dumps(answer.data))
        assert len(sent) > EXPORTS / 50

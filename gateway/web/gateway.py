"""What is asked of the gateway: no more at a time than it bears, and once for all who ask the same.

There may be any number of browsers and scrapers, and each question costs the gateway half a millisecond or more
of the thread that relays. So a question is never asked twice at the same time: whoever comes while it is being
answered waits for the next answer, and shares that with all who wait by then. Nobody gets an answer that was
begun before he asked, so numbers are never older than the question. After each answer the gateway has a rest
from such questions, `REST` times as long as the answer took. So whoever asks without end, over however many
connections, takes a bounded part of its time. Questions with arguments share one rest, for there are as many of
them as anybody likes to make up.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from gateway.admin.asking import ControlError, ask
from gateway.admin.control import ControlAnswer
from gateway.admin.listening import ToldBehind, listening

MOST_QUESTIONS = 4
"""Asked at a time of what only looks: each is answered in milliseconds."""

MOST_COMMANDS = 8
"""Done at a time of what does something, which may take a minute. With the questions these are fewer than the
control socket hears (`gateway.admin.control.MAX_CLIENTS`)."""

LOOK_SECONDS = 10
"""How long a question may take: a gateway that does not answer for so long does not live."""

COUNTS = "counts"
"""The question that is answered in lines after the answer (`gateway.status.telling`)."""

REST = 9.0
"""For how many times as long as an answer took nothing of its kind is asked: such questions have a tenth of the
time."""

MOST_REST_SECONDS = 2.0
"""However long it took: the gateway had other things to do, and somebody waits."""

Arguments = Mapping[str, object]

NONE: Arguments = {}


class NotHeard(Exception):
    """The gateway cannot be spoken to, or does not answer in time; the text says which."""


class Busy(Exception):
    """So many others are being served that this has to wait."""


@dataclass
class _Shared:
    """A question that is about to be asked, for all who wait for its answer."""

    done: trio.Event = field(default_factory=trio.Event)
    came_of_it: ControlAnswer | NotHeard | None = None
    """None: who was to ask has gone before that."""


class Gateway:
    """The gateway, by its control socket."""

    def __init__(self, control: str) -> None:
        self._control = Path(control)
        self._questions = trio.CapacityLimiter(MOST_QUESTIONS)
        self._commands = 0
        self._turns: dict[str, trio.Lock] = {}
        """Of each question: it is asked by one at a time."""
        self._next: dict[str, _Shared] = {}
        """What is asked as soon as the same was answered."""
        self._rests_until: dict[str, float] = {}
        """Until when nothing is asked of a kind: by verb; of those with arguments, together."""

    async def look(self, verb: str, arguments: Arguments = NONE) -> ControlAnswer:
        """Ask what changes nothing. Raises `NotHeard`."""
        key = json.dumps([verb, arguments], sort_keys=True)
        while (shared := self._next.get(key)) is not None:
            await shared.done.wait()
            if shared.came_of_it is not None:
                return _of(shared.came_of_it)
        kind = "" if arguments else verb
        shared = self._next[key] = _Shared()
        turn = self._turns.setdefault(key, trio.Lock())
        try:
            async with turn:
                while shared.came_of_it is None:
                    await trio.sleep_until(self._rests_until.get(kind, 0))
                    async with self._questions:
                        if trio.current_time() >= self._rests_until.get(kind, 0):
                            del self._next[key]  # who comes from now on waits for the next answer
                            shared.came_of_it = await self._asked(kind, verb, arguments)
            return _of(shared.came_of_it)
        finally:
            if self._next.get(key) is shared:
                del self._next[key]
            if not turn.locked():
                self._turns.pop(key, None)
            shared.done.set()

    async def _asked(self, kind: str, verb: str, arguments: Arguments) -> ControlAnswer | NotHeard:
        """Ask, and have the gateway rest."""
        began = trio.current_time()
        try:
            return await self._ask(verb, arguments, LOOK_SECONDS)
        except NotHeard as error:
            return error
        finally:
            now = trio.current_time()
            rest = min(REST * (now - began), MOST_REST_SECONDS)
            self._rests_until[kind] = max(now, self._rests_until.get(kind, 0)) + rest

    async def do(self, verb: str, arguments: Arguments, asked_by: str) -> ControlAnswer:
        """Have something done, on behalf of somebody whom the log names. Raises `NotHeard`, `Busy`."""
        with self._one_command():
            return await self._ask(verb, {**arguments, "asked-by": asked_by}, math.inf)

    @asynccontextmanager
    async def listen(
        self, verb: str, arguments: Arguments, asked_by: str
    ) -> AsyncIterator[tuple[ControlAnswer, ToldBehind]]:
        """Have something done that goes on telling, until the block ends. Raises `NotHeard`, `Busy`."""
        said = {**arguments, "asked-by": asked_by}
        with self._one_command():
            try:
                async with listening(self._control, verb, said) as (answer, behind):
                    yield answer, behind
            except ControlError as error:
                raise NotHeard(str(error)) from None

    @contextmanager
    def _one_command(self) -> Iterator[None]:
        """Count what is done. Raises `Busy`."""
        if self._commands >= MOST_COMMANDS:
            raise Busy(f"{MOST_COMMANDS} commands are being done, come again")
        self._commands += 1
        try:
            yield
        finally:
            self._commands -= 1

    async def status(self) -> dict[str, Any]:
        """Give what `status` shows. Raises `NotHeard`."""
        return data_of(await self.look("status"))

    async def counts(self) -> list[dict[str, Any]]:
        """Give what was done with each export. Raises `NotHeard`."""
        counts: list[dict[str, Any]] = data_of(await self.look(COUNTS))["exports"]
        return counts

    async def _ask(self, verb: str, arguments: Arguments, seconds: float) -> ControlAnswer:
        try:
            with trio.fail_after(seconds):
                if verb == COUNTS:
                    return await self._all_lines(verb)
                return await ask(self._control, verb, arguments)
        except ControlError as error:
            raise NotHeard(str(error)) from None
        except trio.TooSlowError:
            raise NotHeard(f"the gateway has not answered for {seconds:g} s") from None

    async def _all_lines(self, verb: str) -> ControlAnswer:
        """Ask what is answered in lines after the answer. Raises `ControlError`."""
        exports: list[dict[str, Any]] = []
        async with listening(self._control, verb) as (answer, behind):
            async for line in behind:
                exports += line.get("exports", [])
                if "end" in line:
                    return ControlAnswer(True, data={"exports": exports})
        why = "; ".join(answer.problems) or "the gateway has gone before it had told all"
        raise ControlError(why)


def _of(came_of_it: ControlAnswer | NotHeard) -> ControlAnswer:
    if isinstance(came_of_it, NotHeard):
        raise came_of_it
    return came_of_it


def data_of(answer: ControlAnswer) -> dict[str, Any]:
    """Give what was answered in names and numbers. Raises `NotHeard` if the gateway has refused to."""
    if answer.data is None:
        raise NotHeard("; ".join(answer.problems) or "the gateway has answered nothing")
    return dict(answer.data)

"""What one process of an upgrade has the other one do: an errand.

An operator speaks to the newer one, and the sessions are perhaps the older one's: so that is asked to pause,
resume or switch them (`gateway.app.in_both`). And whoever does not keep the tickets asks the other whether a
use may begin (`gateway.tickets.keeping`).

Whoever has sent somebody may go before there is an answer, or before he has it. Then what was done is undone,
as for who asks over a control socket. If the other process ends, there is no answer: then it has no sessions
any more either, and what is asked for is done by whoever is left.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from itertools import count
from typing import Any

import trio

from gateway.admin.control import ControlAnswer, asking_for, who_asks
from gateway.handover.message import ChannelMessage
from gateway.upgrade.asking import Say

MOST_TO_UNDO = 1024
"""Errands that were done and may be undone: of pauses, which end by themselves. The oldest is forgotten."""

Do = Callable[[str, Mapping[str, Any], Collection[str]], Awaitable[ControlAnswer]]
"""Does a verb with its arguments; given are also the exports of which the other process has sessions."""


class _Sent:
    def __init__(self) -> None:
        self.over = trio.Event()
        self.answer: ControlAnswer | None = None


class Errands:
    """Those that one process has sent, and those that it does for the other. `say` tells that something."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._numbers = count(1)
        self._sent: dict[int, _Sent] = {}
        self._at_work: dict[int, trio.CancelScope] = {}
        self._done: OrderedDict[int, Callable[[], Awaitable[None]]] = OrderedDict()

    # --- Sent

    async def send(
        self, verb: str, asked: Mapping[str, Any], sessions: Collection[str] = ()
    ) -> ControlAnswer | None:
        """Have the other process do a verb. `sessions`: exports of which there are sessions here. None: it has
        ended, or ends.
        """
        number, sent = next(self._numbers), _Sent()
        self._sent[number] = sent
        said = {"number": number, "verb": verb, "asked": {**asked}, "by": who_asks()}
        message = ChannelMessage("errand", {**said, "sessions": sorted(sessions)})
        try:
            self._say(message, unsent=sent.over.set)
            await sent.over.wait()
        except trio.Cancelled:
            self._undo(number)
            raise
        finally:
            del self._sent[number]
        return sent.answer

    def _undo(self, number: int) -> None:
        self._say(ChannelMessage("undo", {"number": number}))

    async def _undo_later(self, number: int) -> None:
        self._undo(number)

    def answered(self, message: ChannelMessage) -> None:
        """It has been done there, or not."""
        number = message["number"]
        sent = self._sent.get(number)
        if sent is not None:
            done, problems = (tuple(map(str, message[each])) for each in ("done", "problems"))
            undo = partial(self._undo_later, number) if message["ok"] else None
            sent.answer = ControlAnswer(
                message["ok"],
                done,
                problems,
                undo=undo,
                not_here=not message["here"],
                misunderstood=message.said.get("misunderstood") is True,  # older ones do not say it
            )
            sent.over.set()

    def nobody_answers(self) -> None:
        """The other process has ended."""
        for sent in self._sent.values():
            sent.over.set()

    # --- Done

    async def do(self, message: ChannelMessage, do: Do) -> None:
        """Do what the other process asks for, and answer."""
        number, scope = message["number"], trio.CancelScope()
        asking_for(str(message["by"]))
        self._at_work[number] = scope
        try:
            with scope:
                sessions = {str(each) for each in message["sessions"]}
                answer = await do(message["verb"], message["asked"], sessions)
        finally:
            del self._at_work[number]
        if scope.cancelled_caught:
            return
        if answer.undo is not None:
            self._done[number] = answer.undo
            if len(self._done) > MOST_TO_UNDO:
                self._done.popitem(last=False)
        said = {"ok": answer.ok, "done": [*answer.done], "problems": [*answer.problems]}
        said |= {"here": not answer.not_here, "misunderstood": answer.misunderstood}
        self._say(ChannelMessage("answer", {"number": number, **said}))

    async def undo(self, number: int) -> None:
        """Whoever has asked for something has gone."""
        if number in self._at_work:
            self._at_work[number].cancel()
        elif (undo := self._done.pop(number, None)) is not None:
            await undo()

    async def undo_all(self) -> None:
        """The other process has died, and whoever had asked there has gone with it."""
        while self._done:
            _number, undo = self._done.popitem()
            await undo()

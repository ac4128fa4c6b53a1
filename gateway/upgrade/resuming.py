"""What is paused in two processes: an operator who has it go on speaks to the newer one, and the sessions are
the older one's. So that one is asked to do it, and says which exports have gone on; they do here as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

import trio

from gateway.admin.control import ControlAnswer
from gateway.handover.message import ChannelMessage, NotUnderstood
from gateway.sessions.pausing import Pauses
from gateway.upgrade.asking import Say


class _Resume:
    def __init__(self) -> None:
        self.over = trio.Event()
        self.answer: ControlAnswer | None = None


class Resuming:
    """Operators who wait for the older process. `say` tells it something."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._numbers = count(1)
        self._asked: dict[int, _Resume] = {}

    async def ask(self, said: Mapping[str, Any]) -> ControlAnswer | None:
        """Have the older process do the verb. None: it has ended, and all that is paused is ours."""
        number, asked = next(self._numbers), _Resume()
        self._asked[number] = asked
        message = ChannelMessage("resume", {"number": number, "asked": {**said}})
        try:
            self._say(message, unsent=asked.over.set)
            await asked.over.wait()
        finally:
            del self._asked[number]
        return asked.answer

    def answered(self, message: ChannelMessage) -> None:
        """It has been done there, or not."""
        asked = self._asked.get(message["number"])
        if asked is not None:
            done, problems = (tuple(map(str, message[each])) for each in ("done", "problems"))
            asked.answer = ControlAnswer(message["ok"], done, problems)
            asked.over.set()

    def nobody_answers(self) -> None:
        """The older process has ended."""
        for asked in self._asked.values():
            asked.over.set()


def pause(pauses: Pauses, said: Mapping[str, Any]) -> None:
    """What is paused in the older process is paused here, too. Raises `NotUnderstood`."""
    try:
        pauses.take_over(said)
    except (AttributeError, KeyError, TypeError) as error:
        raise NotUnderstood(f"expected pauses, got {said!r:.80} ({error!r})") from None

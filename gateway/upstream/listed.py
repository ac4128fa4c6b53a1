"""The list of a server's exports, asked for once for all who want it at the same time."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio

from gateway.protocol.errors import Refusal
from gateway.upstream.errors import Unreachable
from gateway.wire.handshake import ListedExport

LISTING_SECONDS = 2
"""How long a list of exports is good: `nbdinfo --list` and its like ask several times at once."""


SILENT_SECONDS = 60
"""How long a server is not asked again that has said nothing, as long as something of it is in use. It may take
a single connection, and each who asks would wait in vain."""


class LastList:
    """The list of one server."""

    def __init__(self) -> None:
        self._told: tuple[float, list[ListedExport] | Refusal] | None = None
        """What it said, and until when that is good."""
        self._lock = trio.Lock()
        self._silent_until = -math.inf

    def says_nothing(self) -> None:
        """It has not said what it has in the time that there was."""
        self._silent_until = trio.current_time() + SILENT_SECONDS

    @property
    def is_silent(self) -> bool:
        """That was a moment ago."""
        return trio.current_time() < self._silent_until

    async def exports(self, ask: Callable[[], Awaitable[list[ListedExport]]]) -> list[ListedExport]:
        """Give the exports. `ask` finds them out, once for all who want to know at the same time, and within
        `LISTING_SECONDS` of that. If there was no server, only those are told who have waited for it. Raises
        `Refusal` if the server will not say.
        """
        came = trio.current_time()
        async with self._lock:
            if self._told is None or came > self._told[0]:
                told: list[ListedExport] | Refusal
                try:
                    told = await ask()
                except Refusal as refusal:
                    told = refusal
                good_for = 0 if isinstance(told, Unreachable) else LISTING_SECONDS
                self._told = (trio.current_time() + good_for, told)
            answer = self._told[1]
        if isinstance(answer, Refusal):
            raise answer.with_traceback(None)  # which would grow with each who is told
        return answer

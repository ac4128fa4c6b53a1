"""The list of a server's exports, asked for once for all who want it at the same time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from gateway.protocol.errors import Refusal
from gateway.upstream.errors import Unreachable
from gateway.wire.handshake import ListedExport

LISTING_SECONDS = 2
"""How long a list of exports is good: `nbdinfo --list` and its like ask several times at once."""


class LastList:
    """The list of one server."""

    def __init__(self) -> None:
        self._told: tuple[float, list[ListedExport] | Refusal] | None = None
        """What it said, and until when that is good."""
        self._lock = trio.Lock()

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

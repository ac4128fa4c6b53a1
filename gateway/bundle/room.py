"""FLUSHes that nobody has asked for. They make room when as much is kept as may be kept, to be looked for or
written again after a loss.

A server may say that it has not tried a FLUSH. It is asked again, a little later each time. After `MOST_TRIES`
we keep less: only where something was written. Otherwise writes would wait for ever, and we would ask the
server for ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gateway.losses.rule import MOST_TRIES
from gateway.protocol.commands import is_loss

FIRST_PAUSE_SECONDS = 0.5
"""How long we wait after the first FLUSH that was not tried; then twice as long each time. What the server has
too little of, it may have in a moment, and writes may wait so long."""


class Room:
    """Decides when such a FLUSH may be sent. `changed` is called when `due` becomes sooner."""

    def __init__(self, clock: Callable[[], float], changed: Callable[[], None]) -> None:
        self._clock = clock
        self._changed = changed
        self._coming = False
        self._tries = 0
        self.due = math.inf
        """When the next one may be sent, in seconds; infinite if nothing has to be waited for."""

    @property
    def may_flush(self) -> bool:
        """No such FLUSH is on its way, and none was refused just now."""
        return not self._coming and self.due == math.inf

    def flushes(self) -> None:
        """Such a FLUSH is on its way."""
        self._coming = True

    def flushed(self, error: int) -> bool:
        """It was answered. Say whether it is no use to send another one."""
        self._coming = False
        if not error or is_loss(error):  # nothing is left that would take room
            self._tries = 0
            return False
        self._tries += 1
        if self._tries == MOST_TRIES:
            self._tries = 0
            return True
        self.due = self._clock() + FIRST_PAUSE_SECONDS * 2 ** (self._tries - 1)
        self._changed()
        return False

    def time_has_come(self, now: float) -> None:
        """If it is `due`, the next one may be sent."""
        if self.due <= now:
            self.due = math.inf

"""FLUSHes that nobody has asked for: they make room where as much is kept as may be, to be looked for or
written again after a loss.

A server may say that it has not tried one. It is asked again, a little later each time, and after `MOST_TRIES`
no more is kept than where something was written: else writes would wait for ever, and the server be asked for
as long.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gateway.losses.rule import MOST_TRIES
from gateway.protocol.commands import is_loss

FIRST_PAUSE_SECONDS = 0.5
"""How long not, after the first that was not tried; then twice as long each time. What the server has too
little of it may have in a moment, and writes may wait meanwhile."""


class Room:
    """When one may be sent. `changed` is called when `due` is sooner."""

    def __init__(self, clock: Callable[[], float], changed: Callable[[], None]) -> None:
        self._clock = clock
        self._changed = changed
        self._coming = False
        self._tries = 0
        self.due = math.inf
        """When the next may be sent, in seconds; none if that need not be waited for."""

    @property
    def may_flush(self) -> bool:
        """None is on its way, and none was refused just now."""
        return not self._coming and self.due == math.inf

    def flushes(self) -> None:
        """One is on its way."""
        self._coming = True

    def flushed(self, error: int) -> bool:
        """It has been answered: say whether no other is worth while."""
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
        """It may have: the next may be sent then."""
        if self.due <= now:
            self.due = math.inf

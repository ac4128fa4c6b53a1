"""By which clocks a ticket is over.

"Until 18:00" is a time of the clock on the wall, and so it stands in the file: it means the same after a
restart. But that clock is set now and then: by NTP after a start without a battery, by hand, by an attacker. A
gateway that runs has another one, which nobody sets (CLOCK_BOOTTIME, clock_gettime(2): it counts suspends as
well). So a ticket is over when *either* says so: what is left of it is counted on the second from the moment
that it is made or read, and never becomes more because the first is set back; and if that is set forward, it is
over when the wall says so.

Where the wall says a time before that at which a ticket was made, as after a start without a battery, it is
wrong: then it is reckoned as if it was made just now, so it has at most what it was given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """Two clocks, both in seconds."""

    wall: Callable[[], float] = time.time
    """Since the epoch. It may be set."""
    steady: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
    """Since the machine has started. It never is."""

    def due(self, until: float, made: float) -> float:
        """Give the steady clock's time at which something is over, of which the file says when on the wall it
        was made, and is over.
        """
        return self.steady() + until - max(self.wall(), made)

    @property
    def apart(self) -> float:
        """How much the wall's time is more than the steady clock's: it changes when that is set."""
        return self.wall() - self.steady()


OF_THE_MACHINE = Clock()
"""The machine's own."""

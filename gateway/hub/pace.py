"""How the hub goes about its work, in numbers for whoever looks on: how long its rounds take, which is how long
a client waits for others, and in which of its ways it waits for more (`rounds` decides that). And the way in
which small commands gather.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

from gateway.counts.seconds import Seconds, said_of

ROUNDS_A_SAMPLE = 16
"""Of so many rounds one is timed. To time one costs half a microsecond."""


@dataclass(slots=True)
class Pace:
    """Numbers that only grow."""

    rounds: Seconds = field(default_factory=Seconds)
    """How long rounds took that found something to do, one of `ROUNDS_A_SAMPLE`; not how long it waited."""
    polled: int = 0
    """How many of these had polled for more."""
    waited: int = 0
    """How many had left the processor to others until there was more."""
    slept: int = 0
    """How often it slept for a moment so that a client's commands gather."""
    yielded: int = 0
    """How often it gave the processor away for that."""
    parked: int = 0
    """How often there was nothing to do, so that it went to sleep until something comes."""

    def gather(self, seconds: float) -> None:
        """Put the next look off for so many seconds; 0: by giving the processor away once."""
        if seconds:
            self.slept += 1
            time.sleep(seconds)  # of all tasks: Trio's own sleep would cost more than is gained
        else:
            self.yielded += 1
            os.sched_yield()

    def ends(self, seconds: float, *, polled: bool) -> None:
        """A round that is timed has ended."""
        self.rounds.add(seconds)
        self.polled += polled
        self.waited += not polled

    def as_said(self) -> dict[str, Any]:
        """Give it in names and numbers."""
        return {
            "rounds": said_of(self.rounds),
            "polled": self.polled,
            "waited": self.waited,
            "slept": self.slept,
            "yielded": self.yielded,
            "parked": self.parked,
        }

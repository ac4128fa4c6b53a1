"""How often each event was logged, and about which upstream: exactly, whatever the level is, and whether or not
the line was left out because there were too many.

So what the log tells in words is there as numbers too, by the names of one table (`gateway.log.events`): how
often a connection was lost and made again, a reload has failed, a client was refused or hung up on, something
was lost.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

MOST = 2000
"""Pairs of an event and an upstream that have numbers of their own: there are about a hundred events, most of
them about no upstream, and operators name the upstreams. Some hundred bytes each."""

OTHERS = "others", ""
"""What all other pairs are called together."""


class Counted:
    """What was logged so far. Numbers only grow."""

    def __init__(self) -> None:
        self._times: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """How many lines were not written: there were too many of them, or no room."""
        return self._dropped

    def drop(self, count: int = 1) -> None:
        """Lines are not written that should have been. Any thread may say so."""
        with self._lock:
            self._dropped += count

    def add(self, line: Mapping[str, object]) -> None:
        """Count a line."""
        what = str(line.get("event")), str(line.get("upstream", ""))
        if what not in self._times and len(self._times) >= MOST:
            what = OTHERS
        self._times[what] += 1

    def times(self) -> Mapping[tuple[str, str], int]:
        """Give how often: by event and the name of the upstream, which is empty where it is about none."""
        return self._times


COUNTED = Counted()
"""What was logged by this process: there is one log, too."""

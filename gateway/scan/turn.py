"""How long one session may take before it is others' turn.

A buffer may be full of requests that are refused here, or of replies that are each joined to others. All
sessions are served on one thread, so everybody would wait for that. So scanners stop between two messages when
a turn is over: it is asked after each message that costs time, and after some of those that go FAST.
"""

from __future__ import annotations

from collections.abc import Callable

TURN_SECONDS = 0.0001
"""A few times what a READ takes through the gateway: who asks for a block at a time waits no longer for another
session than for the disk. How much is done in it depends on the machine."""

FEW = 0x1F
"""A message that goes FAST asks if its cookie has none of these bits: each 32nd, for so many take about a
turn.
"""

_NOT_BEGUN, _OVER, _NEVER_OVER = 0.0, -1.0, -2.0


class Turn:
    """Of one session, or of a link that several share. It begins when it is first asked, and is never over for
    who does not `begin`. `clock` gives seconds.
    """

    __slots__ = ("_clock", "_ends")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ends = _NEVER_OVER

    def begin(self) -> None:
        """It is this session's turn."""
        self._ends = _NOT_BEGUN

    def takes(self) -> bool:
        """A message is taken: say whether no other is to be."""
        if self._ends > 0:
            if self._clock() < self._ends:
                return False
            self._ends = _OVER
        elif self._ends == _NOT_BEGUN:
            self._ends = self._clock() + TURN_SECONDS
        return self.over

    @property
    def over(self) -> bool:
        """It was found to be so in this turn."""
        return self._ends == _OVER

"""How the hub waits for more, decided from what its last rounds were. Pure: the hub tells it the time.

There are two ways. To poll answers a client soonest that waits for each single reply. But it takes a processor
from everybody else on the machine, the peers first, and what they do not get done the hub waits for. The
kernel's own wait costs a wake-up each time, and leaves the processor to others meanwhile.

Which is better no constant can say: it depends on how many processors there are, how fast they are, and what
the peers do. So it is told by the rounds. Where one of them found several sockets ready, or left many commands
under way, others have work to do, and the hub leaves them the processor: for as long as the last such rounds
lasted together, from one look to the next. What the peers take is part of that. So where they are quick the hub
polls again the sooner, and where they are slow it leaves them the processor the longer.

Where there are more hubs than processors (`workers`), none polls. Each would take a processor from the others,
and all of them together from the peers: nobody is answered sooner, and each reply costs what all who polled
meanwhile have used.

After a round with many small commands under way the hub looks again a little later, for then it finds more of
them at a time. Where several clients are at work it gives the processor away once (`sched_yield`): whoever
wants to run does, and the others' commands gather meanwhile. Where one client is alone it sleeps for a moment:
to give the processor away takes twice the processor time there, for the next look finds only what came in that
instant. Neither where somebody is served as well who asks for little at a time, for he would wait.
"""

from __future__ import annotations

import math
from collections import deque

from gateway.hub.crowd import Crowd

PATIENCE_SECONDS = 0.001
"""How long the kernel's wait lasts at most, instead of polling: the shortest that epoll_wait knows."""

ROUNDS = 32
"""How many of the last rounds that found several sockets ready say how long there is no polling after them."""

GATHER_SECONDS = 0.00005
"""How long the hub sleeps so that a lone client's small commands gather. At depth 32 ten messages a receive
instead of three, and half as many system calls and wake-ups for everybody."""

MOST_OF_ONE = 2
"""So many sockets one session has."""

CALM_SECONDS = 0.001
"""So long after a step of a client who asks for little at a time another is expected: more than a disk takes
that has it in memory."""


class Rounds:
    """What is known of the last rounds. Times are those of one clock, in seconds. `polls`: there is a processor
    for each hub.
    """

    def __init__(self, *, polls: bool = True) -> None:
        self._polls = polls
        self._lasted: deque[float] = deque(maxlen=ROUNDS)
        self._crowded_until = -math.inf
        self._several_until = -math.inf
        self._calm_until = -math.inf

    def calm(self, now: float) -> None:
        """A client was served who asks for little at a time."""
        self._calm_until = now + CALM_SECONDS

    def crowded(self, sockets: int, seconds: float, now: float) -> None:
        """A round has found several sockets ready; from the look before, it lasted so long."""
        self._lasted.append(seconds)
        self._crowded_until = now + sum(self._lasted)
        if sockets > MOST_OF_ONE:
            self._several_until = self._crowded_until

    def patience(self, crowd: int, now: float) -> float:
        """A round has left such a `Crowd`: give how long the kernel's wait may last. 0: poll."""
        waits = crowd > 0 or now < self._crowded_until or not self._polls
        return PATIENCE_SECONDS if waits else 0.0

    def gathers(self, crowd: int, now: float) -> bool:
        """Say whether the next look is put off a little."""
        return crowd == Crowd.SMALL and now > self._calm_until

    def sleeps(self, now: float) -> float:
        """Give for how long, then: 0: by giving the processor away once."""
        return 0.0 if now < self._several_until else GATHER_SECONDS

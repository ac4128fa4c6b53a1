"""What the hub waits for, and what those that it serves tell it of how to wait."""

from __future__ import annotations

import select

from gateway.jobs.locks import Entry
from gateway.wire.limits import KIB

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
GONE = select.EPOLLHUP | select.EPOLLERR
LEFT = select.EPOLLRDHUP
AGAIN = 1 << 32
"""None of epoll's, which have 32 bits: whoever is called has asked to be called once more (`Hub.again`)."""

FEW_COMMANDS = 4
"""Up to here a client waits for each single reply, and so must not be kept waiting."""


CALM_STEPS = 1024
"""Who has had no more under way for so many steps waits for each single reply, and will again. Who has many
has few for a moment, when all are answered and the next have not come; and for hundreds of steps, where the
peers are slow and each message comes alone."""


class Crowd:
    """What the commands under way mean for how the hub waits. Of several sessions that are served in one round
    the highest counts, so that the hub gathers where anybody has many small ones under way.
    """

    CALM = -1
    """Few, as for a while now: a client asks for little at a time."""
    NONE = 0
    """So few that each reply is waited for."""
    LARGE = 1
    """Many: the peers are busy."""
    SMALL = 2
    """Many small ones: it pays to let more of them come together."""


SMALL_BYTES = 16 * KIB
"""A command of no more than this costs more in system calls than in bytes."""


def crowd_of(in_flight: dict[int, Entry]) -> int:
    """Say how many commands are under way, and of what kind, to judge by the newest."""
    if len(in_flight) <= FEW_COMMANDS:
        return Crowd.NONE
    small = next(reversed(in_flight.values()))[3] <= SMALL_BYTES
    return Crowd.SMALL if small and len(in_flight) > 2 * FEW_COMMANDS else Crowd.LARGE

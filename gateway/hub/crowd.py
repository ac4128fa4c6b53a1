"""The events that the hub waits for, and what sessions tell it of how to wait."""

from __future__ import annotations

import select

from gateway.jobs.locks import Entry
from gateway.wire.limits import KIB

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
GONE = select.EPOLLHUP | select.EPOLLERR
LEFT = select.EPOLLRDHUP
AGAIN = 1 << 32
"""No event of epoll's, which have 32 bits: whoever is called has asked to be called again (`Hub.again`)."""

FEW_COMMANDS = 4
"""A client with no more commands than this under way waits for each single reply, so it must not be kept
waiting."""


CALM_STEPS = 1024
"""A client that has had no more than `FEW_COMMANDS` under way for so many steps will go on so. A client that
mostly has many may have few for a moment, when all are answered and the next have not come; and for hundreds of
steps, if the peers are slow and each message comes alone."""


class Crowd:
    """What the commands under way mean for how the hub waits. Where several sessions are served in one round
    the highest counts, so the hub gathers if any session has many small commands under way.
    """

    CALM = -1
    """Few, and for a while now: the client asks for little at a time."""
    NONE = 0
    """So few that the client waits for each reply."""
    LARGE = 1
    """Many: the peers are busy."""
    SMALL = 2
    """Many small ones: it is better to let more of them come together."""


SMALL_BYTES = 16 * KIB
"""A command of no more than this costs more in system calls than in bytes."""


def crowd_of(in_flight: dict[int, Entry]) -> int:
    """Say whether many commands are under way, and whether they are small, judging by the newest."""
    if len(in_flight) <= FEW_COMMANDS:
        return Crowd.NONE
    small = next(reversed(in_flight.values()))[3] <= SMALL_BYTES
    return Crowd.SMALL if small and len(in_flight) > 2 * FEW_COMMANDS else Crowd.LARGE

"""What the hub waits for, and what those that it serves tell it of how to wait."""

from __future__ import annotations

import select

from gateway.relay.scan.locks import Entry
from gateway.wire.limits import KIB

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
GONE = select.EPOLLHUP | select.EPOLLERR

FEW_COMMANDS = 4
"""Up to here a client waits for each single reply, and so must not be kept waiting."""


class Crowd:
    """What the commands under way mean for how the hub waits."""

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

"""What a session's client has asked for, in words: for the log, and for whoever wants to know who is there."""

from __future__ import annotations

from gateway.counts.totals import Totals
from gateway.protocol.table import command_named
from gateway.sessions.service import Relayed

Asked = tuple[int, int]
"""How many requests, and how many bytes they are about."""

NONE: Asked = (0, 0)


def asked_by(running: Relayed) -> dict[str, Asked]:
    """Give what the client has asked for, by command, where that is anything; what was refused is in it."""
    traffic = running.traffic
    return {
        command_named(kind): (times, traffic.asked_bytes[kind])
        for kind, times in enumerate(traffic.asked)
        if times
    }


def totals_of(running: Relayed) -> Totals:
    """Give what a session has done so far, to be added to what others have done."""
    totals = Totals(1)
    for command, (times, size) in asked_by(running).items():
        totals.requests[command], totals.bytes[command] = times, size
    totals.errors.update(running.traffic.errors)
    totals.refused.update(running.traffic.refused)
    if running.relaying.cause is not None and running.relaying.ended.is_set():
        totals.ended[str(running.relaying.cause)] = 1
    return totals

"""What a session's client has asked for, in words: for the log, and for whoever wants to know who is there."""

from __future__ import annotations

from gateway.counts.totals import Totals
from gateway.protocol.table import command_named
from gateway.sessions.service import Relayed

Amount = tuple[int, int]
"""How many requests, and how many bytes they are about."""

NONE: Amount = (0, 0)


def asked_by(running: Relayed) -> dict[str, Amount]:
    """Give what the client has asked for, by command, where that is anything; what was refused is in it."""
    traffic = running.traffic
    return {
        command_named(kind): (times, traffic.asked_bytes[kind])
        for kind, times in enumerate(traffic.asked)
        if times
    }


def totals_of(running: Relayed) -> Totals:
    """Give what a session has done so far."""
    totals = Totals()
    add_done(totals, running)
    return totals


def add_done(totals: Totals, running: Relayed) -> None:
    """Add what a session has done so far to what others have done. (Whoever adds ten thousand has no time for
    totals of each.)
    """
    traffic, relaying = running.traffic, running.relaying
    totals.sessions += 1
    for kind, times in enumerate(traffic.asked):
        if times:
            command = command_named(kind)
            totals.requests[command] += times
            totals.bytes[command] += traffic.asked_bytes[kind]
    if traffic.errors:
        totals.errors.update(traffic.errors)
    if traffic.refused:
        totals.refused.update(traffic.refused)
        totals.refused_by.update(traffic.refused_by)
    totals.losses += traffic.debt.losses_seen
    if relaying.cause is not None and relaying.ended.is_set():
        totals.ended[str(relaying.cause)] += 1

"""Waiting until we know whether what was written to a disk is durable, or lost.

A session that comes to a disk while links to it die may be led to a server that was started meanwhile. That
server knows nothing of what the one before it has lost. As long as this is in question, READs over the new link
would give what was there before, and no error. So a session that comes late (`Losses.is_in_question`) begins
nothing until all is settled.
"""

from __future__ import annotations

import trio

from gateway.hub.session import Hold, Session
from gateway.losses.records import Ledger
from gateway.losses.rule import Barrier, Trail
from gateway.sessions.service import Relayed


async def settled(losses: Ledger, but: Trail | None = None) -> None:
    """Wait until everything is settled that any session relies on at this moment, except for what was written
    over one trail.
    """
    known = trio.Event()
    barrier = Barrier(losses, known.set, but)
    try:
        if not barrier.is_open:
            await known.wait()
    finally:
        barrier.forget()


def begin_when_settled(running: Relayed) -> None:
    """Hold a session as long as it is in question what has become of what others have written."""
    traffic, session = running.traffic, running.relaying
    if session.is_held(Hold.COMES_LATE):
        return
    if traffic.debt.losses.is_in_question(traffic.debt.trail):
        session.hold(Hold.COMES_LATE)
        running.log.info("waits until it is known what was lost with a connection of others")
        running.nursery.start_soon(_go_on_when_settled, running, session)


async def _go_on_when_settled(running: Relayed, session: Session) -> None:
    while True:
        traffic = running.traffic
        await settled(traffic.debt.losses, traffic.debt.trail)
        if running.traffic is traffic:  # else it was switched to another disk meanwhile
            break
    session.go_on(Hold.COMES_LATE)

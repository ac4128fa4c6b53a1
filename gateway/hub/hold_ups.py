"""Clients that hold up others: who has claimed a range and does not let it go, and who waits for a disk that
may be the same as his own. Each is looked at now and then, in a task beside the sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container
from functools import partial

import trio

from gateway.hub.ending import LOST_SECONDS
from gateway.hub.session import Session
from gateway.jobs.locks import Held, RangeLocks, Wait

LOOK_FOR_HOLD_UPS_SECONDS = 5
"""How often we look for clients that hold up others; they may do so for `LOST_SECONDS`. And for sessions that
hold up those of other disks: they may do so with the same command at one look, and not at two. A server that is
well has answered by the second."""

Contain = Callable[[Callable[[], object]], None]
"""Calls something, whose bug ends nothing else."""


async def cut_off_who_holds_up_others(sessions: Collection[Session], contain: Contain) -> None:
    """Writes to parts of one block wait for each other. A client that sends half a WRITE and stops, or
    never takes the reply, would keep the others waiting for ever. What counts is how long one and the same
    claim has waited: a busy client may be in the middle of some WRITE whenever we look.
    """
    since: dict[tuple[Session, Held], float] = {}
    while True:
        await trio.sleep(LOOK_FOR_HOLD_UPS_SECONDS)
        now = trio.current_time()
        waits: list[tuple[Session, Held]] = []
        for session in sessions:
            contain(partial(_note_held_up, session, waits))
        since = {wait: since.get(wait, now) for wait in waits}
        for session in {wait[0] for wait in waits if now - since[wait] >= LOST_SECONDS}:
            contain(session.cut_off)


async def loosen_who_holds_up_kin(sessions: Collection[Session], contain: Contain) -> None:
    """A write to a part of a block waits for other disks that may be the same one, but not for long: they
    may be others, and a disk must not wait for another one's server or client.
    """
    before: set[Wait] = set()
    while True:
        await trio.sleep(LOOK_FOR_HOLD_UPS_SECONDS)
        now: set[Wait] = set()
        for locks in {s.traffic.locks.kin: s.traffic.locks for s in sessions}.values():
            contain(partial(_loosen, locks, before, now))
        before = now


def _note_held_up(session: Session, waits: list[tuple[Session, Held]]) -> None:
    waits += [(session, held) for held in session.held_up]


def _loosen(locks: RangeLocks, before: Container[Wait], now: set[Wait]) -> None:
    """Loosen the sessions for which a claim waits now and waited `before`; note in `now` what waits now."""
    for wait, whose in list(locks.waits_for_kin()):
        now.add(wait)
        if wait in before:
            locks.loosen_kin(whose)
    locks.tell()

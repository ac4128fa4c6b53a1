"""How a session is put on its uplink: on the one that it has opened, on another one that it goes over to, or on
a link of its own again after it has lived on without one.

All of that is here, so that a session has the same on each of them: a `Traffic` with the plan for the uplink
and with what belongs to its disk, its hooks, and what becomes of it when the uplink is over. With a link of its
own a session lives on (`surviving`), if the server's links are made again. With a share it ends when the trunk
does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

import trio

from gateway.hub.session import Session
from gateway.jobs.fences import Late
from gateway.links.disk import Disk
from gateway.links.uplink import Act, OwnLink, Share
from gateway.losses.rule import Debt, Trail
from gateway.losses.survival import Unanswered
from gateway.scan.going import GOES_SECONDS
from gateway.scan.memory import Memory
from gateway.scan.timing import Timing
from gateway.scan.traffic import Traffic
from gateway.sessions.hooks import Hooks
from gateway.sessions.opened import Opened
from gateway.sessions.service import Relayed, Service
from gateway.sessions.settling import begin_when_settled
from gateway.sessions.surviving import carry_over, end_with
from gateway.wire.constants import TransmissionFlag
from gateway.wire.ranges import Range


def traffic_of(opened: Opened, disk: Disk, debt: Debt) -> Traffic:
    """Give what is under way for a session over what it has opened; nothing yet. `debt` is what the session has
    to be told of its disk.
    """
    return Traffic(opened.plan, disk.locks, opened.uplink.ask, debt, disk.fences)


def begin(service: Service, running: Relayed) -> None:
    """Put a session on the uplink that was opened for it. It begins as soon as it may."""
    _equip(service, running, running.opened, running.traffic)
    running.opened.uplink.take(_Seat(service, running))
    begin_when_settled(running)


def go_over(service: Service, running: Relayed, opened: Opened, disk: Disk, debt: Debt) -> None:
    """Put a session, which is held and quiet, on what was opened for it; it goes on as soon as it may. The
    caller closes the uplink that it had.
    """
    _put(service, running, opened, disk, debt)
    begin_when_settled(running)


def _go_back(service: Service, running: Relayed, own: OwnLink) -> None:
    """Put a session, which is held and quiet, on a link of its own again."""
    opened = replace(running.opened, uplink=own)
    _put(service, running, opened, running.disk, running.traffic.debt)


def _put(service: Service, running: Relayed, opened: Opened, disk: Disk, debt: Debt) -> None:
    session, uplink = running.relaying, opened.uplink
    traffic = traffic_of(opened, disk, debt)
    _equip(service, running, opened, traffic)
    settled = session.settled
    service.hub.relink(session, uplink.socket, traffic, uplink.push)
    session.settled = settled
    session.survive = None
    running.opened, running.traffic, running.disk = opened, traffic, disk
    uplink.take(_Seat(service, running))
    service.traces.session_moves(running)


def _equip(service: Service, running: Relayed, opened: Opened, traffic: Traffic) -> None:
    times = service.counts.times(opened.counted_as, opened.location.server.name)
    traffic.timing = Timing(time.monotonic, *times)
    if traffic.plan.hooked:
        act, nursery, log = running.relaying.act, running.nursery, running.log
        Hooks(opened.agreed, traffic.plan, traffic.jobs, act, nursery, log)


@dataclass(frozen=True, slots=True)
class _Seat:
    """What an uplink tells of a session that is put on it (`gateway.links.uplink.Sitter`)."""

    service: Service
    running: Relayed

    @property
    def traffic(self) -> Traffic:
        return self.running.traffic

    @property
    def act(self) -> Act:
        return self.running.relaying.act

    def has_share(self, share: Share) -> None:
        self.running.nursery.start_soon(end_with, self.running, share)

    def has_own(self, own: OwnLink, trail: Trail) -> None:
        running, traffic = self.running, self.running.traffic
        traffic.leave_late = partial(_keep_away, running, own)
        if not own.lives_on:
            if not running.opened.offer.flags & TransmissionFlag.READ_ONLY:
                traffic.debt.losses.witnesses.look_away()  # of what it writes nothing is noted
            return
        traffic.memory = Memory(trail)
        traffic.going.heed(partial(_note_that_it_goes, running, traffic))
        back = partial(_go_back, self.service, running)
        running.relaying.survive = partial(carry_over, self.service, running, own, back)


def _keep_away(running: Relayed, own: OwnLink, written: Range, widened: bool) -> None:
    """A write that was under way over a dead link may still be done. Keep all writes away from there for a
    while (`jobs.fences`). If clients are told that nobody knows, or end with their links, what they wrote is
    their own affair, and nobody need wait. But a write that was widened to whole blocks may have others' bytes
    in it.
    """
    survival = own.server.mode.survival
    late = Late(trio.current_time() + survival.late_write_seconds, own.link.peer)
    theirs = not own.lives_on or survival.unknown_writes is not Unanswered.REISSUE
    if (widened or not theirs) and not late.over(trio.current_time()):
        running.disk.fences.add(*written, late)


# --- A server that goes


def _note_that_it_goes(running: Relayed, traffic: Traffic) -> None:
    """A session's server goes in good order. The session gives the link up when what was sent is answered
    (`scan.going`), and waits no longer for that than it may.
    """
    running.relaying.server_goes()
    running.log.info("the server goes: no command is sent to it any more")
    running.nursery.start_soon(_leave_at_last, running.relaying, traffic)


async def _leave_at_last(session: Session, traffic: Traffic) -> None:
    await trio.sleep(GOES_SECONDS)
    session.leave_link(traffic)

"""A session with a link of its own lives on when that dies.

At the loss it is carried over, with all that is under way, into a bundle of one line, which makes the link
again and recovers (`gateway.bundle`). There every command is TRANSLATED. So when nothing is left of the
loss, the session is held for a moment, and goes back to its fast ways over the new link.

If the server goes in good order, that is such a loss too (`scan.going`): the session gives the link up when
what was sent is answered; and it is seen to here that this takes no longer than it may.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import trio

from gateway.bundle.again import Pause
from gateway.hub.session import Hold, Session
from gateway.jobs.fences import Late
from gateway.links.trunk import Joined, Trunk, speaks_for_all
from gateway.losses.rule import Flushed, Trail
from gateway.losses.survival import Doubt, Unanswered
from gateway.net.options import has_gone
from gateway.protocol.asks import Ask, Outcome
from gateway.scan.going import GOES_SECONDS
from gateway.scan.memory import Memory
from gateway.scan.traffic import Traffic
from gateway.sessions.hooks import Hooks
from gateway.sessions.promise import plan_of
from gateway.sessions.service import Running, Service
from gateway.sessions.settling import begin_when_settled
from gateway.upstream.link import Link
from gateway.wire.constants import Cmd, TransmissionFlag
from gateway.wire.ranges import Range

OVER_SECONDS = 5
"""How long a session may take to end whose links are gone for good: its client is answered, and no more."""

LOOK_SECONDS = 0.005
"""How often it is looked whether a session that is held has become quiet."""

QUIET_SECONDS = 5.0
"""How long a session is held to become quiet. Who has sent half a request and no more stays as it is."""


def put_on_its_links(service: Service, running: Running) -> None:
    """A session has new links (`Running.opened`), and is to begin on them as soon as it may."""
    link = running.opened.link
    if isinstance(link, Joined):
        _tie(running, link)
    else:
        _survives(service, running)
    begin_when_settled(running)


def _survives(
    service: Service,
    running: Running,
    trail: Trail | None = None,
    pause: Pause | None = None,
) -> None:
    """Have a session live on when the link dies that it has now; `trail` is what was written over it, if it
    has been used. `pause` has seen it made, and those before.
    """
    session, opened = running.relaying, running.opened
    assert session is not None
    server = opened.place.server
    session.survive = None
    lives_on = bool(server.mode.survival.reconnect_seconds)
    traffic = running.traffic
    if trail is None:
        link, debt = opened.link, traffic.debt
        owner = None if speaks_for_all(link.export) else debt
        trail = debt.losses.trail(owner, records=lives_on and link.export.can_flush)
        trail.believed = server.mode.survival.unflushed is Doubt.ASSUME_DURABLE
        debt.losses.came_up(trail)
    trail.under_way = traffic.writing
    assert isinstance(opened.link, Link)
    trail.cut = partial(has_gone, opened.link.socket)
    trail.flush = partial(_flush, session, traffic)
    traffic.trail = traffic.debt.trail = trail
    traffic.leave_late = partial(_keep_away, running, opened.link)
    if not lives_on:
        if not opened.offer.flags & TransmissionFlag.READ_ONLY:
            traffic.debt.losses.witnesses.look_away()  # of what it writes nothing is noted
        return
    traffic.memory = Memory(trail)
    traffic.going.heed(partial(_note_that_it_goes, running, session, traffic))
    session.survive = lambda why: _carry_over(service, running, why, pause or Pause())


def _flush(session: Session, traffic: Traffic, done: Flushed) -> None:
    """Send a FLUSH over a session's own link, for what others have to know."""

    def answered(outcome: Outcome) -> None:
        done(outcome.error, outcome.text)

    session.act(lambda: traffic.asks.send(Ask(Cmd.FLUSH, 0, 0), answered))


def _keep_away(running: Running, link: Link, written: Range, widened: bool) -> None:
    """Nobody writes for a while where what was under way over a link may be done yet (`scan.fences`). Where it
    is their own affair, clients need not wait: they are told that nobody knows, or end with their links. But
    what was widened to whole blocks may have others' bytes in it.
    """
    survival = running.opened.place.server.mode.survival
    late = Late(trio.current_time() + survival.late_write_seconds, link.peer)
    own = not survival.reconnect_seconds or survival.unknown_writes is not Unanswered.REISSUE
    if (widened or not own) and not late.over(trio.current_time()):
        running.disk.fences.add(*written, late)


def _note_that_it_goes(running: Running, session: Session, traffic: Traffic) -> None:
    """A session's server goes in good order."""
    assert running.nursery is not None
    session.server_goes()
    running.log.info("the server goes: no command is sent to it any more")
    running.nursery.start_soon(_leave_at_last, session, traffic)


async def _leave_at_last(session: Session, traffic: Traffic) -> None:
    await trio.sleep(GOES_SECONDS)
    session.leave_link(traffic)


def _carry_over(service: Service, running: Running, why: str, pause: Pause) -> None:
    session, opened, traffic = running.relaying, running.opened, running.traffic
    link, memory, trail = opened.link, traffic.memory, traffic.trail
    assert session is not None
    assert running.nursery is not None
    assert isinstance(link, Link)
    assert memory is not None
    assert trail is not None
    server = opened.place.server
    trunk = Trunk(server, opened.asked, link, service.hub, running.disk, running.log, trail)
    trunk.pauses[0] = pause
    joined = trunk.join()
    joined.serve(traffic)
    joined.wakes(session.act)
    service.hub.leave(link.socket)
    plan = plan_of(
        opened.agreed, opened.offer, link.export, link.dialect, translated="its link was lost"
    )
    trunk.start_without(why)
    session.carry_over(plan, joined.ask, joined.adopt, joined.push)
    link.socket.close()
    running.opened = replace(opened, link=joined)
    running.nursery.start_soon(_live_on, service, running, joined)


async def _live_on(service: Service, running: Running, joined: Joined) -> None:
    """See to a session until it has a link of its own again."""
    assert running.relaying is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_with, running, running.relaying, joined)
        await _go_back(service, running, joined)
        nursery.cancel_scope.cancel()


def _tie(running: Running, joined: Joined) -> None:
    """Have a session take its answers from a trunk, and not outlive it."""
    assert running.relaying is not None  # guaranteed by who calls
    assert running.nursery is not None
    joined.serve(running.traffic)
    joined.trunk.belongs_to(running.traffic.debt)
    joined.wakes(running.relaying.act)
    running.nursery.start_soon(_end_with, running, running.relaying, joined)


async def _end_with(running: Running, session: Session, joined: Joined) -> None:
    """End a session whose links are gone for good, if it has not gone over to others; what it has asked has
    failed.
    """
    trunk = joined.trunk
    await trunk.over.wait()
    if running.opened.link is joined:
        session.lose(f"upstream {trunk.server.name!r} is gone: {trunk.bundle.why}", OVER_SECONDS)


async def _go_back(service: Service, running: Running, joined: Joined) -> None:
    """Go back to fast ways when all is in order again."""
    session, trunk = running.relaying, joined.trunk
    assert session is not None
    while True:
        await trunk.restored()
        if running.opened.link is not joined:  # it has been switched
            return
        if running.name not in service.paused and await _is_quiet(service, running, session):
            # It may have lost its link once more while it was held.
            if trunk.bundle.in_order and trunk.bundle.idle and not trunk.ended:
                _relink(service, running, joined)
                session.go_on(Hold.GOES_BACK)
                return
            session.go_on(Hold.GOES_BACK)
        await trio.sleep(QUIET_SECONDS)


async def _is_quiet(service: Service, running: Running, session: Session) -> bool:
    """Hold a session until it is quiet, or let it go on and say no. A pause that comes meanwhile has it
    then.
    """
    session.hold(Hold.GOES_BACK)
    with trio.move_on_after(QUIET_SECONDS):
        while not session.quiet and running.name not in service.paused:
            await trio.sleep(LOOK_SECONDS)
    if session.quiet and session.held and running.name not in service.paused:
        return True
    session.go_on(Hold.GOES_BACK)
    return False


def _relink(service: Service, running: Running, joined: Joined) -> None:
    session, opened = running.relaying, running.opened
    assert session is not None
    assert running.nursery is not None
    trunk, before = joined.trunk, running.traffic
    link, trail = trunk.dissolve()
    agreed = plan_of(opened.agreed, opened.offer, link.export, link.dialect)
    traffic = Traffic(agreed, before.locks, debt=before.debt, fences=running.disk.fences)
    if agreed.hooked:
        Hooks(opened.agreed, agreed, traffic.jobs, session.act, running.nursery, running.log)
    service.hub.relink(session, link.socket, traffic)
    running.opened, running.traffic = replace(opened, link=link), traffic
    _survives(service, running, trail, trunk.pauses[0])
    joined.close()
    running.log.info("session goes on over its new connection")

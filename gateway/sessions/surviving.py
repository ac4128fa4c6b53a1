"""A session with a link of its own lives on when the link dies.

When the link is lost, the session is carried over, with all that is under way, into a bundle of one line. The
bundle makes the link again and recovers (`gateway.bundle`). Meanwhile every command is TRANSLATED. When nothing
is left to be done about the loss, the session is held for a moment, and goes back to its fast ways over the new
link.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import trio

from gateway.hub.ends import Cause
from gateway.hub.session import Hold
from gateway.links.trunk import Trunk
from gateway.links.uplink import OwnLink, Share
from gateway.sessions.holding import LOOK_IF_QUIET_SECONDS
from gateway.sessions.promise import plan_of
from gateway.sessions.service import Relayed, Service

OVER_SECONDS = 5
"""How long a session may take to end when its links are gone for good: its client is answered, and no more."""

BECOME_QUIET_SECONDS = 5.0
"""How long a session is held so that it becomes quiet. If a client has sent half a request and no more, its
session stays as it is."""

TRY_AGAIN_SECONDS = 5.0
"""How long until a session is held again that did not become quiet: as long as it was held, so that its client
is served at least half of the time."""

Back = Callable[[OwnLink], None]
"""Puts a session, which is held and quiet, on a link of its own again."""


def carry_over(service: Service, running: Relayed, own: OwnLink, back: Back, why: str) -> None:
    """The link of a session has died. Have the session live on without it, and go `back` when there is another
    one.
    """
    session, opened, link = running.relaying, running.opened, own.link
    trunk = Trunk(own.server, opened.asked, link, service.hub, running.disk, running.log, own.trail)
    trunk.pauses[0] = own.pause
    share = Share(trunk)
    share.serve(running.traffic, session.act)
    service.hub.leave(link.socket)
    plan = plan_of(
        opened.agreed, opened.offer, own.export, own.dialect, translated="its link was lost"
    )
    trunk.start_without(why)
    session.carry_over(plan, share.ask, share.adopt, share.push)
    link.socket.close()
    running.opened = replace(opened, uplink=share)
    running.nursery.start_soon(_live_on, service, running, share, back)


async def _live_on(service: Service, running: Relayed, share: Share, back: Back) -> None:
    """Watch over a session until it has a link of its own again."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_with, running, share)
        await _go_back(service, running, share, back)
        nursery.cancel_scope.cancel()


async def end_with(running: Relayed, share: Share) -> None:
    """End a session whose links are gone for good, unless it has gone over to others. What it has asked has
    failed.
    """
    trunk = share.trunk
    await trunk.over.wait()
    if running.opened.uplink is share:
        why = f"upstream {trunk.server.name!r} is gone: {trunk.bundle.why}"
        cause = Cause.UPSTREAM_CHANGED if trunk.bundle.is_another else Cause.UPSTREAM_LOST
        running.relaying.lose(why, OVER_SECONDS, cause)


async def _go_back(service: Service, running: Relayed, share: Share, back: Back) -> None:
    """Take a session back to its fast ways when all is in order again."""
    session, trunk = running.relaying, share.trunk
    while True:
        await trunk.restored()
        if running.opened.uplink is not share:  # it has been switched
            return
        if running.name not in service.paused and await _is_quiet(service, running):
            # It may have lost its link once more while it was held.
            if trunk.bundle.in_order and trunk.bundle.idle and not trunk.ended:
                back(share.dissolved())
                share.close()
                running.log.info("session goes on over its new connection")
                session.go_on(Hold.GOES_BACK)
                return
            session.go_on(Hold.GOES_BACK)
        await trio.sleep(TRY_AGAIN_SECONDS)


async def _is_quiet(service: Service, running: Relayed) -> bool:
    """Hold a session until it is quiet; or let it go on, and give False. If an export is paused meanwhile, the
    pause holds the session then.
    """
    session = running.relaying
    session.hold(Hold.GOES_BACK)
    with trio.move_on_after(BECOME_QUIET_SECONDS):
        while not session.quiet and running.name not in service.paused:
            await trio.sleep(LOOK_IF_QUIET_SECONDS)
    if session.quiet and session.held and running.name not in service.paused:
        return True
    session.go_on(Hold.GOES_BACK)
    return False

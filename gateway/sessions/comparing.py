"""Compares what an export will be at another place with what it is now: before any session is held, and once
more when all are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import trio

from gateway.config import Route
from gateway.links.shared import AskedOtherwise
from gateway.links.trunk import Trunk
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export
from gateway.sessions.fitting import misfits_for_anybody, plainly
from gateway.sessions.going_over import GoingOver, opened_for_a_look, refuse_if_misfit
from gateway.sessions.holding import NotDone, Within
from gateway.sessions.opened import Location
from gateway.sessions.service import Relayed, Service
from gateway.upstream.link import Terms
from gateway.wire.handshake import shown

LOOK_AT_PRESENT_SECONDS = 5.0
"""How long the present server may take to say what an export is, if nobody is connected. A server that is in
order says it at once; one that is not may be the reason for the switch."""


def route_of(service: Service, export: str) -> Route:
    """Give the route of an export (our name). Raises `NotDone`: there is no such export."""
    route = service.config.route(export)
    if route is None:
        raise NotDone(f"there is no export {shown(export)}")
    return route


async def compare(
    service: Service,
    over: GoingOver,
    locations: dict[str, Location],
    sessions: Collection[Relayed],
    leaving: Collection[Trunk],
    within: Within,
    note: Callable[[str], object],
) -> None:
    """Open the exports at their new place, and compare them with what they are. `note` is told what could not
    be compared. Raises `NotDone`.
    """
    await open_and_compare(service, over, locations, sessions, leaving)
    for name in locations.keys() - {each.name for each in sessions}:
        location = locations[name]
        before = await _present(service, name, location, within)
        after = await over.look(name, leaving)
        if isinstance(before, Export):
            refuse_if_misfit(location, misfits_for_anybody(route_of(service, name), before, after))
        elif before is not None:
            note(before)


async def open_and_compare(
    service: Service,
    over: GoingOver,
    locations: dict[str, Location],
    sessions: Collection[Relayed],
    leaving: Collection[Trunk],
) -> None:
    """Open the exports for their sessions, and compare them with what each was promised, and also with what
    they are. Raises `NotDone`.
    """
    await over.open_for(sessions, leaving)
    pairs = {
        (each.name, plainly(each.opened.uplink.export), plainly(over.opened_for(each)))
        for each in sessions
    }
    for name, was, now in pairs:
        refuse_if_misfit(locations[name], misfits_for_anybody(route_of(service, name), was, now))


async def _present(
    service: Service, export: str, to: Location, within: Within
) -> Export | str | None:
    """Give what an export is now that nobody has open, or why we do not know. None: the new place is the same
    disk. Raises `NotDone`.
    """
    route = route_of(service, export)
    now = service.location(export, route)
    if now is None or service.disk_at(now) is service.disk_at(to):
        return None
    try:
        with trio.move_on_after(min(LOOK_AT_PRESENT_SECONDS, within.left / 2)):
            return await _described(service, now)
        why = now.server.why_down or "it has not answered in time"
    except Refusal as refusal:
        why = str(refusal)
    spelled_out = export in service.config.exact_names or export in service.config.issued
    if not spelled_out and export not in service.switched:
        raise NotDone(f"whether there is an export {shown(export)} is not known: {why}")
    return (
        f"{shown(export)} was not compared with what it was at {now.server.name}, where nobody is"
        f" connected: {why}"
    )


async def _described(service: Service, location: Location) -> Export:
    if service.shares(location):
        negotiation = service.negotiation(location)
        try:
            asked = Terms(location.name, structured=True, extended=True)
            return (await negotiation.describe(asked))[0]
        except AskedOtherwise:
            pass  # whoever shared it has left meanwhile
        finally:
            await negotiation.aclose()
    return await opened_for_a_look(location)

"""Where exports are, where a switch leads them, and what they leave behind there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gateway.links.trunk import Trunk
from gateway.sessions.comparing import route_of
from gateway.sessions.going_over import others, trunk_of
from gateway.sessions.holding import Holding
from gateway.sessions.opened import Location
from gateway.sessions.service import Service
from gateway.upstream.server import Server


@dataclass(frozen=True, slots=True)
class Target:
    """Where an export is to be from now on."""

    server: Server
    name: str | None = None
    """The export's name there; None: as the configuration has it."""


Led = Mapping[str, tuple[Location | None, Location]]
"""Exports that are to be led elsewhere: where each is, and where it is to be."""


async def anywhere(_led: Led) -> None:
    """There is one process, which may lead exports anywhere."""


def location_now(service: Service, export: str) -> Location | None:
    """Give where an export is; None: nowhere, as the configuration is now."""
    route = service.config.route(export)
    return None if route is None else service.location(export, route)


def location_of(service: Service, export: str, target: Target | None) -> Location:
    """Give where a switch leads an export; `target` None: where the configuration says. Raises `NotDone`."""
    route = route_of(service, export)
    switches = service.switches[export] + 1
    if target is None:
        return Location(service.servers[route.upstream], route.upstream_name, switches)
    name = route.upstream_name if target.name is None else target.name
    return Location(target.server, name, switches)


def lead_to(service: Service, export: str, location: Location, *, to_configured: bool) -> None:
    """Lead new clients there. They have to be told of what nobody was told of yet."""
    was = location_now(service, export)
    if was is not None:
        there = service.disk_at(location)
        service.disk_at(was).losses.hand_on(there.losses)
        there.is_left()  # nobody is on it yet
    service.switch(export, location, to_configured=to_configured)


def trunks_left(
    service: Service, holding: Holding, locations: Mapping[str, Location], close_first: bool
) -> set[Trunk]:
    """Give the trunks that are given up when exports go to these locations. If another export was led to the
    same trunk by a switch, it keeps that when this one goes to another disk; unless the connections have to be
    closed first.
    """
    trunks = _trunks(service, holding, locations)
    if close_first:
        return trunks
    configured = [location_of(service, export, None) for export in locations]
    here = {service.disk_at(each) for each in (*locations.values(), *configured)}
    return {
        each
        for each in trunks
        if service.disks.of(each) in here or not others(service, locations, each)
    }


def _trunks(service: Service, holding: Holding, exports: Collection[str]) -> set[Trunk]:
    """Give the trunks that the exports' sessions have a share of, and those that their next clients would
    have.
    """
    found = {trunk_of(each.opened) for each in holding.sessions(*exports)}
    for export in exports:
        location = service.location(export, route_of(service, export))
        found.add(None if location is None else service.disk_at(location).trunk)
    return {trunk for trunk in found if trunk is not None}

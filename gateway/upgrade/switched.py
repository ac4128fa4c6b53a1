"""Where exports were switched, in words that two processes have in common: the address, and the upstream by
whose settings it is spoken to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.handover.message import NotUnderstood
from gateway.sessions.opened import Location
from gateway.sessions.service import Service
from gateway.sessions.whereabouts import lead_to
from gateway.upstream.server import Server


def switched_said(locations: Mapping[str, Location], *, home: bool = False) -> dict[str, Any]:
    """Say where exports are; `home`: where the configuration says."""
    return {
        name: None
        if home or at.server.recipe.uri is None
        else [at.server.recipe.upstream, str(at.server.recipe.uri), at.name]
        for name, at in locations.items()
    }


def lead(
    service: Service, said: Mapping[str, Any], switched_to: Callable[[str, str], Server]
) -> None:
    """Lead exports where the other process does. `switched_to` gives the server of a URI, as an upstream says.
    Raises `NotUnderstood`.
    """
    for name, there in said.items():
        route = service.config.route(name)
        switches = service.switches[name] + 1
        if there is None:
            if route is not None and name in service.switched:
                server = service.servers[route.upstream]
                at = Location(server, route.upstream_name, switches)
                lead_to(service, name, at, to_configured=True)
            continue
        try:
            upstream, uri, called = map(str, there)
        except (TypeError, ValueError):
            raise NotUnderstood(f"expected where {name} is, got {there!r:.80}") from None
        if route is None or upstream not in service.config.upstream:
            service.log.warning(
                "export was switched and is where the configuration says", export=name, server=uri
            )
            continue
        at = Location(switched_to(uri, upstream), called, switches)
        lead_to(service, name, at, to_configured=False)

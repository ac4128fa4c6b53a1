"""What is done for upstreams while no client asks.

We notice the ends of processes, for upstreams with `server-is-peer` (`gateway.net.processes`), while they are
in the configuration. And there are `warm` and `health-check-seconds`, which `gateway.upstream.warm` does. The
upstreams for which this is done change with the configuration and with switches. It is not done while

- an export there is paused: its server is about to be exchanged, perhaps by one at the same address, and may
  wait for its last connection to end;
- the gateway shuts down: no client gets an export any more.
"""

from __future__ import annotations

from functools import partial

import trio

from gateway.hub.hub import Hub
from gateway.net.processes import Processes
from gateway.sessions.service import Service
from gateway.upstream.server import Server
from gateway.upstream.warm import Warm, check_health


async def see_to_upstreams(service: Service) -> None:
    """Keep connections warm, check health and watch processes, until cancelled."""
    seen_to: dict[Server | Processes, trio.CancelScope] = {}
    async with trio.open_nursery() as nursery:
        while True:
            changed = service.changed
            wanted: set[Server | Processes] = {*_wanted(service), *_watched(service)}
            for gone in seen_to.keys() - wanted:
                seen_to.pop(gone).cancel()
            for new in wanted - seen_to.keys():
                scope = seen_to[new] = trio.CancelScope()
                if isinstance(new, Processes):
                    nursery.start_soon(_watch, service.hub, new, scope)
                else:
                    nursery.start_soon(_see_to, service.hub, new, scope)
            await changed.wait()


def _wanted(service: Service) -> set[Server]:
    if service.draining:
        return set()
    held = set()
    for name in service.paused:
        route = service.config.route(name)
        location = None if route is None else service.location(name, route)
        if location is not None:
            held.add(location.server.disks)
    servers = (
        each
        for each in service.led_to
        if (each.settings.warm or each.settings.health_check_seconds) and service.cares_for(each)
    )
    return {each for each in servers if each.disks not in held}


def _watched(service: Service) -> set[Processes]:
    return {each for server in service.led_to if (each := server.recipe.processes) is not None}


async def _watch(hub: Hub, processes: Processes, scope: trio.CancelScope) -> None:
    with scope:
        await hub.keep_up(processes.watch)


async def _see_to(hub: Hub, server: Server, scope: trio.CancelScope) -> None:
    with scope:
        async with trio.open_nursery() as nursery:
            if warm := server.settings.warm:
                nursery.start_soon(hub.keep_up, lambda: Warm(server, warm).run())
            if seconds := server.settings.health_check_seconds:
                nursery.start_soon(hub.keep_up, partial(check_health, server, seconds))

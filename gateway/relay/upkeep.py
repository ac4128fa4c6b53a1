"""What is done for upstreams while no client asks: `warm` and `health-check-seconds`, as
`gateway.upstream.warm` does it. Who is seen to changes with the configuration and with switches; and nobody
is while

- an export there is paused: its server is about to be exchanged, perhaps by one at the same address, and may
  wait for its last connection to end;
- the gateway shuts down: no client gets an export any more.
"""

from __future__ import annotations

from functools import partial

import trio

from gateway.relay.service import Service
from gateway.upstream.server import Server
from gateway.upstream.warm import Warm, check_health


async def see_to_upstreams(service: Service) -> None:
    """Keep connections warm and check health, until cancelled."""
    seen_to: dict[Server, trio.CancelScope] = {}
    async with trio.open_nursery() as nursery:
        while True:
            changed = service.changed
            wanted = _wanted(service)
            for server in seen_to.keys() - wanted:
                seen_to.pop(server).cancel()
            for server in wanted - seen_to.keys():
                scope = seen_to[server] = trio.CancelScope()
                nursery.start_soon(partial(_see_to, server, scope))
            await changed.wait()


def _wanted(service: Service) -> set[Server]:
    if service.draining:
        return set()
    held = set()
    for name in service.paused:
        route = service.config.route(name)
        place = None if route is None else service.place(name, route)
        if place is not None:
            held.add(place.server.disks)
    servers = (each for each in service.led_to if each.keep_warm or each.check_seconds)
    return {each for each in servers if each.disks not in held}


async def _see_to(server: Server, scope: trio.CancelScope) -> None:
    with scope:
        async with trio.open_nursery() as nursery:
            if server.keep_warm:
                nursery.start_soon(Warm(server, server.keep_warm).run)
            if server.check_seconds:
                nursery.start_soon(check_health, server, server.check_seconds)

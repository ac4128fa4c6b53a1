"""The state of the gateway, its sessions, exports and upstreams, as names and numbers: what the verbs show
people, and programs as JSON. A name that is here stays: others may come, and none is given another meaning.

Seconds are seconds, sizes are bytes, and times are those of the wall, in ISO 8601.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from gateway import __version__
from gateway.counts.totals import Totals, in_words, together
from gateway.hub.pump import is_compiled
from gateway.sessions.counted import asked_by, totals_of
from gateway.sessions.service import Relayed, Service
from gateway.status.stuck import Stuck
from gateway.status.waits import what_waits
from gateway.upstream.server import Server
from gateway.wire.constants import TransmissionFlag as Flag

Shown = dict[str, Any]
"""What JSON can say."""


def gateway_shown(
    service: Service,
    stuck: Stuck,
    *,
    began: float,
    listeners: Collection[Mapping[str, object]],
    terms: Collection[Mapping[str, object]],
) -> Shown:
    """Show the gateway on one screen. It `began` at a time of `time.time`; `terms` are of certificates."""
    running = service.running
    return {
        "version": __version__,
        "compiled_pump": is_compiled(),
        "started": _time(began),
        "uptime_seconds": round(time.time() - began, 1),
        "draining": service.draining,
        "listeners": list(listeners),
        "sessions": len(running),
        "negotiations": len(service.negotiations),
        "stuck_sessions": sum(stuck.is_stuck(each) for each in running),
        "upstreams": [upstream_shown(service, each) for each in service.led_to],
        "paused": sorted(service.paused),
        "switched": {
            name: location.server.name for name, location in sorted(service.switched.items())
        },
        "disks_with_losses_untold": len(service.disks.untold()) + service.disks.unnamed,
        "certificates": list(terms),
        "totals": total(service).as_said(),
    }


def total(service: Service) -> Totals:
    """Give what was done by all sessions, those that run among them."""
    return together([*service.counts.by_export().values(), *map(totals_of, service.running)])


def session_shown(service: Service, stuck: Stuck, running: Relayed) -> Shown:
    """Show one session."""
    traffic, opened = running.traffic, running.opened
    client = running.membership.session.client
    wait = what_waits(running, service.running)
    since = stuck.since(running)
    asked = asked_by(running)
    return {
        "session": client.id,
        "export": running.name,
        "upstream": opened.location.server.name,
        "listener": client.listener,
        "client": client.identity.peer,
        "who": client.identity.describe(),
        "tls": client.identity.tls_version,
        "seconds": round(time.monotonic() - running.began, 1),
        "read_only": opened.offer.allows(Flag.READ_ONLY),
        "connections": opened.uplink.connections.get("connections", 1),
        "shared": bool(opened.uplink.connections.get("shared")),
        "in_flight": len(traffic.in_flight) + traffic.jobs.waiting,
        "requests": {command: times for command, (times, _bytes) in asked.items()},
        "bytes": {command: size for command, (_times, size) in asked.items() if size},
        "errors": in_words(traffic.errors),
        "waits_for": None if wait is None else str(wait.thing),
        "why": None if wait is None else wait.text,
        "stuck": stuck.is_stuck(running),
        "silent_seconds": None if since is None else stuck.seconds_since(since),
    }


def exports_shown(service: Service) -> Iterator[Shown]:
    """Show the exports that are configured by a name, and all others that were used."""
    sessions = Counter(each.name for each in service.running)
    running: dict[str, Totals] = {}
    for each in service.running:
        running.setdefault(each.name, Totals()).add(totals_of(each))
    ended = service.counts.by_export()
    configured = [export.exact_name for export in service.config.exports]
    names = [name for name in configured if name is not None]
    for name in dict.fromkeys([*names, *running, *ended, *service.paused, *service.switched]):
        done = together(each[name] for each in (running, ended) if name in each)
        route = service.config.route(name)
        location = None if route is None else service.location(name, route)
        yield {
            "export": name,
            "upstream": None if location is None else location.server.name,
            "sessions": sessions[name],
            "paused": name in service.paused,
            "switched": name in service.switched,
            "totals": done.as_said(),
        }


def upstream_shown(service: Service, server: Server) -> Shown:
    """Show one upstream."""
    sessions = [each for each in service.running if each.opened.location.server is server]
    limit = server.settings.max_connections
    return {
        "upstream": server.name,
        "servers": [str(uri) for uri in server.settings.nbd_uris],
        "state": _state(server),
        "why": server.why_down or None,
        "sessions": len(sessions),
        "connections": sum(sock.fileno() >= 0 for sock in server.links),
        "most_connections": limit,
        "repaired": dict(sorted(server.told.repaired.items())),
    }


def _state(server: Server) -> str:
    if server.connector.disabled:
        return "disabled"
    return "down" if server.down else "up" if server.serves else "unknown"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

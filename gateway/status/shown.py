"""The state of the gateway, its sessions, exports and upstreams, as names and numbers: what the verbs show
people, and programs as JSON. A name that is here stays: others may come, and none is given another meaning.

Seconds are seconds, sizes are bytes, and times are those of the wall, in ISO 8601.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import trio

from gateway import __version__
from gateway.counts.seconds import as_said
from gateway.counts.totals import Totals, in_words
from gateway.hub.pump import is_compiled
from gateway.log.counted import COUNTED
from gateway.sessions.counted import add_done, asked_by
from gateway.sessions.service import Relayed, Service
from gateway.sessions.transmit import ways_of
from gateway.status.pages import PAGE, AnswerPage, in_slices, next_ones
from gateway.status.stuck import Stuck
from gateway.status.waits import iso_time, what_waits
from gateway.upstream.server import Server
from gateway.wire.constants import TransmissionFlag as Flag

SUMMED_AT_A_TIME = 50
"""How many sessions are summed before the others have their turn: about a third of a millisecond."""

LINKS_AT_A_TIME = 100
"""How many connections to a server are counted before the others have their turn: a tenth of a millisecond."""

EXPORTS_AT_A_TIME = 10
"""How many exports are shown, and become JSON, before the others have their turn: about half a millisecond."""

NO_TLS = "none"
"""In place of the version of TLS."""

MOST_WAITED_FOR = 20
"""Sessions that are named, of those that the end of the gateway waits for: `sessions` has all."""

MOST_SHOWN = 10
"""How many of the sessions that are stuck, and of the pauses, are on the screen of `status`: what has no place
there is shown by `sessions` and `exports`."""

Shown = dict[str, Any]
"""What JSON can say."""


async def gateway_shown(
    service: Service,
    stuck: Stuck,
    *,
    began: float,
    listeners: Collection[Mapping[str, object]],
    terms: Collection[Mapping[str, object]],
    expiries: Collection[Mapping[str, object]] = (),
    sessions_end_in_seconds: float | None = None,
    older: Shown | None = None,
    fleet: Shown | None = None,
) -> Shown:
    """Show the gateway on one screen. It `began` at a time of `time.time`; `terms` are of certificates that are
    over, or will be soon, `expiries` of all; `older` is the process from before an upgrade, while it has
    clients; `fleet` is what it is in its fleet, if it is in one.
    """
    running, totals = list(service.running), service.counts.all()
    stuck_ones, by_server = list[Relayed](), Counter[int]()
    came_by = Counter[tuple[str, str]]()
    for at_a_time in in_slices(running, SUMMED_AT_A_TIME):
        for each in at_a_time:
            add_done(totals, each)
            if stuck.is_stuck(each):
                stuck_ones.append(each)
            by_server[id(each.opened.location.server)] += 1
            client = each.membership.session.client
            came_by[client.listener, client.identity.tls_version or NO_TLS] += 1
        await trio.lowlevel.checkpoint()
    untold = await _count_untold(service)
    longest = sorted(stuck_ones, key=lambda each: stuck.since(each) or 0.0)[:MOST_SHOWN]
    upstreams = await upstreams_shown(service, by_server)
    await trio.lowlevel.checkpoint()
    done = totals.as_said()
    await trio.lowlevel.checkpoint()
    return {
        "version": __version__,
        "compiled_pump": is_compiled(),
        "started": iso_time(began),
        "config_loaded": iso_time(service.config_loaded),
        "uptime_seconds": round(time.time() - began, 1),
        "draining": service.draining,
        "older": older,
        "fleet": fleet,
        "sessions_end_in_seconds": sessions_end_in_seconds,
        "waits_for_sessions": [_waited_for(each) for each in running[:MOST_WAITED_FOR]]
        if service.draining
        else [],
        "listeners": list(listeners),
        "came_by": _came_by(came_by, service.counts.ended),
        "sessions": len(running),
        "negotiations": len(service.negotiations),
        "stuck_sessions": len(stuck_ones),
        "stuck": [_stuck_shown(service, stuck, each) for each in longest],
        "upstreams": upstreams,
        "paused": sorted(service.paused),
        "pauses": [
            {"export": name, "by": paused.by, "since": iso_time(paused.since)}
            for name, paused in sorted(service.paused.items())[:MOST_SHOWN]
        ],
        "switched": {
            name: location.server.name for name, location in sorted(service.switched.items())
        },
        "disks_with_losses_untold": untold,
        "tickets": None if service.tickets is None else len(service.tickets),
        "certificates": list(terms),
        "expiries": list(expiries),
        "totals": done,
        "hub": service.hub.pace.as_said(),
        "events": [
            {"event": event, "upstream": upstream or None, "times": times}
            for (event, upstream), times in COUNTED.times().items()
        ],
        "log_lines_dropped": COUNTED.dropped,
    }


def _came_by(there: Mapping[tuple[str, str], int], ended: Mapping[tuple[str, str], int]) -> Any:
    """Say of each listener, also of those that are no more, which sessions have come by it."""
    found: dict[str, Shown] = {}
    for key, counted in (("sessions", there), ("ended", ended)):
        for (listener, what), times in counted.items():
            its = found.setdefault(listener, {"listener": listener, "sessions": {}, "ended": {}})
            its[key][what] = times
    return list(found.values())


def _waited_for(running: Relayed) -> Shown:
    """Say of a session which keeps the gateway from its end what an operator looks for first."""
    client, traffic = running.membership.session.client, running.traffic
    return {
        "session": client.id,
        "export": running.name,
        "client": client.identity.peer,
        "in_flight": traffic.commands_in_flight,
    }


def _stuck_shown(service: Service, stuck: Stuck, running: Relayed) -> Shown:
    shown = session_shown(service, stuck, running)
    names = ("session", "export", "upstream", "client", "waits_for", "why", "silent_seconds")
    return {name: shown[name] for name in names}


async def _count_untold(service: Service) -> int:
    count = service.disks.unnamed
    for disks in in_slices(service.disks.there(), SUMMED_AT_A_TIME):
        count += sum(disk.losses.untold() is not None for disk in disks)
        await trio.lowlevel.checkpoint()
    return count


def session_shown(service: Service, stuck: Stuck, running: Relayed) -> Shown:
    """Show one session."""
    traffic, opened = running.traffic, running.opened
    client = running.membership.session.client
    timing = traffic.timing
    wait = what_waits(running, service)
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
        "plan": ways_of(traffic.plan),
        "read_only": opened.offer.allows(Flag.READ_ONLY),
        "connections": opened.uplink.connections.get("connections", 1),
        "shared": bool(opened.uplink.connections.get("shared")),
        "quirks": list(opened.uplink.quirks),
        "in_flight": traffic.commands_in_flight,
        "requests": {command: times for command, (times, _bytes) in asked.items()},
        "bytes": {command: size for command, (_times, size) in asked.items() if size},
        "errors": in_words(traffic.errors),
        "last_seconds": None if timing is None else timing.last_seconds,
        "last_upstream_seconds": None if timing is None else timing.last_upstream_seconds,
        "waits_for": None if wait is None else str(wait.thing),
        "why": None if wait is None else wait.text,
        "stuck": stuck.is_stuck(running),
        "silent_seconds": None if since is None else stuck.seconds_since(since),
    }


async def exports_shown(
    service: Service, after: str | None, most: int = PAGE
) -> tuple[list[Shown], bool]:
    """Show the exports that are configured by a name, in that order, and then all others that were used, by
    their names: a page of them, from behind a name on. Say as well whether there are more. Of those that were
    made at run time, they are the ones that are in use.
    """
    sessions: dict[str, list[Relayed]] = {}
    for at_a_time in in_slices(list(service.running), SUMMED_AT_A_TIME):
        for each in at_a_time:
            sessions.setdefault(each.name, []).append(each)
        await trio.lowlevel.checkpoint()
    names = [name for each in service.config.exports if (name := each.exact_name) is not None]
    configured = {name: number for number, name in reversed(list(enumerate(names)))}

    def place(name: str) -> tuple[int, str]:
        return configured.get(name, len(names)), name

    there = {*names, *sessions, *service.counts.by_export(), *service.paused, *service.switched}
    found = await next_ones(there, place, None if after is None else place(after), most + 1)
    page, upstreams = AnswerPage(most), _upstreams_by_name(service)
    for number, name in enumerate(found):
        if page.is_full:
            break
        if number % EXPORTS_AT_A_TIME == 0:
            await trio.lowlevel.checkpoint()
        upstream = _upstream_of(service, name, upstreams)
        page.add(await _export_shown(service, name, upstream, sessions.get(name, ())))
    return page.shown, len(page.shown) < len(found)


def _upstreams_by_name(service: Service) -> dict[str, str]:
    """Give the upstreams of the exports that are configured by a name: who has a thousand of them need not go
    through all for each.
    """
    found: dict[str, str] = {}
    for export in service.config.exports:
        if export.exact_name is not None:
            found.setdefault(export.exact_name, export.upstream)
    return found


def _upstream_of(service: Service, name: str, by_name: Mapping[str, str]) -> str | None:
    """Say where an export is; None: nowhere any more."""
    if name in service.switched:
        return service.switched[name].server.name
    upstream = by_name.get(name)
    if upstream is None:
        route = service.config.route(name)
        upstream = None if route is None else route.upstream
    return upstream if upstream in service.servers else None


async def _export_shown(
    service: Service, name: str, upstream: str | None, sessions: Collection[Relayed]
) -> Shown:
    done, count = Totals(), 0
    for at_a_time in in_slices(list(sessions), SUMMED_AT_A_TIME):
        for each in at_a_time:
            if each in service.running:  # else it is among those that have ended
                add_done(done, each)
                count += 1
        await trio.lowlevel.checkpoint()
    if name in (ended := service.counts.by_export()):
        done.add(ended[name])
        done.seconds, done.replayed_bytes = ended[name].seconds, ended[name].replayed_bytes
    paused = service.paused.get(name)
    return {
        "export": name,
        "upstream": upstream,
        "sessions": count,
        "paused": paused is not None,
        "paused_by": None if paused is None else paused.by,
        "paused_since": None if paused is None else iso_time(paused.since),
        "switched": name in service.switched,
        "ticket": name in service.config.issued,
        "totals": done.as_said(),
    }


async def upstreams_shown(service: Service, sessions: Mapping[int, int]) -> list[Shown]:
    """Show all upstreams; `sessions` says by their `id` how many each has. Those may be on a connection of
    another that leads to the same disks, and that is counted there.
    """
    found, serving = [], {each.disks for each in service.led_to if each.serves}
    for each in list(service.led_to):
        its = sessions.get(id(each), 0)
        serves = each.serves or (its > 0 and each.disks in serving)
        found.append(await _upstream_shown(service, each, its, serves=serves))
    return found


async def _upstream_shown(
    service: Service, server: Server, sessions: int, *, serves: bool
) -> Shown:
    connections = 0
    for some in in_slices(list(server.links), LINKS_AT_A_TIME):
        connections += sum(sock.fileno() >= 0 for sock in some)
        await trio.lowlevel.checkpoint()
    return {
        "upstream": server.name,
        "servers": [str(uri) for uri in server.settings.nbd_uris],
        "required": server.settings.required,
        "state": _state(server, serves=serves),
        "why": server.why_down or (None if serves else server.unusable) or None,
        "sessions": sessions,
        "connections": connections,
        "ready": 0 if server.warm is None else server.warm.count,
        "most_connections": server.settings.max_connections,
        "repaired": dict(sorted(server.told.repaired.items())),
        "flags_cleared": dict(sorted(server.told.cleared.items())),
        "seconds": as_said(service.counts.upstream_seconds.get(server.name, {})),
    }


def _state(server: Server, *, serves: bool) -> str:
    if server.connector.disabled:
        return "disabled"
    if server.down:
        return "down"
    return "up" if serves else "down" if server.unusable else "unknown"

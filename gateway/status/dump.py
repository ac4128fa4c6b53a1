"""The state of the gateway as lines of the log, for whoever cannot ask for it: SIGUSR1 has them written.

`status` and `sessions` say more, over the control socket. Here is what one wants to find later, beside what
else the log says of that time: what is there, and what stands still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.sessions.service import Service
from gateway.status.shown import gateway_shown, session_shown
from gateway.status.stuck import Stuck
from gateway.status.verbs import House

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

MOST_SESSIONS = 20
"""How many sessions are told of: the log takes only so many lines a second, and others want to be in it."""


async def write_state(
    service: Service, stuck: Stuck, house: House, log: FilteringBoundLogger
) -> None:
    """Write it, once."""
    listeners = house.listeners_shown()
    shown = await gateway_shown(
        service,
        stuck,
        began=house.began,
        listeners=listeners,
        terms=house.terms_shown(),
        sessions_end_in_seconds=house.sessions_end_in_seconds(),
    )
    totals = shown["totals"]
    log.info(
        "state of the gateway",
        version=shown["version"],
        uptime_seconds=shown["uptime_seconds"],
        sessions=shown["sessions"],
        negotiations=shown["negotiations"],
        stuck_sessions=shown["stuck_sessions"],
        draining=shown["draining"],
        sessions_end_in_seconds=shown["sessions_end_in_seconds"],
        paused=shown["paused"],
        switched=shown["switched"],
        disks_with_losses_untold=shown["disks_with_losses_untold"],
        requests=totals["requests"],
        errors=totals["errors"],
    )
    for each in listeners:
        uri, clients, drained = each["listener"], each["clients"], each["drained"]
        log.info("state of a listener", uri=uri, clients=clients, drained=drained)
    for each in shown["upstreams"]:
        log.info(
            "state of an upstream",
            upstream=each["upstream"],
            state=each["state"],
            why=each["why"],
            sessions=each["sessions"],
            connections=each["connections"],
        )
    longest = sorted(service.running, key=lambda each: (not stuck.is_stuck(each), each.began))
    for running in longest[:MOST_SESSIONS]:
        its = session_shown(service, stuck, running)
        running.log.info(
            "state of a session",
            upstream=its["upstream"],
            seconds=its["seconds"],
            in_flight=its["in_flight"],
            requests=its["requests"],
            waits_for=its["waits_for"],
            why=its["why"],
            silent_seconds=its["silent_seconds"],
        )

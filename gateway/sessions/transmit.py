"""One client's transmission phase. The client's socket and the link's go to the hub, and this task sleeps until
the session has ended.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import trio

from gateway.hub.ending import do_all
from gateway.hub.ends import Cause
from gateway.hub.session import Session
from gateway.identity import Identity
from gateway.net.drive import Stream, take_socket
from gateway.net.options import RelaySocket
from gateway.scan.plan import Handling, Plan
from gateway.sessions import seat
from gateway.sessions.counted import NONE, asked_by, totals_of
from gateway.sessions.observing import Teller
from gateway.sessions.opened import Opened
from gateway.sessions.service import Relayed, Service
from gateway.wire.constants import Cmd
from gateway.wire.constants import TransmissionFlag as Flag

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

LINGER_SECONDS = 2
"""How long a client that we disconnect may take to read what we sent last. If we closed at once while requests
of its own are unread, the kernel would throw that away."""


async def transmit(
    service: Service,
    opened: Opened,
    stream: Stream,
    received: bytes,
    log: FilteringBoundLogger,
    who: Identity,
    *,
    lifetime_seconds: float = 0,
    way: str = "",
) -> bool:
    """Relay until the session has ended. Then close the uplink, and see the client off. Say whether the client
    has asked for anything, or has at least said that it goes. `received` came after the client's last option.
    After `lifetime_seconds`, if that is not 0, the session is ended. `way`: as `Relayed` has it. The stream is
    of no use afterwards.
    """
    membership = opened.membership
    client, early = take_socket(stream, one_slice_a_record=opened.offer.one_reply_a_record)
    service.relayed += 1
    begun: list[Relayed] = []
    left: list[Callable[[], object]] = []
    try:
        _log_repairs(service, opened)
        _log_would(opened, log)
        _log_beginning(opened, log, who)
        disk = service.disk_at(opened.location)
        debt = disk.losses.open()
        left += [lambda: disk.losses.end(debt), disk.is_left]
        traffic = seat.traffic_of(opened, disk, debt)
        traffic.most_in_flight = opened.limits.most_in_flight
        teller = Teller(traffic.observed, service.hub.later, log)
        with ExitStack() as while_it_runs:

            def begins(session: Session, nursery: trio.Nursery) -> None:
                name = opened.grant.name
                now = time.monotonic()
                running = Relayed(
                    name, membership, opened, disk, traffic, log, session, nursery, now, way
                )
                begun.append(running)
                left[:] = _left(running)
                while_it_runs.enter_context(service.session(running))
                opened.begins()
                seat.begin(service, running)
                while_it_runs.enter_context(service.traces.session(running, received + early))
                if name in service.paused:
                    session.hold()
                if service.access is not opened.access or opened.grant.route.ticket is not None:
                    # A reload may have come since GO, or the end of its ticket.
                    nursery.start_soon(_look, service, running)
                if lifetime_seconds:
                    nursery.start_soon(_expire, service, running, lifetime_seconds)

            session = await service.hub.relay(
                client,
                opened.uplink.socket,
                traffic,
                received + early,
                opened.limits.charges,
                opened.limits.watched,
                push=opened.uplink.push,
                begins=begins,
            )
        [running] = begun
        _leave_uplink(running)
        traffic = running.traffic
        teller.tell_the_end()
        _log_end(running, log)
        service.counts.add(running.opened.counted_as, totals_of(running))
        service.counts.ended[membership.session.client.listener, str(session.cause)] += 1
        told = membership.session
        told.commands, told.refused, told.why = traffic.last_cookie, traffic.refused, session.reason
        told.bytes_from_client, told.bytes_to_client = session.bytes_relayed
        membership.leave()
        if session.linger:
            await _see_off(client)
        return traffic.last_cookie > 0 or session.said_disc
    finally:
        service.relayed -= 1
        do_all(*left, opened.close, client.close)


async def _look(service: Service, running: Relayed) -> None:
    service.look_at(running)


async def _expire(service: Service, running: Relayed, seconds: float) -> None:
    """End a session in good order once it has lasted so long: its client connects again, and is asked by the
    rules and the certificates that are in force then.
    """
    await trio.sleep(seconds)
    why = f"it has lasted {seconds:g} s, the lifetime-seconds of its listener: connect again"
    running.relaying.finish(why, service.config.drain_seconds, Cause.EXPIRED)


def _left(running: Relayed) -> list[Callable[[], object]]:
    """Give what is to be done when a session has ended."""
    return [
        lambda: _leave_uplink(running),
        lambda: running.opened.close(),
        lambda: running.traffic.debt.losses.end(running.traffic.debt),
        lambda: running.disk.is_left(),  # which may be another by then
        lambda: running.traffic.let_go(),
    ]


def _leave_uplink(running: Relayed) -> None:
    """Close the uplink of a session that has ended, and tell the losses what has become of what was written
    over it. Closing twice is once.
    """
    trail, running.traffic.trail = running.traffic.trail, None
    left = [] if trail is None else [lambda: trail.losses.left(trail), trail.let_go]
    do_all(*left, running.opened.uplink.close)


def _log_beginning(opened: Opened, log: FilteringBoundLogger, who: Identity) -> None:
    promised, uplink = opened.offer, opened.uplink
    rule = {"rule": opened.grant.rule_name} if opened.grant.rule else {}
    log.info(
        "session begins",
        listener=opened.membership.session.client.listener,
        upstream=opened.location.server.name,
        **_shown(who),
        **rule,
        size=promised.size,
        flags=_names(promised.flags),
        contexts=[context.name for context in promised.contexts],
        quirks=list(uplink.quirks),
        ladder=uplink.rung.name,
        plan=ways_of(opened.plan),
        **uplink.connections,
    )


def _log_end(running: Relayed, log: FilteringBoundLogger) -> None:
    """Say in one line what a session has done, and why it is over."""
    session, asked = running.relaying, asked_by(running)
    who = running.membership.session.client.identity
    errors = {" ".join(what): times for what, times in running.traffic.errors.items()}
    say = log.warning if session.reason else log.info
    say(
        "session ended",
        end=str(session.cause),
        **({"who": who.describe()} if who.tls else {}),
        **({"why": session.reason} if session.reason else {}),
        seconds=round(time.monotonic() - running.began, 3),
        commands={command: times for command, (times, _bytes) in asked.items()},
        bytes_read=asked.get(Cmd.READ.name, NONE)[1],
        bytes_written=asked.get(Cmd.WRITE.name, NONE)[1],
        errors=errors,
    )


def ways_of(plan: Plan) -> dict[str, list[str]]:
    """Say which commands go upstream in which way."""
    ways: dict[str, list[str]] = {}
    for command, way in plan.ways.items():
        if way.handling is not Handling.REFUSED:
            ways.setdefault(way.handling.name, []).append(command.name)
    return ways


def _log_would(opened: Opened, log: FilteringBoundLogger) -> None:
    """Say what would have been denied, if nothing were only observed."""
    for why in (*opened.grant.would, *opened.membership.would, *opened.agreed.would):
        log.warning("would be denied", why=why)
    shadow, view = opened.agreed.shadow, opened.agreed.view
    if shadow is None:
        return
    changes: dict[str, object] = {}
    if view.flags & ~shadow.view.flags:
        changes["without"] = _names(view.flags & ~shadow.view.flags)
    if shadow.view.flags & ~view.flags:
        changes["with"] = _names(shadow.view.flags & ~view.flags)
    if view.contexts - shadow.view.contexts:
        changes["without_contexts"] = sorted(view.contexts - shadow.view.contexts)
    if shadow.view.block_sizes != view.block_sizes:
        changes["block_sizes"] = str(shadow.view.block_sizes)
    if changes:
        observed = [each.name for each in opened.membership.chain if each.observed]
        log.warning("would be shown otherwise", policies=observed, **changes)


def _names(flags: int) -> list[str | None]:
    return [flag.name for flag in Flag(flags)]


def _shown(who: Identity) -> dict[str, str]:
    """Give what the log says of a client over TLS."""
    return {"tls": f"{who.tls_version} {who.cipher}", "who": who.describe()} if who.tls else {}


def _log_repairs(service: Service, opened: Opened) -> None:
    server = opened.location.server
    for quirk in server.told.count_repairs(opened.uplink.quirks, opened.uplink.cleared):
        say = service.log.warning if quirk.risks_data else service.log.info
        say("repairing", upstream=server.name, quirk=quirk.name, what=quirk.summary)


async def _see_off(client: RelaySocket) -> None:
    """Tell a client that nothing more comes, and let it read what has come: wait until it closes."""
    with trio.move_on_after(LINGER_SECONDS), suppress(OSError):
        client.shutdown(socket.SHUT_WR)
        while True:
            await trio.lowlevel.wait_readable(client.fileno())
            if not client.recv(64 * 1024):
                return

"""One client's transmission phase: its socket and the link's go to the hub, its task sleeps until the end."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import trio

from gateway.access.chain import Membership, Terms
from gateway.access.rules import Access, Grant
from gateway.hub.session import Session as RelaySession
from gateway.identity import Identity
from gateway.links.trunk import Joined
from gateway.net.drive import Stream, take_socket
from gateway.net.options import RelaySocket
from gateway.protocol.export import Offer
from gateway.scan.plan import Plan
from gateway.scan.traffic import Traffic
from gateway.sessions.hooks import Hooks
from gateway.sessions.observing import Teller
from gateway.sessions.promise import plan_of
from gateway.sessions.service import Limits, Place, Running, Service
from gateway.sessions.surviving import put_on_its_links
from gateway.upstream.link import Link
from gateway.upstream.link import Terms as Asked
from gateway.wire.constants import TransmissionFlag as Flag

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

LINGER_SECONDS = 2
"""How long a client that we disconnect may take to read what we sent last: closing at once, with requests of
its own unread, would make the kernel throw that away."""


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """An export that a client has opened, and what it was promised of it."""

    grant: Grant
    access: Access
    """The rules that gave it."""
    place: Place
    asked: Asked
    """What the upstream was asked for it."""
    membership: Membership
    link: Link | Joined
    agreed: Terms
    offer: Offer
    limits: Limits
    waits_in: set[Opened] = field(default_factory=set)
    """Where it is counted until it is relayed or closed."""

    def counted(self, opening: set[Opened]) -> Opened:
        """Give the same, counted among those that are about to be relayed."""
        counted = replace(self, waits_in=opening)
        opening.add(counted)
        return counted

    @property
    def stands(self) -> bool:
        """Where it shares its links with others: they have not been given up since."""
        return not isinstance(self.link, Joined) or self.link.trunk.stands

    @property
    def plan(self) -> Plan:
        """What its session does with each command."""
        link = self.link
        why = link.why if isinstance(link, Joined) else ""
        return plan_of(self.agreed, self.offer, link.export, link.dialect, translated=why)

    def begins(self) -> None:
        """It is relayed from now on."""
        self.waits_in.discard(self)

    def close(self) -> None:
        """Close the link, and have the policies told."""
        do_all(self.begins, self.link.close, self.membership.leave)


async def transmit(
    service: Service,
    opened: Opened,
    stream: Stream,
    received: bytes,
    log: FilteringBoundLogger,
    who: Identity,
) -> bool:
    """Relay until the session has ended; then close the link, and see the client off. Say whether that has
    asked for anything, or said at least that it goes.

    `received` came behind the client's last option. The stream is of no use afterwards.
    """
    link, promised, membership = opened.link, opened.offer, opened.membership
    running: Running | None = None
    client, early = take_socket(stream, one_slice_a_record=promised.one_reply_a_record)
    service.relayed += 1
    try:
        _log_repairs(service, opened)
        _log_would(opened, log)
        rule = {"rule": opened.grant.rule} if opened.grant.rule else {}
        log.info(
            "session begins",
            **_shown(who),
            **rule,
            size=promised.size,
            flags=_names(promised.flags),
            contexts=[context.name for context in promised.contexts],
            quirks=list(link.quirks),
            ladder=link.rung.name,
            **_connections(link),
        )
        joined = link if isinstance(link, Joined) else None
        agreed = opened.plan
        disk = service.disk_at(opened.place)
        debt = disk.losses.open()
        ask = None if joined is None else joined.ask
        traffic = Traffic(agreed, disk.locks, ask, debt, disk.fences)
        traffic.most_in_flight = opened.limits.most_in_flight
        teller = Teller(traffic.observed, service.hub.later, log)
        running = Running(opened.grant.name, membership, opened, disk, traffic, log)
        with service.session(running):

            async def look() -> None:
                service.look_at(running)

            def begins(session: RelaySession, nursery: trio.Nursery) -> None:
                running.relaying, running.nursery = session, nursery
                opened.begins()
                put_on_its_links(service, running)
                if running.name in service.paused:
                    session.hold()
                if service.access is not opened.access:
                    nursery.start_soon(look)  # a reload came between GO and here
                if agreed.hooked:
                    Hooks(opened.agreed, agreed, traffic.jobs, session.act, nursery, log)

            session = await service.hub.relay(
                client,
                link.socket,
                traffic,
                received + early,
                opened.limits.charges,
                opened.limits.watched,
                push=None if joined is None else joined.push,
                begins=begins,
            )
        _leave_link(running)
        traffic = running.traffic
        teller.tell_the_end()
        if session.reason:
            log.warning("session ended", why=session.reason)
        else:
            log.info("session ended")
        told = membership.session
        told.commands, told.refused, told.why = traffic.last_cookie, traffic.refused, session.reason
        told.bytes_from_client, told.bytes_to_client = session.bytes_relayed
        membership.leave()
        if session.linger:
            await _see_off(client)
        return traffic.last_cookie > 0 or session.said_disc
    finally:
        service.relayed -= 1
        left = [] if running is None else _left(running)
        do_all(*left, opened.close, client.close)


def _left(running: Running) -> list[Callable[[], object]]:
    """Give what is to be done when a session has ended."""
    return [
        lambda: _leave_link(running),
        lambda: running.opened.close(),
        lambda: running.traffic.debt.losses.end(running.traffic.debt),
        running.disk.is_left,
    ]


def do_all(*steps: Callable[[], object]) -> None:
    """Do all of these, in their order. What one raises is raised in the end: a bug in one leaves nothing of the
    others undone.
    """
    with ExitStack() as stack:
        for step in reversed(steps):
            stack.callback(step)


def _leave_link(running: Running) -> None:
    """Close the link of a session that has ended, and say what became of what was written over it. Twice is
    once.
    """
    trail, running.traffic.trail = running.traffic.trail, None
    left = [] if trail is None else [lambda: trail.losses.left(trail)]
    do_all(*left, running.opened.link.close)


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


def _connections(link: Link | Joined) -> dict[str, object]:
    """Give what the log says of a session's connections, unless that is one of its own."""
    if not isinstance(link, Joined):
        return {}
    shared = {"shared": True} if link.trunk.server.mode.wanted.shared else {}
    return {"connections": link.trunk.decision.count, **shared}


def _log_repairs(service: Service, opened: Opened) -> None:
    server = opened.place.server
    for quirk in server.told.count_repairs(opened.link.quirks):
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

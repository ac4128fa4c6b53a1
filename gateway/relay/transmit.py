"""One client's transmission phase: its socket and the link's go to the hub, its task sleeps until the end."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from gateway.config import Route
from gateway.identity import Identity
from gateway.net.drive import Stream, take_socket
from gateway.net.options import RelaySocket
from gateway.protocol.export import Offer
from gateway.relay.scan.plan import plan
from gateway.relay.scan.traffic import Traffic
from gateway.relay.service import Service
from gateway.upstream.negotiation import Link
from gateway.wire.constants import TransmissionFlag as Flag

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

LINGER_SECONDS = 2
"""How long a client that we disconnect may take to read what we sent last: closing at once, with requests of
its own unread, would make the kernel throw that away."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An export that a client has opened, and what it was promised of it."""

    name: str
    route: Route
    link: Link
    offer: Offer


async def transmit(
    service: Service,
    opened: Opened,
    stream: Stream,
    received: bytes,
    log: FilteringBoundLogger,
    who: Identity,
) -> None:
    """Relay until the session has ended; then close the link, and see the client off.

    `received` came behind the client's last option. The stream is of no use afterwards.
    """
    link, promised = opened.link, opened.offer
    client, early = take_socket(stream)
    service.relayed += 1
    try:
        _log_repairs(service, opened)
        log.info(
            "session begins",
            **_shown(who),
            size=promised.size,
            flags=str(Flag(promised.flags)),
            contexts=[context.name for context in promised.contexts],
            quirks=list(link.quirks),
            ladder=link.rung.name,
        )
        traffic = Traffic(plan(promised, link.export, link.dialect), service.locks_of(opened.route))
        session = await service.hub.relay(client, link.socket, traffic, received + early)
        link.socket.close()
        if session.reason:
            log.warning("session ended", why=session.reason)
        else:
            log.info("session ended")
        if session.linger:
            await _see_off(client)
    finally:
        link.socket.close()
        client.close()
        service.relayed -= 1


def _shown(who: Identity) -> dict[str, str]:
    """Give what the log says of a client over TLS."""
    return {"tls": f"{who.tls_version} {who.cipher}", "who": who.describe()} if who.tls else {}


def _log_repairs(service: Service, opened: Opened) -> None:
    upstream = opened.route.upstream
    for quirk in service.servers[upstream].count_repairs(opened.link.quirks):
        say = service.log.warning if quirk.risks_data else service.log.info
        say("repairing", upstream=upstream, quirk=quirk.name, what=quirk.summary)


async def _see_off(client: RelaySocket) -> None:
    """Tell a client that nothing more comes, and let it read what has come: wait until it closes."""
    with trio.move_on_after(LINGER_SECONDS), suppress(OSError):
        client.shutdown(socket.SHUT_WR)
        while True:
            await trio.lowlevel.wait_readable(client.fileno())
            if not client.recv(64 * 1024):
                return

"""A client that asks for a disk which another process serves is handed over to that (`gateway.handover`), and
one that asks for a disk of which another gateway is the home is led there (`gateway.sessions.led`).

It happens before any upstream is asked, at the first option that names an export: the client's option is read,
and not answered. That the rules let it have the export is asked here first, and at home again: the two
processes may have different configurations, and whoever is denied by either gets nothing.

Who was led here is not led on. Its disk may have got another home since it was taken, and then the gateway
where it came in is told so, and asks anew where the home is (`gateway.clients.inquiry`,
`gateway.links.making`). Else this one would stay between the two for as long as the client does, though it is
no home of the disk: a drain would not see it, and whether all was kept would be asked of the one that knows
nothing of it.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import trio

from gateway.handover.given import DiskSite, Given
from gateway.handover.homes import door_of
from gateway.handover.relay import relay, stream_pair
from gateway.net.drive import Stream, take_socket
from gateway.protocol.errors import Refusal
from gateway.protocol.server_role import Aborted, Event, ListAsked, ServerNegotiation, TlsAsked
from gateway.wire.constants import Rep

if TYPE_CHECKING:
    from gateway.access.rules import Grant
    from gateway.clients.inquiry import Inquiry
    from gateway.config import Listen
    from gateway.handover.homes import Homes
    from gateway.identity import Identity
    from gateway.net.options import RelaySocket
    from gateway.sessions.led import Gateways


@dataclass(frozen=True, slots=True)
class GoneHome:
    """A client that another process has now."""

    end: RelaySocket | None
    """What leads there, over TLS; else its socket does, and ours is closed."""

    async def relay(self, stream: Stream) -> None:
        """Relay until it has ended, if something of it is here."""
        if self.end is None:
            return
        client, early = take_socket(stream)
        try:
            await relay(client, self.end, early)
        finally:
            client.close()
            self.end.close()


async def gone_home(
    homes: Homes,
    asked: Event | str,
    inquiry: Inquiry,
    core: ServerNegotiation,
    stream: Stream,
    *,
    session_id: str,
    listen: Listen,
    identity: Identity,
    seconds: float,
) -> GoneHome | None:
    """Hand a client over if another process is its home; None: it stays. `asked`: its option, or the name of
    the export that an oldstyle listener has. `seconds`: how much of its time it has used. Raises `Refusal`: it
    may not have the export, or nobody serves it at this moment.
    """
    given = _given(asked, inquiry, core, session_id, listen, identity, seconds)
    if given is None:
        return None
    end: socket.socket | None = None
    try:
        if isinstance(stream, trio.SocketStream):
            descriptor = os.dup(stream.socket.fileno())
        else:
            end, theirs = stream_pair()
            descriptor = theirs.detach()
    except OSError as error:  # as many are open as may be
        text = f"whether its home is another process cannot be seen to: {error.strerror}"
        raise Refusal(Rep.ERR_SHUTDOWN, text) from None
    given = replace(given, via_tls=end is not None)
    taken = False
    try:
        export = None if given.site is None else _name(asked)
        taken = await homes.takes(given, descriptor, export)
    finally:
        if end is not None and not taken:
            end.close()
    return GoneHome(end) if taken else None


async def find_home(
    gateways: Gateways,
    asked: Event | str,
    inquiry: Inquiry,
    *,
    session_id: str,
    listen: Listen,
    identity: Identity,
    led: bool,
) -> None:
    """Have the home of the disk that a client asks for be its upstream, if that is another gateway of the
    fleet, and find it if it is not known yet. `led`: another gateway has led it here. Raises `Refusal`, as
    `gone_home`.
    """
    grant = _asked_for(asked, inquiry)
    if grant is None:  # a list is asked of the servers
        return
    location = inquiry.location(grant)
    if location.server.recipe.at_home:
        return
    site = DiskSite.at(location.server.where, location.name)
    # It connects as if it came from the client now, and begins to negotiate there.
    given = Given(0, session_id, door_of(listen.uri), identity, site, 0.0, None)
    home = await gateways.leads(given, location.server)
    if home is not None:
        if led:
            raise Refusal(Rep.ERR_SHUTDOWN, "the home of the disk is another gateway by now")
        inquiry.led = {grant.name: home}


def _given(
    asked: Event | str,
    inquiry: Inquiry,
    core: ServerNegotiation,
    session_id: str,
    listen: Listen,
    identity: Identity,
    seconds: float,
) -> Given | None:
    """Give all that is known of a client; None, if it asks for nothing of a disk. Raises `Refusal`."""
    if isinstance(asked, (Aborted, TlsAsked)):
        return None
    talk = None if isinstance(asked, str) else core.unfinished()
    grant, site = _asked_for(asked, inquiry), None
    if grant is not None:
        location = inquiry.location(grant)
        site = DiskSite.at(location.server.where, location.name)
    return Given(0, session_id, door_of(listen.uri), identity, site, seconds, talk)


def _asked_for(asked: Event | str, inquiry: Inquiry) -> Grant | None:
    """Give what a client may have that it asks for; None: it asks for no export. Raises `Refusal`."""
    if isinstance(asked, (Aborted, TlsAsked, ListAsked)):
        return None
    return inquiry.may_open(asked) if isinstance(asked, str) else inquiry.asked_for(asked)


def _name(asked: Event | str) -> str | None:
    return asked if isinstance(asked, str) else getattr(asked, "name", None)

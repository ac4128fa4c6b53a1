"""A connection to a server is made, and brought as far as it is good for any client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from gateway.upstream.allowance import Allowance
from gateway.upstream.errors import NotSecuredYet, Unreachable
from gateway.upstream.handshake import Handshake, Reached
from gateway.upstream.news import ForClientsAlone
from gateway.upstream.server import Server
from gateway.upstream.slots import Slot


async def greeted(
    server: Server,
    slot: Slot,
    *,
    patient: bool,
    for_client: bool = True,
    beside: bool = False,
    seconds: float | None = None,
    allowance: Allowance | None = None,
) -> Handshake:
    """Connect in a slot, take the greeting, and go over to TLS: nothing yet depends on who it is for. How it is
    connected to is said as to `Connector.connect`. The slot is left if that fails. Raises `Unreachable`.
    """
    if allowance is None:
        allowance = Allowance(server.settings.negotiate_seconds)
    connect = partial(
        server.connector.connect,
        patient=patient,
        for_client=for_client,
        beside=beside,
        seconds=seconds,
        answering=allowance,
    )
    try:
        why = ""
        for _place in server.tls:  # each may have such a certificate, and be tried once more for it
            try:
                handshake = await _at_greeting(server, slot, allowance, connect)
                break
            except NotSecuredYet as error:
                why = error.text
        else:
            handshake = await _at_greeting(server, slot, allowance, connect)
        if why and server.told.is_news("", ForClientsAlone.__name__):
            server.tell(ForClientsAlone(why))
        return handshake
    except BaseException:
        slot.leave()
        raise


async def _at_greeting(
    server: Server, slot: Slot, allowance: Allowance, connect: Callable[[], Awaitable[Reached]]
) -> Handshake:
    """As `greeted`, once; the slot is kept if it fails. Raises `Unreachable`."""
    reached = await connect()
    handshake = Handshake(server.name, reached, slot, server.ladder.era, allowance)
    try:
        await handshake.greet()
        if server.tls:
            await handshake.start_tls(server.tls[reached.place]())
    except BaseException as error:
        await handshake.hang_up()
        if isinstance(error, Unreachable):
            server.unusable = error.text
        raise
    server.unusable = ""
    return handshake

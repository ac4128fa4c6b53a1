"""A connection to a server is made, and brought as far as it is good for any client."""

from __future__ import annotations

from gateway.upstream.allowance import Allowance
from gateway.upstream.errors import Unreachable
from gateway.upstream.handshake import Handshake
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
    try:
        reached = await server.connector.connect(
            patient=patient,
            for_client=for_client,
            beside=beside,
            seconds=seconds,
            answering=allowance,
        )
    except BaseException:
        slot.leave()
        raise
    handshake = Handshake(server.name, reached, slot, server.ladder.era, allowance)
    try:
        await handshake.greet()
        if server.tls:
            await handshake.start_tls(server.tls[reached.place]())
    except BaseException as error:
        await handshake.aclose()
        if isinstance(error, Unreachable):
            server.unusable = error.text
        raise
    server.unusable = ""
    return handshake

"""An export that the server does not have: which ones it lists, for whoever has to name another one."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.protocol.errors import Refusal
from gateway.upstream.listing import exports_of
from gateway.upstream.server import Server
from gateway.wire.constants import Rep
from gateway.wire.handshake import ListedExport, shown

MOST_NAMES = 8
"""How many of them are named."""


async def listed_by(server: Server) -> Sequence[ListedExport] | None:
    """Give the exports that a server lists; None if it will not say."""
    try:
        return await exports_of(server)
    except Refusal:
        return None


def instead(refusal: Refusal, listed: Sequence[ListedExport] | None) -> str:
    """Say why there is no such export, and which ones are listed, if there are any."""
    if refusal.reply != Rep.ERR_UNKNOWN or not listed:
        return refusal.why
    names = ", ".join(shown(export.name) for export in listed[:MOST_NAMES])
    more = "" if len(listed) <= MOST_NAMES else f" and {len(listed) - MOST_NAMES} more"
    return f"{refusal.why}; it lists {names}{more}, of which the URI may name one"

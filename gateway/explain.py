"""What the gateway would do with an export, for each kind of client: asked of the real upstream, and not
guessed.

The upstream is negotiated with as for a client, up to the point where the export would be opened, and
`plan` says the rest. Nothing is relayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import trio

from gateway import app
from gateway.access.rules import Access, Grant, NotGranted
from gateway.config import Config
from gateway.policy import Client
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export, Offer
from gateway.relay.promise import plan_of, promise, promised_terms
from gateway.relay.scan.plan import Way
from gateway.upstream.negotiation import Negotiation, Terms
from gateway.upstream.server import Server
from gateway.wire.constants import BASE_ALLOCATION, Cmd
from gateway.wire.framing import EXTENDED, SIMPLE, STRUCTURED, Framing
from gateway.wire.handshake import MetaContext


class CannotExplain(Exception):
    """The export is not to be had; the text says why."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """How an export is served to clients of one framing."""

    client: Framing
    link: Framing
    export: Export
    """As the upstream means it: repaired."""
    promised: Offer
    ways: Mapping[Cmd, Way]
    quirks: tuple[str, ...]


async def explain(config: Config, name: str, client: Client) -> list[Explanation]:
    """Ask the upstream of export `name`, as the client would with each framing. Raises `CannotExplain`, or
    `app.StartError` if the configuration cannot be used.
    """
    try:
        grant = Access(config).find(client, name)
    except NotGranted as denied:
        raise CannotExplain(str(denied)) from None
    found = []
    failed: Exception | None = None  # as itself, not in the nursery's group
    async with trio.open_nursery() as embedded:
        try:
            async with app.upstreams(config, embedded, app.load_keyring(config)) as servers:
                for framing in (SIMPLE, STRUCTURED, EXTENDED):
                    found.append(await _explain(servers[grant.route.upstream], grant, framing))
        except Refusal as refusal:
            failed = CannotExplain(refusal.text)
        except app.StartError as error:
            failed = error
        embedded.cancel_scope.cancel()
    if failed is not None:
        raise failed
    return found


async def _explain(server: Server, grant: Grant, client: Framing) -> Explanation:
    queries = (BASE_ALLOCATION,) if client.chunked else None
    route = grant.route
    terms = Terms(route.upstream_name, client.chunked, client is EXTENDED, queries)
    negotiation = Negotiation(server)
    try:
        export, dialect, quirks = await negotiation.describe(terms)
    finally:
        await negotiation.aclose()
    agreed = promised_terms(grant.chain, route, export)
    promised = promise(
        agreed,
        structured=client.chunked,
        extended=client is EXTENDED,
        selected=(MetaContext(1, BASE_ALLOCATION),) if client.chunked else (),
    )
    ways = plan_of(agreed, promised, export, dialect).ways
    return Explanation(client, export.framing, export, promised, ways, quirks)

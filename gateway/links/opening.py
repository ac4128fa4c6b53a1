"""What is asked a client's questions about exports, until the client has opened one: then it has an uplink.
Both kinds are closed with `aclose`.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.links.disk import Disk
from gateway.links.shared import Trunks
from gateway.links.uplink import Share, Uplink
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export
from gateway.quirks import Dialect, Evidence
from gateway.upstream.allowance import Allowance
from gateway.upstream.link import Terms
from gateway.upstream.negotiation import Negotiation
from gateway.upstream.server import Server
from gateway.wire.constants import Rep
from gateway.wire.handshake import MetaContext


class OwnNegotiation(Negotiation):
    """For exports whose clients have links of their own. If a client has several links, all of them are made
    now: one that was made ahead might lead to the server that was there before.
    """

    def __init__(
        self,
        trunks: Trunks,
        server: Server,
        disk: Callable[[str], Disk],
        *,
        listed: bool = False,
    ) -> None:
        super().__init__(server, warm=server.mode.wanted.count == 1, listed=listed)
        self._trunks = trunks
        self._disk = disk

    async def open(self, terms: Terms) -> Uplink:
        """Open an export. Raises `Refusal`."""
        allowance = self.allowance  # with a link it begins anew
        link = await self.go(terms)
        return await self._trunks.uplink(self._server, self._disk, terms, link, allowance)


class SharedNegotiation:
    """For exports whose clients share links: it asks over the trunk of each export. What it has opened stays
    open.
    """

    evidence: Evidence | None = None

    def __init__(self, trunks: Trunks, server: Server, disk: Callable[[str], Disk]) -> None:
        self._trunks = trunks
        self._server = server
        self._disk = disk
        self._share: tuple[str, Share] | None = None
        self._name: str | None = None
        self.allowance = Allowance(server.settings.negotiate_seconds)
        """Of the export that is asked about: what it may take yet until it is opened."""

    async def _part(self, name: str) -> Share:
        if self._share is not None:
            if self._share[0] == name and self._share[1].trunk.stands:
                return self._share[1]
            await self.aclose()
        if self._name not in (None, name):
            self.allowance = Allowance(self._server.settings.negotiate_seconds)
        self._name = name
        share = await self._trunks.join(self._disk(name), self._server, name, self.allowance)
        self._share = name, share
        return share

    async def contexts(self, terms: Terms) -> tuple[MetaContext, ...]:
        """Give the contexts that a client selects. Raises `Refusal`."""
        export = (await self._part(terms.name)).export
        self._check(export)
        return tuple(each for each in export.contexts if each.name in (terms.queries or ()))

    async def list_contexts(
        self, terms: Terms, queries: tuple[str, ...]
    ) -> tuple[MetaContext, ...]:
        """Give the contexts that a client asks for: by name, all that begin with a query that ends with a
        colon, or all.
        """
        export = (await self._part(terms.name)).export
        self._check(export)
        return tuple(
            each
            for each in export.contexts
            if not queries
            or any(each.name == q or (q.endswith(":") and each.name.startswith(q)) for q in queries)
        )

    def _check(self, export: Export) -> None:
        if not export.framing.chunked:
            raise Refusal(Rep.ERR_UNSUP, "the upstream has no meta contexts")

    async def describe(self, terms: Terms) -> tuple[Export, Dialect, tuple[str, ...]]:
        """Give what the export is. Raises `Refusal`."""
        share = await self._part(terms.name)
        return share.export, share.dialect, share.quirks

    async def open(self, terms: Terms) -> Share:
        """Give a share of the export's trunk for good. Raises `Refusal`."""
        share = await self._part(terms.name)
        self._share = None
        return share

    async def aclose(self) -> None:
        """Give back all shares, except what `open` has given."""
        if self._share is not None:
            _name, share = self._share
            self._share = None
            share.close()

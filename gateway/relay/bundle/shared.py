"""Exports that all clients share the links of: who asks about one, and who opens it, gets its part in one
trunk.

The links select, when they are made, every meta context that the server lists; a client's own choice is made of
these. A trunk begins with the first who asks, and ends with the last who has a part in it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export
from gateway.quirks import Dialect, Evidence
from gateway.relay.bundle.ledger import Ledger
from gateway.relay.bundle.trunk import Joined, Trunk
from gateway.upstream.negotiation import Link, Negotiation, Terms
from gateway.upstream.server import Server
from gateway.wire import limits
from gateway.wire.constants import Rep
from gateway.wire.handshake import MetaContext

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from gateway.relay.hub import Hub

Key = tuple[Server, str]
"""A server, and an export's name there."""


class Trunks:
    """Those of all shared exports."""

    def __init__(self, hub: Hub, log: FilteringBoundLogger) -> None:
        self._hub = hub
        self._log = log
        self._trunks: dict[Key, Trunk] = {}
        self._locks: dict[Key, trio.Lock] = {}

    async def join(self, server: Server, name: str, ledger: Callable[[], Ledger]) -> Joined:
        """Take part in an export's trunk, which is begun if there is none. Raises `Refusal`."""
        key = server, name
        lock = self._locks.setdefault(key, trio.Lock())
        try:
            async with lock:
                trunk = self._trunks.get(key)
                if trunk is None or trunk.ended:
                    trunk = await self._begun(server, name, ledger())
                    self._trunks[key] = trunk
                return trunk.join()
        finally:
            if not lock.statistics().tasks_waiting:
                self._locks.pop(key, None)
            self._trunks = {k: each for k, each in self._trunks.items() if not each.ended}

    def names(self, server: Server) -> list[str]:
        """Give the exports of a server that clients share at this moment, by its names."""
        return [
            name for (of, name), each in self._trunks.items() if of is server and not each.ended
        ]

    async def _begun(self, server: Server, name: str, ledger: Ledger) -> Trunk:
        terms = Terms(name, structured=True, extended=True)
        negotiation = Negotiation(server)
        try:
            listed: tuple[MetaContext, ...] = ()
            with suppress(Refusal):  # what it is, is found out below
                listed = await negotiation.list_contexts(terms, ())
            queries = tuple(context.name for context in listed)[: limits.MAX_QUERIES]
            if queries:
                terms = Terms(name, structured=True, extended=True, queries=queries)
            link = await negotiation.go(terms)
        finally:
            await negotiation.aclose()
        return await begun(server, terms, link, self._hub, ledger, self._log)


async def begun(
    server: Server,
    terms: Terms,
    link: Link,
    hub: Hub,
    ledger: Ledger,
    log: FilteringBoundLogger,
) -> Trunk:
    """Begin a trunk with its first link, which is its from now on. Raises `Refusal`."""
    trunk = Trunk(server, terms, link, hub, ledger, log)
    try:
        if server.mode.required:
            await trunk.agree()
    except BaseException:
        link.close()
        raise
    trunk.start()
    return trunk


class SharedNegotiation:
    """What `Negotiation` is to a client, over an export's trunk. Close it with `aclose`; a `go` stays."""

    evidence: Evidence | None = None

    def __init__(self, trunks: Trunks, server: Server, ledger: Callable[[str], Ledger]) -> None:
        self._trunks = trunks
        self._server = server
        self._ledger = ledger
        self._joined: tuple[str, Joined] | None = None

    async def _part(self, name: str) -> Joined:
        if self._joined is not None:
            if self._joined[0] == name and not self._joined[1].trunk.ended:
                return self._joined[1]
            await self.aclose()
        joined = await self._trunks.join(self._server, name, lambda: self._ledger(name))
        self._joined = name, joined
        return joined

    async def contexts(self, terms: Terms) -> tuple[MetaContext, ...]:
        """Give those of the contexts that a client selects. Raises `Refusal`."""
        export = (await self._part(terms.name)).export
        self._check(export)
        return tuple(each for each in export.contexts if each.name in (terms.queries or ()))

    async def list_contexts(
        self, terms: Terms, queries: tuple[str, ...]
    ) -> tuple[MetaContext, ...]:
        """Give those that a client asks for: by name, all that begin with one that ends with a colon, or
        all.
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
        joined = await self._part(terms.name)
        return joined.export, joined.dialect, joined.quirks

    async def go(self, terms: Terms) -> Joined:
        """Take part in the export for good. Raises `Refusal`."""
        joined = await self._part(terms.name)
        self._joined = None
        return joined

    async def aclose(self) -> None:
        """Take part no more, unless by `go`."""
        if self._joined is not None:
            _name, joined = self._joined
            self._joined = None
            joined.close()

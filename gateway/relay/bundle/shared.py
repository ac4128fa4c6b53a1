"""Exports that all clients share the links of: who asks about one, and who opens it, gets its part in one
trunk.

The links select, when they are made, every meta context that the server lists; a client's own choice is made of
these. A trunk begins with the first who asks, and ends with the last who has a part in it; or when the export
is taken elsewhere, or made anew (`Trunks.exchange`), for there must not be two before one server's export: what
one has not flushed the other would not know of.

A trunk of one link may begin with one that was made ahead (`gateway.upstream.warm`): that is nobody's yet. A
link that is lost, or made anew, is never replaced by one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export
from gateway.quirks import Dialect, Evidence
from gateway.relay.bundle.trunk import Joined, Trunk
from gateway.relay.losses import Losses
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

    async def join(self, server: Server, name: str, losses: Callable[[], Losses]) -> Joined:
        """Take part in an export's trunk, which is begun if there is none. Raises `Refusal`."""
        key = server, name
        async with self._locked(key):
            trunk = self.at(server, name)
            if trunk is None:
                trunk = await self._begun(server, name, losses(), warm=True)
                self._trunks[key] = trunk
            return trunk.join()

    def at(self, server: Server, name: str) -> Trunk | None:
        """Give the trunk of an export, if there is one: if need be, that of before a reload has changed how its
        server is spoken to. Two would be one too many for a server that takes one connection; and what one of
        them writes again after a loss would be written over what came over the other meanwhile.
        """
        trunk = self._trunks.get((server, name))
        if trunk is not None and trunk.stands:
            return trunk
        for (other, there), each in self._trunks.items():
            same = other.name == server.name and other.disks is server.disks  # not one switched to
            if each.stands and there == name and same:
                return each
        return None

    @asynccontextmanager
    async def exchange(
        self, server: Server, name: str, losses: Callable[[], Losses], leaving: Collection[Trunk]
    ) -> AsyncIterator[Trunk]:
        """Give the trunk of an export to those who leave others; nobody else joins until the block ends. It is
        the one that the export has, or, if that is to be left, a new one, which the export has once it is
        `put`. One that nobody has joined by the end of the block ends with it. Raises `Refusal`.
        """
        async with self._locked((server, name)):
            trunk = self.at(server, name)
            if trunk is None or trunk in leaving:
                trunk = await self._begun(server, name, losses(), warm=False)
            ours = trunk.join()
            try:
                yield trunk
            finally:
                ours.close()

    def put(self, trunk: Trunk) -> None:
        """Lead who comes from now on to a trunk."""
        self._trunks[trunk.server, trunk.terms.name] = trunk

    @asynccontextmanager
    async def _locked(self, key: Key) -> AsyncIterator[None]:
        lock = self._locks.setdefault(key, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._locks.pop(key, None)
            self._trunks = {k: each for k, each in self._trunks.items() if each.stands}

    def names(self, server: Server) -> list[str]:
        """Give the exports of a server that clients share at this moment, by its names."""
        return [name for (of, name), each in self._trunks.items() if of is server and each.stands]

    async def _begun(self, server: Server, name: str, losses: Losses, *, warm: bool) -> Trunk:
        negotiation = Negotiation(server, warm=warm and server.mode.wanted.count == 1)
        try:
            terms = await shared_terms(negotiation, name)
            link = await negotiation.go(terms)
        finally:
            await negotiation.aclose()
        return await begun(server, terms, link, self._hub, losses, self._log)


async def shared_terms(negotiation: Negotiation, name: str) -> Terms:
    """Give the terms on which links are opened that clients share: as much as any of them might want."""
    terms = Terms(name, structured=True, extended=True)
    listed: tuple[MetaContext, ...] = ()
    with suppress(Refusal):  # what it is, is found out when it is opened
        listed = await negotiation.list_contexts(terms, ())
    queries = tuple(context.name for context in listed)[: limits.MAX_QUERIES]
    return replace(terms, queries=queries) if queries else terms


async def begun(
    server: Server,
    terms: Terms,
    link: Link,
    hub: Hub,
    losses: Losses,
    log: FilteringBoundLogger,
) -> Trunk:
    """Begin a trunk with its first link, which is its from now on. Raises `Refusal`."""
    trunk = Trunk(server, terms, link, hub, losses, log)
    try:
        if server.mode.required:
            await trunk.agree()
    except BaseException:
        trunk.abandon()
        raise
    trunk.start()
    return trunk


class SharedNegotiation:
    """What `Negotiation` is to a client, over an export's trunk. Close it with `aclose`; a `go` stays."""

    evidence: Evidence | None = None

    def __init__(self, trunks: Trunks, server: Server, losses: Callable[[str], Losses]) -> None:
        self._trunks = trunks
        self._server = server
        self._losses = losses
        self._joined: tuple[str, Joined] | None = None

    async def _part(self, name: str) -> Joined:
        if self._joined is not None:
            if self._joined[0] == name and self._joined[1].trunk.stands:
                return self._joined[1]
            await self.aclose()
        joined = await self._trunks.join(self._server, name, lambda: self._losses(name))
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

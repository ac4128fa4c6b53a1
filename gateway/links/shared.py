"""Exports that all clients share the links of: who asks about one, and who opens it, gets its part in one
trunk.

The links select, when they are made, every meta context that the server lists; a client's own choice is made
of these. A trunk begins with the first who asks, and ends with the last who has a part in it; or when the
export is taken elsewhere, or made anew (`Trunks.exchange`), for there must not be two before one disk: what
one has not flushed the other would not know of, and what it writes again after a loss it would write over
what came over the other meanwhile. So a disk whose server is spoken to in another way since a reload, or by
another upstream, keeps the trunk that it has.

A trunk of one link may begin with one that was made ahead (`gateway.upstream.warm`): that is nobody's yet. A
link that is lost, or made anew, is never replaced by one.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import trio

from gateway.links.trunk import Joined, Trunk
from gateway.losses.rule import Debt
from gateway.losses.survival import Doubt
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export
from gateway.quirks import Dialect, Evidence
from gateway.upstream.allowance import Allowance
from gateway.upstream.errors import Silent, Unreachable
from gateway.upstream.ladder import Rung
from gateway.upstream.link import Link, Terms
from gateway.upstream.negotiation import Negotiation
from gateway.upstream.server import Server
from gateway.wire import limits
from gateway.wire.constants import Rep
from gateway.wire.handshake import MetaContext

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from gateway.hub.hub import Hub
    from gateway.links.disk import Disk


class Trunks:
    """Begins those of all shared exports; each belongs to its disk (`Disk.trunk`)."""

    def __init__(self, hub: Hub, log: FilteringBoundLogger) -> None:
        self._hub = hub
        self._log = log
        self._silent: WeakKeyDictionary[Disk, tuple[float, str]] = WeakKeyDictionary()
        """When whose server was found silent, and what was said of it."""

    async def join(
        self, disk: Disk, server: Server, name: str, allowance: Allowance | None = None
    ) -> Joined:
        """Take part in the trunk of a server's export, which is this disk; it is begun if there is none,
        within what is left of `allowance`. Who has waited for another to begin it, and that one has met a
        silent server, is told the same: it would only wait for it once more. Raises `Refusal`.
        """
        came = trio.current_time()
        async with disk.turn:
            trunk = disk.trunk
            if trunk is None:
                _check_that_it_writes_alone(disk, server, ())
                silent_at, text = self._silent.get(disk, (-math.inf, ""))
                if silent_at > came:
                    raise Silent(text)
                try:
                    trunk = await self._begun(disk, server, name, warm=True, allowance=allowance)
                except Silent as silent:
                    self._silent[disk] = trio.current_time(), silent.text
                    raise
                disk.trunk = trunk
            _check_credentials(server, trunk.server)
            return trunk.join()

    @asynccontextmanager
    async def exchange(
        self,
        disk: Disk,
        server: Server,
        name: str,
        leaving: Collection[Trunk],
        sessions: Collection[Debt],
    ) -> AsyncIterator[Trunk]:
        """Give the trunk of an export, which is this disk, to `sessions`, who leave others; nobody else joins
        until the block ends. It is the one that the disk has, or, if that is to be left, a new one, which the
        disk has once it is given it. One that nobody has joined by the end of the block ends with it. Raises
        `Refusal`.
        """
        async with disk.turn:
            trunk = disk.trunk
            if trunk is None or trunk in leaving:
                _check_that_it_writes_alone(disk, server, sessions)
                # Nobody is promised less than by those that are left.
                rungs = [each.first.rung for each in leaving if each.disk is disk]
                lowest = min(rungs, default=Rung.EXPORT_NAME)
                trunk = await self._begun(disk, server, name, warm=False, lowest=lowest)
            _check_credentials(server, trunk.server)
            ours = trunk.join()
            try:
                yield trunk
            finally:
                ours.close()

    async def _begun(
        self,
        disk: Disk,
        server: Server,
        name: str,
        *,
        warm: bool,
        lowest: Rung = Rung.EXPORT_NAME,
        allowance: Allowance | None = None,
    ) -> Trunk:
        negotiation = Negotiation(
            server,
            warm=warm and server.mode.wanted.count == 1,
            lowest=lowest,
            allowance=allowance,
        )
        allowance = negotiation.allowance
        try:
            terms = await shared_terms(negotiation, name)
            link = await negotiation.go(terms)
        finally:
            await negotiation.aclose()
        return await begun(server, terms, link, self._hub, disk, self._log, allowance)


def _check_credentials(server: Server, there: Server) -> None:
    """Hold the connections that a disk has, made as one server's, against who would use them as another's: what
    is to go over TLS must not go in the clear, nor anything under somebody else's name. A reload may change the
    credentials of an upstream; that is taken up when the connections are made anew. Raises `Refusal`.
    """
    ours, theirs = server.recipe, there.recipe
    if ours.upstream == theirs.upstream:
        return
    if ours.credentials != theirs.credentials:
        raise Refusal(
            Rep.ERR_POLICY,
            f"clients of upstream {theirs.upstream!r} share connections to this disk that were made with"
            f" other credentials than those of {ours.upstream!r}: there cannot be two sets of them",
        )


def _check_that_it_writes_alone(disk: Disk, server: Server, sessions: Collection[Debt]) -> None:
    """Nobody but these may write beside what is written again after a loss. Raises `Refusal`."""
    replays = server.mode.survival.unflushed is Doubt.REPLAY
    if replays and disk.losses.others_write(sessions):
        raise Refusal(
            Rep.ERR_POLICY,
            f'clients have connections of their own to this disk, and with unflushed = "replay" upstream'
            f" {server.name!r} has to write alone: they have to leave first",
        )


async def shared_terms(negotiation: Negotiation, name: str) -> Terms:
    """Give the terms on which links are opened that clients share: as much as any of them might want."""
    terms = Terms(name, structured=True, extended=True)
    listed: tuple[MetaContext, ...] = ()
    try:
        listed = await negotiation.list_contexts(terms, ())
    except Unreachable:
        raise  # it may have contexts, and nobody would ever be given them over these links
    except Refusal:
        pass  # what it is, is found out when it is opened
    queries = tuple(context.name for context in listed)[: limits.MAX_QUERIES]
    return replace(terms, queries=queries) if queries else terms


async def begun(
    server: Server,
    terms: Terms,
    link: Link,
    hub: Hub,
    disk: Disk,
    log: FilteringBoundLogger,
    allowance: Allowance | None = None,
) -> Trunk:
    """Begin a trunk with its first link, which is its from now on. What has to be there before it begins may
    take what is left of `allowance`. Raises `Refusal`.
    """
    trunk = Trunk(server, terms, link, hub, disk, log)
    try:
        if server.mode.required:
            await trunk.agree(allowance)
    except BaseException:
        trunk.abandon()
        raise
    trunk.start()
    return trunk


class SharedNegotiation:
    """What `Negotiation` is to a client, over an export's trunk. Close it with `aclose`; a `go` stays."""

    evidence: Evidence | None = None

    def __init__(self, trunks: Trunks, server: Server, disk: Callable[[str], Disk]) -> None:
        self._trunks = trunks
        self._server = server
        self._disk = disk
        self._joined: tuple[str, Joined] | None = None
        self._name: str | None = None
        self.allowance = Allowance(server.settings.negotiate_seconds)
        """Of the export that is asked about: what it may take yet until it is opened."""

    async def _part(self, name: str) -> Joined:
        if self._joined is not None:
            if self._joined[0] == name and self._joined[1].trunk.stands:
                return self._joined[1]
            await self.aclose()
        if self._name not in (None, name):
            self.allowance = Allowance(self._server.settings.negotiate_seconds)
        self._name = name
        joined = await self._trunks.join(self._disk(name), self._server, name, self.allowance)
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

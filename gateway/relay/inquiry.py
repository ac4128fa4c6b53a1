"""What one client asks of exports: which of them it may have, what they are like, and in the end to open one.

Three have a say: the rules (`gateway.access`), which decide before anybody is asked anything; the upstream of
the export, which is dialled when the first question needs it; and the policies of the rule and the export,
which change what it said. The client is told the offer that comes of it.

An upstream that is being asked stays connected for the next question about it. Where a policy has to look at
the disk, INFO needs a link that is open already; it is kept for the GO that usually follows.

After STARTTLS there is another `Inquiry`: nothing of what was asked before counts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

import trio

from gateway.access.chain import Placed, Terms, join, peek, prepared, prepares
from gateway.access.rules import Grant, NotGranted
from gateway.config import Route
from gateway.identity import Identity
from gateway.policy import Client, Denied, Failed, Session
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export, Offer
from gateway.protocol.server import ContextsAsked, Description, ExportAsked, ServerNegotiation
from gateway.relay.listing import listed_exports
from gateway.relay.promise import (
    allowed_contexts,
    bitmaps_may_move,
    first_view,
    is_bitmap,
    promise,
    promised_terms,
)
from gateway.relay.reading import Reader
from gateway.relay.service import Service
from gateway.relay.transmit import Opened
from gateway.upstream import negotiation as upstream_side
from gateway.upstream.negotiation import Link, Negotiation
from gateway.wire.constants import BASE_ALLOCATION, Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import ListedExport, MetaContext, shown

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

PREPARE_SECONDS = 30
"""How long policies may take to look at a disk before it is described: a few READs of a server that has just
answered."""

_Result = TypeVar("_Result")
Patiently = Callable[[Callable[[], Awaitable[_Result]]], Awaitable[_Result]]


@dataclass
class _Kept:
    """An export that was opened to answer INFO, and the question that it answers."""

    asked: ExportAsked
    terms: upstream_side.Terms
    opened: Opened


@dataclass(frozen=True, slots=True)
class Told:
    """What a client is told of an export."""

    description: Description
    alignment: int
    """What its requests have to be multiples of, in bytes."""
    asks_for_sizes: bool
    """Clients that do not ask for block sizes are turned away, if there is an alignment."""


class Inquiry:
    """One client's questions. `patiently` waits for an upstream, as long as the client is there.

    All methods raise `Refusal` with what the client is answered.
    """

    def __init__(
        self,
        service: Service,
        core: ServerNegotiation,
        identity: Identity,
        listener: str,
        patiently: Callable[..., Awaitable[object]],
        log: FilteringBoundLogger,
        *,
        has_tls: bool,
    ) -> None:
        self._service = service
        self._core = core
        self._identity = identity
        self._listener = listener
        self._patiently = patiently
        self._log = log
        self._has_tls = has_tls
        self._upstream: tuple[str, Negotiation] | None = None
        self._queries: tuple[str, tuple[str, ...]] | None = None  # of the last SET_META_CONTEXT
        self._kept: _Kept | None = None

    # --- The questions

    async def listed(self) -> list[ListedExport]:
        """Give what LIST tells."""
        service, secure = self._service, self._core.secure
        exports = await self._wait(
            lambda: listed_exports(service.config, service.servers, secure=secure)
        )
        return service.access.listed(self._client(), exports)

    async def contexts(self, asked: ContextsAsked) -> tuple[MetaContext, ...]:
        """Give what LIST_META_CONTEXT or SET_META_CONTEXT tells."""
        if asked.select:
            self._queries = None
        grant = self._grant(asked.name)
        if asked.select:
            return await self._selected(asked, grant)
        route = grant.route
        terms = self._terms(asked.name, route)
        found = await self._ask(route, lambda up: up.list_contexts(terms, asked.queries))
        allowed = allowed_contexts(grant.chain, [each.name for each in found], asked=False)
        if route.stable_contexts_only and await self._bitmaps_may_move(grant, terms):
            allowed = [name for name in allowed if not is_bitmap(name)]
        return tuple(context for context in found if context.name in allowed)

    async def described(self, asked: ExportAsked) -> Told:
        """Give what INFO tells."""
        grant = self._grant(asked.name, without_tls=Rep.ERR_TLS_REQD)
        if prepares(grant.chain):
            opened = await self._open(grant, asked.name)
            self._kept = _Kept(asked, self._terms(asked.name, grant.route), opened)
            return self.told(asked.name, opened)
        chain = self._policies(grant, asked.name, peek)
        terms = self._terms(asked.name, grant.route)
        export, _dialect, _quirks = await self._ask(grant.route, lambda up: up.describe(terms))
        agreed = promised_terms(chain, grant.route, export)
        return _told(asked.name, grant.route, export, agreed, self._offer(asked.name, agreed))

    async def opened(
        self, name: str, asked: ExportAsked | None = None, *, without_tls: Rep = Rep.ERR_UNKNOWN
    ) -> Opened:
        """Open an export. `asked` is the GO, if it is one."""
        grant = self._grant(name, without_tls=without_tls)
        kept, self._kept = self._kept, None
        if kept is not None:
            same = asked is not None and replace(kept.asked, go=True) == asked
            if same and kept.terms == self._terms(name, grant.route):
                return kept.opened
            kept.opened.close()
        return await self._open(grant, name)

    def told(self, name: str, opened: Opened) -> Told:
        """Give what a client is told of the export that it has opened."""
        return _told(name, opened.grant.route, opened.link.export, opened.agreed, opened.offer)

    async def aclose(self) -> None:
        """Close what nobody has been given."""
        self.forget()
        if self._upstream is not None:
            _name, negotiation = self._upstream
            self._upstream = None
            await negotiation.aclose()

    def forget(self) -> None:
        """Another option has come than the GO that an open link is kept for."""
        if self._kept is not None:
            self._kept.opened.close()
            self._kept = None

    # --- Who may have what

    def _client(self) -> Client:
        return Client(self._identity, datetime.now().astimezone(), self._listener)

    def _grant(self, name: str, *, without_tls: Rep = Rep.ERR_UNKNOWN) -> Grant:
        """Give what the rules say. `without_tls`: what a client hears that would have to come over TLS."""
        try:
            grant = self._service.access.find(self._client(), name)
        except NotGranted as refused:
            route = self._service.config.route(name)
            if route is None or refused.hidden:
                self._log_denial(name, refused)
                raise _unknown(name) from None
            self._check_tls(name, route, without_tls)
            self._log_denial(name, refused)
            text = f"access to export {shown(name)} is denied"
            raise Refusal(Rep.ERR_POLICY, text) from None
        self._check_tls(name, grant.route, without_tls)
        return grant

    def _check_tls(self, name: str, route: Route, without_tls: Rep) -> None:
        if route.tls_required and not self._core.secure:
            if self._has_tls and without_tls == Rep.ERR_TLS_REQD:
                raise Refusal(without_tls, f"export {shown(name)} wants TLS: send STARTTLS")
            raise _unknown(name)

    def _log_denial(self, name: str, refused: NotGranted) -> None:
        if self._service.config.route(name) is not None:
            who = self._identity.describe()
            self._log.info("access denied", export=shown(name), who=who, why=str(refused))

    def _policies(
        self,
        grant: Grant,
        asked: str,
        taken: Callable[[Sequence[Placed], Session], _Result],
    ) -> _Result:
        """Have the policies looked at (`peek`) or taken part in (`join`)."""
        try:
            return taken(grant.chain, Session(self._client(), grant.name))
        except Denied as denied:
            self._log.info("access denied", export=shown(grant.name), why=str(denied))
            if grant.route.hide:
                raise _unknown(asked) from None
            raise Refusal(Rep.ERR_POLICY, str(denied)) from None

    # --- Contexts

    async def _selected(self, asked: ContextsAsked, grant: Grant) -> tuple[MetaContext, ...]:
        route = grant.route
        queries = tuple(allowed_contexts(grant.chain, asked.queries, asked=True))
        terms = self._terms(asked.name, route, queries)
        theirs = [context.name for context in await self._selected_there(route, terms)]
        theirs = allowed_contexts(grant.chain, theirs, asked=False)
        if any(is_bitmap(name) for name in theirs):
            await self._check_bitmaps(grant, terms)
        self._queries = asked.name, queries
        if route.synthesise_allocation and BASE_ALLOCATION not in theirs:
            theirs += [BASE_ALLOCATION] if BASE_ALLOCATION in queries else []
        # Ids are ours, for the link that serves the session may not be this one.
        return tuple(MetaContext(i, name) for i, name in enumerate(theirs, start=1))

    async def _check_bitmaps(self, grant: Grant, terms: upstream_side.Terms) -> None:
        if await self._bitmaps_may_move(grant, terms):
            why = "this view is read-only, and the disk may be written meanwhile"
            if grant.route.stable_contexts_only:
                raise Refusal(Rep.ERR_POLICY, f"a dirty bitmap may change while it is read: {why}")
            self._log.warning("a dirty bitmap may change while it is read", why=why)

    async def _bitmaps_may_move(self, grant: Grant, terms: upstream_side.Terms) -> bool:
        if not grant.route.read_only and not grant.chain:
            return False
        export, _, _ = await self._ask(grant.route, lambda up: up.describe(terms))
        return bitmaps_may_move(grant.chain, grant.route, export)

    async def _selected_there(
        self, route: Route, terms: upstream_side.Terms
    ) -> tuple[MetaContext, ...]:
        try:
            return await self._ask(route, lambda up: up.contexts(terms))
        except Refusal as refusal:
            if route.synthesise_allocation and refusal.reply == Rep.ERR_UNSUP:
                return ()
            raise

    # --- Opening

    async def _open(self, grant: Grant, asked: str) -> Opened:
        """Have the policies take part, then the upstream; leave nothing behind if it fails."""
        membership = self._policies(grant, asked, join)
        link: Link | None = None
        try:
            terms = self._terms(asked, grant.route)
            link = await self._ask(grant.route, lambda up: up.go(terms))
            if self._service.draining:
                raise Refusal(Rep.ERR_SHUTDOWN, "the gateway is shutting down")
            chain = await self._prepared(membership.chain, grant.route, link)
            agreed = promised_terms(chain, grant.route, link.export)
            return Opened(grant, membership, link, agreed, self._offer(asked, agreed))
        except BaseException:
            if link is not None:
                link.socket.close()
            membership.leave()
            raise

    async def _prepared(self, chain: list[Placed], route: Route, link: Link) -> list[Placed]:
        if not prepares(chain):
            return chain

        async def prepare() -> list[Placed]:
            with trio.fail_after(PREPARE_SECONDS):
                return await prepared(chain, first_view(route, link.export), Reader(link))

        try:
            return await self._wait(prepare)
        except trio.TooSlowError:
            text = f"policies have not seen the disk within {PREPARE_SECONDS} s"
            raise Refusal(Rep.ERR_PLATFORM, text) from None
        except Denied as denied:
            raise Refusal(Rep.ERR_POLICY, str(denied)) from None
        except Failed as failed:
            raise Refusal(Rep.ERR_PLATFORM, str(failed)) from None

    def _offer(self, name: str, agreed: Terms) -> Offer:
        return promise(
            agreed,
            structured=self._core.structured,
            extended=self._core.extended,
            selected=self._core.selected_contexts(name),
        )

    # --- The upstream

    def _terms(
        self, name: str, route: Route, queries: tuple[str, ...] | None = None
    ) -> upstream_side.Terms:
        """Give the terms on which the upstream is asked: those of the client, under its name there."""
        if queries is None and self._queries is not None and self._queries[0] == name:
            queries = self._queries[1]
        return upstream_side.Terms(
            route.upstream_name, self._core.structured, self._core.extended, queries
        )

    async def _ask(
        self, route: Route, question: Callable[[Negotiation], Awaitable[_Result]]
    ) -> _Result:
        """Ask an export's upstream; a negotiation with another one ends."""
        if self._upstream is not None and self._upstream[0] != route.upstream:
            _name, negotiation = self._upstream
            self._upstream = None
            await negotiation.aclose()
        if self._upstream is None:
            server = self._service.servers[route.upstream]
            self._upstream = route.upstream, Negotiation(server)
        negotiation = self._upstream[1]
        return await self._wait(lambda: question(negotiation))

    async def _wait(self, wait: Callable[[], Awaitable[_Result]]) -> _Result:
        result: _Result = await self._patiently(wait)  # type: ignore[assignment] # what `wait` gives
        return result


def _unknown(name: str) -> Refusal:
    return Refusal(Rep.ERR_UNKNOWN, f"there is no export {shown(name)}")


def without_payload_flag(told: Told) -> Told:
    """Give what GO tells a client without contexts ("BLOCK_STATUS_PAYLOAD ... SHOULD NOT be set")."""
    flags = told.description.flags & ~Flag.BLOCK_STATUS_PAYLOAD
    return replace(told, description=replace(told.description, flags=flags))


def _told(name: str, route: Route, export: Export, agreed: Terms, promised: Offer) -> Told:
    """Give what INFO and GO tell. The upstream's canonical name means something to the client only if it
    asked for the export under the name that the upstream has for it.
    """
    canonical = export.name if route.upstream_name == name else name
    words = agreed.view.description
    description = Description(promised.size, promised.flags, promised.block_sizes, canonical, words)
    return Told(description, promised.alignment, route.unaligned == "refuse")

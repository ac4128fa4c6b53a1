"""What one client asks of exports: which of them it may have, what they are like, and in the end to open one.

Three have a say: the rules (`gateway.access`), which decide before anybody is asked anything; the upstream of
the export, which is dialled when the first question needs it; and the policies of the rule and the export,
which change what it said. The client is told the offer that comes of it.

An upstream that is being asked stays connected for the next question about it. Where a policy has to look at
the disk, INFO needs a link that is open already; it is kept for the GO that usually follows.

After STARTTLS there is another `Inquiry`: nothing of what was asked before counts.

Every question passes the rules, the upstream and the policies, in this order and with the same denials, so that
no question tells a client more than another. Those about meta contexts are in `contexts`.

This is longer than other modules: what all questions pass is beside them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from gateway import clock
from gateway.access.chain import Compiled, Membership, Placed, compile_chain, join, peek, prepares
from gateway.access.rules import Grant, NotGranted
from gateway.clients.presence import Patiently
from gateway.config import NoTicket, Route
from gateway.identity import Identity
from gateway.links.opening import OwnNegotiation, SharedNegotiation
from gateway.links.shared import AskedOtherwise
from gateway.links.uplink import Uplink
from gateway.policy import Client, Denied, Session
from gateway.protocol.errors import Hangup, Refusal
from gateway.protocol.export import Export, Offer
from gateway.protocol.server_role import (
    ContextsAsked,
    ExportAsked,
    ExportNameChosen,
    ServerNegotiation,
)
from gateway.sessions.led import led_grant
from gateway.sessions.opened import Location, Opened, limits_of
from gateway.sessions.promise import (
    Told,
    check_places,
    first_view,
    promise,
    refusal_of,
    refusal_there,
    refusal_to_join,
    told_of,
)
from gateway.sessions.reading import chain_over
from gateway.sessions.service import Service
from gateway.upstream import link as upstream_side
from gateway.upstream.errors import Rejected
from gateway.upstream.listing import listed_exports, listed_once
from gateway.upstream.server import Server
from gateway.wire.constants import Rep
from gateway.wire.handshake import ListedExport, shown

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_Result = TypeVar("_Result")


@dataclass
class _OpenForInfo:
    """An export that was opened to answer INFO, and the question that it answers."""

    asked: ExportAsked
    opened: Opened


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
        patiently: Patiently,
        log: FilteringBoundLogger,
        *,
        session_id: str,
        has_tls: bool,
    ) -> None:
        self._service = service
        self._core = core
        self._identity = identity
        self._listener = listener
        self._patiently = patiently
        self.log = log
        self._session_id = session_id
        self._has_tls = has_tls
        self._upstream: tuple[Location, OwnNegotiation | SharedNegotiation] | None = None
        self.selected: tuple[str, tuple[str, ...]] | None = None
        """The name and the queries of the last SET_META_CONTEXT."""
        self._kept: _OpenForInfo | None = None
        self.led: dict[str, Server] = {}
        """The export (our name) that was asked for last, if another gateway is its home, and so its upstream.
        Whoever connects finds it again, for it may move."""

    # --- The questions

    def asked_for(self, event: ContextsAsked | ExportAsked | ExportNameChosen) -> Grant:
        """Give what a client may have that it asks for: nobody else is asked for that."""
        if isinstance(event, ContextsAsked):
            if event.select:
                self.selected = None
            return self.grant(event.name)
        by_name = isinstance(event, ExportNameChosen)
        return self.may_open(event.name, Rep.ERR_UNKNOWN if by_name else Rep.ERR_TLS_REQD)

    def may_open(self, name: str, without_tls: Rep = Rep.ERR_UNKNOWN) -> Grant:
        """Give what a client has by a name, if it may open it now, as far as policies know by themselves."""
        grant = self.grant(name, without_tls=without_tls)
        self._policies(grant, name, peek)
        return grant

    async def listed(self) -> list[ListedExport]:
        """Give what LIST tells."""
        self.forget()
        service, secure = self._service, self._core.secure
        config, access, servers = service.config, service.access, service.servers  # of one reload
        in_use, ask = service.disks.shared, service.asks_for_list
        own = await self._own_list()
        if own is not None:
            ask = partial(listed_once, asks=own.list_exports)
        elif self._upstream is not None and self._upstream[0].server.slots.full:
            await self.aclose()  # for a list's own: nbdinfo 1.22 asks by INFO before LIST
        exports = await self._patiently(
            lambda: listed_exports(config, servers, secure=secure, in_use=in_use, ask_server=ask)
        )
        listed = access.listed(self._client(), exports)
        if own is not None and not listed.exports:
            await self.aclose()  # it may have nothing, so it shall not hold a place either
        if listed.denied and not listed.exports:
            # Else whoever finds an empty list, and asks why, is not to be found in the log.
            who, count = self._identity.describe(), len(listed.denied)
            why = listed.denied[0]
            self.log.warning("access denied", asked="LIST", exports=count, who=who, why=why)
        return listed.exports

    async def _own_list(self) -> OwnNegotiation | None:
        """Give what asks for a list over the connection that the client's next question needs, if it is known
        where that leads: to the only server there is, where clients have links of their own, and this process
        and gateway sees to it. Else LIST would take the only connection of a server that takes a single one.
        """
        service = self._service
        upstreams = {rule.upstream for rule in service.config.exports}
        elsewhere = service.asks_for_list is not None or service.homes is not None
        if len(upstreams) != 1 or elsewhere:
            return None
        server = service.servers[upstreams.pop()]
        if server.mode.wanted.shared or service.disks.shared(server):
            return None
        negotiation = await self._negotiation(Location(server, ""))
        return negotiation if isinstance(negotiation, OwnNegotiation) else None

    async def described(self, asked: ExportAsked) -> Told:
        """Give what INFO tells."""
        self.forget()  # before another link is asked for: there may be no slot for two
        grant = self.grant(asked.name, without_tls=Rep.ERR_TLS_REQD)
        if prepares(grant.chain):
            opened = await self._open(grant, asked.name)
            self._kept = _OpenForInfo(asked, opened)
            return self.told(asked.name, opened)
        chain = self._policies(grant, asked.name, peek)
        terms = self.terms(asked.name, grant)
        export, _dialect, _quirks = await self.ask(grant, asked.name, lambda up: up.describe(terms))
        agreed = self._agreed(chain, grant, asked.name, export)
        promised = self._offer(asked.name, agreed)
        check_places(self.location(grant).server, promised)
        return told_of(asked.name, grant.route, export, agreed, promised)

    async def opened(
        self, name: str, asked: ExportAsked | None = None, *, without_tls: Rep = Rep.ERR_UNKNOWN
    ) -> Opened:
        """Open an export. `asked` is the GO, if it is one."""
        service = self._service
        kept, self._kept = self._kept, None
        try:
            grant = await self._granted(name, without_tls)
            if kept is not None:
                there = kept.opened
                # A use of a ticket has to begin on the disk first, and much may come between.
                same = asked is not None and replace(kept.asked, go=True) == asked
                same = same and not grant.for_once
                known = there.access is service.access and there.grant.is_as(grant)
                known = known and there.location == self.location(grant) and there.stands
                if same and known and there.asked == self.terms(name, grant):
                    return there.counted(service.opening)
        except BaseException:
            if kept is not None:
                kept.opened.close()
            raise
        if kept is not None:
            kept.opened.close()
        while True:
            opened = await self._open(grant, name, by_name=asked is None)
            # What has come between: a pause, with or without a switch; a switch of another export that shared
            # its connections; or a reload, of which what it leaves as it was is not asked for anew.
            try:
                now = grant
                if grant.for_once:
                    await self._patiently(partial(self._begin_use, grant))
                if opened.access is not service.access or grant.route.ticket is not None:
                    now = self.grant(name, without_tls=without_tls)
                if (
                    now.is_as(grant)
                    and self.location(now) == opened.location
                    and opened.stands
                    and now.name not in service.paused
                ):
                    return opened.counted(service.opening)
            except BaseException:
                opened.close()
                raise
            opened.close()
            grant = await self._granted(name, without_tls)

    async def _begin_use(self, grant: Grant) -> None:
        """Have the disk know that a ticket is in use which is for one use. Raises `Refusal`."""
        tickets, ticket = self._service.tickets, grant.route.ticket
        assert tickets is not None
        assert ticket is not None
        try:
            await tickets.begin_use(grant.name, ticket)
        except NoTicket as error:
            text = "the ticket is for one use, and that it is used cannot be noted"
            self.log.error("ticket cannot be used", export=grant.name, why=str(error))
            raise Refusal(Rep.ERR_POLICY, text, why=str(error)) from None

    async def _granted(self, name: str, without_tls: Rep) -> Grant:
        """Give what the rules say of an export, once it is not paused any more (a pause has a bound of its
        own).
        """
        while True:
            grant = self.grant(name, without_tls=without_tls)
            paused = self._service.paused.get(grant.name)
            if paused is None:
                return grant
            await self._patiently(paused.wait)
            if self._service.draining:
                raise Refusal(Rep.ERR_SHUTDOWN, "the gateway is shutting down")
            if paused.elsewhere:
                raise Hangup(
                    "it is paused, and another process of the gateway has it: connect again"
                )

    def told(self, name: str, opened: Opened) -> Told:
        """Give what a client is told of the export that it has opened."""
        return told_of(name, opened.grant.route, opened.uplink.export, opened.agreed, opened.offer)

    async def aclose(self) -> None:
        """Close what was given to nobody."""
        self.forget()
        if self._upstream is not None:
            _location, negotiation = self._upstream
            self._upstream = None
            await negotiation.aclose()

    def forget(self) -> None:
        """Close an open link that is kept for a GO: another option has come."""
        if self._kept is not None:
            self._kept.opened.close()
            self._kept = None

    # --- Who may have what

    def _client(self) -> Client:
        return Client(self._identity, clock.here(), self._listener, id=self._session_id)

    def grant(self, name: str, *, without_tls: Rep = Rep.ERR_UNKNOWN) -> Grant:
        """Give what the rules say. `without_tls`: the answer to a client that would have to come over TLS."""
        config, secure = self._service.config, self._core.secure
        found: Grant | NotGranted
        try:
            found = self._service.access.find(self._client(), name)
        except NotGranted as refused:
            self._log_denial(refused)
            found = refused
        hint = without_tls if self._has_tls else None
        refusal = refusal_of(config, name, found, secure=secure, without_tls=hint)
        if refusal is not None:
            raise refusal
        assert isinstance(found, Grant)
        return led_grant(found) if found.name in self.led else found

    def _log_denial(self, refused: NotGranted) -> None:
        route = None if refused.name is None else self._service.config.route(refused.name)
        if refused.name is None or route is None:
            return
        # Who has to come back over TLS is not denied yet.
        if refused.hidden or self._core.secure or not route.tls_required:
            who = self._identity.describe()
            self.log.warning("access denied", export=refused.name, who=who, why=str(refused))

    def _policies(
        self,
        grant: Grant,
        asked: str,
        taken: Callable[[Sequence[Placed], Session], _Result],
    ) -> _Result:
        """Ask the policies, by `peek` or by `join`."""
        with self.denials(grant, asked):
            return taken(grant.chain, Session(self._client(), grant.name))

    def _agreed(
        self, chain: Sequence[Placed], grant: Grant, asked: str, export: Export
    ) -> Compiled:
        with self.denials(grant, asked):
            return compile_chain(chain, first_view(grant.route, export))

    @contextmanager
    def denials(self, grant: Grant, asked: str) -> Iterator[None]:
        """Tell the client what policies deny: as much as the export lets it know."""
        try:
            yield
        except Denied as denied:
            self.log.warning("access denied", export=grant.name, why=str(denied))
            raise refusal_to_join(grant.route, asked, denied) from None

    # --- Opening

    async def _open(self, grant: Grant, asked: str, *, by_name: bool = False) -> Opened:
        """Have the policies take part, then open the export at the upstream. If that fails, leave nothing
        behind. `by_name`: the client has said EXPORT_NAME.
        """
        access, location = self._service.access, self.location(grant)
        membership = await self._joined(grant, asked)
        uplink: Uplink | None = None
        try:
            terms = self.terms(asked, grant)
            uplink = await self.ask(grant, asked, lambda up: up.open(terms))
            if self._service.draining:
                raise Refusal(Rep.ERR_SHUTDOWN, "the gateway is shutting down")
            with self.denials(grant, asked):
                chain = await self._prepared(membership.chain, grant.route, uplink)
            agreed = self._agreed(chain, grant, asked, uplink.export)
            promised = self._offer(asked, agreed)
            # qemu's client of 2.6 to 2.8 takes one reply each time its socket is readable, and knows no GO.
            alone = by_name and self._core.secure and not promised.structured
            promised = replace(promised, one_reply_a_record=alone)
            check_places(location.server, promised)
            bookkeeper = self._service.bookkeeper
            limited = limits_of(membership.chain, membership.session, bookkeeper)
            return Opened(
                grant, access, location, terms, membership, uplink, agreed, promised, limited
            )
        except BaseException:
            if uplink is not None:
                uplink.close()
            membership.leave()
            raise

    async def _joined(self, grant: Grant, asked: str) -> Membership:
        """Have the policies take part, and count the client where that is done for all processes."""
        bookkeeper = self._service.bookkeeper
        if bookkeeper is None or not grant.chain:
            return self._policies(grant, asked, join)
        session = Session(self._client(), grant.name)
        with self.denials(grant, asked):
            reserved = await self._patiently(lambda: bookkeeper.reserve(grant.chain, session))
            return join(grant.chain, session, reserved)

    async def _prepared(self, chain: list[Placed], route: Route, uplink: Uplink) -> list[Placed]:
        if not prepares(chain):
            return chain
        return await self._patiently(lambda: chain_over(chain, route, uplink))

    def _offer(self, name: str, agreed: Compiled) -> Offer:
        return promise(
            agreed,
            structured=self._core.structured,
            extended=self._core.extended,
            selected=self._core.selected_contexts(name),
        )

    # --- The upstream

    def terms(
        self, name: str, grant: Grant, queries: tuple[str, ...] | None = None
    ) -> upstream_side.Terms:
        """Give the terms on which the upstream is asked: those of the client, under its name there."""
        if queries is None and self.selected is not None and self.selected[0] == name:
            queries = self.selected[1]
        there = self.location(grant).name
        return upstream_side.Terms(there, self._core.structured, self._core.extended, queries)

    def must_be_there(self, grant: Grant) -> bool:
        """Say whether the upstream has to have a name before anything is said of it."""
        return self._service.access.must_be_there(grant)

    async def ask(
        self,
        grant: Grant,
        asked: str,
        question: Callable[[OwnNegotiation | SharedNegotiation], Awaitable[_Result]],
    ) -> _Result:
        """Ask the upstream of an export, for which the client has `asked` by that name. A negotiation with
        another upstream ends. A home that serves the disk no more is asked for once more, anew.
        """
        may_have_moved = grant.name in self.led
        while True:
            negotiation = await self._negotiation(self.location(grant))
            try:
                return await self._patiently(partial(question, negotiation))
            except Refusal as refused:
                said_by_home = isinstance(refused, Rejected) and refused.reply == Rep.ERR_SHUTDOWN
                if not (may_have_moved and said_by_home):
                    raise refusal_there(asked, refused) from None
                may_have_moved = False
                await self.aclose()  # whoever connects asks where the home is
            except AskedOtherwise:
                continue

    async def _negotiation(self, location: Location) -> OwnNegotiation | SharedNegotiation:
        """Give the negotiation that goes on, or another one where that is with another server, or asks in
        another way than the clients of this disk do now.
        """
        if self._upstream is not None:
            before, negotiation = self._upstream
            same_way = negotiation.shared is self._service.shares(location)
            if same_way and before.leads_where(location):
                return negotiation
            self._upstream = None
            await negotiation.aclose()
        listed = self._core.names_told > 0
        negotiation = self._service.negotiation(location, listed=listed)
        self._upstream = location, negotiation
        return negotiation

    def location(self, grant: Grant) -> Location:
        """Give where an export is. Raises `Refusal`: a reload took it away since the rules were asked."""
        if grant.name in self.led:
            return Location(self.led[grant.name], grant.name)
        location = self._service.location(grant.name, grant.route)
        if location is None:
            text = f"upstream {shown(grant.route.upstream)} is not in the configuration any more"
            raise Refusal(Rep.ERR_SHUTDOWN, text)
        return location

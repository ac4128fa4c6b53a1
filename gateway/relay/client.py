"""One client's life, from its first byte to its last.

The client negotiates with us; what it asks about an export is asked of that export's upstream (see
`gateway.upstream.negotiation`); what it is told is the offer. When it has opened an export, its socket and the
link's go to the hub, and this task sleeps until the session has ended.

STRUCTURED_REPLY and EXTENDED_HEADERS have to be answered before we know which export the client means. They are
always granted; for an upstream that lacks them its replies are framed anew (see `gateway.relay.scan`).

Time: the whole negotiation has `handshake_seconds`, and a second more for each name that LIST told, without
what is spent waiting for an upstream, which has limits of its own. Else a client that says nothing would keep a
place, and an upstream connection, for ever.

TLS: after STARTTLS everything begins anew, over the same connection: another stream, another negotiation, and
nothing of what the client had asked before. What an export that requires TLS is called, and what it has, is not
told in the clear ("TLS support", SELECTIVETLS).

A load balancer that we trust speaks first, and says for whom (see `gateway.net.proxy`).

An oldstyle listener does not negotiate: its client gets the export that the configuration names, and says
nothing before its first command. So it is given no time to say it in, either.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import trio

from gateway.config import Listen, Route
from gateway.identity import Identity
from gateway.net.drive import Conversation, PeerClosed, Stream, close_stream
from gateway.net.options import peer_of, tune
from gateway.net.proxy import introduced
from gateway.protocol.errors import Hangup, Refusal
from gateway.protocol.export import Export, Offer
from gateway.protocol.server import (
    Aborted,
    ContextsAsked,
    Description,
    Event,
    ExportAsked,
    ExportNameChosen,
    ListAsked,
    ServerDialect,
    ServerNegotiation,
    Tls,
    TlsAsked,
    option_of,
)
from gateway.relay.listing import listed_exports
from gateway.relay.promise import bitmaps_may_move, is_bitmap, promise
from gateway.relay.service import Service
from gateway.relay.transmit import Opened, transmit
from gateway.upstream.negotiation import Negotiation, Terms
from gateway.wire.constants import BASE_ALLOCATION, HandshakeFlag, Info, Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.errors import WireError
from gateway.wire.handshake import MetaContext, encode_oldstyle_greeting, printable, shown
from gateway.wire.limits import SECONDS_PER_LISTED_NAME

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from gateway.tls.credentials import Session as TlsSession  # costs nothing where there is no TLS

ChooseSession = Callable[[bytes], "TlsSession | None"]
"""Gives a client's TLS session by what it has sent so far; None if more is needed to know which."""

_Result = TypeVar("_Result")


async def serve_client(
    service: Service,
    listen: Listen,
    stream: trio.SocketStream,
    tls: ChooseSession | None = None,
) -> None:
    """Serve one client until it has gone. Never raises for anything that a peer does.

    `tls` is there if the listener has TLS.
    """
    with suppress(OSError):  # it may have gone already
        tune(
            stream.socket,  # type: ignore[arg-type] # a Trio socket has what is needed of a plain one
            keepalive_seconds=listen.keepalive_seconds,
            user_timeout_seconds=listen.user_timeout_seconds,
        )
    began = trio.current_time()
    peer = peer_of(stream.socket)
    log = service.log.bind(client=peer.peer)
    who = await _introduced(stream, peer, listen, log)
    if who is None:
        return
    if who is not peer:
        log = log.bind(client=who.peer, via=peer.peer)
    client = _Client(service, listen, stream, tls, who, log)
    try:
        if listen.style == "oldstyle":
            opened: Opened | None = await client.greet_oldstyle(listen.export)
        else:
            opened = await client.negotiate(began)
    except PeerClosed as closed:
        log.debug("client left during negotiation", why=str(closed))
    except (Hangup, WireError) as error:
        log.info("client hung up on", why=str(error))
    except trio.TooSlowError:
        text = f"the negotiation took longer than {client.seconds:g} s"
        log.info("client hung up on", why=text)
    else:
        if opened is not None:
            await client.transmit(opened)
    finally:
        await client.aclose()


async def _introduced(
    stream: trio.SocketStream, peer: Identity, listen: Listen, log: FilteringBoundLogger
) -> Identity | None:
    """Give who the client is, or None: it has been hung up on."""
    try:
        return await introduced(stream, peer, listen)
    except PeerClosed as closed:
        log.debug("client left during negotiation", why=str(closed))
    except (Hangup, WireError) as error:
        log.info("client hung up on", why=str(error))
    await close_stream(stream)
    return None


class _Client:
    """One client; the order of its methods is the order of its life."""

    def __init__(
        self,
        service: Service,
        listen: Listen,
        stream: trio.SocketStream,
        tls: ChooseSession | None,
        who: Identity,
        log: FilteringBoundLogger,
    ) -> None:
        self._service = service
        self.seconds = listen.handshake_seconds
        """What the whole negotiation may take."""
        self._oldstyle = listen.style == "oldstyle"
        self._stream: Stream = stream
        self._tls = tls
        self.identity = who
        """Who the client is; more of it is known after TLS."""
        self._log = log
        self._core = ServerNegotiation(_dialect(listen))
        self._core.shutting_down = service.draining
        self._talk: Conversation[Event] = Conversation(stream, self._core)
        self._upstream: tuple[str, Negotiation] | None = None
        self._queries: tuple[str, tuple[str, ...]] | None = None  # of the last SET_META_CONTEXT
        self._told: ExportAsked | None = None  # the INFO that was answered just before
        self._clock = trio.CancelScope()

    # --- Negotiation

    async def greet_oldstyle(self, name: str) -> Opened:
        """Open an export and greet the client with it ("Oldstyle negotiation").

        Raises `PeerClosed`, and `Hangup` if there is nothing to greet with: the style has no word for it.
        """
        try:
            if self._service.draining:
                raise Refusal(Rep.ERR_SHUTDOWN, "the gateway is shutting down")
            route = self._route(name)
            opened = await self._open(name, route, self._terms(name, route))
        except Refusal as refusal:
            raise Hangup(f"export {shown(name)} cannot be opened: {refusal}") from None
        try:
            greeting = encode_oldstyle_greeting(opened.offer.size, opened.offer.flags)
            await self._stream.send_all(greeting)
        except BaseException as error:
            opened.link.socket.close()
            if isinstance(error, trio.BrokenResourceError):
                raise PeerClosed(f"the connection broke: {error.__cause__ or error}") from None
            raise
        return opened

    async def negotiate(self, began: float) -> Opened | None:
        """Answer the client's options until it has opened an export (or, None, has left). It connected at
        `began`.

        Raises `PeerClosed`, `Hangup`, `WireError`, and `trio.TooSlowError` after the client's time.
        """
        self._service.negotiations.add(self._core)
        try:
            with self._clock:
                self._clock.deadline = began + self.seconds
                return await self._answer_options()
        finally:
            self._service.negotiations.discard(self._core)
        raise trio.TooSlowError

    async def _answer_options(self) -> Opened | None:
        while True:
            event = await self._talk.next_event()
            opened = None
            try:
                match event:
                    case Aborted():
                        return None
                    case ListAsked():
                        await self._answer_list()
                    case ContextsAsked():
                        await self._answer_contexts(event)
                    case ExportAsked():
                        opened = await self._answer_export(event)
                    case ExportNameChosen():
                        opened = await self._answer_export_name(event)
                    case TlsAsked():
                        await self._start_tls()
                self._told = event if isinstance(event, ExportAsked) else None
            except Refusal as refusal:
                self._told = None
                self._log.info("client refused", asked=_asked(event), why=str(refusal))
                self._core.refuse(refusal)  # EXPORT_NAME: Hangup
            try:
                await self._talk.flush()
            except BaseException:
                if opened is not None:
                    opened.link.socket.close()
                raise
            if opened is not None:
                return opened

    async def _start_tls(self) -> None:
        """Go over to TLS. Raises `Hangup`: there is no way back to the clear."""
        from gateway.net.secure import TlsError, TlsStream
        from gateway.tls.errors import NotAdmitted
        from gateway.tls.identity import identity_of

        assert self._tls is not None
        assert isinstance(self._stream, trio.SocketStream)
        secured = self._core.answer_starttls()
        await self._talk.flush()
        await self._leave_upstream()
        self._queries = None
        try:
            stream, admitted = await TlsStream.accept(self._stream, self._tls)
            self._stream = stream
            self.identity = identity_of(
                admitted.certificate,
                admitted.psk_user,
                base=self.identity,
                tls_version=stream.version,
                cipher=stream.cipher,
            )
        except (TlsError, NotAdmitted) as error:
            raise Hangup(f"TLS: {error}") from None
        negotiations = self._service.negotiations
        negotiations.discard(self._core)
        negotiations.add(secured)
        secured.shutting_down = self._service.draining
        self._core = secured
        self._talk = Conversation(stream, secured)

    async def _answer_list(self) -> None:
        service, secure = self._service, self._core.secure
        exports = await self._patiently(
            lambda: listed_exports(service.config, service.servers, secure=secure)
        )
        names_told = self._core.names_told
        self._core.answer_list(exports)
        more = SECONDS_PER_LISTED_NAME * (self._core.names_told - names_told)
        self.seconds += more
        self._clock.deadline += more

    async def _answer_contexts(self, asked: ContextsAsked) -> None:
        route = self._route(asked.name)
        if asked.select:
            self._queries = None
        terms = self._terms(asked.name, route, asked.queries if asked.select else None)
        if asked.select:
            theirs = await self._selected_there(route, terms)
            if any(is_bitmap(context.name) for context in theirs):
                await self._check_bitmaps(route, terms)
            self._queries = asked.name, asked.queries
            # Ids are ours, for the link that serves the session may not be this one.
            names = [context.name for context in theirs]
            if route.synthesise_allocation and BASE_ALLOCATION not in names:
                names += [BASE_ALLOCATION] if BASE_ALLOCATION in asked.queries else []
            contexts = tuple(MetaContext(i, name) for i, name in enumerate(names, start=1))
        else:
            contexts = await self._ask(
                route, lambda upstream: upstream.list_contexts(terms, asked.queries)
            )
            if route.stable_contexts_only and await self._bitmaps_may_move(route, terms):
                contexts = tuple(context for context in contexts if not is_bitmap(context.name))
        self._core.answer_contexts(contexts)

    async def _check_bitmaps(self, route: Route, terms: Terms) -> None:
        if await self._bitmaps_may_move(route, terms):
            why = "this view is read-only, and the disk may be written meanwhile"
            if route.stable_contexts_only:
                raise Refusal(Rep.ERR_POLICY, f"a dirty bitmap may change while it is read: {why}")
            self._log.warning("a dirty bitmap may change while it is read", why=why)

    async def _bitmaps_may_move(self, route: Route, terms: Terms) -> bool:
        if not route.read_only:
            return False
        export, _, _ = await self._ask(route, lambda upstream: upstream.describe(terms))
        return bitmaps_may_move(route, export)

    async def _selected_there(self, route: Route, terms: Terms) -> tuple[MetaContext, ...]:
        try:
            return await self._ask(route, lambda upstream: upstream.contexts(terms))
        except Refusal as refusal:
            if route.synthesise_allocation and refusal.reply == Rep.ERR_UNSUP:
                return ()
            raise

    async def _answer_export(self, asked: ExportAsked) -> Opened | None:
        route = self._route(asked.name, without_tls=Rep.ERR_TLS_REQD)
        terms = self._terms(asked.name, route)
        if asked.go:
            opened = await self._open(asked.name, route, terms)
            export, promised = opened.link.export, opened.offer
        else:
            opened = None
            export, _dialect, _quirks = await self._ask(
                route, lambda upstream: upstream.describe(terms)
            )
            promised = self._offer(asked.name, route, export)
        if asked.go and not promised.contexts and not self._repeats(asked):
            promised = replace(promised, flags=promised.flags & ~Flag.BLOCK_STATUS_PAYLOAD)
        description = _description(promised, asked.name, route, export)
        asks_for_sizes = Info.BLOCK_SIZE in asked.wanted
        if route.unaligned == "refuse" and promised.alignment > 1 and not asks_for_sizes:
            if opened is not None:
                opened.link.socket.close()
            text = f"the server has blocks of {promised.alignment} bytes"
            self._core.refuse(Refusal(Rep.ERR_BLOCK_SIZE_REQD, text), description)
            return None
        self._core.answer_export(description)
        return opened

    def _repeats(self, go: ExportAsked) -> bool:
        """Say whether a GO comes right behind an INFO with the same parameters: it MUST be told the same."""
        told = self._told
        return told is not None and (told.name, told.wanted) == (go.name, go.wanted)

    async def _answer_export_name(self, chosen: ExportNameChosen) -> Opened:
        route = self._route(chosen.name)
        opened = await self._open(chosen.name, route, self._terms(chosen.name, route))
        if route.unaligned == "refuse" and opened.offer.alignment > 1:
            opened.link.socket.close()
            raise Hangup("EXPORT_NAME, which cannot tell block sizes, where they have to be known")
        self._core.answer_export_name(
            _description(opened.offer, chosen.name, route, opened.link.export)
        )
        return opened

    async def _open(self, name: str, route: Route, terms: Terms) -> Opened:
        link = await self._ask(route, lambda upstream: upstream.go(terms))
        if self._service.draining:
            link.socket.close()
            raise Refusal(Rep.ERR_SHUTDOWN, "the gateway is shutting down")
        return Opened(name, route, link, self._offer(name, route, link.export))

    def _offer(self, name: str, route: Route, export: Export) -> Offer:
        return promise(
            route,
            export,
            structured=self._core.structured,
            extended=self._core.extended,
            selected=self._core.selected_contexts(name),
        )

    def _route(self, name: str, *, without_tls: Rep = Rep.ERR_UNKNOWN) -> Route:
        """Give where a name leads. `without_tls`: what a client hears that would have to come over TLS."""
        route = self._service.config.route(name)
        if route is not None and route.tls_required and not self._core.secure:
            if self._tls is not None and without_tls == Rep.ERR_TLS_REQD:
                raise Refusal(without_tls, f"export {shown(name)} wants TLS: send STARTTLS")
            route = None
        if route is None:
            raise Refusal(Rep.ERR_UNKNOWN, f"there is no export {shown(name)}")
        return route

    def _terms(self, name: str, route: Route, queries: tuple[str, ...] | None = None) -> Terms:
        """Give the terms on which the upstream is asked: those of the client, under its name there."""
        if queries is None and self._queries is not None and self._queries[0] == name:
            queries = self._queries[1]
        return Terms(route.upstream_name, self._core.structured, self._core.extended, queries)

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
        return await self._patiently(lambda: question(negotiation))

    async def _patiently(self, wait: Callable[[], Awaitable[_Result]]) -> _Result:
        """Wait for an upstream: meanwhile the client's clock stands still, and a client that leaves ends the
        wait (`PeerClosed`), so that it keeps neither its place nor an upstream connection.
        """
        left = self._clock.deadline - trio.current_time()
        self._clock.deadline = float("inf")
        result: list[_Result] = []
        failed: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_when_gone, nursery.cancel_scope)
                try:
                    result.append(await wait())
                except Exception as error:  # as itself, not in the nursery's group
                    failed = error
                nursery.cancel_scope.cancel()
        finally:
            self._clock.deadline = trio.current_time() + left
        if failed is not None:
            raise failed
        if not result:
            raise PeerClosed("the client left while the upstream was asked")
        return result[0]

    async def _cancel_when_gone(self, waiting: trio.CancelScope) -> None:
        client = self._stream.socket
        await trio.lowlevel.wait_readable(client)
        with suppress(OSError):
            if await client.recv(1, socket.MSG_PEEK):
                return  # it talks on; that has to wait
        waiting.cancel()

    # --- The end

    async def transmit(self, opened: Opened) -> None:
        """Hand the client over to the transmission phase, until that has ended."""
        try:
            await self._leave_upstream()
        except BaseException:
            opened.link.socket.close()
            raise
        received = b"" if self._oldstyle else self._core.trailing_data
        log = self._log.bind(export=printable(opened.name))
        await transmit(self._service, opened, self._stream, received, log, self.identity)

    async def _leave_upstream(self) -> None:
        if self._upstream is not None:
            _name, negotiation = self._upstream
            self._upstream = None
            await negotiation.aclose()

    async def aclose(self) -> None:
        """Close what is open still."""
        with trio.CancelScope(shield=True):  # it takes a second at most
            await self._leave_upstream()
        await close_stream(self._stream)


def _dialect(listen: Listen) -> ServerDialect:
    """Give what a listener's greeting offers; all else is the same for every client."""
    flags = HandshakeFlag(0)
    for name in listen.handshake_flags:
        flags |= HandshakeFlag[name]
    return ServerDialect(handshake_flags=int(flags), tls=Tls(listen.tls_mode))


def _asked(event: Event) -> str:
    """Say what a client asked, and of which export."""
    words = option_of(event).name
    name: str | None = getattr(event, "name", None)
    return words if name is None else f"{words} {shown(name)}"


def _description(promised: Offer, name: str, route: Route, export: Export) -> Description:
    """Give what INFO and GO tell. The upstream's canonical name means something to the client only if it
    asked for the export under the name that the upstream has for it.
    """
    canonical = export.name if route.upstream_name == name else name
    told = export.description if route.description is None else route.description
    return Description(promised.size, promised.flags, promised.block_sizes, canonical, told)

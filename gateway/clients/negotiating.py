"""A client that negotiates: from its first option until it has opened an export, or has left.

What it asks about an export is asked of that export's upstream (see `gateway.upstream.negotiation`); what it is
told is the offer. When it has opened an export, its socket and the link's go to the hub, and this task sleeps
until the session has ended.

STRUCTURED_REPLY and EXTENDED_HEADERS have to be answered before we know which export the client means. They are
always granted; for an upstream that lacks them its replies are framed anew (see `gateway.scan`).

Time: the whole negotiation has `handshake_seconds`, and a second more for each name that LIST told. The time
that is spent waiting for an upstream does not count, for that has limits of its own. Without a limit a client
that says nothing would keep a place, and an upstream connection, for ever.

TLS: after STARTTLS everything begins anew, over the same connection: another stream, another negotiation, and
nothing of what the client had asked before. In the clear nobody is told the name of an export that requires
TLS, nor what it has ("TLS support", SELECTIVETLS).

Where another process of the gateway serves the disk that it asks for, it is handed over to that (`homing`), or
has come from there. Where another gateway of a fleet is the home of the disk, it stays, and that one is asked
in place of the server.

An oldstyle listener does not negotiate: its client gets the export that the configuration names, and says
nothing before its first command. So it is given no time to say it in, either.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from gateway.clients.contexts import contexts_told
from gateway.clients.inquiry import Inquiry
from gateway.clients.presence import Presence
from gateway.config import Listen
from gateway.identity import Identity
from gateway.net.drive import Conversation, PeerClosed, Stream, close_stream, has_left
from gateway.protocol.errors import Hangup, Refusal
from gateway.protocol.server_role import (
    Aborted,
    ContextsAsked,
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
from gateway.sessions.opened import Opened
from gateway.sessions.promise import Told, without_payload_flag
from gateway.sessions.service import Service
from gateway.sessions.transmit import transmit
from gateway.upstream.allowance import Allowance
from gateway.upstream.errors import NotSecured, TlsRequired
from gateway.wire.constants import HandshakeFlag, Info, Rep
from gateway.wire.handshake import encode_oldstyle_greeting, shown
from gateway.wire.limits import SECONDS_PER_LISTED_NAME

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from gateway.clients.homing import GoneHome
    from gateway.handover.given import Given
    from gateway.tls.session import TlsSession  # costs nothing where there is no TLS


class TlsFailed(Hangup):
    """TLS has failed, the client's or ours with the upstream. A person has to look at that."""


TLS_AT_FAULT = NotSecured, TlsRequired
"""The refusals that say that TLS with the upstream has failed."""


class NegotiatingClient:
    """One client; the order of its methods is the order of its life."""

    def __init__(
        self,
        service: Service,
        listen: Listen,
        listener: str,
        stream: trio.SocketStream,
        tls: Callable[[bytes], TlsSession | None] | None,
        who: Identity,
        session_id: str,
        log: FilteringBoundLogger,
        given: Given | None = None,
    ) -> None:
        self._service = service
        self.handshakes = service.counts.handshakes
        self.listen = listen
        self.listener = listener
        """The URI by which it came."""
        self._session_id = session_id
        self.home: GoneHome | None = None
        """Its home is another process, which has it now."""
        self.asked = False
        """It has asked about an export. Somebody who only looks whether the port is open has not."""
        self._has_listed = False
        self._oldstyle = listen.style == "oldstyle"
        self.stream: Stream = stream
        self._tls = tls
        self.identity = who
        """Who the client is; more of it is known after TLS."""
        self.log = log
        self._core = _core_of(listen, given)
        self._led = given is not None and given.negotiation is None and not self._oldstyle
        """Another gateway has led it here, and ends it in time."""
        self._way = "" if given is None else given.way
        self._core.shutting_down = service.draining
        self._talk: Conversation[Event] = Conversation(stream, self._core)
        self._told: ExportAsked | None = None  # the INFO that was answered just before
        self.time = Allowance(listen.handshake_seconds)
        """How long the whole negotiation may take."""
        self._presence = Presence(service.hub, stream.socket, lambda: has_left(self.stream))
        self._inquiry = self._new_inquiry()

    def _new_inquiry(self) -> Inquiry:
        return Inquiry(
            self._service,
            self._core,
            self.identity,
            self.listener,
            self._presence.patiently,
            self.log,
            session_id=self._session_id,
            has_tls=self._tls is not None,
        )

    # --- Negotiation

    async def greet_oldstyle(self, name: str) -> Opened | None:
        """Open an export and greet the client with it ("Oldstyle negotiation"). None: another process does.

        Raises `PeerClosed`, and `Hangup` if there is nothing to greet with: the style has no word for it.
        """
        try:
            if self._service.draining:
                raise Refusal(Rep.ERR_SHUTDOWN, "the gateway is shutting down")
            service = self._service
            goes = service.homes is not None or service.gateways is not None
            if goes and await self._goes_home(name):
                return None
            self._core.asked_for = name
            self._service.negotiations.add(self._core)
            with self._presence.needed():
                opened = await self._inquiry.opened(name)
        except Refusal as refusal:
            hangup = TlsFailed if isinstance(refusal, TLS_AT_FAULT) else Hangup
            raise hangup(f"export {shown(name)} cannot be opened: {refusal}") from None
        finally:
            self._service.negotiations.discard(self._core)
        try:
            greeting = encode_oldstyle_greeting(opened.offer.size, opened.offer.flags)
            await self.stream.send_all(greeting)
        except BaseException as error:
            opened.close()
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
        self.time.take(trio.current_time() - began)
        opened = None
        try:
            with self._presence.needed():
                opened = await self._answer_options()
                return opened
        finally:
            self._service.negotiations.discard(self._core)
            refused = self._core.refused_in_the_clear
            if refused is not None and opened is None and self.home is None:
                asked, why = refused  # one line, not one for each option
                self.log.info("client refused", asked=asked, why=why)

    async def _answer_options(self) -> Opened | None:
        while True:
            event = await self._talk.next_event(self.time.spend)
            self.asked = self.asked or not isinstance(event, (Aborted, TlsAsked))
            opened = None
            if not isinstance(event, ExportAsked):
                self._inquiry.forget()
            try:
                service = self._service
                goes = service.homes is not None or service.gateways is not None
                if goes and await self._goes_home(event):
                    return None
                match event:
                    case Aborted():
                        return None
                    case ListAsked():
                        await self._answer_list()
                    case ContextsAsked():
                        self._core.answer_contexts(await contexts_told(self._inquiry, event))
                    case ExportAsked():
                        opened = await self._answer_export(event)
                    case ExportNameChosen():
                        opened = await self._answer_export_name(event)
                    case TlsAsked():
                        await self._start_tls()
                self._told = event if isinstance(event, ExportAsked) else None
            except Refusal as refusal:
                self._told = None
                say = self.log.warning if isinstance(refusal, TLS_AT_FAULT) else self.log.info
                say("client refused", asked=_asked(event), why=str(refusal))
                self._core.refuse(refusal)  # EXPORT_NAME: Hangup
            if opened is None:
                continue  # what is answered goes out before the next is waited for
            try:
                with self.time.spend():
                    await self._talk.flush()
            except BaseException:
                opened.close()
                raise
            return opened

    async def _goes_home(self, asked: Event | str) -> bool:
        """Hand the client over if its home is another process; say whether it was. One whose home is another
        gateway stays, and is led there, if it was not led here. An oldstyle client asks for an export by its
        name alone. Raises `Refusal`.
        """
        from gateway.clients.homing import find_home, gone_home

        service = self._service
        who: dict[str, Any] = {
            "session_id": self._session_id,
            "listen": self.listen,
            "identity": self.identity,
        }
        if service.homes is not None:
            asks = (service.homes, asked, self._inquiry, self._core, self.stream)
            seconds = max(0.0, self.listen.handshake_seconds - self.time.left)
            self.home = await gone_home(*asks, seconds=seconds, **who)
        else:
            assert service.gateways is not None
            who["led"] = self._led
            found = partial(find_home, service.gateways, asked, self._inquiry, **who)
            await self._presence.patiently(found)
        return self.home is not None

    async def _start_tls(self) -> None:
        """Go over to TLS. Raises `Hangup`: there is no way back to the clear."""
        from gateway.net.secure import TlsError, TlsStream
        from gateway.tls.errors import NotAdmitted
        from gateway.tls.identity import identity_of

        assert self._tls is not None
        assert isinstance(self.stream, trio.SocketStream)
        secured = self._core.answer_starttls()
        try:
            with self.time.spend():
                await self._talk.flush()
                await self._inquiry.aclose()
                stream, admitted = await TlsStream.accept(self.stream, self._tls)
            self.stream = stream
            self.identity = identity_of(
                admitted.certificate,
                admitted.psk_user,
                base=self.identity,
                tls_version=stream.version,
                cipher=stream.cipher,
            )
        except (TlsError, NotAdmitted) as error:
            raise TlsFailed(f"TLS: {error}") from None
        self._service.counts.tls[self.listener, stream.version or "unknown"] += 1
        negotiations = self._service.negotiations
        negotiations.discard(self._core)
        negotiations.add(secured)
        secured.shutting_down = self._service.draining
        self._core = secured
        self._talk = Conversation(stream, secured)
        self._inquiry = self._new_inquiry()

    async def _answer_list(self) -> None:
        exports = await self._inquiry.listed()
        if not self._has_listed:  # who asks again and again is one line all the same
            self._has_listed = True
            self.log.info("exports listed", exports=len(exports), who=self.identity.describe())
        names_told = self._core.names_told
        self._core.answer_list(exports)
        self.time.give(SECONDS_PER_LISTED_NAME * (self._core.names_told - names_told))

    async def _answer_export(self, asked: ExportAsked) -> Opened | None:
        if not asked.go:
            told = await self._inquiry.described(asked)
            self._answer(asked, told)
            return None
        opened = await self._inquiry.opened(asked.name, asked, without_tls=Rep.ERR_TLS_REQD)
        told = self._inquiry.told(asked.name, opened)
        if not opened.offer.contexts and not self._repeats(asked):
            told = without_payload_flag(told)
        if self._answer(asked, told):
            return opened
        opened.close()
        return None

    def _answer(self, asked: ExportAsked, told: Told) -> bool:
        """Answer INFO or GO; say whether that was what it asked for."""
        if told.asks_for_sizes and told.alignment > 1 and Info.BLOCK_SIZE not in asked.wanted:
            text = f"the server has blocks of {told.alignment} bytes"
            self._core.refuse(Refusal(Rep.ERR_BLOCK_SIZE_REQD, text), told.description)
            return False
        self._core.answer_export(told.description)
        return True

    def _repeats(self, go: ExportAsked) -> bool:
        """Say whether a GO comes right after an INFO with the same parameters: it MUST be told the same."""
        told = self._told
        return told is not None and (told.name, told.wanted) == (go.name, go.wanted)

    async def _answer_export_name(self, chosen: ExportNameChosen) -> Opened:
        opened = await self._inquiry.opened(chosen.name)
        told = self._inquiry.told(chosen.name, opened)
        if told.asks_for_sizes and told.alignment > 1:
            opened.close()
            raise Hangup("EXPORT_NAME, which cannot tell block sizes, where they have to be known")
        self._core.answer_export_name(told.description)
        return opened

    # --- The end

    async def transmit(self, opened: Opened) -> None:
        """Hand the client over to the transmission phase, until that has ended."""
        try:
            await self._inquiry.aclose()
        except BaseException:
            opened.close()
            raise
        if self._service.homes is not None:  # from now on its session says that the disk is used
            self._service.homes.stays(self._session_id, None)
        received = b"" if self._oldstyle else self._core.trailing_data
        log = self.log.bind(export=opened.grant.name)
        asked = await transmit(
            *(self._service, opened, self.stream, received, log, self.identity),
            lifetime_seconds=0 if self._led else self.listen.lifetime_seconds,
            way=self._way,
        )
        self.asked = self.asked or asked

    async def aclose(self) -> None:
        """Close what is open still."""
        if self._service.homes is not None:
            self._service.homes.stays(self._session_id, None)
        with trio.CancelScope(shield=True):  # it takes a second at most
            await self._inquiry.aclose()
        await close_stream(self.stream)


def _core_of(listen: Listen, given: Given | None) -> ServerNegotiation:
    """Give the negotiation of a client, which goes on where another process has `given` it."""
    if given is None:
        return ServerNegotiation(_dialect(listen))
    if given.negotiation is not None:
        return ServerNegotiation.resumed(_dialect(listen), given.negotiation)
    core = ServerNegotiation()  # with another gateway, which may have had TLS with the client
    core.secure = given.identity.tls
    return core


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

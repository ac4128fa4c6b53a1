"""One negotiation with an upstream, held in its option phase while it mirrors what a client asks.

The client's questions about an export (LIST_META_CONTEXT, SET_META_CONTEXT, INFO, GO) are asked of the upstream
on the same terms, so that both sides agree on framing and contexts. Nothing is dialled before the first of
them. The connection is used for one export and one selection of contexts; a client that changes its mind gets
another one, because servers have been wrong about the second (Q-K7).

Old servers: an answer that is garbage, or a closed connection, where an option was sent means that the server
does not know the option and lost its way (Q-N8, Q-S23). Then the same is tried one rung down the ladder, on a
new connection, and the rung is remembered; each session's log line shows it. Where INFO cannot be had, or says
size 0 (Q-N21), or the server is not fixed newstyle, the export is opened at once, and that link kept for the
client's GO: only what was opened is known.

Before GO, an INFO without a request for block sizes is asked. Its answer tells a qemu 2.10 to 3.1, and is what
decides whether bit 8 is to be believed (see quirks/qemu_multi_conn_bit.py); it is asked on every link, for the
server behind an address changes.

Who says so gets a connection that was made ahead (`gateway.upstream.warm`), if there is one. Nothing was asked
on it yet, so it is good for any client; and whatever a client asks before it has its link may be asked again,
so one that turns out to be dead costs nothing but the dial that it was to save.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import trio

from gateway.net.drive import Conversation, PeerClosed, close_stream, hang_up, take_socket
from gateway.net.options import RelaySocket
from gateway.peer import UNKNOWN, Peer
from gateway.protocol.client import (
    Answered,
    ClientNegotiation,
    Event,
    Greeted,
    Refused,
    Style,
)
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export, sane_block_sizes, usable_size
from gateway.quirks import Dialect, Evidence, Quirk, dialect_of
from gateway.upstream.server import Place, Rung, Server, Silent, TlsRequired, Unreachable
from gateway.wire.constants import Info, Opt, Rep, TransmissionFlag
from gateway.wire.errors import WireError
from gateway.wire.framing import SIMPLE
from gateway.wire.handshake import ListedExport, MetaContext

WANTED = frozenset({Info.NAME, Info.DESCRIPTION, Info.BLOCK_SIZE})
"""What is asked of every export. Block sizes always: a server may refuse who does not ask."""

if TYPE_CHECKING:
    from gateway.tls.credentials import Session  # costs nothing where there is no TLS

_Result = TypeVar("_Result")

FAREWELL_SECONDS = 1
"""How long it may take to leave a server. ABORT has to be sent, and then the server has to hang up, or what it
still says is answered by a reset. (Not every one answers ABORT, Q-N5; all hang up.) Any server that runs does
that at once."""

WARM_ANSWER_SECONDS = 2.0
"""How long the first answer may take on a connection that was made ahead. Every server has that one (on
framing) at hand, without a look at its disk. A server that vanished without a word, by a loss of power, never
answers; the client has `negotiate-seconds` for the connection that is dialled then."""


QUEUED = (
    "probably it serves as many clients as it may (qemu-nbd one, unless --shared says more), and this one"
    " waits in its queue until another leaves"
)
"""What a silence before the greeting means."""


@dataclass(frozen=True, slots=True)
class Link:
    """An upstream connection after negotiation, ready for commands."""

    socket: RelaySocket
    export: Export
    """As the upstream means it: repaired."""
    dialect: Dialect
    quirks: tuple[str, ...]
    """Names of the quirks in force."""
    rung: Rung
    """How much of the protocol the server was found to bear."""
    place: Place
    """Its place among the upstream's connections."""
    peer: Peer = UNKNOWN
    """Who is at the other end."""

    def close(self) -> None:
        """Close it, and let another have its place. Closing twice is once."""
        self.socket.close()
        self.place.leave()


@dataclass(frozen=True, slots=True)
class Terms:
    """What a link has to be: for which export, with which framing and contexts."""

    name: str
    structured: bool
    extended: bool = False
    """Extended headers, or structured replies where the server has none."""
    queries: tuple[str, ...] | None = None
    """What SET_META_CONTEXT asks; None: it is not sent."""


def next_rung(rung: Rung, terms: Terms) -> Rung | None:
    """Give the rung below that differs, if there is one: what is not asked for cannot be left out."""
    if rung is Rung.FULL and terms.extended:
        return Rung.STRUCTURED
    if rung < Rung.SIMPLE and terms.structured:
        return Rung.SIMPLE
    return Rung.EXPORT_NAME if rung < Rung.EXPORT_NAME else None


class _LostTheWay(Exception):
    """The server closed, or broke the protocol, where an option was under way."""


class Negotiation:
    """Negotiates with one upstream on behalf of one client. Close it with `aclose` unless `go` took it.

    `warm`: a connection that was made ahead will do. Not for a link that takes the place of another: that has
    to lead to whatever is at the upstream's address now. `for_client`: if it is not to be had, a client is
    turned away. `place`: one among the upstream's connections that it has already.
    """

    def __init__(
        self,
        server: Server,
        *,
        warm: bool = False,
        for_client: bool = True,
        place: Place | None = None,
    ) -> None:
        self._server = server
        self._place = place
        self._warm = warm
        self._for_client = for_client
        self._line: OptionLine | None = None

    async def contexts(self, terms: Terms) -> tuple[MetaContext, ...]:
        """Select contexts: give those that the upstream has, with its ids. Raises `Refusal`."""
        return await self._climb(terms, OptionLine.contexts)

    async def list_contexts(
        self, terms: Terms, queries: tuple[str, ...]
    ) -> tuple[MetaContext, ...]:
        """Ask which contexts there are. Raises `Refusal`."""
        return await self._climb(terms, lambda line: line.list_contexts(queries))

    async def describe(
        self, terms: Terms, *, thoroughly: bool = False
    ) -> tuple[Export, Dialect, tuple[str, ...]]:
        """Ask what the export is, as INFO does; it is repaired, by quirks whose names come with it.

        `thoroughly`: find out also what no quirk depends on. Raises `Refusal`.
        """
        return await self._climb(terms, lambda line: line.describe(thoroughly=thoroughly))

    @property
    def evidence(self) -> Evidence | None:
        """What the server has shown of itself on the connection that was used last."""
        return None if self._line is None else self._line.seen

    async def go(self, terms: Terms) -> Link:
        """Open the export; the link is the caller's. Raises `Refusal`."""
        link = await self._climb(terms, OptionLine.open)
        self._line = None
        if self._server.warm is not None:
            self._server.warm.served()
        return link

    async def aclose(self) -> None:
        """End the negotiation, in good order where there is one."""
        line, self._line = self._line, None
        if line is not None:
            await line.aclose()

    async def _climb(
        self, terms: Terms, step: Callable[[OptionLine], Awaitable[_Result]]
    ) -> _Result:
        """Do a step on a connection of these terms; go down the ladder as long as the server loses its
        way.
        """
        if self._line is not None and not self._line.suits(terms):
            await self.aclose()
        rung = self._server.rung
        warm = self._warm
        while True:
            fresh = False
            try:
                if self._line is None and warm:
                    self._line, warm = await self._take(terms, rung), False
                if self._line is None:
                    fresh = True
                    self._line = await OptionLine.begin(
                        self._server, terms, rung, for_client=self._for_client, place=self._place
                    )
                result = await step(self._line)
                if rung > self._server.rung:
                    self._server.remember(rung)
                return result
            except _LostTheWay as error:
                await self.aclose()
                if not fresh:
                    continue  # it may only have been kept waiting for too long (Q-S30)
                lower = next_rung(rung, terms)
                if lower is None:
                    raise Unreachable(f"upstream {self._server.name!r}: {error}") from None
                rung = lower
            except BaseException as error:
                if not isinstance(error, Refusal) or isinstance(error, Unreachable):
                    await self.aclose()
                raise

    async def _take(self, terms: Terms, rung: Rung) -> OptionLine | None:
        """Give a connection that was made ahead, if there is one and it is alive."""
        line = None if self._server.warm is None else await self._server.warm.take()
        if line is None:
            return None
        try:
            with trio.fail_after(WARM_ANSWER_SECONDS):
                await line.agree(terms, rung)
        except (_LostTheWay, Silent, trio.TooSlowError):
            await line.aclose()
            return None
        except BaseException:
            await line.aclose()
            raise
        return line


class OptionLine:
    """One connection in its option phase: as far as any client may have it, then on one rung, for one set of
    terms.
    """

    def __init__(self, server: Server, stream: trio.SocketStream, place: Place) -> None:
        self.terms = Terms("", structured=False)
        self._place = place
        self._peer = server.peer_of(stream)
        self._server = server
        self._rung = Rung.FULL
        self._greeting = Greeted(Style.FIXED_NEWSTYLE)
        self._core = ClientNegotiation()
        self._talk: Conversation[Event] = Conversation(stream, self._core)
        self._selected: tuple[MetaContext, ...] | None = None
        self._evidence: Evidence | None = None
        self.seen: Evidence | None = None
        self._sizeless = False  # an INFO has said that the export has no bytes
        self._described: tuple[Export, Dialect, tuple[str, ...]] | None = None
        self._opened: Link | None = None
        self._shaking_hands = (
            False  # for TLS: nothing else may be said, and never can be if that fails
        )
        self._silent = False  # the server

    def suits(self, terms: Terms) -> bool:
        """Say whether it can keep these terms, and have it keep them: they are those that it has, or differ in
        contexts alone, before any were selected or the export was asked for.
        """
        if terms != self.terms:
            begun = self._selected is not None or self._described is not None or self._opened
            if begun or replace(terms, queries=self.terms.queries) != self.terms:
                return False
            self.terms = terms
        return True

    @classmethod
    async def begin(
        cls,
        server: Server,
        terms: Terms,
        rung: Rung,
        *,
        patient: bool = True,
        for_client: bool = True,
        place: Place | None = None,
    ) -> OptionLine:
        """Connect, take the greeting, and agree on structured replies."""
        if place is None:
            place = await server.place(patient=patient)
        line = await cls.greeted(server, place, patient=patient, for_client=for_client)
        try:
            await line.agree(terms, rung)
        except BaseException:
            await line.aclose()
            raise
        return line

    @classmethod
    async def greeted(
        cls, server: Server, place: Place, *, patient: bool, for_client: bool = True
    ) -> OptionLine:
        """Connect in a place, take the greeting, and go over to TLS: nothing yet depends on who it is for.
        Raises `Unreachable`.
        """
        try:
            stream = await server.connect(patient=patient, for_client=for_client)
        except BaseException:
            place.leave()
            raise
        line = cls(server, stream, place)
        try:
            try:
                greeted = await line._next()
            except _LostTheWay as error:
                # No option was sent, so none is to blame: it takes no more clients, or is no NBD server.
                text = f"upstream {server.name!r}, before its greeting: {error}"
                raise Unreachable(text) from None
            except Silent:
                # The kernel connects whom the program has not accepted yet (listen(2)).
                text = f"has connected and not greeted for {server.negotiate_seconds:g} s: {QUEUED}"
                raise Silent(f"upstream {server.name!r} {text}") from None
            assert isinstance(greeted, Greeted)
            line._greeting = greeted
            if server.tls is not None:
                await line._start_tls(server.tls())
        except BaseException:
            await line.aclose()
            raise
        return line

    async def agree(self, terms: Terms, rung: Rung) -> None:
        """Be for these terms from now on, on this rung."""
        self.terms, self._rung = terms, rung
        if self._greeting.export is None:
            await self._agree_on_framing()
        elif terms.name:
            raise Refusal(Rep.ERR_UNKNOWN, "an oldstyle server has the default export alone")
        else:
            self._open(Answered(0, export=self._greeting.export))

    async def wait_for_end(self) -> None:
        """Return as soon as a connection on which nothing is asked is of no use any more: the server has closed
        it, or said something.
        """
        with suppress(trio.BrokenResourceError):
            await self._talk.stream.receive_some(1)

    async def _start_tls(self, session: Session) -> None:
        """Go over to TLS before anything is asked (Q-K3, Q-K4), or nowhere: there is no way back to the clear.

        Raises `Unreachable`.
        """
        from gateway.net.secure import TlsError, TlsStream

        name, core = self._server.name, self._core
        if core.style is not Style.FIXED_NEWSTYLE:
            raise Unreachable(f"upstream {name!r} has no TLS: its greeting is too old for it")
        core.ask_starttls()
        try:
            answer = await self._ask()
        except _LostTheWay as error:
            raise Unreachable(f"upstream {name!r}, at STARTTLS: {error}") from None
        if isinstance(answer, Refused):
            raise Unreachable(f"upstream {name!r} has no TLS: {answer}")
        transport = self._talk.stream
        assert isinstance(transport, trio.SocketStream)
        self._shaking_hands = True
        try:
            secured = core.secured()
            with trio.fail_after(self._server.negotiate_seconds):
                stream, _server = await TlsStream.connect(transport, session)
        except (WireError, TlsError) as error:
            raise Unreachable(f"upstream {name!r}, TLS: {error}") from None
        except trio.TooSlowError:
            text = f"the handshake takes longer than {self._server.negotiate_seconds:g} s"
            raise Unreachable(f"upstream {name!r}, TLS: {text}") from None
        self._core, self._talk = secured, Conversation(stream, secured)
        self._shaking_hands = False

    async def _agree_on_framing(self) -> None:
        """Ask for what the terms want and the rung has; a refusal is an answer as well."""
        if self._has_options and self._rung is Rung.FULL and self.terms.extended:
            self._core.ask_extended_headers()
            await self._next()
        structured = self.terms.structured and not self._core.extended
        if self._has_options and self._rung <= Rung.STRUCTURED and structured:
            self._core.ask_structured_replies()
            await self._next()

    @property
    def _has_options(self) -> bool:
        return self._core.style is Style.FIXED_NEWSTYLE and self._rung is not Rung.EXPORT_NAME

    async def _next(self) -> Event:
        """Give the server's next event. Raises `_LostTheWay`, or `Unreachable` if nothing comes."""
        seconds = self._server.negotiate_seconds
        try:
            with trio.fail_after(seconds):
                return await self._talk.next_event()
        except (PeerClosed, WireError) as error:
            raise _LostTheWay(str(error)) from None
        except trio.TooSlowError:
            self._silent = True
            text = f"upstream {self._server.name!r} has said nothing for {seconds:g} s"
            raise Silent(text) from None

    async def _ask(self) -> Answered | Refused:
        event = await self._next()
        assert not isinstance(event, Greeted)
        return event

    # --- Contexts

    async def contexts(self) -> tuple[MetaContext, ...]:
        """Select contexts for a client that asks for them."""
        selected = await self._select()
        if selected is None:
            raise Refusal(Rep.ERR_UNSUP, "the upstream has no meta contexts")
        return selected

    async def _select(self) -> tuple[MetaContext, ...] | None:
        """Send SET_META_CONTEXT, once; give None if the server has no contexts at all."""
        queries = self.terms.queries
        if self._selected is not None or queries is None:
            return self._selected
        if not self._core.structured or self._opened is not None:
            return None
        self._core.ask_contexts(self.terms.name, queries, select=True)
        answer = await self._ask()
        if isinstance(answer, Answered):
            self._selected = answer.contexts
        elif answer.reply != Rep.ERR_UNSUP:
            raise refusal_for_client(answer)
        return self._selected

    async def list_contexts(self, queries: tuple[str, ...]) -> tuple[MetaContext, ...]:
        """Send LIST_META_CONTEXT."""
        if not self._core.structured or self._opened is not None:
            raise Refusal(Rep.ERR_UNSUP, "the upstream has no meta contexts")
        self._core.ask_contexts(self.terms.name, queries, select=False)
        answer = await self._ask()
        if isinstance(answer, Refused):
            raise refusal_for_client(answer)
        listed = answer.contexts
        if not queries and not any(context.name.startswith("qemu:") for context in listed):
            # qemu 3.0 forgets its bitmaps in the answer to no query (Q-S3); nobody else minds being asked.
            self._core.ask_contexts(self.terms.name, ("qemu:",), select=False)
            more = await self._ask()
            if isinstance(more, Answered):
                listed += tuple(c for c in more.contexts if c.name.startswith("qemu:"))
        return listed

    # --- The export

    async def describe(
        self, *, thoroughly: bool = False
    ) -> tuple[Export, Dialect, tuple[str, ...]]:
        """Ask INFO, or open the export where INFO is not to be had."""
        await self._select()
        if self._opened is None and self._described is None and self._has_options:
            self._core.ask_info(self.terms.name, WANTED)
            answer = await self._ask()
            if isinstance(answer, Refused):
                if answer.reply != Rep.ERR_UNSUP:
                    raise refusal_for_client(answer)
            elif answer.export is not None and not answer.export.size:
                self._sizeless = True
            elif answer.export is not None:
                await self._examine(answer, thoroughly=thoroughly)
                export, dialect, quirks = self._judge(answer)
                self._described = export, dialect, tuple(quirk.name for quirk in quirks)
        if self._opened is None and self._described is None:
            self._opened = await self.open()
        if self._opened is not None:
            return self._opened.export, self._opened.dialect, self._opened.quirks
        assert self._described is not None
        return self._described

    async def _examine(self, answer: Answered | None, *, thoroughly: bool = False) -> None:
        """Find out how the server answers an INFO that does not ask for block sizes, unless what it said before
        (None: nothing yet) makes that no matter.
        """
        if self._evidence is not None or not self._has_options:
            return
        evidence = self._evidence_of(answer)
        suspect = replace(evidence, unasked_info=Rep.ERR_BLOCK_SIZE_REQD)
        if answer is None or thoroughly or self._server.quirks(suspect):
            self._core.ask_info(self.terms.name, ())
            told = await self._ask()
            reply = told.reply if isinstance(told, Refused) else Rep.ACK
            if isinstance(told, Answered) and told.export is not None and not told.export.size:
                self._sizeless = True
            if reply in (Rep.ACK, Rep.ERR_BLOCK_SIZE_REQD):
                evidence = replace(evidence, unasked_info=reply)
            elif isinstance(told, Refused) and reply != Rep.ERR_UNSUP:
                raise refusal_for_client(told)
        self._evidence = evidence

    def _evidence_of(self, answer: Answered | None) -> Evidence:
        assert self._core.style is not None
        return Evidence(
            self._core.style,
            answer.export.flags if answer is not None and answer.export is not None else 0,
            answer.block_sizes if answer is not None else None,
            structured=self._core.structured,
            info_known=answer is None or answer.option in (Opt.INFO, Opt.GO),
            named=answer is not None and answer.named,
            sizeless_info=self._sizeless
            and answer is not None
            and answer.export is not None
            and answer.export.size > 0,
        )

    async def open(self) -> Link:
        """Send GO, or EXPORT_NAME where GO is not to be had."""
        await self._select()
        if self._opened is not None:
            return self._opened
        if self._has_options:
            if self._described is None:
                await self._examine(None)
            self._core.go(self.terms.name, WANTED)
            answer = await self._ask()
            if isinstance(answer, Answered):
                return self._open(answer)
            if answer.reply != Rep.ERR_UNSUP:
                raise refusal_for_client(answer)
        self._core.export_name(self.terms.name)
        try:
            answer = await self._ask()
        except _LostTheWay:
            # The only way that EXPORT_NAME has to say no.
            if self._rung is Rung.EXPORT_NAME or self._core.style is Style.NEWSTYLE:
                text = "the server closed the connection when it was asked for that name"
                raise Refusal(Rep.ERR_UNKNOWN, text) from None
            raise
        assert isinstance(answer, Answered)
        return self._open(answer)

    def _judge(self, answer: Answered) -> tuple[Export, Dialect, list[Quirk]]:
        """Give the export as the server means it."""
        assert answer.export is not None
        evidence = self._evidence_of(answer)
        if self._evidence is not None:
            evidence = replace(evidence, unasked_info=self._evidence.unasked_info)
        self.seen = evidence
        quirks = self._server.quirks(evidence)
        dialect = dialect_of(quirks)
        if self._server.trust_allocation:
            dialect = replace(dialect, flat_allocation=False)
        sizes = sane_block_sizes(answer.block_sizes)
        export = Export(
            usable_size(answer.export.size, sizes),
            answer.export.flags,
            sizes,
            answer.name,
            answer.description,
            self._core.structured,
            self._selected or (),
            self._core.extended,
        )
        export = dialect.repair(export)
        if self._server.same_storage and not export.flags & TransmissionFlag.READ_ONLY:
            # A FLUSH covers what one server has been given, and the next connection may be to another.
            export = replace(export, flags=export.flags & ~TransmissionFlag.CAN_MULTI_CONN)
        return export, dialect, quirks

    def _open(self, answer: Answered) -> Link:
        export, dialect, quirks = self._judge(answer)
        try:
            self._core.next_event()  # raises if anything came that nobody asked for
        except WireError as error:
            raise _LostTheWay(str(error)) from None
        sock, early = take_socket(self._talk.stream)
        names = tuple(quirk.name for quirk in quirks)
        # One that has ended, and yet has just answered, is not the one that did.
        peer = UNKNOWN if self._peer.gone() else self._peer
        peer.serves(sock)
        self._opened = Link(sock, export, dialect, names, self._rung, self._place, peer)
        if early:
            raise _LostTheWay(f"{len(early)} bytes came that nothing asked for")
        return self._opened

    async def list_exports(self) -> list[ListedExport]:
        """Send LIST. An oldstyle server has the default export and nothing else."""
        if self._opened is not None:
            return [ListedExport("")]
        if not self._has_options:
            raise Refusal(Rep.ERR_UNSUP, "the server cannot list its exports")
        self._core.list_exports()
        answer = await self._ask()
        if isinstance(answer, Refused):
            raise refusal_for_client(answer)
        return list(answer.exports)

    async def aclose(self) -> None:
        """Leave in good order: with ABORT from the option phase, with DISC from an export, which is where an
        oldstyle server begins. From anywhere else without a word: before the greeting, while an option is under
        way (the next would have to wait for its answer), and in a TLS handshake.
        """
        if self._opened is not None:
            with suppress(OSError):
                disc = self._opened.export.framing.disc()
                self._opened.socket.send(disc)
            self._opened.close()
            return
        try:
            with trio.move_on_after(FAREWELL_SECONDS) as scope:
                scope.shield = True
                with suppress(PeerClosed, trio.BrokenResourceError):
                    await self._say_farewell()
                if not self._silent:
                    await hang_up(self._talk.stream)
            await close_stream(self._talk.stream)
        finally:
            self._place.leave()

    async def _say_farewell(self) -> None:
        if self._shaking_hands or self._core.busy:
            return
        if self._core.style is Style.OLDSTYLE:
            await self._talk.stream.send_all(SIMPLE.disc())
            return
        if self._core.style is Style.FIXED_NEWSTYLE:
            self._core.abort()
        await self._talk.flush()  # a newstyle server waits for the client flags


async def list_exports(server: Server) -> list[ListedExport]:
    """Ask a server for its exports, on a connection of its own. Raises `Refusal`."""
    try:
        terms = Terms("", structured=False)
        line = await OptionLine.begin(server, terms, server.rung, patient=False)
        try:
            return await line.list_exports()
        finally:
            await line.aclose()
    except _LostTheWay as error:
        raise Unreachable(f"upstream {server.name!r}: {error}") from None


_PASSED_ON = frozenset(
    {Rep.ERR_UNSUP, Rep.ERR_UNKNOWN, Rep.ERR_POLICY, Rep.ERR_SHUTDOWN, Rep.ERR_INVALID}
)


def refusal_for_client(refused: Refused) -> Refusal:
    """Give what a client is told when the upstream refused (nbd-reference, appendix C)."""
    text = f"upstream: {refused}"
    if refused.reply in _PASSED_ON:
        return Refusal(refused.reply, text)
    if refused.reply == Rep.ERR_TOO_BIG:
        return Refusal(Rep.ERR_INVALID, text)
    if refused.reply == Rep.ERR_TLS_REQD:
        return TlsRequired(text)
    return Refusal(Rep.ERR_PLATFORM, text)

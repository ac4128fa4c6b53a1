"""One negotiation with an upstream, held in its option phase while it mirrors what a client asks.

The client's questions about an export (LIST_META_CONTEXT, SET_META_CONTEXT, INFO, GO) are asked of the upstream
on the same terms, so that both sides agree on framing and contexts. Nothing is dialled before the first of
them. A connection is used to open one export, with one selection of contexts; a client that changes its mind
gets another one, because servers have been wrong about the second (Q-K7). But who only looks at one after
another, as a list does, needs no connection for each.

Old servers: an answer that is garbage, or a closed connection, where an option was sent means that the server
has lost its way, or has died. Then the same is tried on a new connection, and perhaps with less
(`gateway.upstream.ladder`); each session's log line shows the rung. Where INFO cannot be had, or says size 0
(Q-N21), or the server is not fixed newstyle, the export is opened at once, and that link kept for the
client's GO: only what was opened is known.

All that is asked for one client about one export, over however many connections, and all pauses between them,
have to be done within `negotiate_seconds`: a client has a disk that stands still meanwhile, or a monitor.
Connecting has `connect_seconds` of its own, for each of the client's questions.

An INFO without a request for block sizes is asked before GO, unless what it would show is known
(`gateway.upstream.examined`). Its answer tells a qemu 2.10 to 3.1, and is what decides whether bit 8 is to be
believed (see quirks/qemu_multi_conn_bit.py).

Who says so gets a connection that was made ahead (`gateway.upstream.warm`), if there is one. Nothing was asked
on it yet, so it is good for any client; and whatever a client asks before it has its link may be asked again,
so one that turns out to be dead costs nothing but the dial that it was to save.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import trio

from gateway.net.drive import Conversation, PeerClosed, take_socket
from gateway.net.options import RelaySocket
from gateway.peer import UNKNOWN, Peer
from gateway.protocol.client_role import (
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
from gateway.upstream.allowance import Allowance
from gateway.upstream.connections import Slot
from gateway.upstream.errors import Silent, TlsRequired, Unreachable
from gateway.upstream.ladder import Next, Rung
from gateway.upstream.server import Reached, Server, leave
from gateway.wire.constants import Info, Opt, Rep, TransmissionFlag
from gateway.wire.errors import WireError
from gateway.wire.framing import SIMPLE
from gateway.wire.handshake import ListedExport, MetaContext

WANTED = frozenset({Info.NAME, Info.DESCRIPTION, Info.BLOCK_SIZE})
"""What is asked of every export. Block sizes always: a server may refuse who does not ask."""

if TYPE_CHECKING:
    from gateway.tls.credentials import Session  # costs nothing where there is no TLS

_Result = TypeVar("_Result")

OF_QEMU = ("qemu:",)
"""The query for all of qemu's contexts."""

WARM_ANSWER_SECONDS = 2.0
"""How long the first answer may take on a connection that was made ahead. Every server has that one (on
framing) at hand, without a look at its disk. A server that vanished without a word, by a loss of power, never
answers; what is left of the client's `negotiate-seconds` is for the connection that is dialled then."""

MOST_OPTIONS = 32
"""Of one connection over which exports are looked at: nbdkit has borne no more."""

MOST_FOR_ONE = 4
"""Options that it takes to look at one export, at most; and ABORT comes at the end."""

FIRST_PAUSE_SECONDS = 0.1
"""Before a server is asked again that has lost its way where it may not be asked for less: one that is being
restarted is back soon."""

MOST_PAUSE_SECONDS = 1.0
"""What doubling ends at."""


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
    slot: Slot
    """Its slot among the upstream's connections."""
    peer: Peer = UNKNOWN
    """Who is at the other end."""

    def close(self) -> None:
        """Close it, and let another have its slot. Closing twice is once."""
        self.socket.close()
        self.slot.leave()


@dataclass(frozen=True, slots=True)
class Terms:
    """What a link has to be: for which export, with which framing and contexts."""

    name: str
    structured: bool
    extended: bool = False
    """Extended headers, or structured replies where the server has none."""
    queries: tuple[str, ...] | None = None
    """What SET_META_CONTEXT asks; None: it is not sent."""


class Rejected(Refusal):
    """The server has said no to an option, in so many words."""


class _LostTheWay(Exception):
    """The server closed, or broke the protocol, where an option was under way. `closed`: the former."""

    def __init__(self, text: str, *, closed: bool = False) -> None:
        super().__init__(text)
        self.closed = closed


class _InDoubt(Exception):
    """GO went alone, and a quirk depends on what an INFO would have shown."""


class _Died(Unreachable):
    """The connection has ended in the middle of the greeting, or behind it, before anything depended on what is
    asked.
    """


class Negotiation:
    """Negotiates with one upstream on behalf of one client. Close it with `aclose` unless `go` took it.

    `warm`: a connection that was made ahead will do. Not for a link that takes the place of another: that has
    to lead to whatever is at the upstream's address now. `for_client`: if it is not to be had, a client is
    turned away. `beside`: it is one more than those that a client has already. `slot`: one among the
    upstream's connections that it has already. `lowest`: the rung below which nothing is asked, which is that
    of the link in whose place this one is to be. `allowance`: what is left of the time for opening an export;
    None: all of it.
    """

    def __init__(
        self,
        server: Server,
        *,
        warm: bool = False,
        for_client: bool = True,
        beside: bool = False,
        slot: Slot | None = None,
        lowest: Rung = Rung.EXPORT_NAME,
        allowance: Allowance | None = None,
    ) -> None:
        self._server = server
        self._slot = slot
        self._warm = warm
        self._for_client = for_client
        self._beside = beside
        self._lowest = lowest
        self._line: OptionLine | None = None
        self._info_first = False
        self._name: str | None = None
        self.allowance = allowance or Allowance(server.negotiate_seconds)
        """Of the export that is asked about: what it may take yet until it is opened."""

    async def contexts(self, terms: Terms) -> tuple[MetaContext, ...]:
        """Select contexts: give those that the upstream has, with its ids. Raises `Refusal`."""
        return _there_are(await self._climb(terms, OptionLine.contexts, looks=False))

    async def list_contexts(
        self, terms: Terms, queries: tuple[str, ...]
    ) -> tuple[MetaContext, ...]:
        """Ask which contexts there are. Raises `Refusal`."""
        return _there_are(await self._climb(terms, lambda line: line.list_contexts(queries)))

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
        link = await self._climb(terms, OptionLine.open, looks=False)
        self._line = None
        self.allowance = Allowance(self._server.negotiate_seconds)
        if self._server.warm is not None:
            self._server.warm.served()
        return link

    async def aclose(self) -> None:
        """End the negotiation, in good order where there is one."""
        line, self._line = self._line, None
        if line is not None:
            await line.aclose()

    async def _climb(
        self,
        terms: Terms,
        step: Callable[[OptionLine], Awaitable[_Result]],
        *,
        looks: bool = True,
    ) -> _Result:
        """Do a step on a connection of these terms; where the server loses its way, do as the ladder says. It
        `looks` at the export, and neither opens it nor selects contexts.
        """
        if self._name not in (None, terms.name):
            self.allowance = Allowance(self._server.negotiate_seconds)
        self._name = terms.name
        if self._line is not None:
            if self._line.suits(terms, looks=looks):
                self._line.allowance = self.allowance
            else:
                await self.aclose()
        climb = self._server.ladder.climb(self._lowest)
        wanted = {"structured": terms.structured, "extended": terms.extended}
        connecting = Allowance(self._server.connect_seconds)
        warm, pause_seconds = self._warm, FIRST_PAUSE_SECONDS
        lost: _LostTheWay | None = None
        while True:
            fresh = False
            try:
                if self._line is None and warm:
                    rung = climb.rung(trio.current_time())
                    self._line, warm = await self._take(terms, rung), False
                if self._line is None:
                    fresh = True
                    self._line = await self._connected(connecting, lost)
                    await self._line.agree(terms, climb.rung(trio.current_time()))
                self._line.info_first |= self._info_first
                result = await step(self._line)
                rung, now = self._line.rung, trio.current_time()
                if not self._line.has_answered or climb.answered(rung, now, **wanted):
                    return result
                await self.aclose()
            except _InDoubt:
                self._info_first = True
                await self.aclose()
            except _LostTheWay as error:
                await self.aclose()
                if not fresh:
                    continue  # it may only have been kept waiting for too long (Q-S30)
                lost = error
                match climb.failed(trio.current_time(), **wanted):
                    case Next.NOTHING:
                        raise Unreachable(f"upstream {self._server.name!r}: {error}") from None
                    case Next.AFTER_A_PAUSE:
                        await self._pause(pause_seconds, error)
                        pause_seconds = min(2 * pause_seconds, MOST_PAUSE_SECONDS)
                    case Next.AT_ONCE:
                        pass
            except _Died as error:
                await self._pause(pause_seconds, error)
                pause_seconds = min(2 * pause_seconds, MOST_PAUSE_SECONDS)
            except BaseException as error:
                if isinstance(error, Silent):
                    self.allowance.why = error.text
                over = not isinstance(error, Refusal) or isinstance(error, Unreachable)
                if over or (self._line is not None and self._line.is_broken):
                    await self.aclose()
                raise

    async def _connected(self, connecting: Allowance, lost: _LostTheWay | None) -> OptionLine:
        """Give a new connection, greeted. Raises `Unreachable`."""
        server, slot = self._server, self._slot
        began, before = trio.current_time(), self.allowance.left
        if not self.allowance.left:
            text = f"has not opened the export within {self.allowance.seconds:g} s"
            text = f"upstream {server.name!r} {text}{_after(lost)}"
            raise Silent(self.allowance.why or text)
        try:
            if slot is None or slot.left:
                slot = await server.slot(seconds=connecting.left)
            left = connecting.left - (trio.current_time() - began)
            return await OptionLine.greeted(
                server,
                slot,
                patient=True,
                for_client=self._for_client,
                beside=self._beside,
                seconds=max(0.0, left),
                allowance=self.allowance,
            )
        except Unreachable as error:
            if lost is None:
                raise
            raise type(error)(f"{error.text}{_after(lost)}") from None
        finally:
            answering = before - self.allowance.left
            connecting.take(trio.current_time() - began - answering)

    async def _pause(self, seconds: float, lost: _LostTheWay | _Died) -> None:
        """Give a server time that may not be asked for less, or dies too early for that to make a difference.
        Raises `Unreachable` when none is left.
        """
        try:
            with self.allowance.spend():
                await trio.sleep(seconds)
        except trio.TooSlowError:
            if isinstance(lost, _Died):
                raise lost from None
            whose = f"upstream {self._server.name!r}"
            tried = (
                f"lost its way at an option on every connection for {self.allowance.seconds:g} s"
            )
            less = "and is not asked for less than it has spoken before"
            raise Unreachable(f"{whose} has {tried}, {less}: {lost}") from None

    async def _take(self, terms: Terms, rung: Rung) -> OptionLine | None:
        """Give a connection that was made ahead, if there is one and it is alive."""
        line = None if self._server.warm is None else await self._server.warm.take()
        if line is None:
            return None
        try:
            # A dead one takes no more of the client's time than leaves enough for another.
            line.allowance = self.allowance
            with trio.fail_after(min(WARM_ANSWER_SECONDS, self.allowance.left / 2)):
                await line.agree(terms, rung)
        except (_LostTheWay, Silent, trio.TooSlowError):
            await line.aclose()
            return None
        except BaseException:
            await line.aclose()
            raise
        return line


def _there_are(contexts: tuple[MetaContext, ...] | None) -> tuple[MetaContext, ...]:
    if contexts is None:
        raise Refusal(Rep.ERR_UNSUP, "the upstream has no meta contexts")
    return contexts


def _after(lost: _LostTheWay | None) -> str:
    return "" if lost is None else f"; before that, at an option: {lost}"


def _of_qemu(contexts: Iterable[MetaContext]) -> tuple[MetaContext, ...]:
    return tuple(context for context in contexts if context.name.startswith("qemu:"))


class OptionLine:
    """One connection in its option phase: as far as any client may have it, then on one rung, for one set of
    terms.
    """

    def __init__(self, server: Server, reached: Reached, slot: Slot, allowance: Allowance) -> None:
        self.terms = Terms("", structured=False)
        self.allowance = allowance
        """How long the server may take yet, for all that it is asked."""
        self.rung = Rung.FULL
        """How much of the protocol is spoken on it."""
        self.info_first = False
        """INFO goes before GO whatever is known of the server."""
        self._slot = slot
        self._peer = reached.peer
        self._server = server
        self._greeting = Greeted(Style.FIXED_NEWSTYLE)
        self._core = ClientNegotiation()
        self._core.receive(reached.said)
        self._talk: Conversation[Event] = Conversation(reached.stream, self._core)
        self._selected: tuple[MetaContext, ...] | None = None
        self._listed = False  # its contexts
        self._of_qemu: tuple[MetaContext, ...] | None = None  # of those that it has
        self._evidence: Evidence | None = None
        self.seen: Evidence | None = None
        self._in_doubt = False
        self._era = server.ladder.era
        self._has_asked_info = False  # one that shows what quirks depend on
        self._sizeless = False  # an INFO has said that the export has no bytes
        self._described: tuple[Export, Dialect, tuple[str, ...]] | None = None
        self._opened: Link | None = None
        self._looked_at_others = False  # exports, before the one that it is for now
        self._asked = 0  # options, and the greeting
        self._shaking_hands = (
            False  # for TLS: nothing else may be said, and never can be if that fails
        )
        self._silent = False  # the server
        self._secure = False

    @property
    def is_broken(self) -> bool:
        """An option has no answer, and nothing can be asked any more."""
        return self._core.busy

    def suits(self, terms: Terms, *, looks: bool) -> bool:
        """Say whether it can keep these terms, and have it keep them: they are those that it has, or differ in
        contexts alone, before any were selected or the export was asked for. Who `looks` may look at another
        export, where none was opened.
        """
        if self._looked_at_others and not looks:
            return False
        if terms == self.terms:
            return True
        chosen = self._selected is not None or self._opened is not None
        if looks and terms.name != self.terms.name and not chosen:
            return self._look_at_another(terms)
        begun = chosen or self._described is not None
        if replace(terms, queries=self.terms.queries) != self.terms:
            return False
        if begun and self._core.structured:  # else there are no contexts here, whoever asks
            return False
        self.terms = terms
        return True

    def _look_at_another(self, terms: Terms) -> bool:
        same = replace(terms, name=self.terms.name) == self.terms and terms.queries is None
        if not same or self._asked + MOST_FOR_ONE >= MOST_OPTIONS or self._core.busy:
            return False
        self._looked_at_others = True
        self.terms = terms
        self._described = self._evidence = self.seen = None
        self._listed = self._sizeless = self._has_asked_info = False
        self._of_qemu = None
        return True

    @classmethod
    async def greeted(
        cls,
        server: Server,
        slot: Slot,
        *,
        patient: bool,
        for_client: bool = True,
        beside: bool = False,
        seconds: float | None = None,
        allowance: Allowance | None = None,
    ) -> OptionLine:
        """Connect in a slot, take the greeting, and go over to TLS: nothing yet depends on who it is for.
        How it is connected to is said as to `Server.connect`. Raises `Unreachable`.
        """
        if allowance is None:
            allowance = Allowance(server.negotiate_seconds)
        try:
            reached = await server.connect(
                patient=patient,
                for_client=for_client,
                beside=beside,
                seconds=seconds,
                answering=allowance,
            )
        except BaseException:
            slot.leave()
            raise
        line = cls(server, reached, slot, allowance)
        try:
            try:
                greeted = await line._next()
            except _LostTheWay as error:
                # No option was sent, so none is to blame: it has died, or is no NBD server.
                text = f"upstream {server.name!r}, at its greeting: {error}"
                raise (_Died if error.closed else Unreachable)(text) from None
            assert isinstance(greeted, Greeted)
            line._greeting = greeted
            if server.tls:
                await line._start_tls(server.tls[reached.place]())
        except BaseException:
            await line.aclose()
            raise
        return line

    async def agree(self, terms: Terms, rung: Rung) -> None:
        """Be for these terms from now on, on this rung."""
        self.terms, self.rung = terms, rung
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
            died = _Died if error.closed else Unreachable
            raise died(f"upstream {name!r}, at STARTTLS: {error}") from None
        if isinstance(answer, Refused):
            raise Unreachable(f"upstream {name!r} has no TLS: {answer}")
        transport = self._talk.stream
        assert isinstance(transport, trio.SocketStream)
        self._shaking_hands = True
        try:
            secured = core.secured()
            with self.allowance.spend():
                stream, _server = await TlsStream.connect(transport, session)
        except (WireError, TlsError) as error:
            raise Unreachable(f"upstream {name!r}, TLS: {error}") from None
        except trio.TooSlowError:
            text = f"the handshake takes longer than {self.allowance.seconds:g} s"
            raise Unreachable(f"upstream {name!r}, TLS: {text}") from None
        self._core, self._talk = secured, Conversation(stream, secured)
        self._shaking_hands, self._secure = False, True

    async def _agree_on_framing(self) -> None:
        """Ask for what the terms want and the rung has; a refusal is an answer as well."""
        if self._has_options and self.rung is Rung.FULL and self.terms.extended:
            self._core.ask_extended_headers()
            await self._next()
        structured = self.terms.structured and not self._core.extended
        if self._has_options and self.rung <= Rung.STRUCTURED and structured:
            self._core.ask_structured_replies()
            await self._next()

    @property
    def _has_options(self) -> bool:
        return self._core.style is Style.FIXED_NEWSTYLE and self.rung is not Rung.EXPORT_NAME

    async def _next(self) -> Event:
        """Give the server's next event. Raises `_LostTheWay`, or `Unreachable` if nothing comes."""
        began = trio.current_time()
        self._asked += 1
        try:
            with self.allowance.spend():
                return await self._talk.next_event()
        except (PeerClosed, WireError) as error:
            raise _LostTheWay(str(error), closed=isinstance(error, PeerClosed)) from None
        except trio.TooSlowError:
            self._silent = True
            waited, all_seconds = trio.current_time() - began, self.allowance.seconds
            text = f"has said nothing for {round(waited, 1):g} s"
            if waited < all_seconds:
                text += f", and has not opened the export within {all_seconds:g} s in all"
            raise Silent(f"upstream {self._server.name!r} {text}") from None

    async def _ask(self) -> Answered | Refused:
        event = await self._next()
        assert not isinstance(event, Greeted)
        return event

    # --- Contexts

    async def contexts(self) -> tuple[MetaContext, ...] | None:
        """Select contexts for a client that asks for them; give None if the server has none at all."""
        selected = await self._select()
        if selected is None:
            await self._hear_of_it()
        return selected

    async def _hear_of_it(self) -> None:
        """A client is about to be told that there are no contexts. If that is so because of the rung, see that
        the server does answer on it: it may as well have died on those above.
        """
        if self.terms.structured and self.rung > Rung.STRUCTURED:
            await self.describe()

    @property
    def has_answered(self) -> bool:
        """The server has answered an option that has data, and has not lost its way."""
        return bool(self._listed or self._selected is not None or self._described or self._opened)

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

    async def list_contexts(self, queries: tuple[str, ...]) -> tuple[MetaContext, ...] | None:
        """Send LIST_META_CONTEXT; give None if the server has no contexts at all."""
        if not self._core.structured or self._opened is not None:
            await self._hear_of_it()
            return None
        if queries == OF_QEMU and self._of_qemu is not None:
            return self._of_qemu  # qemu's client asks for them after a list without any
        self._core.ask_contexts(self.terms.name, queries, select=False)
        answer = await self._ask()
        if isinstance(answer, Refused):
            raise refusal_for_client(answer)
        listed = answer.contexts
        self._listed = True
        if queries:
            return listed
        self._of_qemu = _of_qemu(listed)
        if not self._of_qemu and self._may_forget_bitmaps:
            # Nobody else minds being asked.
            self._core.ask_contexts(self.terms.name, OF_QEMU, select=False)
            more = await self._ask()
            self._of_qemu = _of_qemu(more.contexts) if isinstance(more, Answered) else None
            listed += self._of_qemu or ()
        return listed

    @property
    def _may_forget_bitmaps(self) -> bool:
        """It may be qemu 3.0, whose bitmaps are not in the answer to no query (Q-S3), and which has no
        FAST_ZERO.
        """
        return self.seen is None or not self.seen.flags & TransmissionFlag.SEND_FAST_ZERO

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
        (None: nothing yet) makes that no matter, or it is known.
        """
        if self._evidence is not None or not self._has_options:
            return
        evidence = self._evidence_of(answer)
        settled = None
        if answer is not None and not thoroughly:
            settled = self._settled(evidence)
        if settled is not None:
            evidence, self._sizeless = settled, settled.sizeless_info
        else:
            self._core.ask_info(self.terms.name, ())
            told = await self._ask()
            self._has_asked_info = True
            reply = told.reply if isinstance(told, Refused) else Rep.ACK
            if isinstance(told, Answered) and told.export is not None and not told.export.size:
                self._sizeless = True
            if reply in (Rep.ACK, Rep.ERR_BLOCK_SIZE_REQD):
                evidence = replace(evidence, unasked_info=reply)
            elif isinstance(told, Refused) and reply != Rep.ERR_UNSUP:
                raise refusal_for_client(told)
        self._evidence = evidence

    def _settled(self, evidence: Evidence) -> Evidence | None:
        server = self._server
        return server.examined.settle(evidence, server.quirks, trio.current_time())

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
            secure=self._secure,
        )

    async def open(self) -> Link:
        """Send GO, or EXPORT_NAME where GO is not to be had."""
        await self._select()
        if self._opened is not None:
            return self._opened
        if self._has_options:
            known = self._server.examined.known(trio.current_time()) and not self.info_first
            if self._described is None and not known:
                await self._examine(None)
            self._core.go(self.terms.name, WANTED)
            answer = await self._ask()
            if isinstance(answer, Answered):
                link = self._open(answer)
                if self._in_doubt:
                    raise _InDoubt
                return link
            if answer.reply != Rep.ERR_UNSUP:
                raise refusal_for_client(answer)
        self._core.export_name(self.terms.name)
        try:
            answer = await self._ask()
        except _LostTheWay:
            # The only way that EXPORT_NAME has to say no.
            if self.rung is Rung.EXPORT_NAME or self._core.style is Style.NEWSTYLE:
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
            same = self._server.ladder.era == self._era  # else it may be another one by now
            if self._has_asked_info and same and evidence.unasked_info is not None:
                self._server.examined.note(evidence, trio.current_time())
        elif answer.option == Opt.GO:
            settled = self._settled(evidence)
            self._in_doubt = settled is None
            evidence = settled or evidence
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
        sock, early = take_socket(
            self._talk.stream, one_slice_a_record=dialect.one_request_a_record
        )
        names = tuple(quirk.name for quirk in quirks)
        # One that has ended, and yet has just answered, is not the one that did.
        peer = UNKNOWN if self._peer.gone() else self._peer
        peer.serves(sock)
        self._server.links.add(sock)
        self._opened = Link(sock, export, dialect, names, self.rung, self._slot, peer)
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
            await leave(self._talk.stream, self._say_farewell, silent=self._silent)
        finally:
            self._slot.leave()

    async def _say_farewell(self) -> None:
        if self._shaking_hands or self._core.busy:
            return
        with suppress(PeerClosed, trio.BrokenResourceError):
            if self._core.style is Style.OLDSTYLE:
                await self._talk.stream.send_all(SIMPLE.disc())
                return
            if self._core.style is Style.FIXED_NEWSTYLE:
                self._core.abort()
            await self._talk.flush()  # a newstyle server waits for the client flags


async def list_exports(server: Server) -> list[ListedExport]:
    """Ask a server for its exports, on a connection of its own. Raises `Refusal`."""
    terms = Terms("", structured=False)
    slot = await server.slot(patient=False)
    line = await OptionLine.greeted(server, slot, patient=False)
    try:
        await line.agree(terms, server.ladder.first(trio.current_time()))
        return await line.list_exports()
    except _LostTheWay as error:
        raise Unreachable(f"upstream {server.name!r}: {error}") from None
    finally:
        await line.aclose()


_PASSED_ON = frozenset(
    {Rep.ERR_UNSUP, Rep.ERR_UNKNOWN, Rep.ERR_POLICY, Rep.ERR_SHUTDOWN, Rep.ERR_INVALID}
)


def refusal_for_client(refused: Refused) -> Refusal:
    """Give what a client is told when the upstream refused (nbd-reference, appendix C)."""
    text = f"upstream: {refused}"
    if refused.reply in _PASSED_ON:
        return Rejected(refused.reply, text)
    if refused.reply == Rep.ERR_TOO_BIG:
        return Refusal(Rep.ERR_INVALID, text)
    if refused.reply == Rep.ERR_TLS_REQD:
        return TlsRequired(f"{text}: use nbds: in the URI of this server")
    return Refusal(Rep.ERR_PLATFORM, text)

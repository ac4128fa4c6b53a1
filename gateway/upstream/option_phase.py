"""The option phase of one connection: what is asked on it for one client, and what is known by then.

A connection is used to open one export, with one selection of contexts; a client that changes its mind gets
another one, because servers have been wrong about the second (Q-K7). But who only looks at one after another,
as a list does, needs no connection for each.

An INFO without a request for block sizes is asked before GO, unless what it would show is known
(`gateway.upstream.examined`). Its answer tells a qemu 2.10 to 3.1, and is what decides whether bit 8 is to be
believed (see quirks/qemu_multi_conn_bit.py). Where INFO cannot be had, or says size 0 (Q-N21), or the server
is not fixed newstyle, the export is opened at once, and that link kept for the client's GO: only what was
opened is known.

This is longer than other modules: whether one question may follow another is for both to know.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

import trio

from gateway.net.drive import take_socket
from gateway.peer import UNKNOWN
from gateway.protocol.client_role import Answered, Refused, Style
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export, sane_block_sizes, usable_size
from gateway.quirks import TOLD_BY_INFO, Dialect, Evidence, Quirk, dialect_of
from gateway.upstream.allowance import Allowance
from gateway.upstream.errors import LostTheWay, refusal_at_home, refusal_for_client
from gateway.upstream.handshake import Handshake
from gateway.upstream.ladder import Rung
from gateway.upstream.link import Link, Terms
from gateway.upstream.news import Misnamed
from gateway.upstream.option_room import OptionRoom
from gateway.upstream.server import Server
from gateway.wire.constants import Info, Opt, Rep, TransmissionFlag
from gateway.wire.errors import WireError
from gateway.wire.handshake import ListedExport, MetaContext

WANTED = frozenset({Info.NAME, Info.DESCRIPTION, Info.BLOCK_SIZE})
"""What is asked of every export. Block sizes are always asked: a server may refuse a client that does not
ask."""

FAST_ZERO = int(TransmissionFlag.SEND_FAST_ZERO)
BITS_8_AND_10 = int(TransmissionFlag.CAN_MULTI_CONN | TransmissionFlag.SEND_CACHE)

OF_QEMU = ("qemu:",)
"""The query for all of qemu's contexts."""


class InDoubt(Exception):
    """GO went alone, and a quirk depends on what an INFO would have shown."""


class OptionPhase:
    """The option phase of one connection, on one rung, for one set of terms."""

    def __init__(self, server: Server, handshake: Handshake) -> None:
        self.terms = Terms("", structured=False)
        self.rung = Rung.FULL
        """How much of the protocol is spoken on it."""
        self.is_agreed = False
        """It is for somebody's terms; before, nothing but a list was asked on it."""
        self.info_first = False
        """INFO goes before GO whatever is known of the server."""
        self.seen: Evidence | None = None
        """What the server has shown of itself."""
        self._server = server
        self._refusal = refusal_at_home if server.recipe.at_home else refusal_for_client
        self._examined = server.examined  # as it was when something was asked because of it
        self._handshake = handshake
        self._core = handshake.core
        self._selected: tuple[MetaContext, ...] | None = None
        self._contexts_listed = False  # its contexts
        self._of_qemu: tuple[MetaContext, ...] | None = None  # of those that it has
        self._evidence: Evidence | None = None
        self._in_doubt = False
        self._has_asked_info = False  # one that shows what quirks depend on
        self._sizeless = False  # an INFO has said that the export has no bytes
        self._described: tuple[Export, Dialect, tuple[str, ...]] | None = None
        self._opened: Link | None = None
        self._looked_at_others = False  # exports, before the one that it is for now
        self._room = OptionRoom()

    def spend_from(self, allowance: Allowance) -> None:
        """Let the server take no longer than what is left of this."""
        self._handshake.allowance = allowance

    @property
    def is_broken(self) -> bool:
        """An option has no answer, and nothing can be asked any more."""
        return self._core.busy

    def suits(self, terms: Terms, *, looks: bool) -> bool:
        """Say whether it can keep these terms, and have it keep them: they are those that it has, or differ in
        contexts alone, before any were selected or the export was opened. Who `looks` may look at another
        export, where none was opened.
        """
        if not self.is_agreed:
            return True  # to any
        if self._looked_at_others and not looks:
            return False
        if terms == self.terms:
            return True
        chosen = self._selected is not None or self._opened is not None
        if looks and terms.name != self.terms.name and not chosen:
            return self._look_at_another(terms)
        if replace(terms, queries=self.terms.queries) != self.terms:
            return False
        if self._core.structured:  # else there are no contexts here, whoever asks
            if chosen:
                return False
            self._described = None  # that was without these contexts
        self.terms = terms
        return True

    def _look_at_another(self, terms: Terms) -> bool:
        if not terms.differ_in_name_alone(self.terms) or terms.queries is not None:
            return False
        if not self._room.has(self._handshake.asked) or self._core.busy:
            return False
        self._looked_at_others = True
        self.terms = terms
        self._described = self._evidence = self.seen = None
        self._contexts_listed = self._sizeless = self._has_asked_info = False
        self._of_qemu = None
        return True

    async def make_room(self) -> None:
        """Where few more exports may be looked at, have more be: by a LIST of which nothing else is wanted."""
        if self._room.is_for_list(self._handshake.asked):  # so it has options
            self._core.list_exports()
            answer = await self._handshake.ask()
            self._room.grow(len(answer.exports) if isinstance(answer, Answered) else 0)

    async def agree(self, terms: Terms, rung: Rung) -> None:
        """Serve these terms from now on, on this rung."""
        self.terms, self.rung = terms, rung
        if self._handshake.greeting.export is None:
            await self._agree_on_framing()
        elif terms.name:
            raise Refusal(Rep.ERR_UNKNOWN, "an oldstyle server has the default export alone")
        else:
            self._open(Answered(0, export=self._handshake.greeting.export))
        self.is_agreed = True

    async def _agree_on_framing(self) -> None:
        """Ask for what the terms want and the rung has. A refusal is an answer, too."""
        if self._has_options and self.rung is Rung.FULL and self.terms.extended:
            self._core.ask_extended_headers()
            await self._handshake.next_event()
        structured = self.terms.structured and not self._core.extended
        if self._has_options and self.rung <= Rung.STRUCTURED and structured:
            self._core.ask_structured_replies()
            await self._handshake.next_event()

    @property
    def _has_options(self) -> bool:
        return self._core.style is Style.FIXED_NEWSTYLE and self.rung is not Rung.EXPORT_NAME

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
        return bool(
            self._contexts_listed or self._selected is not None or self._described or self._opened
        )

    async def _select(self) -> tuple[MetaContext, ...] | None:
        """Send SET_META_CONTEXT, once; give None if the server has no contexts at all."""
        queries = self.terms.queries
        if self._selected is not None or queries is None:
            return self._selected
        if not self._core.structured or self._opened is not None:
            return None
        self._core.ask_contexts(self.terms.name, queries, select=True)
        answer = await self._handshake.ask()
        if isinstance(answer, Answered):
            self._selected = answer.contexts
        elif answer.reply != Rep.ERR_UNSUP:
            raise self._refusal(answer)
        return self._selected

    async def list_contexts(self, queries: tuple[str, ...]) -> tuple[MetaContext, ...] | None:
        """Send LIST_META_CONTEXT; give None if the server has no contexts at all."""
        if not self._core.structured or self._opened is not None:
            await self._hear_of_it()
            return None
        if queries == OF_QEMU and self._of_qemu is not None:
            return self._of_qemu  # qemu's client asks for them after a list without any
        self._core.ask_contexts(self.terms.name, queries, select=False)
        answer = await self._handshake.ask()
        if isinstance(answer, Refused):
            raise self._refusal(answer)
        listed = answer.contexts
        self._contexts_listed = True
        if queries:
            return listed
        self._of_qemu = _of_qemu(listed)
        if not self._of_qemu and self._may_forget_bitmaps:
            # Nobody else minds being asked.
            self._core.ask_contexts(self.terms.name, OF_QEMU, select=False)
            more = await self._handshake.ask()
            self._of_qemu = _of_qemu(more.contexts) if isinstance(more, Answered) else None
            listed += self._of_qemu or ()
        return listed

    @property
    def _may_forget_bitmaps(self) -> bool:
        """It may be qemu 3.0, whose bitmaps are not in the answer to no query (Q-S3). That has no FAST_ZERO,
        and of bits 8 and 10 one alone: 3.0.0 has the former for what the others mean by the latter.
        """
        if self.seen is None:
            return True
        flags = self.seen.flags
        return not flags & FAST_ZERO and flags & BITS_8_AND_10 != BITS_8_AND_10

    # --- The export

    async def describe(
        self, *, thoroughly: bool = False
    ) -> tuple[Export, Dialect, tuple[str, ...]]:
        """Ask INFO, or open the export where INFO is not to be had."""
        await self._select()
        if self._opened is None and self._described is None and self._has_options:
            self._core.ask_info(self.terms.name, WANTED)
            answer = await self._handshake.ask()
            if isinstance(answer, Refused):
                if answer.reply != Rep.ERR_UNSUP:
                    raise self._refusal(answer)
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
        """Find out how the server answers an INFO that does not ask for block sizes; unless that is known, or
        makes no difference after what it said before (None: nothing yet).
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
            told = await self._handshake.ask()
            self._has_asked_info = True
            reply = told.reply if isinstance(told, Refused) else Rep.ACK
            if isinstance(told, Answered) and told.export is not None and not told.export.size:
                self._sizeless = True
            if reply in TOLD_BY_INFO:
                evidence = replace(evidence, unasked_info=reply)
            elif isinstance(told, Refused) and reply != Rep.ERR_UNSUP:
                raise self._refusal(told)
        self._evidence = evidence

    def _settled(self, evidence: Evidence) -> Evidence | None:
        return self._examined.settle(evidence, self._server.quirks, trio.current_time())

    def _evidence_of(self, answer: Answered | None) -> Evidence:
        assert self._core.style is not None
        return Evidence(
            self._core.style,
            answer.export.flags if answer is not None and answer.export is not None else 0,
            answer.block_sizes if answer is not None else None,
            None if self._evidence is None else self._evidence.unasked_info,
            structured=self._core.structured,
            info_known=answer is None or answer.option in (Opt.INFO, Opt.GO),
            named=answer is not None and answer.named,
            sizeless_info=self._sizeless
            and answer is not None
            and answer.export is not None
            and answer.export.size > 0,
            secure=self._handshake.secure,
        )

    async def open(self) -> Link:
        """Send GO, or EXPORT_NAME where GO is not to be had."""
        await self._select()
        if self._opened is not None:
            return self._opened
        if self._has_options:
            self._examined = self._server.examined
            known = self._examined.known(trio.current_time()) and not self.info_first
            if self._described is None and not known:
                await self._examine(None)
            self._core.go(self.terms.name, WANTED)
            answer = await self._handshake.ask()
            if isinstance(answer, Answered):
                link = self._open(answer)
                if self._in_doubt:
                    raise InDoubt
                return link
            if answer.reply != Rep.ERR_UNSUP:
                raise self._refusal(answer)
        self._core.export_name(self.terms.name)
        try:
            answer = await self._handshake.ask()
        except LostTheWay:
            # The only way that EXPORT_NAME has to say no.
            if self.rung is Rung.EXPORT_NAME or self._core.style is Style.NEWSTYLE:
                text = "the server closed the connection when it was asked for that name"
                raise Refusal(Rep.ERR_UNKNOWN, text) from None
            raise
        assert isinstance(answer, Answered)
        return self._open(answer)

    def _judge(self, answer: Answered) -> tuple[Export, Dialect, tuple[Quirk, ...]]:
        """Give the export as the server means it."""
        assert answer.export is not None
        evidence = self._evidence_of(answer)
        if self._evidence is not None:
            same = self._server.ladder.era == self._handshake.era  # else it may be another by now
            if self._has_asked_info and same and evidence.unasked_info is not None:
                self._server.examined.note(evidence, trio.current_time())
        elif answer.option == Opt.GO:
            settled = self._settled(evidence)
            self._in_doubt = settled is None
            evidence = settled or evidence
        self.seen = evidence
        quirks = self._server.quirks(evidence)
        dialect = dialect_of(quirks)
        if self._server.settings.trust_allocation:
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
        if self._server.recipe.at_home:
            export = replace(export, any_alignment=True)
        if self._server.settings.same_storage and not export.flags & TransmissionFlag.READ_ONLY:
            # A FLUSH covers what one server has been given, and the next connection may be to another.
            export = replace(export, flags=export.flags & ~TransmissionFlag.CAN_MULTI_CONN)
        return export, dialect, quirks

    def _open(self, answer: Answered) -> Link:
        assert answer.export is not None
        export, dialect, quirks = self._judge(answer)
        try:
            self._core.next_event()  # raises if anything came that nobody asked for
        except WireError as error:
            raise LostTheWay(str(error)) from None
        guard = self._server.guard
        guarded = None if guard is None else guard(self.terms.name)
        sock, early = take_socket(
            self._handshake.stream, one_slice_a_record=dialect.one_request_a_record
        )
        names = tuple(quirk.name for quirk in quirks)
        # One that has ended, and yet has just answered, is not the one that did.
        peer = UNKNOWN if self._handshake.peer.gone() else self._handshake.peer
        peer.serves(sock)
        if guarded is not None:
            sock = guarded(sock)
        self._server.links.add(sock)
        cleared = 0 if answer.export is None else answer.export.flags & ~export.flags
        self._opened = Link(
            sock, export, dialect, names, self.rung, self._handshake.slot, cleared, peer
        )
        if early:
            raise LostTheWay(f"{len(early)} bytes came that nothing asked for")
        return self._opened

    @property
    def may_list(self) -> bool:
        """A list can be had here: the export is not open, or is all that an oldstyle server has."""
        return self._opened is None or self._handshake.greeting.export is not None

    async def list_exports(self) -> list[ListedExport]:
        """Send LIST, if `may_list`. An oldstyle server has the default export and nothing else."""
        if self._handshake.greeting.export is not None:
            return [ListedExport("")]
        if not self._has_options:
            raise Refusal(Rep.ERR_UNSUP, "the server cannot list its exports")
        self._core.list_exports()
        answer = await self._handshake.ask()
        if isinstance(answer, Refused):
            raise self._refusal(answer)
        self._room.grow(len(answer.exports))
        self._server.misnamed = answer.misnamed
        if answer.misnamed and self._server.told.is_news("", Misnamed.__name__):
            self._server.tell(Misnamed(answer.misnamed))
        return list(answer.exports)

    async def aclose(self) -> None:
        """Leave the export, if it is open, with DISC; or end the handshake."""
        if self._opened is None:
            await self._handshake.aclose()
            return
        with suppress(OSError):
            self._opened.socket.send(self._opened.export.framing.disc())
        self._opened.close()


def _of_qemu(contexts: Iterable[MetaContext]) -> tuple[MetaContext, ...]:
    return tuple(context for context in contexts if context.name.startswith("qemu:"))

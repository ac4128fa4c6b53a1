"""Our face to clients: the negotiation as the server of it, without any I/O.

Framing comes first, meaning second: a whole option is taken off the buffer before anybody looks at it. So if
its data is bad, this option fails and nothing else. A table says which options exist and what may be in them
(`_OPTIONS`). If there is no legal answer, `Hangup` is raised.

The driver's loop:

    negotiation.receive(data)              bytes from the client
    event = negotiation.next_event()       None: send data_to_send(), then read more
    negotiation.answer_…() or .refuse()    each event is answered exactly once
    negotiation.data_to_send()             bytes for the client

An option that needs no decision from outside (STRUCTURED_REPLY, ABORT, an unknown one) is answered here.
The negotiation is over after the answer to an event in which the client chose its export. What the client sent
after that option belongs to the transmission phase (`trailing_data`).

STARTTLS ends a negotiation as well. Over TLS another one follows. Of what was agreed on in the clear it knows
only the client's flags: nothing has to be forgotten, so nothing can be left over (CVE-2021-3716 was a
structured reply that survived). Bytes that came after STARTTLS were sent in the clear. Somebody may have
injected them, to be obeyed once there is TLS, so they end the connection.

This is longer than other modules: whether an option is legal depends on the options before it (TLS, structured
replies, a selection), so they are judged in one place.

"Handshake phase", "TLS support" and "Option types" in proto.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from gateway.protocol.errors import Hangup, Misuse, Refusal
from gateway.wire import handshake, limits
from gateway.wire.constants import IHAVEOPT, ClientFlag, HandshakeFlag, Info, Opt, Rep, name_of
from gateway.wire.errors import WireError
from gateway.wire.handshake import (
    AnyInfo,
    BlockSizes,
    DescriptionInfo,
    ExportInfo,
    ListedExport,
    MetaContext,
    NameInfo,
)


@dataclass(frozen=True, slots=True)
class ListAsked:
    """LIST: answer with `answer_list`."""


@dataclass(frozen=True, slots=True)
class ExportAsked:
    """INFO, or GO if `go`: answer with `answer_export`."""

    name: str
    wanted: frozenset[int]
    go: bool


@dataclass(frozen=True, slots=True)
class ExportNameChosen:
    """EXPORT_NAME: answer with `answer_export_name`. The option has no refusal: to refuse it is to hang up."""

    name: str


@dataclass(frozen=True, slots=True)
class ContextsAsked:
    """LIST_META_CONTEXT, or SET_META_CONTEXT if `select`: answer with `answer_contexts`."""

    name: str
    queries: tuple[str, ...]
    select: bool


@dataclass(frozen=True, slots=True)
class Aborted:
    """ABORT: acknowledged already; send what there is and close."""


@dataclass(frozen=True, slots=True)
class TlsAsked:
    """STARTTLS: answer with `answer_starttls`, or `refuse`."""


Event = ListAsked | ExportAsked | ExportNameChosen | ContextsAsked | TlsAsked | Aborted


def option_of(event: Event) -> Opt:
    """Give the option that a client asked with."""
    match event:
        case ListAsked():
            return Opt.LIST
        case ExportAsked(go=go):
            return Opt.GO if go else Opt.INFO
        case ExportNameChosen():
            return Opt.EXPORT_NAME
        case ContextsAsked(select=select):
            return Opt.SET_META_CONTEXT if select else Opt.LIST_META_CONTEXT
        case TlsAsked():
            return Opt.STARTTLS
        case Aborted():
            return Opt.ABORT


class Tls(Enum):
    """Whether a server has TLS, and for whom ("TLS support")."""

    OFF = "off"
    """NOTLS: there is none."""
    ALLOW = "allow"
    """SELECTIVETLS: for clients that want it, and for exports that require it."""
    REQUIRE = "require"
    """FORCEDTLS: without it nothing is told."""


_E = TypeVar("_E")


@dataclass(frozen=True, slots=True)
class Description:
    """What INFO, GO and EXPORT_NAME tell of an export."""

    size: int
    flags: int
    block_sizes: BlockSizes
    name: str | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A negotiation that goes on elsewhere, from an option that was read and not answered. What was selected is
    left out.
    """

    client_flags: int
    structured: bool
    extended: bool
    secure: bool
    options: int
    """How many were taken, without the one that is not answered."""
    names_told: int
    unread: bytes
    """That option, and what came behind it."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The contexts that the last SET_META_CONTEXT selected, and for which export."""

    name: str
    contexts: tuple[MetaContext, ...]


@dataclass(frozen=True, slots=True)
class ServerDialect:
    """What a server can do in this negotiation; the gateway itself can do all of it."""

    handshake_flags: int = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
    unsupported: frozenset[int] = frozenset({Opt.PEEK_EXPORT})
    announce_block_sizes: bool = False
    """Send INFO_BLOCK_SIZE to those who did not ask as well (as qemu does)."""
    tls: Tls = Tls.OFF


class ServerNegotiation:
    """One client's negotiation. See the module's docstring for the loop that drives it."""

    def __init__(self, dialect: ServerDialect = ServerDialect()) -> None:
        self._dialect = dialect
        self._received = bytearray()
        self._output = bytearray(handshake.encode_greeting(dialect.handshake_flags))
        self._client_flags: int | None = None
        self._options = 0  # taken so far
        self._last = b""  # the last of them, as it came
        self._asked: Event | None = None  # the event that waits for its answer
        self._over = False
        self.structured = False
        """The client negotiated STRUCTURED_REPLY, or EXTENDED_HEADERS, which implies it."""
        self.extended = False
        """The client negotiated EXTENDED_HEADERS."""
        self.selection: Selection | None = None
        """What the last SET_META_CONTEXT selected; None if it failed or never came."""
        self.names_told = 0
        """How many names the longest LIST had: a client may ask about all of them."""
        self.asked_for: str | None = None
        """The export that the client asked about last."""
        self.shutting_down = False
        """Set by the driver: from now on every option but ABORT is answered ERR_SHUTDOWN."""
        self.secure = False
        """The negotiation goes over TLS."""
        self.refused_in_the_clear: tuple[str, str] | None = None
        """The last option that was refused for want of TLS, the client's or ours, and how. Over TLS another
        negotiation begins."""

    # --- Bytes in, events out

    def receive(self, data: bytes) -> None:
        """Take bytes from the client, in whatever pieces they came."""
        self._received += data

    def next_event(self) -> Event | None:
        """Give what the client wants next, or None if more bytes are needed.

        Raises `Hangup` or `WireError` if the connection has to be closed, after sending what
        `data_to_send` still has.
        """
        if self._asked is not None:
            raise Misuse(f"{self._asked} has not been answered")
        while not self._over:
            if self._client_flags is None:
                if not self._take_client_flags():
                    return None
                continue
            option = self._take_option()
            if option is None:
                return None
            number, data = option
            event = self._judge(number, data)
            if event is not None:
                self.asked_for = getattr(event, "name", self.asked_for)
                if isinstance(event, Aborted):
                    self._over = True
                else:
                    self._asked = event
                return event
        return None

    def data_to_send(self) -> bytes:
        """Give what has to go to the client, once."""
        data = bytes(self._output)
        self._output.clear()
        return data

    @property
    def trailing_data(self) -> bytes:
        """Bytes that came after the last option: the beginning of the transmission phase."""
        if not self._over:
            raise Misuse("the negotiation is not over")
        return bytes(self._received)

    def selected_contexts(self, name: str) -> tuple[MetaContext, ...]:
        """Give the contexts that are in force if export `name` is opened now.

        A selection for another export does not count ("SET_META_CONTEXT": the names MUST match).
        """
        selection = self.selection
        return selection.contexts if selection and selection.name == name else ()

    def unfinished(self) -> Unfinished:
        """Give what somebody else needs to go on from the event that is not answered (`resumed`)."""
        if self._asked is None or self._output:
            raise Misuse("there is nothing to answer, or something is still to be sent")
        return Unfinished(
            self._client_flags or 0,
            self.structured,
            self.extended,
            self.secure,
            self._options - 1,
            self.names_told,
            self._last + bytes(self._received),
        )

    @classmethod
    def resumed(cls, dialect: ServerDialect, before: Unfinished) -> ServerNegotiation:
        """Give a negotiation that goes on where another one gave `unfinished`. It does not greet."""
        after = cls(dialect)
        after._output.clear()
        after._client_flags = before.client_flags
        after.structured, after.extended = before.structured, before.extended
        after.secure, after.names_told = before.secure, before.names_told
        after._options = before.options
        after.receive(before.unread)
        return after

    # --- Answers

    def answer_list(self, exports: Iterable[ListedExport]) -> None:
        """Answer LIST."""
        self._answered(ListAsked)
        names = 0
        for export in exports:
            names += 1
            self._reply(Opt.LIST, Rep.SERVER, handshake.encode_server(export))
        self._reply(Opt.LIST, Rep.ACK)
        self.names_told = max(self.names_told, names)

    def answer_contexts(self, contexts: Sequence[MetaContext]) -> None:
        """Answer LIST_META_CONTEXT or SET_META_CONTEXT; the latter makes them the selection."""
        asked = self._answered(ContextsAsked)
        option = Opt.SET_META_CONTEXT if asked.select else Opt.LIST_META_CONTEXT
        for context in contexts:
            self._reply(option, Rep.META_CONTEXT, handshake.encode_meta_context(context))
        self._reply(option, Rep.ACK)
        if asked.select:
            self.selection = Selection(asked.name, tuple(contexts))

    def answer_export(self, export: Description) -> None:
        """Answer INFO or GO; after GO the transmission phase begins."""
        asked = self._answered(ExportAsked)
        option = Opt.GO if asked.go else Opt.INFO
        self._describe(option, export, asked.wanted)
        self._reply(option, Rep.ACK)
        self._over = asked.go

    def answer_export_name(self, export: Description) -> None:
        """Answer EXPORT_NAME; the transmission phase begins."""
        self._answered(ExportNameChosen)
        client = self._client_flags or 0
        self._output += handshake.encode_export_name_reply(
            export.size, export.flags, zeroes=not client & ClientFlag.NO_ZEROES
        )
        self._over = True

    def answer_starttls(self) -> ServerNegotiation:
        """Grant STARTTLS: give the negotiation that follows over TLS, after the handshake.

        Raises `Hangup` if the client has sent more than it may before it has the answer.
        """
        self._answered(TlsAsked)
        if self._received:
            raise Hangup(
                f"{len(self._received)} bytes came behind STARTTLS, before the TLS handshake; if the client"
                " did not send them, somebody in between did"
            )
        self._reply(Opt.STARTTLS, Rep.ACK)
        self._over = True
        after = ServerNegotiation(self._dialect)
        after._output.clear()  # the greeting
        after._client_flags = self._client_flags
        after.names_told = self.names_told  # it allows options, which are counted on
        after._options = self._options
        after.secure = True
        after.shutting_down = self.shutting_down
        return after

    def refuse(self, refusal: Refusal, export: Description | None = None) -> None:
        """Answer the open event with an error reply; the client may go on asking.

        `export` is what INFO and GO show before ERR_BLOCK_SIZE_REQD. EXPORT_NAME has no error reply:
        raises `Hangup`.
        """
        asked = self._asked
        self._answered(object)
        assert asked is not None
        option = option_of(asked)
        if option == Opt.EXPORT_NAME:
            raise Hangup(f"EXPORT_NAME cannot be refused otherwise: {refusal}")
        if export is not None and isinstance(asked, ExportAsked):
            self._describe(option, export, asked.wanted)
        self._reply(option, refusal.reply, refusal.text.encode())

    def _answered(self, kind: type[_E]) -> _E:
        asked = self._asked
        if asked is None or not isinstance(asked, kind):
            raise Misuse(f"this does not answer {asked}")
        self._asked = None
        return asked

    def _describe(self, option: int, export: Description, wanted: frozenset[int]) -> None:
        infos: list[AnyInfo] = [ExportInfo(export.size, export.flags)]
        if Info.NAME in wanted and export.name is not None:
            infos.append(NameInfo(export.name))
        if Info.DESCRIPTION in wanted and export.description is not None:
            infos.append(DescriptionInfo(export.description))
        # A client that did not ask is not bound by block sizes, but it had better know of a minimum.
        if (
            Info.BLOCK_SIZE in wanted
            or self._dialect.announce_block_sizes
            or export.block_sizes.minimum > 1
        ):
            infos.append(export.block_sizes)
        for info in infos:
            self._reply(option, Rep.INFO, handshake.encode_info(info))

    def _reply(self, option: int, reply: int, data: bytes = b"") -> None:
        self._output += handshake.encode_option_reply(option, reply, data)

    # --- Framing

    def _take_client_flags(self) -> bool:
        if len(self._received) < handshake.CLIENT_FLAGS.size:
            return False
        (flags,) = handshake.CLIENT_FLAGS.unpack_from(self._received)
        del self._received[: handshake.CLIENT_FLAGS.size]
        known = ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES
        # "the server MUST close the connection if it does not recognise a flag"; and a client MUST NOT
        # set what was not offered. Both fields use the same two bits. (As int: `~` of an IntFlag has
        # no bits but those with a name.)
        if handshake.begins_tls(flags):
            raise Hangup(handshake.TLS_WITHOUT_NBD)
        if flags & ~int(known & self._dialect.handshake_flags):
            raise Hangup(
                f"client flags {flags:#x} where at most {self._dialect.handshake_flags:#x} was offered"
            )
        self._client_flags = flags
        return True

    def _take_option(self) -> tuple[int, bytes] | None:
        received = self._received
        if len(received) < handshake.OPTION.size:
            return None
        magic, number, length = handshake.OPTION.unpack_from(received)
        if magic != IHAVEOPT:
            raise WireError(f"an option begins with {magic:#018x} instead of IHAVEOPT")
        if length > limits.MAX_OPTION_BYTES:
            raise Hangup(
                f"{name_of(Opt, number)} announces {length} bytes of data;"
                f" at most {limits.MAX_OPTION_BYTES} are taken"
            )
        end = handshake.OPTION.size + length
        if len(received) < end:
            return None
        self._last = bytes(received[:end])
        data = self._last[handshake.OPTION.size :]
        del received[:end]
        self._options += 1
        # Names that are told again allow no more options: else a client could ask LIST for ever.
        most = limits.MAX_OPTIONS + limits.OPTIONS_PER_LISTED_NAME * self.names_told
        if self._options > most:
            raise Hangup(f"more than {most} options in one negotiation")
        return number, data

    # --- Meaning

    def _judge(self, number: int, data: bytes) -> Event | None:
        """Give the event of a whole option, or answer it here and give None."""
        if number == Opt.EXPORT_NAME:
            return self._export_name(data)
        if not (self._client_flags or 0) & ClientFlag.FIXED_NEWSTYLE:
            # "Fixed newstyle negotiation": without it only EXPORT_NAME has an answer.
            raise Hangup(f"{name_of(Opt, number)} without having agreed on fixed newstyle")
        try:
            if self.shutting_down and number != Opt.ABORT:
                raise Refusal(Rep.ERR_SHUTDOWN, "the server is shutting down")
            if self._needs_tls and number not in (Opt.STARTTLS, Opt.ABORT):
                # "including unknown ones": which options we know is nobody's business before TLS.
                text = "this server wants TLS first: send STARTTLS"
                raise self._refusal_in_the_clear(number, Rep.ERR_TLS_REQD, text)
            take = None if number in self._dialect.unsupported else _OPTIONS.get(number)
            if take is None:
                raise Refusal(Rep.ERR_UNSUP, f"{name_of(Opt, number)} is not supported")
            return take(self, data)
        except WireError as error:  # the option is whole, so we are still in step
            self._reply(number, Rep.ERR_INVALID, f"{name_of(Opt, number)}: {error}".encode())
        except Refusal as refusal:
            self._reply(number, refusal.reply, refusal.text.encode())
        return None

    def _export_name(self, data: bytes) -> Event:
        if self.shutting_down:
            raise Hangup("EXPORT_NAME while shutting down")
        if self._needs_tls:
            raise Hangup("EXPORT_NAME where TLS is required")
        if self.extended:
            raise Hangup("EXPORT_NAME after EXTENDED_HEADERS")  # its reply has no room for an error
        return ExportNameChosen(handshake.decode_string(data, "the export name"))

    @property
    def _needs_tls(self) -> bool:
        return self._dialect.tls is Tls.REQUIRE and not self.secure

    def _refusal_in_the_clear(self, number: int, reply: Rep, text: str) -> Refusal:
        refusal = Refusal(reply, text)
        self.refused_in_the_clear = name_of(Opt, number), str(refusal)
        return refusal

    def _starttls(self, data: bytes) -> Event:
        if self._dialect.tls is Tls.OFF:
            text = "STARTTLS is not supported"
            raise self._refusal_in_the_clear(Opt.STARTTLS, Rep.ERR_UNSUP, text)
        _expect_no_data(data)
        if self.secure:
            raise Refusal(Rep.ERR_INVALID, "TLS is in force already")
        return TlsAsked()

    def _abort(self, _data: bytes) -> Event:
        # "SHOULD accept and ignore data"
        self._reply(Opt.ABORT, Rep.ACK)
        return Aborted()

    def _list(self, data: bytes) -> Event:
        _expect_no_data(data)
        return ListAsked()

    def _structured_reply(self, data: bytes) -> None:
        _expect_no_data(data)
        if self.extended:
            text = "EXTENDED_HEADERS is in force, which includes structured replies"
            raise Refusal(Rep.ERR_EXT_HEADER_REQD, text)
        self.structured = True
        self._reply(Opt.STRUCTURED_REPLY, Rep.ACK)

    def _extended_headers(self, data: bytes) -> None:
        _expect_no_data(data)
        if self.extended:
            raise Refusal(Rep.ERR_INVALID, "EXTENDED_HEADERS is in force already")
        self.extended = self.structured = True
        self._reply(Opt.EXTENDED_HEADERS, Rep.ACK)

    def _info(self, data: bytes) -> Event:
        request = handshake.decode_info_request(data)
        return ExportAsked(request.name, request.wanted, go=False)

    def _go(self, data: bytes) -> Event:
        request = handshake.decode_info_request(data)
        return ExportAsked(request.name, request.wanted, go=True)

    def _list_meta_context(self, data: bytes) -> Event:
        return self._meta_context(data, select=False)

    def _set_meta_context(self, data: bytes) -> Event:
        self.selection = None  # "replaces the previous selection", even when this one fails
        return self._meta_context(data, select=True)

    def _meta_context(self, data: bytes, *, select: bool) -> Event:
        request = handshake.decode_meta_query(data)
        if not self.structured:
            raise Refusal(Rep.ERR_INVALID, "STRUCTURED_REPLY has to be negotiated before")
        return ContextsAsked(request.name, request.queries, select)


def _expect_no_data(data: bytes) -> None:
    if data:
        raise Refusal(Rep.ERR_INVALID, f"{len(data)} bytes of data where none are allowed")


_OPTIONS: dict[int, Callable[[ServerNegotiation, bytes], Event | None]] = {
    Opt.ABORT: ServerNegotiation._abort,
    Opt.STARTTLS: ServerNegotiation._starttls,
    Opt.LIST: ServerNegotiation._list,
    Opt.INFO: ServerNegotiation._info,
    Opt.GO: ServerNegotiation._go,
    Opt.STRUCTURED_REPLY: ServerNegotiation._structured_reply,
    Opt.EXTENDED_HEADERS: ServerNegotiation._extended_headers,
    Opt.LIST_META_CONTEXT: ServerNegotiation._list_meta_context,
    Opt.SET_META_CONTEXT: ServerNegotiation._set_meta_context,
}

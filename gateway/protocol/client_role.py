"""Our face to upstreams: the negotiation as the client of it, without any I/O.

One option is under way at a time (a client MUST NOT pipeline options). The driver's loop:

    negotiation.receive(data)           bytes from the server
    event = negotiation.next_event()    None: send data_to_send(), then read more
    negotiation.list_exports() …        after Greeted, and after each Answered or Refused: ask the next

Every reply is checked against the option that is under way: its number, which types may answer that option
(`_ANSWERS`), exact lengths, an INFO_EXPORT exactly once. A reply that breaks these rules raises `WireError`,
which ends this connection. "Handshake phase" and "Option reply types" in proto.md.

After STARTTLS was granted another negotiation follows, made by `secured`, which knows nothing but the server's
style. If anything came in the clear after the answer, the connection ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from gateway.protocol.errors import Misuse
from gateway.wire import handshake, limits
from gateway.wire.constants import (
    IHAVEOPT,
    NBDMAGIC,
    OLDSTYLE_MAGIC,
    OPTION_REPLY_MAGIC,
    REP_ERROR_BIT,
    ClientFlag,
    HandshakeFlag,
    Opt,
    Rep,
    name_of,
)
from gateway.wire.errors import NoString, WireError
from gateway.wire.handshake import (
    AnyInfo,
    BlockSizes,
    DescriptionInfo,
    ExportInfo,
    ListedExport,
    MetaContext,
    NameInfo,
)


class Style(Enum):
    """The three handshakes."""

    OLDSTYLE = auto()
    NEWSTYLE = auto()
    FIXED_NEWSTYLE = auto()


@dataclass(frozen=True, slots=True)
class Greeted:
    """The server has introduced itself. `export` is there if it is oldstyle: then the negotiation is over."""

    style: Style
    export: ExportInfo | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """The option under way was granted, and this is what the server told, by kind."""

    option: int
    export: ExportInfo | None = None
    name: str | None = None
    description: str | None = None
    block_sizes: BlockSizes | None = None
    exports: tuple[ListedExport, ...] = ()
    misnamed: tuple[str, ...] = ()
    """Names that were listed and are no strings, so that nobody can ask for them; in a form for messages."""
    contexts: tuple[MetaContext, ...] = ()
    named: bool = False
    """A name came; it may be empty."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The option under way was refused; `told` is what INFO or GO told before that."""

    option: int
    reply: int
    text: str
    told: Answered

    def __str__(self) -> str:
        return handshake.refusal_sentence(self.option, self.reply, self.text)


Event = Greeted | Answered | Refused

_ANSWERS: dict[int, Rep | None] = {
    Opt.LIST: Rep.SERVER,
    Opt.INFO: Rep.INFO,
    Opt.GO: Rep.INFO,
    Opt.LIST_META_CONTEXT: Rep.META_CONTEXT,
    Opt.SET_META_CONTEXT: Rep.META_CONTEXT,
    Opt.STRUCTURED_REPLY: None,
    Opt.EXTENDED_HEADERS: None,
    Opt.ABORT: None,
    Opt.STARTTLS: None,
}


@dataclass(slots=True)
class _UnderWay:
    """The option that waits for its last reply, and what came for it so far."""

    option: int
    queries: Sequence[str] = ()
    replies: int = 0
    infos: dict[type[AnyInfo], AnyInfo] = field(default_factory=dict)
    exports: list[ListedExport] = field(default_factory=list)
    misnamed: list[str] = field(default_factory=list)
    contexts: list[MetaContext] = field(default_factory=list)

    def told(self) -> Answered:
        export = self.infos.get(ExportInfo)
        name = self.infos.get(NameInfo)
        description = self.infos.get(DescriptionInfo)
        block_sizes = self.infos.get(BlockSizes)
        return Answered(
            self.option,
            export if isinstance(export, ExportInfo) else None,
            # Q-S21: qemu 2.10.0 gives '' as the canonical name of every export.
            name.name or None if isinstance(name, NameInfo) else None,
            description.description if isinstance(description, DescriptionInfo) else None,
            block_sizes if isinstance(block_sizes, BlockSizes) else None,
            tuple(self.exports),
            tuple(self.misnamed),
            tuple(self.contexts),
            name is not None,
        )


class ClientNegotiation:
    """One negotiation with an upstream. See the module's docstring for the loop that drives it."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._output = bytearray()
        self._under_way: _UnderWay | None = None
        self._zeroes = True
        self.style: Style | None = None
        """Which handshake the server speaks; None before `Greeted`."""
        self.handshake_flags = 0
        self.structured = False
        """STRUCTURED_REPLY was acknowledged, or EXTENDED_HEADERS, which implies it."""
        self.extended = False
        """EXTENDED_HEADERS was acknowledged."""

    @property
    def busy(self) -> bool:
        """An option is under way."""
        return self._under_way is not None

    # --- Bytes in, events out

    def receive(self, data: bytes) -> None:
        """Take bytes from the server, in whatever pieces they came."""
        self._received += data

    def next_event(self) -> Event | None:
        """Give what the server said, or None if more bytes are needed.

        Raises `WireError` if the server breaks the protocol; the connection is of no use then.
        """
        if self.style is None:
            return self._take_greeting()
        while self._under_way is not None:
            if self._under_way.option == Opt.EXPORT_NAME:
                return self._take_export_name_reply()
            reply = self._take_reply()
            if reply is None:
                return None
            event = self._judge(*reply)
            if event is not None:
                self._under_way = None
                return event
        if self._received:
            raise WireError(f"{len(self._received)} bytes came that nothing asked for")
        return None

    def data_to_send(self) -> bytes:
        """Give what has to go to the server, once."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def secured(self) -> ClientNegotiation:
        """Give the negotiation that follows over TLS, after STARTTLS was granted.

        Raises `WireError` if the server sent more than the answer: that must not be taken for what it says over
        TLS.
        """
        if self._received:
            raise WireError(f"{len(self._received)} bytes came in the clear behind STARTTLS")
        after = ClientNegotiation()
        after.style = self.style
        after.handshake_flags = self.handshake_flags
        after._zeroes = self._zeroes
        return after

    # --- Questions

    def ask_starttls(self) -> None:
        """Send STARTTLS; the TLS handshake follows `Answered`."""
        self._ask(Opt.STARTTLS)

    def ask_structured_replies(self) -> None:
        """Send STRUCTURED_REPLY."""
        self._ask(Opt.STRUCTURED_REPLY)

    def ask_extended_headers(self) -> None:
        """Send EXTENDED_HEADERS."""
        self._ask(Opt.EXTENDED_HEADERS)

    def list_exports(self) -> None:
        """Send LIST."""
        self._ask(Opt.LIST)

    def ask_contexts(self, name: str, queries: Sequence[str], *, select: bool) -> None:
        """Send SET_META_CONTEXT if `select`, LIST_META_CONTEXT otherwise."""
        option = Opt.SET_META_CONTEXT if select else Opt.LIST_META_CONTEXT
        self._ask(option, handshake.encode_meta_query(name, queries), queries)

    def ask_info(self, name: str, wanted: Iterable[int]) -> None:
        """Send INFO."""
        self._ask(Opt.INFO, handshake.encode_info_request(name, wanted))

    def go(self, name: str, wanted: Iterable[int]) -> None:
        """Send GO; `Answered` begins the transmission phase."""
        self._ask(Opt.GO, handshake.encode_info_request(name, wanted))

    def export_name(self, name: str) -> None:
        """Send EXPORT_NAME; `Answered` begins the transmission phase, a refusal is a closed connection."""
        self._ask(Opt.EXPORT_NAME, name.encode())

    def abort(self) -> None:
        """Send ABORT. An answer need not be waited for; nbd-server never gives one (Q-N5)."""
        self._ask(Opt.ABORT)

    def _ask(self, option: Opt, data: bytes = b"", queries: Sequence[str] = ()) -> None:
        if self._under_way is not None:
            raise Misuse(f"{name_of(Opt, self._under_way.option)} has not been answered yet")
        if self.style is not Style.FIXED_NEWSTYLE and (
            self.style is not Style.NEWSTYLE or option != Opt.EXPORT_NAME
        ):
            raise Misuse(f"{option.name} cannot be asked of a server that is {self.style}")
        self._under_way = _UnderWay(option, queries)
        self._output += handshake.encode_option(option, data)

    # --- Framing

    def _take(self, length: int) -> bytes | None:
        if len(self._received) < length:
            return None
        data = bytes(self._received[:length])
        del self._received[:length]
        return data

    def _take_greeting(self) -> Greeted | None:
        received = self._received
        expected = NBDMAGIC.to_bytes(8)
        if not expected.startswith(bytes(received[:8])):
            raise WireError(f"a greeting begins with {bytes(received[:8])!r}, not with NBDMAGIC")
        if len(received) < handshake.GREETING_HEAD.size:
            return None
        _, magic = handshake.GREETING_HEAD.unpack_from(received)
        if magic == IHAVEOPT:
            return self._take_newstyle_greeting()
        if magic == OLDSTYLE_MAGIC:
            return self._take_oldstyle_greeting()
        raise WireError(f"a greeting with {magic:#018x}, which is neither newstyle nor oldstyle")

    def _take_newstyle_greeting(self) -> Greeted | None:
        data = self._take(handshake.NEWSTYLE_GREETING.size)
        if data is None:
            return None
        _, _, flags = handshake.NEWSTYLE_GREETING.unpack(data)
        fixed = flags & HandshakeFlag.FIXED_NEWSTYLE
        self.handshake_flags = flags
        self.style = Style.FIXED_NEWSTYLE if fixed else Style.NEWSTYLE
        self._zeroes = not flags & HandshakeFlag.NO_ZEROES
        # A bit means the same in both fields. We answer with those that we know.
        known = ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES
        self._output += handshake.CLIENT_FLAGS.pack(flags & known)
        return Greeted(self.style)

    def _take_oldstyle_greeting(self) -> Greeted | None:
        data = self._take(handshake.OLDSTYLE_GREETING.size)
        if data is None:
            return None
        _, _, size, handshake_flags, flags = handshake.OLDSTYLE_GREETING.unpack(data)
        if handshake_flags:
            raise WireError(f"an oldstyle greeting with handshake flags {handshake_flags:#x}")
        self.style = Style.OLDSTYLE
        return Greeted(self.style, _sane_export(size, flags))

    def _take_export_name_reply(self) -> Answered | None:
        padding = len(handshake.EXPORT_NAME_PADDING) if self._zeroes else 0
        data = self._take(handshake.EXPORT_NAME_REPLY.size + padding)
        if data is None:
            return None
        self._under_way = None
        size, flags = handshake.EXPORT_NAME_REPLY.unpack_from(data)
        return Answered(Opt.EXPORT_NAME, export=_sane_export(size, flags))

    def _take_reply(self) -> tuple[int, int, bytes] | None:
        received = self._received
        if len(received) < handshake.OPTION_REPLY.size:
            return None
        magic, option, reply, length = handshake.OPTION_REPLY.unpack_from(received)
        if magic != OPTION_REPLY_MAGIC:
            raise WireError(f"an option reply begins with {magic:#018x}")
        if length > limits.MAX_OPTION_REPLY_BYTES:
            raise WireError(
                f"{name_of(Rep, reply)} announces {length} bytes;"
                f" at most {limits.MAX_OPTION_REPLY_BYTES} are taken"
            )
        if len(received) < handshake.OPTION_REPLY.size + length:
            return None
        del received[: handshake.OPTION_REPLY.size]
        return option, reply, self._take(length) or b""

    # --- Meaning

    def _judge(self, option: int, reply: int, data: bytes) -> Event | None:
        """Take one whole reply; give the event if it was the last reply to the option."""
        under_way = self._under_way
        if under_way is None or option != under_way.option:
            asked = "nothing" if under_way is None else name_of(Opt, under_way.option)
            raise WireError(f"a reply to {name_of(Opt, option)} where {asked} was asked")
        under_way.replies += 1
        if under_way.replies > limits.MAX_OPTION_REPLIES:
            raise WireError(
                f"more than {limits.MAX_OPTION_REPLIES} replies to {name_of(Opt, option)}"
            )
        if reply & REP_ERROR_BIT:
            text = handshake.decode_error_text(data)
            return Refused(option, reply, text, under_way.told())
        if reply == Rep.ACK:
            return self._acknowledged(under_way, data)
        if reply == _ANSWERS[option]:
            _collect(under_way, reply, data)
        # Another reply that is no error "MAY be dropped".
        return None

    def _acknowledged(self, under_way: _UnderWay, data: bytes) -> Answered:
        option = under_way.option
        if data:
            raise WireError(f"ACK to {name_of(Opt, option)} with {len(data)} bytes of data")
        if option in (Opt.INFO, Opt.GO) and ExportInfo not in under_way.infos:
            raise WireError(f"{name_of(Opt, option)} was acknowledged without INFO_EXPORT")
        if option == Opt.STRUCTURED_REPLY:
            self.structured = True
        if option == Opt.EXTENDED_HEADERS:
            self.extended = self.structured = True
        return under_way.told()


def _collect(under_way: _UnderWay, reply: int, data: bytes) -> None:
    match reply:
        case Rep.SERVER:
            try:
                under_way.exports.append(handshake.decode_server(data))
            except NoString:
                under_way.misnamed.append(handshake.misnamed(data))
        case Rep.META_CONTEXT:
            _collect_context(under_way, handshake.decode_meta_context(data))
        case Rep.INFO:
            info = handshake.decode_info(data)
            if isinstance(info, ExportInfo):
                if ExportInfo in under_way.infos:
                    raise WireError("INFO_EXPORT came twice")
                info = _sane_export(info.size, info.flags)
            under_way.infos[type(info)] = info


def _collect_context(under_way: _UnderWay, context: MetaContext) -> None:
    if under_way.option == Opt.SET_META_CONTEXT:
        if not any(_answers(query, context.name) for query in under_way.queries):
            raise WireError(
                f"meta context {handshake.shown(context.name)} was selected, which was not asked for"
            )
        if any(context.id == c.id or context.name == c.name for c in under_way.contexts):
            raise WireError(
                f"meta context {handshake.shown(context.name)} (id {context.id}) was selected twice"
            )
    under_way.contexts.append(context)


def _answers(query: str, name: str) -> bool:
    """Say whether a context may answer a query: one of its name, or a wildcard such as `qemu:`."""
    return query == name or (query.endswith(":") and name.startswith(query))


def _sane_export(size: int, flags: int) -> ExportInfo:
    if size > limits.MAX_SIZE_BYTES:
        raise WireError(
            f"an export of {size} bytes; the largest that can be addressed has 2**63 - 1"
        )
    return ExportInfo(size, flags)

"""The readers of what comes before the transmission phase: both negotiations, PROXY headers, ClientHellos."""

from __future__ import annotations

from collections.abc import Callable

from gateway.protocol.client_role import Answered, ClientNegotiation, Greeted, Refused, Style
from gateway.protocol.errors import Hangup, Refusal
from gateway.protocol.export import Export, Offer, offer, sane_block_sizes, usable_size, view_of
from gateway.protocol.server_role import (
    Aborted,
    ContextsAsked,
    Description,
    ExportAsked,
    ExportNameChosen,
    ListAsked,
    ServerDialect,
    ServerNegotiation,
    Tls,
    TlsAsked,
)
from gateway.quirks import Evidence, dialect_of, recognised
from gateway.tls.hello import MAX_HELLO_BYTES, offers_key
from gateway.wire import handshake, limits
from gateway.wire.constants import HandshakeFlag, Info, Opt, Rep
from gateway.wire.errors import WireError
from gateway.wire.handshake import BlockSizes, ExportInfo, ListedExport, MetaContext, NameInfo
from gateway.wire.proxy import HEAD, MAX_BLOCK_BYTES, SIGNATURE, Header, decode_header
from tests.fuzz.target import Pieces, Target, kind_of

_SIZES = BlockSizes(1, 4096, 2**25)
_LARGE_BLOCKS = BlockSizes(512, 2**27, 2**32 - 1)
_EXPORT = Description(2**30, 1, _SIZES, "disk", "words")
_CONTEXT = MetaContext(1, "base:allocation")

MAX_ANSWER_BYTES = 1000
"""Of what one option is answered with here: an error's text, or everything there is to say of `_EXPORT`."""


class _Server:
    """A server's negotiation, answered at once; over TLS it goes on with the next one."""

    def __init__(self, tls: Tls) -> None:
        self.negotiation = ServerNegotiation(ServerDialect(tls=tls))
        self.read: list[object] = []
        self.sent = b""
        self.over = False

    def receive(self, piece: bytes) -> None:
        self.negotiation.receive(piece)
        while self._answer():
            pass
        self.take_answers()
        longest = handshake.OPTION.size + limits.MAX_OPTION_BYTES
        assert self.over or len(self.negotiation._received) < longest

    def take_answers(self) -> None:
        self.sent += self.negotiation.data_to_send()
        most = handshake.NEWSTYLE_GREETING.size + MAX_ANSWER_BYTES * self.negotiation._options
        assert len(self.sent) <= most

    def _answer(self) -> bool:
        """Answer the next event; say whether there was one that leaves the negotiation open."""
        negotiation = self.negotiation
        event = negotiation.next_event()
        self.read.append(event)
        match event:
            case None:
                self.read.pop()
                return False
            case ListAsked():
                negotiation.answer_list([ListedExport("disk")])
            case ContextsAsked():
                negotiation.answer_contexts([_CONTEXT])
            case TlsAsked():
                self._start_tls()
            case ExportAsked(name="", go=False):
                negotiation.refuse(Refusal(Rep.ERR_UNKNOWN, "no default"), _EXPORT)
            case ExportAsked(go=go):
                negotiation.answer_export(_EXPORT)
                self.over = go
            case ExportNameChosen():
                negotiation.answer_export_name(_EXPORT)
                self.over = True
            case Aborted():
                self.over = True
        return not self.over

    def _start_tls(self) -> None:
        """What is behind STARTTLS comes over TLS here: a client waits for its answer."""
        behind = bytes(self.negotiation._received)
        self.negotiation._received.clear()
        after = self.negotiation.answer_starttls()
        self.take_answers()
        self.negotiation = after
        after.receive(behind)


def server_negotiation(tls: Tls) -> Callable[[Pieces], object]:
    """Garbage from a client."""

    def run(pieces: Pieces) -> object:
        server = _Server(tls)
        error = None
        for piece in pieces:
            try:
                server.receive(piece)
            except (WireError, Hangup) as raised:
                error = kind_of(raised)
                server.take_answers()
                break
            if server.over:
                break
        last = server.negotiation
        return error, server.read, server.sent, last.structured, last.extended, last.selection

    return run


_QUESTIONS: tuple[Callable[[ClientNegotiation], None], ...] = (
    ClientNegotiation.ask_starttls,
    ClientNegotiation.ask_extended_headers,
    ClientNegotiation.ask_structured_replies,
    ClientNegotiation.list_exports,
    lambda negotiation: negotiation.ask_contexts("disk", [], select=False),
    lambda negotiation: negotiation.ask_contexts("disk", ["base:", "x:y"], select=True),
    lambda negotiation: negotiation.ask_info("disk", list(Info)),
    lambda negotiation: negotiation.go("disk", list(Info)),
    lambda negotiation: negotiation.export_name("disk"),
)


class _Client:
    """A client's negotiation that asks one thing after the other, until it is let in."""

    def __init__(self) -> None:
        self.negotiation = ClientNegotiation()
        self.questions = list(_QUESTIONS)
        self.read: list[object] = []
        self.sent = b""

    def receive(self, piece: bytes) -> bool:
        """Say whether there is more to ask."""
        self.negotiation.receive(piece)
        while (event := self.negotiation.next_event()) is not None:
            self.read.append(event)
            if isinstance(event, Greeted | Answered) and event.export is not None:
                self.read.append(_promised(self.negotiation, event.export, event))
            if not self._ask(event):
                return False
            self.sent += self.negotiation.data_to_send()
        longest = handshake.OPTION_REPLY.size + limits.MAX_OPTION_REPLY_BYTES
        assert len(self.negotiation._received) < longest
        return True

    def _ask(self, event: object) -> bool:
        match event:
            case Greeted(style=Style.OLDSTYLE) | Answered(option=Opt.GO | Opt.EXPORT_NAME):
                return False
            case Greeted(style=Style.NEWSTYLE):
                del self.questions[:-1]
            case Answered(option=Opt.STARTTLS):
                # What is behind the answer comes over TLS: the server waits for the handshake.
                behind = bytes(self.negotiation._received)
                self.negotiation._received.clear()
                self.negotiation = self.negotiation.secured()
                self.negotiation.receive(behind)
            case Answered(option=Opt.EXTENDED_HEADERS):
                self.questions.pop(0)  # includes structured replies
            case Refused():
                assert str(event)
                assert len(event.text) <= limits.ERROR_TEXT_BYTES
        self.questions.pop(0)(self.negotiation)
        return True


def _promised(negotiation: ClientNegotiation, told: ExportInfo, event: Greeted | Answered) -> Offer:
    """Whatever an upstream tells of its export, what a client is told of it makes sense."""
    assert negotiation.style is not None
    sizes = event.block_sizes if isinstance(event, Answered) else None
    evidence = Evidence(negotiation.style, told.flags, sizes, structured=negotiation.structured)
    sane = sane_block_sizes(sizes)
    export = Export(
        usable_size(told.size, sane),
        told.flags,
        sane,
        structured=negotiation.structured,
        extended=negotiation.extended,
    )
    repaired = dialect_of(recognised(evidence)).repair(export)
    promised = offer(view_of(repaired), structured=True, extended=True)
    assert sane_block_sizes(promised.block_sizes) == promised.block_sizes, promised
    assert promised.size <= told.size
    assert promised.size % promised.block_sizes.minimum == 0
    return promised


def client_negotiation(pieces: Pieces) -> object:
    """Garbage from an upstream."""
    client = _Client()
    error = None
    for piece in pieces:
        try:
            if not client.receive(piece):
                break
        except WireError as raised:
            error = kind_of(raised)
            break
    last = client.negotiation
    return error, client.read, client.sent, last.structured, last.extended, last.handshake_flags


def _header(data: bytes) -> Header | int | str:
    try:
        return decode_header(data)
    except WireError as error:
        return kind_of(error)


def proxy_header(pieces: Pieces) -> object:
    """Garbage from a load balancer."""
    received, read = b"", _header(b"")
    for piece in pieces:
        before, received = read, received + piece
        read = _header(received)
        if not isinstance(before, int):
            assert read == before, "more bytes behind it have made another one of it"
        if isinstance(read, int):
            assert 0 < read <= HEAD.size + MAX_BLOCK_BYTES
    # Whoever receives as many bytes as are missing receives none of the client's.
    at, said = 0, _header(b"")
    while isinstance(said, int) and at + said <= len(received):
        at += said
        said = _header(received[:at])
    if isinstance(said, Header):
        assert said.length == at
    assert said == read or (isinstance(said, int) and not isinstance(read, Header))
    return read


_SUITES = frozenset({0x00A8, 0x00A9})


def client_hello(pieces: Pieces) -> object:
    """Garbage where TLS begins."""
    received, offers = bytearray(), None
    for piece in pieces:
        before = offers
        received += piece
        offers = offers_key(received, _SUITES)
        assert before is None or offers is before
        assert offers is not None or len(received) <= 2 * MAX_HELLO_BYTES
    return offers


# --- What their input is made of

_OPTIONS = (
    handshake.encode_option(Opt.STRUCTURED_REPLY),
    handshake.encode_option(Opt.EXTENDED_HEADERS),
    handshake.encode_option(Opt.STARTTLS),
    handshake.encode_option(Opt.PEEK_EXPORT),
    handshake.encode_option(Opt.LIST),
    handshake.encode_option(Opt.ABORT),
    handshake.encode_option(Opt.EXPORT_NAME, b"disk"),
    handshake.encode_option(Opt.INFO, handshake.encode_info_request("disk", [0, 1, 3])),
    handshake.encode_option(Opt.INFO, handshake.encode_info_request("", [])),
    handshake.encode_option(Opt.GO, handshake.encode_info_request("disk", [])),
    handshake.encode_option(Opt.SET_META_CONTEXT, handshake.encode_meta_query("disk", ["base:"])),
    handshake.encode_option(Opt.LIST_META_CONTEXT, handshake.encode_meta_query("disk", [])),
)
_ANSWERS = tuple(
    handshake.encode_option_reply(option, reply, data)
    for option, reply, data in (
        (Opt.STARTTLS, Rep.ACK, b""),
        (Opt.STARTTLS, Rep.ERR_POLICY, b"never"),
        (Opt.EXTENDED_HEADERS, Rep.ACK, b""),
        (Opt.EXTENDED_HEADERS, Rep.ERR_UNSUP, b""),
        (Opt.STRUCTURED_REPLY, Rep.ACK, b""),
        (Opt.STRUCTURED_REPLY, Rep.ERR_UNSUP, b"no"),
        (Opt.LIST, Rep.SERVER, handshake.encode_server(ListedExport("disk", "words"))),
        (Opt.LIST, Rep.ACK, b""),
        (Opt.LIST_META_CONTEXT, Rep.META_CONTEXT, handshake.encode_meta_context(_CONTEXT)),
        (Opt.LIST_META_CONTEXT, Rep.ACK, b""),
        (Opt.SET_META_CONTEXT, Rep.META_CONTEXT, handshake.encode_meta_context(_CONTEXT)),
        (Opt.SET_META_CONTEXT, Rep.ACK, b""),
        *(
            (option, Rep.INFO, handshake.encode_info(info))
            for option in (Opt.INFO, Opt.GO)
            for info in (ExportInfo(2**30, 1), _SIZES, _LARGE_BLOCKS, NameInfo("disk"))
        ),
        (Opt.INFO, Rep.ACK, b""),
        (Opt.GO, Rep.ERR_UNKNOWN, b"who?"),
        (Opt.GO, Rep.ACK, b""),
    )
)
_GREETINGS = (
    handshake.encode_greeting(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES),
    handshake.encode_greeting(HandshakeFlag.FIXED_NEWSTYLE),
    handshake.encode_greeting(0),
    handshake.encode_oldstyle_greeting(2**30, 1),
    b"",
    b"NBDMAGIC",
)

_PROXY_HEADS = tuple(HEAD.pack(SIGNATURE, *head) for head in ((0x21, 0x11, 12), (0x21, 0x31, 216)))
_PROXY_WORDS = (b" TCP4", b" TCP6", b" UNKNOWN", b" 192.0.2.1", b" 2001:db8::1", b" 56324", b"\r\n")


def _hello(*extensions: bytes) -> bytes:
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\4\x13\1\0\xff" + b"\1\0"
    if extensions:
        joined = b"".join(extensions)
        body += len(joined).to_bytes(2) + joined
    message = b"\1" + len(body).to_bytes(3) + body
    return b"\x16\3\1" + len(message).to_bytes(2) + message


_KEY_EXTENSION = b"\0\x29\0\2ab"
_HELLOS = (_hello(), _hello(b"\0\x2b\0\3\2\3\4"), _hello(b"\0\0\0\0", _KEY_EXTENSION))

TARGETS = {
    "server-negotiation": Target(
        server_negotiation(Tls.ALLOW), (b"\0\0\0\3", b"\0\0\0\1", b"\0\0\0\0", b""), _OPTIONS
    ),
    "server-negotiation-tls": Target(
        server_negotiation(Tls.REQUIRE), (b"\0\0\0\3" + _OPTIONS[2], b"\0\0\0\3"), _OPTIONS
    ),
    "client-negotiation": Target(client_negotiation, _GREETINGS, _ANSWERS),
    "proxy-header": Target(
        proxy_header, (b"PROXY", b"PROXY TCP4", SIGNATURE, *_PROXY_HEADS, b""), _PROXY_WORDS
    ),
    "client-hello": Target(
        client_hello, (*_HELLOS, b"\x16\3\1", b""), (_KEY_EXTENSION, b"\0\x2b\0\3\2\3\4", b"\0")
    ),
}

"""The readers, each as a function of the pieces in which its input comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.protocol.client import ClientNegotiation
from gateway.protocol.errors import Hangup, Refusal
from gateway.protocol.server import (
    Aborted,
    ContextsAsked,
    Description,
    ExportAsked,
    ExportNameChosen,
    ListAsked,
    ServerNegotiation,
)
from gateway.relay.scan.chunks import reply_scan
from gateway.relay.scan.requests import MAX_ANSWERS, RequestScan
from gateway.relay.scan.traffic import MAX_IN_FLIGHT
from gateway.wire import handshake, limits
from gateway.wire.constants import Cmd, CmdFlag, Info, Opt, Rep
from gateway.wire.errors import WireError
from gateway.wire.handshake import BlockSizes, ExportInfo, ListedExport, MetaContext, NameInfo
from gateway.wire.proxy import HEAD, MAX_BLOCK_BYTES, SIGNATURE, Header, decode_header
from tests.relay.scan import peers
from tests.relay.scan.peers import Client, Feeder, Request

Pieces = Sequence[bytes]


@dataclass(frozen=True)
class Target:
    """A reader, and whole messages to make its input of."""

    run: Callable[[Pieces], None]
    start: tuple[bytes, ...]
    messages: tuple[bytes, ...]


# --- Negotiations

_SIZES = BlockSizes(1, 4096, 2**25)
_EXPORT = Description(2**30, 1, _SIZES, "disk", "words")
_CONTEXT = MetaContext(1, "base:allocation")


def _answer(negotiation: ServerNegotiation) -> bool:
    """Answer the next event; say whether there was one that leaves the negotiation open."""
    match negotiation.next_event():
        case None | Aborted():
            return False
        case ListAsked():
            negotiation.answer_list([ListedExport("disk")])
        case ContextsAsked():
            negotiation.answer_contexts([_CONTEXT])
        case ExportAsked(name="", go=False):
            negotiation.refuse(Refusal(Rep.ERR_UNKNOWN, "no default"), _EXPORT)
        case ExportAsked(go=go):
            negotiation.answer_export(_EXPORT)
            return not go
        case ExportNameChosen():
            negotiation.answer_export_name(_EXPORT)
            return False
    return True


def server_negotiation(pieces: Pieces) -> None:
    """Garbage from a client."""
    negotiation = ServerNegotiation()
    for piece in pieces:
        negotiation.receive(piece)
        try:
            while _answer(negotiation):
                pass
        except (WireError, Hangup):
            return
        if negotiation._over:
            return
        assert len(negotiation._received) <= handshake.OPTION.size + limits.MAX_OPTION_BYTES
        negotiation.data_to_send()


_QUESTIONS: tuple[Callable[[ClientNegotiation], None], ...] = (
    ClientNegotiation.ask_structured_replies,
    ClientNegotiation.list_exports,
    lambda negotiation: negotiation.ask_contexts("disk", ["base:", "x:y"], select=True),
    lambda negotiation: negotiation.ask_info("disk", list(Info)),
    lambda negotiation: negotiation.go("disk", list(Info)),
    lambda negotiation: negotiation.export_name("disk"),
)


def client_negotiation(pieces: Pieces) -> None:
    """Garbage from an upstream."""
    negotiation = ClientNegotiation()
    questions = list(_QUESTIONS)
    for piece in pieces:
        negotiation.receive(piece)
        try:
            while negotiation.next_event() is not None:
                if not negotiation.handshake_flags & 1 or not questions:
                    return
                questions.pop(0)(negotiation)
        except WireError:
            return
        most = handshake.OPTION_REPLY.size + limits.MAX_OPTION_REPLY_BYTES
        assert len(negotiation._received) <= most
        negotiation.data_to_send()


def proxy_header(pieces: Pieces) -> None:
    """Garbage from a load balancer."""
    received = b""
    for piece in pieces:
        received += piece
        try:
            header = decode_header(received)
        except WireError:
            return
        if isinstance(header, Header):
            assert header.length <= len(received)
            return
        assert 0 < header <= HEAD.size + MAX_BLOCK_BYTES


# --- Scanners


def requests(pieces: Pieces) -> None:
    """Garbage from a client in its session."""
    traffic = peers.traffic(client_structured=True, link_structured=True)
    scan = RequestScan(traffic)
    feeder = Feeder(scan)
    for piece in pieces:
        try:
            feeder.feed(piece)
        except (WireError, Hangup):
            return
        assert len(traffic.in_flight) <= MAX_IN_FLIGHT
        assert len(scan.answers) <= MAX_ANSWERS
        scan.answers.clear()
        if scan.disconnected:
            break
        if len(traffic.in_flight) < MAX_IN_FLIGHT:
            assert len(feeder.held) < 28
    if scan.between_messages:
        sent = peers.read_requests(bytes(feeder.sent))
        assert {request.cookie for request in sent} == set(traffic.in_flight)


_ASKED = (
    Request(Cmd.READ, 0, 100, 64, 40),
    Request(Cmd.READ, 0, 101, 4096, 25),
    Request(Cmd.WRITE, 0, 102, 0, 4, b"data"),
    Request(Cmd.BLOCK_STATUS, 0, 103, 0, 512),
    Request(Cmd.WRITE_ZEROES, CmdFlag.FAST_ZERO, 104, 0, 100 * 2**20),
    Request(Cmd.FLUSH, 0, 105, 0, 0),
)


def replies(*, client: bool, link: bool) -> Callable[[Pieces], None]:
    """Garbage from an upstream in a session: whatever comes, the client is told the truth."""
    asked = [request for request in _ASKED if link or request.command != Cmd.BLOCK_STATUS]

    def run(pieces: Pieces) -> None:
        traffic = peers.traffic(client_structured=client, link_structured=link)
        Feeder(RequestScan(traffic)).feed(b"".join(request.bytes for request in asked))
        scan = reply_scan(traffic)
        feeder = Feeder(scan)
        for piece in pieces:
            try:
                feeder.feed(piece)
            except WireError:
                break
        last = scan.fail("over")
        for slice_ in last or ():
            feeder.sent += slice_
        # What the client reads is legal, and each of its commands has one reply.
        reader = Client(asked, structured=client)
        reader.read(bytes(feeder.sent))
        if last is None:
            assert not client
            assert reader.cut_off
        else:
            assert not reader.cut_off
            assert not reader.under_way

    return run


_SIMPLE = tuple(
    peers.simple(ours, error, data)
    for ours, data in ((1, bytes(40)), (2, bytes(25)), (3, b""), (4, b""), (5, b""), (6, b""))
    for error in (0, 0, 95, 5)
    if not error or not data
)
_CHUNKS = (
    peers.data_chunk(1, 64, bytes(40), done=True),
    peers.data_chunk(1, 64, bytes(20)),
    peers.data_chunk(1, 84, bytes(20)),
    peers.hole_chunk(2, 4096, 20),
    peers.hole_chunk(2, 4116, 5, done=True),
    peers.error_chunk(2, 5, "sector", 4100),
    peers.error_chunk(3, 28, "full", done=True),
    peers.error_chunk(4, 22, done=True),
    peers.error_chunk(5, 95, "slow", done=True),
    peers.status_chunk(4, 70, [(512, 0)]),
    peers.status_chunk(4, 71, [(0, 0), (1024, 3)], done=True),
    *(peers.none(ours) for ours in range(1, 9)),
)

_OPTIONS = (
    handshake.encode_option(Opt.STRUCTURED_REPLY),
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
        (Opt.STRUCTURED_REPLY, Rep.ACK, b""),
        (Opt.STRUCTURED_REPLY, Rep.ERR_UNSUP, b"no"),
        (Opt.LIST, Rep.SERVER, handshake.encode_server(ListedExport("disk", "words"))),
        (Opt.LIST, Rep.ACK, b""),
        (Opt.SET_META_CONTEXT, Rep.META_CONTEXT, handshake.encode_meta_context(_CONTEXT)),
        (Opt.SET_META_CONTEXT, Rep.ACK, b""),
        (Opt.INFO, Rep.INFO, handshake.encode_info(ExportInfo(2**30, 1))),
        (Opt.INFO, Rep.INFO, handshake.encode_info(_SIZES)),
        (Opt.INFO, Rep.INFO, handshake.encode_info(NameInfo("disk"))),
        (Opt.INFO, Rep.ACK, b""),
        (Opt.GO, Rep.ERR_UNKNOWN, b"who?"),
    )
)

_PROXY_HEADS = tuple(HEAD.pack(SIGNATURE, *head) for head in ((0x21, 0x11, 12), (0x21, 0x31, 216)))
_PROXY_WORDS = (b" TCP4", b" TCP6", b" UNKNOWN", b" 192.0.2.1", b" 2001:db8::1", b" 56324", b"\r\n")

TARGETS = {
    "server negotiation": Target(
        server_negotiation, (b"\0\0\0\3", b"\0\0\0\1", b"\0\0\0\0", b""), _OPTIONS
    ),
    "client negotiation": Target(
        client_negotiation,
        (handshake.encode_greeting(3), handshake.encode_greeting(1), b"", b"NBDMAGIC"),
        _ANSWERS,
    ),
    "proxy header": Target(
        proxy_header, (b"PROXY", b"PROXY TCP4", SIGNATURE, *_PROXY_HEADS, b""), _PROXY_WORDS
    ),
    "requests": Target(
        requests, (b"",), (*(r.bytes for r in _ASKED), Request(Cmd.DISC, 0, 0, 0, 0).bytes)
    ),
    "simple replies": Target(replies(client=False, link=False), (b"",), _SIMPLE),
    "wrapped replies": Target(replies(client=True, link=False), (b"",), _SIMPLE),
    "structured replies": Target(replies(client=True, link=True), (b"",), _CHUNKS + _SIMPLE),
}

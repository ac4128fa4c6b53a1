"""The readers of the transmission phase: requests of clients, replies of upstreams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from gateway.jobs.jobs import MAX_JOB_BYTES
from gateway.losses.rule import Losses
from gateway.protocol.errors import Hangup
from gateway.scan.chunks import reply_scan
from gateway.scan.memory import Memory
from gateway.scan.plan import Plan
from gateway.scan.requests import MAX_ANSWERS, STATUS_COST_BYTES, RequestScan
from gateway.scan.traffic import Traffic
from gateway.wire.constants import Cmd, CmdFlag
from gateway.wire.errors import WireError
from gateway.wire.handshake import BlockSizes
from gateway.wire.limits import MAX_REQUEST_BYTES
from tests.fuzz.target import Pieces, Target, kind_of
from tests.scan import peers
from tests.scan.peers import Client, Feeder, Request

MAX_ANSWER_BYTES = 1000
"""Of what one request is answered with here: a header, and 900 bytes of text."""

MOST_IN_FLIGHT = 12
"""So few that inputs reach it."""

_BLOCKS = BlockSizes(512, 4096, 2**25)


@dataclass(frozen=True)
class Session:
    """What was negotiated on both sides of it."""

    client: str
    link: str
    block_sizes: BlockSizes | None = None
    """Where a block is larger than a byte, what does not obey it is a job."""

    keeps: bool = False
    """Data of WRITEs is kept until they are answered, to be written over another link if this one dies."""

    def traffic(self) -> Traffic:
        traffic = Traffic(_plan(self))
        if self.keeps:
            trail = Losses().trail(None)
            trail.losses.came_up(trail)
            traffic.memory = Memory(trail)
        return traffic


@cache  # it takes longer than all else that is done with one input
def _plan(session: Session) -> Plan:
    return peers.traffic(
        client_structured=session.client != "simple",
        client_extended=session.client == "extended",
        link_structured=session.link != "simple",
        link_extended=session.link == "extended",
        block_sizes=session.block_sizes,
    ).plan


# --- Requests


def _requests(data: bytes, *, extended: bool) -> list[Request]:
    """Give the requests that a client's bytes are, up to DISC."""
    found: list[Request] = []
    head = 32 if extended else 28
    while data and (not found or found[-1].command != Cmd.DISC):
        flags, command = int.from_bytes(data[4:6]), int.from_bytes(data[6:8])
        cookie, offset = int.from_bytes(data[8:16]), int.from_bytes(data[16:24])
        length = int.from_bytes(data[24:head])
        carries = command == Cmd.WRITE or (extended and flags & CmdFlag.PAYLOAD_LEN)
        behind = head + (length if carries else 0)
        found.append(Request(command, flags, cookie, offset, length, data[head:behind]))
        data = data[behind:]
    return found


def _told(replies: bytes, *, extended: bool) -> list[int]:
    """Give the cookies of a client's requests that have their reply, in the order of the replies."""
    found = []
    while replies:
        cookie = int.from_bytes(replies[8:16])
        simple = replies.startswith(b"\x67\x44\x66\x98")
        head = 16 if simple else 32 if extended else 20
        length = 0 if simple else int.from_bytes(replies[head - (8 if extended else 4) : head])
        assert simple or replies[5] & 1, "a chunk that does not end its reply"
        found.append(cookie)
        replies = replies[head + length :]
    return found


class _Pin:
    pins = 1

    def unpin(self) -> None:
        self.pins -= 1


def requests(session: Session) -> Callable[[Pieces], object]:
    """Garbage from a client: each of its requests goes upstream or is answered, and is answered once."""
    extended = session.client == "extended"

    def run(pieces: Pieces) -> object:
        traffic = session.traffic()
        traffic.most_in_flight = MOST_IN_FLIGHT
        scan = RequestScan(traffic)
        scan.pin = _Pin
        feeder = Feeder(scan)
        answers: list[bytes] = []
        error = None
        for piece in pieces:
            try:
                _feed_all(feeder, piece, answers)
            except (WireError, Hangup) as raised:
                error = kind_of(raised)
                break
            assert len(traffic.in_flight) <= MOST_IN_FLIGHT
            if scan.disconnected:
                break
            if traffic.room > 0:
                assert len(feeder.held) < 32
        answers += scan.answers
        under_way = list(traffic.in_flight.items())
        if scan.between_messages:
            sent = peers.read_requests(bytes(feeder.sent), extended=session.link == "extended")
            assert {request.cookie for request in sent} == set(traffic.in_flight)
            if traffic.memory is not None:
                writes = {r.cookie: r.data for r in sent if r.command == Cmd.WRITE}
                assert traffic.memory.take_data() == writes
            if error is None:
                data = b"".join(pieces)
                taken = data[: len(data) - len(feeder.held)]
                last = reply_scan(traffic).fail("over")
                assert last is not None
                told = _told(b"".join(answers) + b"".join(last), extended=extended)
                asked = [
                    r.cookie for r in _requests(taken, extended=extended) if r.command != Cmd.DISC
                ]
                assert Counter(told) == Counter(asked)
        return error, bytes(feeder.sent), answers, under_way, scan.disconnected

    return run


def _feed_all(feeder: Feeder, piece: bytes, answers: list[bytes]) -> None:
    """Feed until the scanner wants no more of it, as a lane does."""
    scan = feeder.scan
    assert isinstance(scan, RequestScan)
    held = -1
    while held != len(feeder.held) or piece:
        held = len(feeder.held)
        feeder.feed(piece)
        piece = b""
        assert len(scan.answers) <= MAX_ANSWERS
        assert sum(map(len, scan.answers)) <= MAX_ANSWER_BYTES * len(scan.answers)
        assert len(scan._gathered) <= MAX_REQUEST_BYTES
        assert scan._traffic.jobs.bytes <= MAX_JOB_BYTES + MAX_REQUEST_BYTES + STATUS_COST_BYTES
        answers += scan.answers
        scan.answers.clear()
        if scan.disconnected:
            break


# --- Replies

_ASKED = (
    Request(Cmd.READ, 0, 100, 64, 40),
    Request(Cmd.READ, 0, 101, 4096, 25),
    Request(Cmd.WRITE, 0, 102, 0, 4, b"data"),
    Request(Cmd.BLOCK_STATUS, 0, 103, 0, 512),
    Request(Cmd.WRITE_ZEROES, CmdFlag.FAST_ZERO, 104, 0, 100 * 2**20),
    Request(Cmd.FLUSH, 0, 105, 0, 0),
)


def replies(session: Session) -> Callable[[Pieces], object]:
    """Garbage from an upstream in a session: whatever comes, the client is told the truth."""
    asked = [r for r in _ASKED if session.link != "simple" or r.command != Cmd.BLOCK_STATUS]
    extended = session.client == "extended"
    sent = b"".join(request.extended_bytes if extended else request.bytes for request in asked)
    chunked = session.client != "simple"

    def run(pieces: Pieces) -> object:
        traffic = session.traffic()
        requests = Feeder(RequestScan(traffic))
        requests.feed(sent)
        scan = reply_scan(traffic)
        feeder = Feeder(scan)
        error = None
        for piece in pieces:
            try:
                feeder.feed(piece)
            except WireError as raised:
                error = kind_of(raised)
                break
            assert len(feeder.held) < 40, "a head, and an offset"
        asks = [bytes(piece) for piece in traffic.to_upstream]
        last = scan.fail("over")
        for slice_ in last or ():
            feeder.sent += slice_
        received = sum(map(len, pieces))
        assert len(feeder.sent) <= 4 * received + MAX_ANSWER_BYTES * len(asked)
        # What the client reads is legal, and each of its commands has one reply.
        reader = Client(asked, structured=chunked, extended=extended)
        reader.read(bytes(feeder.sent))
        if last is None:
            assert not chunked
            assert reader.cut_off
        else:
            assert not reader.cut_off
            assert not reader.under_way
        return error, reader.replies, asks, bytes(reader.cut_off)

    return run


# --- What their input is made of

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
_OFFSETS = {1: 64, 2: 4096, 6: 2**25, 7: 2**26, 8: 3 * 2**25}
_EXTENDED = tuple(peers.extended(chunk, _OFFSETS) for chunk in _CHUNKS)
# A job reads whole blocks, and then may write them.
_OF_JOBS = (
    peers.data_chunk(1, 0, bytes(512), done=True),
    peers.data_chunk(2, 4096, bytes(512), done=True),
    peers.data_chunk(3, 0, bytes(512), done=True),
    peers.hole_chunk(3, 0, 512, done=True),
    peers.data_chunk(3, 0, bytes(256)),
    *_CHUNKS,
    *(peers.none(ours) for ours in range(9, 12)),
)

_REQUESTS = (
    *_ASKED,
    Request(Cmd.TRIM, 0, 106, 512, 1024),
    Request(Cmd.CACHE, 0, 107, 0, 4096),
    Request(Cmd.READ, CmdFlag.DF, 108, 0, 512),
    Request(Cmd.WRITE, CmdFlag.FUA, 109, 512, 8, bytes(8)),
    Request(Cmd.BLOCK_STATUS, CmdFlag.REQ_ONE, 110, 512, 512),
    Request(Cmd.DISC, 0, 0, 0, 0),
)
_SUBSET = Request(Cmd.BLOCK_STATUS, 0, 111, 0, 12, bytes(7) + b"\x40" + b"\0\0\0\5")

_ONES = tuple(request.bytes for request in _REQUESTS)
_WIDE = tuple(request.extended_bytes for request in (*_REQUESTS, _SUBSET))

TARGETS = {
    "requests": Target(requests(Session("structured", "structured")), (b"",), _ONES),
    "requests-extended": Target(requests(Session("extended", "extended")), (b"",), _WIDE),
    "requests-kept": Target(
        requests(Session("structured", "structured", keeps=True)), (b"",), _ONES
    ),
    "requests-blocks": Target(requests(Session("structured", "simple", _BLOCKS)), (b"",), _ONES),
    "replies-simple": Target(replies(Session("simple", "simple")), (b"",), _SIMPLE),
    "replies-wrapped": Target(replies(Session("structured", "simple")), (b"",), _SIMPLE),
    "replies-structured": Target(
        replies(Session("structured", "structured")), (b"",), _CHUNKS + _SIMPLE
    ),
    "replies-extended": Target(replies(Session("extended", "extended")), (b"",), _EXTENDED),
    "replies-blocks": Target(
        replies(Session("structured", "structured", _BLOCKS)), (b"",), _OF_JOBS + _SIMPLE
    ),
}

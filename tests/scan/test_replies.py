"""The three reply scanners: the same meaning, however the upstream's bytes are cut; nothing false."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.jobs.extents import mended_extents, narrowed
from gateway.protocol.commands import is_loss
from gateway.protocol.export import Export, offer, view_of
from gateway.quirks import Dialect
from gateway.scan.chunks import reply_scan
from gateway.scan.partial import Partial
from gateway.scan.plan import plan
from gateway.scan.requests import RequestScan
from gateway.scan.traffic import Traffic
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.errors import WireError
from gateway.wire.extents import Extents
from gateway.wire.handshake import BlockSizes, MetaContext
from tests.scan import peers
from tests.scan.peers import SIZE, Client, Feeder, Reply, Request, content, pieces_of

MIB = 2**20
SIMPLE, WRAPPED, STRUCTURED = "both simple", "simple upstream", "both structured"
FRAMINGS = {SIMPLE: (False, False), WRAPPED: (True, False), STRUCTURED: (True, True)}
"""Whether client and link are structured."""

CHUNKED = {
    "both structured": (False, False),
    "extended client": (True, False),
    "extended upstream": (False, True),
    "both extended": (True, True),
}
"""Whether client and link have extended headers, where both have chunks."""

chunked = pytest.mark.parametrize("headers", CHUNKED.values(), ids=CHUNKED)
BOTH_STRUCTURED = CHUNKED["both structured"]

framings = pytest.mark.parametrize("kind", list(FRAMINGS))


class Session:
    """A session whose requests have gone upstream; feed it with what the upstream answers."""

    def __init__(
        self,
        kind: str,
        asked: Sequence[Request],
        *,
        selected: tuple[MetaContext, ...] = peers.CLIENT_CONTEXTS,
        headers: tuple[bool, bool] = BOTH_STRUCTURED,
    ) -> None:
        client, link = FRAMINGS[kind]
        client_extended, self.link_extended = headers
        self.traffic: Traffic = peers.traffic(
            client_structured=client,
            link_structured=link,
            client_extended=client_extended,
            link_extended=self.link_extended,
            selected=selected,
        )
        feeder = Feeder(RequestScan(self.traffic))
        for request in asked:
            feeder.feed(request.extended_bytes if client_extended else request.bytes)
        self.upstream = peers.read_requests(bytes(feeder.sent), extended=self.link_extended)
        self.scan = reply_scan(self.traffic)
        self.feeder = Feeder(self.scan)
        self.client = Client(asked, structured=client, extended=client_extended)

    def feed(self, *pieces: bytes) -> None:
        self.feeder.feed_all(pieces)

    def as_sent(self, chunks: bytes) -> bytes:
        """The upstream's bytes, with the headers that it has here."""
        if not self.link_extended:
            return chunks
        return peers.extended(chunks, {r.cookie: r.offset for r in self.upstream})

    def replies(self) -> list[Reply]:
        """What the client has been told; nothing may be left half told."""
        self.feeder.sent += b"".join(self.traffic.to_client)
        self.traffic.to_client.clear()
        found = self.client.read(bytes(self.feeder.sent))
        self.feeder.sent.clear()
        assert not self.client.cut_off
        return found

    def further(self) -> Request:
        """The one request that came of a reply."""
        [request] = peers.read_requests(b"".join(self.traffic.to_upstream))
        self.traffic.to_upstream.clear()
        return request


# --- Traffic that is right, with what it means


def asked_of(draw: st.DrawFn, structured: bool) -> list[Request]:
    kinds = [Cmd.READ, Cmd.READ, Cmd.WRITE, Cmd.FLUSH, Cmd.TRIM, Cmd.CACHE, Cmd.WRITE_ZEROES]
    if structured:
        kinds.append(Cmd.BLOCK_STATUS)
    asked = []
    for cookie in range(100, 100 + draw(st.integers(1, 6))):
        command = draw(st.sampled_from(kinds))
        offset = 0 if command is Cmd.FLUSH else draw(st.integers(0, 5000))
        length = 0 if command is Cmd.FLUSH else draw(st.integers(1, 60))
        data = bytes(length) if command is Cmd.WRITE else b""
        asked.append(Request(command, 0, cookie, offset, length, data))
    return asked


ERRORS = {1: 1, 5: 5, 12: 12, 22: 22, 28: 28, 108: 108, 30: 1, 122: 28, 13: 1, 27: 28}
errors = st.sampled_from(sorted(ERRORS))


def told(request: Request, error: int) -> int:
    """What the client is told of an error; at a FLUSH, what is not known to mean less means that something is
    lost."""
    if request.command == Cmd.FLUSH and is_loss(error):
        return Errno.EIO
    return ERRORS.get(error, 0)


@st.composite
def simple_traffic(draw: st.DrawFn) -> tuple[list[Request], bytes, list[Reply]]:
    asked = asked_of(draw, False)
    sent, meant = b"", []
    for number in draw(st.permutations(range(len(asked)))):
        request = asked[number]
        error = draw(st.one_of(st.just(0), errors))
        read = request.command == Cmd.READ and not error
        data = content(request.offset, request.length) if read else b""
        sent += peers.simple(number + 1, error, data)
        meant.append(Reply(request.cookie, told(request, error), data))
    return asked, sent, meant


def read_chunks(draw: st.DrawFn, ours: int, request: Request) -> tuple[list[bytes], Reply]:
    cuts = draw(st.lists(st.integers(1, request.length), max_size=4))
    bounds = sorted({0, request.length, *cuts})
    chunks: list[bytes] = []
    data, error = bytearray(request.length), 0
    ranges: list[tuple[int, int]] = draw(st.permutations(list(pairwise(bounds))))
    for start, end in ranges:
        at = request.offset + start
        match draw(st.sampled_from(["data", "data", "data", "hole", "error"])):
            case "data":
                data[start:end] = content(at, end - start)
                chunks.append(peers.data_chunk(ours, at, content(at, end - start)))
            case "hole":
                chunks.append(peers.hole_chunk(ours, at, end - start))
            case _:
                number = draw(errors)
                error = error or ERRORS[number]
                offset = draw(st.sampled_from([None, at]))
                chunks.append(peers.error_chunk(ours, number, "bad sector é", offset))
    return chunks, Reply(request.cookie, error, b"" if error else bytes(data))


def chunks_for(draw: st.DrawFn, ours: int, request: Request) -> tuple[list[bytes], Reply]:
    chunks: list[bytes] = []
    if request.command == Cmd.READ:
        chunks, reply = read_chunks(draw, ours, request)
    elif request.command == Cmd.BLOCK_STATUS:
        # Cut to the shorter of the two.
        status = {5: [(request.length, 3)], 6: [(request.length, 1)]}
        chunks = [
            peers.status_chunk(ours, 70, [(0, 1), (request.length, 3)]),
            peers.status_chunk(ours, 71, [(request.length + 9, 1), (512, 2)]),
        ]
        reply = Reply(request.cookie, 0, b"", status)
    else:
        reply = Reply(request.cookie)
        if draw(st.integers(0, 1)):
            return [peers.simple(ours)], reply
    if draw(st.integers(0, 5)) == 0:
        number = draw(errors)
        chunks.append(peers.error_chunk(ours, number, "at last", done=True))
        reply.error = reply.error or told(request, number)
        reply.data = b""
        reply.status = {}
    elif draw(st.booleans()) and chunks:  # DONE in the last chunk, as nbdkit has it
        last = bytearray(chunks[-1])
        last[5] = 1
        chunks[-1] = bytes(last)
    else:
        chunks.append(peers.none(ours))
    return chunks, reply


@st.composite
def structured_traffic(draw: st.DrawFn) -> tuple[list[Request], bytes, list[Reply]]:
    """Replies of several chunks, interleaved."""
    asked = asked_of(draw, True)
    left = []
    for number, request in enumerate(asked):
        left.append(chunks_for(draw, number + 1, request))
    sent, meant = b"", []
    while left:
        pick = draw(st.integers(0, len(left) - 1))
        chunks, reply = left[pick]
        sent += chunks.pop(0)
        if not chunks:
            meant.append(reply)
            del left[pick]
    return asked, sent, meant


def _cookie(reply: Reply) -> int:
    return reply.cookie


def check_cuts(
    kind: str,
    told: tuple[list[Request], bytes, list[Reply]],
    cuts: Sequence[int],
    headers: tuple[bool, bool] = BOTH_STRUCTURED,
) -> None:
    asked, said, meant = told
    sent = Session(kind, asked, headers=headers).as_sent(said)
    for at in (cuts, (), range(len(sent))):
        session = Session(kind, asked, headers=headers)
        session.feed(*pieces_of(sent, at))
        # A FLUSH is a job, whose reply has its own way out.
        assert sorted(session.replies(), key=_cookie) == sorted(meant, key=_cookie)
        assert session.scan.between_messages
        assert not session.traffic.in_flight
        assert not session.traffic.partial
        assert not session.feeder.held
        assert session.scan.fail("over") == []


cut_lists = st.lists(st.integers(0, 800), max_size=20)


@settings(deadline=None)
@given(simple_traffic(), cut_lists)
def test_simple_cuts_make_no_difference(
    told: tuple[list[Request], bytes, list[Reply]], cuts: list[int]
) -> None:
    check_cuts(SIMPLE, told, cuts)


@settings(deadline=None)
@given(simple_traffic(), cut_lists)
def test_wrapped_cuts_make_no_difference(
    told: tuple[list[Request], bytes, list[Reply]], cuts: list[int]
) -> None:
    check_cuts(WRAPPED, told, cuts)


@chunked
@settings(deadline=None)
@given(structured_traffic(), cut_lists)
def test_structured_cuts_make_no_difference(
    headers: tuple[bool, bool], told: tuple[list[Request], bytes, list[Reply]], cuts: list[int]
) -> None:
    check_cuts(STRUCTURED, told, cuts, headers)


# --- The upstream dies

READ_A = Request(Cmd.READ, 0, 100, 64, 40)
READ_B = Request(Cmd.READ, 0, 101, 4096, 25)
FLUSH = Request(Cmd.FLUSH, 0, 102, 0, 0)
STATUS = Request(Cmd.BLOCK_STATUS, 0, 103, 0, 512)
ZEROES = Request(Cmd.WRITE_ZEROES, 0, 104, 0, 100 * MIB)
DATA_A, DATA_B = content(64, 40), content(4096, 25)

DYING = {
    "simple": (
        SIMPLE,
        peers.simple(1, 0, DATA_A) + peers.simple(3) + peers.simple(2, 0, DATA_B),
    ),
    "wrapped": (
        WRAPPED,
        peers.simple(1, 0, DATA_A) + peers.simple(3) + peers.simple(2, 0, DATA_B),
    ),
    "one chunk, DONE": (
        STRUCTURED,
        peers.data_chunk(1, 64, DATA_A, done=True)
        + peers.data_chunk(2, 4096, DATA_B, done=True)
        + peers.simple(3),
    ),
    "chunks, NONE": (
        STRUCTURED,
        peers.data_chunk(1, 64, DATA_A[:10])
        + peers.data_chunk(2, 4096, DATA_B)
        + peers.data_chunk(1, 74, DATA_A[10:])
        + peers.none(1)
        + peers.none(3)
        + peers.none(2),
    ),
    "chunks, DONE": (
        STRUCTURED,
        peers.data_chunk(1, 74, DATA_A[10:])
        + peers.error_chunk(2, 5, "sector", 4100)
        + peers.data_chunk(1, 64, DATA_A[:10], done=True)
        + peers.data_chunk(2, 4096, DATA_B[:4], done=True),
    ),
    "a gap": (
        STRUCTURED,
        peers.data_chunk(1, 64, DATA_A[:39], done=True)
        + peers.data_chunk(2, 4096, DATA_B[:-1])
        + peers.none(2),
    ),
}


DYING_ANYWHERE = [
    pytest.param(kind, said, headers, id=f"{name}, {dialects}")
    for name, (kind, said) in DYING.items()
    for dialects, headers in CHUNKED.items()
    if kind == STRUCTURED or headers == BOTH_STRUCTURED
]


LAST_BYTES = 80
"""What comes byte by byte of all that comes: the message that is cut, and the one before it."""


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize(("kind", "said", "headers"), DYING_ANYWHERE)
def test_upstream_dies_anywhere(
    kind: str, said: bytes, headers: tuple[bool, bool], bytewise: bool
) -> None:
    asked = [READ_A, READ_B, FLUSH, ZEROES]
    sent = Session(kind, asked, headers=headers).as_sent(said)
    truth = {100: DATA_A, 101: DATA_B, 102: b"", 104: b""}
    for cut in range(len(sent) + 1):
        session = Session(kind, asked, headers=headers)
        session.feed(*pieces_of(sent[:cut], range(cut - LAST_BYTES, cut) if bytewise else ()))
        half_sent = not session.scan.between_messages
        last = session.scan.fail("the link died")
        if last is None:
            # A simple reply with data has begun: the client's connection has to end.
            assert kind is SIMPLE
            assert half_sent
            session.client.read(bytes(session.feeder.sent))
            assert session.client.cut_off
            continue
        for piece in last:
            session.feeder.sent += piece
        told = session.replies()
        assert sorted(reply.cookie for reply in told) == [100, 101, 102, 104]
        assert not session.client.open
        for reply in told:
            if not reply.error:
                assert reply.data == truth[reply.cookie], f"at {cut}"
            else:
                assert reply.error == Errno.EIO
        assert next(reply.error for reply in told if reply.cookie == 104)
        assert not session.traffic.in_flight
        assert not session.traffic.jobs
        assert not session.traffic.partial


def test_dying_in_a_long_read_pads_all_of_it() -> None:
    long = Request(Cmd.READ, 0, 1, 0, 600 * 1024)
    for kind, head in [
        (WRAPPED, peers.simple(1, 0, b"abc")),
        (STRUCTURED, peers.data_chunk(1, 0, bytes(long.length), done=True)[:31]),
    ]:
        session = Session(kind, [long])
        session.feed(head)
        last = session.scan.fail("gone")
        assert last is not None
        for piece in last:
            session.feeder.sent += piece
        assert session.replies() == [Reply(1, Errno.EIO)]


@framings
def test_own_replies_wait_for_the_end_of_data(kind: str) -> None:
    structured = kind is not SIMPLE
    session = Session(kind, [READ_A, READ_B])
    session.client.under_way[7] = Request(Cmd.WRITE, 0, 7, 0, 1, b"x")
    own = session.traffic.failure(7, 0, Errno.ENOSPC, "full")
    head = peers.data_chunk(1, 64, DATA_A, done=True) if kind is STRUCTURED else b""
    sent = head or peers.simple(1, 0, DATA_A)
    session.feed(sent[:40])
    out: list[memoryview | bytes] = []
    session.scan.interject(own, out)
    assert not out
    session.feed(sent[40:])
    session.scan.interject(own, out)
    assert out == [own]
    session.feed(peers.simple(2, 5))
    assert session.replies() == [Reply(100, 0, DATA_A), Reply(7, 28), Reply(101, 5)]
    assert session.client.structured is structured


@framings
def test_own_replies_that_wait_are_sent_when_the_link_dies(kind: str) -> None:
    session = Session(kind, [READ_A])
    session.client.under_way[7] = Request(Cmd.WRITE, 0, 7, 0, 1, b"x")
    head = peers.data_chunk(1, 64, DATA_A, done=True) if kind is STRUCTURED else b""
    session.feed((head or peers.simple(1, 0, DATA_A))[:40])
    session.scan.interject(session.traffic.failure(7, 0, Errno.ENOSPC), [])
    last = session.scan.fail("gone")
    if kind is SIMPLE:
        assert last is None
        return
    assert last is not None
    for piece in last:
        session.feeder.sent += piece
    assert session.replies() == [Reply(100, 5), Reply(7, 28)]


# --- Replies that are not whole


@pytest.mark.parametrize(
    "sent",
    [
        peers.none(1),
        peers.data_chunk(1, 64, DATA_A[:39], done=True),
        peers.data_chunk(1, 65, DATA_A[1:], done=True),
        peers.data_chunk(1, 65, DATA_A[1:]) + peers.none(1),
        peers.data_chunk(1, 64, DATA_A[:5]) + peers.hole_chunk(1, 70, 34, done=True),
        peers.hole_chunk(1, 64, 39, done=True),
        peers.hole_chunk(1, 65, 39) + peers.none(1),
    ],
)
def test_done_over_a_gap_is_an_error(sent: bytes) -> None:
    for cuts in ((), range(len(sent))):
        session = Session(STRUCTURED, [READ_A])
        session.feed(*pieces_of(sent, cuts))
        assert session.replies() == [Reply(100, Errno.EIO)]
        assert not session.traffic.in_flight


@pytest.mark.parametrize(
    "sent",
    [
        peers.none(1),
        peers.status_chunk(1, 70, [(512, 0)], done=True),
        peers.status_chunk(1, 71, [(512, 0)]) + peers.none(1),
        peers.status_chunk(1, 70, [(512, 0)]) + peers.status_chunk(1, 71, [(0, 0)], done=True),
    ],
)
def test_done_before_every_context_is_an_error(sent: bytes) -> None:
    for cuts in ((), range(len(sent))):
        session = Session(STRUCTURED, [STATUS])
        session.feed(*pieces_of(sent, cuts))
        [reply] = session.replies()
        assert reply.error == Errno.EIO


def test_contexts_that_the_client_did_not_select_are_dropped() -> None:
    session = Session(STRUCTURED, [STATUS], selected=peers.CLIENT_CONTEXTS[:1])
    session.feed(
        b"".join(peers.status_chunk(1, context, [(512, 0)]) for context in (71, 70)) + peers.none(1)
    )
    assert session.replies() == [Reply(103, 0, b"", {5: [(512, 0)]})]


# --- Replies that are wrong

ALL_ASKED = [READ_A, Request(Cmd.WRITE, 0, 101, 0, 5, b"12345"), STATUS, ZEROES]

MALFORMED = {
    "simple: unknown cookie": (SIMPLE, peers.simple(9)),
    "simple: cookie 0": (SIMPLE, peers.simple(0)),
    "simple: client's cookie": (SIMPLE, peers.simple(100)),
    "simple: unknown cookie with an error": (SIMPLE, peers.simple(9, 5)),
    "simple: wrong magic": (SIMPLE, bytes(16)),
    "a context that nobody selected": (
        STRUCTURED,
        peers.status_chunk(3, 9, [(512, 0)], done=True),
    ),
    "simple: structured": (SIMPLE, peers.data_chunk(1, 64, DATA_A, done=True)),
    "simple: answered twice": (SIMPLE, peers.simple(2) * 2),
    "wrapped: unknown cookie": (WRAPPED, peers.simple(9)),
    "wrapped: wrong magic": (WRAPPED, bytes(16)),
    "wrapped: structured": (WRAPPED, peers.none(1)),
    "wrapped: answered twice": (WRAPPED, peers.simple(1, 0, DATA_A) * 2),
    "wrong magic": (STRUCTURED, bytes(28)),
    "wrong magic, 16 bytes": (STRUCTURED, bytes(16)),
    "request magic": (STRUCTURED, READ_A.bytes),
    "extended reply": (STRUCTURED, b"\x6e\x8a\x27\x8c" + peers.none(1)[4:]),
    "unknown cookie": (STRUCTURED, peers.none(9)),
    "unknown cookie, data": (STRUCTURED, peers.data_chunk(9, 64, DATA_A, done=True)),
    "unknown cookie, simple": (STRUCTURED, peers.simple(9)),
    "unknown cookie, simple error": (STRUCTURED, peers.simple(9, 5)),
    "unknown cookie, error": (STRUCTURED, peers.error_chunk(9, 5, done=True)),
    "client's cookie": (STRUCTURED, peers.none(100)),
    "answered twice": (STRUCTURED, peers.data_chunk(1, 64, DATA_A, done=True) * 2),
    "simple success to READ": (STRUCTURED, peers.simple(1, 0, DATA_A)),
    "simple success to BLOCK_STATUS": (STRUCTURED, peers.simple(3)),
    "simple success after an error": (
        STRUCTURED,
        peers.error_chunk(2, 5) + peers.simple(2),
    ),
    "data before the range": (STRUCTURED, peers.data_chunk(1, 63, DATA_A, done=True)),
    "data behind the range": (STRUCTURED, peers.data_chunk(1, 65, DATA_A, done=True)),
    "data far behind": (STRUCTURED, peers.data_chunk(1, 2**64 - 4, DATA_A)),
    "data too long": (STRUCTURED, peers.data_chunk(1, 64, DATA_A + b"x", done=True)),
    "data too long, head only": (
        STRUCTURED,
        peers.data_chunk(1, 64, DATA_A + b"x", done=True)[:28],
    ),
    "data of no bytes": (STRUCTURED, peers.data_chunk(1, 64, b"") + bytes(20)),
    "data without its offset": (STRUCTURED, peers.chunk(1, 1, bytes(7)) + bytes(20)),
    "data twice": (STRUCTURED, peers.data_chunk(1, 64, DATA_A[:9]) * 2),
    "data twice, whole": (
        STRUCTURED,
        peers.data_chunk(1, 64, DATA_A[:9]) + peers.data_chunk(1, 64, DATA_A, done=True),
    ),
    "overlap": (
        STRUCTURED,
        peers.data_chunk(1, 84, DATA_A[20:]) + peers.data_chunk(1, 64, DATA_A[:21]),
    ),
    "overlap of hole and data": (
        STRUCTURED,
        peers.data_chunk(1, 64, DATA_A[:9]) + peers.hole_chunk(1, 72, 4),
    ),
    "data to WRITE": (STRUCTURED, peers.data_chunk(2, 0, b"12345", done=True)),
    "data to BLOCK_STATUS": (STRUCTURED, peers.data_chunk(3, 0, bytes(512), done=True)),
    "data to a piece": (STRUCTURED, peers.data_chunk(4, 0, bytes(9))),
    "hole to WRITE": (STRUCTURED, peers.hole_chunk(2, 0, 5)),
    "hole of no bytes": (STRUCTURED, peers.hole_chunk(1, 64, 0)),
    "hole behind the range": (STRUCTURED, peers.hole_chunk(1, 64, 41)),
    "hole before the range": (STRUCTURED, peers.hole_chunk(1, 0, 41)),
    "hole of wrong size": (STRUCTURED, peers.chunk(2, 1, bytes(13))),
    "NONE without DONE": (STRUCTURED, peers.chunk(0, 1)),
    "NONE with a payload": (STRUCTURED, peers.chunk(0, 1, b"x", done=True)),
    "status to READ": (STRUCTURED, peers.status_chunk(1, 70, [(40, 0)])),
    "status to a piece": (STRUCTURED, peers.status_chunk(4, 70, [(40, 0)])),
    "status without extents": (STRUCTURED, peers.status_chunk(3, 70, [])),
    "status of odd length": (STRUCTURED, peers.chunk(5, 3, bytes(13))),
    "status too short": (STRUCTURED, peers.chunk(5, 3, bytes(3))),
    "status twice": (STRUCTURED, peers.status_chunk(3, 70, [(512, 0)]) * 2),
    "status twice, surplus": (STRUCTURED, peers.status_chunk(3, 9, [(512, 0)]) * 2),
    "status announced too long": (
        STRUCTURED,
        b"\x66\x8e\x33\xef\0\0\0\5" + (3).to_bytes(8) + (8 * 2**20 + 12).to_bytes(4),
    ),
    "extended status": (STRUCTURED, peers.chunk(6, 3, bytes(24))),
    "unknown chunk": (STRUCTURED, peers.chunk(3, 1)),
    "error 0": (STRUCTURED, peers.error_chunk(1, 0)),
    "error too short": (STRUCTURED, peers.chunk(0x8001, 1, bytes(5))),
    "error text too long": (STRUCTURED, peers.chunk(0x8001, 1, b"\0\0\0\5\0\2x")),
    "error text too short": (STRUCTURED, peers.chunk(0x8001, 1, b"\0\0\0\5\0\2xyz")),
    "error without its offset": (STRUCTURED, peers.chunk(0x8002, 1, b"\0\0\0\5\0\2xy")),
    "error before the range": (STRUCTURED, peers.error_chunk(1, 5, "", 63)),
    "error behind the range": (STRUCTURED, peers.error_chunk(1, 5, "", 104)),
    "error announced too long": (
        STRUCTURED,
        b"\x66\x8e\x33\xef\0\0\x80\1" + (1).to_bytes(8) + (4096 + 15).to_bytes(4),
    ),
}


EXTENDED_MALFORMED = {
    "structured reply": peers.none(1),
    "simple reply": peers.simple(2) * 2,
    "another offset echoed": peers.extended(peers.none(2), {2: 1}),
    "another offset echoed, data": peers.extended(peers.data_chunk(1, 64, DATA_A, done=True), {}),
    "unknown cookie": peers.extended(peers.none(9), {}),
    "data behind the range": peers.extended(peers.data_chunk(1, 65, DATA_A, done=True), {1: 64}),
    "data twice": peers.extended(peers.data_chunk(1, 64, DATA_A[:9]) * 2, {1: 64}),
    "NONE without DONE": peers.extended(peers.chunk(0, 1), {1: 64}),
    "a structured status": struct.pack(
        ">IHHQQQIII", 0x6E8A278C, 1, 5, 3, STATUS.offset, 12, 70, 512, 0
    ),
    "a status that counts wrongly": struct.pack(
        ">IHHQQQIIQQ", 0x6E8A278C, 1, 6, 3, STATUS.offset, 24, 70, 2, 512, 0
    ),
    "a status announced too long": struct.pack(
        ">IHHQQQ", 0x6E8A278C, 1, 6, 3, STATUS.offset, 16 * 2**20 + 24
    ),
    "an error announced too long": struct.pack(">IHHQQQ", 0x6E8A278C, 1, 0x8001, 1, 64, 2**63),
}


@pytest.mark.parametrize("sent", EXTENDED_MALFORMED.values(), ids=EXTENDED_MALFORMED)
@pytest.mark.parametrize("client_extended", [False, True])
def test_malformed_extended_replies(sent: bytes, client_extended: bool) -> None:
    for cuts in ((), range(len(sent))):
        session = Session(STRUCTURED, ALL_ASKED, headers=(client_extended, True))
        with pytest.raises(WireError):
            session.feed(*pieces_of(sent + bytes(64), cuts))
        last = session.scan.fail("nonsense")
        assert last is not None
        session.feeder.sent += b"".join(last)
        told = {reply.cookie: reply.error for reply in session.replies()}
        assert told.keys() == {request.cookie for request in ALL_ASKED}


# --- DF: one content chunk


WITH_DF = Request(Cmd.READ, CmdFlag.DF, 100, 64, 40)
FRAGMENTS = {
    "data": peers.data_chunk(1, 64, DATA_A[:9]) + peers.data_chunk(1, 73, DATA_A[9:], done=True),
    "data and a hole": peers.data_chunk(1, 64, DATA_A[:9]) + peers.hole_chunk(1, 73, 31),
    "a hole and data": peers.hole_chunk(1, 64, 9) + peers.data_chunk(1, 73, DATA_A[9:]),
    "apart": peers.data_chunk(1, 64, DATA_A[:9]) + peers.data_chunk(1, 100, DATA_A[36:]),
}
fragmented = pytest.mark.parametrize("sent", FRAGMENTS.values(), ids=FRAGMENTS)


@chunked
@fragmented
def test_a_read_with_df_is_not_to_be_answered_in_two_chunks(
    headers: tuple[bool, bool], sent: bytes
) -> None:
    """ "If this flag is set, the server MUST send at most one content chunk." """
    session = Session(STRUCTURED, [WITH_DF], headers=headers)
    with pytest.raises(WireError, match="a READ with DF was answered in more than one chunk"):
        session.feed(session.as_sent(sent))
    last = session.scan.fail("nonsense")
    assert last is not None
    session.feeder.sent += b"".join(last)
    assert session.replies() == [Reply(100, Errno.EIO)]


@pytest.mark.parametrize("client_structured", [False, True], ids=["by a job", "as it comes"])
@fragmented
def test_nor_one_that_had_df_of_us(client_structured: bool, sent: bytes) -> None:
    """The client did not set it: the upstream is one that needs it (`qemu-offset-reads`)."""
    export = Export(SIZE, peers.ALL_FLAGS, structured=True)
    promised = offer(view_of(export), structured=client_structured)
    traffic = Traffic(plan(promised, export, Dialect(read_with_df=True)))
    requests = Feeder(RequestScan(traffic))
    requests.feed(READ_A.bytes)
    [asked] = peers.read_requests(bytes(requests.sent))
    assert asked.flags == CmdFlag.DF
    with pytest.raises(WireError, match="DF"):
        Feeder(reply_scan(traffic)).feed(sent)


@chunked
def test_a_read_with_df_that_is_cut_comes_in_one_chunk(headers: tuple[bool, bool]) -> None:
    client_extended, link_extended = headers
    traffic = peers.traffic(
        client_structured=True,
        link_structured=True,
        client_extended=client_extended,
        link_extended=link_extended,
        block_sizes=BlockSizes(1, 512, 512),
    )
    asked = Request(Cmd.READ, CmdFlag.DF, 100, 500, 1000)
    requests = Feeder(RequestScan(traffic))
    requests.feed(asked.extended_bytes if client_extended else asked.bytes)
    pieces = peers.read_requests(bytes(requests.sent), extended=link_extended)
    assert [(piece.offset, piece.length) for piece in pieces] == [
        (500, 12),
        (512, 512),
        (1024, 476),
    ]
    feeder = Feeder(reply_scan(traffic))
    for piece in reversed(pieces):
        chunk = peers.data_chunk(
            piece.cookie, piece.offset, content(piece.offset, piece.length), done=True
        )
        if link_extended:
            chunk = peers.extended(chunk, {piece.cookie: piece.offset})
        feeder.feed(chunk)
    sent = bytes(feeder.sent) + b"".join(traffic.to_client)
    assert len(sent) == (32 if client_extended else 20) + 8 + 1000  # one header, one offset
    told = Client([asked], structured=True, extended=client_extended).read(sent)
    assert told == [Reply(100, 0, content(500, 1000))]


def test_extents_that_32_bits_cannot_say_end_the_list() -> None:
    long = Request(Cmd.BLOCK_STATUS, 0, 9, 0, 512)
    session = Session(STRUCTURED, [long], headers=(False, True))
    payload = struct.pack(">IIQQQQ", 70, 2, 100, 1, 2**33, 2)
    chunk = struct.pack(">IHHQQQ", 0x6E8A278C, 0, 6, 1, 0, len(payload)) + payload
    other = struct.pack(">IIQQ", 71, 1, 512, 2**32)
    session.feed(chunk, struct.pack(">IHHQQQ", 0x6E8A278C, 1, 6, 1, 0, len(other)) + other)
    [reply] = session.replies()
    assert reply.error == Errno.EIO  # a status of 33 bits cannot be told at all
    assert session.traffic.errors == {("BLOCK_STATUS", "EIO"): 1}
    assert not reply.status
    told = narrowed(Extents.of([(512, 0), (2**32, 1), (512, 2)]), 4096)
    assert told is not None
    assert list(told) == [(512, 0), (2**32 - 4096, 1)]
    assert narrowed(Extents.of([(512, 2**32)]), 1) is None


@pytest.mark.parametrize(("kind", "sent"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_replies(kind: str, sent: bytes) -> None:
    """The link ends; every command is told an error or was answered before; what is out is whole."""
    asked = [r for r in ALL_ASKED if kind is STRUCTURED or r.command != Cmd.BLOCK_STATUS]
    for cuts in ((), range(len(sent))):
        session = Session(kind, asked)
        with pytest.raises(WireError):
            session.feed(*pieces_of(sent, cuts))
        last = session.scan.fail("nonsense")
        assert last is not None
        for piece in last:
            session.feeder.sent += piece
        told = session.replies()
        assert {reply.cookie for reply in told} == {request.cookie for request in asked}


def test_longest_error_chunk_is_taken() -> None:
    session = Session(STRUCTURED, [READ_A])
    session.feed(peers.error_chunk(1, 5, "é" * 2048, 64, done=True))
    assert session.replies() == [Reply(100, 5)]


@pytest.mark.parametrize("kind", [0x8001, 0x8002, 0x8003, 0xFFFF])
def test_unknown_error_chunks_are_errors(kind: int) -> None:
    session = Session(STRUCTURED, [READ_A])
    tail = (64).to_bytes(8) if kind != 0x8001 else b""
    session.feed(peers.chunk(kind, 1, b"\0\0\0\x1c\0\1x" + tail, done=True))
    assert session.replies() == [Reply(100, 28)]


def test_simple_error_to_read_over_structured() -> None:
    session = Session(STRUCTURED, [READ_A, STATUS])
    session.feed(peers.data_chunk(1, 64, DATA_A[:4]) + peers.simple(1, 5) + peers.simple(2, 22))
    assert session.replies() == [Reply(100, 5), Reply(103, 22)]


# --- WRITE_ZEROES in pieces

PIECE = 32 * MIB


def answer(kind: str, ours: int, error: int, how: str) -> bytes:
    if how == "simple" or kind is not STRUCTURED:
        return peers.simple(ours, error)
    return peers.error_chunk(ours, error, "why", done=True) if error else peers.none(ours)


hows = pytest.mark.parametrize("how", ["simple", "chunk"])


@framings
@hows
@pytest.mark.parametrize("flags", [0, CmdFlag.NO_HOLE, CmdFlag.FAST_ZERO])
def test_long_write_zeroes_goes_in_pieces(kind: str, how: str, flags: int) -> None:
    """They are cut at multiples of their length, so that all but the ends are aligned."""
    session = Session(kind, [Request(Cmd.WRITE_ZEROES, flags, 9, 512, 100 * MIB)])
    [piece] = session.upstream
    bounds = [512, PIECE, 2 * PIECE, 3 * PIECE, 512 + 100 * MIB]
    for number, (start, end) in enumerate(pairwise(bounds), start=1):
        assert piece == Request(Cmd.WRITE_ZEROES, flags, number, start, end - start)
        assert session.replies() == []
        assert len(session.traffic.in_flight) == 1
        session.feed(answer(kind, piece.cookie, 0, how))
        if number < 4:
            piece = session.further()
    assert session.replies() == [Reply(9)]
    assert not session.traffic.to_upstream
    assert not session.traffic.in_flight
    assert not session.traffic.jobs


@framings
@hows
@pytest.mark.parametrize("error", [0, 28])
def test_fua_of_many_pieces_is_one_flush_behind_them(kind: str, how: str, error: int) -> None:
    session = Session(kind, [Request(Cmd.WRITE_ZEROES, CmdFlag.FUA, 9, 0, 3 * PIECE)])
    [piece] = session.upstream
    for _ in range(3):
        assert (piece.command, piece.flags) == (Cmd.WRITE_ZEROES, 0)
        session.feed(answer(kind, piece.cookie, 0, how))
        assert session.replies() == []
        piece = session.further()
    assert piece == Request(Cmd.FLUSH, 0, 4, 0, 0)
    session.feed(answer(kind, piece.cookie, error, how))
    assert session.replies() == [Reply(9, told(piece, error))]


def test_a_write_zeroes_of_one_piece_goes_as_it_is() -> None:
    session = Session(SIMPLE, [Request(Cmd.WRITE_ZEROES, 0, 9, 0, PIECE)])
    assert session.upstream == [Request(Cmd.WRITE_ZEROES, 0, 1, 0, PIECE)]
    assert not session.traffic.jobs


@framings
@hows
@pytest.mark.parametrize("before", [0, 1, 3])
def test_an_error_in_a_piece_ends_the_command(kind: str, how: str, before: int) -> None:
    session = Session(kind, [ZEROES])
    [piece] = session.upstream
    for _ in range(before):
        session.feed(answer(kind, piece.cookie, 0, how))
        piece = session.further()
    session.feed(answer(kind, piece.cookie, 28, how))
    assert session.replies() == [Reply(104, 28)]
    assert not session.traffic.to_upstream
    assert not session.traffic.in_flight
    assert not session.traffic.jobs


@framings
@hows
def test_fast_zero_refused_at_once(kind: str, how: str) -> None:
    fast = Request(Cmd.WRITE_ZEROES, CmdFlag.FAST_ZERO, 9, 0, 100 * MIB)
    session = Session(kind, [fast])
    session.feed(answer(kind, 1, 95, how))
    assert session.replies() == [Reply(9, 95)]
    assert not session.traffic.to_upstream
    assert not session.traffic.in_flight


@framings
@hows
def test_fast_zero_refused_later_goes_on_slowly(kind: str, how: str) -> None:
    flags = CmdFlag.FAST_ZERO | CmdFlag.FUA
    session = Session(kind, [Request(Cmd.WRITE_ZEROES, flags, 9, 0, 70 * MIB)])
    session.feed(answer(kind, 1, 0, how))
    second = session.further()
    assert second.flags == CmdFlag.FAST_ZERO
    session.feed(answer(kind, second.cookie, 95, how))
    again = session.further()
    assert again == Request(Cmd.WRITE_ZEROES, 0, 3, PIECE, PIECE)
    session.feed(answer(kind, again.cookie, 0, how))
    last = session.further()
    assert last == Request(Cmd.WRITE_ZEROES, 0, 4, 2 * PIECE, 6 * MIB)
    session.feed(answer(kind, last.cookie, 0, how))
    assert session.further() == Request(Cmd.FLUSH, 0, 5, 0, 0)
    assert session.replies() == []
    session.feed(answer(kind, 5, 0, how))
    assert session.replies() == [Reply(9)]


@framings
def test_enotsup_without_fast_zero_is_einval(kind: str) -> None:
    session = Session(kind, [ZEROES])
    session.feed(answer(kind, 1, 0, "simple"))
    session.feed(answer(kind, session.further().cookie, 95, "simple"))
    assert session.replies() == [Reply(104, Errno.EINVAL)]


@framings
@pytest.mark.parametrize("answers", [0, 1, 2])
def test_the_link_dies_between_pieces(kind: str, answers: int) -> None:
    session = Session(kind, [ZEROES])
    ours = 1
    for _ in range(answers):
        session.feed(answer(kind, ours, 0, "simple"))
        ours = session.further().cookie
    last = session.scan.fail("gone")
    assert last is not None
    session.feeder.sent += b"".join(last)
    assert session.replies() == [Reply(104, Errno.EIO)]
    assert not session.traffic.jobs


# --- The order of answers

BLOCKS = BlockSizes(512, 4096, 32 * MIB)  # what does not obey them is a job
JOBS = {
    # The command, and the reply to what its job asks first.
    "an error chunk": (STRUCTURED, ZEROES, peers.error_chunk(1, 28, "full", done=True)),
    "a READ in a chunk": (
        STRUCTURED,
        Request(Cmd.READ, 0, 104, 100, 40),
        peers.data_chunk(1, 0, content(0, 512), done=True),
    ),
    "a READ in a simple reply": (
        SIMPLE,
        Request(Cmd.READ, 0, 104, 100, 40),
        peers.simple(1, 0, content(0, 512)),
    ),
}


@pytest.mark.parametrize("case", JOBS.values(), ids=JOBS)
def test_a_jobs_answer_comes_before_what_is_behind_its_reply(
    case: tuple[str, Request, bytes],
) -> None:
    """Wherever bytes are cut: by the order of answers a client knows which writes a failing FLUSH is about."""
    kind, job, reply = case
    client, link = FRAMINGS[kind]
    write = Request(Cmd.WRITE, 0, 105, 4096, 512, bytes(512))
    sent = reply + peers.simple(2)
    blocks = BLOCKS if job.command == Cmd.READ else None
    for cut in range(len(sent)):
        traffic = peers.traffic(client_structured=client, link_structured=link, block_sizes=blocks)
        Feeder(RequestScan(traffic)).feed(job.bytes + write.bytes)
        assert sorted(traffic.in_flight) == [1, 2]
        feeder = Feeder(reply_scan(traffic)).feed_all(pieces_of(sent, [cut]))
        said = bytes(feeder.sent) + b"".join(traffic.to_client)
        told = Client([job, write], structured=client).read(said)
        assert [reply.cookie for reply in told] == [104, 105], cut


# --- Client cookies that are not unique


@framings
def test_each_reply_comes_back_to_its_own_command(kind: str) -> None:
    client, link = FRAMINGS[kind]
    session = peers.traffic(client_structured=client, link_structured=link)
    Feeder(RequestScan(session)).feed(
        Request(Cmd.READ, 0, 4, 0, 512).bytes + Request(Cmd.READ, 0, 4, 512, 10).bytes
    )
    feeder = Feeder(reply_scan(session))
    if link:
        feeder.feed(peers.data_chunk(2, 512, content(512, 10), done=True))
    else:
        feeder.feed(peers.simple(2, 0, content(512, 10)))
    asked = Request(Cmd.READ, 0, 4, 512, 10)
    told = Client([asked], structured=client).read(bytes(feeder.sent))
    assert told == [Reply(4, 0, content(512, 10))]
    assert list(session.in_flight.values()) == [(4, 0, 0, 512)]


# --- Extents

EXTENTS = [
    # said, length, reach, one, mended
    ([(512, 0)], 512, 4096, False, [(512, 0)]),
    ([(0, 1), (512, 0)], 512, 4096, False, [(512, 0)]),
    ([(256, 1), (0, 3), (256, 0)], 512, 4096, False, [(256, 1), (256, 0)]),
    ([(9999, 1)], 512, 4096, False, [(4096, 1)]),  # cut at the end of the export
    ([(256, 1), (9999, 0)], 512, 1024, False, [(256, 1), (768, 0)]),
    ([(512, 1), (512, 0)], 512, 4096, False, [(512, 1)]),  # begins behind the range
    ([(256, 1), (256, 0)], 1024, 4096, False, [(256, 1), (256, 0)]),  # short is legal
    ([(4096, 1)], 512, 4096, True, [(512, 1)]),
    ([(256, 1), (256, 0)], 512, 4096, True, [(256, 1)]),
    ([(0, 1), (4096, 2)], 512, 4096, True, [(512, 2)]),
    ([(0, 1)], 512, 4096, False, []),
    ([(0xFFFFFFFF, 1), (1, 2)], 512, 600, False, [(600, 1)]),
]


@pytest.mark.parametrize(("said", "length", "reach", "one", "mended"), EXTENTS)
def test_extents_are_mended(
    said: list[tuple[int, int]],
    length: int,
    reach: int,
    one: bool,
    mended: list[tuple[int, int]],
) -> None:
    assert list(mended_extents(Extents.of(said), length, reach, one=one)) == mended


@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 3)), max_size=8),
    st.integers(1, 1000),
    st.integers(0, 1000),
    st.booleans(),
)
def test_mended_extents_are_legal(
    said: list[tuple[int, int]], length: int, beyond: int, one: bool
) -> None:
    mended = mended_extents(Extents.of(said), length, length + beyond, one=one)
    sizes = [size for size, _ in mended]
    assert all(sizes)
    assert sum(sizes) <= (length if one else length + beyond)
    assert sum(sizes[:-1]) < length
    assert len(mended) <= (1 if one else len(said))
    assert bool(mended) == any(size for size, _ in said)
    states = [state for size, state in said for _ in range(size)]
    assert [state for size, state in mended for _ in range(size)] == states[: sum(sizes)]


def test_req_one_through_the_scanner() -> None:
    session = Session(STRUCTURED, [Request(Cmd.BLOCK_STATUS, CmdFlag.REQ_ONE, 1, SIZE - 512, 256)])
    extents = [(0, 1), (1024, 2), (8, 0)]
    session.feed(peers.status_chunk(1, 70, extents) + peers.status_chunk(1, 71, extents, done=True))
    assert session.replies() == [Reply(1, 0, b"", {5: [(256, 2)], 6: [(256, 2)]})]


def test_extents_end_with_the_export() -> None:
    session = Session(STRUCTURED, [Request(Cmd.BLOCK_STATUS, 0, 1, SIZE - 512, 256)])
    session.feed(
        peers.status_chunk(1, 70, [(1024, 2)]) + peers.status_chunk(1, 71, [(1, 1)], done=True)
    )
    assert session.replies() == [Reply(1, 0, b"", {5: [(1, 2)], 6: [(1, 1)]})]
    session = Session(STRUCTURED, [Request(Cmd.BLOCK_STATUS, 0, 1, SIZE - 512, 256)])
    session.feed(
        peers.status_chunk(1, 70, [(1024, 2)]) + peers.status_chunk(1, 71, [(9999, 1)], done=True)
    )
    assert session.replies() == [Reply(1, 0, b"", {5: [(512, 2)], 6: [(512, 1)]})]


def test_no_more_extents_are_held_than_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.scan.chunks.MAX_HELD_EXTENTS", 3)
    monkeypatch.setattr("gateway.scan.chunks.FEW_EXTENTS", 2)
    extents = [(1, number % 2) for number in range(4)]
    asked = [Request(Cmd.BLOCK_STATUS, 0, cookie, 0, 512) for cookie in (1, 2)]
    session = Session(STRUCTURED, asked)
    session.feed(*(peers.status_chunk(ours, 70, extents) for ours in (1, 2)))
    session.feed(*(peers.status_chunk(ours, 71, extents, done=True) for ours in (1, 2)))
    assert [reply.status for reply in session.replies()] == [
        {5: extents[:2], 6: extents[:2]},
        {5: extents[:2], 6: extents[:2]},
    ]


# --- Coverage


Ranges = list[tuple[int, int]]
"""(start, length) of chunks, as they come."""


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)), max_size=30))
@example([(20, 5), (0, 5), (10, 5)])  # out of order
@example([(0, 5), (10, 5), (5, 5)])  # adjacent on both sides
@example([(0, 5), (10, 5), (5, 6)])  # adjacent to one, and into the other
@example([(0, 5), (10, 5), (4, 6)])
@example([(5, 5), (0, 15)])  # around what came
@example([(0, 15), (5, 5)])  # inside of what came
@example([(5, 5), (5, 5)])
@example([(5, 5), (5, 1)])
def test_coverage_against_a_set_of_bytes(ranges: Ranges) -> None:
    partial, seen = Partial(), set[int]()
    for start, length in ranges:
        fresh = set(range(start, start + length))
        assert partial.cover(start, start + length) == (not fresh & seen)
        if not fresh & seen:
            seen |= fresh
        check_coverage(partial, seen)


@st.composite
def shuffled_pieces(draw: st.DrawFn) -> Ranges:
    """All of a range, in pieces, in any order."""
    bounds = sorted({0, 1000, *draw(st.lists(st.integers(1, 999), max_size=20))})
    return draw(st.permutations([(start, end - start) for start, end in pairwise(bounds)]))


@given(shuffled_pieces())
def test_pieces_in_any_order_come_to_one_range(pieces: Ranges) -> None:
    partial, seen = Partial(), set[int]()
    for start, length in pieces:
        assert partial.cover(start, start + length)
        assert not partial.cover(start, start + length)
        seen |= set(range(start, start + length))
        check_coverage(partial, seen)
    assert partial.covered == [(0, 1000)]


def check_coverage(partial: Partial, seen: set[int]) -> None:
    """What is covered is what was seen, sorted, and neighbours are merged."""
    assert {at for a, b in partial.covered for at in range(a, b)} == seen
    assert all(a < b for a, b in partial.covered)
    assert all(b < c for (_, b), (c, _) in pairwise(partial.covered))

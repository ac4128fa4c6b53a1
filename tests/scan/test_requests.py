"""RequestScan: the same requests, however they are cut; what is answered here, and with what."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.jobs.locks import ASK
from gateway.protocol.errors import Hangup
from gateway.scan.requests import MAX_ANSWERS, RequestScan
from gateway.scan.traffic import MAX_IN_FLIGHT, Traffic
from gateway.throttle import Bucket, Doors, Gate, Unit
from gateway.wire.constants import Cmd, CmdFlag, Errno, TransmissionFlag
from gateway.wire.errors import WireError
from gateway.wire.handshake import BlockSizes
from tests.scan import peers
from tests.scan.peers import ALL_FLAGS, SIZE, Client, Feeder, Reply, Request, pieces_of

MIB = 2**20


def run(
    session: Traffic, data: bytes, cuts: Sequence[int] = ()
) -> tuple[RequestScan, list[Request]]:
    scan = RequestScan(session)
    feeder = Feeder(scan)
    for piece in pieces_of(data, cuts):
        if scan.disconnected:
            break
        feeder.feed(piece)
    return scan, peers.read_requests(bytes(feeder.sent))


def structured(**terms: int | bool | BlockSizes) -> Traffic:
    return peers.traffic(client_structured=True, link_structured=True, **terms)  # type: ignore[arg-type]


commands = st.sampled_from([0, 0, 1, 1, 1, 3, 4, 5, 6, 7, 8, 0xFFFF])
flag_words = st.sampled_from([0, 0, 0, 1, 2, 4, 8, 16, 17, 32, 0x8000])
offsets = st.sampled_from([0, 512, 4096, SIZE - 16, SIZE, 2**64 - 1])
lengths = st.sampled_from([0, 1, 16, 100, 512])


@st.composite
def requests(draw: st.DrawFn) -> Request:
    command = draw(commands)
    length = draw(lengths)
    if command == Cmd.WRITE_ZEROES and draw(st.booleans()):
        length = 100 * MIB
    data = peers.content(draw(st.integers(0, 250)), length) if command == Cmd.WRITE else b""
    cookie = draw(st.integers(0, 2**64 - 1))
    return Request(command, draw(flag_words), cookie, draw(offsets), length, data)


@given(st.lists(requests(), max_size=12), st.data(), st.booleans(), st.booleans(), st.booleans())
def test_cuts_make_no_difference(
    asked: list[Request], data: st.DataObject, client: bool, ends: bool, aligned: bool
) -> None:
    sent = b"".join(request.bytes for request in asked)
    if ends:
        sent += Request(Cmd.DISC, 0, 0, 0, 0).bytes + b"never looked at"
    cuts = data.draw(st.lists(st.integers(0, len(sent)), max_size=30))

    def outcome(cuts: Sequence[int]) -> object:
        session = peers.traffic(
            client_structured=client,
            link_structured=client,
            block_sizes=BlockSizes(512 if aligned else 1, 4096, 32 * MIB),
        )
        scan, upstream = run(session, sent, cuts)
        assert scan.between_messages
        return upstream, scan.answers, session.in_flight, scan.disconnected

    assert outcome(cuts) == outcome(()) == outcome(range(len(sent)))


@given(st.lists(requests(), max_size=12))
def test_each_request_is_sent_on_or_answered_once(asked: list[Request]) -> None:
    session = structured()
    scan, upstream = run(session, b"".join(request.bytes for request in asked))
    assert len(upstream) + len(scan.answers) == len(asked)
    assert [r.cookie for r in upstream] == list(range(1, len(upstream) + 1))
    assert sorted(session.in_flight) == [r.cookie for r in upstream]
    for request in upstream:
        _cookie, word, offset, length = session.in_flight[request.cookie]
        assert word & 0xFFFF == request.command
        assert word & ASK or not request.flags & ~(word >> 16)
        assert (offset, length) == (request.offset, request.length)
        assert request.offset + request.length <= SIZE


def answered(request: Request, session: Traffic) -> Reply | None:
    """The answer from here, or None if the request went upstream."""
    scan, upstream = run(session, request.bytes)
    if upstream:
        assert not scan.answers
        return None
    [answer] = scan.answers
    [reply] = Client([request], structured=session.plan.offer.structured).read(answer)
    return reply


READ_ONLY = TransmissionFlag.HAS_FLAGS | TransmissionFlag.READ_ONLY | TransmissionFlag.SEND_FUA
BARE = TransmissionFlag.HAS_FLAGS
LOCAL = [
    # command, flags, offset, length, transmission flags of the upstream, error (None: sent on)
    (Cmd.WRITE, 0, 0, 512, READ_ONLY, Errno.EPERM),
    (Cmd.TRIM, 0, 0, 512, READ_ONLY | TransmissionFlag.SEND_TRIM, Errno.EPERM),
    (Cmd.WRITE_ZEROES, 0, 0, 512, READ_ONLY, Errno.EPERM),
    (Cmd.WRITE, 0, SIZE, 512, READ_ONLY, Errno.EPERM),  # read-only before range
    (Cmd.WRITE, 0, SIZE, 512, ALL_FLAGS, Errno.ENOSPC),
    (Cmd.WRITE, 0, SIZE - 1, 512, ALL_FLAGS, Errno.ENOSPC),
    (Cmd.WRITE, 0, 2**64 - 1, 512, ALL_FLAGS, Errno.ENOSPC),
    (Cmd.WRITE_ZEROES, 0, SIZE, 1, ALL_FLAGS, Errno.ENOSPC),
    (Cmd.READ, 0, SIZE, 1, ALL_FLAGS, Errno.EINVAL),
    (Cmd.READ, 0, 2**64 - 1, 1, ALL_FLAGS, Errno.EINVAL),
    (Cmd.TRIM, 0, SIZE, 1, ALL_FLAGS, Errno.EINVAL),
    (Cmd.CACHE, 0, SIZE, 1, ALL_FLAGS, Errno.EINVAL),
    (Cmd.BLOCK_STATUS, 0, SIZE, 1, ALL_FLAGS, Errno.EINVAL),
    (Cmd.BLOCK_STATUS, 0, 0, 0, ALL_FLAGS, Errno.EINVAL),
    (Cmd.READ, 0, 0, 64 * MIB + 1, ALL_FLAGS, Errno.EINVAL),
    (Cmd.FLUSH, 0, 0, 0, BARE, Errno.EINVAL),
    (Cmd.FLUSH, 0, 1, 0, ALL_FLAGS, Errno.EINVAL),
    (Cmd.FLUSH, 0, 0, 1, ALL_FLAGS, Errno.EINVAL),
    (Cmd.TRIM, 0, 0, 1, BARE, Errno.EINVAL),
    (Cmd.CACHE, 0, 0, 1, BARE, Errno.EINVAL),
    (Cmd.WRITE_ZEROES, 0, 0, 1, BARE, None),  # zeros are written
    (Cmd.WRITE, CmdFlag.FUA, 0, 1, BARE, Errno.EINVAL),
    (Cmd.READ, CmdFlag.NO_HOLE, 0, 1, ALL_FLAGS, Errno.EINVAL),
    (Cmd.WRITE, CmdFlag.PAYLOAD_LEN, 0, 1, ALL_FLAGS, Errno.EINVAL),
    (Cmd.READ, 0x8000, 0, 1, ALL_FLAGS, Errno.EINVAL),
    (8, 0, 0, 0, ALL_FLAGS, Errno.EINVAL),
    (0xFFFF, 0, 0, 0, ALL_FLAGS, Errno.EINVAL),
    (
        Cmd.WRITE_ZEROES,
        CmdFlag.FAST_ZERO,
        0,
        1,
        ALL_FLAGS & ~TransmissionFlag.SEND_FAST_ZERO,
        Errno.EINVAL,
    ),
    (Cmd.READ, 0, 0, 0, ALL_FLAGS, 0),
    (Cmd.WRITE, 0, 0, 0, ALL_FLAGS, 0),
    (Cmd.WRITE, 0, SIZE, 0, ALL_FLAGS, 0),
    (Cmd.TRIM, 0, 0, 0, ALL_FLAGS, 0),
    (Cmd.WRITE_ZEROES, 0, 0, 0, ALL_FLAGS, 0),
    (Cmd.CACHE, 0, 0, 0, ALL_FLAGS, 0),
    (Cmd.READ, 0, 0, 64 * MIB, ALL_FLAGS, None),
    (Cmd.READ, CmdFlag.DF, SIZE - 1, 1, ALL_FLAGS, None),
    (Cmd.FLUSH, CmdFlag.FUA, 0, 0, ALL_FLAGS, None),
    (Cmd.TRIM, CmdFlag.FUA, 0, SIZE, ALL_FLAGS, None),
    (Cmd.WRITE_ZEROES, CmdFlag.FUA | CmdFlag.NO_HOLE, 0, SIZE, ALL_FLAGS, None),
    (Cmd.CACHE, CmdFlag.FUA, 0, 1, ALL_FLAGS, None),
]


NEEDS_STRUCTURED = (Cmd.BLOCK_STATUS,)


@pytest.mark.parametrize(
    ("command", "flags", "offset", "length", "upstream", "error", "client"),
    [
        (*row, client)
        for row in LOCAL
        for client in (False, True)
        if client or (row[0] not in NEEDS_STRUCTURED and not row[1] & CmdFlag.DF)
    ],
)
def test_local_answers(
    command: int,
    flags: int,
    offset: int,
    length: int,
    upstream: int,
    error: int | None,
    client: bool,
) -> None:
    data = bytes(length) if command == Cmd.WRITE else b""
    request = Request(command, flags, 2**64 - 5, offset, length, data)
    session = peers.traffic(client_structured=client, link_structured=client, flags=int(upstream))
    reply = answered(request, session)
    assert (None if reply is None else reply.error) == error


def test_block_status_without_contexts() -> None:
    session = peers.traffic(client_structured=True, link_structured=True, selected=())
    scan, upstream = run(session, Request(Cmd.BLOCK_STATUS, 0, 1, 0, 512).bytes)
    assert not upstream
    assert scan.answers == [
        peers.error_chunk(
            1, Errno.EINVAL, "BLOCK_STATUS: no meta context was negotiated", done=True
        )
    ]


@pytest.mark.parametrize(("offset", "length"), [(1, 512), (0, 1), (512, 513), (0x100, 512)])
@pytest.mark.parametrize(
    "command", [Cmd.READ, Cmd.WRITE, Cmd.TRIM, Cmd.CACHE, Cmd.WRITE_ZEROES, Cmd.BLOCK_STATUS]
)
def test_unaligned_is_an_error_where_that_is_chosen(command: Cmd, offset: int, length: int) -> None:
    session = structured(block_sizes=BlockSizes(512, 4096, 32 * MIB), any_alignment=False)
    data = bytes(length) if command is Cmd.WRITE else b""
    scan, upstream = run(session, Request(command, 0, 1, offset, length, data).bytes)
    assert not upstream
    assert len(scan.answers) == 1
    assert struct.unpack_from(">I", scan.answers[0], 20) == (Errno.EINVAL,)
    assert scan.between_messages


def test_read_and_write_over_the_maximum_payload_are_cut() -> None:
    session = structured(block_sizes=BlockSizes(1, 4096, MIB))
    data = peers.content(0, MIB + 1)
    asked = [
        Request(Cmd.READ, 0, 1, 512, MIB + 1),
        Request(Cmd.WRITE, 0, 2, 0, MIB + 1, data),
        Request(Cmd.TRIM, 0, 3, 0, MIB + 1),
        Request(Cmd.READ, 0, 4, 0, MIB),
    ]
    scan, upstream = run(session, b"".join(r.bytes for r in asked))
    assert not scan.answers
    assert upstream == [
        Request(Cmd.READ, 0, 1, 512, MIB - 512),
        Request(Cmd.READ, 0, 2, MIB, 513),
        Request(Cmd.WRITE, 0, 3, 0, MIB, data[:MIB]),
        Request(Cmd.WRITE, 0, 4, MIB, 1, data[MIB:]),
        Request(Cmd.TRIM, 0, 5, 0, MIB + 1),
        Request(Cmd.READ, 0, 6, 0, MIB),
    ]


@pytest.mark.parametrize(
    ("flags", "command", "passed"),
    [
        (CmdFlag.FUA, Cmd.READ, 0),
        (CmdFlag.FUA | CmdFlag.DF, Cmd.READ, CmdFlag.DF),
        (CmdFlag.FUA, Cmd.CACHE, 0),
        (CmdFlag.FUA, Cmd.BLOCK_STATUS, 0),
        (CmdFlag.REQ_ONE, Cmd.BLOCK_STATUS, CmdFlag.REQ_ONE),
        (CmdFlag.FUA, Cmd.WRITE, CmdFlag.FUA),
        (CmdFlag.FUA, Cmd.TRIM, CmdFlag.FUA),
    ],
)
def test_flags_that_mean_nothing_are_stripped(flags: int, command: Cmd, passed: int) -> None:
    data = bytes(512) if command is Cmd.WRITE else b""
    _, [request] = run(structured(), Request(command, flags, 9, 0, 512, data).bytes)
    assert request == Request(command, passed, 1, 0, 512, data)


def test_df_is_not_sent_to_a_simple_upstream() -> None:
    session = peers.traffic(client_structured=True, link_structured=False)
    _, [request] = run(session, Request(Cmd.READ, CmdFlag.DF, 9, 0, 512).bytes)
    assert request.flags == 0


def test_long_block_status_is_shortened() -> None:
    session = structured(size=2**33)
    _, [request] = run(session, Request(Cmd.BLOCK_STATUS, 0, 9, 512, 2**32 - 1).bytes)
    assert (request.offset, request.length) == (512, 2**31)


def test_cache_answered_here() -> None:
    request = Request(Cmd.CACHE, 0, 77, 0, 512)
    reply = answered(request, structured(answer_cache=True))
    assert reply == Reply(77)
    outside = Request(Cmd.CACHE, 0, 77, SIZE, 512)
    reply = answered(outside, structured(answer_cache=True))
    assert reply is not None
    assert reply.error == Errno.EINVAL


def test_refused_write_is_drained_piece_by_piece() -> None:
    """And answered when that is done: libnbd up to 1.22 gives a connection up that answers before."""
    session = structured(flags=int(READ_ONLY))
    scan = RequestScan(session)
    feeder = Feeder(scan)
    refused = Request(Cmd.WRITE, 0, 1, 0, 1000, b"\x25\x60\x95\x13" * 250)
    feeder.feed(refused.bytes[:100])
    feeder.feed(refused.bytes[100:-1])
    assert not scan.between_messages
    assert not scan.answers
    feeder.feed(refused.bytes[-1:] + Request(Cmd.READ, 0, 2, 0, 512).bytes)
    assert scan.between_messages
    assert len(scan.answers) == 1
    [sent] = peers.read_requests(bytes(feeder.sent))
    assert sent.command == Cmd.READ


def test_refused_write_drained_while_stopped() -> None:
    session = structured(flags=int(READ_ONLY))
    scan = RequestScan(session)
    feeder = Feeder(scan)
    refused = Request(Cmd.WRITE, 0, 1, 0, 100, bytes(100)).bytes
    feeder.feed(refused[:50])
    scan.stopped = True
    following = Request(Cmd.READ, 0, 2, 0, 512).bytes
    feeder.feed(refused[50:] + following)
    assert scan.between_messages
    assert feeder.held == following
    assert not feeder.sent


def test_refused_write_at_the_drain_limit() -> None:
    limit = 128 * MIB
    scan = RequestScan(structured())
    drained = Feeder(scan)
    drained.feed(Request(Cmd.WRITE, 0, 1, 0, limit).bytes)
    drained.feed_all([bytes(8 * MIB)] * 16)
    assert not drained.sent
    assert scan.between_messages
    assert len(scan.answers) == 1
    before = Request(Cmd.READ, 0, 2, 0, 512).bytes
    session = structured()
    feeder = Feeder(RequestScan(session))
    with pytest.raises(Hangup):
        feeder.feed(before + Request(Cmd.WRITE, 0, 1, 0, limit + 1).bytes)
    assert len(peers.read_requests(bytes(feeder.sent))) == 1
    assert len(session.in_flight) == 1


def test_wrong_magic_leaves_whole_requests_sent() -> None:
    feeder = Feeder(RequestScan(structured()))
    with pytest.raises(WireError):
        feeder.feed(Request(Cmd.READ, 0, 2, 0, 512).bytes + bytes(28))
    assert len(peers.read_requests(bytes(feeder.sent))) == 1


def test_disc_ends_it() -> None:
    asked = [Request(Cmd.READ, 0, 2, 0, 512), Request(Cmd.DISC, 0, 0, 0, 0)]
    scan, upstream = run(structured(), b"".join(r.bytes for r in asked) + b"\xff" * 100)
    assert scan.disconnected
    assert len(upstream) == 1


def test_no_more_than_max_in_flight() -> None:
    session = structured()
    scan = RequestScan(session)
    feeder = Feeder(scan)
    one = Request(Cmd.READ, 0, 2, 0, 512).bytes
    feeder.feed(one * (MAX_IN_FLIGHT + 5))
    assert len(session.in_flight) == MAX_IN_FLIGHT
    assert len(feeder.held) == 5 * len(one)
    del session.in_flight[1], session.in_flight[7]
    feeder.feed(b"")
    assert len(session.in_flight) == MAX_IN_FLIGHT
    assert len(feeder.held) == 3 * len(one)


def test_no_more_than_max_in_flight_of_what_is_looked_at() -> None:
    session = structured()
    feeder = Feeder(RequestScan(session))
    one = Request(Cmd.WRITE_ZEROES, 0, 2, 0, 64 * MIB).bytes + Request(Cmd.FLUSH, 0, 2, 0, 0).bytes
    feeder.feed(one * MAX_IN_FLIGHT)
    assert len(session.in_flight) == MAX_IN_FLIGHT
    assert len(peers.read_requests(bytes(feeder.sent))) == MAX_IN_FLIGHT


def test_no_more_than_max_answers() -> None:
    scan = RequestScan(structured())
    feeder = Feeder(scan)
    one = Request(Cmd.READ, 0, 2, 0, 0).bytes
    feeder.feed(one * (MAX_ANSWERS + 5))
    assert len(scan.answers) == MAX_ANSWERS
    assert len(feeder.held) == 5 * len(one)
    scan.answers.clear()
    feeder.feed(b"")
    assert len(scan.answers) == 5


def test_a_write_that_has_begun_is_finished_while_stopped() -> None:
    scan = RequestScan(structured())
    feeder = Feeder(scan)
    write = Request(Cmd.WRITE, 0, 2, 0, 100, peers.content(0, 100)).bytes
    feeder.feed(write[:60])
    assert not scan.between_messages
    scan.stopped = True
    out: list[memoryview | bytes] = []
    scan.interject(b"later", out)
    assert not out
    feeder.feed(write[60:100])
    feeder.feed(write[100:] + write)
    assert feeder.sent.endswith(b"later")
    assert len(peers.read_requests(bytes(feeder.sent[:-5]))) == 1
    assert feeder.held == write
    scan.interject(b"now", out)
    assert out == [b"now"]


def test_client_cookies_need_not_be_unique() -> None:
    session = structured()
    _, upstream = run(session, Request(Cmd.READ, 0, 4, 0, 512).bytes * 3)
    assert [r.cookie for r in upstream] == [1, 2, 3]
    assert [entry[0] for entry in session.in_flight.values()] == [4, 4, 4]


@pytest.mark.parametrize("command", [Cmd.BLOCK_STATUS, Cmd.TRIM, Cmd.WRITE])
def test_a_marked_payload_over_the_maximum_ends_the_connection(command: Cmd) -> None:
    """ "SHOULD initiate hard disconnect"; one up to the maximum is read and dropped."""
    for length, closes in ((64 * MIB, False), (64 * MIB + 4, True)):
        session = peers.traffic(
            client_structured=True, link_structured=True, client_extended=True, link_extended=True
        )
        feeder = Feeder(RequestScan(session))
        header = Request(command, CmdFlag.PAYLOAD_LEN, 1, SIZE, length).extended_bytes
        if closes:
            with pytest.raises(Hangup):
                feeder.feed(header)
        else:
            feeder.feed(header)


# --- A gate


class Moody:
    """Lets requests through at moods' whim; knows what it was asked, and what it let through."""

    def __init__(self, moods: Sequence[bool]) -> None:
        self._moods = iter(moods)
        self.asked = 0
        self.let_through: list[int] = []

    def take(self, length: int) -> bool:
        self.asked += 1
        if next(self._moods, True):
            self.let_through.append(length)
            return True
        return False


@given(
    st.lists(requests(), max_size=12),
    st.data(),
    st.lists(st.booleans(), max_size=40),
    st.booleans(),
)
def test_what_a_gate_holds_back_is_neither_lost_nor_doubled_nor_charged_twice(
    asked: list[Request], data: st.DataObject, moods: list[bool], aligned: bool
) -> None:
    sent = b"".join(request.bytes for request in asked) + Request(Cmd.DISC, 0, 0, 0, 0).bytes
    cuts = data.draw(st.lists(st.integers(0, len(sent)), max_size=30))

    def session() -> Traffic:
        sizes = BlockSizes(512 if aligned else 1, 4096, 32 * MIB)
        return peers.traffic(client_structured=True, link_structured=True, block_sizes=sizes)

    plain, gated = session(), session()
    scan, upstream = run(plain, sent)
    gated.gate = gate = Moody(moods)
    held_scan = RequestScan(gated)
    feeder = Feeder(held_scan)
    for piece in pieces_of(sent, cuts):
        feeder.feed(piece)
        if gated.held:
            assert gated.room == 0
            times = gate.asked
            feeder.feed(b"")
            assert gate.asked == times  # while it is held, nobody asks
            gated.held = False
    while gated.held or not held_scan.disconnected:
        gated.held = False
        feeder.feed(b"")
    assert peers.read_requests(bytes(feeder.sent)) == upstream
    assert (held_scan.answers, gated.in_flight) == (scan.answers, plain.in_flight)

    def moved(request: Request) -> int:
        word = request.flags << 16 | request.command
        refused = plain.plan.refusal(word, request.offset, request.length) is not None
        nothing = request.command != Cmd.WRITE and (refused or request.command != Cmd.READ)
        return 0 if nothing else request.length

    assert gate.let_through == [moved(request) for request in asked]


def test_what_is_behind_a_held_request_waits_with_it() -> None:
    session = structured()
    session.gate = Moody([True, False])
    asked = [Request(Cmd.READ, 0, cookie, 0, 512) for cookie in range(3)]
    _, upstream = run(session, b"".join(request.bytes for request in asked))
    assert len(upstream) == 1
    assert session.held


def test_no_gate_stands_between_a_client_and_disc() -> None:
    session = structured()
    session.gate = gate = Moody([False])
    scan, _ = run(session, Request(Cmd.DISC, 0, 0, 0, 0).bytes)
    assert scan.disconnected
    assert not gate.asked


def test_what_is_no_request_is_not_charged() -> None:
    session = structured()
    session.gate = gate = Moody([False])
    with pytest.raises(WireError):
        run(session, bytes(28))
    assert not gate.asked


# --- Fewer under way


@pytest.mark.parametrize(
    ("most", "begun"), [(5, 5), (1, 1), (0, 1), (-3, 1), (10**6, MAX_IN_FLIGHT)]
)
def test_no_more_are_under_way_than_may_be(most: int, begun: int) -> None:
    session = structured()
    session.most_in_flight = most
    data = b"".join(Request(Cmd.READ, 0, i, 0, 512).bytes for i in range(2 * MAX_IN_FLIGHT))
    _, upstream = run(session, data)
    assert len(upstream) == begun == session.most_in_flight


def test_what_is_under_way_stays_when_less_may_be() -> None:
    session = structured()
    data = b"".join(Request(Cmd.READ, 0, cookie, 0, 512).bytes for cookie in range(3))
    scan, _ = run(session, data)
    session.most_in_flight = 2
    assert session.room == -1
    feeder = Feeder(scan)
    feeder.feed(data)
    assert len(session.in_flight) == 3
    session.most_in_flight = 4
    feeder.feed(b"")
    assert len(session.in_flight) == 4


@pytest.mark.parametrize("extended", [False, True])
def test_a_request_that_is_refused_costs_what_it_has_moved(extended: bool) -> None:
    """Not what it says: one READ of 4 GiB would keep all who share the bucket waiting for it."""
    session = structured(client_extended=extended)
    bucket = Bucket(MIB, MIB, lambda: 0.0)
    session.gate = Gate([(bucket, Unit.BYTES)], lambda: None, Doors(lambda: None))
    scan = RequestScan(session)

    def costs(command: Cmd, offset: int, length: int, data: bytes = b"") -> float:
        before = bucket.level
        request = Request(command, 0, 1, offset, length, data)
        Feeder(scan).feed(request.extended_bytes if extended else request.bytes)
        return before - bucket.level

    assert costs(Cmd.READ, 0, 2**63 if extended else 2**32 - 1) == 0
    assert costs(Cmd.READ, SIZE, 512) == 0
    assert costs(Cmd.TRIM, 0, MIB) == 0
    assert costs(Cmd.WRITE, SIZE, 512, bytes(512)) == 512
    assert costs(Cmd.READ, 0, 512) == 512

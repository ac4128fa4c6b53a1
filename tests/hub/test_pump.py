from __future__ import annotations

import errno
import gc
import socket
import struct
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any

import pytest

from gateway.hub import crowd, lane, pump
from gateway.hub.lane import Lane
from gateway.hub.session import Session
from gateway.jobs import jobs
from gateway.jobs.locks import ASK, Held
from gateway.protocol.commands import RANGED
from gateway.protocol.export import Export, offer, view_of
from gateway.scan import memory, requests, turn
from gateway.scan.memory import Memory
from gateway.scan.partial import Partial
from gateway.scan.plan import Plan, plan
from gateway.scan.traffic import Traffic
from gateway.wire.constants import Cmd, Errno
from gateway.wire.framing import Framing
from gateway.wire.limits import KIB
from tests.hub.races import DIALECTS, FLAGS, SIZE, Race, Racer, hold_against, racer

if pump.is_compiled():
    from gateway.hub import _pump as compiled

pytestmark = pytest.mark.skipif(not pump.is_compiled(), reason="the pump was not built")

RACES = 400
PIECES = 8


COVERED = ((), ("client",), ("link",), ("client", "link"))
"""Which near ends are no plain sockets (`Wires`). If there is one, the pump only scans."""


@pytest.fixture(params=[COVERED[0], COVERED[-1]], ids=["steps", "scans"])
def covered(request: pytest.FixtureRequest) -> Collection[str]:
    """Whether the pump does whole steps, or scans."""
    its: Collection[str] = request.param
    return its


@pytest.mark.parametrize("piece", range(PIECES))
def test_it_comes_to_what_python_comes_to(piece: int, covered: Collection[str]) -> None:
    for seed in range(piece, RACES, PIECES):
        try:
            Race(Random(seed), covered).run(range(60))
        except AssertionError as error:
            error.add_note(f"seed {seed}, covered {covered}")
            raise


def terms(client: tuple[bool, bool], link: tuple[bool, bool]) -> Plan:
    export = Export(SIZE, int(FLAGS), None, structured=link[0], extended=link[1])
    return plan(offer(view_of(export), structured=client[0], extended=client[1]), export)


def both(terms: Plan, covered: Collection[str]) -> tuple[Racer, Racer]:
    pumped, plain = racer(terms, covered=covered), racer(terms, covered=covered)
    plain.wires.session._pump_no_more()
    return pumped, plain


def hold(pumped: Racer, plain: Racer) -> None:
    for each in (pumped, plain):
        each.settle()
    hold_against(pumped.state(), plain.state())


def bits(length: int) -> list[tuple[int, int]]:
    return list(product(range(length), range(8)))


def flipped(message: bytes, at: int, bit: int) -> bytes:
    return message[:at] + bytes([message[at] ^ 1 << bit]) + message[at + 1 :]


BOTH = list(product(DIALECTS, DIALECTS))


@pytest.mark.parametrize(("client", "link"), BOTH)
@pytest.mark.parametrize("command", [Cmd.READ, Cmd.WRITE, Cmd.TRIM])
def test_each_bit_of_a_request_is_looked_at(
    command: Cmd, client: tuple[bool, bool], link: tuple[bool, bool], covered: Collection[str]
) -> None:
    its = terms(client, link)
    framing = its.offer.framing
    flags = 1 << 5 if command is Cmd.WRITE and client[1] else 0  # PAYLOAD_LEN
    request = framing.encode_request(command, flags, 7, 8192, 4096)
    data = bytes(4096) if command is Cmd.WRITE else b""
    for at, bit in bits(len(request)):
        pumped, plain = both(its, covered)
        for each in (pumped, plain):
            each.wires.client.send(flipped(request, at, bit) + data)
        hold(pumped, plain)
        for each in (pumped, plain):
            each.wires.close()


HUGE = 1 << 62
EDGES = (
    0,
    1,
    4095,
    4096,
    (1 << 32) - 1,
    1 << 32,
    HUGE - 4096,
    HUGE - 1,
    HUGE,
    (1 << 63) - 1,
    (1 << 64) - 1,
)


@pytest.mark.parametrize(("client", "link"), BOTH)
@pytest.mark.parametrize("base", [0, 4096, HUGE - (1 << 33)])
def test_ranges_end_where_the_export_ends(
    base: int, client: tuple[bool, bool], link: tuple[bool, bool], covered: Collection[str]
) -> None:
    export = Export(HUGE, int(FLAGS), None, structured=link[0], extended=link[1])
    view = replace(view_of(export), base=base, size=HUGE - base)
    its = plan(offer(view, structured=client[0], extended=client[1]), export)
    framing = its.offer.framing
    inside = {edge for edge in EDGES if edge <= framing.max_length}
    for where in {*EDGES, HUGE - base - 4096, HUGE - base - 1, HUGE - base}:
        for length in inside:
            pumped, plain = both(its, covered)
            head = framing.request.pack(framing.request_magic, Cmd.TRIM, 7, where, length)
            for each in (pumped, plain):
                each.wires.client.send(head)
            hold(pumped, plain)
            for ours, (_, word, at, count) in dict(plain.wires.session.traffic.in_flight).items():
                if word & 0xFFFF == Cmd.TRIM and not word & ASK:
                    assert base <= at < at + count <= HUGE
                    for each in (pumped, plain):
                        each.wires.upstream.send(its.link.success(ours, at, read=False))
            hold(pumped, plain)
            for each in (pumped, plain):
                each.wires.close()


def answers(framing: Framing, command: Cmd, ours: int) -> list[tuple[bytes, int]]:
    """Whole ones, and how long their headers are."""
    found = [(framing.failure(ours, 8192, Errno.EIO, ""), 16)]
    if command is Cmd.READ:
        head = framing.data_head(ours, 8192, 8192, 4096, done=True)
        found.append((head + bytes(4096), len(head)))
    else:
        done = framing.success(ours, 8192, read=False)
        found.append((done, len(done)))
    return found


@pytest.mark.parametrize(("client", "link"), BOTH)
@pytest.mark.parametrize("command", [Cmd.READ, Cmd.TRIM])
def test_each_bit_of_a_reply_is_looked_at(
    command: Cmd, client: tuple[bool, bool], link: tuple[bool, bool], covered: Collection[str]
) -> None:
    its = terms(client, link)
    request = its.offer.framing.encode_request(command, 0, 7, 8192, 4096)
    for reply, head in answers(its.link, command, 1):
        for at, bit in [*bits(head), (0, 8)]:
            pumped, plain = both(its, covered)
            for each in (pumped, plain):
                each.wires.client.send(request)
                each.settle()
                each.wires.upstream.send(reply if bit == 8 else flipped(reply, at, bit))
            hold(pumped, plain)
            for each in (pumped, plain):
                each.wires.close()


@pytest.mark.parametrize("client", DIALECTS)
@pytest.mark.parametrize("cut", [31, 32, 39])
def test_each_bit_of_a_chunk_is_looked_at_as_soon_as_its_header_is_here(
    cut: int, client: tuple[bool, bool], covered: Collection[str]
) -> None:
    its = terms(client, (True, True))
    request = its.offer.framing.encode_request(Cmd.READ, 0, 7, 8192, 4096)
    reply = its.link.data_head(1, 8192, 8192, 4096, done=True)
    for at, bit in bits(cut):
        pumped, plain = both(its, covered)
        for each in (pumped, plain):
            each.wires.client.send(request)
            each.settle()
            each.wires.upstream.send(flipped(reply, at, bit)[:cut])
        hold(pumped, plain)
        for each in (pumped, plain):
            each.wires.close()


CHUNKED = [each for each in BOTH if each[0][0] and each[1][0]]


@pytest.mark.parametrize(("client", "link"), CHUNKED)
@pytest.mark.parametrize("cut", [1000, 2048 + 27, 2048 + 28, 2048 + 39])
def test_a_reply_that_ends_too_early_is_cut_anywhere(
    cut: int, client: tuple[bool, bool], link: tuple[bool, bool], covered: Collection[str]
) -> None:
    its = terms(client, link)
    pumped, plain = both(its, covered)
    request = its.offer.framing.encode_request(Cmd.READ, 0, 7, 8192, 4096)
    reply = its.link.data_head(1, 8192, 8192, 2048, done=True) + bytes(2048)
    for each in (pumped, plain):
        each.wires.client.send(request)
        each.settle()
        for piece in (reply[:cut], reply[cut:]):
            each.wires.upstream.send(piece)
            each.settle()
    hold(pumped, plain)
    assert b"part of the data missing" in plain.to_client
    for each in (pumped, plain):
        each.wires.close()


@pytest.mark.parametrize(("client", "link"), CHUNKED)
@pytest.mark.parametrize("command", [Cmd.READ, Cmd.TRIM])
def test_a_reply_that_was_whole_but_for_what_came_before_is_held_against_that(
    command: Cmd, client: tuple[bool, bool], link: tuple[bool, bool], covered: Collection[str]
) -> None:
    its = terms(client, link)
    pumped, plain = both(its, covered)
    request = its.offer.framing.encode_request(command, 0, 7, 8192, 4096)
    if command is Cmd.READ:
        first = its.link.data_head(1, 8192, 8192, 2048, done=False) + bytes(2048)
        then = its.link.data_head(1, 8192, 8192, 4096, done=True) + bytes(4096)
    else:
        first = its.link.failure(1, 8192, Errno.EIO, "no", done=False)
        then = its.link.success(1, 8192, read=False)
    for each in (pumped, plain):
        each.wires.client.send(request)
        each.settle()
        for piece in (first, then):
            each.wires.upstream.send(piece)
            each.settle()
    hold(pumped, plain)
    # With extended headers it is the end of that reply.
    assert bool(plain.wires.session.reason) == (command is Cmd.READ or not link[1])
    for each in (pumped, plain):
        each.wires.close()


@pytest.mark.parametrize(("client", "link"), CHUNKED)
def test_a_text_that_looks_like_a_reply_is_none(
    client: tuple[bool, bool], link: tuple[bool, bool], covered: Collection[str]
) -> None:
    its = terms(client, link)
    pumped, plain = both(its, covered)
    answer = its.link.data_head(2, 8192, 8192, 512, done=True) + b"s" * 512
    error = its.link.failure(1, 4096, Errno.EIO, "x" * len(answer))
    error, behind = error.replace(b"x" * len(answer), answer), len(answer)
    assert answer in error
    for each in (pumped, plain):
        for offset in (4096, 8192):
            each.wires.client.send(its.offer.framing.encode_request(Cmd.READ, 0, 7, offset, 512))
        each.settle()
        for piece in (error[:-behind], error[-behind:], answer):
            each.wires.upstream.send(piece)
            each.settle()
    hold(pumped, plain)
    assert not plain.wires.session.traffic.in_flight
    assert not plain.wires.session.reason
    for each in (pumped, plain):
        each.wires.close()


@pytest.mark.parametrize("remembers", [True, False])
@pytest.mark.parametrize("most", [1, 3, 128])
def test_no_more_is_read_and_no_buffer_is_kept_than_has_to_be(
    most: int, covered: Collection[str], *, remembers: bool
) -> None:
    its = terms((False, False), (False, False))
    pumped, plain = (racer(its, remembers=remembers, covered=covered) for _ in range(2))
    plain.wires.session._pump_no_more()
    write = its.link.encode_request(Cmd.WRITE, 0, 7, 0, 20 * KIB) + bytes(20 * KIB)
    for each in (pumped, plain):
        each.wires.session.traffic.most_in_flight = most
        each.wires.client.send(write * min(most, 3))
        each.settle()
    hold(pumped, plain)
    for each in (pumped, plain):
        answers = [its.link.success(ours, 0, read=False) for ours in range(1, min(most, 3) + 1)]
        each.wires.upstream.send(b"".join(answers))
        each.settle()
    hold(pumped, plain)
    for each in (pumped, plain):
        assert len(each.wires.pool.free) == (2 if remembers else 1)
        each.wires.close()


def test_a_turn_ends_with_the_same_message(
    covered: Collection[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        turn, "TURN_SECONDS", 0.0
    )  # it is over when that is asked for the second time
    count = 3 * (turn.FEW + 1)
    framing = terms((True, False), (True, False)).link
    for each in both(terms((True, False), (True, False)), covered):
        session = each.wires.session
        trim = framing.encode_request(Cmd.TRIM, 0, 7, 0, 4096)
        each.wires.client.send(trim * count)
        session.client_ready(crowd.READ)
        assert session.traffic.last_cookie == 2 * (turn.FEW + 1)
        each.settle()
        replies = [framing.success(ours, 0, read=False) for ours in range(1, count + 1)]
        each.wires.upstream.send(b"".join(replies))
        session.link_ready(crowd.READ)
        assert len(session.traffic.in_flight) == turn.FEW + 1
        each.settle()
        assert not session.traffic.in_flight
        each.wires.close()


Unusual = dict[str, Callable[[Session], object]]

OF_BOTH: Unusual = {
    "the gate has held one": lambda its: setattr(its.traffic, "held", True),
    "the client may have gone": lambda its: setattr(its.traffic, "stale", True),
    "some are postponed": lambda its: its.traffic.postponed.append(lambda: None),
    "a job asks": lambda its: its.traffic.to_upstream.append(b"asks"),
    "a job says": lambda its: its.traffic.to_client.append(b"says"),
    "none is begun": lambda its: setattr(its._requests, "stopped", True),
    "DISC has come": lambda its: setattr(its._requests, "disconnected", True),
    "data is dropped": lambda its: setattr(its._requests, "_drop_left", 1),
    "data is gathered": lambda its: setattr(its._requests, "_gather_left", 1),
    "a request waits": lambda its: its._requests.waiting.append(b"waits"),
    "one is answered here": lambda its: its._requests.answers.append(b"answer"),
    "an answer waits": lambda its: its._replies.waiting.append(b"waits"),
    "a job's data comes": lambda its: setattr(its._replies, "_asked_data", memoryview(b"data")),
    "a reply is early": lambda its: setattr(its.traffic.early, "held", {1: None}),
    "the server goes": lambda its: setattr(its.traffic.going, "begun", True),
    "the server has said that it goes": lambda its: its.traffic.going.refused.add(1),
    "a claim": lambda its: its.traffic.locks.claim(Held(0, 4096, lambda: None)),
}
OF_REQUESTS: Unusual = {
    "a rate": lambda its: setattr(its.traffic, "gate", object()),
    "a loss": lambda its: setattr(its.traffic.debt, "lost", [(0, 4096)]),
    "a fence": lambda its: setattr(its.traffic.fences, "standing", [object()]),
    "no room": lambda its: its.traffic.in_flight.update(dict.fromkeys(range(2, 130), (7, 0, 0, 1))),
    "jobs have all the memory": lambda its: setattr(its.traffic, "backlog", jobs.MAX_JOB_BYTES),
}
OF_REPLIES: Unusual = {
    "a WRITE is not sent": lambda its: setattr(its.traffic.early, "unsent", {1}),
    "a reply has begun": lambda its: its.traffic.partial.__setitem__(1, Partial()),
    "a chunk is gathered": lambda its: setattr(its._replies, "_gathering", 1),
}
"""What is not the usual case, and so is Python's: of requests, of replies, and of both."""


@pytest.mark.parametrize("why", [None, *OF_BOTH, *OF_REQUESTS])
def test_requests_are_pythons_if_anything_is_in_the_way(
    why: str | None, covered: Collection[str]
) -> None:
    its = racer(terms((True, False), (True, False)), covered=covered)
    session = its.wires.session
    request = session.traffic.plan.link.encode_request(Cmd.READ, 0, 7, 0, 4096)
    if why is not None:
        {**OF_BOTH, **OF_REQUESTS}[why](session)
    is_done = tells(session, session._requests_lane, its.wires.client, request)
    assert is_done == (why is None)
    assert session.traffic.last_cookie == is_done
    its.wires.close()


@pytest.mark.parametrize("why", [None, *OF_BOTH, *OF_REPLIES])
def test_replies_are_pythons_if_anything_is_in_the_way(
    why: str | None, covered: Collection[str]
) -> None:
    its = racer(terms((True, False), (True, False)), covered=covered)
    session, framing = its.wires.session, its.wires.session.traffic.plan.link
    its.wires.client.send(framing.encode_request(Cmd.TRIM, 0, 7, 0, 4096))
    its.settle()
    if why is not None:
        {**OF_BOTH, **OF_REPLIES}[why](session)
    reply = framing.success(1, 0, read=False)
    is_done = tells(session, session._replies_lane, its.wires.upstream, reply)
    assert is_done == (why is None)
    assert (1 not in session.traffic.in_flight) == is_done
    its.wires.close()


def tells(session: Session, lane: Lane, far: socket.socket, message: bytes) -> bool:
    """Have the pump take a message; say whether it has."""
    if lane.usual is not None:
        lane._take_buffer(message)
        return lane.usual()
    assert session._pump is not None
    far.send(message)
    step = session._pump.requests if lane is session._requests_lane else session._pump.replies
    said = step()
    assert said == pump.NOT_MINE or said >= crowd.Crowd.CALM
    return said != pump.NOT_MINE


REQUESTS = 200


def go_through(its: Plan, *, remembers: bool) -> None:
    """Have commands asked and answered, each in two pieces, with numbers that Python counts references to."""
    racing = racer(its, remembers=remembers)
    wires, traffic = racing.wires, racing.wires.session.traffic
    traffic.last_cookie = 1 << 40
    framing = its.offer.framing
    flags = 1 << 5 if framing.max_length > 2**32 else 0  # PAYLOAD_LEN
    for number in range(REQUESTS // 2):
        write = framing.encode_request(Cmd.WRITE, flags, 1 << 50, 512 * number, 512) + bytes(512)
        read = framing.encode_request(Cmd.READ, 0, 1 << 60, 512 * number, 512)
        for piece in (write[:40], write[40:] + read):
            wires.client.send(piece)
            racing.settle()
        *_, wrote, reads = traffic.in_flight
        replies = its.link.success(wrote, 512 * number, read=False)
        replies += its.link.data_head(reads, 512 * number, 512 * number, 512, done=True) + bytes(
            512
        )
        for piece in (replies[:70], replies[70:]):
            wires.upstream.send(piece)
            racing.settle()
    assert not traffic.in_flight
    wires.close()


@pytest.mark.parametrize("remembers", [True, False])
@pytest.mark.parametrize(("client", "link"), BOTH)
def test_it_keeps_no_reference(
    client: tuple[bool, bool], link: tuple[bool, bool], *, remembers: bool
) -> None:
    its, grown = terms(client, link), []
    for _ in range(3):
        gc.collect()
        before = sys.getallocatedblocks()
        go_through(its, remembers=remembers)
        gc.collect()
        grown.append(sys.getallocatedblocks() - before)
    assert min(grown) < REQUESTS // 2, grown  # Python has some of its own


@pytest.mark.parametrize("link_comes_up", [True, False])
def test_news_is_noted_before_anything_is_asked(
    covered: Collection[str], *, link_comes_up: bool
) -> None:
    its = terms((False, False), (False, False))
    pumped, plain = (racer(its, remembers=True, covered=covered) for _ in range(2))
    plain.wires.session._pump_no_more()
    write = its.link.encode_request(Cmd.WRITE, 0, 7, 0, 4096) + bytes(4096)
    for each in (pumped, plain):
        each.wires.client.send(write)
        each.settle()
        traffic = each.wires.session.traffic
        losses = traffic.debt.losses
        if link_comes_up:
            losses.came_up(losses.trail(losses.open()))
        else:
            losses.witnesses.over([(0, 4096)])
        each.wires.client.send(write)
        each.settle()
    hold(pumped, plain)
    heard = []
    for each in (pumped, plain):
        its_memory = each.wires.session.traffic.memory
        assert its_memory is not None
        heard.append((its_memory._old, its_memory._quiet))
        each.wires.close()
    assert heard == [(int(link_comes_up), 1)] * 2


@pytest.mark.parametrize("far", ["client", "upstream"])
def test_a_side_that_goes_is_told_in_the_same_words(far: str, covered: Collection[str]) -> None:
    pumped, plain = both(terms((False, False), (False, False)), covered)
    framing = pumped.wires.session.traffic.plan.link
    request = framing.encode_request(Cmd.READ, 0, 7, 0, 4096)
    for each in (pumped, plain):
        each.wires.client.send(request)
        each.settle()
        each.wires.client.send(request)  # not read when its sender goes, or the one it is for
        if far == "client":
            each.wires.upstream.send(framing.data_head(1, 0, 0, 4096, done=True) + bytes(4096))
        getattr(each.wires, far).close()
    hold(pumped, plain)
    assert plain.wires.session.reason
    for each in (pumped, plain):
        each.wires.close()


def test_the_words_for_what_failed_are_the_kernels() -> None:
    pumped = racer(terms((False, False), (False, False)))
    session = pumped.wires.session

    class Failing:
        error = errno.ECONNRESET

        def requests(self) -> int:
            return pump.RECEIVE_FAILED

        def replies(self) -> int:
            return pump.SEND_FAILED

        def scan_requests(self) -> bool:
            raise AssertionError

        def scan_replies(self) -> bool:
            raise AssertionError

    session._pump = Failing()
    session.client_ready(crowd.READ)
    assert session.reason == "the client's connection failed: Connection reset by peer"
    pumped.wires.close()


def terms_of(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a pump is made of, taken out of a session."""
    its = racer(terms((True, False), (True, False)))
    session = its.wires.session
    told: list[dict[str, Any]] = []
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "Pump", lambda **terms: told.append(terms))
        session._have_pumped()
    its.wires.close()
    [found] = told
    return found


@pytest.mark.parametrize(
    "wrong",
    [
        {"base": 1 << 63, "size": 1 << 63},
        {"base": -1},
        {"mask": "none"},
        {"link": 3},
        {"client": -1},
        {"fast": {0: None}},
        {"types": (Memory, Memory)},
        {"types": (Memory, 7)},
        {"in_flight": None},
        {"objects": ()},
        {"objects": (object(),) * 10},
    ],
)
def test_one_that_was_not_made_does_nothing(
    wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    its = terms_of(monkeypatch)
    made = compiled.Pump.__new__(compiled.Pump)
    assert does_nothing(made)
    for _ in range(2):
        with pytest.raises((TypeError, ValueError, OverflowError, AttributeError)):
            compiled.Pump.__init__(made, **{**its, **wrong})
        assert does_nothing(made)


def does_nothing(made: pump.Pump) -> bool:
    steps, scans = (made.requests(), made.replies()), (made.scan_requests(), made.scan_replies())
    return steps == (pump.NOT_MINE, pump.NOT_MINE) and scans == (False, False)


def test_one_is_of_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    its = terms_of(monkeypatch)
    made = compiled.Pump(**its)
    with pytest.raises(TypeError, match="a pump is of one session"):
        compiled.Pump.__init__(made, **its)
    assert does_nothing(made)  # it has ended


@pytest.mark.parametrize("without", ["client_fd", "link_fd"])
def test_one_without_a_socket_does_no_step(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    its = racer(terms((True, False), (True, False)))
    session = its.wires.session
    making = compiled.Pump
    monkeypatch.setattr(
        compiled, "Pump", lambda **terms: making(**{**terms, without: pump.NO_SOCKET})
    )
    session._have_pumped()
    assert session._pump is not None
    its.wires.client.send(bytes(28))
    assert session._pump.requests() == session._pump.replies() == pump.NOT_MINE
    its.wires.close()


def test_its_numbers_are_pythons() -> None:
    theirs = {
        "NOT_MINE": pump.NOT_MINE,
        "GO_ON": pump.GO_ON,
        "SCANNED": pump.SCANNED,
        "RECEIVE_FAILED": pump.RECEIVE_FAILED,
        "SEND_FAILED": pump.SEND_FAILED,
        "MIN_FREE_BYTES": lane.MIN_FREE_BYTES,
        "MIN_MESSAGE_BYTES": lane.MIN_MESSAGE_BYTES,
        "MAX_FREE_BUFFERS": lane.MAX_FREE_BUFFERS,
        "MAX_COPIED_BYTES": requests.MAX_COPIED_BYTES,
        "FEW": turn.FEW,
        "FEW_COMMANDS": crowd.FEW_COMMANDS,
        "CALM_STEPS": crowd.CALM_STEPS,
        "SMALL_BYTES": crowd.SMALL_BYTES,
        "MAX_JOB_BYTES": jobs.MAX_JOB_BYTES,
        "MAX_KEPT_BYTES": memory.MAX_KEPT_BYTES,
        "RANGED_COMMANDS": max(RANGED) + 1,
    }
    ours = {name: number for name, number in vars(compiled).items() if isinstance(number, int)}
    assert ours == theirs


def test_it_is_used_where_nothing_is_in_the_way() -> None:
    its = racer(terms((True, False), (True, False)))
    said: list[int] = []
    assert its.wires.session._pump is not None
    its.wires.session._pump = counting = Counting(its.wires.session._pump, said)
    request = struct.Struct(">IIQQI").pack(0x25609513, 0, 7, 0, 4096)
    for number in range(1, 20):
        its.wires.client.send(request)
        its.settle()
        head = its.wires.session.traffic.plan.link.data_head(number, 0, 0, 4096, done=True)
        its.wires.upstream.send(head + bytes(4096))
        its.settle()
    assert counting.said
    assert min(said) >= crowd.Crowd.CALM
    its.wires.close()


@pytest.mark.parametrize("covered", COVERED[1:], ids="-".join)
def test_where_a_socket_is_not_plain_it_scans_all_that_is_usual(covered: Collection[str]) -> None:
    its = racer(terms((True, False), (True, False)), covered=covered)
    session = its.wires.session
    assert session._pump is None
    said: list[bool] = []
    for one in (session._requests_lane, session._replies_lane):
        assert one.usual is not None
        one.usual = noting(one.usual, said)
    framing = session.traffic.plan.link
    for number in range(1, 20):
        its.wires.client.send(framing.encode_request(Cmd.READ, 0, 7, 0, 4096))
        its.settle()
        its.wires.upstream.send(framing.data_head(number, 0, 0, 4096, done=True) + bytes(4096))
        its.settle()
    assert said == [True] * 38
    its.wires.close()
    assert session._requests_lane.usual is session._replies_lane.usual is None


def noting(usual: Callable[[], bool], said: list[bool]) -> Callable[[], bool]:
    def noted() -> bool:
        said.append(usual())
        return said[-1]

    return noted


def test_another_link_may_be_a_plain_socket() -> None:
    its = racer(terms((True, False), (True, False)), covered=("link",))
    session = its.wires.session
    session.hold()
    session.settled = True
    its.wires.upstream.close()
    its.wires.relink(Traffic(session.traffic.plan))
    assert session._pump is not None
    assert session._requests_lane.usual is session._replies_lane.usual is None
    its.wires.close()


class Counting:
    """Notes what a pump says."""

    def __init__(self, within: pump.Pump, said: list[int]) -> None:
        self.within = within
        self.said = said

    @property
    def error(self) -> int:
        return self.within.error

    def requests(self) -> int:
        self.said.append(self.within.requests())
        return self.said[-1]

    def replies(self) -> int:
        self.said.append(self.within.replies())
        return self.said[-1]

    def scan_requests(self) -> bool:
        raise AssertionError

    def scan_replies(self) -> bool:
        raise AssertionError


def test_one_that_was_built_of_another_source_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "MADE_OF", "another")
    assert not pump.is_compiled()


def test_what_a_refused_request_says_of_its_length_is_not_counted(
    covered: Collection[str],
) -> None:
    """It may be more than the pump's numbers hold."""
    its = terms((True, True), (True, True))
    framing = its.offer.framing
    pumped, plain = both(its, covered)
    for each in (pumped, plain):
        for length in (2**64 - 1, 2**64 - 1, 4096, 4096):
            each.wires.client.send(framing.encode_request(Cmd.READ, 0, 7, 0, length))
            each.settle()
        traffic = each.wires.session.traffic
        assert (traffic.asked[Cmd.READ], traffic.asked_bytes[Cmd.READ]) == (4, 2 * 4096)
    hold(pumped, plain)
    for each in (pumped, plain):
        each.wires.close()

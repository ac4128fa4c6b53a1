"""Replies to WRITEs that come before their data has been sent: in every framing, told once, not too soon."""

from __future__ import annotations

from itertools import product

import pytest

from gateway.jobs.locks import ASK, Entry
from gateway.losses.rule import Losses
from gateway.protocol.asks import Ask, Outcome
from gateway.scan.chunks import reply_scan
from gateway.scan.early import MAX_HELD_CHUNKS, unsent_writes
from gateway.scan.memory import Memory
from gateway.scan.requests import RequestScan
from gateway.scan.traffic import Traffic
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.errors import WireError
from gateway.wire.framing import EXTENDED, SIMPLE, STRUCTURED, Framing
from tests.scan import peers
from tests.scan.peers import Client, Feeder, Reply, Request

CASES = {
    f"{client} client, {link} link": (client, link)
    for client, link in product((SIMPLE, STRUCTURED, EXTENDED), repeat=2)
}
framings = pytest.mark.parametrize(("client", "link"), CASES.values(), ids=CASES)

OFFSET, DATA = 4096, b"\x5a" * 400
WRITE = Request(Cmd.WRITE, 0, 900, OFFSET, len(DATA), DATA)
FUA = Request(Cmd.WRITE, CmdFlag.FUA, 900, OFFSET, len(DATA), DATA)
OURS = 1
"""Our cookie of it."""


class Session:
    """One WRITE of a client, in pieces, and what comes back."""

    def __init__(self, client: Framing, link: Framing, write: Request = WRITE) -> None:
        self.link = link
        self.traffic: Traffic = peers.traffic(
            client_structured=client.chunked,
            link_structured=link.chunked,
            client_extended=client is EXTENDED,
            link_extended=link is EXTENDED,
        )
        trail = Losses().trail(None)
        trail.losses.came_up(trail)
        self.unflushed = trail.unflushed
        self.memory = self.traffic.memory = Memory(trail)
        self.scan = RequestScan(self.traffic)
        self.scan.pin = _Pin
        self.requests = Feeder(self.scan)
        self.replies = reply_scan(self.traffic)
        self.answers = Feeder(self.replies)
        self._client = Client([write], structured=client.chunked, extended=client is EXTENDED)
        self._sent = write.extended_bytes if client is EXTENDED else write.bytes

    def send(self, count: int | None = None) -> None:
        """Send so much of the request, or the rest."""
        count = len(self._sent) if count is None else count
        self.requests.feed(self._sent[:count])
        self._sent = self._sent[count:]

    def says(self, *replies: bytes) -> None:
        """The server answers."""
        self.answers.feed_all(replies)

    def told(self) -> list[Reply]:
        """What the client has been told."""
        for piece in self.replies.settle_early():
            self.answers.sent += piece
        told = self._client.read(bytes(self.answers.sent))
        self.answers.sent.clear()
        return told


class _Pin:
    pins = 1

    def unpin(self) -> None:
        self.pins -= 1


def success(link: Framing) -> bytes:
    return link.success(OURS, OFFSET, read=False)


def failure(link: Framing, *, done: bool = True) -> bytes:
    if link.chunked:
        return link.failure(OURS, OFFSET, Errno.ENOSPC, "full", done=done)
    return link.failure(OURS, OFFSET, Errno.ENOSPC)


def says_no(link: Framing) -> list[list[bytes]]:
    """All ways to refuse it."""
    simple = [failure(link)]
    if not link.chunked:
        return [simple]
    end = link.end(OURS, OFFSET)
    return [simple, [failure(link, done=False), end], [failure(link, done=False) * 2, end]]


@framings
def test_an_error_waits_for_the_clients_data(client: Framing, link: Framing) -> None:
    for said in says_no(link):
        session = Session(client, link)
        session.send(100)
        session.says(*said)
        assert not session.told()
        session.send(100)
        assert not session.told()
        session.send()
        [reply] = session.told()
        assert (reply.cookie, reply.error) == (900, Errno.ENOSPC)
        assert not session.traffic.in_flight
        assert not session.memory.kept_bytes
        assert not session.unflushed.ranges
        [sent] = peers.read_requests(bytes(session.requests.sent), extended=link is EXTENDED)
        assert sent.data == DATA  # it was announced


@framings
def test_an_error_may_have_come_in_part(client: Framing, link: Framing) -> None:
    if not link.chunked:
        return
    session = Session(client, link)
    session.send(100)
    session.says(failure(link, done=False))
    session.send()
    session.told()
    session.says(link.end(OURS, OFFSET))
    [reply] = session.told()
    assert reply.error == Errno.ENOSPC


@framings
@pytest.mark.parametrize("write", [WRITE, FUA], ids=["", "FUA"])
def test_a_success_counts_when_the_data_has_been_sent(
    client: Framing, link: Framing, write: Request
) -> None:
    session = Session(client, link, write)
    session.send(100)
    session.says(success(link))
    session.send()
    session.traffic.early.unsent = {OURS}  # there is some that the kernel does not take yet
    assert not session.told()
    assert not session.unflushed.ranges
    assert session.memory.kept_bytes == len(DATA)
    session.traffic.early.unsent = ()
    assert session.told() == [Reply(900)]
    assert session.unflushed.ranges == ([] if write is FUA else [(OFFSET, OFFSET + len(DATA))])
    assert not session.memory.kept_bytes


@framings
def test_a_success_of_what_is_whole_and_not_sent_waits_as_well(
    client: Framing, link: Framing
) -> None:
    session = Session(client, link, FUA)
    session.send()
    session.traffic.early.unsent = {OURS}
    session.says(success(link))
    assert not session.told()
    session.traffic.early.unsent = ()
    assert session.told() == [Reply(900)]


@framings
def test_an_error_does_not_wait_for_the_kernel(client: Framing, link: Framing) -> None:
    for said in says_no(link):
        session = Session(client, link)
        session.send()
        session.traffic.early.unsent = {OURS}
        session.says(*said)
        [reply] = session.told()
        assert reply.error == Errno.ENOSPC


@framings
@pytest.mark.parametrize("whole", [False, True], ids=["half sent", "sent"])
def test_a_second_reply_costs_the_link(client: Framing, link: Framing, whole: bool) -> None:
    for first, second in product((success, failure), repeat=2):
        session = Session(client, link)
        session.send(100)
        session.says(first(link))
        if whole:
            session.send()
            assert len(session.told()) == 1
        with pytest.raises(WireError):
            session.says(second(link))


@pytest.mark.parametrize("link", [STRUCTURED, EXTENDED], ids=str)
def test_what_is_held_is_bounded(link: Framing) -> None:
    session = Session(STRUCTURED, link)
    session.send(100)
    session.says(*[failure(link, done=False)] * MAX_HELD_CHUNKS)
    with pytest.raises(WireError):
        session.says(failure(link, done=False))


@framings
def test_when_the_link_dies_a_refusal_holds_and_a_success_does_not(
    client: Framing, link: Framing
) -> None:
    for said, error in ((success(link), Errno.EIO), (failure(link), Errno.ENOSPC)):
        session = Session(client, link)
        session.send(100)
        session.says(said)
        last = session.replies.fail("the link died")
        assert last is not None
        session.answers.sent += b"".join(last)
        [reply] = session.told()
        assert reply.error == error
        assert not session.traffic.early.held


def test_an_ask_of_a_job_is_answered_when_its_data_has_been_sent() -> None:
    session = Session(SIMPLE, SIMPLE)
    outcomes: list[Outcome] = []
    session.traffic.asks.send(Ask(Cmd.WRITE, OFFSET, len(DATA), 0, DATA), outcomes.append)
    session.traffic.early.unsent = {OURS}
    session.says(success(SIMPLE))
    session.told()
    assert not outcomes
    session.traffic.early.unsent = ()
    session.told()
    assert [outcome.error for outcome in outcomes] == [0]
    assert not session.traffic.in_flight


HEADER = 28
UNDER_WAY: dict[int, Entry] = {
    1: (0, Cmd.WRITE, 0, 100),
    2: (0, Cmd.READ, 0, 5000),
    3: (0, CmdFlag.FUA << 16 | Cmd.WRITE, 0, 50),
    4: (0, Cmd.WRITE_ZEROES, 0, 7000),
    5: (0, ASK | Cmd.WRITE, 0, 10),
    6: (0, Cmd.FLUSH, 0, 0),
}
UNSENT = {
    0: set(),
    1: set(),  # of FLUSH's header
    HEADER: set(),
    HEADER + 1: {5},
    2 * HEADER + 10: {5},
    3 * HEADER + 10: {5},
    3 * HEADER + 11: {3, 5},
    4 * HEADER + 60: {3, 5},
    5 * HEADER + 60: {3, 5},
    5 * HEADER + 61: {1, 3, 5},
    10_000: {1, 3, 5},
}


@pytest.mark.parametrize(("unsent", "writes"), UNSENT.items())
def test_whose_data_the_last_bytes_are(unsent: int, writes: set[int]) -> None:
    assert set(unsent_writes(UNDER_WAY, unsent, HEADER)) == writes

"""Read-modify-write against everybody else who writes: nothing is lost, nobody waits for ever."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from gateway.jobs.locks import Held, Kin, RangeLocks
from gateway.protocol.export import Export, offer, view_of
from gateway.scan.chunks import reply_scan
from gateway.scan.plan import plan
from gateway.scan.replies import Replies
from gateway.scan.requests import RequestScan
from gateway.scan.traffic import MAX_IN_FLIGHT, Traffic
from gateway.wire.constants import Cmd, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes
from tests.scan import peers
from tests.scan.peers import Feeder, Request

BLOCK = 4096
FLAGS = Flag.HAS_FLAGS | Flag.SEND_WRITE_ZEROES | Flag.SEND_TRIM


class Session:
    """A simple session before a server with blocks; what goes upstream waits in `sent`."""

    def __init__(self, locks: RangeLocks, block: int = BLOCK) -> None:
        export = Export(2**20, int(FLAGS), BlockSizes(block, block, 2**20))
        self.traffic = Traffic(plan(offer(view_of(export), structured=False), export), locks)
        self.requests = Feeder(RequestScan(self.traffic))
        self.replies = Feeder(reply_scan(self.traffic))

    def write(self, cookie: int, offset: int, data: bytes) -> None:
        self.requests.feed(Request(Cmd.WRITE, 0, cookie, offset, len(data), data).bytes)

    def sent(self) -> list[Request]:
        """Requests that have gone upstream since the last call."""
        sent = bytes(self.requests.sent) + b"".join(self.traffic.to_upstream)
        self.requests.sent.clear()
        self.traffic.to_upstream.clear()
        return peers.read_requests(sent)

    def answer(self, request: Request, data: bytes = b"", *, error: int = 0) -> None:
        self.replies.feed(peers.simple(request.cookie, error, data))
        self.traffic.locks.look_again()
        self.traffic.locks.tell()


# --- Who waits for whom


def test_a_whole_block_waits_for_the_change_of_a_part_of_it() -> None:
    locks = RangeLocks()
    one, other = Session(locks), Session(locks)
    one.write(1, 512, b"a" * 512)
    [read] = one.sent()
    assert (read.command, read.offset, read.length) == (Cmd.READ, 0, BLOCK)
    other.write(2, 0, b"b" * BLOCK)
    assert not other.sent()
    other.write(3, BLOCK, b"c" * BLOCK)  # another block: nobody is in the way
    assert [request.offset for request in other.sent()] == [BLOCK]
    one.answer(read, bytes(BLOCK))
    [write] = one.sent()
    assert write.data == bytes(512) + b"a" * 512 + bytes(BLOCK - 1024)
    assert not other.sent()
    one.answer(write)
    [write] = other.sent()
    assert write.data == b"b" * BLOCK


def test_a_change_waits_for_a_whole_block_that_is_under_way() -> None:
    locks = RangeLocks()
    one, other = Session(locks), Session(locks)
    other.write(2, 0, b"b" * BLOCK)
    [write] = other.sent()
    one.write(1, 512, b"a" * 512)
    assert not one.sent()
    other.answer(write)
    [read] = one.sent()
    assert read.command == Cmd.READ


SMALL = 512
CHANGE = Request(Cmd.WRITE, 0, 1, 100, 100, b"a" * 100)


def cut_everywhere(*requests: Request) -> Iterator[Session]:
    """Sessions that have sent the same requests in two pieces each, cut at every position."""
    sent = b"".join(request.bytes for request in requests)
    for cut in range(len(sent)):
        session = Session(RangeLocks(), SMALL)
        session.requests.feed_all(peers.pieces_of(sent, [cut]))
        yield session


def test_a_whole_block_behind_a_change_waits_however_the_bytes_are_cut() -> None:
    """A change that comes in two pieces begins its job in the middle of a receive."""
    whole = Request(Cmd.WRITE, 0, 2, 0, SMALL, b"b" * SMALL)
    for session in cut_everywhere(CHANGE, whole):
        [read] = session.sent()
        assert read.command == Cmd.READ
        session.answer(read, bytes(SMALL))
        [changed] = session.sent()
        assert changed.data == bytes(100) + b"a" * 100 + bytes(SMALL - 200)
        session.answer(changed)
        [write] = session.sent()
        assert (write.offset, write.data) == (0, whole.data)


@pytest.mark.parametrize("command", [Cmd.WRITE_ZEROES, Cmd.TRIM])
def test_so_does_what_writes_without_data(command: Cmd) -> None:
    for session in cut_everywhere(CHANGE, Request(command, 0, 2, 0, SMALL)):
        [read] = session.sent()
        assert read.command == Cmd.READ


def test_nobody_claims_where_nobody_changes_parts() -> None:
    locks = RangeLocks()
    session = Session(locks)
    session.write(1, 0, b"a" * BLOCK)
    session.write(2, 0, b"b" * BLOCK)
    assert len(session.sent()) == 2
    assert not locks.busy
    assert not session.traffic.jobs


def test_a_session_that_ends_keeps_nobody_waiting() -> None:
    locks = RangeLocks()
    one, other, third = Session(locks), Session(locks), Session(locks)
    third.write(3, 0, b"c" * BLOCK)
    one.write(1, 512, b"a" * 512)
    other.write(2, 1024, b"b" * 512)
    assert not one.sent() + other.sent()
    for session in (third, one):
        session.traffic.jobs.fail(Errno.EIO, "gone")
        locks.leave(session.traffic.in_flight)
        locks.tell()
    [read] = other.sent()
    assert read.command == Cmd.READ


def test_nobody_is_overtaken() -> None:
    locks = RangeLocks()
    granted: list[str] = []

    def held(name: str, start: int, end: int) -> Held:
        return Held(start, end, lambda: granted.append(name))

    first, second, third, apart = (
        held("1", 0, 8),
        held("2", 4, 20),
        held("3", 16, 24),
        held("4", 24, 30),
    )
    assert locks.claim(first)
    assert not locks.claim(second)
    assert not locks.claim(third)  # free, but for the second, which waits
    assert locks.claim(apart)
    locks.release(first)
    assert not granted  # a scanner may be at work
    locks.tell()
    assert granted == ["2"]
    locks.release(second)
    locks.tell()
    assert granted == ["2", "3"]
    for last in (third, apart):
        locks.release(last)
    assert not locks.busy


def test_a_chain_of_grants_does_not_recurse() -> None:
    locks = RangeLocks()
    count = 2 * sys.getrecursionlimit()
    claims: list[Held] = []

    def released(number: int) -> None:
        locks.release(claims[number])

    for number in range(count):
        claims.append(Held(0, 1, lambda number=number: released(number)))  # type: ignore[misc]
        assert locks.claim(claims[-1]) == (number == 0)
    released(0)
    locks.tell()
    assert not locks.busy


def test_a_dead_link_ends_those_that_wait_for_each_other() -> None:
    session = Session(RangeLocks())
    for cookie, offset in ((1, 512), (2, 1024), (3, 1536)):
        session.write(cookie, offset, b"a" * 512)
    assert len(session.sent()) == 1
    scan = session.replies.scan
    assert isinstance(scan, Replies)
    last = scan.fail("gone")
    assert last is not None
    told = [peers.simple(cookie, 5) for cookie in (1, 2, 3)]
    assert sorted(bytes(piece) for piece in last) == sorted(told)
    assert not session.traffic.jobs
    assert not session.traffic.in_flight
    assert not session.sent()
    assert not session.traffic.locks.busy


# --- Disks that may be one


def two_disks() -> tuple[RangeLocks, RangeLocks]:
    kin = Kin()
    return RangeLocks(kin), RangeLocks(kin)


def test_a_change_keeps_out_of_the_way_of_disks_that_may_be_the_same() -> None:
    locks, others = two_disks()
    one, other = Session(locks), Session(others)
    one.write(1, 512, b"a" * 512)
    [read] = one.sent()
    other.write(2, 0, b"b" * BLOCK)
    other.write(3, 1024, b"c" * 512)
    assert not other.sent()
    other.write(4, BLOCK, b"d" * BLOCK)
    assert [request.offset for request in other.sent()] == [BLOCK]
    one.answer(read, bytes(BLOCK))
    [write] = one.sent()
    assert not other.sent()
    one.answer(write)
    [write] = other.sent()
    assert write.data == b"b" * BLOCK
    other.answer(write)
    [read] = other.sent()
    assert (read.command, read.offset) == (Cmd.READ, 0)


def test_a_change_waits_for_what_is_under_way_on_disks_that_may_be_the_same() -> None:
    locks, others = two_disks()
    one, other = Session(locks), Session(others)
    other.write(2, 0, b"b" * BLOCK)
    [write] = other.sent()
    one.write(1, 512, b"a" * 512)
    assert not one.sent()
    other.answer(write)
    [read] = one.sent()
    assert read.command == Cmd.READ


def test_surely_other_disks_have_nothing_to_do_with_each_other() -> None:
    one, other = Session(RangeLocks()), Session(RangeLocks())
    one.write(1, 512, b"a" * 512)
    assert one.sent()
    assert not other.traffic.locks.busy
    other.write(2, 512, b"b" * 512)
    assert other.sent()


def test_who_waits_for_its_own_disk_keeps_no_other_waiting() -> None:
    """Its own disk's server may be down. What has begun there meanwhile, it waits for in its turn."""
    locks, others = two_disks()
    one, second, other = Session(locks), Session(locks), Session(others)
    one.write(1, 0, b"a" * 512)
    [read] = one.sent()
    second.write(2, 0, b"b" * 2 * BLOCK)
    other.write(3, BLOCK, b"c" * 512)
    [read_beside] = other.sent()
    assert read_beside.offset == BLOCK
    one.answer(read, bytes(BLOCK))
    [write] = one.sent()
    one.answer(write)
    assert not second.sent()
    other.write(4, BLOCK, b"d" * 512)  # the second's turn is before
    other.answer(read_beside, bytes(BLOCK))
    [write] = other.sent()
    other.answer(write)
    [whole] = second.sent()
    assert not other.sent()
    second.answer(whole)
    [read_beside] = other.sent()
    assert read_beside.offset == BLOCK


@pytest.mark.parametrize("whole", [True, False], ids=["a whole block", "a part"])
def test_whose_link_is_lost_keeps_its_own_disk_waiting_and_no_other(whole: bool) -> None:
    locks, others = two_disks()
    lost, same, other = Session(locks), Session(locks), Session(others)
    lost.write(1, 0, b"a" * (BLOCK if whole else 512))
    [request] = lost.sent()
    for session in (same, other):
        session.write(2, 512, b"b" * 512)
        assert not session.sent()
    locks.loosen(lost.traffic.in_flight)
    locks.tell()
    [read] = other.sent()
    assert not same.sent()
    # What it begins before it has a link again is as loose; its own disk keeps out of the way.
    lost.write(3, BLOCK, b"c" * 512)
    other.write(4, BLOCK, b"d" * 512)
    same.write(5, BLOCK, b"e" * 512)
    assert [each.offset for each in other.sent()] == [BLOCK]
    assert not same.sent()
    # And then it is as before.
    locks.tighten(lost.traffic.in_flight)
    lost.write(6, 2 * BLOCK, b"f" * 512)
    other.write(7, 2 * BLOCK, b"g" * 512)
    assert not other.sent()
    other.answer(read, bytes(BLOCK))
    lost.answer(request, b"" if whole else bytes(BLOCK))
    assert not same.sent()  # the other has it now
    [write] = other.sent()
    other.answer(write)
    assert bool(same.sent()) is whole


def test_whose_link_is_lost_stays_loose_when_something_of_it_ends() -> None:
    locks, others = two_disks()
    lost, other = Session(locks), Session(others)
    lost.write(1, 0, b"a" * BLOCK)
    [request] = lost.sent()
    locks.loosen(lost.traffic.in_flight)
    lost.answer(request)
    lost.write(2, 0, b"b" * 512)
    [read] = lost.sent()
    lost.answer(read, bytes(BLOCK))
    *_read, write = lost.sent()
    lost.answer(write)
    lost.write(3, BLOCK, b"c" * 512)
    other.write(4, BLOCK, b"d" * 512)
    assert len(other.sent()) == 1


def test_who_kept_others_waiting_too_long_is_loose_until_something_of_it_ends() -> None:
    locks, others = two_disks()
    slow, other = Session(locks), Session(others)
    slow.write(1, 0, b"a" * 512)
    [read] = slow.sent()
    other.write(2, 512, b"b" * 512)
    [(_wait, whose)] = others.waits_for_kin()
    assert whose is slow.traffic.in_flight
    others.loosen_kin(whose)
    others.tell()
    assert len(other.sent()) == 1
    assert not list(others.waits_for_kin())
    slow.write(3, BLOCK, b"c" * 512)
    other.write(4, BLOCK, b"d" * 512)
    assert len(other.sent()) == 1
    slow.answer(read, bytes(BLOCK))
    *_read, write = slow.sent()
    slow.answer(write)
    slow.write(5, 2 * BLOCK, b"e" * 512)
    other.write(6, 2 * BLOCK, b"f" * 512)
    assert not other.sent()


def test_a_session_of_another_disk_that_ends_keeps_nobody_waiting() -> None:
    locks, others = two_disks()
    one, third, other = Session(locks), Session(locks), Session(others)
    one.write(1, 0, b"a" * BLOCK)
    third.write(2, BLOCK, b"b" * 512)
    other.write(3, 512, b"c" * 512)
    other.write(4, BLOCK + 512, b"d" * 512)
    assert not other.sent()
    for session in (one, third):
        session.traffic.jobs.fail(Errno.EIO, "the session has ended")
        locks.leave(session.traffic.in_flight)
        locks.tell()
    assert [each.offset for each in other.sent()] == [0, BLOCK]
    assert not locks.in_use


def test_nobody_of_another_disk_is_blamed_for_who_waits() -> None:
    """A client that holds up others is cut off: those of its own disk."""
    locks, others = two_disks()
    one, other = Session(locks), Session(others)
    one.write(1, 0, b"a" * BLOCK)
    other.write(2, 512, b"c" * 512)
    assert not locks.waiting_for(one.traffic.in_flight)


# --- Who waits is under way


MANY = MAX_IN_FLIGHT + 50


def with_many_changes_of_one_block() -> Session:
    """The first of them reads its block; the others wait for the first, or are not begun."""
    session = Session(RangeLocks())
    for cookie in range(MANY):
        session.write(cookie, cookie * 8, b"a" * 8)
    return session


def test_no_more_wait_than_may_be_under_way() -> None:
    session = with_many_changes_of_one_block()
    [read] = session.sent()
    assert read.command == Cmd.READ
    assert session.traffic.jobs.waiting == MAX_IN_FLIGHT - 1
    assert session.traffic.room == 0
    assert len(session.requests.held) == (MANY - MAX_IN_FLIGHT) * (28 + 8)


def test_who_was_granted_a_range_waits_no_more() -> None:
    session = with_many_changes_of_one_block()
    disk = bytearray(BLOCK)
    while asked := session.sent():
        [request] = asked  # nobody else has the block
        if request.command == Cmd.WRITE:
            disk[:] = request.data
        session.answer(request, bytes(disk) if request.command == Cmd.READ else b"")
        session.requests.feed(b"")  # there may be room now
        assert session.traffic.room == MAX_IN_FLIGHT - len(session.traffic.jobs._running)
    assert disk == b"a" * MANY * 8 + bytes(BLOCK - MANY * 8)
    check_nothing_is_under_way(session)


def test_who_failed_waits_no_more() -> None:
    session = with_many_changes_of_one_block()
    failed = 0
    while asked := session.sent():
        [read] = asked
        assert read.command == Cmd.READ
        session.answer(read, error=Errno.EIO)
        session.requests.feed(b"")
        failed += 1
    assert failed == MANY
    check_nothing_is_under_way(session)


def test_who_waited_on_a_dead_link_waits_no_more() -> None:
    session = with_many_changes_of_one_block()
    session.requests.held = b""
    scan = session.replies.scan
    assert isinstance(scan, Replies)
    last = scan.fail("gone")
    assert last is not None
    assert len(last) == MAX_IN_FLIGHT
    check_nothing_is_under_way(session)


def test_who_waited_for_another_session_and_ended_waits_no_more() -> None:
    locks = RangeLocks()
    one, other = Session(locks), Session(locks)
    one.write(1, 512, b"a" * 512)
    for cookie in range(3):
        other.write(cookie, 512 * cookie, b"b" * 512)
    assert other.traffic.jobs.waiting == 3
    other.traffic.jobs.fail(Errno.EIO, "the session has ended")
    locks.leave(other.traffic.in_flight)
    check_nothing_is_under_way(other)
    [read] = one.sent()
    one.answer(read, bytes(BLOCK))
    [write] = one.sent()
    one.answer(write)
    check_nothing_is_under_way(one)
    assert not other.sent()
    assert not locks.busy


def check_nothing_is_under_way(session: Session) -> None:
    traffic = session.traffic
    assert not traffic.jobs
    assert (traffic.jobs.waiting, traffic.jobs.bytes) == (0, 0)
    assert traffic.room == MAX_IN_FLIGHT

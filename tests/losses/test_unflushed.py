"""What has been acknowledged and is not known to be durable: what is kept of it, and when it was."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.losses import eras as module
from gateway.losses.eras import LEAST_BLOCK_BYTES, LONG_AGO, MOST_RANGES, Keep, Order, digest_of
from gateway.losses.unflushed import MOST_ERAS, Unflushed
from gateway.protocol.asks import Ask
from gateway.wire.constants import Cmd, CmdFlag
from gateway.wire.ranges import Range, merged


def write(start: int, data: bytes, flags: int = 0) -> Ask:
    return Ask(Cmd.WRITE, start, len(data), flags, data)


@pytest.mark.parametrize("keep", Keep)
def test_a_flush_covers_what_came_before_it_was_sent(keep: Keep) -> None:
    order = Order()
    unflushed = Unflushed(keep, order)
    assert not unflushed
    unflushed.add(write(0, b"one"))
    mark = order.tick()
    unflushed.add(write(10, b"two"))
    assert unflushed.ranges == [(0, 3), (10, 13)]
    unflushed.cover(mark)
    assert unflushed.ranges == [(10, 13)]
    unflushed.cover(order.tick())
    assert not unflushed
    assert (unflushed.bytes, len(unflushed)) == (0, 0)


def test_a_later_flush_covers_what_one_that_was_lost_did_not() -> None:
    order = Order()
    unflushed = Unflushed(Keep.RANGES, order)
    unflushed.add(write(0, b"one"))
    order.tick()
    later = order.tick()
    unflushed.add(write(10, b"two"))
    unflushed.cover(later)
    assert unflushed.ranges == [(10, 13)]


def test_what_is_forgotten_is_not_covered_later() -> None:
    order = Order()
    unflushed = Unflushed(Keep.RANGES, order)
    unflushed.add(write(0, b"one"))
    mark = order.tick()
    unflushed.take()
    assert not unflushed
    unflushed.add(write(10, b"two"))
    unflushed.cover(mark)
    assert unflushed.ranges == [(10, 13)]
    assert unflushed.touches(12, 20)
    assert not unflushed.touches(13, 20)


def test_data_is_kept_in_order() -> None:
    order = Order()
    unflushed = Unflushed(Keep.DATA, order)
    asks = [write(0, b"one"), write(1, b"two"), Ask(Cmd.TRIM, 0, 2), Ask(Cmd.WRITE_ZEROES, 5, 2)]
    for number, ask in enumerate(asks):
        if number == 2:
            order.tick()
        unflushed.add(ask)
    assert [each.ask for each in unflushed.written] == asks
    assert (unflushed.bytes, len(unflushed)) == (6, 4)


def test_checksums_are_kept_of_what_was_not_written_over() -> None:
    order = Order()
    unflushed = Unflushed(Keep.DIGESTS, order)
    unflushed.add(write(0, b"gone"))
    unflushed.add(write(10, b"partly"))
    order.tick()
    unflushed.add(write(20, b"kept"))
    unflushed.add(write(0, b"over it all"))
    assert [(each.ask.offset, each.digest) for each in unflushed.written] == [
        (10, None),
        (20, digest_of(b"kept")),
        (0, digest_of(b"over it all")),
    ]
    assert not any(each.ask.data for each in unflushed.written)
    assert unflushed.bytes == 0


def test_what_fua_has_written_over_is_not_written_again_on_top_of_it() -> None:
    unflushed = Unflushed(Keep.DATA)
    unflushed.add(write(0, b"old"))
    unflushed.replaced(write(9, b"elsewhere", CmdFlag.FUA))
    assert [each.ask for each in unflushed.written] == [write(0, b"old")]
    unflushed.replaced(write(0, b"new", CmdFlag.FUA))
    assert not unflushed
    assert not unflushed.written
    assert not unflushed.bytes


def test_of_what_fua_has_written_over_in_part_the_rest_is_written_again() -> None:
    """The part not, also not to be followed by what is durable: the server may die between the two."""
    unflushed = Unflushed(Keep.DATA)
    unflushed.add(write(0, b"0123456789"))
    unflushed.add(Ask(Cmd.WRITE_ZEROES, 20, 10))
    unflushed.replaced(write(2, b"new", CmdFlag.FUA))
    unflushed.replaced(write(15, b"longer", CmdFlag.FUA))
    assert [(each.ask.offset, bytes(each.ask.data)) for each in unflushed.written] == [
        (0, b"01"),
        (5, b"56789"),
        (21, b""),
    ]
    assert unflushed.written[2].ask.length == 9
    assert unflushed.ranges == [(0, 2), (5, 10), (21, 30)]
    assert unflushed.is_whole
    assert unflushed.bytes >= 7


def test_what_fua_has_written_over_is_not_looked_for() -> None:
    unflushed = Unflushed(Keep.DIGESTS)
    unflushed.add(write(0, b"gone"))
    unflushed.add(write(10, b"partly"))
    unflushed.replaced(write(0, b"over it all", CmdFlag.FUA))
    assert [(each.ask.offset, each.digest) for each in unflushed.written] == [(10, None)]
    assert unflushed.ranges == [(11, 16)]


def test_what_fua_has_written_over_cannot_be_lost() -> None:
    unflushed = Unflushed()
    unflushed.add(write(0, bytes(10)))
    unflushed.replaced(write(2, b"new", CmdFlag.FUA))
    assert unflushed.ranges == [(0, 2), (5, 10)]


def test_many_ranges_become_coarser() -> None:
    """More may be said to be lost than is, and never less."""
    unflushed = Unflushed()
    places = [2 * LEAST_BLOCK_BYTES * number + 5 for number in range(MOST_RANGES + 1)]
    for place in places[:-1]:
        unflushed.note([(place, place + 10)])
    assert not unflushed.touches(0, 5)
    assert len(unflushed.ranges) == MOST_RANGES
    unflushed.note([(places[-1], places[-1] + 10)])
    assert unflushed.touches(0, 5)
    assert len(unflushed.ranges) <= MOST_RANGES // 2
    assert all(unflushed.touches(place, place + 1) for place in places)
    assert all(unflushed.touches(place + 9, place + 10) for place in places)


def test_what_is_written_in_order_is_one_range() -> None:
    unflushed = Unflushed()
    for at in range(0, 5000, 10):
        unflushed.note([(at, at + 10)])
    assert len(unflushed.eras[0].ranges) == 1


def test_the_bound_is_kept_however_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RANGES", 8)
    random = Random(3)
    unflushed = Unflushed()
    for _ in range(2000):
        start = random.randrange(2**40)
        unflushed.note([(start, start + random.randint(1, 2**16))])
        assert unflushed.touches(start, start + 1)
        assert len(unflushed.eras[0].ranges) <= 8 + 8  # as they came, and in blocks


ONE, TWO, THREE = (0, 10), (20, 30), (40, 50)


class Log(Unflushed):
    """One whose order can be gone on with."""

    def __init__(self, keep: Keep = Keep.RANGES, order: Order | None = None) -> None:
        self.order = order or Order()
        super().__init__(keep, self.order)

    def tick(self) -> int:
        return self.order.tick()

    @property
    def times(self) -> list[tuple[float, float, float]]:
        return [(era.first, era.last, era.asked) for era in self.eras]


@pytest.fixture
def log() -> Log:
    return Log()


# --- Eras


def test_what_comes_between_two_events_is_one_era(log: Log) -> None:
    log.note([ONE])
    log.note([TWO])
    assert log.times == [(0, 0, 0)]
    log.tick()
    log.tick()
    log.note([THREE])
    assert log.times == [(0, 0, 0), (2, 2, 2)]
    assert log.ranges == [ONE, TWO, THREE]


def test_what_was_asked_at_another_time_is_an_era_of_its_own(log: Log) -> None:
    up = log.tick()
    log.note([ONE], 0)
    log.note([TWO], up)
    assert log.times == [(1, 1, 0), (1, 1, 1)]


def test_first_is_that_of_the_oldest(log: Log) -> None:
    assert log.first == float("inf")
    log.tick()
    log.note([ONE])
    log.tick()
    log.note([TWO])
    assert log.first == 1
    assert [era.ranges for era in log.begun_before(1)] == []
    assert [era.ranges for era in log.begun_before(2)] == [[ONE]]
    assert log.ranges == [ONE, TWO]


def test_without_records_nothing_is_kept() -> None:
    log = Unflushed(records=False)
    log.note([ONE])
    log.add(write(0, b"one"))
    assert not log


def test_it_says_when_it_holds_something() -> None:
    begun: list[int] = []
    log = Unflushed(begun=lambda: begun.append(1))
    other = Unflushed()
    log.note([ONE])
    log.note([TWO])
    assert len(begun) == 1
    log.take()
    log.absorb(other)
    assert len(begun) == 1
    other.note([THREE])
    log.absorb(other)
    assert len(begun) == 2


# --- Cover


def test_cover_before(log: Log) -> None:
    log.note([ONE])
    sent = log.tick()
    log.note([TWO])
    log.cover(sent)
    assert log.ranges == [TWO]


def test_cover_since(log: Log) -> None:
    log.note([ONE])
    up = log.tick()
    log.note([TWO])
    sent = log.tick()
    log.note([THREE])
    log.cover(sent, since=up)
    assert log.ranges == [ONE, THREE]


def test_cover_since_it_was_asked(log: Log) -> None:
    asked = log.tick()
    up = log.tick()
    log.note([ONE], asked)
    log.cover(log.tick(), since=up)
    assert log.ranges == [ONE]
    log.cover(log.tick())
    assert not log


def test_what_was_taken_is_not_kept(log: Log) -> None:
    log.note([ONE])
    log.tick()
    log.note([TWO])
    assert [era.ranges for era in log.cover(1)] == [[ONE]]
    assert [era.ranges for era in log.take()] == [[TWO]]
    assert log.take() == []


def test_what_was_dropped_is_not_kept(log: Log) -> None:
    log.note([ONE])
    log.tick()
    log.note([TWO])
    log.drop(log.begun_before(1))
    assert log.ranges == [TWO]


def test_what_was_written_again_is_covered_by_its_own_link_only(log: Log) -> None:
    log.note([ONE])
    sent = log.tick()
    log.renew()
    log.cover(sent)
    log.cover(log.tick(), since=1)
    log.cover(log.tick(), since=LONG_AGO + 1)
    assert log.ranges == [ONE]
    assert log.first == 0  # whoever relied on it still does
    log.cover(log.tick())
    assert not log


# --- Taken for one


def test_so_many_eras_are_kept_apart(log: Log) -> None:
    for at in range(MOST_ERAS + 10):
        log.note([(at * 10, at * 10 + 5)])
        log.tick()
    assert len(log.eras) == MOST_ERAS
    assert log.times[0] == (0, 10, 0)
    assert log.times[1] == (11, 11, 11)
    log.cover(5)
    assert log.first == 0  # covered when its last is
    log.cover(11)
    assert log.first == 11
    assert len(log.ranges) == MOST_ERAS - 1


def test_of_what_is_taken_for_one_the_first_counts_that_was_asked(log: Log) -> None:
    for _ in range(5):
        log.tick()
    log.note([ONE])
    log.tick()
    log.note([TWO], 2)
    for _ in range(MOST_ERAS):
        log.tick()
        log.note([THREE])
    assert log.times[0][2] == 2


def test_what_a_proof_covers_is_not_taken_for_one_with_what_comes(log: Log) -> None:
    log.note([ONE])
    sent = log.tick()
    log.keep_apart()
    for _ in range(3 * MOST_ERAS):
        log.note([TWO])
        log.tick()
    assert len(log.eras) == MOST_ERAS
    log.cover(sent)
    assert log.ranges == [TWO]
    for _ in range(3 * MOST_ERAS):
        log.note([TWO])
        log.tick()
    assert len(log.eras) == MOST_ERAS


def test_absorb_takes_what_another_has_in_order() -> None:
    order = Order()
    log, other = Log(Keep.DATA, order), Log(Keep.DATA, order)
    other.add(write(0, b"one"))
    order.tick()
    log.add(write(0, b"two"))
    order.tick()
    other.add(write(0, b"three"))
    log.absorb(other)
    assert not other
    assert [bytes(each.ask.data) for each in log.written] == [b"one", b"two", b"three"]
    assert log.bytes == 11
    assert log.times == [(0, 0, 0), (1, 1, 1), (2, 2, 2)]


def test_absorb_keeps_the_bound() -> None:
    order = Order()
    log, other = Log(order=order), Log(order=order)
    for at in range(2 * MOST_ERAS):
        (log if at % 2 else other).note([(at * 10, at * 10 + 5)])
        order.tick()
    log.absorb(other)
    assert len(log.eras) == MOST_ERAS
    assert len(log.ranges) == 2 * MOST_ERAS


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("note"), st.integers(0, 9), st.integers(0, 3)),
        st.tuples(st.just("tick"), st.just(0), st.just(0)),
        st.tuples(st.just("cover"), st.integers(0, 20), st.integers(0, 20)),
    ),
    max_size=40,
)


@given(EVENTS)
def test_eras_are_as_good_as_single_writes(events: list[tuple[str, int, int]]) -> None:
    log = Log()
    kept: list[tuple[Range, int, int]] = []
    for what, one, other in events:
        if what == "tick":
            log.tick()
        elif what == "note":
            asked = max(0, log.order.now - other)
            place = (one * 10, one * 10 + 5)
            log.note([place], asked)
            kept.append((place, log.order.now, asked))
        else:
            log.cover(one, since=other)
            kept = [each for each in kept if not (each[1] < one and each[2] >= other)]
        assert log.ranges == merged(place for place, _answered, _asked in kept)
        assert log.first == min((answered for _p, answered, _a in kept), default=float("inf"))

"""What has been acknowledged and is not known to be durable."""

from __future__ import annotations

from random import Random

import pytest

from gateway.relay import unflushed as module
from gateway.relay.scan.asks import Ask
from gateway.relay.unflushed import (
    LEAST_BLOCK_BYTES,
    MOST_RANGES,
    Keep,
    Order,
    Unflushed,
    digest_of,
)
from gateway.wire.constants import Cmd, CmdFlag


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
    fua = write(0, b"new", CmdFlag.FUA)
    unflushed.replaced(fua)
    assert [each.ask for each in unflushed.written] == [write(0, b"old"), fua]


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

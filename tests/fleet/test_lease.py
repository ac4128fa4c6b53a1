"""What a gateway may rely on: lease, record and tenure; and the model that holds them together.

Each of look, margin and wait is taken out once, and the model says how two gateways write then.
"""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from gateway.fleet.lease import Lease
from gateway.fleet.record import MOST_WRITERS, DiskRecord, HomeRun, NotARecord, record_of
from gateway.fleet.tenure import Tenure, TenureStage
from tests.fleet.model import Terms, search

A, A2, B, C = HomeRun("a", "1"), HomeRun("a", "2"), HomeRun("b", "1"), HomeRun("c", "1")


# --- The lease


def test_a_lease_counts_from_when_its_renewal_was_sent() -> None:
    lease = Lease(10, 2)
    assert not lease.may(-1e9)
    lease = lease.renewed(100, 10)
    assert lease.may(107.9)
    assert not lease.may(108)


def test_answers_may_come_in_any_order() -> None:
    lease = Lease(10, 2).renewed(105, 10).renewed(100, 10)
    assert lease.until == 113


def test_a_lease_is_no_longer_than_etcd_says_nor_than_was_asked() -> None:
    assert Lease(10, 2).renewed(100, 5).until == 103
    assert Lease(10, 2).renewed(100, 60).until == 108


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_lease_that_etcd_does_not_know_is_over(seconds: int) -> None:
    assert Lease(10, 2).renewed(100, 10).renewed(101, seconds).until == -inf


# --- The record


def test_who_takes_a_disk_finds_those_that_did_not_give_it_away() -> None:
    record = DiskRecord().taken(A)
    assert record.before(B) == (A,)
    record = record.taken(B)
    assert record.before(C) == (A, B)  # B has died before it had cleared anything
    assert record.cleared(B).before(C) == (B,)


def test_a_disk_that_was_given_away_waits_for_nobody() -> None:
    record = DiskRecord().taken(A).given(A)
    assert record.before(B) == ()


def test_who_gives_a_disk_away_speaks_for_nobody_else() -> None:
    assert DiskRecord().taken(A).taken(B).given(B).before(C) == (A,)


def test_a_gateway_that_was_started_anew_waits_for_itself_and_stands_there_once() -> None:
    record = DiskRecord().taken(A)
    assert record.before(A2) == (A,)
    assert record.taken(A2) == DiskRecord((A2,))


def test_a_record_is_read_as_it_was_written() -> None:
    record = DiskRecord((A, HomeRun("b", "2", "nbds://b")))
    assert record_of(record.encode()) == record
    assert record_of(None) == DiskRecord()


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "[]", "{}", '{"v": 2, "writers": []}', '{"v": 1, "writers": {}}'),
        *('{"v": 1, "writers": [["a", "1"]]}', '{"v": 1, "writers": [["a", 1, ""]]}', "[" * 99999),
        '{"v": 1, "writers": [' + ",".join(['["a", "1", ""]'] * (MOST_WRITERS + 1)) + "]}",
    ],
)
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(NotARecord, match="expected the record of a disk"):
        record_of(text)


# --- A tenure


def lease_until(until: float) -> Lease:
    return Lease(10, 0, until)


def test_after_an_orderly_end_a_tenure_begins_at_once() -> None:
    tenure = Tenure.begun((), 100, 30, fence=False)
    assert tenure.may(lease_until(101), 100)


def test_a_tenure_waits_for_what_may_be_on_its_way() -> None:
    tenure = Tenure.begun((A,), 100, 30, fence=False)
    assert not tenure.waited(129.9).may(lease_until(200), 129.9)
    assert tenure.waited(130).may(lease_until(200), 130)


def test_with_a_fence_nothing_else_begins_a_tenure() -> None:
    tenure = Tenure.begun((A,), 100, 30, fence=True)
    assert not tenure.waited(1e9).may(lease_until(inf), 1e9)
    assert tenure.fenced().may(lease_until(101), 100)


def test_a_tenure_that_is_over_stays_so() -> None:
    for tenure in (Tenure.begun((), 0, 30, fence=False), Tenure.begun((A,), 0, 30, fence=True)):
        over = tenure.ended()
        assert over.fenced().waited(1e9).stage is TenureStage.OVER
        assert not over.may(lease_until(inf), 0)


def test_a_tenure_is_worth_as_much_as_its_lease() -> None:
    tenure = Tenure.begun((), 0, 30, fence=False)
    assert not tenure.may(lease_until(5), 5)
    assert tenure.may(lease_until(6), 5)  # it was renewed late, and nobody has taken the disk


# --- Every order


FEWER: dict[str, Any] = {"until": 3, "renewals": (0, 1)}
"""Only the second gateway renews: a fourteenth of the states, and whatever is missing is found in them."""


def test_nothing_comes_from_before_whoever_has_begun() -> None:
    found = search(Terms(**FEWER))
    assert found.wrong is None
    assert found.served == {0, 1}  # both had it: else nothing was tried
    assert found.states > 5_000


@pytest.mark.real  # a hundred thousand states
def test_nor_does_anything_where_both_renew() -> None:
    found = search(Terms(until=3))
    assert found.wrong is None
    assert found.served == {0, 1}
    assert found.states > 50_000


@pytest.mark.parametrize(
    "without", [{"looks": False}, {"margin": 0}, {"wait": 0}, {"gives_at_once": True}], ids=str
)
def test_each_part_is_needed(without: dict[str, Any]) -> None:
    assert search(Terms(**FEWER, **without)).wrong is not None


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "without", [{"counts_from_sending": False}, {"clock_sleeps": True}, {"stops": True}], ids=str
)
def test_so_is_where_time_counts_from_and_a_bound_on_stops(without: dict[str, Any]) -> None:
    assert search(Terms(until=4, **without)).wrong is not None


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "terms",
    [{}, {"fence": True}, {"fence": True, "stops": True}, {"lease": 3, "until": 5}],
    ids=str,
)
def test_every_order_of_a_longer_time(terms: dict[str, Any]) -> None:
    assert search(Terms(**{"until": 4, **terms})).wrong is None

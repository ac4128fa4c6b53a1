"""Times are found again within a factor of two."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from gateway.counts.seconds import BOUNDS, ByCommand, Seconds, as_said, bucket_of

times = st.floats(0, 200)


@given(times)
def test_a_time_is_under_the_bound_of_its_bucket_and_not_of_the_one_before(seconds: float) -> None:
    bucket = bucket_of(seconds)
    assert seconds < (*BOUNDS, inf)[bucket]
    assert bucket == 0 or seconds >= BOUNDS[bucket - 1]


@given(st.lists(times, min_size=1), st.sampled_from([0.5, 0.99, 0.999]))
def test_a_share_is_under_the_least_bound_that_holds_for_it(
    all_: list[float], share: float
) -> None:
    histogram = Seconds()
    for each in all_:
        histogram.add(each)
    bound = histogram.at(share)
    assert bound is not None
    assert sum(each < bound for each in all_) >= share * len(all_)
    less = [each for each in BOUNDS if each < bound]
    assert not less or sum(each < less[-1] for each in all_) < share * len(all_)
    assert histogram.count == len(all_)


def test_nothing_is_under_no_bound_and_what_takes_too_long_neither() -> None:
    times = ByCommand()
    assert as_said(times) == {}
    times["READ"].add(65.0)
    assert as_said(times) == {
        "READ": {
            "sampled": 1,
            "mean": 65.0,
            "half_under": None,
            "p99_under": None,
            "p999_under": None,
            "total": 65.0,
            "buckets": [0] * len(BOUNDS) + [1],
        }
    }

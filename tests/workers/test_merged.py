"""Several answers put together: sums, bounds that are true of all, and pages in order."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.counts.seconds import SHARES, Seconds, said_of
from gateway.status import shown
from gateway.workers import merged


def test_numbers_are_added_within_tables() -> None:
    one = {"a": 1, "t": {"x": 2}}
    other = {"b": 3, "t": {"x": 4, "y": 5}}
    assert merged.added([one, other]) == {"a": 1, "b": 3, "t": {"x": 6, "y": 5}}


def test_every_name_of_status_is_thought_of() -> None:
    """What `gateway_shown` gives; a new name needs a word on how several are put together."""
    source = ast.parse(inspect.getsource(shown.gateway_shown)).body[0]
    [names] = [each.value for each in ast.walk(source) if isinstance(each, ast.Return)]
    assert isinstance(names, ast.Dict)
    given = [each.value for each in names.keys if isinstance(each, ast.Constant)]
    assert given == list(merged._STATUS)


times = st.lists(st.floats(0, 100))


@given(times, times)
def test_times_of_all_are_those_of_each_and_a_bound_of_all_is_the_largest(
    some: list[float], others: list[float]
) -> None:
    """Half of each were under its own bound, so half of all were under the larger one."""
    one, other, all_ = Seconds(), Seconds(), Seconds()
    for added, to in ((some, one), (others, other), ([*some, *others], all_)):
        for each in added:
            to.add(each)
    found = merged.added([{"READ": said_of(one)}, {"READ": said_of(other)}])["READ"]
    real = said_of(all_)
    assert found.keys() == real.keys()
    assert (found["sampled"], found["buckets"]) == (real["sampled"], real["buckets"])
    assert found["total"] == pytest.approx(real["total"], abs=1e-5)
    if found["sampled"]:
        assert found["mean"] == pytest.approx(real["mean"], abs=1e-5)
        for name in SHARES:  # None: there is no bound
            assert found[name] is None or (real[name] is not None and found[name] >= real[name])


def test_an_upstream_is_down_if_any_worker_found_it_so() -> None:
    up: dict[str, Any] = {
        "upstream": "u",
        "state": "up",
        "why": None,
        "sessions": 1,
        "connections": 2,
        "ready": 0,
        "repaired": {},
        "flags_cleared": {},
        "seconds": {},
    }
    down = up | {"state": "down", "why": "nobody listens", "sessions": 0}
    found = merged.upstream([up, down])
    assert (found["state"], found["why"], found["sessions"]) == ("down", "nobody listens", 1)


def test_lines_that_all_say_are_there_once() -> None:
    said = [(0, ["exports: 2", "sessions: 1"]), (1, ["exports: 2", "sessions: 0"])]
    assert merged.lines(said) == (
        "exports: 2",
        "worker 0: sessions: 1",
        "worker 1: sessions: 0",
    )
    assert merged.lines([]) == ()


@given(st.lists(st.sets(st.integers(0, 60)), min_size=1, max_size=4), st.integers(1, 7))
def test_pages_have_everything_once_and_in_order(workers: list[set[int]], size: int) -> None:
    """However long the pages of each worker are, and though one thing may be in several."""

    def page(there: set[int], after: int) -> dict[str, Any]:
        rest = sorted(each for each in there if each > after)
        return {"of": [{"n": each, "times": 1} for each in rest[:size]], "more": len(rest) > size}

    def together(same: list[Any]) -> dict[str, int]:
        return {"n": same[0]["n"], "times": len(same)}

    seen: list[Any] = []
    while True:
        after = seen[-1]["n"] if seen else -1
        pages = [page(there, after) for there in workers]
        found, more = merged.in_order(pages, "of", lambda each: each["n"], together)
        seen += found
        if not more:
            break
        assert found
    everything = sorted(set().union(*workers))
    assert [each["n"] for each in seen] == everything
    assert all(each["times"] == sum(each["n"] in there for there in workers) for each in seen)

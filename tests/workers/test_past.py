"""What those have done that have died stays counted, and what they were doing does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.counts.seconds import Seconds, said_of
from gateway.counts.totals import Totals
from gateway.hub.pace import Pace
from gateway.workers import merged
from gateway.workers.past import Past


def totals(sessions: int) -> dict[str, object]:
    found = Totals(sessions=sessions)
    found.requests["READ"] = 2 * sessions
    return found.as_said()


def status(done: int, doing: int, *, listener: str = "a", upstream: str = "u") -> dict[str, Any]:
    """Of a worker that has had so many sessions, and has so many."""
    seconds = Seconds()
    for _ in range(done):
        seconds.add(0.01)
    return {
        "version": "1",
        "compiled_pump": True,
        "started": "now",
        "config_loaded": "now",
        "uptime_seconds": 1.0,
        "draining": doing > 3,
        "older": None,
        "fleet": None,
        "sessions_end_in_seconds": None,
        "waits_for_sessions": [{"session": doing}] * doing,
        "listeners": [
            {
                "listener": listener,
                "clients": doing,
                "drained": doing > 3,
                "sessions_end_in_seconds": None,
                "handshakes": {"session": done},
                "tls_versions": {},
            }
        ],
        "came_by": [{"listener": listener, "sessions": {"": doing}, "ended": {"": done}}],
        "sessions": doing,
        "negotiations": doing,
        "stuck_sessions": doing,
        "stuck": [{"session": doing, "silent_seconds": 1.0}] * doing,
        "upstreams": [
            {
                "upstream": upstream,
                "state": "down" if doing > 3 else "up",
                "why": "why" if doing > 3 else None,
                "sessions": doing,
                "connections": doing,
                "ready": doing,
                "repaired": {"quirk": done},
                "flags_cleared": {"CAN_MULTI_CONN": done},
                "seconds": {"READ": said_of(seconds)},
            }
        ],
        "paused": ["x"] * (doing > 3),
        "pauses": [],
        "switched": {},
        "disks_with_losses_untold": doing,
        "tickets": None,
        "certificates": [{"of": "a", "what": "b"}],
        "expiries": [],
        "totals": totals(done),
        "hub": Pace().as_said(),
        "events": [{"event": "e", "upstream": None, "times": done}],
        "log_lines_dropped": done,
    }


def numbers(said: Mapping[str, Any]) -> tuple[int, ...]:
    """What only grows."""
    return (
        said["totals"]["sessions"],
        said["totals"]["requests"]["READ"],
        said["listeners"][0]["handshakes"]["session"],
        said["upstreams"][0]["repaired"]["quirk"],
        said["upstreams"][0]["flags_cleared"]["CAN_MULTI_CONN"],
        said["log_lines_dropped"],
        said["upstreams"][0]["seconds"]["READ"]["sampled"],
        said["events"][0]["times"],
        said["came_by"][0]["ended"][""],
    )


def test_every_name_of_status_is_thought_of() -> None:
    """A new one is either what a worker has done, and stays, or what it was doing (`IS_DOING`)."""
    assert status(0, 0).keys() == merged._STATUS.keys()


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4), st.booleans()), max_size=20))
def test_what_only_grows_does_whoever_dies(steps: list[tuple[int, int, bool]]) -> None:
    """Of each step: which worker has more sessions, how many more, and whether it dies when that was asked."""
    past, done, gone = Past(), [1, 1], 0
    for worker, more, dies in steps:
        done[worker] += more
        said = past.status({number: status(each, 1) for number, each in enumerate(done)})
        expected = sum(done) + gone
        assert numbers(said) == (expected, 2 * expected, *[expected] * 7)
        assert (said["sessions"], said["listeners"][0]["clients"]) == (2, 2)
        rows = {
            number: [{"export": "x", "sessions": 1, "held": {"pause": 1}, "totals": totals(each)}]
            for number, each in enumerate(done)
        }
        [row] = past.counts(rows)
        assert (row["sessions"], row["held"], row["totals"]["sessions"]) == (
            *(2, {"pause": 2}),
            expected,
        )
        if dies:
            past.died(worker)
            gone += done[worker]
            done[worker] = 0


def test_of_one_that_has_died_nothing_is_there_but_what_it_has_done() -> None:
    past = Past()
    past.status({0: status(5, 4), 1: status(0, 0)})
    past.died(0)
    past.died(0)
    said = past.status({1: status(2, 0)})
    assert numbers(said)[0] == 7
    calm = status(2, 0)
    grows = {"totals", "events", "listeners", "came_by", "upstreams", "hub", "log_lines_dropped"}
    for name in calm.keys() - grows:
        assert said[name] == calm[name], name
    [listener], [upstream] = said["listeners"], said["upstreams"]
    assert (listener["clients"], listener["drained"]) == (0, False)
    assert (upstream["state"], upstream["why"], upstream["sessions"]) == ("up", None, 0)


def test_what_no_worker_has_any_more_is_left_out() -> None:
    past = Past()
    past.status({0: status(5, 0, listener="old", upstream="old")})
    past.died(0)
    said = past.status({0: status(1, 0)})
    assert [each["listener"] for each in said["listeners"]] == ["a"]
    assert [each["upstream"] for each in said["upstreams"]] == ["u"]


def test_what_was_never_asked_is_not_known() -> None:
    past = Past()
    past.died(3)
    assert numbers(past.status({0: status(1, 1)}))[0] == 1
    assert past.counts({}) == []


def test_an_export_that_only_the_dead_have_served_has_its_counts() -> None:
    past = Past()
    row = {"export": "x", "sessions": 1, "held": {"pause": 1}, "totals": totals(3)}
    past.counts({0: [row]})
    past.died(0)
    assert past.counts({}) == [{**row, "sessions": 0, "held": {}}]


def test_who_says_nothing_is_as_he_was() -> None:
    """One that is stopped has not died: his sessions are there, and no number gets smaller."""
    past = Past()
    both = past.status({0: status(3, 1), 1: status(5, 2)})
    assert past.status({0: status(3, 1)}) == both
    past.died(1)
    assert past.status({0: status(3, 1)})["sessions"] == 1

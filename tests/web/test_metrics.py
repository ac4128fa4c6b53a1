"""Metrics are OpenMetrics, and have the numbers that `status` and `exports` show."""

from __future__ import annotations

import platform
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from gateway.counts.seconds import BOUNDS, Seconds, said_of
from gateway.counts.totals import Totals
from gateway.web.exposition import PREFIX, Exposition, Snapshot
from gateway.web.metrics import METRICS


def times(*each: float) -> dict[str, Any]:
    made = Seconds()
    for seconds in each:
        made.add(seconds)
    return said_of(made)


def totals(**more: Any) -> dict[str, Any]:
    return {**Totals().as_said(), **more}


STATUS: dict[str, Any] = {
    "version": "1",
    "started": "now",
    "config_loaded": "2026-12-01T00:00:00+00:00",
    "uptime_seconds": 5.0,
    "draining": False,
    "listeners": [
        {
            "listener": "nbd://h",
            "clients": 2,
            "most_clients": 10,
            "drained": True,
            "handshakes": {"session": 7, "left": 1},
            "tls_versions": {"TLSv1.3": 3},
        }
    ],
    "came_by": [
        {"listener": "nbd://h", "sessions": {"none": 2}, "ended": {"client-disc": 5}},
        {"listener": "nbds://h", "sessions": {"TLSv1.3": 1}, "ended": {}},
    ],
    "sessions": 3,
    "negotiations": 1,
    "stuck_sessions": 1,
    "upstreams": [
        {
            "upstream": "main",
            "required": True,
            "state": "up",
            "why": None,
            "sessions": 2,
            "connections": 3,
            "ready": 2,
            "most_connections": None,
            "repaired": {"qemu-x": 2},
            "flags_cleared": {"CAN_MULTI_CONN": 2},
            "seconds": {"READ": times(0.001)},
        },
        {
            "upstream": "other",
            "required": False,
            "state": "unknown",
            "why": None,
            "sessions": 0,
            "connections": 0,
            "ready": 0,
            "most_connections": 8,
            "repaired": {},
            "flags_cleared": {},
            "seconds": {},
        },
    ],
    "paused": ["x"],
    "disks_with_losses_untold": 0,
    "certificates": [],
    "expiries": [{"file": "/pki/server-cert.pem", "seconds": -60}],
    "totals": totals(ended={"client-disc": 5}, seconds={"READ": times(0.001, 0.002, 100)}),
    "hub": {"rounds": times(0.0001)},
    "events": [
        {"event": "configuration reloaded", "upstream": None, "times": 3},
        {"event": "upstream connection made again", "upstream": "main", "times": 2},
    ],
    "log_lines_dropped": 9,
}

STRANGE = 'a"b\\c\n<script>'


def export(name: str, **more: Any) -> dict[str, Any]:
    return {
        "export": name,
        "sessions": 1,
        "in_flight": 4,
        "held": {"claim": 3},
        "losses_untold": 1,
        "totals": totals(sessions=1, **more),
    }


def samples(snapshot: Snapshot, exposition: Exposition | None = None) -> dict[Any, float]:
    text = b"".join((exposition or Exposition(METRICS)).pieces(snapshot)).decode()
    return {
        (sample.name.removeprefix(PREFIX), *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


SNAPSHOT = Snapshot(
    STATUS,
    (
        export(
            "disk",
            requests={"READ": 10, "FLUSH": 2},
            errors={"READ EIO": 3},
            bytes={"READ": 40960},
            losses=2,
            replayed_bytes=512,
        ),
        export(
            STRANGE,
            requests={"WRITE": 4},
            refused={"WRITE EPERM": 3},
            refused_by={"protect": {"WRITE EPERM": 2}},
            errors={"WRITE EPERM": 3},
        ),
        {**export("never"), "sessions": 0, "totals": totals()},
    ),
)


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("build_info", {"version": "1", "python": None}, 1),
        ("sessions", {"listener": "nbd://h", "tls": "none"}, 2),
        ("sessions", {"listener": "nbds://h", "tls": "TLSv1.3"}, 1),
        ("sessions", {"listener": "nbd://h", "tls": "TLSv1.3"}, 0),
        ("sessions_ended_total", {"listener": "nbd://h", "end": "client-disc"}, 5),
        ("in_flight_requests", {"export": "disk"}, 4),
        ("held_requests", {"export": "disk", "why": "claim"}, 3),
        ("losses_total", {"export": "disk"}, 2),
        ("losses_untold", {"export": "disk"}, 1),
        ("certificate_expiry_seconds", {"file": "/pki/server-cert.pem"}, -60),
        ("handshakes_total", {"listener": "nbd://h", "result": "session"}, 7),
        ("tls_handshakes_total", {"listener": "nbd://h", "version": "TLSv1.3"}, 3),
        ("requests_total", {"export": "disk", "command": "READ", "result": "ok"}, 7),
        ("requests_total", {"export": "disk", "command": "READ", "result": "EIO"}, 3),
        ("requests_total", {"export": "disk", "command": "FLUSH", "result": "ok"}, 2),
        ("requests_total", {"export": STRANGE, "command": "WRITE", "result": "EPERM"}, 3),
        (
            "refusals_total",
            {"export": STRANGE, "policy": "protect", "command": "WRITE", "result": "EPERM"},
            2,
        ),
        (
            "refusals_total",
            {"export": STRANGE, "policy": "none", "command": "WRITE", "result": "EPERM"},
            1,
        ),
        ("replayed_bytes_total", {"export": "disk"}, 512),
        ("flags_cleared", {"upstream": "main", "flag": "CAN_MULTI_CONN"}, 1),
        ("config_loaded_seconds", {}, 1796083200),
        ("log_lines_dropped_total", {}, 9),
        ("bytes_total", {"export": "disk", "direction": "read"}, 40960),
        ("upstream_up", {"upstream": "main"}, 1),
        ("upstream_connections", {"upstream": "main", "state": "used"}, 3),
        ("upstream_connections", {"upstream": "main", "state": "ready"}, 2),
        ("upstream_most_connections", {"upstream": "other"}, 8),
        ("quirk_in_force", {"upstream": "main", "quirk": "qemu-x"}, 1),
        ("reloads_total", {"result": "ok"}, 3),
        ("reloads_total", {"result": "failed"}, 0),
        ("reconnects_total", {"upstream": "main", "result": "ok"}, 2),
        ("reconnects_total", {"upstream": "other", "result": "ok"}, 0),
        ("events_total", {"event": "configuration reloaded", "upstream": ""}, 3),
        ("request_seconds_count", {"command": "READ"}, 3),
        ("request_seconds_bucket", {"command": "READ", "le": str(BOUNDS[-1])}, 2),
        ("request_seconds_bucket", {"command": "READ", "le": "+Inf"}, 3),
        ("upstream_seconds_sum", {"upstream": "main", "command": "READ"}, 0.001),
        ("hub_round_seconds_count", {}, 1),
    ],
)
def test_a_number(name: str, labels: dict[str, str | None], value: float) -> None:
    said = {
        label: platform.python_version() if each is None else each for label, each in labels.items()
    }
    assert samples(SNAPSHOT)[(name, *sorted(said.items()))] == pytest.approx(value)


def test_what_is_not_known_is_not_said() -> None:
    found = samples(SNAPSHOT)
    assert ("upstream_up", ("upstream", "other")) not in found
    assert ("upstream_most_connections", ("upstream", "main")) not in found
    assert not [key for key in found if ("export", "never") in key]


def test_names_and_units_are_those_of_prometheus() -> None:
    assert len({(row.name, row.kind) for row in METRICS}) == len({row.name for row in METRICS})
    for row in METRICS:
        assert row.name.endswith(row.unit)
        assert not row.name.endswith("total")
        assert row.meaning.endswith(".")


def test_what_only_grows_never_goes_back() -> None:
    """A request that is under way is told as ok, and may then fail."""
    exposition = Exposition(METRICS)
    before = Snapshot(STATUS, (export("disk", requests={"READ": 10}),))
    after = Snapshot(STATUS, (export("disk", requests={"READ": 10}, errors={"READ EIO": 1}),))
    key = ("requests_total", ("command", "READ"), ("export", "disk"), ("result", "ok"))
    assert samples(before, exposition)[key] == 10
    assert samples(after, exposition)[key] == 10
    began = Snapshot({**STATUS, "started": "later"}, (export("disk", requests={"READ": 2}),))
    assert samples(began, exposition)[key] == 2

"""The counts as Prometheus has them: which there are, as one table.

This module is longer than other modules: it is that table, and how its rows read what they say.

They are the numbers that `nbd-gateway status` and `exports` show, under other names: nothing is counted here.
So a new count is one row of `METRICS`: its name, what it means, its labels, and where it is in what the gateway
has shown. Names of exports are bounded by who counts (`gateway.counts.totals`).

Names and units are Prometheus' own (prometheus.io/docs/practices/naming): base units, and `_total` for what
only grows.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from gateway.web.exposition import MetricRow, Snapshot, Timed, Value
from gateway.web.gateway import Gateway

NO_POLICY = "none"
"""In place of the name of a policy."""


async def collected(gateway: Gateway) -> Snapshot:
    """Ask the gateway for all that metrics are made of. Raises `NotHeard`."""
    return Snapshot(await gateway.status(), tuple(await gateway.counts()))


def _one(value: Callable[[Mapping[str, Any]], float]) -> Callable[[Snapshot], Iterable[Value]]:
    """Read one number of `status`."""
    return lambda snapshot: [((), value(snapshot.status))]


def _of_upstreams(value: Callable[[Mapping[str, Any]], float | None]) -> Any:
    """Read one number of each upstream, where it has one."""

    def read(snapshot: Snapshot) -> Iterator[Value]:
        for each in snapshot.status["upstreams"]:
            if (found := value(each)) is not None:
                yield (each["upstream"],), found

    return read


def _of_listeners(value: Callable[[Mapping[str, Any]], float]) -> Any:
    """Read one number of each listener."""
    return lambda snapshot: [
        ((each["listener"],), value(each)) for each in snapshot.status["listeners"]
    ]


def _of_exports(values: Callable[[Mapping[str, Any]], Iterable[Value]]) -> Any:
    """Read numbers of each export that was used; its name is their first label."""

    def read(snapshot: Snapshot) -> Iterator[Value]:
        for each in snapshot.exports:
            if each["totals"]["sessions"] or each["totals"]["replayed_bytes"]:
                for labels, number in values(each):
                    yield (each["export"], *labels), number

    return read


EVENTS: Mapping[str, tuple[str, str]] = {
    "configuration reloaded": ("reloads", "ok"),
    "configuration stays as it was": ("reloads", "failed"),
    "upstream connection made again": ("reconnects", "ok"),
    "upstream connections given up": ("reconnects", "failed"),
}
"""Events of the log that have metrics of their own, and what their `result` is."""


def _events(metric: str, *, by_upstream: bool = False) -> Any:
    """Read how often events were that have a metric of their own: zero as well, so that a first one is seen."""
    results = [result for name, result in EVENTS.values() if name == metric]

    def read(snapshot: Snapshot) -> Iterator[Value]:
        names = [each["upstream"] for each in snapshot.status["upstreams"]] if by_upstream else []
        times = {(name, result): 0 for name in (names or [""]) for result in results}
        for each in snapshot.status["events"]:
            found = EVENTS.get(each["event"])
            if found is not None and found[0] == metric:
                key = ((each["upstream"] or "") if by_upstream else "", found[1])
                times[key] = times.get(key, 0) + each["times"]
        for (name, result), count in times.items():
            yield ((name, result) if by_upstream else (result,)), count

    return read


def _all_events(snapshot: Snapshot) -> Iterator[Value]:
    for each in snapshot.status["events"]:
        yield (each["event"], each["upstream"] or ""), each["times"]


def _sessions(snapshot: Snapshot) -> Iterator[Value]:
    """None as well, where there were some."""
    found = {(each["listener"], "none"): 0 for each in snapshot.status["listeners"]}
    for each in snapshot.status["listeners"]:
        found |= {(each["listener"], version): 0 for version in each["tls_versions"]}
    for each in snapshot.status["came_by"]:
        found |= {(each["listener"], tls): count for tls, count in each["sessions"].items()}
    yield from found.items()


def _ended(snapshot: Snapshot) -> Iterator[Value]:
    for each in snapshot.status["came_by"]:
        for end, times in each["ended"].items():
            yield (each["listener"], end), times


def _handshakes(snapshot: Snapshot) -> Iterator[Value]:
    for each in snapshot.status["listeners"]:
        for became, times in each["handshakes"].items():
            yield (each["listener"], became), times


def _tls(snapshot: Snapshot) -> Iterator[Value]:
    for each in snapshot.status["listeners"]:
        for version, times in each["tls_versions"].items():
            yield (each["listener"], version), times


def _times(snapshot: Snapshot) -> Iterator[Timed]:
    for command, times in snapshot.status["totals"]["seconds"].items():
        yield (command,), times


def _upstream_times(snapshot: Snapshot) -> Iterator[Timed]:
    for each in snapshot.status["upstreams"]:
        for command, times in each["seconds"].items():
            yield (each["upstream"], command), times


def _up(upstream: Mapping[str, Any]) -> float | None:
    """Whether it is there; None: nobody has tried lately."""
    return {"up": 1.0, "down": 0.0, "disabled": 0.0}.get(upstream["state"])


def _requests(export: Mapping[str, Any]) -> Iterator[Value]:
    totals = export["totals"]
    failed: dict[str, int] = {}
    for what, times in totals["errors"].items():
        command, error = what.split(" ", 1)
        failed[command] = failed.get(command, 0) + times
        yield (command, error), times
    for command, times in totals["requests"].items():
        yield (command, "ok"), times - failed.get(command, 0)


def _refused(export: Mapping[str, Any]) -> Iterator[Value]:
    """Those of policies, and those that none has refused: they are illegal."""
    by_policies: dict[str, int] = {}
    for policy, refused in export["totals"]["refused_by"].items():
        for what, times in refused.items():
            by_policies[what] = by_policies.get(what, 0) + times
            yield (policy, *what.split(" ", 1)), times
    for what, times in export["totals"]["refused"].items():
        if illegal := times - by_policies.get(what, 0):
            yield (NO_POLICY, *what.split(" ", 1)), illegal


def _bytes(export: Mapping[str, Any]) -> Iterator[Value]:
    for command, direction in (("READ", "read"), ("WRITE", "write")):
        if size := export["totals"]["bytes"].get(command):
            yield (direction,), size


def _once(name: str) -> Callable[[Snapshot], Iterable[Value]]:
    """Read what is named of an upstream, whatever the numbers say how often it was."""
    return lambda snapshot: [
        ((each["upstream"], what), 1)
        for each in snapshot.status["upstreams"]
        for what in each[name]
    ]


METRICS = (
    MetricRow(
        "build",
        "info",
        "The version of the gateway, and of the Python that runs it.",
        ("version", "python"),
        lambda s: [((s.status["version"], platform.python_version()), 1)],
    ),
    MetricRow(
        "uptime_seconds",
        "gauge",
        "How long ago the gateway began.",
        (),
        _one(lambda s: s["uptime_seconds"]),
        unit="seconds",
    ),
    MetricRow("draining", "gauge", "1: it is shutting down.", (), _one(lambda s: s["draining"])),
    MetricRow(
        "listener_clients",
        "gauge",
        "Connections of clients, those that negotiate among them.",
        ("listener",),
        _of_listeners(lambda each: each["clients"]),
    ),
    MetricRow(
        "listener_most_clients",
        "gauge",
        "How many clients the listener serves at a time.",
        ("listener",),
        _of_listeners(lambda each: each["most_clients"]),
    ),
    MetricRow(
        "listener_drained",
        "gauge",
        "1: no more clients are taken there.",
        ("listener",),
        _of_listeners(lambda each: each["drained"]),
    ),
    MetricRow(
        "sessions",
        "gauge",
        "Sessions there are, by the version of TLS (none: they came without).",
        ("listener", "tls"),
        _sessions,
    ),
    MetricRow(
        "negotiations",
        "gauge",
        "Clients that have not opened an export yet.",
        (),
        _one(lambda s: s["negotiations"]),
    ),
    MetricRow(
        "stuck_sessions",
        "gauge",
        "Sessions that have something to do, and in which nothing has gone on for 5 seconds.",
        (),
        _one(lambda s: s["stuck_sessions"]),
    ),
    MetricRow(
        "sessions_begun",
        "counter",
        "Sessions that have begun.",
        (),
        _one(lambda s: s["totals"]["sessions"]),
    ),
    MetricRow(
        "handshakes",
        "counter",
        "Clients that have connected, by what became of them.",
        ("listener", "result"),
        _handshakes,
    ),
    MetricRow(
        "tls_handshakes",
        "counter",
        "Clients that have gone over to TLS.",
        ("listener", "version"),
        _tls,
    ),
    MetricRow(
        "sessions_ended",
        "counter",
        "Sessions that have ended, by why.",
        ("listener", "end"),
        _ended,
    ),
    MetricRow(
        "export_sessions",
        "gauge",
        "Sessions there are, by export.",
        ("export",),
        _of_exports(lambda each: [((), each["sessions"])]),
    ),
    MetricRow(
        "in_flight_requests",
        "gauge",
        "Requests that are under way.",
        ("export",),
        _of_exports(lambda each: [((), each["in_flight"])]),
    ),
    MetricRow(
        "held_requests",
        "gauge",
        "Requests that wait in the gateway, by what for (claim, connection, pause, throttle). Of a session that"
        " is paused or held back there is one: no more is read.",
        ("export", "why"),
        _of_exports(lambda each: [((why,), count) for why, count in each["held"].items()]),
    ),
    MetricRow(
        "requests",
        "counter",
        "Requests of clients. One that is under way counts as ok.",
        ("export", "command", "result"),
        _of_exports(_requests),
    ),
    MetricRow(
        "refusals",
        "counter",
        "Requests that failed here, without the server; by which policy refuses them (none: they are illegal).",
        ("export", "policy", "command", "result"),
        _of_exports(_refused),
    ),
    MetricRow(
        "bytes",
        "counter",
        "Bytes that clients have read and written, without those of refused requests.",
        ("export", "direction"),
        _of_exports(_bytes),
        unit="bytes",
    ),
    MetricRow(
        "request_seconds",
        "histogram",
        "How long requests took, of one sampled in a batch: from when they are read to when the reply is sent.",
        ("command",),
        times=_times,
        unit="seconds",
    ),
    MetricRow(
        "upstream_seconds",
        "histogram",
        "How long the server had those of them.",
        ("upstream", "command"),
        times=_upstream_times,
        unit="seconds",
    ),
    MetricRow(
        "paused_exports", "gauge", "Exports that are paused.", (), _one(lambda s: len(s["paused"]))
    ),
    MetricRow(
        "upstream_up",
        "gauge",
        "1: the server is there, 0: it is down or disabled; missing: nobody has tried lately.",
        ("upstream",),
        _of_upstreams(_up),
    ),
    MetricRow(
        "upstream_required",
        "gauge",
        "1: the gateway is not ready without it.",
        ("upstream",),
        _of_upstreams(lambda each: each["required"]),
    ),
    MetricRow(
        "upstream_sessions",
        "gauge",
        "Sessions that are on the server.",
        ("upstream",),
        _of_upstreams(lambda each: each["sessions"]),
    ),
    MetricRow(
        "upstream_connections",
        "gauge",
        "Connections to the server: used by sessions, or kept ready for the next ones.",
        ("upstream", "state"),
        lambda s: [
            ((each["upstream"], state), each[name])
            for each in s.status["upstreams"]
            for state, name in (("used", "connections"), ("ready", "ready"))
        ],
    ),
    MetricRow(
        "upstream_most_connections",
        "gauge",
        "How many connections the server may have; missing: as many as are wanted.",
        ("upstream",),
        _of_upstreams(lambda each: each["most_connections"]),
    ),
    MetricRow(
        "reconnects",
        "counter",
        "Lost connections of sessions that were made again, or given up.",
        ("upstream", "result"),
        _events("reconnects", by_upstream=True),
    ),
    MetricRow(
        "quirk_in_force",
        "gauge",
        "What the server gets wrong, and is mended.",
        ("upstream", "quirk"),
        _once("repaired"),
    ),
    MetricRow(
        "flags_cleared",
        "gauge",
        "Transmission flags that the server sets, and clients are not told: it does not keep their promise.",
        ("upstream", "flag"),
        _once("flags_cleared"),
    ),
    MetricRow(
        "disks_with_losses_untold",
        "gauge",
        "Disks of which something may be lost that not everybody was told of.",
        (),
        _one(lambda s: s["disks_with_losses_untold"]),
    ),
    MetricRow(
        "losses",
        "counter",
        "How often something may have been lost that a session relies on, counted for each session.",
        ("export",),
        _of_exports(lambda each: [((), each["totals"]["losses"])]),
    ),
    MetricRow(
        "losses_untold",
        "gauge",
        "Sessions that have not been told yet of what may be lost.",
        ("export",),
        _of_exports(lambda each: [((), each["losses_untold"])]),
    ),
    MetricRow(
        "replayed_bytes",
        "counter",
        "Bytes that were written once more because a server had lost them, with each export of that disk.",
        ("export",),
        _of_exports(lambda each: [((), each["totals"]["replayed_bytes"])]),
        unit="bytes",
    ),
    MetricRow(
        "config_loaded_seconds",
        "gauge",
        "When the configuration came into force, in seconds since 1970.",
        (),
        _one(lambda s: datetime.fromisoformat(s["config_loaded"]).timestamp()),
        unit="seconds",
    ),
    MetricRow(
        "reloads",
        "counter",
        "Attempts to take the configuration up anew.",
        ("result",),
        _events("reloads"),
    ),
    MetricRow(
        "hub_round_seconds",
        "histogram",
        "How long rounds took in which all that was ready was served, one of 16: so long one client"
        " waited for all others.",
        (),
        times=lambda s: [((), s.status["hub"]["rounds"])],
        unit="seconds",
    ),
    MetricRow(
        "events",
        "counter",
        "How often each event of the log was, whatever its level is, and however many lines were left out.",
        ("event", "upstream"),
        _all_events,
    ),
    MetricRow(
        "log_lines_dropped",
        "counter",
        "Lines of the log that were not written: there were too many of them, or no room.",
        (),
        _one(lambda s: s["log_lines_dropped"]),
    ),
    MetricRow(
        "certificate_expiry_seconds",
        "gauge",
        "In how long the first certificate, or list of revoked ones, of a file is over; less than 0: it is.",
        ("file",),
        lambda s: [((each["file"],), each["seconds"]) for each in s.status["expiries"]],
        unit="seconds",
    ),
    MetricRow(
        "certificate_warnings",
        "gauge",
        "Certificates that are over, or will be within 30 days.",
        (),
        _one(lambda s: len(s["certificates"])),
    ),
)

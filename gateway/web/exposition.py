"""How metrics are written for Prometheus: a row of the table (`gateway.web.metrics`), read and made text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal

from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest

from gateway.counts.seconds import BOUNDS

PREFIX = "nbd_gateway_"

CONTENT_TYPE = CONTENT_TYPE_LATEST

END = b"# EOF\n"

Kind = Literal["gauge", "counter", "histogram", "info"]
Value = tuple[tuple[str, ...], float]
"""The values of the labels, and the number."""

Timed = tuple[tuple[str, ...], Mapping[str, Any]]
"""The values of the labels, and how long something took (`gateway.counts.seconds.said_of`)."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the gateway has shown, at about one time."""

    status: Mapping[str, Any]
    exports: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric."""

    name: str
    """Without the prefix, and without what its kind puts behind it."""
    kind: Kind
    meaning: str
    labels: tuple[str, ...]
    read: Callable[[Snapshot], Iterable[Value]] = field(default=lambda _snapshot: ())
    times: Callable[[Snapshot], Iterable[Timed]] = field(default=lambda _snapshot: (), kw_only=True)
    """Of a histogram."""
    unit: str = field(default="", kw_only=True)


class Exposition:
    """Writes metrics, again and again. What only grows never goes back: a request that was under way counted as
    ok, and may have failed since; that there was one less is said by none of its successors until they are
    more.
    """

    def __init__(self, rows: Iterable[MetricRow]) -> None:
        self._rows = tuple(rows)
        self._most: dict[tuple[str, tuple[str, ...]], float] = {}
        self._began: object = None

    def pieces(self, snapshot: Snapshot) -> Iterator[bytes]:
        """Give the text of a snapshot, one metric at a time."""
        if self._began != snapshot.status["started"]:  # another gateway, whose counts began anew
            self._most, self._began = {}, snapshot.status["started"]
        for row in self._rows:
            yield _text_of(self._metric(row, snapshot))
        yield END

    def _metric(self, row: MetricRow, snapshot: Snapshot) -> Metric:
        metric = Metric(PREFIX + row.name, row.meaning, row.kind, row.unit)
        suffix = {"counter": "_total", "info": "_info"}.get(row.kind, "")
        for values, number in row.read(snapshot):
            labels = dict(zip(row.labels, values, strict=True))
            if row.kind == "counter":
                key = (row.name, values)
                number = self._most[key] = max(number, self._most.get(key, 0))
            metric.add_sample(f"{PREFIX}{row.name}{suffix}", labels, float(number))
        for values, times in row.times(snapshot):
            labels = dict(zip(row.labels, values, strict=True))
            for ending, bound, value in _histogram(times):
                metric.add_sample(f"{PREFIX}{row.name}{ending}", {**labels, **bound}, value)
        return metric


def _histogram(times: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str], float]]:
    """Give the samples of one histogram: their suffix, the label of a bound, and the number."""
    buckets, sum_ = times["buckets"], 0
    for bound, count in zip_longest(BOUNDS, buckets[: len(BOUNDS)], fillvalue=0):
        sum_ += count
        yield "_bucket", {"le": repr(bound)}, float(sum_)
    sum_ += sum(buckets[len(BOUNDS) :])
    yield "_bucket", {"le": "+Inf"}, float(sum_)
    yield "_count", {}, float(sum_)
    yield "_sum", {}, float(times["total"])


def _text_of(metric: Metric) -> bytes:
    text: bytes = generate_latest(_Only(metric))  # type: ignore[no-untyped-call] # the library's
    return text.removesuffix(END)


class _Only:
    """What prometheus-client takes for a registry: one metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        """Give it."""
        yield self._metric

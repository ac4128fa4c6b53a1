"""The curves' configurations, arithmetic and pages; nothing here measures time."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.access.rules import Access
from gateway.config.reading import load
from gateway.identity import Identity
from gateway.policy import Client
from tests.bench.curves import (
    ACTS,
    BEGIN,
    CURVES,
    END,
    OPENING,
    READ,
    Found,
    Point,
    Samples,
    chart_name,
    configuration,
    from_json,
    markdown,
    names,
    names_of_sessions,
    replace_marked,
    shape,
    terminal,
    to_json,
)
from tests.bench.processes import Broken
from tests.bench.scale import Meter

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
SESSIONS, EXPORTS, POLICIES, RULES = CURVES
POINTS = [curve.point(number) for curve in CURVES for number in curve.numbers]


def written(point: Point, directory: Path) -> Path:
    path = directory / "scale.toml"
    path.write_text(configuration(point, "nbd://127.0.0.1:1", "nbd+unix:///?socket=/tmp/x"))
    return path


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_a_client_gets_each_export_by_the_last_rule(point: Point, tmp_path: Path) -> None:
    config = load(written(point, tmp_path))
    assert (len(config.exports), len(config.rule)) == (point.exports, point.rules)
    client = Client(Identity.at("127.0.0.1", 1), datetime(2026, 1, 1, tzinfo=UTC))
    for name in random.Random(0).sample(names(point), min(3, point.exports)):
        grant = Access(config).find(client, name)
        assert grant.rule == (f"rule {point.rules}" if point.rules else "")
        assert len(grant.chain) == point.policies


def test_a_curve_differs_from_the_others_in_one_thing() -> None:
    for curve in CURVES:
        points = [vars(curve.point(number)) for number in curve.numbers]
        for thing in vars(Point()):
            assert len({point[thing] for point in points}) == (
                len(points) if thing == curve.kind else 1
            )


def test_sessions_are_spread_over_the_exports() -> None:
    assert names_of_sessions(Point(sessions=4, exports=2)) == ["disk-0"] * 2 + ["disk-1"] * 2
    assert names_of_sessions(Point(sessions=2, exports=1000)) == ["disk-0", "disk-500"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([(1, 20.0), (10, 22.0), (1000, 24.0)], "flat"),
        ([(1, 20.0), (1000, 60.0)], "grows 3.0 x, by 0.04 µs for each"),
        ([(0, 20.0), (10, 30.0), (50, 20.0)], "grows 1.5 x up to 10, and falls"),
        ([(1, 100.0), (16, 20.0), (1000, 25.0)], "falls to 0.25 x"),
        (
            [(1, 100.0), (16, 20.0), (1000, 50.0)],
            "falls to 0.20 x up to 16, and grows 2.5 x from there",
        ),
        ([(1, 20.0)], "not measured"),
    ],
)
def test_shape_of_a_curve(values: list[tuple[int, float]], expected: str) -> None:
    assert shape(values) == expected


def _found(last: float | None = 60.0) -> Found:
    values = (20.0, 21.0, 22.0, last)
    samples = {
        RULES.point(number): {act: [value, value, value] for act in ACTS}
        for number, value in zip(RULES.numbers, values, strict=True)
    }
    return Found(samples, {"kernel": "Linux 6.1"}, [] if last else ["Point(...): it\nended"])


@pytest.mark.parametrize("render", [terminal, markdown])
def test_a_curve_that_is_not_flat_is_said_to_grow(render: object) -> None:
    assert callable(render)
    page = render(_found())
    assert page.count("grows 3.0 x, by 0.04 µs for each") == len(ACTS)
    assert "Linux 6.1" in page
    assert SESSIONS.title not in page


def test_a_point_that_failed_once_has_no_value() -> None:
    found = _found()
    point = RULES.point(10)
    failed: dict[str, Samples] = {READ: [1.0, None, 1.0], OPENING: [3.0, 1.0, 2.0]}
    found = Found({**found.samples, point: failed}, {}, [])
    assert found.value(point, READ) is None
    assert found.value(point, OPENING) == 2.0
    assert [number for number, _ in found.values(RULES, READ)] == [1, 100, 1000]
    assert "failed" in terminal(found)


def test_json_round_trip() -> None:
    found = _found(None)
    assert from_json(to_json(found)) == found


def test_page_has_its_markers_and_charts() -> None:
    page = PAGE.read_text()
    again = replace_marked(page, "a table")
    assert f"{BEGIN}\na table\n{END}\n" in again
    assert again.split(BEGIN)[0] == page.split(BEGIN)[0]
    assert again.split(END)[1] == page.split(END)[1]
    for curve in CURVES:
        assert f"({chart_name(curve)})" in page
        assert PAGE.with_name(chart_name(curve)).exists()
    with pytest.raises(ValueError, match="scale:"):
        replace_marked(page.replace(END, ""), "a table")


class Clock:
    """Time passes, and the gateway uses a share of it."""

    now = 0.0
    share = 0.5

    def __call__(self) -> float:
        return self.now

    def used(self) -> float:
        return self.now * self.share


def metered(meter: Meter, clock: Clock, per_second: float) -> float:
    while not meter(int(clock.now * per_second)):
        clock.now += 0.01
    return meter.result


def test_what_is_served_is_set_against_processor_time() -> None:
    clock = Clock()
    assert metered(Meter(clock.used, 0.5, clock), clock, 1000) == pytest.approx(500, rel=0.05)
    assert clock.now < 2


def test_slow_acts_are_waited_for_until_there_are_enough() -> None:
    clock = Clock()
    assert metered(Meter(clock.used, 0.5, clock), clock, 20) == pytest.approx(25000, rel=0.05)
    assert clock.now > 5


def test_what_is_hardly_served_is_no_number() -> None:
    clock = Clock()
    with pytest.raises(Broken, match="too little"):
        metered(Meter(clock.used, 0.5, clock), clock, 1)
    assert clock.now < 20

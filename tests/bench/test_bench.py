"""The bench's own arithmetic and pages; nothing here measures time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.judge import Verdict, holds, medians, ratio, spread, verdict, verdict_of_pure
from tests.bench.peers import COMMANDS, GATEWAY_VARIABLE, gateway_command
from tests.bench.report import (
    BEGIN,
    END,
    NEXT_KIND,
    Report,
    chart_name,
    column,
    from_json,
    markdown,
    replace_marked,
    terminal,
    to_json,
)
from tests.bench.rows import (
    DIRECT,
    GATEWAY,
    HAPROXY,
    NBDKIT,
    PURE,
    ROWS,
    AtMost,
    AtMostPerRequest,
    Copy,
    Fio,
    Row,
    Times,
)
from tests.bench.run import Outcome

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"

DEPTH_32 = ROWS[0]
START = next(row for row in ROWS if row.name.startswith("start"))
SIXTEEN = next(row for row in ROWS if row.name.startswith("16 connections"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row_is_well_formed(row: Row) -> None:
    assert row.floors
    assert row.goals
    assert row.judged in row.peers
    assert {column(name) for name in row.peers} <= {DIRECT, *COMMANDS}
    assert not row.pure or PURE in row.peers
    for bound in (*row.floors, *row.goals, *row.pure):
        if isinstance(bound, AtMost):
            assert bound.unit == row.unit
        else:
            assert bound.peer in row.peers
            assert bound.peer not in (row.judged, PURE)
    if isinstance(row.load, Fio | Copy):
        assert row.load.verb in ("read", "write")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_reaches_the_goal_reaches_the_floor(row: Row) -> None:
    for floor in row.floors:
        for goal in row.goals:
            if isinstance(floor, Times) and isinstance(goal, Times) and floor.peer == goal.peer:
                assert goal.factor >= floor.factor
            if isinstance(floor, AtMost) and isinstance(goal, AtMost):
                assert goal.amount <= floor.amount
            if isinstance(floor, AtMostPerRequest) and isinstance(goal, AtMostPerRequest):
                assert goal.factor <= floor.factor


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_reaches_the_floor_reaches_that_without_the_pump(row: Row) -> None:
    for floor in row.floors:
        for pure in row.pure:
            if isinstance(floor, Times) and isinstance(pure, Times) and floor.peer == pure.peer:
                assert floor.factor >= pure.factor


def test_row_names_are_unique() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_ratio() -> None:
    assert ratio(30.0, 20.0) == 1.5
    assert ratio(None, 20.0) is None
    assert ratio(30.0, None) is None
    assert ratio(30.0, 0.0) is None


def test_medians_forgive_a_peer_one_failure_and_the_judged_none() -> None:
    found = medians(
        DEPTH_32, {GATEWAY: [9.0, None, 9.0], NBDKIT: [1.0, None, 3.0], HAPROXY: [None]}
    )
    assert found == {GATEWAY: None, NBDKIT: 2.0, HAPROXY: None}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({GATEWAY: 92.0, NBDKIT: 40.0, HAPROXY: 70.0, DIRECT: 100.0}, Verdict.GOAL_REACHED),
        ({GATEWAY: 85.0, NBDKIT: 40.0, HAPROXY: 71.0, DIRECT: 100.0}, Verdict.REACHED),
        ({GATEWAY: 80.0, NBDKIT: 40.0, HAPROXY: 80.0, DIRECT: 100.0}, Verdict.REACHED),
        ({GATEWAY: 79.0, NBDKIT: 40.0, HAPROXY: 60.0, DIRECT: 100.0}, Verdict.NOT_REACHED),
        ({GATEWAY: 80.0, NBDKIT: 40.0, HAPROXY: 81.0, DIRECT: 100.0}, Verdict.NOT_REACHED),
        ({GATEWAY: None, NBDKIT: 40.0, HAPROXY: 70.0, DIRECT: 100.0}, Verdict.NOT_REACHED),
        # One floor missed is missed, whatever else is unknown.
        ({GATEWAY: 79.0, NBDKIT: 40.0, HAPROXY: None}, Verdict.NOT_REACHED),
        ({GATEWAY: 90.0, NBDKIT: 40.0, HAPROXY: None}, Verdict.NOT_JUDGED),
        ({GATEWAY: 90.0, NBDKIT: 40.0}, Verdict.NOT_JUDGED),
        ({}, Verdict.NOT_JUDGED),
    ],
)
def test_verdict_of_ratios(found: dict[str, float | None], expected: Verdict) -> None:
    assert verdict(DEPTH_32, found) is expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.25, Verdict.GOAL_REACHED),
        (0.26, Verdict.REACHED),
        (0.4, Verdict.REACHED),
        (0.41, Verdict.NOT_REACHED),
    ],
)
def test_verdict_where_less_is_better(seconds: float, expected: Verdict) -> None:
    assert verdict(START, {GATEWAY: seconds}) is expected


def test_bound_without_its_peer_is_not_judged() -> None:
    assert holds(Times(2.0, NBDKIT), GATEWAY, {GATEWAY: 1.0}) is None


@pytest.mark.parametrize(
    ("microseconds", "expected"),
    [
        ({GATEWAY: 10.0, HAPROXY: 10.0}, Verdict.GOAL_REACHED),
        ({GATEWAY: 11.5, HAPROXY: 10.0}, Verdict.REACHED),
        ({GATEWAY: 11.6, HAPROXY: 10.0}, Verdict.NOT_REACHED),
        ({GATEWAY: 11.6}, Verdict.NOT_JUDGED),
    ],
)
def test_processor_time_is_judged_beside_a_peers(
    microseconds: dict[str, float | None], expected: Verdict
) -> None:
    assert verdict(SIXTEEN, {GATEWAY: 50.0, HAPROXY: 40.0}, microseconds) is expected


@pytest.mark.parametrize(
    ("pure", "expected"),
    [(95.0, Verdict.REACHED), (94.0, Verdict.NOT_REACHED), (None, Verdict.NOT_REACHED)],
)
def test_the_gateway_without_its_pump_has_floors_of_its_own(
    pure: float | None, expected: Verdict
) -> None:
    assert verdict_of_pure(DEPTH_32, {PURE: pure, NBDKIT: 50.0, HAPROXY: 100.0}) is expected


def test_without_pump_nothing_is_judged_where_nothing_is_asked_or_it_is_not_there() -> None:
    assert verdict_of_pure(START, {GATEWAY: 0.2}) is None
    assert verdict_of_pure(DEPTH_32, {GATEWAY: 1.0, NBDKIT: 1.0}) is None


def test_spread_is_a_share_of_the_median() -> None:
    assert spread([9.0, None, 10.0, 12.0]) == 0.3
    assert spread([9.0]) is None


def test_a_variant_stands_in_its_column() -> None:
    assert column("gateway+tls") == GATEWAY
    assert column(NBDKIT) == NBDKIT


def _report(gateway: float | None = 50.0) -> Report:
    samples: dict[str, list[float | None]] = {
        DIRECT: [100.0],
        GATEWAY: [gateway],
        NBDKIT: [40.0],
        HAPROXY: [45.0],
    }
    costs: dict[str, list[float | None]] = {GATEWAY: [4.64], HAPROXY: [7.0]}
    idle: dict[str, list[float | None]] = {GATEWAY: [0.25]}
    outcomes = [
        Outcome(DEPTH_32, samples, costs=costs, idle=idle),
        Outcome(START, {GATEWAY: [0.2]}),
    ]
    if gateway is None:
        outcomes[0].problems.append("gateway: fio hung\nfor 32 s")
    facts = {
        "interpreter": "CPython 3.11.2",
        "kernel": "Linux 6.1",
        "processors": "2 x Good(R) One",
    }
    return Report(outcomes, facts, 5, 2.0)


@pytest.mark.parametrize("render", [terminal, markdown])
def test_a_number_that_is_not_reached_is_printed_as_such(render: object) -> None:
    assert callable(render)
    page = render(_report())
    assert "NOT REACHED" in page
    assert "goal reached" in page
    assert "1.25 x nbdkit" in page
    assert "1 x haproxy, 2 x nbdkit" in page
    assert "4.64" in page
    assert "25%" in page
    assert "CPython 3.11.2" in page
    assert "medians of 5 rounds, 2 s each" in page


def test_a_failure_is_explained_on_one_line() -> None:
    assert "gateway: fio hung for 32 s\n" in terminal(_report(None))


def test_only_a_run_with_all_floors_reached_passes() -> None:
    assert not _report(50.0).passed
    assert _report(95.0).passed
    assert not _report(None).passed
    assert not Report([], {}, 5, 2.0).passed


def test_json_round_trip() -> None:
    report = _report(None)
    again = from_json(to_json(report))
    assert terminal(again) == terminal(report)
    rows = json.loads(to_json(report))["rows"]
    assert rows[0]["floors"] == {"1 x haproxy": False, "2 x nbdkit": False}
    assert rows[0]["microseconds"][GATEWAY] == [4.64]


def test_page_keeps_the_last_run_of_each_kind_of_processor() -> None:
    page = PAGE.read_text()
    assert page.count(NEXT_KIND) == 1
    once = replace_marked(page, "3 x Good(R) One", "a table")
    both = replace_marked(once, "3 x Better", "another")
    again = replace_marked(both, "3 x Good(R) One", "a new table")
    for kind, body in (("3 x Good(R) One", "a new table"), ("3 x Better", "another")):
        assert f"### {kind}\n\n{BEGIN.format(kind)}\n{body}\n{END.format(kind)}\n" in again
    assert again.split("### 3 x Good")[0] == page.split(NEXT_KIND)[0]
    assert again.split(NEXT_KIND)[1] == page.split(NEXT_KIND)[1]


def test_charts_of_the_page_are_there() -> None:
    page = PAGE.read_text()
    kinds = [line[4:] for line in page.splitlines() if line.startswith("### ") and " x " in line]
    assert kinds
    for kind in kinds:
        assert f"({chart_name(kind)})" in page
        assert PAGE.with_name(chart_name(kind)).exists()
    assert chart_name("2 x Good(R) One @ 2.5GHz") == "performance-2-x-good-one-2-5ghz.svg"


@pytest.mark.parametrize("page", ["", BEGIN.format("x"), f"{END.format('x')} {BEGIN.format('x')}"])
def test_page_without_markers_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="bench:"):
        replace_marked(page, "x", "a table")


def test_gateway_is_asked_as_a_user_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GATEWAY_VARIABLE, raising=False)
    script, *arguments = gateway_command("nbd://127.0.0.1:1", 2)
    assert Path(script).name == "nbd-gateway"
    assert arguments == ["serve", "nbd://127.0.0.1:1", "--listen", "nbd://127.0.0.1:2"]


def test_stand_in_replaces_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GATEWAY_VARIABLE, "python3 proxy.py {upstream} {listen} {port}")
    plain = gateway_command("nbd://127.0.0.1:1", 2)
    assert plain == ["python3", "proxy.py", "nbd://127.0.0.1:1", "nbd://127.0.0.1:2", "2"]
    profiled = gateway_command("nbd://127.0.0.1:1", 2, profile=Path("out"))
    assert profiled[1:] == ["-m", "cProfile", "-o", "out", *plain[1:]]

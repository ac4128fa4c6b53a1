"""What is measured of workers: how it is judged, shown and kept, and what is computed from it."""

from __future__ import annotations

from collections import Counter

import pytest

from gateway.config import parse
from gateway.workers.homes import home_of, table_of
from tests.bench.worker_model import DISKS, NUMBERS, Costs, gain, loads
from tests.bench.workers import (
    BEGIN,
    CONFIG,
    COST_ROW,
    END,
    EXPORTS,
    PAGE,
    ROWS,
    Found,
    Row,
    costs_of,
    from_json,
    markdown,
    names_by_turns,
    table_of_rows,
    terminal,
    to_json,
)

SPEED = Row("speed", "read", 4096, 32, 2, least=0.95)
COST = next(row for row in ROWS if row.name == COST_ROW)


@pytest.mark.parametrize(
    ("row", "speeds", "costs", "processors", "expected"),
    [
        (SPEED, [(10, 10), (10, 9), (10, 9.5)], [(1, 1)] * 3, 2, "ok"),
        (SPEED, [(10, 10), (10, 9), (10, 9.4)], [(1, 1)] * 3, 2, "BELOW"),
        (SPEED, [(10, 9), (100, 99), (1, 0.9)], [(1, 1)] * 3, 2, "BELOW"),
        (COST, [(1, 1)] * 3, [(10, 11), (10, 9), (10, 30)], 2, "ok"),
        (COST, [(1, 1)] * 3, [(10, 11.1), (10, 9), (10, 30)], 2, "ABOVE"),
        (Row("none", "read", 4096, 1, 4), [(10, 1)], [(1, 9)], 2, ""),
        (Row("four", "read", 4096, 1, 2, 1.4, processors=4), [(10, 1)], [(1, 9)], 2, ""),
        (Row("four", "read", 4096, 1, 2, 1.4, processors=4), [(10, 1)], [(1, 9)], 4, "BELOW"),
    ],
)
def test_the_median_of_the_ratios_is_judged(
    row: Row,
    speeds: list[tuple[float, float]],
    costs: list[tuple[float, float]],
    processors: int,
    expected: str,
) -> None:
    assert Found(row, speeds, costs).verdict(processors) == expected


def test_what_is_kept_is_shown_as_it_was() -> None:
    found = [Found(row, [(20.0, 10.0 + n)], [(5.0, 6.0)]) for n, row in enumerate(ROWS)]
    facts = {"rounds": "1", "kernel": "Linux"}
    again = from_json(to_json(found, facts, 2))
    assert again == (found, facts, 2)
    shown = terminal(found, 2)
    assert all(row.name in shown for row in ROWS)
    assert len({len(line) for line in table_of_rows(found, 2)}) == 1
    assert costs_of(found) == Costs(5.0, 6.0, 8)
    assert "workers.svg" in markdown(found, facts, 2)
    assert "workers.svg" not in markdown(found[:1], facts, 2)


def test_the_page_has_its_markers() -> None:
    page = PAGE.read_text()
    assert page.count(BEGIN) == page.count(END) == 1


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_each_worker_is_the_home_of_as_many_exports(workers: int) -> None:
    text = CONFIG.format(
        workers=workers,
        control="/c.sock",
        listen='[[listen]]\nuri = "nbd://127.0.0.1"',
        upstream="nbd://127.0.0.1:1",
    )
    config = parse(text, "f")
    table = table_of(config, counted=False)
    names = names_by_turns(text, workers)
    homes = Counter(home_of(table, config.upstream["main"], name, workers) for name in names)
    assert homes == dict.fromkeys(range(workers), EXPORTS // workers)


def test_a_request_costs_what_was_measured_and_never_less() -> None:
    costs = Costs(10.0, 17.0, 8)
    assert [costs.at(workers) for workers in (1, 2, 8)] == [10.0, 11.0, 17.0]
    assert Costs(10.0, 9.0, 8).at(64) == 10.0


FEW = 4
"""Sets of disks: what is said here holds for each of them."""


def test_what_is_computed_is_bounded_by_workers_and_by_disks() -> None:
    free = Costs(10.0, 10.0, 8)
    for disks in DISKS:
        assert loads(disks, 8, 0).total() == disks
        for workers in NUMBERS:
            found = gain(free, disks, workers, FEW)
            assert 1.0 <= found.alike <= found.any <= min(disks, workers)
    assert gain(free, DISKS[-1], 8, FEW).any == 8
    dear = Costs(10.0, 80.0, 8)
    assert gain(dear, DISKS[-1], 8, FEW).any == 1.0

"""Runs the simulations and writes docs/scale.md and its picture: python -m tests.sim"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.fleet.member import AT_ONCE
from tests.bench.chart import DETERMINISTIC, INK
from tests.bench.peers import ROOT
from tests.sim.engine import Costs
from tests.sim.fleet import Asked, seen_of
from tests.sim.found import (
    COSTS,
    DISKS_OF_ONE,
    TABLES,
    UNBOUNDED,
    costs_of,
    costs_table,
    table,
)

PAGE = ROOT / "docs" / "scale.md"
PICTURE = ROOT / "docs" / "scale-fleet.svg"
LOST = (10, 20, 40, 80, 160, 320, 500, 640)
"""Of a thousand gateways; the picture's points."""
LINES: tuple[tuple[str, str, dict[str, int]], ...] = (
    ("one etcd", "#2f81f7", {}),
    ("two etcds", "#a371f7", {"etcds": 2}),
    ("four etcds", "#8b949e", {"etcds": 4}),
    ("one etcd, and disks are taken without a bound", "#e0823d", {"at_once": UNBOUNDED}),
)


def written(page: str, name: str, body: str) -> str:
    """Give the page with another table of this name between its marks."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, begun, rest = page.partition(begin)
    _old, ended, after = rest.partition(end)
    if not begun or not ended:
        raise ValueError(f"{PAGE.name} has no {begin} with {end} after it")
    return f"{before}{begin}\n{body}\n{end}{after}"


def filled(page: str, costs: Costs) -> str:
    """Give the page with what the simulations say now."""
    page = written(page, "costs", costs_table(costs))
    for name, each in TABLES.items():
        rows = [each.row(asked, seen_of(asked, costs)) for asked in each.runs]
        page = written(page, name, table(rows, each.head))
    return page


def draw(costs: Costs, target: Path) -> None:
    """Draw when the last disk has a home again, by how many gateways were lost; needs matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    with plt.rc_context(DETERMINISTIC):
        figure, axes = plt.subplots(figsize=(8.5, 3.4), layout="constrained")
        for label, colour, other in LINES:
            points = [(lost, _last(lost, costs, other)) for lost in LOST]
            there = [(lost, last) for lost, last in points if last is not None]
            axes.plot(
                *zip(*there, strict=True), marker="o", markersize=4, color=colour, label=label
            )
        _dress(axes)
        figure.savefig(target, transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)


def _last(lost: int, costs: Costs, other: dict[str, int]) -> float | None:
    """Give after how many seconds the last disk has a home; None: it had none when the run ended."""
    asked = Asked(1000, 1000 * DISKS_OF_ONE, lost, **{"at_once": AT_ONCE, **other})
    seen = seen_of(asked, costs)
    return None if seen.still_homeless else seen.of(1)


def _dress(axes: Any) -> None:
    axes.set_xlabel("gateways lost at once, of 1,000 with 100 disks each", color=INK)
    axes.set_ylabel("s until the last disk has a home", color=INK)
    axes.set_xlim(0, None)
    axes.set_ylim(0, None)
    axes.tick_params(colors=INK, length=0)
    axes.grid(color=INK, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.legend(frameon=False, labelcolor=INK)


def main() -> None:
    """Write the page and the picture."""
    costs = costs_of(COSTS.read_text())
    PAGE.write_text(filled(PAGE.read_text(), costs))
    draw(costs, PICTURE)


if __name__ == "__main__":
    main()

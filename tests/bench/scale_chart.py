"""docs/scale-*.svg: what a request and an opening cost by how much there is of something; needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.bench.chart import DETERMINISTIC, INK
from tests.bench.curves import LATE_OPENING, OPENING, READ, WRITE, Curve, Found

_COLOURS = {READ: "#2f81f7", WRITE: "#e0823d", OPENING: "#a371f7", LATE_OPENING: "#8b949e"}
_ROOM = 1.15
"""Above the highest point: the axis begins at zero, or a flat curve would not look flat."""


def draw(found: Found, curve: Curve, target: Path) -> bool:
    """Draws one curve; False if nothing of it was measured."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    if not any(len(found.values(curve, act)) > 1 for act in _COLOURS):
        return False
    with plt.rc_context(DETERMINISTIC):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 2.8), layout="constrained")
        _lines(left, found, curve, (READ, WRITE))
        _lines(right, found, curve, (OPENING, LATE_OPENING))
        figure.supxlabel(curve.title, color=INK, fontsize=9)
        left.set_ylabel("µs of processor time", color=INK)
        metadata = {"Date": None, "Creator": None} if target.suffix == ".svg" else None
        figure.savefig(target, transparent=True, metadata=metadata)
        plt.close(figure)
    return True


def _lines(axes: Any, found: Found, curve: Curve, acts: tuple[str, ...]) -> None:
    highest = 0.0
    for act in acts:
        values = found.values(curve, act)
        if not values:
            continue
        axes.plot(
            *zip(*values, strict=True), marker="o", markersize=4, color=_COLOURS[act], label=act
        )
        highest = max(highest, max(value for _, value in values))
    axes.set_xscale("symlog" if curve.numbers[0] == 0 else "log")
    axes.set_xticks(curve.numbers, [f"{number:,}" for number in curve.numbers])
    axes.minorticks_off()
    axes.set_ylim(0, _ROOM * highest or 1)
    axes.tick_params(colors=INK, length=0)
    axes.grid(color=INK, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, labelcolor=INK
    )

"""docs/performance-*.svg: throughput relative to a direct connection. The only file that needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.bench.judge import medians, ratio
from tests.bench.report import Report, column
from tests.bench.rows import DIRECT, GATEWAY, HAPROXY, NBDKIT, QEMU_NBD

# Mid tones on no background: readable on a light page and on a dark one.
_COLOURS = {GATEWAY: "#2f81f7", NBDKIT: "#e0823d", QEMU_NBD: "#a371f7", HAPROXY: "#8b949e"}
INK = "#7d8590"
_BAR = 0.2
DETERMINISTIC = {"svg.hashsalt": "nbd-gateway", "svg.fonttype": "path", "font.size": 9.0}


def draw(report: Report, target: Path) -> bool:
    """Draws the rows that were measured against a direct connection; False if there is none."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    groups = _groups(report)
    if not groups:
        return False
    with plt.rc_context(DETERMINISTIC):
        figure, axes = plt.subplots(figsize=(8.5, 0.9 + 0.62 * len(groups)), layout="constrained")
        _bars(axes, groups)
        _dress(axes, groups)
        # No date and no creator: the same numbers give the same file.
        metadata = {"Date": None, "Creator": None} if target.suffix == ".svg" else None
        figure.savefig(target, transparent=True, metadata=metadata)
        plt.close(figure)
    return True


def _groups(report: Report) -> list[tuple[str, dict[str, float]]]:
    groups = []
    for each in report.outcomes:
        found = medians(each.row, each.samples)
        relative = {column(name): ratio(value, found.get(DIRECT)) for name, value in found.items()}
        bars = {name: relative[name] or 0.0 for name in _COLOURS if name in relative}
        if found.get(DIRECT) and bars:
            groups.append((each.row.name.removeprefix("plain "), bars))
    return groups


def _bars(axes: Any, groups: list[tuple[str, dict[str, float]]]) -> None:
    for place, (name, colour) in enumerate(_COLOURS.items()):
        rows = [(i, bars[name]) for i, (_, bars) in enumerate(groups) if name in bars]
        if not rows:
            continue
        heights = [i + (place - (len(_COLOURS) - 1) / 2) * _BAR for i, _ in rows]
        shares = [100 * share for _, share in rows]
        drawn = axes.barh(heights, shares, height=_BAR * 0.9, color=colour, label=name)
        if name == GATEWAY:
            axes.bar_label(drawn, fmt="%.0f %%", padding=3, color=INK, fontsize=8)


def _dress(axes: Any, groups: list[tuple[str, dict[str, float]]]) -> None:
    axes.set_yticks(range(len(groups)), [name for name, _ in groups])
    axes.invert_yaxis()
    axes.axvline(100, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(0, max(105.0, *(108 * share for _, bars in groups for share in bars.values())))
    axes.set_xlabel("% of a direct connection, more is better", color=INK)
    axes.tick_params(colors=INK, length=0)
    axes.grid(axis="x", color=INK, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.45, 1.0),
        ncols=len(_COLOURS),
        frameon=False,
        labelcolor=INK,
    )

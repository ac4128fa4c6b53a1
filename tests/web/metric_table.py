"""The table of metrics in docs/web.md, made from the one in gateway/web/metrics.py: `python -m
tests.web.metric_table`.
"""

from __future__ import annotations

import re
from pathlib import Path

from gateway.web.metrics import METRICS

PAGE = Path(__file__).parents[2] / "docs" / "web.md"
BEGIN, END = "<!-- metrics -->", "<!-- end -->"
ENDINGS = {"counter": "_total", "info": "_info"}


def drawn() -> str:
    lines = ["| name | kind | labels | what it is |", "| --- | --- | --- | --- |"]
    for row in METRICS:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        name = f"`{row.name}{ENDINGS.get(row.kind, '')}`"
        lines.append(f"| {name} | {row.kind} | {labels} | {row.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = PAGE.read_text()
    PAGE.write_text(re.sub(f"{BEGIN}\n.*?{END}", f"{BEGIN}\n{drawn()}{END}", text, flags=re.DOTALL))

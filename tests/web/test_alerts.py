"""The alerts and the dashboard go by metrics that there are, do what they say, and have a page each."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.web.exposition import PREFIX
from gateway.web.metrics import METRICS
from tests.web.metric_table import BEGIN, END, PAGE, drawn

TOP = Path(__file__).parents[2]
FILES = TOP / "packaging" / "prometheus"
ALERTS = (TOP / "docs" / "alerts.md").read_text()
RULES = [
    rule
    for group in yaml.safe_load((FILES / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((FILES / "grafana.json").read_text())

ENDINGS = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}

SERIES = {
    f"{PREFIX}{row.name}{ending}": {*row.labels, *({"le"} if row.kind == "histogram" else ())}
    for row in METRICS
    for ending in ENDINGS.get(row.kind, ("",))
}

SCRAPED = {"instance", "job"}
"""Labels that Prometheus adds."""

EXPRESSIONS = [rule["expr"] for rule in RULES] + [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_it_goes_by_series_and_labels_that_there_are(expression: str) -> None:
    named = re.findall(rf"\b({PREFIX}\w+)(?:\{{(.*?)\}})?", expression)
    for series, selector in named:
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        assert series in SERIES
        assert labels <= SERIES[series] | SCRAPED, series
    known = set[str]().union(*(SERIES[series] for series, _ in named)) | SCRAPED
    for by in re.findall(r"by \((.*?)\)", expression):
        assert set(re.split(r",\s*", by)) <= known


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_has_its_page(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert f"\n## {name}\n\n" in ALERTS
    assert rule["annotations"]["runbook"] == f"alerts.html#{name.lower()}"
    assert rule["labels"]["severity"] in ("warning", "critical")


def test_each_page_is_of_an_alert_and_each_alert_is_tried() -> None:
    assert re.findall(r"(?m)^## (\w+)$", ALERTS) == [rule["alert"] for rule in RULES]
    tried = (FILES / "rules_test.yml").read_text()
    assert not [rule["alert"] for rule in RULES if f"alertname: {rule['alert']}" not in tried]


def test_the_dashboard_has_no_panel_twice_and_none_over_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        place = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not place & taken, panel["title"]
        taken |= place
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(titles) == len(set(titles))


def test_the_page_has_all_metrics() -> None:
    [there] = re.findall(f"{BEGIN}\n(.*?){END}", PAGE.read_text(), re.DOTALL)
    assert there == drawn(), "python -m tests.web.metric_table"


@pytest.mark.real
@pytest.mark.parametrize(
    "what", [("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")]
)
def test_promtool_agrees(what: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["promtool", *what], cwd=FILES, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""nbd-gateway quirks, the page that it prints, and the other page that names them all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.cli.quirks import page
from gateway.quirks import catalogue
from gateway.quirks.everywhere import EVERYWHERE

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "quirks.md"


def test_the_page_is_what_is_printed() -> None:
    assert PAGE.read_text() == page(), "run: nbd-gateway quirks --markdown > docs/quirks.md"


def test_each_has_a_row_where_it_is_said_what_the_gateway_changes() -> None:
    [section] = re.findall(r"(?ms)^## Quirks\n(.*?)^## ", (DOCS / "behaviour.md").read_text())
    assert sorted(re.findall(r"(?m)^\| `([^`]+)` \|", section)) == sorted(catalogue())


@pytest.mark.parametrize("arguments", [[], ["--markdown"]])
def test_every_quirk_is_there(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quirks", *arguments]) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert all(name[:14] in said for name in catalogue())


def test_programs_have_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quirks", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [quirk["name"] for quirk in said["quirks"]] == [*catalogue()]
    for quirk in said["quirks"]:
        facts = {"name", "affected", "summary", "consequence", "risks_data", "links", "proof"}
        assert {*quirk} == facts
        assert quirk["proof"]["how"] in ("seen", "read", "told")
        known = catalogue()[quirk["name"]]
        assert (quirk["risks_data"], quirk["links"]) == (known.risks_data, [*known.links])
    assert [known["number"] for known in said["everywhere"]] == [k.number for k in EVERYWHERE]

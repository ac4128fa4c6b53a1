"""nbd-gateway quirks, and the page that it prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli import main
from gateway.cli.quirks import page
from gateway.quirks import catalogue

PAGE = Path(__file__).parents[2] / "docs" / "quirks.md"


def test_the_page_is_what_is_printed() -> None:
    assert PAGE.read_text() == page(), "run: nbd-gateway quirks --markdown > docs/quirks.md"


@pytest.mark.parametrize("arguments", [[], ["--markdown"]])
def test_every_quirk_is_there(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quirks", *arguments]) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert all(name[:14] in said for name in catalogue())

"""docs/how-a-session-ends.md: its pictures are the table of `gateway.hub.ends`."""

from __future__ import annotations

import re

from gateway.hub.ends import MOVES, ClientIs, LinkIs
from tests.ends import PAGE, PARTS, drawn, steps


def test_the_page_is_drawn_from_the_table() -> None:
    text = PAGE.read_text()
    assert drawn(text) == text, "the table has changed: .venv/bin/python -m tests.ends"
    assert re.findall("<!-- ends: (.*) -->", text) == [*PARTS]


def test_every_step_of_a_side_is_in_its_picture() -> None:
    for side in ("client", "link"):
        for (before, event), becomes in MOVES.items():
            step = getattr(before, side), getattr(becomes.sides, side)
            assert step[0] is step[1] or event.name in steps(side)[step]


def test_every_state_is_reached_in_the_pictures() -> None:
    assert {after for _before, after in steps("client")} == {*ClientIs} - {ClientIs.ASKING}
    assert {after for _before, after in steps("link")} == {*LinkIs}

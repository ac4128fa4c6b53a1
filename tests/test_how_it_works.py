"""docs/how-it-works.md: its lists are what happens, and no way becomes longer."""

from __future__ import annotations

import re

from tests.walks import (
    PAGE,
    TOP,
    WALKS,
    Passed,
    all_walks,
    always,
    counted,
    given,
    giving_on,
    with_walks,
)

MOST = {
    "flush": ((156, 42), (44, 15), (25, 8)),
    "export name": ((107, 30), (36, 14), (23, 9)),
}
"""Functions and files at most: of all that is passed, of what is given it, and of what gives it on."""

WANTED = {"flush": (25, 8), "export name": (25, 10)}
"""What the last of these is to be at most."""


async def test_the_page_has_what_is_passed_and_no_way_is_longer() -> None:
    walks = await all_walks()
    text = PAGE.read_text()
    assert with_walks(text, walks) == text, "a way has changed: .venv/bin/python -m tests.walks"
    for name, most in MOST.items():
        walk = walks[name]
        for bound, part in zip(most, (walk, given(walk), giving_on(walk)), strict=True):
            functions, files = counted(part)
            assert functions <= bound[0], name
            assert files <= bound[1], name


def test_the_page_says_what_is_wanted_and_reached() -> None:
    rows = [
        f"| {{}} | {WANTED[name][0]} functions in {WANTED[name][1]} files | "
        f"{most[-1][0]} in {most[-1][1]} |"
        for name, most in MOST.items()
    ]
    ways = "a FLUSH where clients share a link", "the name of an export"
    for row, way in zip(rows, ways, strict=True):
        assert row.format(way) in PAGE.read_text()


def test_its_marks_are_those_of_the_walks() -> None:
    assert set(re.findall("<!-- walk: (.*) -->", PAGE.read_text())) == set(WALKS)


def test_its_contents_lead_to_every_section() -> None:
    text = PAGE.read_text()
    sections = re.findall("(?m)^## (.*)$", text)
    contents = re.findall(r"(?m)^- \[(.*)\]\(#(.*)\)$", text.partition("\n## ")[0])
    assert contents == [(each, each.lower().replace(" ", "-")) for each in sections]


def test_its_files_are_there() -> None:
    made_up = {
        "policies/quota.py",
        "tests/policies/test_quota.py",
        "gateway/quirks/acme_short_reads.py",
    }
    text = re.sub(r"(?s)```.*?```", "", PAGE.read_text())
    named = set(re.findall(r"`((?:gateway|tests|policies)/\w[\w/.]*\.py)`", text)) - made_up
    assert len(named) > 20
    assert not [each for each in named if not (TOP / each).exists() and "VERB" not in each]


def test_what_is_passed_now_and_then_is_left_out() -> None:
    a, b, c = (Passed(("file", name), 0) for name in "abc")
    assert always([(a, b, c), (a, c), (c, b), (c, a)]) == (c,)

"""docs/how-it-works.md: its lists are what happens, and no way becomes longer."""

from __future__ import annotations

import re

import pytest

from tests.walks import PAGE, TOP, WALKS, Passed, all_walks, always, calling, counted, with_walks

MOST = {"flush": ((160, 40), (93, 26)), "export name": ((105, 28), (61, 21))}
"""Functions and files that are passed at most: in all, and of those that call others. To become less."""

WANTED = {"flush": (25, 8), "export name": (25, 10)}
"""What `MOST` is to come to."""


async def test_the_page_has_what_is_passed_and_no_way_is_longer() -> None:
    walks = await all_walks()
    text = PAGE.read_text()
    assert with_walks(text, walks) == text, "a way has changed: .venv/bin/python -m tests.walks"
    for name, most in MOST.items():
        for bound, walk in zip(most, (walks[name], calling(walks[name])), strict=True):
            functions, files = counted(walk)
            assert functions <= bound[0], name
            assert files <= bound[1], name


@pytest.mark.parametrize("name", WANTED)
def test_the_page_says_what_is_wanted(name: str) -> None:
    functions, files = WANTED[name]
    assert f"{functions} functions in {files} files |" in PAGE.read_text()
    reached = any(f <= functions and n <= files for f, n in MOST[name])
    assert not reached, "the page says that it is not reached"


def test_its_marks_are_those_of_the_walks() -> None:
    assert set(re.findall("<!-- walk: (.*) -->", PAGE.read_text())) == set(WALKS)


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
    a, b, c = (Passed(("file", name), 0, calls=False) for name in "abc")
    assert always([(a, b, c), (a, c), (c, b), (c, a)]) == (c,)

"""The gateway that counts nothing is ours but for that; and what pairs say is right."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from tests.bench.counting import EDITS, without_counting
from tests.bench.pairs import LEAST_PAIRS, interval_of, share
from tests.bench.peers import ROOT
from tests.bench.processes import Broken


@pytest.mark.parametrize("file", sorted({edit.file for edit in EDITS}))
def test_what_counts_is_still_there(file: str) -> None:
    text = (ROOT / file).read_text()
    without = without_counting(text, file)
    assert len(without) < len(text) or "1 << 62" in without
    if file.endswith(".py"):  # and what it needs still
        command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "-"]
        subprocess.run(command, input=without, text=True, check=True)
    with pytest.raises(Broken):
        without_counting(without, file)


def test_an_interval_has_the_true_median_in_it() -> None:
    """At least as often as it says, however skewed the differences are."""
    chance, hits = random.Random(7), 0
    for _ in range(2000):
        found = interval_of([chance.expovariate(1) for _ in range(20)])
        assert found.lower <= found.middle <= found.upper
        hits += found.lower <= 0.6931 <= found.upper
    assert 0.94 <= hits / 2000 < 0.99


@pytest.mark.parametrize(("count", "left_out"), [(6, 0), (9, 1), (20, 5), (40, 13)])
def test_how_many_may_be_left_out(count: int, left_out: int) -> None:
    found = interval_of(list(range(count)))
    assert (found.lower, found.upper) == (left_out, count - 1 - left_out)


def test_too_few_say_nothing() -> None:
    with pytest.raises(ValueError, match="expected 6 pairs"):
        interval_of([1.0] * (LEAST_PAIRS - 1))


def test_a_share() -> None:
    assert share(range(100), 0.99) == 99
    assert share([1.0], 0.99) == 1.0

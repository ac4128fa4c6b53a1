"""A second of garbage with every run of the tests, from seeds that stay the same."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import finds, main
from tests.fuzz.target import Pieces, Target
from tests.fuzz.targets import TARGETS

# `cryptography` takes some certificates that it warns of.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_seeds() -> None:
    assert [seed for seed in range(300) if finds(seed)] == []


def test_a_finding_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_pieces: Pieces) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(TARGETS, "requests", Target(broken, (b"",), (b"abc",)))
    assert main(["--seconds", "5"]) == 1
    said = capsys.readouterr()
    assert "requests: seed " in said.out
    assert "ZeroDivisionError" in said.err


def test_nothing_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seconds", "0.05"]) == 0
    assert "nothing found" in capsys.readouterr().out
    assert main(["--seed", "1"]) == 0

"""A moment of garbage with every run of the tests, a second with `make test`: of seeds that stay the same."""

from __future__ import annotations

import pytest

from gateway.hub import pump
from tests.fuzz.__main__ import breaks, finds, main
from tests.fuzz.target import Pieces, Target
from tests.fuzz.targets import TARGETS
from tests.sessions import registers

# `cryptography` takes some certificates that it warns of.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize(
    "seeds", [range(50), pytest.param(range(50, 300), marks=pytest.mark.real)], ids=str
)
def test_seeds(seeds: range) -> None:
    assert [seed for seed in seeds if finds(seed)] == []


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


def test_schedules_run_with_the_pump_and_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_seed: int) -> None:
        paths.append(pump.is_compiled())
        assert paths[-1]

    paths: list[bool] = []
    monkeypatch.setattr(registers, "run", run)
    assert breaks(7)
    assert set(paths) == {False, pump.is_compiled()}
    assert "registers: seed 7, without the pump" in capsys.readouterr().out

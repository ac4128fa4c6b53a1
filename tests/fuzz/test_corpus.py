"""What fuzzing by coverage has found is read again with every run of the tests, without atheris."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import by_coverage, instrumented
from tests.fuzz.by_coverage import beginnings, with_messages
from tests.fuzz.target import Pieces, Target, check, cut
from tests.fuzz.targets import CORPUS, TARGETS

# `cryptography` takes some certificates that it warns of: with a serial number that is 0, with an empty name.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"

MAX_CORPUS_BYTES = 300 << 10
"""Of all targets together: everybody who has the repository has it."""


@pytest.mark.parametrize("name", TARGETS)
def test_corpus(name: str) -> None:
    paths = sorted((CORPUS / name).iterdir())
    assert paths
    for path in paths:
        try:
            check(TARGETS[name], path.read_bytes())
        except Exception as error:
            error.add_note(f"its input is {path}")
            raise


def test_the_corpus_is_small_and_nothing_in_it_is_left_over() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.glob("*/*")) <= MAX_CORPUS_BYTES


@pytest.mark.parametrize("name", TARGETS)
def test_beginnings_are_read(name: str) -> None:
    for data in beginnings(TARGETS[name]):
        check(TARGETS[name], data)


def test_contributing_names_targets_that_there_are() -> None:
    [named] = re.findall('TARGETS="(.*?)"', CONTRIBUTING.read_text())
    assert set(named.split()) <= set(TARGETS)


def test_what_depends_on_the_pieces_is_a_finding() -> None:
    target = Target(len, (b"",), ())
    with pytest.raises(AssertionError, match=r"in pieces [2-9], and whole 1"):
        check(target, b"abcdefghi")
    check(Target(len, (b"",), (), comes_in_pieces=False), b"abcdefghi")


def test_an_error_that_is_not_documented_is_a_finding() -> None:
    def broken(_pieces: Pieces) -> None:
        raise IndexError

    with pytest.raises(IndexError):
        check(Target(broken, (b"",), ()), b"x")


def test_pieces_are_the_whole() -> None:
    for seed in range(50):
        data = Random(seed).randbytes(seed)
        assert b"".join(cut(Random(seed), data)) == data


def test_messages_are_put_into_inputs_that_stay_short() -> None:
    target = Target(len, (b"",), (b"message",))
    made = [with_messages(target, b"ab", 8, seed) for seed in range(100)]
    assert None in made  # single bytes are to be changed
    assert b"amessage" in made
    assert all(data is None or len(data) <= 8 for data in made)
    assert with_messages(Target(len, (b"",), ()), b"ab", 8, 1) is None


def test_without_atheris(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    assert by_coverage.main(["requests"]) == 2
    assert "make fuzz-coverage" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        by_coverage.main(["no such target"])
    assert "got no such target" in capsys.readouterr().err


def test_without_clang(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(by_coverage, "find_spec", lambda _name: object())  # atheris is there
    monkeypatch.setattr(instrumented, "CLANG", "no-such-compiler")
    assert by_coverage.main(["pump"]) == 2
    assert "no-such-compiler is missing" in capsys.readouterr().err

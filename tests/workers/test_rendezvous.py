"""Rendezvous hashing: every process finds the same worker, keys are spread, and few move."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from gateway.workers.rendezvous import key_bytes, worker_of

KEYS = [key_bytes(("tcp", "10.0.0.5", "10809", f"disk{number}")) for number in range(2000)]


def test_it_is_what_it_was() -> None:
    """Two versions of the gateway may have clients of one disk, so the function stays as it is."""
    assert [worker_of(key, 8) for key in KEYS[:12]] == PINNED


PINNED = [7, 4, 6, 2, 6, 7, 7, 0, 4, 1, 1, 7]


def test_another_process_finds_the_same() -> None:
    """Python's own hash would not: it differs between processes."""
    program = (
        "from gateway.workers.rendezvous import key_bytes, worker_of;"
        "print(worker_of(key_bytes(('a', 'b')), 64))"
    )
    said = {
        subprocess.check_output(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, text=True
        )
        for seed in ("1", "2")
    }
    assert said == {f"{worker_of(key_bytes(('a', 'b')), 64)}\n"}


@pytest.mark.parametrize("workers", [1, 2, 3, 8, 64])
def test_keys_are_spread(workers: int) -> None:
    counts = Counter(worker_of(key, workers) for key in KEYS)
    fair = len(KEYS) / workers
    assert set(counts) == set(range(workers))
    assert all(0.4 * fair < count < 1.8 * fair for count in counts.values())


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_with_one_more_only_what_goes_there_moves(workers: int) -> None:
    for key in KEYS:
        before, after = worker_of(key, workers), worker_of(key, workers + 1)
        assert after in (before, workers)


def test_no_two_lists_of_texts_are_one_key() -> None:
    several = [("a", "b"), ("ab",), ("a", "b", ""), ("", "a", "b"), ("a\0", "b"), ("a", "\0b")]
    assert len({key_bytes(each) for each in several}) == len(several)


def test_a_name_of_any_bytes_is_a_key() -> None:
    assert worker_of(key_bytes(("x", "\udcff")), 4) in range(4)


def test_there_is_one_at_least() -> None:
    with pytest.raises(ValueError, match="one worker at least, got 0"):
        worker_of(b"", 0)

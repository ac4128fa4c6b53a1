"""The table of clients: what one process counts, all see; and what a dead one had is forgotten."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from gateway.config.models import MAX_WORKERS
from gateway.workers.places import MOST_LISTENERS, Places, shared_memory


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = shared_memory()
    yield descriptor
    os.close(descriptor)


def test_all_see_what_each_counts(memory: int) -> None:
    one, other = Places(memory), Places(memory)
    one.add(3, 0, 1)
    other.add(3, MAX_WORKERS - 1, 1)
    other.add(4, 1, 1)
    assert (one.there(3), other.there(3), one.there(4), one.there(5)) == (2, 2, 1, 0)
    one.add(3, 0, -1)
    assert other.there(3) == 1


def test_the_last_row_is_there(memory: int) -> None:
    places = Places(memory)
    places.add(MOST_LISTENERS - 1, MAX_WORKERS - 1, 1)
    assert places.there(MOST_LISTENERS - 1) == 1


def test_what_a_dead_one_had_is_forgotten(memory: int) -> None:
    places = Places(memory)
    for row in range(5):
        places.add(row, 1, 1)
        places.add(row, 2, 1)
    places.forget(1)
    assert [places.there(row) for row in range(5)] == [1] * 5

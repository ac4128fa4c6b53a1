"""How many workers there are, and whether there is a processor for each."""

from __future__ import annotations

import os

import pytest

from gateway.config import parse
from gateway.workers.number import number_of, one_each

TEXT = 'workers = {}\n[[listen]]\nuri = "nbd://127.0.0.1"\n[upstream.a]\nuri = "nbd://10.0.0.1"\n'


PROCESSORS = [1, 2, 80]


@pytest.fixture(params=PROCESSORS)
def processors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    number: int = request.param
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(number)))
    return number


@pytest.mark.parametrize(("said", "wanted"), [("3", [3, 3, 3]), ('"auto"', [1, 2, 64])])
def test_how_many(processors: int, said: str, wanted: list[int]) -> None:
    there = number_of(parse(TEXT.format(said), "f"))
    assert there == wanted[PROCESSORS.index(processors)]


@pytest.mark.parametrize(
    ("workers", "wanted"),
    [(1, [True, True, True]), (2, [False, True, True]), (3, [False, False, True])],
)
def test_a_processor_for_each(processors: int, workers: int, wanted: list[bool]) -> None:
    assert one_each(workers) == wanted[PROCESSORS.index(processors)]

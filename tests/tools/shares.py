"""What of a long row of schedules is run each time, and what by `make exhaustive` alone."""

from __future__ import annotations

import pytest
from _pytest.mark import ParameterSet


def batches(count: int, size: int, *, ordinary: int) -> list[ParameterSet]:
    """Give the first of each batch of so many of `count`; those from `ordinary` on are marked as exhaustive."""
    return [
        pytest.param(first, marks=pytest.mark.real if first < ordinary else pytest.mark.exhaustive)
        for first in range(0, count, size)
    ]

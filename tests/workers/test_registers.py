"""What clients of two workers read of one disk: see `tests.workers.registers`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workers.registers import Plan, run

pytestmark = pytest.mark.real

COMMANDS = 600


@pytest.mark.parametrize("seed", range(2))
async def test_it_is_one_disk_whoever_its_clients_came_to(tmp_path: Path, seed: int) -> None:
    done = await run(Plan(seed, COMMANDS), tmp_path)
    assert not done.broken
    assert done.counts["homes"] == 1
    assert done.counts["crashes"]


async def test_without_homes_it_would_not_be(tmp_path: Path) -> None:
    """The proof that the test before this can fail."""
    done = await run(Plan(0, COMMANDS, homes=False, until_wrong=True), tmp_path)
    assert done.counts["homes"] == 2
    assert done.broken

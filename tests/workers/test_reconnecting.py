"""What clients leave behind that come and go: the short form of `tests.tools.reconnect_run`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.reconnect_run import Plan, run

pytestmark = pytest.mark.real


async def test_each_process_has_what_it_had_before_they_came(tmp_path: Path) -> None:
    report = await run(Plan(clients=30, seconds=0, served=900, crowds=3), tmp_path)
    print(report)
    assert not report.problems

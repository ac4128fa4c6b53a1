"""The runs of a whole fleet, short: `python -m tests.tools.fleet_run`, `zombie_run` and `ticket_run` are
longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools import fleet_run, ticket_run, zombie_run
from tests.tools.fleet_world import FromGateway, JudgedDisk, ServerLog, _connection

pytestmark = pytest.mark.exhaustive


async def test_faults(tmp_path: Path) -> None:
    report = await fleet_run.run(fleet_run.FleetPlan(faults=6, seed=1, exports=2), tmp_path)
    assert not report.problems, report
    assert report.homes


@pytest.mark.parametrize("where", ["look", "buffer"])
@pytest.mark.parametrize("fence", [True, False])
async def test_a_zombie_writes_without_a_fence_and_never_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, fence: bool
) -> None:
    monkeypatch.setenv("PYTHONPATH", "")  # which the run sets
    monkeypatch.setenv("NBD_STOP_AFTER_LOOK", "")
    report = await zombie_run.run(3, where, fence, tmp_path)
    assert not report.problems, report
    assert report.times == 3
    assert bool(report.written) is not fence


async def test_tickets(tmp_path: Path) -> None:
    assert len(await ticket_run.run(3, tmp_path)) == 3


async def test_the_server_sees_two_writers() -> None:
    """A connection that was there before another gateway has written may not write after it; a new one may."""
    log = ServerLog()
    disk = JudgedDisk("d", 8, log)

    def accepted(pid: int) -> FromGateway:
        return FromGateway(str(pid), pid, next(log.clock))

    async def writes(connection: FromGateway) -> None:
        _connection.set(connection)
        await disk.write(0, bytes(512))

    first = accepted(1)
    await writes(first)
    await writes(accepted(2))
    await writes(accepted(1))
    assert not log.two_writers
    await writes(first)
    assert len(log.two_writers) == 1

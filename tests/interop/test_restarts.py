"""Servers that are restarted at bad moments, and what their clients see of it: the short form of
`tests.tools.restart_run`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.tools.restart_run import Plan, run

from .gateways import MODE

pytestmark = pytest.mark.skipif(MODE != "gateway", reason="a relay does not survive its server")


@pytest.mark.parametrize("connections", ["per-client", "shared"])
@pytest.mark.parametrize("server", ["qemu-nbd", "nbdkit"])
def test_eight_restarts(server: str, connections: str, workdir: Path) -> None:
    plan = Plan(server, restarts=8, seed=5, connections=connections)
    report = trio.run(run, plan, workdir)
    print(report, report.gateway, sep="\n")
    assert not report.problems, report

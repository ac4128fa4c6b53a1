"""A gateway as one of a fleet, beside a real etcd: what it asks, and how much at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import structlog
import trio

from gateway.fleet.answers import EtcdKey
from gateway.fleet.etcd import Etcd
from gateway.fleet.member import AT_ONCE, FleetMember
from gateway.workers.homes import table_of
from tests.fleet.etcds import running
from tests.fleet.joined import Office, config_of, site
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real


class Counted(Etcd):
    """Counts how many ask for keys of disks at the same time."""

    asking = most = 0

    async def get(self, key: str) -> EtcdKey:
        self.asking += 1
        self.most = max(self.most, self.asking)
        try:
            return await super().get(key)
        finally:
            self.asking -= 1


async def test_few_disks_are_asked_about_at_once(tmp_path: Path) -> None:
    """Renewals of leases must not stand behind thousands (docs/scale.md)."""
    with running(tmp_path / "etcd") as members:
        config = config_of(members)
        etcd = Counted(members.uris, seconds=HANG_SECONDS)
        async with etcd:
            table = table_of(config, counted=False)
            member = FleetMember(config, table, etcd, Office(), structlog.wrap_logger(None))
            with trio.fail_after(HANG_SECONDS):
                await member.join()
            etcd.most = 0
            async with trio.open_nursery() as nursery:
                for number in range(5 * AT_ONCE):
                    at = site(config, f"disk-{number}")
                    nursery.start_soon(partial(member.home_of, at, take=True))
            assert etcd.most == AT_ONCE
            for number in range(5 * AT_ONCE):
                assert await member.home_of(site(config, f"disk-{number}"), take=True) is None
            await member.leave()

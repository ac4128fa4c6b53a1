"""A gateway as one of a fleet, beside a real etcd: what it asks, and how much at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import structlog
import trio

from gateway.config import parse
from gateway.fleet.etcd import Etcd, EtcdKey
from gateway.fleet.home import DiskHome
from gateway.fleet.member import AT_ONCE, FleetMember
from gateway.fleet.record import LostOf
from gateway.handover.given import DiskSite
from gateway.workers.homes import addresses_of, table_of
from tests.fleet.etcds import Members, running
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real

CONFIG = """\
[[listen]]
uri = "nbd://127.0.0.1:0"
[upstream.u]
uri = "nbd://192.0.2.1"
canonical-names = true
[fleet]
etcd = "{etcd}"
name = "a"
address = "nbds://127.0.0.1:1"
certificates = "/nowhere"
"""


class Office:
    """A gateway that serves nobody."""

    def end_sessions(self, disk: str, why: str, *, lost: bool) -> None:
        raise AssertionError((disk, why))

    def is_used(self, disk: str) -> bool:
        return False

    def why_stays(self, disk: str) -> str:
        return ""

    @asynccontextmanager
    async def at_rest(self, disk: str) -> AsyncIterator[None]:
        yield

    def lost(self, home: DiskHome) -> list[LostOf]:
        return []

    def tell(self, home: DiskHome, lost: Collection[LostOf]) -> None:
        raise AssertionError((home, lost))


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


async def joined(member: FleetMember, members: Members) -> None:
    """Become one of the fleet, when etcd has a leader."""
    with trio.fail_after(HANG_SECONDS):
        await member.join()


async def test_few_disks_are_asked_about_at_once(tmp_path: Path) -> None:
    """Renewals of leases must not stand behind thousands (docs/scale.md)."""
    with running(tmp_path / "etcd") as members:
        config = parse(CONFIG.format(etcd=members.uris[0]), "test")
        table = table_of(config, counted=False)
        where = frozenset(addresses_of(config.upstream["u"]))
        etcd = Counted(members.uris, seconds=HANG_SECONDS)
        async with etcd:
            member = FleetMember(config, table, etcd, Office(), structlog.wrap_logger(None))
            await joined(member, members)
            etcd.most = 0
            async with trio.open_nursery() as nursery:
                for number in range(5 * AT_ONCE):
                    site = DiskSite.at(where, f"disk-{number}")
                    nursery.start_soon(partial(member.home_of, site, take=True))
            assert etcd.most == AT_ONCE
            for number in range(5 * AT_ONCE):
                assert await member.home_of(DiskSite.at(where, f"disk-{number}"), take=True) is None
            await member.leave()

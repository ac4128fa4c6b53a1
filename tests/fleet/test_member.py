"""A gateway as one of a fleet, beside a real etcd: what it asks, and how much at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import structlog
import trio

from gateway.fleet.answers import EtcdKey
from gateway.fleet.etcd import Etcd, EtcdPut
from gateway.fleet.keys import best_of
from gateway.fleet.member import AT_ONCE, FleetMember
from gateway.inspect.fleet import fleet_shown
from gateway.workers.homes import table_of
from tests.fleet.etcds import running
from tests.fleet.joined import LOOK_AGAIN_SECONDS, Office, config_of, joined, site
from tests.fleet.running import answers
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real


async def test_whoever_waits_to_join_says_why(tmp_path: Path) -> None:
    with running(tmp_path / "etcd") as members:
        await answers(members)
        async with joined(members, "a") as a, Etcd(members.uris, seconds=HANG_SECONDS) as etcd:
            said = structlog.testing.CapturingLogger()
            log = structlog.wrap_logger(said, processors=[])
            member = FleetMember(a.config, table_of(a.config, counted=False), etcd, Office(), log)
            with trio.fail_after(HANG_SECONDS):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(member.join)
                    while not said.calls:
                        await trio.sleep(LOOK_AGAIN_SECONDS)
                    nursery.cancel_scope.cancel()
            [call] = said.calls
            assert call.kwargs == {
                "event": "waiting to join a fleet",
                "why": 'there is a gateway "a" in the fleet already',
            }


async def test_a_record_that_is_none_is_seen(tmp_path: Path) -> None:
    with running(tmp_path / "etcd") as members:
        await answers(members)
        async with Etcd(members.uris, seconds=HANG_SECONDS) as etcd:
            await etcd.change([], [EtcdPut("/nbd-gateway/records/x", "hello")])
        shown = await fleet_shown(config_of(members))
        assert shown["disks"] == [{"disk": "x", "home": None, "before": ["?"]}]


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


async def test_a_disk_without_a_home_is_for_whoever_can_be_reached(tmp_path: Path) -> None:
    """No gateway that does not answer, and no key that nobody understands, keeps a disk from having a home."""
    with running(tmp_path / "etcd") as members:
        await answers(members)
        async with joined(members, "a") as a, joined(members, "b") as b:
            await a.etcd.change([], [EtcdPut("/nbd-gateway/members/c", "of a later version")])
            sites = [site(a.config, f"d{number}") for number in range(20)]
            at_b = [each for each in sites if best_of(a.member.disk_at(each) or "", "ab") == "b"]
            for each in at_b:
                home = await a.member.home_of(each, take=False)
                assert home is not None
                assert home.gateway == "b"
            nobody = await a.member.home_of(at_b[0], take=False, but=["a", "b"])
            assert nobody is not None  # there is no third
            assert await a.member.home_of(at_b[0], take=False, but=["b"]) is None
            # Where there is a home, it is the home.
            assert await b.member.home_of(at_b[1], take=True) is None
            home = await a.member.home_of(at_b[1], take=False, but=["b"])
            assert home is not None
            assert home.gateway == "b"


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

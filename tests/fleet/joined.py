"""Members of a fleet without gateways around them, beside a real etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
import trio

from gateway.config import Config, parse
from gateway.fleet.answers import EtcdUnavailable
from gateway.fleet.draining import ask_to_drain, ask_to_undrain
from gateway.fleet.etcd import Etcd, EtcdPut
from gateway.fleet.home import DiskHome, NotNow
from gateway.fleet.member import FleetMember
from gateway.fleet.record import LostOf
from gateway.handover.given import DiskSite
from gateway.workers.homes import addresses_of, table_of
from tests.fleet.etcds import Members
from tests.tools.patience import HANG_SECONDS

CONFIG = """\
[[listen]]
uri = "nbd://127.0.0.1:0"
[upstream.u]
uri = "nbd://192.0.2.1"
canonical-names = true
late-write-seconds = {late}
[fleet]
etcd = "{etcd}"
name = "{name}"
address = "nbds://127.0.0.1:1"
certificates = "/nowhere"
lease-seconds = 120
{more}
"""

LOOK_AGAIN_SECONDS = 0.02


def config_of(members: Members, name: str = "a", *, late: float = 86400, more: str = "") -> Config:
    text = CONFIG.format(etcd=members.uris[0], name=name, late=late, more=more)
    return parse(text, "test")


def site(config: Config, name: str) -> DiskSite:
    return DiskSite.at(frozenset(addresses_of(config.upstream["u"])), name)


class NotingEtcd(Etcd):
    """Notes which homes are given away, and loses an answer when it is told to."""

    def __init__(self, members: Members, events: list[str]) -> None:
        super().__init__(members.uris, seconds=HANG_SECONDS)
        self._events = events
        self.loses = 0
        """So many answers to come are lost."""

    async def change(
        self,
        as_read: Sequence[object],
        puts: Sequence[EtcdPut] = (),
        deletes: Sequence[str] = (),
    ) -> int:
        done = await super().change(as_read, puts, deletes)  # type: ignore[arg-type]
        if done and any("/homes/" in each for each in deletes):
            self._events.append("key removed")
            if self.loses:
                self.loses -= 1
                raise EtcdUnavailable("the answer is lost")
        return done


@dataclass
class Office:
    """A gateway with as many sessions as a test says."""

    events: list[str] = field(default_factory=list)
    sessions: set[str] = field(default_factory=set)
    """Disks that have some."""
    stays: dict[str, str] = field(default_factory=dict)
    losses: list[LostOf] = field(default_factory=list)
    told: list[LostOf] = field(default_factory=list)
    refuses: int = 0
    """So many times sessions do not come to rest."""
    resting: int = 0
    most_resting: int = 0
    may_rest: trio.Event = field(default_factory=trio.Event)
    at_the_end: Callable[[], object] = lambda: None

    def end_sessions(self, disk: str, why: str, *, lost: bool) -> None:
        assert not lost
        self.events.append("sessions end")
        self.at_the_end()
        self.sessions.discard(disk)

    def is_used(self, disk: str) -> bool:
        return disk in self.sessions

    def why_stays(self, disk: str) -> str:
        return self.stays.get(disk, "")

    @asynccontextmanager
    async def at_rest(self, disk: str) -> AsyncIterator[None]:
        if self.refuses:
            self.refuses -= 1
            raise NotNow("something is under way")
        self.resting += 1
        self.most_resting = max(self.most_resting, self.resting)
        await self.may_rest.wait()
        self.events.append("at rest")
        try:
            yield
        finally:
            self.resting -= 1

    def vouch(self, disk: str) -> None:
        self.events.append("vouched for")

    def lost(self, home: DiskHome) -> list[LostOf]:
        return self.losses

    def tell(self, home: DiskHome, lost: Collection[LostOf]) -> None:
        self.told += lost


@dataclass(eq=False)
class Alone:
    """A member with what is around it."""

    config: Config
    etcd: NotingEtcd
    office: Office
    member: FleetMember

    @property
    def name(self) -> str:
        return self.member.settings.name

    async def serves(self, name: str) -> bool:
        """Say whether it serves a disk that is led to it, after it has taken it if there was no home."""
        return await self.member.home_of(site(self.config, name), take=True) is None

    async def drain(self, seconds: float | None = None) -> str:
        return await ask_to_drain(self.etcd, self.member.settings, self.name, seconds)

    async def undrain(self) -> bool:
        return await ask_to_undrain(self.etcd, self.member.settings, self.name)

    async def has(self, homes: int) -> None:
        """Wait until so many disks have their home here."""
        while len(self.member.homes()) != homes or self.office.resting:
            await trio.sleep(LOOK_AGAIN_SECONDS)

    async def is_drained(self) -> None:
        while self.member.draining.shown() is None:
            await trio.sleep(LOOK_AGAIN_SECONDS)


@asynccontextmanager
async def joined(
    members: Members, name: str, *, late: float = 86400, more: str = ""
) -> AsyncIterator[Alone]:
    """Have a member, until the block ends."""
    config, office = config_of(members, name, late=late, more=more), Office()
    office.may_rest.set()
    etcd = NotingEtcd(members, office.events)
    async with etcd:
        table = table_of(config, counted=False)
        member = FleetMember(config, table, etcd, office, structlog.wrap_logger(None))
        with trio.fail_after(HANG_SECONDS):
            await member.join()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(member.run)
                yield Alone(config, etcd, office, member)
                await member.leave()
                nursery.cancel_scope.cancel()

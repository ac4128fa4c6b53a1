"""A gateway as one of a fleet: the disks whose home it is, and where the homes of others are.

It holds a lease (`held`), takes disks and gives them away (`taking`), and has for each what hangs by its tenure
(`home`). Here is which disk a client asks for, and who serves it.

When the lease cannot be relied on any more, links to disks that have a home are cut, and no other can be made.
If the lease is renewed after all, they can, and sessions that have waited for a link go on. If etcd says that
there is no such lease, every disk is lost, and its sessions are ended. A disk is not taken again before the
last session of the time before has gone.

Where a home is, is asked of etcd each time that it is not here, and never remembered: an answer that is old
would lead nowhere. Whoever finds no home leads the client to the gateway that a hash of the disk's and the
gateways' names gives, among those that are not drained (`draining`), and that one takes the disk. If it cannot
be reached from here, the next one does (`led`). If two take it at a time, etcd lets one have it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import inf
from typing import TYPE_CHECKING

import trio

from gateway.config import Config, Fleet, Upstream
from gateway.fleet.draining import Drains, GivingWay
from gateway.fleet.etcd import Etcd
from gateway.fleet.following import AGAIN_SECONDS
from gateway.fleet.held import HeldLease
from gateway.fleet.home import DiskHome, NotNow
from gateway.fleet.keys import FleetKeys, NotSaid, best_of, disk_of, run_said
from gateway.fleet.office import FleetOffice
from gateway.fleet.record import HomeRun
from gateway.fleet.taking import NOT_ANSWERED, Taking
from gateway.fleet.tenure import TenureStage
from gateway.handover.given import DiskSite
from gateway.net.options import RelaySocket
from gateway.protocol.errors import Refusal
from gateway.upstream.errors import Unreachable
from gateway.wire.constants import Rep
from gateway.workers.homes import HomeOf, Table, addresses_of, key_of

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

AT_ONCE = 4
"""So many disks are asked about at etcd at once, and others wait. When half of a large fleet is lost, its
clients come to the other half within a second. What they ask must not keep etcd from renewing leases, or those
would be lost, too (docs/scale.md has what a simulation says of other numbers)."""


class FleetMember:
    """The gateway, as one of a fleet. `run` has to go on beside all else; `join` comes before it."""

    def __init__(
        self,
        config: Config,
        table: Table,
        etcd: Etcd,
        office: FleetOffice,
        log: FilteringBoundLogger,
    ) -> None:
        assert config.fleet is not None
        self.settings: Fleet = config.fleet
        self._table = table
        self._late = _late_write_seconds(config)
        self._etcd = etcd
        self._office = office
        self._log = log
        self._keys = FleetKeys(self.settings.prefix)
        self.held = HeldLease(self.settings, etcd, log, ran_out=self._cut_all, lost=self._lose_all)
        self._taking = Taking(self.settings, etcd, self.held, log, office.tell)
        self._homes: dict[str, DiskHome] = {}
        """Those of which the home is here, or that somebody asks for."""
        self._asking = trio.CapacityLimiter(AT_ONCE)
        self._drains = Drains(etcd, self.settings)
        self.draining = GivingWay(
            self._drains, self.held, self._taking, office, self.homes, self._others, log, AT_ONCE
        )
        self._leaves = False

    # --- The lease

    async def join(self) -> None:
        """Become one of the fleet. Raises `NotJoined`."""
        await self.held.join()

    async def run(self) -> None:
        """Keep the lease, and stop in time when that fails; give disks away if that is asked for; until
        cancelled.
        """
        async with trio.open_nursery() as nursery:
            self._taking.nursery = nursery
            nursery.start_soon(self._drains.run)
            nursery.start_soon(self.draining.run)
            await self.held.run()

    def homes(self) -> list[DiskHome]:
        """Give the disks whose home is here."""
        return [home for home in self._homes.values() if home.is_ours]

    def _cut_all(self) -> None:
        """Cut all links: the lease cannot be relied on, and what waits to be sent is not looked at."""
        self._log.error("lease has run out", homes=len(self.homes()))
        for home in self._homes.values():
            home.cut()

    def _lose_all(self, why: str) -> None:
        """There is no lease any more: others may have the disks."""
        for home in self.homes():
            home.become(home.tenure.ended())
            home.cut()
            self._log.error("disk is lost to the fleet", disk=home.words, why=why)
            text = f"the gateway is not the home of the disk any more: {why}"
            self._office.end_sessions(home.disk, text, lost=True)

    # --- Disks

    def disk_at(self, site: DiskSite) -> str | None:
        """Give by what a disk is known to the fleet; None: it has no home, and is served anywhere."""
        key = key_of(self._table[next(iter(site.where))], site.name)
        return None if key is None else disk_of(key)

    def _unknown(self, disk: str, site: DiskSite) -> DiskHome:
        """Give a disk of which nothing is known here yet."""
        homed = self._table[next(iter(site.where))]
        name = site.name if homed.kind is HomeOf.DISK else None
        words = " ".join(homed.server if name is None else (*homed.server, name))
        late = max(self._late[each] for each in site.where)
        return DiskHome(disk, name, words, late if self.settings.fence is None else inf)

    def disk_of(self, settings: Upstream, name: str) -> str | None:
        """Give the same by an upstream and the name there."""
        key = key_of(self._table[addresses_of(settings)[0]], name)
        return None if key is None else disk_of(key)

    def guard(self, settings: Upstream, name: str) -> Callable[[RelaySocket], RelaySocket]:
        """Give what gives a link to a disk its socket. Raises `Unreachable` if nothing may be sent there from
        here.
        """
        disk = self.disk_of(settings, name)
        if disk is None:
            return lambda sock: sock
        home = self._homes.get(disk)
        if home is None or not home.may(self.held):
            raise Unreachable("this gateway is not the home of the disk now, as far as it knows")
        return home.guard(self.held)

    def knows(self, address: tuple[str, ...]) -> bool:
        """Say whether a server at this address is in the configuration."""
        return address in self._table

    def most_seconds(self, site: DiskSite) -> float:
        """Give how long a client that asks for a disk waits at most for its home to serve."""
        return self.settings.longest_wait(max(self._late[each] for each in site.where))

    @contextmanager
    def _asked_for(self, disk: str, site: DiskSite) -> Iterator[DiskHome]:
        """Give what is known of a disk here, and forget it afterwards if that is nothing: clients choose the
        names that they ask for.
        """
        home = self._homes.setdefault(disk, self._unknown(disk, site))
        home.asking += 1
        try:
            yield home
        finally:
            home.asking -= 1
            if not (home.asking or home.moves or home.is_ours or home.has_links):
                self._homes.pop(disk, None)

    async def home_of(
        self, site: DiskSite, *, take: bool, but: Collection[str] = ()
    ) -> HomeRun | None:
        """Give the gateway that is the home of a disk; None: it is here, and serves now. Where there is none,
        the disk is taken, if it is for this one to take, or if it is led here (`take`). It is for none of
        `but` to take, unless they are all that there are. Waits until the disk may be served. Raises `Refusal`.
        """
        disk = self.disk_at(site)
        if disk is None:
            return None
        why = "etcd does not answer"
        with self._asked_for(disk, site) as home, trio.move_on_after(self.most_seconds(site)):
            while not home.serves(self.held):
                try:
                    elsewhere = await self._found(home, take=take, but=but)
                    if elsewhere is not None:
                        return elsewhere
                    if home.moves or home.tenure.stage is TenureStage.CLEARING:
                        why = "the home before may still have something on its way"
                        if home.moves:
                            why = "it is being given to another gateway"
                        await home.change()
                        continue
                    why = "the lease of this gateway cannot be relied on now"
                except (NotNow, *NOT_ANSWERED) as error:
                    why = str(error)
                if not home.serves(self.held):
                    await trio.sleep(AGAIN_SECONDS)
            return None
        raise Refusal(Rep.ERR_SHUTDOWN, f"the disk has no home in the fleet now: {why}")

    async def holder_of(self, site: DiskSite) -> HomeRun | None:
        """Give which gateway is the home of a disk, as etcd has it; None: none. Raises `NOT_ANSWERED`."""
        disk = self.disk_at(site)
        if disk is None:
            return None
        async with self._asking:
            key = await self._etcd.get(self._keys.home(disk))
        return run_said(key.value)[0] if key.revision else None

    async def _found(self, home: DiskHome, *, take: bool, but: Collection[str]) -> HomeRun | None:
        async with home.turn:
            if home.is_ours or home.moves:
                return None
            async with self._asking:
                return await self._found_at_etcd(home, take=take, but=but)

    async def _found_at_etcd(
        self, home: DiskHome, *, take: bool, but: Collection[str]
    ) -> HomeRun | None:
        key = await self._etcd.get(self._keys.home(home.disk))
        if key.revision:
            holder, _more = run_said(key.value)
            if holder != self.held.me:
                return holder
            # What was asked for, and not answered: take it from the beginning.
            await self._etcd.change([key], [], [key.key])
            return None
        members = await self._members()
        takers = self._drains.but(members) or members
        reached = [name for name in takers if name not in but] or [*takers]
        best = best_of(home.disk, reached) if reached else self.settings.name
        led_here = take and self.settings.name in takers
        if not led_here and best != self.settings.name:
            return members[best]
        if self._leaves:
            raise NotNow("the gateway is shutting down")
        if self._office.is_used(home.disk) or home.has_links:
            raise NotNow("sessions from before the disk was lost have not ended yet")
        await self._taking.take(home, key)
        return None

    async def _members(self) -> dict[str, HomeRun]:
        found, _revision = await self._etcd.below(self._keys.members)
        runs: dict[str, HomeRun] = {}
        for each in found:
            with suppress(NotSaid):  # nobody can be led there, and that harms no other
                run, _more = run_said(each.value)
                runs[run.gateway] = run
        return runs

    async def _others(self) -> int:
        """Say how many gateways there are that would take our disks. Raises what etcd raises."""
        there = self._drains.but(await self._members())
        return len(there.keys() - {self.settings.name})

    # --- The end

    async def leave(self) -> None:
        """Give away what can be given in good order, and end the lease. No session is here any more."""
        self._leaves = True
        with trio.move_on_after(2 * AGAIN_SECONDS + self.settings.lease_seconds, shield=True):
            for home in self.homes():
                try:
                    await self._give(home)
                except NOT_ANSWERED as error:
                    self._log.warning("disk is not given away", disk=home.words, why=str(error))
            try:
                await self.held.end()
            except NOT_ANSWERED as error:
                self._log.warning("lease is not ended", why=str(error))

    async def _give(self, home: DiskHome) -> None:
        clean = not home.unwell_for and not self._office.is_used(home.disk) and not home.has_links
        home.become(home.tenure.ended())
        if not clean:
            why = "a connection to its server has ended with something under way"
            self._log.warning("disk is not given away", disk=home.words, why=why)
            return
        await self._taking.give(home, self._office.lost(home))


def _late_write_seconds(config: Config) -> Mapping[tuple[str, ...], float]:
    """Give, for each address of a server, how long a write may be on its way."""
    found: dict[tuple[str, ...], float] = {}
    for settings in config.upstream.values():
        for each in addresses_of(settings):
            found[each] = max(found.get(each, 0.0), settings.late_write_seconds)
    return found

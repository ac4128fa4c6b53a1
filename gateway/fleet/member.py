"""A gateway as one of a fleet: its lease, the disks whose home it is, and where the homes of others are.

All that may be decided without asking anybody is in `lease`, `record` and `tenure`; here is who asks etcd,
when, and what is done about the answers.

The lease is renewed `RENEWALS` times within its time. While etcd does not answer, the gateway serves on until
the lease cannot be relied on any more; then its links to disks that have a home are cut, and no other can be
made. If the lease is renewed after all, they can, and sessions that have waited for a link go on. If etcd says
that there is no such lease, every disk is lost: its sessions are ended, and the gateway begins anew, with
another lease. A disk is not taken again before the last session of the time before has gone.

Where a home is, is asked of etcd each time that it is not here, and never remembered: an answer that is old
would lead nowhere. Whoever finds no home leads the client to the gateway that a hash of the disk's and the
gateways' names gives, and that one takes the disk. If two take it at a time, etcd lets one have it.

This is longer than other modules: what a gateway does about its lease, and about one disk, is in one place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

import trio

from gateway.config import Config, Fleet, Upstream
from gateway.config.fleet import FENCE_SECONDS, PATIENCE_SECONDS
from gateway.fleet.etcd import Etcd, EtcdKey, EtcdPut, EtcdRefused, EtcdUnavailable
from gateway.fleet.guarded import GuardedSocket
from gateway.fleet.keys import FleetKeys, NotSaid, best_of, disk_of, run_said, said_of_run
from gateway.fleet.lease import MARGIN_PART, RENEWALS, Lease
from gateway.fleet.record import HomeRun, NotARecord, record_of
from gateway.fleet.tenure import Tenure, TenureStage
from gateway.handover.given import DiskSite
from gateway.log.ids import RUN
from gateway.net.options import RelaySocket
from gateway.protocol.errors import Refusal
from gateway.upstream.errors import Unreachable
from gateway.wire.constants import Rep
from gateway.workers.homes import HomeOf, Table, addresses_of, key_of

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

AGAIN_SECONDS = 0.5
"""How long to wait before etcd is asked again, or whether a home has ended meanwhile."""

LOOK_SECONDS = 0.05
"""So long passes at least until the lease is looked at again, or this were a loop. Links look for themselves
before they send; only what lies in their buffers waits for this, and the margin is far longer."""

FENCE_AGAIN_SECONDS = 5.0
"""A fence that has failed is run again after so long."""

AT_ONCE = 4
"""So many disks are asked about at etcd at once, and others wait. When half of a large fleet is lost, its
clients come to the other half within a second. What they ask must not keep etcd from renewing leases, or those
would be lost, too (docs/scale.md has what a simulation says of other numbers)."""


def boottime() -> float:
    """Give CLOCK_BOOTTIME, in seconds (see `gateway.fleet.lease`)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class NotJoined(Exception):
    """The gateway cannot become one of the fleet; the text says why."""


class NotKnown(Exception):
    """What etcd has cannot be found out now; the text says why."""


class FleetOffice(Protocol):
    """The gateway of which this is the part that knows the fleet."""

    def end_sessions(self, disk: str, why: str) -> None:
        """End the sessions of a disk: it is not ours any more."""

    def is_used(self, disk: str) -> bool:
        """Say whether a session of a disk is here, or connections that sessions share."""


@dataclass(eq=False)
class _Home:
    """A disk whose home is here, or was."""

    tenure: Tenure = field(default_factory=lambda: Tenure(TenureStage.OVER))
    sockets: WeakSet[GuardedSocket] = field(default_factory=WeakSet)
    turn: trio.Lock = field(default_factory=trio.Lock)
    changed: trio.Event = field(default_factory=trio.Event)
    ended_well: bool = True
    """All links of this tenure that have ended so far have done so with nothing under way."""

    def become(self, tenure: Tenure) -> None:
        """Have another tenure, or the same one further on."""
        self.tenure = tenure
        self.changed.set()
        self.changed = trio.Event()


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
        seconds = self.settings.lease_seconds
        self.margin = MARGIN_PART * seconds
        self._lease = Lease(seconds, self.margin)
        self._lease_id = 0
        self._leases = 0
        self._homes: dict[str, _Home] = {}
        self._asking = trio.CapacityLimiter(AT_ONCE)
        self._words: dict[str, str] = {}
        """What people call a disk of `_homes`."""
        self._nursery: trio.Nursery
        self._leaves = False

    @property
    def me(self) -> HomeRun:
        """The gateway as it was started now. With each lease it is another one: what it has sent before may be
        on its way still.
        """
        name, address = self.settings.name, str(self.settings.address)
        return HomeRun(name, f"{RUN}.{self._leases}", address)

    # --- The lease

    async def join(self) -> None:
        """Get a lease, and be there. A gateway that was killed and is started again finds its own name taken
        until the lease from before has ended. Raises `NotJoined`.
        """
        key = self._keys.member(self.settings.name)
        there: EtcdKey | None = None
        with trio.move_on_after(2 * self.settings.lease_seconds + PATIENCE_SECONDS) as limit:
            while True:
                why = ""
                try:
                    if there is None or there.revision:
                        there = await self._etcd.get(key)
                    if not there.revision and await self._register(there):
                        return
                    why = f'there is a gateway "{self.settings.name}" in the fleet already'
                    there = None
                except EtcdRefused as error:
                    raise NotJoined(f"etcd refuses: {error}") from None
                except EtcdUnavailable as error:
                    why, there = f"etcd does not answer: {error}", None
                    if limit.deadline - trio.current_time() < PATIENCE_SECONDS:
                        break
                await trio.sleep(AGAIN_SECONDS)
        raise NotJoined(why)

    async def _register(self, absent: EtcdKey) -> bool:
        sent = boottime()
        lease, seconds = await self._etcd.grant(self.settings.lease_seconds)
        self._leases += 1
        put = EtcdPut(absent.key, said_of_run(self.me), lease)
        if not await self._etcd.change([absent], [put]):
            await self._etcd.revoke(lease)
            return False
        self._lease_id = lease
        length = Lease(self.settings.lease_seconds, self.margin)
        self._lease = length.renewed(sent, seconds)
        return True

    async def run(self) -> None:
        """Keep the lease, and stop in time when that fails, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._watch_lease)
            await self._keep_lease()

    async def _keep_lease(self) -> None:
        well = True
        while True:
            await trio.sleep(self.settings.lease_seconds / RENEWALS if well else AGAIN_SECONDS)
            sent = boottime()
            try:
                if self._lease_id:
                    seconds = await self._etcd.keep_alive(self._lease_id)
                    self._lease = self._lease.renewed(sent, seconds)
                    if seconds <= 0:
                        self._lose_all("its lease has ended in etcd")
                        continue
                else:
                    absent = await self._etcd.get(self._keys.member(self.settings.name))
                    if absent.revision or not await self._register(absent):
                        raise EtcdUnavailable("the key of the lease before is there still")
                if not well:
                    self._log.info("etcd answers again")
                well = True
            except (EtcdUnavailable, EtcdRefused) as error:
                if well:
                    left = round(self._lease.until - boottime(), 1)
                    self._log.warning("etcd does not answer", why=str(error), seconds=left)
                well = False

    async def _watch_lease(self) -> None:
        """Cut all links when the lease cannot be relied on any more: what waits to be sent is not looked at."""
        may = True
        while True:
            left = self._lease.until - boottime()
            if may and left <= 0:
                self._log.error("lease has run out", homes=len(self._ours))
                for home in self._homes.values():
                    for sock in list(home.sockets):
                        sock.cut()
            may = left > 0
            # Not until the end: a machine that sleeps meanwhile stops Trio's clock, and the lease goes on.
            await trio.sleep(min(max(left, LOOK_SECONDS), AGAIN_SECONDS))

    def _lose_all(self, why: str) -> None:
        """There is no lease any more: others may have the disks."""
        self._lease_id = 0
        for disk in self._ours:
            self._lose(disk, why)

    def _lose(self, disk: str, why: str) -> None:
        home = self._homes[disk]
        home.become(home.tenure.ended())
        for sock in list(home.sockets):
            sock.cut()
        self._log.error("disk is lost to the fleet", disk=self._words[disk], why=why)
        self._office.end_sessions(disk, f"the gateway is not the home of the disk any more: {why}")

    @property
    def _ours(self) -> list[str]:
        over = TenureStage.OVER
        return [disk for disk, home in self._homes.items() if home.tenure.stage is not over]

    # --- Disks

    def disk_at(self, site: DiskSite) -> str | None:
        """Give by what a disk is known to the fleet; None: it has no home, and is served anywhere."""
        key = key_of(self._table[next(iter(site.where))], site.name)
        return None if key is None else disk_of(key)

    def _words_of(self, site: DiskSite) -> str:
        homed = self._table[next(iter(site.where))]
        of = [site.name] if homed.kind is HomeOf.DISK else []
        return " ".join([*homed.server, *of])

    def disk_of(self, settings: Upstream, name: str) -> str | None:
        """Give the same by an upstream and the name there."""
        key = key_of(self._table[addresses_of(settings)[0]], name)
        return None if key is None else disk_of(key)

    def _may(self, home: _Home, tenure: Tenure) -> bool:
        return home.tenure is tenure and tenure.may(self._lease, boottime())

    def guard(self, settings: Upstream, name: str) -> Callable[[RelaySocket], RelaySocket]:
        """Give what gives a link to a disk its socket. Raises `Unreachable` if nothing may be sent there from
        here.
        """
        disk = self.disk_of(settings, name)
        if disk is None:
            return lambda sock: sock
        home = self._homes.get(disk)
        if home is None or not self._may(home, home.tenure):
            raise Unreachable("this gateway is not the home of the disk now, as far as it knows")
        tenure = home.tenure

        def closed(well: bool) -> None:
            if home.tenure is tenure:
                home.ended_well = home.ended_well and well

        def guarded(sock: RelaySocket) -> RelaySocket:
            looks = GuardedSocket(sock, partial(self._may, home, tenure), closed, self.margin)
            home.sockets.add(looks)
            return looks

        return guarded

    def knows(self, address: tuple[str, ...]) -> bool:
        """Say whether a server at this address is in the configuration."""
        return address in self._table

    def most_seconds(self, site: DiskSite) -> float:
        """Give how long a client that asks for a disk waits at most for its home to serve."""
        return self.settings.longest_wait(max(self._late[each] for each in site.where))

    async def home_of(self, site: DiskSite, *, take: bool) -> HomeRun | None:
        """Give the gateway that is the home of a disk; None: it is here, and serves now. Where there is none,
        the disk is taken, if it is for this one to take, or if it is led here (`take`). Waits until the disk
        may be served. Raises `Refusal`.
        """
        disk = self.disk_at(site)
        if disk is None:
            return None
        late = max(self._late[each] for each in site.where)
        home = self._homes.setdefault(disk, _Home())
        self._words[disk] = self._words_of(site)
        why = "etcd does not answer"
        with trio.move_on_after(self.most_seconds(site)):
            while True:
                if self._may(home, home.tenure):
                    return None
                try:
                    elsewhere = await self._found(disk, home, late, take=take)
                    if elsewhere is not None:
                        return elsewhere
                    if home.tenure.stage is TenureStage.CLEARING:
                        why = "the home before may still have something on its way"
                        await home.changed.wait()
                        continue
                    why = "the lease of this gateway cannot be relied on now"
                except (EtcdUnavailable, EtcdRefused, NotARecord, NotSaid, _NotNow) as error:
                    why = str(error)
                if not self._may(home, home.tenure):
                    await trio.sleep(AGAIN_SECONDS)
        raise Refusal(Rep.ERR_SHUTDOWN, f"the disk has no home in the fleet now: {why}")

    async def holder_of(self, site: DiskSite) -> HomeRun | None:
        """Give which gateway is the home of a disk, as etcd has it; None: there is none. Raises `NotKnown`."""
        disk = self.disk_at(site)
        if disk is None:
            return None
        try:
            async with self._asking:
                key = await self._etcd.get(self._keys.home(disk))
            return run_said(key.value)[0] if key.revision else None
        except (EtcdUnavailable, EtcdRefused, NotSaid) as error:
            raise NotKnown(str(error)) from None

    async def _found(self, disk: str, home: _Home, late: float, *, take: bool) -> HomeRun | None:
        async with home.turn:
            if home.tenure.stage is not TenureStage.OVER:
                return None
            async with self._asking:
                return await self._found_at_etcd(disk, home, late, take=take)

    async def _found_at_etcd(
        self, disk: str, home: _Home, late: float, *, take: bool
    ) -> HomeRun | None:
        key = await self._etcd.get(self._keys.home(disk))
        if key.revision:
            holder, _more = run_said(key.value)
            if holder != self.me:
                return holder
            # What was asked for, and not answered: take it from the beginning.
            await self._etcd.change([key], [], [key.key])
            return None
        members = await self._members()
        best = best_of(disk, [*members]) if members else self.settings.name
        if not take and best != self.settings.name:
            return members[best]
        if self._leaves:
            raise _NotNow("the gateway is shutting down")
        if self._office.is_used(disk) or any(s.fileno() >= 0 for s in home.sockets):
            raise _NotNow("sessions from before the disk was lost have not ended yet")
        await self._take(disk, home, key, late)
        return None

    async def _members(self) -> dict[str, HomeRun]:
        found, _revision = await self._etcd.below(self._keys.members)
        runs = [run_said(each.value)[0] for each in found]
        return {each.gateway: each for each in runs}

    async def _take(self, disk: str, home: _Home, absent: EtcdKey, late: float) -> None:
        if not self._lease_id or not self._lease.may(boottime()):
            raise _NotNow("the lease of this gateway cannot be relied on now")
        me, lease = self.me, self._lease_id
        there = await self._etcd.get(self._keys.record(disk))
        record = record_of(there.value if there.revision else None)
        puts = [
            EtcdPut(absent.key, said_of_run(me, disk=self._words[disk]), lease),
            EtcdPut(there.key, record.taken(me).encode()),
        ]
        if not await self._etcd.change([absent, there], puts):
            return  # somebody else has it, or we have and were not told
        if me != self.me:  # the lease was lost meanwhile
            return
        before = record.before(me)
        fence = self.settings.fence is not None
        home.ended_well = True
        home.become(Tenure.begun(before, boottime(), late, fence=fence))
        names = [each.gateway for each in before]
        self._log.info("disk has its home here", disk=self._words[disk], before=names)
        if before:
            self._nursery.start_soon(self._clear, disk, home, me, late)

    async def _clear(self, disk: str, home: _Home, me: HomeRun, late: float) -> None:
        """Wait until nothing comes from those before, or cut them off."""
        tenure = home.tenure
        if self.settings.fence is None:
            names = [each.gateway for each in tenure.before]
            self._log.warning(
                "waiting for what an earlier home may have sent",
                disk=self._words[disk],
                before=names,
                seconds=late,
            )
            while (left := tenure.ready - boottime()) > 0:
                await trio.sleep(left)
        else:
            for each in tenure.before:
                while not await self._cut_off(disk, each):
                    await trio.sleep(FENCE_AGAIN_SECONDS)
        while home.tenure is tenure:
            with_us = tenure.fenced() if self.settings.fence else tenure.waited(boottime())
            try:
                if await self._note_cleared(disk, me) and home.tenure is tenure:
                    home.become(with_us)
                    return
            except (EtcdUnavailable, EtcdRefused, NotARecord, NotSaid):
                pass
            await trio.sleep(AGAIN_SECONDS)

    async def _note_cleared(self, disk: str, me: HomeRun) -> bool:
        key, there = await self._mine(disk, me)
        if key is None or there is None:
            return False
        record = record_of(there.value)
        if not record.before(me):
            return True  # it was done, and the answer was lost
        put = EtcdPut(there.key, record.cleared(me).encode())
        return await self._etcd.change([key, there], [put])

    async def _mine(self, disk: str, me: HomeRun) -> tuple[EtcdKey | None, EtcdKey | None]:
        """Give the keys of a disk whose home is here; none, if it is not any more."""
        key = await self._etcd.get(self._keys.home(disk))
        there = await self._etcd.get(self._keys.record(disk))
        if not key.revision or run_said(key.value)[0] != me:
            return None, None
        return key, there

    async def _cut_off(self, disk: str, before: HomeRun) -> bool:
        """Run the fence; say whether it has succeeded."""
        assert self.settings.fence is not None
        command = [*self.settings.fence, before.gateway, before.address]
        why = ""
        try:
            with trio.fail_after(FENCE_SECONDS):
                run = await trio.run_process(
                    command, check=False, stdin=b"", capture_stdout=True, capture_stderr=True
                )
            if run.returncode:
                said = (run.stderr or b"").decode("utf-8", "replace").strip()[-200:]
                why = f"it has ended with status {run.returncode}: {said}"
        except trio.TooSlowError:
            why = f"it has taken longer than {FENCE_SECONDS:g} s"
        except OSError as error:
            why = f"it cannot be started: {error.strerror}"
        if why:
            self._log.error(
                "fence has failed", disk=self._words[disk], gateway=before.gateway, why=why
            )
        else:
            self._log.warning(
                "earlier home is cut off", disk=self._words[disk], gateway=before.gateway
            )
        return not why

    # --- The end

    async def leave(self) -> None:
        """Give away what can be given in good order, and end the lease. No session is here any more."""
        self._leaves = True
        with trio.move_on_after(2 * AGAIN_SECONDS + self.settings.lease_seconds, shield=True):
            for disk in self._ours:
                try:
                    await self._give(disk)
                except (EtcdUnavailable, EtcdRefused, NotARecord, NotSaid) as error:
                    self._log.warning(
                        "disk is not given away", disk=self._words[disk], why=str(error)
                    )
            if self._lease_id:
                try:
                    await self._etcd.revoke(self._lease_id)
                except (EtcdUnavailable, EtcdRefused) as error:
                    self._log.warning("lease is not ended", why=str(error))

    async def _give(self, disk: str) -> None:
        home = self._homes[disk]
        was = home.tenure
        clean = home.ended_well and not self._office.is_used(disk)
        clean = clean and not any(each.fileno() >= 0 for each in home.sockets)
        home.become(was.ended())
        if not clean:
            why = "a connection to its server has ended with something under way"
            self._log.warning("disk is not given away", disk=self._words[disk], why=why)
            return
        me = self.me
        key, there = await self._mine(disk, me)
        if key is None or there is None:
            return
        record = record_of(there.value).given(me)
        await self._etcd.change([key, there], [EtcdPut(there.key, record.encode())], [key.key])


class _NotNow(Exception):
    """A disk cannot be taken now; the text says why."""


def _late_write_seconds(config: Config) -> Mapping[tuple[str, ...], float]:
    """Give, for each address of a server, how long a write may be on its way."""
    found: dict[tuple[str, ...], float] = {}
    for settings in config.upstream.values():
        for each in addresses_of(settings):
            found[each] = max(found.get(each, 0.0), settings.late_write_seconds)
    return found

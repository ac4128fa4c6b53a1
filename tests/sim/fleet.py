"""Gateways with their leases and disks; what is lost, and how disks find new homes.

A gateway renews its one lease, whatever it serves. A disk has a home as long as that gateway's lease lasts.
When the home is lost, its clients come to other gateways, each to any. The gateway where a disk's client has
come reads who its home is, takes the disk, waits for what the home before may still have sent, and clears the
record: three questions to etcd (`gateway.fleet`). It has only so many of them under way at once.

A lease ends so many seconds after etcd has *handled* its last renewal. So if etcd is kept busy for that long by
gateways that take disks, gateways lose their leases that have nothing to do with it, their disks need new homes
as well, and it becomes worse. That is what to look for.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from math import inf

from gateway.fleet.lease import MARGIN_PART, RENEWALS
from tests.sim.engine import Costs, Engine, Step
from tests.sim.world import World

COMES_BACK_SECONDS = 1.0
"""A client whose connection is gone comes to another gateway within so long."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run is about. `lost`: so many gateways are gone at once, at a moment that no renewal knows of.
    `at_once`: how many disks one gateway takes at once. `etcds`: the disks are spread over so many, each with
    leases of its own. `slower`: all that etcd does takes so many times as long as it was measured to take.
    """

    gateways: int
    disks: int
    lost: int
    at_once: int
    lease_seconds: float = 10.0
    late_write_seconds: float = 0.0
    etcds: int = 1
    slower: float = 1.0
    seed: int = 1


@dataclass(slots=True)
class Seen:
    """What has come of it. `homeless`: for how long each disk of those that were lost was without a home that
    serves it, in seconds, sorted. `lost_their_lease`: how often gateways lost theirs that were never away.
    `had_to_stop`: how often they could not rely on it any more, because the answer to a renewal was late.
    `longest_renewal`: the longest wait for the answer to a renewal, in seconds. `busy`: the part of the time in
    which etcd was at work before anything was lost.
    """

    homeless: list[float] = field(default_factory=list)
    lost_their_lease: int = 0
    had_to_stop: int = 0
    longest_renewal: float = 0.0
    busy: float = 0.0
    still_homeless: int = 0

    def of(self, part: float) -> float:
        """Give the time within which such a part of the disks had a home again."""
        return self.homeless[min(len(self.homeless) - 1, int(part * len(self.homeless)))]


class _Gateway:
    """One gateway at one etcd."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_there = True
        self.homes: set[int] = set()
        """The disks that it serves, or is about to."""
        self.lease = 0
        """Which lease it has: a number that grows."""
        self.handled = 0.0
        """When etcd has handled the last renewal of it."""
        self.until = inf
        """When the gateway must not rely on it any more."""
        self.wanted: deque[int] = deque()
        """Disks whose clients have come."""
        self.under_way = 0


class Fleet:
    """The gateways of one etcd, and the disks there."""

    def __init__(self, world: World, engine: Engine, asked: Asked, disks: int) -> None:
        self.seen = Seen()
        self._world = world
        self._engine = engine
        self._asked = asked
        self._gateways = [_Gateway(number) for number in range(asked.gateways)]
        self._since: dict[int, float] = {}
        """Disks without a home -> since when."""
        for disk in range(disks):
            self._gateways[disk % asked.gateways].homes.add(disk)
        for gateway in self._gateways:
            period = asked.lease_seconds / RENEWALS
            self._world.later(world.chance.uniform(0.0, period), self._renew, gateway)

    @property
    def is_whole(self) -> bool:
        """All disks have homes that serve them."""
        return not self._since

    def lose(self, count: int) -> None:
        """Have so many gateways be gone."""
        for gateway in self._gateways[:count]:
            gateway.is_there = False
            for disk in gateway.homes:
                self._since.setdefault(disk, self._world.now)

    def still_homeless(self) -> int:
        """Say how many disks have no home that serves them."""
        return len(self._since)

    # --- Leases

    def _renew(self, gateway: _Gateway) -> None:
        if not gateway.is_there:
            return
        lease, sent = gateway.lease, self._world.now
        costs = self._engine.costs

        def handled() -> None:
            if gateway.lease == lease:
                gateway.handled = self._world.now
                self._world.later(self._asked.lease_seconds, self._looks, gateway, lease)

        def answered() -> None:
            waited = self._world.now - sent
            self.seen.had_to_stop += self._world.now > gateway.until
            gateway.until = sent + (1 - MARGIN_PART) * self._asked.lease_seconds
            self.seen.longest_renewal = max(self.seen.longest_renewal, waited)
            period = self._asked.lease_seconds / RENEWALS
            self._world.later(max(0.0, period - waited), self._renew, gateway)

        self._engine.ask(costs.renewal, answered, handled)

    def _looks(self, gateway: _Gateway, lease: int) -> None:
        """A lease may have ended: that is found in a while."""
        if gateway.lease == lease and self._has_ended(gateway):
            gateway.lease += 1
            notice = self._world.chance.uniform(0.0, self._engine.costs.notice)
            self._world.later(notice, self._end, gateway)

    def _has_ended(self, gateway: _Gateway) -> bool:
        return self._world.now - gateway.handled >= self._asked.lease_seconds

    def _end(self, gateway: _Gateway) -> None:
        """The keys of a lease are removed. A gateway that is there has its next lease with its next renewal."""
        keys = len(gateway.homes)
        removal = self._engine.costs.write.busy + keys * self._engine.costs.key_removed
        self._engine.ask(Step(removal, removal), partial(self._are_homeless, gateway))

    def _are_homeless(self, gateway: _Gateway) -> None:
        if gateway.is_there:
            self.seen.lost_their_lease += 1
        disks, gateway.homes = gateway.homes, set()
        for disk in sorted(disks):
            self._since.setdefault(disk, self._world.now)
            comes = self._world.chance.uniform(0.0, COMES_BACK_SECONDS)
            self._world.later(comes, self._comes, disk)

    # --- Homes

    def _comes(self, disk: int) -> None:
        """A disk's client comes to one of the gateways that are there."""
        there = self._asked.lost + int(
            self._world.chance.random() * (len(self._gateways) - self._asked.lost)
        )
        gateway = self._gateways[there]
        gateway.wanted.append(disk)
        self._go_on(gateway)

    def _go_on(self, gateway: _Gateway) -> None:
        while gateway.wanted and gateway.under_way < self._asked.at_once:
            gateway.under_way += 1
            disk = gateway.wanted.popleft()
            self._engine.ask(self._engine.costs.read, partial(self._take, gateway, disk))

    def _take(self, gateway: _Gateway, disk: int) -> None:
        def taken() -> None:
            gateway.under_way -= 1
            gateway.homes.add(disk)
            self._world.later(self._asked.late_write_seconds, self._clear, gateway, disk)
            self._go_on(gateway)

        self._engine.ask(self._engine.costs.write, taken)

    def _clear(self, gateway: _Gateway, disk: int) -> None:
        """It serves from now on; that the record is cleared nobody waits for."""
        if disk in gateway.homes:
            self._engine.ask(self._engine.costs.write)
            since = self._since.pop(disk, None)
            if since is not None:
                self.seen.homeless.append(self._world.now - since)


def seen_of(asked: Asked, costs: Costs, most_seconds: float = 300.0) -> Seen:
    """Run a fleet, lose what is lost, and say what has come of it within so many seconds."""
    world = World(asked.seed)
    costs = costs.slower(asked.slower)
    engines = [Engine(world, costs) for _ in range(asked.etcds)]
    disks = asked.disks // asked.etcds
    fleets = [Fleet(world, engine, asked, disks) for engine in engines]
    before = 2 * asked.lease_seconds
    world.run(before)
    seen = Seen(busy=max(engine.busy_seconds for engine in engines) / before)
    for fleet in fleets:
        fleet.lose(asked.lost)
    world.run(before + most_seconds, lambda: all(fleet.is_whole for fleet in fleets))
    for fleet in fleets:
        seen.homeless += fleet.seen.homeless
        seen.lost_their_lease += fleet.seen.lost_their_lease
        seen.had_to_stop += fleet.seen.had_to_stop
        seen.longest_renewal = max(seen.longest_renewal, fleet.seen.longest_renewal)
        seen.still_homeless += fleet.still_homeless()
    seen.homeless.sort()
    return seen

"""The lease that a gateway holds in etcd: how it is got, kept, and what is done when it cannot be kept.

What may be decided without asking anybody is in `lease`. Here is who asks etcd, when, and what is done about
the answers. The lease is renewed `RENEWALS` times within its time. While etcd does not answer, the gateway
serves on until the lease cannot be relied on any more (`ran_out`). If it is renewed after all, it can be. If
etcd says that there is no such lease, it is `lost`, with all that goes by it, and the gateway begins anew with
another one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from gateway.config import Fleet
from gateway.config.fleet import PATIENCE_SECONDS
from gateway.fleet.answers import EtcdKey, EtcdRefused, EtcdUnavailable
from gateway.fleet.etcd import Etcd, EtcdPut
from gateway.fleet.following import AGAIN_SECONDS
from gateway.fleet.keys import FleetKeys, said_of_run
from gateway.fleet.lease import MARGIN_PART, RENEWALS, Lease
from gateway.fleet.record import HomeRun
from gateway.log.ids import RUN

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

LOOK_SECONDS = 0.05
"""So long passes at least until the lease is looked at again, or this were a loop. Links look for themselves
before they send; only what lies in their buffers waits for this, and the margin is far longer."""


def boottime() -> float:
    """Give CLOCK_BOOTTIME, in seconds (see `gateway.fleet.lease`)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class NotJoined(Exception):
    """The gateway cannot become one of the fleet; the text says why."""


class HeldLease:
    """The lease of this gateway. `run` has to go on beside all else; `join` comes before it. `ran_out` is
    called when it cannot be relied on any more, `lost` (with why) when etcd has ended it.
    """

    def __init__(
        self,
        settings: Fleet,
        etcd: Etcd,
        log: FilteringBoundLogger,
        *,
        ran_out: Callable[[], object],
        lost: Callable[[str], object],
    ) -> None:
        self._settings = settings
        self._etcd = etcd
        self._log = log
        self._ran_out, self._lost = ran_out, lost
        self._key = FleetKeys(settings.prefix).member(settings.name)
        self.margin = MARGIN_PART * settings.lease_seconds
        self._lease = Lease(settings.lease_seconds, self.margin)
        self.number = 0
        """What etcd knows it by; 0: there is none."""
        self._leases = 0

    @property
    def me(self) -> HomeRun:
        """The gateway as it was started now. With each lease it is another one: what it has sent before may be
        on its way still.
        """
        name, address = self._settings.name, str(self._settings.address)
        return HomeRun(name, f"{RUN}.{self._leases}", address)

    @property
    def lease(self) -> Lease:
        """What is known of it."""
        return self._lease

    @property
    def is_held(self) -> bool:
        """It can be relied on now."""
        return self.number != 0 and self._lease.may(boottime())

    async def join(self) -> None:
        """Get a lease, and be there. A gateway that was killed and is started again finds its own name taken
        until the lease from before has ended. Raises `NotJoined`.
        """
        settings = self._settings
        there: EtcdKey | None = None
        told = ""
        with trio.move_on_after(2 * settings.lease_seconds + PATIENCE_SECONDS) as limit:
            while True:
                why = ""
                try:
                    if there is None or there.revision:
                        there = await self._etcd.get(self._key)
                    if not there.revision and await self._register(there):
                        return
                    why = f'there is a gateway "{settings.name}" in the fleet already'
                    there = None
                except EtcdRefused as error:
                    raise NotJoined(f"etcd refuses: {error}") from None
                except EtcdUnavailable as error:
                    why, there = f"etcd does not answer: {error}", None
                    if limit.deadline - trio.current_time() < PATIENCE_SECONDS:
                        break
                kind = why.partition(":")[0]
                if kind != told:
                    self._log.warning("waiting to join a fleet", why=why)
                    told = kind
                await trio.sleep(AGAIN_SECONDS)
        raise NotJoined(why)

    async def _register(self, absent: EtcdKey) -> bool:
        sent = boottime()
        lease, seconds = await self._etcd.grant(self._settings.lease_seconds)
        self._leases += 1
        put = EtcdPut(absent.key, said_of_run(self.me), lease)
        if not await self._etcd.change([absent], [put]):
            await self._etcd.revoke(lease)
            return False
        self.number = lease
        length = Lease(self._settings.lease_seconds, self.margin)
        self._lease = length.renewed(sent, seconds)
        return True

    async def run(self) -> None:
        """Keep it, and see when it cannot be relied on any more, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            await self._keep()

    async def _keep(self) -> None:
        well, sent = True, boottime()
        while True:
            # From when the last one was sent: an etcd that is slow to answer has no less often to do so.
            since = boottime() - sent
            wait = self._settings.lease_seconds / RENEWALS - since if well else AGAIN_SECONDS
            await trio.sleep(max(wait, 0))
            sent = boottime()
            try:
                if self.number:
                    seconds = await self._etcd.keep_alive(self.number)
                    self._lease = self._lease.renewed(sent, seconds)
                    if seconds <= 0:
                        self.number = 0
                        self._lost("its lease has ended in etcd")
                        continue
                else:
                    absent = await self._etcd.get(self._key)
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

    async def _watch(self) -> None:
        may = True
        while True:
            left = self._lease.until - boottime()
            if may and left <= 0:
                self._ran_out()
            may = left > 0
            # Not until the end: a machine that sleeps meanwhile stops Trio's clock, and the lease goes on.
            await trio.sleep(min(max(left, LOOK_SECONDS), AGAIN_SECONDS))

    async def end(self) -> None:
        """End it, and its keys with it. Raises `EtcdUnavailable`, `EtcdRefused`."""
        if self.number:
            await self._etcd.revoke(self.number)

"""A disk is taken, cleared and given away at etcd: the transactions of `record`, and what is done between them.

Taken, a disk may have been another gateway's that has not given it away. Then it is waited for what that one
may have sent, or the `fence` is run, and that is noted at etcd as well, before anything is served (`tenure`).

An answer of etcd's may be lost, so whoever changes something reads before it is tried again: what was done is
found done.

With a disk goes what its clients have still to be told of (`DiskRecord.lost`). Who gives it away writes that
into the record, and who takes it has it from then on, and the record no more: as with any loss, a gateway that
is killed takes with it what it had not told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import trio

from gateway.config import Fleet
from gateway.config.fleet import FENCE_SECONDS
from gateway.fleet.answers import EtcdKey, EtcdRefused, EtcdUnavailable
from gateway.fleet.etcd import Etcd, EtcdPut
from gateway.fleet.following import AGAIN_SECONDS
from gateway.fleet.held import HeldLease, boottime
from gateway.fleet.home import DiskHome, NotNow
from gateway.fleet.keys import FleetKeys, NotSaid, run_said, said_of_run
from gateway.fleet.record import HomeRun, LostOf, NotARecord, record_of
from gateway.fleet.tenure import Tenure

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

FENCE_AGAIN_SECONDS = 5.0
"""A fence that has failed is run again after so long."""

NOT_ANSWERED = (EtcdUnavailable, EtcdRefused, NotARecord, NotSaid)
"""What comes of a question that etcd has not answered as a fleet expects."""


class Taking:
    """Takes disks, and gives them away. `tell` is told what was lost of one that was taken."""

    def __init__(
        self,
        settings: Fleet,
        etcd: Etcd,
        held: HeldLease,
        log: FilteringBoundLogger,
        tell: Callable[[DiskHome, Collection[LostOf]], object],
    ) -> None:
        self._settings = settings
        self._keys = FleetKeys(settings.prefix)
        self._etcd = etcd
        self._held = held
        self._log = log
        self._tell = tell
        self.nursery: trio.Nursery
        """Where it is waited for homes of before; it goes on with the member."""

    async def take(self, home: DiskHome, absent: EtcdKey) -> None:
        """Take a disk that has no home, as was just read. Whoever asked looks at the tenure afterwards. Raises
        `NotNow`, and what etcd raises.
        """
        if not self._held.is_held:
            raise NotNow("the lease of this gateway cannot be relied on now")
        me, lease = self._held.me, self._held.number
        there = await self._etcd.get(self._keys.record(home.disk))
        record = record_of(there.value if there.revision else None)
        puts = [
            EtcdPut(absent.key, said_of_run(me, disk=home.words), lease),
            EtcdPut(there.key, record.taken(me).encode()),
        ]
        if not await self._etcd.change([absent, there], puts):
            return  # somebody else has it, or we have and were not told
        if me != self._held.me or lease != self._held.number:  # the lease was lost meanwhile
            return
        if record.lost:
            self._tell(home, record.lost)
        before = record.before(me)
        fence = self._settings.fence is not None
        home.begin(Tenure.begun(before, boottime(), home.late, fence=fence))
        names = [each.gateway for each in before]
        self._log.info("disk has its home here", disk=home.words, before=names)
        if before:
            self.nursery.start_soon(self._clear, home, me)

    async def _clear(self, home: DiskHome, me: HomeRun) -> None:
        """Wait until nothing comes from those before, or cut them off."""
        tenure = home.tenure
        if self._settings.fence is None:
            self._log.warning(
                "waiting for what an earlier home may have sent",
                disk=home.words,
                before=[each.gateway for each in tenure.before],
                seconds=home.late,
            )
            while (left := tenure.ready - boottime()) > 0:
                await trio.sleep(left)
        else:
            for each in tenure.before:
                while not await self._cut_off(home, each):
                    await trio.sleep(FENCE_AGAIN_SECONDS)
        while home.tenure is tenure:
            with_us = tenure.fenced() if self._settings.fence else tenure.waited(boottime())
            try:
                if await self._note_cleared(home, me) and home.tenure is tenure:
                    home.become(with_us)
                    return
            except NOT_ANSWERED:
                pass
            await trio.sleep(AGAIN_SECONDS)

    async def _note_cleared(self, home: DiskHome, me: HomeRun) -> bool:
        key, there = await self._mine(home, me)
        if key is None or there is None:
            return False
        record = record_of(there.value)
        if not record.before(me):
            return True  # it was done, and the answer was lost
        put = EtcdPut(there.key, record.cleared(me).encode())
        return bool(await self._etcd.change([key, there], [put]))

    async def _mine(self, home: DiskHome, me: HomeRun) -> tuple[EtcdKey | None, EtcdKey | None]:
        """Give the keys of a disk whose home is here; none, if it is not any more."""
        key = await self._etcd.get(self._keys.home(home.disk))
        there = await self._etcd.get(self._keys.record(home.disk))
        if not key.revision or run_said(key.value)[0] != me:
            return None, None
        return key, there

    async def give(self, home: DiskHome, lost: Collection[LostOf] = ()) -> None:
        """Give a disk away: nothing of it is under way, and nothing is sent any more. If it was done before, or
        the disk is not ours any more, that is as good. Raises what etcd raises; then it may have been done.
        """
        me = self._held.me
        while True:
            key, there = await self._mine(home, me)
            if key is None or there is None:
                return
            record = record_of(there.value).given(me, lost)
            put = EtcdPut(there.key, record.encode())
            if await self._etcd.change([key, there], [put], [key.key]):
                return

    async def _cut_off(self, home: DiskHome, before: HomeRun) -> bool:
        """Run the fence; say whether it has succeeded."""
        assert self._settings.fence is not None
        command = [*self._settings.fence, before.gateway, before.address]
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
        ours = {"disk": home.words, "gateway": before.gateway}
        if why:
            self._log.error("fence has failed", **ours, why=why)
        else:
            self._log.warning("earlier home is cut off", **ours)
        return not why

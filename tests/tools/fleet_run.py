"""`python -m tests.tools.fleet_run`: three gateways of a fleet behind the real haproxy, clients that verify
what they read, and faults that a seed draws: or a gateway that is drained.

    kill      a gateway is killed with -9, and started again
    stop      one is stopped, and goes on when its lease has ended, or before
    quorum    two of three members of etcd are stopped, for longer than a lease or for less
    cut       one is cut off from etcd, and not from the server

Each export has four clients: two that read, write and FLUSH several things at a time, one that leaves with
every fault and comes back, and one that comes and goes without a FLUSH. They all come to haproxy, so to any
gateway. What they read is held against `tests.tools.oracle`; each FLUSH that is answered against what is stable
at the server at that moment; and the server's own log against two writers (`tests.tools.fleet_world`). With
`--no-fence` there is no fence, and nobody waits either (late-write-seconds = 0).

The longest time for which a client had no answer is printed beside what docs/fleet.md promises. Clients that
were disconnected come again at once, so that time is in it.

`--drain` has no faults. No client comes to one of the gateways, which is drained under load: then no client may
see an error, or be disconnected, and no disk may have stayed.

It ends with 0 if all is as it should be, with 1 if not.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import trio

from gateway.config.fleet import FENCE_SECONDS, PATIENCE_SECONDS
from tests.tools.findings import MOST_PROBLEMS
from tests.tools.fleet_world import LOOK_AGAIN_SECONDS, FleetWorld, fleet_world, goes_on
from tests.tools.history import Op
from tests.tools.kill_plan import Plan, Report
from tests.tools.load import Load
from tests.tools.stamps import Broken

FAULTS = {"kill": 3, "stop": 3, "quorum": 2, "cut": 2}
"""What befalls the fleet, and how often."""

BLOCKS = 128
"""Of a disk: so few that clients meet."""

WRITES_BETWEEN = 20
"""So many WRITEs are answered of each disk between two faults: all clients have come back."""

FAULT_SECONDS = 600.0
"""A fault that is not over by then hangs."""


@dataclass(frozen=True)
class FleetPlan:
    """What is done."""

    faults: int = 30
    seed: int = 0
    exports: int = 4
    depth: int = 2
    lease: int = 8
    fence: bool = True
    drain: bool = False
    unflushed: str = "assume-durable"
    """Nothing is lost here, so with this no client may see an error for a loss."""


@dataclass
class FleetReport:
    """How it went."""

    plan: FleetPlan
    problems: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    longest: tuple[float, str] = (0.0, "nobody")
    away: float = 0.0
    """For how long etcd had no majority, at the longest."""
    fenced: int = 0
    writes: int = 0
    homes: int = 0
    """How often a disk had another home than before."""

    @property
    def promised(self) -> float:
        """The longest wait of a client, as docs/fleet.md has it, from when etcd answers."""
        late = FENCE_SECONDS if self.plan.fence else 0
        return late + 2 * self.plan.lease + PATIENCE_SECONDS

    def judge(self) -> None:
        if self.longest[0] > self.promised + self.away:
            self.problems.append("a client has waited for longer than is promised")

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {what}" for what, count in sorted(self.faults.items()))
        counts = ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))
        seconds, who = self.longest
        lines = [
            f"seed {self.plan.seed}: {faults or 'no faults'}; {self.homes} times another home,"
            f" {self.fenced} fences",
            f"  {counts}; {self.writes} writes at the server",
            f"  the longest wait was {seconds:.1f} s ({who}); promised are {self.promised:g} s, and the"
            f" {self.away:.1f} s for which etcd had no majority",
        ]
        return "\n".join(
            lines + [f"  WRONG: {problem}" for problem in self.problems[:MOST_PROBLEMS]]
        )


class FleetLoad(Load):
    """The clients of one export, and how long each was without an answer."""

    def __init__(self, plan: Plan, report: Report, socket: Path, export: str) -> None:
        super().__init__(plan, report, socket, export)
        self.longest = (0.0, "nobody")
        self._last: dict[str, float] = {}

    def ended(self, op: Op, error: int, data: bytes) -> None:
        super().ended(op, error, data)
        assert op.session is not None
        now, who = time.monotonic(), op.session.name.partition(" (")[0]
        waited = now - self._last.get(who, now)
        self.longest = max(self.longest, (waited, f"{self.export}: {who}"))
        self._last[who] = now


class Fleet:
    """The world, the loads, and what befalls them."""

    def __init__(self, plan: FleetPlan, world: FleetWorld, report: FleetReport) -> None:
        self.plan, self.world, self.report = plan, world, report
        self.random = Random(f"{plan.seed}, faults")
        how = Plan(
            mode=plan.unflushed,
            by="worker",
            seed=plan.seed,
            clients=2,
            depth=plan.depth,
            blocks=BLOCKS,
        )
        self.loads = []
        for name, disk in world.disks.items():
            load = FleetLoad(how, Report(how), world.socket, name)
            load.oracle.stable = disk.stamp
            load.oracle.in_fleet = True
            # Nothing is, but a gateway whose disk's home has died cannot know that.
            load.oracle.lossless = plan.unflushed == "assume-durable"
            self.loads.append(load)

    async def work(self, nursery: trio.Nursery) -> None:
        for load in self.loads:
            for number in range(load.plan.clients):
                nursery.start_soon(load.client, f"client {number}")
            nursery.start_soon(_visitor, load)
            nursery.start_soon(load.comes_and_goes)
        await self._works()

    async def _works(self) -> None:
        """Wait until all disks are written to."""
        wanted = [load.report.counts["write"] + WRITES_BETWEEN for load in self.loads]
        for load, count in zip(self.loads, wanted, strict=True):
            while load.report.counts["write"] < count and not self._wrong():
                await trio.sleep(LOOK_AGAIN_SECONDS)

    def _wrong(self) -> bool:
        return any(load.report.problems for load in self.loads)

    async def faults(self) -> None:
        before = await self.world.homes()
        for number in range(self.plan.faults):
            [what] = self.random.choices([*FAULTS], [*FAULTS.values()])
            self._may_lose()
            with trio.move_on_after(FAULT_SECONDS) as limit:
                began = time.monotonic()
                await getattr(self, f"_{what}")()
                self._may_lose()  # its lease may have ended only now
                await self._works()
            self._may_lose()
            self.report.faults[what] += 1
            now = await self.world.homes()
            self.report.homes += sum(now.get(disk) != home for disk, home in before.items())
            before = now
            print(f"{number + 1}: {what}, {time.monotonic() - began:.1f} s", file=sys.stderr)
            if limit.cancelled_caught:
                self.report.problems.append(f"after {what}: not over in {FAULT_SECONDS:g} s")
            if limit.cancelled_caught or self._wrong():
                return

    def _may_lose(self) -> None:
        """A home may be lost, with what was not flushed over it, and whoever came in there."""
        for load in self.loads:
            load.oracle.ends_sessions()
            load.oracle.cut()

    def _some(self) -> str:
        return self.random.choice([*self.world.gateways])

    def _seconds(self) -> float:
        """For less than a lease, or for more."""
        return self.random.choice((0.3, 0.7, 1.5, 2)) * self.plan.lease

    async def _kill(self) -> None:
        name = self._some()
        self.world.gateways[name].kill()
        for load in self.loads:
            load.leave()
        await trio.sleep(self.random.choice((0, 1, self.plan.lease)))
        self.world.start(name)
        await self.world.gateways[name].serves()

    async def _stop(self) -> None:
        one = self.world.gateways[self._some()]
        one.signal(signal.SIGSTOP)
        for load in self.loads:
            load.leave()
        try:
            await trio.sleep(self._seconds())
        finally:
            goes_on(one)

    async def _quorum(self) -> None:
        two, began = self.random.sample(range(3), 2), time.monotonic()
        self.world.members.signal(signal.SIGSTOP, two)
        try:
            await trio.sleep(self._seconds())
        finally:
            self.world.members.signal(signal.SIGCONT, two)
        self.report.away = max(self.report.away, time.monotonic() - began)

    async def _cut(self) -> None:
        relays = self.world.relays[self._some()]
        for each in relays:
            each.hold()
        try:
            await trio.sleep(self._seconds())
        finally:
            for each in relays:
                each.cut()

    async def drain(self, name: str) -> None:
        """Drain a gateway to which no client comes, and have it end."""
        before = await self.world.homes()
        self.report.counts["disks at the drained gateway"] = [*before.values()].count(name)
        command = [sys.executable, "-m", "gateway", "fleet", "drain", name]
        config = ["--config", str(self.world.at / "a.toml")]
        run = await trio.run_process([*command, *config], capture_stdout=True, check=False)
        print(run.stdout.decode(), end="", file=sys.stderr)
        if run.returncode:
            self.report.problems.append(f"fleet drain has ended with {run.returncode}")
        await self._works()
        if name in (await self.world.homes()).values():
            self.report.problems.append("a disk has stayed")
        await self.world.gateways[name].end()
        await self._works()

    async def end(self) -> None:
        """Have all clients finish, and hold everything against what there is."""
        for load in self.loads:
            load.stopping = True

    def judge(self) -> None:
        report, log = self.report, self.world.log
        for load, disk in zip(self.loads, self.world.disks.values(), strict=True):
            report.problems += load.report.problems
            report.counts += load.report.counts
            report.longest = max(report.longest, load.longest)
            report.writes += disk.writes
            try:
                load.oracle.check_final(disk.stamps(), lossless=True)
            except Broken as broken:
                report.problems.append(f"{load.export}, in the end: {broken}")
        report.problems += log.two_writers
        report.fenced = log.fenced
        cut = report.counts["session cut"]
        if self.plan.drain and cut:
            report.problems.append(f"{cut} sessions were cut by a drain")
        for one in self.world.gateways.values():
            if "Traceback" in one.said or "internal error" in one.said:
                report.problems.append(f"gateway {one.name}: {one.said[-2000:]}")
        report.judge()


async def _visitor(load: Load) -> None:
    await load.client("visitor", leaves=True)


async def run(plan: FleetPlan, at: Path) -> FleetReport:
    """Do all of it."""
    report = FleetReport(plan)
    exports = [f"d{number}" for number in range(plan.exports)]
    entries = "ab" if plan.drain else "abc"
    world_of = fleet_world(
        at,
        exports=exports,
        entries=entries,
        blocks=BLOCKS,
        lease=plan.lease,
        fence=plan.fence,
        unflushed=plan.unflushed,
    )
    async with world_of as world:
        fleet = Fleet(plan, world, report)
        async with trio.open_nursery() as nursery:
            await fleet.work(nursery)
            if plan.drain:
                await fleet.drain("c")
            else:
                await fleet.faults()
            await fleet.end()
            nursery.cancel_scope.deadline = trio.current_time() + FAULT_SECONDS
        if nursery.cancel_scope.cancelled_caught:
            report.problems.append(f"the clients have not finished in {FAULT_SECONDS:g} s")
        fleet.judge()
    return report


def main() -> int:
    """Give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.fleet_run")
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--seed", type=int, help="another one each time, unless it is given")
    parser.add_argument("--exports", type=int, default=4, help="each has four clients")
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--lease", type=int, default=8)
    parser.add_argument("--no-fence", action="store_true")
    parser.add_argument("--drain", action="store_true")
    parser.add_argument("--unflushed", default="assume-durable", help="sticky: losses are told")
    parser.add_argument("--keep", type=Path, help="a directory for the logs, which is left there")
    said = vars(parser.parse_args())
    keep = said.pop("keep")
    said["fence"] = not said.pop("no_fence")
    if said["seed"] is None:
        said["seed"] = Random().randrange(10**6)
    plan = FleetPlan(**said)
    print(f"seed {plan.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="nbd-") as name:
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
        report = trio.run(run, plan, keep or Path(name))
    print(report)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())

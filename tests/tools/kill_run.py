"""`python -m tests.tools.kill_run`: a real server is killed with -9 under a verifying load, again and again.

    --server nbdkit     its cache filter in front of a file, cache=writeback: what is not flushed is really lost
    --server qemu-nbd   --cache=writeback: the kernel keeps what was written, so that nothing is lost
    --server command    the same, but the gateway itself starts it

In front of it stands the gateway, and before that clients of ours that write, read and FLUSH blocks that they
have in common, several commands at a time. One of them leaves with every kill, in the middle of everything, and
comes back; another one writes, leaves in good order without a FLUSH, and comes back, and some kills come while
it is away. In the end a newcomer looks at everything. What they are told and what they read is held against
`tests.tools.oracle`; so is the disk, each time that the server is dead and in the end. What is asked depends on
`--mode`, the configuration's `unflushed`:

    replay, assume-durable   no client sees an error, and nothing is missing
    sticky, verify           what is lost is told, by EIO at a FLUSH of every session that was open

`--by cut` cuts the connections instead, with RST or FIN, now or in the middle of whatever passes; the server
lives, so nothing is lost, though the gateway cannot know. `--by stop` stops the server for a while, of which
nobody may notice anything but the time. `--by term` ends it with SIGTERM, as `systemctl restart` does: so it
goes in good order, which promises nothing of what is in its cache.

With `--workers N` the gateway has so many, and clients come to all of them; `--homeless` takes the homes of
disks away from them (`gateway.workers.homes`), so it has to end with 1. `--by worker` kills one of them instead
of the server, and `--by supervisor` the supervisor, and begins another gateway: sessions are cut then, and
everything else is asked. With `--silent` a worker says nothing whenever the server is killed: it was stopped
before, and goes on when the server is dead.

`--coarse` has nbdkit take blocks of 4 KiB only, so that most WRITEs are parts of blocks, which clients have in
common: each is read, modified and written back, and none may undo another one.

With `--upgrades N` newer gateways take the place of the one that there is, so often, beside all that: sessions
of the older one end after a while, and their clients connect again.

`--defaults` leaves everything else as the product has it, `late-write-seconds` too, so that each kill holds up
for half a minute what it has left unanswered. With `--readers` only the one writes that leaves in good order:
all others learn of what is lost from nobody but the gateway.

`--without-survival` leaves the keys out of the configuration: sessions end with the server, which is then no
failure by itself. What the clients see is asked all the same, so it has to end with 1: the proof that it can.

Kills come at random, or while a FLUSH is under way, or again as soon as the server is there, or when somebody
has left. The seed decides
when and what is written; the machine has its own say, so a seed gives a similar run, not the same.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from functools import partial
from itertools import count
from pathlib import Path
from random import Random

import trio

from gateway.admin.asking import ask
from tests.interop.processes import Process, listening
from tests.interop.servers import unix_uri
from tests.interop.upgraded import lives
from tests.tools.cutter import Address, Relay, Towards, cutter
from tests.tools.findings import MOST_PROBLEMS
from tests.tools.kill_plan import (
    MODES,
    MOST_TIMES,
    NOBODY_CAME_FROM_ELSEWHERE,
    NOTHING_LOST,
    OURS,
    Plan,
    Report,
)
from tests.tools.load import FLUSH_WEIGHTS, REPLY_SECONDS, Load
from tests.tools.patience import HANG_SECONDS
from tests.tools.stamps import Broken
from tests.tools.victims import CannotStart, Child, Killed, Victim, listens

ROOT = Path(__file__).parents[2]
HOMELESS = ROOT / "tests" / "workers" / "homeless"
"""What takes the homes away from workers."""

BEGUN_AGAIN_SECONDS = 30
"""For a worker that has died soon is begun again only after a while, or a gateway, on a busy machine."""

CONFIG = """\
workers = {workers}
[[listen]]
uri = "{listen}"
[upstream.main]
{server}
connect-seconds = 30
{survival}
[[export]]
name = "d"
upstream = "main"
upstream-name = ""
"""

CONTROL = """\
[control]
socket = "{control}"
"""

COMMAND = "command"

AIMS = ("anywhere", "anywhere", "flush", "flush", "again", "left", "left")
"""What a kill is to hit."""

UPGRADE_SECONDS = 120
"""How long one may take: sessions that wait for a server have `drain-seconds` (30), and two programs start."""

AIM_SECONDS = 1
"""So long it waits for that."""


class House:
    """The gateway, and how it is begun."""

    def __init__(self, plan: Plan, config: Path, control: Path) -> None:
        self.pidfile = config.parent / "pid"
        self._control = control
        self._command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
        if plan.upgrades:
            self._command += ["--pidfile", str(self.pidfile)]
        if not plan.homes:
            self._command = ["env", f"PYTHONPATH={HOMELESS}{os.pathsep}{ROOT}", *self._command]
        self.process: Process | None = None
        self.output = ""

    async def begin(self, uri: str) -> None:
        self.process = Process(*self._command)
        await listens(self.process, uri)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def serves(self) -> int:
        """The number of who serves, after whatever upgrades."""
        return int(self.pidfile.read_text()) if self.pidfile.exists() else self.pid

    async def upgrade(self, seconds: float) -> str:
        """Have a newer gateway take the place of this one, whose sessions end after so long. Give what it says
        if it does not.
        """
        asks = [sys.executable, "-m", "gateway", "upgrade", "--socket", str(self._control)]
        done = await trio.run_process(
            [*asks, "--deadline", str(seconds)],
            check=False,
            capture_stdout=True,
            capture_stderr=True,
        )
        return done.stderr.decode() if done.returncode else ""

    async def end(self) -> int:
        """End it in good order; give the status, as far as we are told."""
        assert self.process is not None
        serves = self.serves
        if serves == self.pid:
            return self.process.stop()
        os.kill(serves, signal.SIGTERM)
        while lives(serves):
            await trio.sleep(0.01)
        return self.process.wait()

    def workers(self) -> list[int]:
        """The numbers of its workers."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()  # each has those that it has started
        return [int(pid) for each in tasks for pid in (each / "children").read_text().split()]

    async def kill(self, uri: str) -> None:
        """Kill the supervisor, and begin another gateway once its workers listen no more."""
        assert self.process is not None
        self.process.kill()
        self.ended(self.process)
        while listening(uri):
            await trio.sleep(0.01)
        await self.begin(uri)

    def ended(self, process: Process) -> None:
        self.output += process.output
        Process.started.remove(process)


async def disturb_again_and_again(
    plan: Plan,
    load: Load,
    victim: Killed,
    relay: Relay | None,
    report: Report,
    house: House,
    uri: str,
) -> None:
    """Do what is to be done to the server, at bad moments."""
    random = Random(f"{plan.seed}, kills")
    pause = plan.seconds / max(plan.kills, 1)
    for number in count():
        if number >= plan.kills and (not why_in_vain(plan, report) or number >= plan.most_kills):
            break
        aim = random.choice([*AIMS, *["upgrade"] * (len(AIMS) if plan.upgrades else 0)])
        load.flush_weight = random.choice(FLUSH_WEIGHTS)
        if plan.by in OURS and (aim != "again" or not number):
            await (
                load.works()
            )  # a gateway that is begun anew takes a while, and is to be killed at work
        await trio.sleep(random.uniform(0, 0.05 if aim == "again" else 2 * pause))
        lots = {"flush": load.flush_sent, "left": load.left, "upgrade": load.upgraded}
        if aim in lots:
            with trio.move_on_after(AIM_SECONDS if aim != "upgrade" else plan.seconds):
                await lots[aim].park()
            await trio.sleep(random.uniform(0, 0.003 if aim != "upgrade" else 0.2))
        report.counts[f"{plan.by} ({aim})"] += 1
        if plan.by == "stop":
            await victim.stop(plan.stop_seconds)
        elif plan.by == "supervisor":
            await house.kill(uri)
        elif plan.by == "worker":
            if there := house.workers():
                os.kill(random.choice(there), signal.SIGKILL)
        elif relay is not None:
            await cut(plan, load, relay, random)
        else:
            await kill(plan, load, victim, random, report, house)
        if len(report.problems) >= MOST_PROBLEMS:
            break
    await trio.sleep(pause)
    while plan.until_wrong and not report.problems:
        await trio.sleep(0.01)


async def upgrade_again_and_again(plan: Plan, load: Load, report: Report, house: House) -> None:
    """Have newer gateways take the place of older ones, at any moments."""
    random = Random(f"{plan.seed}, upgrades")
    for _ in range(plan.upgrades):
        await trio.sleep(random.uniform(0, plan.seconds / plan.upgrades))
        load.oracle.ends_sessions()
        older = house.serves
        with trio.move_on_after(UPGRADE_SECONDS) as limit:
            if why := await house.upgrade(random.choice((0, 0.2, 1))):
                report.problem(f"not upgraded: {why}")
            load.upgraded.unpark_all()
            while lives(older):
                await trio.sleep(0.01)
        if limit.cancelled_caught:
            report.problem(f"an upgrade was not over in {UPGRADE_SECONDS} s")
            return
        report.counts["upgrades"] += 1


async def kill(
    plan: Plan, load: Load, victim: Killed, random: Random, report: Report, house: House
) -> None:
    """Kill the server, or have it go, and start it, and look at the disk in between."""
    in_order = plan.by == "term"
    silent = random.choice(house.workers()) if plan.silent else 0
    if silent:
        os.kill(silent, signal.SIGSTOP)
        report.counts["stopped workers"] += 1
        await trio.sleep(random.choice((0, 0.05, 0.3)))
    loss = load.oracle.lose(in_order=in_order)
    try:
        if in_order:
            await victim.terminate()
        else:
            victim.kill()
    except Broken as broken:
        report.problem(str(broken))
    load.oracle.dead(loss)
    try:
        gone = not plan.lossless and plan.server == "nbdkit"
        report.lost.append(load.oracle.check_stable(victim.stamps(), gone=gone))
    except Broken as broken:
        report.lost.append(0)
        report.problem(f"after kill {len(report.lost)}: {broken}")
    load.leave()
    await trio.sleep(random.choice((0, 0, 0.05, 0.3)))
    if silent:
        os.kill(silent, signal.SIGCONT)
    await victim.start()
    load.oracle.noticed()


async def cut(plan: Plan, load: Load, relay: Relay, random: Random) -> None:
    """Cut all links, at once or where some bytes have passed."""
    load.oracle.noticed()  # whatever was cut before has been found
    loss = load.oracle.lose()
    reset = random.random() < 0.5
    with trio.move_on_after(1):
        towards: Towards = random.choice(("server", "client"))
        await relay.cut_after(random.randrange(5000), towards, reset=reset).wait()
    relay.cut(reset=reset)
    load.oracle.dead(loss)
    load.leave()


async def run(plan: Plan, workdir: Path) -> Report:
    """Do all of it. Raises `CannotStart`."""
    report = Report(plan)
    victim: Killed = (Child if plan.server == COMMAND else Victim)(plan, workdir)
    if plan.by != "cut":
        return await disturbed(plan, victim, None, workdir, report)
    listen: Address = ("127.0.0.1", 0) if plan.tcp else workdir / "relay"
    async with cutter(victim.address, listen) as relay:
        return await disturbed(plan, victim, relay, workdir, report)


async def disturbed(
    plan: Plan, victim: Killed, relay: Relay | None, workdir: Path, report: Report
) -> Report:
    """Run the load and what disturbs it."""
    socket = workdir / "gateway"
    config, control = workdir / "gateway.toml", workdir / "control"
    listen = unix_uri(socket)
    config.write_text(
        CONFIG.format(
            workers=plan.workers,
            listen=listen,
            server=victim.said if relay is None else f'uri = "{relay.uri}"',
            survival=plan.config_survival,
        )
        + CONTROL.format(control=control)
    )
    load = Load(plan, report, socket)
    house = House(plan, config, control)
    try:
        await victim.start()
        await house.begin(listen)
        # All may have to wait once for a server that is killed again and again.
        most = MOST_TIMES * (2 * plan.seconds + plan.kills) + 2 * REPLY_SECONDS
        if plan.by in OURS:  # which is begun again only after a while, when it dies soon
            most += plan.kills * BEGUN_AGAIN_SECONDS
        with trio.move_on_after(most) as limit:
            async with trio.open_nursery() as nursery:
                for number in range(plan.clients):
                    nursery.start_soon(load.client, f"client {number}")
                nursery.start_soon(partial(load.client, "visitor", leaves=True))
                nursery.start_soon(load.comes_and_goes)
                async with trio.open_nursery() as disturbing:
                    disturbing.start_soon(upgrade_again_and_again, plan, load, report, house)
                    await disturb_again_and_again(plan, load, victim, relay, report, house, listen)
                load.stopping = True
            if plan.survival:
                await load.newcomer()
        if limit.cancelled_caught:
            report.problem(f"the clients have not finished in time: {load.oracle._under_way}")
        await look_who_came_from_elsewhere(plan, control, report)
        victim.kill()  # everything was flushed
        gateway = house.process
        assert gateway is not None
        if not lives(house.serves):
            report.problem("the gateway has ended by itself")
        status = await house.end()
        house.ended(gateway)
        report.gateway = house.output
        if status or "Traceback" in report.gateway or "internal error" in report.gateway:
            report.problem(f"the gateway ended with {status}:\n{report.gateway[-2000:]}")
        check_disk(plan, load, victim, report)
    finally:
        victim.kill()
        if house.process is not None and house.process.running:
            house.process.kill()
        if house.pidfile.exists() and lives(house.serves):
            os.kill(house.serves, signal.SIGKILL)
    return report


async def look_who_came_from_elsewhere(plan: Plan, control: Path, report: Report) -> None:
    """See that clients of the disk have come to several workers, where there are some that have lived."""
    if plan.workers == 1 or plan.by in OURS or not plan.homes:
        return
    with trio.fail_after(HANG_SECONDS):
        answer = await ask(control, "status")
    assert answer.data is not None, answer
    handed = sum(each["handshakes"].get("handed-over", 0) for each in answer.data["listeners"])
    report.counts["handed over"] = handed
    if not handed:
        report.problem(NOBODY_CAME_FROM_ELSEWHERE)


def check_disk(plan: Plan, load: Load, victim: Killed, report: Report) -> None:
    """Hold the disk against all that has happened, and the run against what it is to be worth."""
    try:
        stays = plan.lossless or plan.server != "nbdkit" or plan.by not in ("kill", "term")
        load.oracle.check_final(victim.stamps(), lossless=stays)
    except Broken as broken:
        report.problem(f"in the end: {broken}")
    if plan.lossless or not load.oracle.losses:
        inversions = load.oracle.inversions()
        report.counts["inversions"] = len(inversions)
        if plan.atomic and inversions:
            report.problem(f"{len(inversions)} inversions, such as: {inversions[0]}")
    if not report.problems and (why := why_in_vain(plan, report)):
        report.problem(why)


def why_in_vain(plan: Plan, report: Report) -> str:
    """Say why a run proves nothing so far; empty, if it does."""
    # What one leaves who goes without a FLUSH is flushed, unless the server is killed at that very moment.
    loses = plan.server == "nbdkit" and plan.by == "kill" and plan.kills and not plan.readers
    return NOTHING_LOST if loses and not sum(report.lost) else ""


def main() -> int:
    """Give the exit status: 0 as it should be, 1 not, 2 if it could not begin."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.kill_run")
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--server", choices=("nbdkit", "qemu-nbd", COMMAND), default="nbdkit")
    parser.add_argument("--by", choices=("kill", "term", "cut", "stop", *OURS), default="kill")
    parser.add_argument("--upgrades", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--homeless", action="store_true", help="has to end with 1")
    parser.add_argument("--silent", action="store_true", help="a worker is, at each kill")
    parser.add_argument("--stop-seconds", type=float, default=1)
    parser.add_argument("--late-write-seconds", type=float, default=0)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=100, help="in all, about")
    parser.add_argument("--seed", type=int, help="another one each time, unless it is given")
    parser.add_argument("--without-survival", action="store_true", help="has to end with 1")
    parser.add_argument(
        "--defaults", action="store_true", help="other keys as the product has them"
    )
    parser.add_argument("--readers", action="store_true", help="only one writes, and leaves")
    parser.add_argument("--connections", default="shared", help="per-client, 4, shared, shared:4")
    parser.add_argument("--replay-bytes", default="1M", help="small: many internal FLUSHes")
    parser.add_argument("--write-delay-ms", type=int, default=0, help="of nbdkit: long FLUSHes")
    parser.add_argument("--tcp", action="store_true", help="between gateway and server")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=256)
    parser.add_argument("--coarse", action="store_true", help="nbdkit takes whole 4 KiB only")
    parser.add_argument("--template", default="", help="more lines of the upstream's configuration")
    parser.add_argument("--atomic", action="store_true", help="inversions are wrong, too")
    parser.add_argument("--log", action="store_true", help="show what the gateway said")
    said = vars(parser.parse_args())
    show = said.pop("log")
    said["homes"] = not said.pop("homeless")
    said["survival"] = not said.pop("without_survival")
    if said["seed"] is None:
        said["seed"] = Random().randrange(10**6)
    plan = Plan(**said)
    print(f"seed {plan.seed}", flush=True)
    report = None
    try:
        with tempfile.TemporaryDirectory(prefix="nbd-") as name:
            report = trio.run(run, plan, Path(name))
    except* CannotStart as group:
        print(*group.exceptions, sep="\n")
    if report is None:
        return 2
    if show:
        print(report.gateway)
    print(report)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())

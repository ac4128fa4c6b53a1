"""`python -m tests.tools.restart_run`: a real server is killed with -9 and started again, at random moments and
often while the gateway negotiates with it; nobody may notice.

    --server qemu-nbd   it opens its export at once
    --server nbdkit     it takes a moment for that (its delay filter), so that many kills come at an option

In front of it stands the gateway. One client has a session all the time, reads, and asks for base:allocation.
Others come, one after the other, ask for base:allocation as well, look, and leave. The session must not end,
every one of the others has to be served and to have its context, and each answer has to be right.

Half of the kills come when both have been served since the start before, the others soon after that, or soon
after the server listens.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

import trio

from gateway.wire.constants import BASE_ALLOCATION
from gateway.wire.transmission import DISC
from tests.embedded.peers import Client
from tests.interop.processes import Process
from tests.interop.servers import unix_uri
from tests.tools.findings import Findings
from tests.tools.victims import CannotStart, listens

SIZE = 1 << 20

SOON_SECONDS = 0.04
"""So long after its start a server is being asked for the export by all who waited for it."""

AWAY_SECONDS = 0.05
"""So long it is away at most: a connection that dies is seldom followed by one that is refused, then."""

SERVED = ("looks of the session", "clients with their context")
"""What is counted."""

ANSWER_SECONDS = 60
"""An answer that is not there by then will not come."""

WRONG = (trio.TooSlowError, trio.BrokenResourceError, AssertionError, ValueError, EOFError, OSError)
"""What it looks like to a client if anything is wrong."""

CONFIG = """\
[[listen]]
uri = "{listen}"
[upstream.main]
uri = "{server}"
connect-seconds = 30
connections = {connections}
"""


@dataclass(frozen=True)
class Plan:
    """What is done."""

    server: str = "qemu-nbd"
    restarts: int = 8
    seed: int = 0
    connections: str = "per-client"
    open_ms: int = 30
    """How long nbdkit takes to open its export."""


@dataclass
class Report(Findings):
    """How it went."""

    plan: Plan
    gateway: str = ""
    """What the gateway said."""

    def __str__(self) -> str:
        head = f"{self.plan.server}, {self.plan.connections}, seed {self.plan.seed}"
        return "\n".join([head, f"  {self.counted}", *self.wrong])


def command_of(plan: Plan, disk: Path, path: Path) -> list[str]:
    """How the server is started."""
    if plan.server == "qemu-nbd":
        shared = ["qemu-nbd", "--persistent", "--shared=0"]
        return [*shared, "-f", "raw", "-k", str(path), str(disk)]
    slow = ["--filter=delay", "file", str(disk), f"delay-open={plan.open_ms}ms"]
    return ["nbdkit", "--foreground", "-U", str(path), *slow]


async def connected(path: Path) -> Client:
    """A client of the gateway that has asked for base:allocation, and has it."""
    client = Client(await trio.open_unix_socket(path))
    try:
        await client.structured()
        client.negotiation.ask_contexts("", [BASE_ALLOCATION], select=True)
        contexts = (await client.answered()).contexts
        assert [each.name for each in contexts] == [BASE_ALLOCATION], f"selected: {contexts}"
        client.negotiation.go("", [])
        await client.answered()
    except BaseException:
        await trio.aclose_forcefully(client.stream)
        raise
    return client


async def look(client: Client) -> None:
    """Read, and ask for the status."""
    assert await client.read(0, 512) == bytes(512), "a READ gives what was never written"
    [status] = (await client.status(0, SIZE)).values()
    assert sum(length for length, _flags in status) == SIZE, f"BLOCK_STATUS gives {status}"


@dataclass
class Load:
    """The clients. Each finishes what it has begun when they are `stopping`."""

    path: Path
    report: Report
    stopping: bool = False

    async def is_served(self) -> None:
        """Wait until the session and one of the others have been served once more."""
        before = Counter(self.report.counts)
        with trio.move_on_after(2 * ANSWER_SECONDS):  # else what is wrong has been told
            while any(self.report.counts[what] == before[what] for what in SERVED):
                await trio.sleep(0.001)

    async def stays(self) -> None:
        """Be the one that is there all the time."""
        client = await connected(self.path)
        async with client.stream:
            try:
                while not self.stopping:
                    with trio.fail_after(ANSWER_SECONDS):
                        await look(client)
                    self.report.counts[SERVED[0]] += 1
            except WRONG as error:
                self.report.problem(f"the session has ended: {error!r}")

    async def come_and_go(self) -> None:
        """Be all the others."""
        while not self.stopping:
            try:
                with trio.fail_after(ANSWER_SECONDS):
                    client = await connected(self.path)
                    async with client.stream:
                        await look(client)
                        await client.stream.send_all(DISC)
                self.report.counts[SERVED[1]] += 1
            except WRONG as error:
                self.report.problem(f"a client was not served: {error!r}")


async def restarts(plan: Plan, command: list[str], path: Path, report: Report, load: Load) -> None:
    """Kill the server and start it, so often; it runs when this ends, and has served all."""
    chance = Random(plan.seed)
    process = Process(*command)
    for _ in range(plan.restarts):
        if chance.random() < 0.5:
            await load.is_served()
        elif chance.random() < 0.5:
            await listens(process, unix_uri(path))
        await trio.sleep(SOON_SECONDS * chance.random())
        process.kill()
        Process.started.remove(process)
        path.unlink(missing_ok=True)
        await trio.sleep(AWAY_SECONDS * chance.random())
        process = Process(*command)
        report.counts["restarts"] += 1
    await load.is_served()


async def run(plan: Plan, workdir: Path) -> Report:
    """Do it. Raises `CannotStart`."""
    report = Report(plan)
    disk, path, ours = workdir / "disk", workdir / "server", workdir / "gateway"
    with disk.open("wb") as file:
        file.truncate(SIZE)
    command = command_of(plan, disk, path)
    quoted = plan.connections if plan.connections.isdigit() else f'"{plan.connections}"'
    config = workdir / "gateway.toml"
    config.write_text(
        CONFIG.format(listen=unix_uri(ours), server=unix_uri(path), connections=quoted)
    )
    load = Load(ours, report)
    gateway = Process(sys.executable, "-m", "gateway", "serve", "--config", config)
    try:
        await listens(gateway, unix_uri(ours))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.stays)
            nursery.start_soon(load.come_and_go)
            await restarts(plan, command, path, report, load)
            load.stopping = True
        status = gateway.stop()
        report.gateway = gateway.output
        if status or "Traceback" in report.gateway:
            report.problem(f"the gateway ended with {status}:\n{report.gateway[-2000:]}")
    finally:
        gateway.kill()
        for process in [each for each in Process.started if each.command == command]:
            process.kill()
            Process.started.remove(process)
        Process.started.remove(gateway)
    for what in SERVED:
        if not report.counts[what]:
            report.problem(f"no {what}, which proves nothing")
    return report


def main() -> int:
    """Give the exit status: 0 as it should be, 1 not, 2 if it could not begin."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.restart_run")
    parser.add_argument("--server", choices=("qemu-nbd", "nbdkit"), default="qemu-nbd")
    parser.add_argument("--restarts", type=int, default=200)
    parser.add_argument("--seed", type=int, help="another one each time, unless it is given")
    parser.add_argument("--connections", default="per-client", help="shared, 4, shared:4")
    parser.add_argument("--open-ms", type=int, default=30, help="how long nbdkit takes to open")
    parser.add_argument("--log", action="store_true", help="show what the gateway said")
    said = vars(parser.parse_args())
    show = said.pop("log")
    if said["seed"] is None:
        said["seed"] = Random().randrange(10**6)
    report = None
    try:
        with tempfile.TemporaryDirectory(prefix="nbd-") as name:
            report = trio.run(run, Plan(**said), Path(name))
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

"""`python -m tests.tools.reconnect_run`: many clients come and go for minutes, in every way; then each process
of the gateway has as many descriptors, tasks and objects as it had before, and memory that does not grow.

Each client comes again as soon as it has left: it only looks, asks for what is not there, works and says DISC,
works over TLS, goes in the middle of its commands, or in the middle of the negotiation. The disks have their
homes in several workers, so about half of the clients are handed over, and half of those over TLS are relayed.

Descriptors and tasks are held against what the gateway had before anybody came. All else is held against what
it had after a first crowd: all clients at the same time, and then in every way. By then it has its buffers,
and has loaded what it needs. All is counted when the last client has been seen off.

Two things are asked of memory. What is *in use* has to be what it was: Python's objects and blocks
(`sys.getallocatedblocks`), and what libc's malloc has given and not got back (mallinfo(3)). That is where a
leak shows, by the smallest thing that each client leaves behind. Receive buffers are counted apart: of those
that were needed at the same time up to 16 of a megabyte are kept (`gateway.hub.lane`), so for a while any crowd
may leave more of them than the one before. What a process *has* of the kernel is more, by what lies between: a
page goes back only when nothing in it is in use. How much that is depends on who was there last beside what
stays, so it goes up and down from crowd to crowd. It must not climb: so several crowds of one size come, one
after the other, and what is there after the later ones is held against the earlier ones'.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import ssl
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median

import trio

from gateway.embedded import Server
from gateway.embedded.disk import MemoryDisk
from gateway.hub.lane import BUFFER_BYTES, MAX_FREE_BUFFERS
from gateway.protocol.client_role import Refused
from gateway.wire.constants import Cmd, Errno
from tests.bench.processes import allow_many_files
from tests.embedded.peers import BLOCK_SIZE, Client
from tests.tools.patience import HANG_SECONDS
from tests.workers.running import Gateway, gateway, python_path, server_at, until

COUNTING = Path(__file__).parent / "counting"
"""What has the processes count their tasks and objects."""

SIZE = 1 << 20
NAMES = [f"d{number}" for number in range(16)]
LENGTH = 4096

LOOK_SECONDS = 0.25
"""How often it is looked whether all is back, and whether it has counted."""

MORE_OBJECTS = 600
"""So many more objects a process may have, by chance: a session that is left behind has dozens."""

MORE_BLOCKS = 3000
"""So many more blocks of Python's, as for objects: most objects are one or two."""

MORE_MALLOCED = 1 << 20
"""So much more of malloc's: buffers that are kept to be used again, and tables that have grown."""

MOST_BUFFERS = MAX_FREE_BUFFERS * BUFFER_BYTES
"""No more than these are kept."""

MORE_BYTES = 4 << 20
"""So much more memory after later crowds than after earlier ones, by chance."""

FIRST_TIMES = 3
"""How many clients have come for each that is there at a time, before memory is counted from: with fewer the
allocator has not had as much in pieces as it will have.
"""

FIRST_LEAST = 300
"""So many at least, or in some process nobody may have come in one of the ways."""

WAYS = {"look": 3, "unknown": 1, "work": 10, "tls": 2, "cut": 5, "half": 2}
"""What a client does, and how often."""

CONFIG = """\
[[listen]]
uri = "nbd+unix:///?socket={at}/p.sock"
handshake-seconds = {hang:g}
max-connections = 20000
[[listen]]
uri = "nbds+unix:///?socket={at}/t.sock"
handshake-seconds = {hang:g}
certificates = "{pki}"
verify-client = false
max-connections = 20000
[upstream.u]
uri = "nbd+unix:///?socket={at}/u.sock"
canonical-names = true
connect-seconds = {hang:g}
late-write-seconds = 0
[log]
level = "error"
"""


@dataclass
class Plan:
    """What is done: for so many seconds, and until so many clients have been served."""

    clients: int = 1000
    seconds: float = 300
    served: int = 0
    workers: int = 2
    crowds: int = 5
    """So many times, in equal parts of both."""
    seed: int = 0

    @property
    def longest_seconds(self) -> float:
        """If it takes longer than this, it hangs."""
        return (1 + self.crowds) * HANG_SECONDS + 3 * self.seconds


@dataclass
class Counts:
    """What a process has."""

    descriptors: int
    tasks: int
    objects: int
    blocks: int
    malloced: int
    buffers: int
    """Of bytes in receive buffers."""
    anonymous_bytes: int

    @property
    def malloced_else(self) -> int:
        """What malloc has given for anything else."""
        return self.malloced - self.buffers

    @property
    def else_bytes(self) -> int:
        """What the process has of the kernel for anything else."""
        return self.anonymous_bytes - self.buffers


@dataclass
class Row:
    """One process: at the start, when all had been there once, and after each crowd."""

    name: str
    first: Counts
    warm: Counts
    crowds: list[Counts]


@dataclass
class Report:
    """How it went."""

    plan: Plan
    problems: list[str] = field(default_factory=list)
    ways: Counter[str] = field(default_factory=Counter)
    most_connected: int = 0
    rows: list[Row] = field(default_factory=list)

    def __str__(self) -> str:
        ways = ", ".join(f"{count} {way}" for way, count in sorted(self.ways.items()))
        lines = [f"{self.ways.total()} clients came, at most {self.most_connected} at once: {ways}"]
        lines.append(
            f"{'process':12}{'descriptors':>14}{'tasks':>12}{'objects':>18}{'blocks':>20}"
            f"{'malloced KiB':>18}{'buffers':>10}  MiB from crowd to crowd"
        )
        for row in self.rows:
            first, warm, last = row.first, row.warm, row.crowds[-1]
            lines.append(
                f"{row.name:12}"
                f"{f'{first.descriptors} -> {last.descriptors}':>14}"
                f"{f'{first.tasks} -> {last.tasks}':>12}"
                f"{f'{warm.objects} -> {last.objects}':>18}"
                f"{f'{warm.blocks} -> {last.blocks}':>20}"
                f"{f'{warm.malloced_else >> 10} -> {last.malloced_else >> 10}':>18}"
                f"{f'{warm.buffers >> 20} -> {last.buffers >> 20}':>10}  "
                + " ".join(f"{each.else_bytes / 2**20:.1f}" for each in (warm, *row.crowds))
            )
        return "\n".join(lines + [f"  WRONG: {problem}" for problem in self.problems])


class Crowd:
    """Clients that come and go."""

    def __init__(self, plan: Plan, at: Path, report: Report) -> None:
        self._plan, self._at, self._report = plan, at, report
        self._random = Random(plan.seed)
        self._context = ssl.create_default_context(cafile=str(at / "pki" / "ca-cert.pem"))
        self._context.check_hostname = False
        self._there = 0
        self._stopping = False

    async def first(self) -> None:
        """Have all be there at the same time, and leave, and then as many come in every way."""
        await self._all_at_once()
        await self.come_and_go(0, max(FIRST_LEAST, FIRST_TIMES * self._plan.clients))

    async def _all_at_once(self) -> None:
        together, left = trio.Event(), self._plan.clients

        async def one(number: int) -> None:
            nonlocal left
            async with await self._connected("p.sock") as stream:
                client = Client(stream)
                await client.go(NAMES[number % len(NAMES)])
                await client.read(0, LENGTH)
                left -= 1
                if not left:
                    together.set()
                await together.wait()
                await client.send(Cmd.DISC)

        async with trio.open_nursery() as nursery:
            for number in range(self._plan.clients):
                nursery.start_soon(one, number)

    async def come_and_go(self, seconds: float, served: int) -> None:
        """Have all come again and again for so long, and until so many were served."""
        wanted, self._stopping = self._report.ways.total() + served, False
        async with trio.open_nursery() as nursery:
            for _ in range(self._plan.clients):
                nursery.start_soon(self._again_and_again)
            await trio.sleep(seconds)
            while self._report.ways.total() < wanted and not self._report.problems:
                await trio.sleep(LOOK_SECONDS)
            self._stopping = True

    async def _again_and_again(self) -> None:
        while not self._stopping:
            [way] = self._random.choices([*WAYS], [*WAYS.values()])
            try:
                await getattr(self, f"_{way}")(self._random.choice(NAMES))
            except (OSError, EOFError, AssertionError, trio.BrokenResourceError) as error:
                self._report.problems.append(f"{way}: {error!r}")
                return
            self._report.ways[way] += 1
            self._report.most_connected = max(self._report.most_connected, self._there)

    async def _connected(self, name: str) -> trio.SocketStream:
        while True:
            try:
                return await trio.open_unix_socket(str(self._at / name))
            except (
                BlockingIOError
            ):  # a Unix socket's queue is full: nobody waits for that in the kernel
                await trio.sleep(LOOK_SECONDS)

    async def _look(self, _name: str) -> None:
        async with await self._connected("p.sock") as stream:
            await Client(stream).greeting()

    async def _unknown(self, _name: str) -> None:
        async with await self._connected("p.sock") as stream:
            client = Client(stream)
            await client.structured()
            client.negotiation.go("nobody has this", BLOCK_SIZE)
            assert isinstance(await client.event(), Refused)

    async def _half(self, name: str) -> None:
        async with await self._connected("p.sock") as stream:
            client = Client(stream)
            await client.structured()
            client.negotiation.go(name, ())
            await stream.send_all(client.negotiation.data_to_send())
            await trio.aclose_forcefully(stream)

    async def _work(self, name: str) -> None:
        async with await self._connected("p.sock") as stream:
            client = Client(stream)
            await client.go(name)
            await self._worked(client)

    async def _tls(self, name: str) -> None:
        async with await self._connected("t.sock") as stream:
            client = Client(stream)
            await client.greeting()
            client.negotiation.ask_starttls()
            await client.answered()
            secure = trio.SSLStream(stream, self._context, https_compatible=True)
            over = Client(secure)  # type: ignore[arg-type] # it has what is needed of a plain one
            over.negotiation = client.negotiation.secured()
            over.negotiation.go(name, BLOCK_SIZE)
            await over.answered()
            await self._worked(over)

    async def _worked(self, client: Client) -> None:
        self._there += 1
        try:
            place = self._random.randrange(SIZE // LENGTH) * LENGTH
            await _done(client, Cmd.WRITE, place, data=b"x" * LENGTH)
            await _done(client, Cmd.READ, place, LENGTH)
            await _done(client, Cmd.FLUSH)
            await client.send(Cmd.DISC)
            assert await client.rest() == b""
        finally:
            self._there -= 1

    async def _cut(self, name: str) -> None:
        async with await self._connected("p.sock") as stream:
            client = Client(stream)
            await client.go(name)
            for number in range(4):
                await client.send(Cmd.WRITE, number * LENGTH, data=b"y" * LENGTH)
                await client.send(Cmd.READ, 0, SIZE // 4)
            await trio.aclose_forcefully(stream)


async def _done(
    client: Client, command: Cmd, offset: int = 0, length: int = 0, data: bytes = b""
) -> None:
    """Have a command done. A FLUSH may tell that another client's connection was lost with what it had written,
    and a READ of that fails: where all processors are busy, a server may not have answered in time.
    """
    error = await client.error(command, offset, length, data=data)
    told = command in (Cmd.FLUSH, Cmd.READ) and error == Errno.EIO
    assert not error or told, f"{command.name} has failed with {error}"


class Census:
    """Counts what each process of a gateway has."""

    def __init__(self, running: Gateway, folder: Path) -> None:
        self._running, self._folder = running, folder

    async def taken(self) -> dict[str, Counts]:
        """Give what each has now."""
        pids = await self._running.pids()
        named = {f"worker {number}": pid for number, pid in enumerate(pids)}
        named["supervisor"] = self._running.process.pid
        return {name: await self._counted(pid) for name, pid in named.items()}

    async def _counted(self, pid: int) -> Counts:
        at = self._folder / str(pid)
        at.unlink(missing_ok=True)
        os.kill(pid, signal.SIGRTMIN)

        async def is_there() -> bool:
            return at.exists()

        await until(is_there)
        said: dict[str, int] = json.loads(at.read_text())
        status = Path(f"/proc/{pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("RssAnon:")]
        descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        return Counts(descriptors, anonymous_bytes=int(line.split()[1]) << 10, **said)

    async def settled(self, wanted: Callable[[dict[str, Counts]], bool]) -> dict[str, Counts]:
        """Give what each has when nobody is there any more and it is as wanted; or, after `HANG_SECONDS`, what
        it is then.
        """
        found: dict[str, Counts] = {}
        with trio.move_on_after(HANG_SECONDS / 3):
            while True:
                status = await self._running.status()
                gone = not any(each["clients"] for each in status["listeners"])
                if gone and not status["sessions"]:
                    found = await self.taken()
                    if wanted(found):
                        break
                await trio.sleep(LOOK_SECONDS)
        return found or await self.taken()


def is_back(first: dict[str, Counts]) -> Callable[[dict[str, Counts]], bool]:
    """Give what says whether descriptors and tasks are as they were."""

    def said(now: dict[str, Counts]) -> bool:
        return all(
            (now[name].descriptors, now[name].tasks) == (each.descriptors, each.tasks)
            for name, each in first.items()
        )

    return said


async def run(plan: Plan, at: Path) -> Report:
    """Do all of it, in a folder."""
    report = Report(plan)
    folder = at / "counts"
    folder.mkdir()
    make = [sys.executable, "-m", "gateway", "pki", "init", str(at / "pki")]
    await trio.run_process(make, capture_stdout=True)
    server = Server({name: MemoryDisk(SIZE) for name in NAMES})
    text = CONFIG.format(at=at, pki=at / "pki", hang=HANG_SECONDS)
    environment = {"COUNTS": str(folder), "PYTHONPATH": python_path(COUNTING)}
    async with (
        server_at(at / "u.sock", server),
        gateway(
            at, text, workers=plan.workers, environment=environment, seconds=plan.longest_seconds
        ) as running,
    ):
        crowd, census = Crowd(plan, at, report), Census(running, folder)
        first = await census.taken()
        await crowd.first()
        warm = await census.settled(is_back(first))
        crowds = []
        for _ in range(plan.crowds):
            await crowd.come_and_go(plan.seconds / plan.crowds, plan.served // plan.crowds)
            crowds.append(await census.settled(is_back(first)))
        report.rows = [
            Row(name, first[name], warm[name], [each[name] for each in crowds]) for name in first
        ]
        report.problems += [problem for row in report.rows for problem in left_over(row)]
    return report


def left_over(row: Row) -> list[str]:
    """Say what a process has more than it had."""
    first, warm, last = row.first, row.warm, row.crowds[-1]
    has = [each.else_bytes for each in row.crowds]
    earlier, later = has[: (len(has) + 1) // 2], has[len(has) // 2 :]
    held = [
        ("descriptors", first.descriptors, last.descriptors, 0),
        ("tasks", first.tasks, last.tasks, 0),
        ("objects", warm.objects, last.objects, MORE_OBJECTS),
        ("blocks", warm.blocks, last.blocks, MORE_BLOCKS),
        ("bytes of malloc's", warm.malloced_else, last.malloced_else, MORE_MALLOCED),
        ("bytes in buffers", 0, last.buffers, MOST_BUFFERS),
        ("bytes of memory", round(median(earlier)), round(median(later)), MORE_BYTES),
    ]
    return [
        f"{row.name}: {before} {what} before, {now} in the end"
        for what, before, now, more in held
        if now > before + more
    ]


def main() -> int:
    """Give the exit status: 0 if all is back, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.reconnect_run")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--served", type=int, default=0, help="not before so many were served")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--crowds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=Random().randrange(10**6))
    plan = Plan(**vars(parser.parse_args()))
    print(f"seed {plan.seed}", flush=True)
    allow_many_files()
    with tempfile.TemporaryDirectory(prefix="nbd-") as name:
        report = trio.run(run, plan, Path(name))
    print(report)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())

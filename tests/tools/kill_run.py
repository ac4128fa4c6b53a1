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
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Protocol

import trio

from gateway.admin.asking import ask
from gateway.wire.constants import Cmd, CmdFlag, Errno, name_of
from gateway.wire.constants import TransmissionFlag as Flag
from tests.embedded.peers import Client
from tests.interop.processes import Process, listening
from tests.interop.servers import free_port, unix_uri
from tests.interop.upgraded import lives
from tests.tools.cutter import Address, Relay, Towards, cutter
from tests.tools.history import NEVER, Op, Session
from tests.tools.oracle import Oracle
from tests.tools.patience import HANG_SECONDS
from tests.tools.stamps import BLOCK_BYTES, Broken, stamps_of

ROOT = Path(__file__).parents[2]
HOMELESS = ROOT / "tests" / "workers" / "homeless"
"""What takes the homes away from workers."""

LONGEST_BLOCKS = 8
"""Of one command: two of nbdkit's cache, which has blocks of 4 KiB."""

REPLY_SECONDS = 90
"""A reply that is not there by then will not come: more than `reconnect-seconds`."""

MOST_TIMES = 5
"""As many kills as are wanted, before a run has been in vain."""

BEGUN_AGAIN_SECONDS = 30
"""For a worker that has died soon is begun again only after a while, or a gateway, on a busy machine."""

AT_WORK = 50
"""WRITEs that are answered between two kills of the gateway, but for those that come at once."""

MOST_PROBLEMS = 5
"""So many are enough to know."""

FINAL_FLUSHES = 4
"""How often a session may be told of losses in the end: once by each kill that it has not asked after, and they
are told together. Several, for kills that overlapped with a FLUSH."""

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

NOTHING_LOST = "no kill has lost anything, so that this run proves nothing"

ENDS_WITH_ITS_LINK = "reconnect-seconds = 0\n"

NOBODY_CAME_FROM_ELSEWHERE = (
    "no client has come to another worker than its disk's home, so that this run proves nothing"
)

CONTROL = """\
[control]
socket = "{control}"
"""

COARSE_BYTES = 4096
"""Of a block, with `--coarse`: the cache filter's own."""

SURVIVAL = """\
connections = {connections}
unflushed = "{mode}"
"""

TIMES = """\
late-write-seconds = {late_write_seconds:g}
reconnect-seconds = 60
"""

REPLAY = """\
sole-writer = true
replay-bytes = "{replay_bytes}"
"""

COMMAND = "command"

OURS = ("worker", "supervisor")
"""What is killed of the gateway itself."""

MODES = ("replay", "sticky", "verify", "assume-durable")
WEIGHTS = {"write": 50, "read": 25, "fua": 4, "zero": 5}
FLUSH_WEIGHTS = (0.1, 1.0, 12.0)
"""One of them until the next kill. While nbdkit flushes it does nothing else, so where there are many FLUSHes
most kills hit one, and hardly anything that was acknowledged is in its cache only.
"""


@dataclass(frozen=True)
class Plan:
    """What is done. `seconds` are those between the first kill and the last, about."""

    mode: str
    server: str = "nbdkit"
    by: str = "kill"
    """Or "term", "cut", "stop", "worker" or "supervisor"."""
    upgrades: int = 0
    workers: int = 1
    homes: bool = True
    silent: bool = False
    """One of the workers is stopped while the server is killed."""
    stop_seconds: float = 1
    late_write_seconds: float = 0
    """0 is right only where the old server is dead, so not with "cut"."""
    kills: int = 3
    seconds: float = 6
    seed: int = 0
    survival: bool = True
    defaults: bool = False
    until_wrong: bool = False
    """The load goes on until something is wrong."""
    readers: bool = False
    """Only who leaves without a FLUSH writes."""
    connections: str = "shared"
    replay_bytes: str = "1M"
    write_delay_ms: int = 0
    """What nbdkit's cache waits for each block that it writes back, so that FLUSH takes longer."""
    tcp: bool = False
    clients: int = 2
    """Beside the one that leaves."""
    depth: int = 4
    """Commands of each client under way."""
    blocks: int = 256
    coarse: bool = False
    """nbdkit takes blocks of `COARSE_BYTES` only."""
    atomic: bool = False
    """Values that come back after newer ones were read are wrong, too, where nothing may be lost."""
    template: str = ""
    """More of the upstream's configuration, or instead of ours with `survival` false."""

    @property
    def lossless(self) -> bool:
        """Nobody may miss anything."""
        return self.mode in ("replay", "assume-durable") or self.by in ("stop", *OURS)

    @property
    def most_kills(self) -> int:
        """So many, if the first ones have lost nothing: a busy machine writes little."""
        return MOST_TIMES * self.kills

    @property
    def grain(self) -> int:
        """Blocks that the server takes together."""
        return COARSE_BYTES // BLOCK_BYTES if self.coarse else 1

    def in_steps(self, start: int, count: int) -> bool:
        """Say whether a write has parts of blocks."""
        return bool(start % self.grain or count % self.grain)

    @property
    def cuts(self) -> bool:
        """Sessions end that nobody has ended."""
        return not self.survival or self.by in OURS or self.upgrades > 0

    @property
    def config_survival(self) -> str:
        if not self.survival:
            return ENDS_WITH_ITS_LINK + self.template
        count = self.connections
        lines = SURVIVAL.format(
            connections=count if count.isdigit() else f'"{count}"',
            mode=self.mode,
        )
        if not self.defaults:
            lines += TIMES.format(late_write_seconds=self.late_write_seconds)
        if self.mode == "replay":
            lines += REPLAY.format(replay_bytes=self.replay_bytes)
        return lines + self.template


@dataclass
class Report:
    """How it went."""

    plan: Plan
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Commands that were answered, and what else there is to count."""
    lost: list[int] = field(default_factory=list)
    """At each kill: blocks on which something acknowledged was lost."""
    gateway: str = ""
    """What the gateway said."""

    def problem(self, text: str) -> None:
        """Note what is wrong."""
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(text)

    def __str__(self) -> str:
        plan = self.plan
        counts = ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))
        how = "" if plan.survival else " without survival"
        lines = [
            f"{plan.server}, {plan.mode}{how}, by {plan.by}, seed {plan.seed}",
            f"  {counts}",
        ]
        if self.lost:
            lines.append(f"  {len(self.lost)} kills lost acknowledged writes on {self.lost} blocks")
        return "\n".join(lines + [f"  WRONG: {problem}" for problem in self.problems])


TERM_AGAIN_SECONDS = 1.0
"""qemu-nbd does not hear a SIGTERM that comes when it listens already and has not begun to run."""

TERM_SECONDS = 20
"""How long a server may take to go in good order: nbdkit waits until its clients have left."""

AIMS = ("anywhere", "anywhere", "flush", "flush", "again", "left", "left")
"""What a kill is to hit."""

UPGRADE_SECONDS = 120
"""How long one may take: sessions that wait for a server have `drain-seconds` (30), and two programs start."""

AIM_SECONDS = 1
"""So long it waits for that."""

MOST_WRITTEN = 12
"""Commands of one who is about to leave."""

MOST_AWAY_SECONDS = 0.5
"""How long whoever has left stays away: some kills come meanwhile."""


# --- The server


class Killed(Protocol):
    """A server that is killed."""

    address: Address
    """Where it is."""
    said: str
    """How the configuration has it."""

    async def start(self) -> None:
        """Start it; when this returns it listens."""

    def kill(self) -> None:
        """kill -9; when this returns it is dead."""

    async def terminate(self) -> None:
        """SIGTERM; when this returns it is dead. Raises `Broken` if its clients have not let it go."""

    async def stop(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""

    def stamps(self) -> list[int]:
        """What is on the disk. Raises `Broken`."""


class Victim:
    """One that we start."""

    def __init__(self, plan: Plan, workdir: Path) -> None:
        self.disk = workdir / "disk"
        with self.disk.open("wb") as file:
            file.truncate(plan.blocks * BLOCK_BYTES)
        self._path = workdir / "server"
        port = free_port() if plan.tcp else 0
        self.uri = f"nbd://127.0.0.1:{port}" if plan.tcp else unix_uri(self._path)
        self.said = f'uri = "{self.uri}"'
        self.address: Address = ("127.0.0.1", port) if plan.tcp else self._path
        if plan.server == "nbdkit":
            where = ("-i", "127.0.0.1", "-p", str(port)) if plan.tcp else ("-U", str(self._path))
            coarse = ["--filter=blocksize-policy"] if plan.coarse else []
            self._command = ["nbdkit", "--foreground", *where, *coarse, "--filter=cache"]
            delay = [f"delay-write={plan.write_delay_ms}ms"] if plan.write_delay_ms else []
            if delay:
                self._command.append("--filter=delay")
            self._command += ["file", str(self.disk), "cache=writeback", "cache-on-read=false"]
            self._command += delay
            if plan.coarse:
                self._command += [f"blocksize-minimum={COARSE_BYTES}"]
                self._command += [f"blocksize-preferred={COARSE_BYTES}"]
                self._command += ["blocksize-error-policy=error"]
        else:
            where = ("-b", "127.0.0.1", "-p", str(port)) if plan.tcp else ("-k", str(self._path))
            self._command = ["qemu-nbd", "--persistent", "--shared=0", "--cache=writeback"]
            self._command += ["--discard=unmap", "-f", "raw", *where, str(self.disk)]
        self._process: Process | None = None

    async def start(self) -> None:
        """Start it; when this returns it listens."""
        self._path.unlink(missing_ok=True)
        process = self._process = Process(*self._command)
        await listens(process, self.uri)

    def kill(self) -> None:
        """kill -9; when this returns it is dead."""
        if self._process is not None:
            self._process.kill()
            Process.started.remove(self._process)
            self._process = None

    async def terminate(self) -> None:
        """SIGTERM; when this returns it is dead. Raises `Broken` if its clients have not let it go."""
        assert self._process is not None
        with trio.move_on_after(TERM_SECONDS) as limit:
            while self._process.running:
                self._process.signal(signal.SIGTERM)
                with trio.move_on_after(TERM_AGAIN_SECONDS):
                    while self._process.running:
                        await trio.sleep(0.002)
        self.kill()
        if limit.cancelled_caught:
            raise Broken(f"the server has not gone in {TERM_SECONDS} s")

    async def stop(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        assert self._process is not None
        self._process.signal(signal.SIGSTOP)
        try:
            await trio.sleep(seconds)
        finally:
            self._process.signal(signal.SIGCONT)

    def stamps(self) -> list[int]:
        """What is on the disk. Raises `Broken`."""
        return stamps_of(self.disk.read_bytes())


class Child:
    """One that the gateway starts, and starts again: `command`."""

    def __init__(self, plan: Plan, workdir: Path) -> None:
        self.disk = workdir / "disk"
        with self.disk.open("wb") as file:
            file.truncate(plan.blocks * BLOCK_BYTES)
        self.address: Address = workdir / "none"
        words = ["qemu-nbd", "-t", "-e", "0", "-x", "", "--cache=writeback", "--discard=unmap"]
        self.said = f"command = {json.dumps([*words, '-f', 'raw', str(self.disk)])}"

    def _numbers(self) -> list[int]:
        found = []
        for each in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (each / "cmdline").read_bytes().split(b"\0")
                if words[0] == b"qemu-nbd" and str(self.disk).encode() in words:
                    found.append(int(each.name))
        return found

    async def start(self) -> None:
        """The gateway does that."""

    def kill(self) -> None:
        """kill -9; when this returns it is dead."""
        killed = self._numbers()
        for number in killed:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        while any(map(lives, killed)):  # that takes no time
            pass

    async def terminate(self) -> None:
        """There is no such run."""
        raise NotImplementedError

    async def stop(self, seconds: float) -> None:
        """Nor such."""
        raise NotImplementedError

    def stamps(self) -> list[int]:
        """What is on the disk. Raises `Broken`."""
        return stamps_of(self.disk.read_bytes())


async def listens(process: Process, uri: str) -> None:
    """Wait until somebody listens there."""
    with trio.fail_after(HANG_SECONDS):
        while not listening(uri):
            if not process.running:
                raise CannotStart(f"{' '.join(process.command)} ended:\n{process.output}")
            await trio.sleep(0.002)  # the kernel's table of sockets offers no event


class CannotStart(Exception):
    """A program that is needed has ended at once."""


# --- The load


class Left(Exception):
    """A connection is at its end."""


GONE = (OSError, EOFError, trio.BrokenResourceError, trio.TooSlowError, AssertionError)
"""What else that may look like."""


class Connection:
    """One session: commands with `ask`, of which any number may be under way."""

    def __init__(self, client: Client, session: Session, load: Load) -> None:
        self.session = session
        self._client = client
        self._load = load
        self._sending = trio.Lock()
        self._answers: dict[int, trio.MemorySendChannel[tuple[int, bytes]]] = {}

    async def ask(self, op: Op, command: Cmd, *, flags: int = 0) -> int:
        """Send what was begun, and end it with its reply; give the error, 0 for none. Raises `Left`."""
        answered, answer = trio.open_memory_channel[tuple[int, bytes]](1)
        offset, length = op.start * BLOCK_BYTES, op.count * BLOCK_BYTES
        try:
            with answered, answer, trio.fail_after(REPLY_SECONDS):
                async with self._sending:
                    cookie = self._load.cookie()
                    self._answers[cookie] = answered
                    data = op.data if command is Cmd.WRITE else b""
                    await self._client.send(
                        command, offset, length, flags=flags, data=data, cookie=cookie
                    )
                if command is Cmd.FLUSH:
                    self._load.flush_sent.unpark_all()
                error, found = await answer.receive()
        except trio.TooSlowError:
            self._load.report.problem(f"{op}: no reply within {REPLY_SECONDS} s")
            raise Left from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Left from None
        self._load.ended(op, error, found)
        return error

    async def receive(self) -> None:
        """Take replies. Raises `Left`."""
        try:
            while True:
                cookie, error, data = await self._client.simple_reply()
                if cookie not in self._answers:
                    self._load.report.problem(f"{self.session.name} got a reply to {cookie:#x}")
                    raise Left
                await self._answers.pop(cookie).send((error, data))
        except AssertionError as error:
            self._load.report.problem(f"{self.session.name} got what is no reply: {error}")
            raise Left from None
        except (EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
            raise Left from None


class Load:
    """Clients, and what they know."""

    def __init__(self, plan: Plan, report: Report, socket: Path, export: str = "d") -> None:
        self.plan = plan
        self.export = export
        self.report = report
        self.oracle = Oracle(
            plan.blocks, lossless=plan.lossless, survives=plan.survival, grain=plan.grain
        )
        self.flush_sent = trio.lowlevel.ParkingLot()
        self.left = trio.lowlevel.ParkingLot()
        """Where one waits for somebody to leave without a FLUSH."""
        self.upgraded = trio.lowlevel.ParkingLot()
        """And for a newer gateway to serve, where the sessions of the older one have not ended yet."""
        self.random = Random(f"{plan.seed}, load")
        self.flush_weight = FLUSH_WEIGHTS[-1]
        self.stopping = False
        self._socket = socket
        self._cookie = 0
        self._leaving = trio.CancelScope()

    def cookie(self) -> int:
        """Give a cookie that no client of ours has had, so that another's reply is seen."""
        self._cookie += 1
        return self._cookie

    async def works(self) -> None:
        """Wait until so many more WRITEs are answered."""
        wanted = self.report.counts["write"] + AT_WORK
        while self.report.counts["write"] < wanted and not self.report.problems:
            await trio.sleep(0.01)

    def leave(self) -> None:
        """Have the one leave that leaves."""
        self._leaving.cancel()

    def ended(self, op: Op, error: int, data: bytes) -> None:
        """Judge a reply."""
        counts, kind = self.report.counts, op.kind
        counts[kind if not error else f"{kind} {name_of(Errno, error)}"] += 1
        counts["FUA"] += op.fua
        if error and error != Errno.ESHUTDOWN and not self.plan.survival and kind != "flush":
            return  # its session ends
        try:
            op.end(error, data)
        except Broken as broken:
            if self.plan.survival or not error:
                self.report.problem(str(broken))

    async def client(self, name: str, *, leaves: bool = False) -> None:
        """One client, and its sessions, until the end."""
        sessions = 0
        while True:
            sessions += 1
            with trio.CancelScope() as scope:
                if leaves:
                    self._leaving = scope
                finished = await self._session(f"{name} ({sessions})")
                if finished:
                    return
            if scope.cancelled_caught:
                self.report.counts["session left"] += 1
            elif self.stopping and len(self.report.problems) >= MOST_PROBLEMS:
                return
            await trio.sleep(0.01)  # a gateway that refuses would be asked in a circle

    async def _session(self, name: str) -> bool:
        """Say whether it has ended as it should."""
        session = self.oracle.session(name)
        try:
            async with await trio.open_unix_socket(self._socket) as stream:
                client = Client(stream)
                connection = await self._opened(client, session)
                await self._work(connection)
                await client.send(Cmd.DISC)
                return True
        except (Left, *GONE) as end:
            self.report.counts["session cut"] += 1
            if not self.plan.cuts:
                self.report.problem(f"{name} was cut off: {type(end).__name__} {end}")
            session.close()
            session.seen_off()
            return False
        finally:
            if session.closed == NEVER:
                session.close()

    async def _opened(self, client: Client, session: Session) -> Connection:
        with trio.fail_after(REPLY_SECONDS):
            answered = await client.go(self.export, structured=False)
        assert answered.export is not None
        session.open()
        offered = answered.export.flags & Flag.CAN_MULTI_CONN
        self.oracle.scope_all = bool(offered) or self.plan.connections.startswith("shared")
        return Connection(client, session, self)

    async def comes_and_goes(self) -> None:
        """One client that leaves in good order, without a FLUSH, and comes back."""
        for number in count(1):
            if self.stopping:
                return
            try:
                await self._comes_and_goes(f"passer-by ({number})")
            except (Left, *GONE) as end:
                self.report.counts["session cut"] += 1
                if not self.plan.cuts:
                    self.report.problem(f"passer-by ({number}) was cut off: {end!r}")
            self.left.unpark_all()
            await trio.sleep(self.random.uniform(0, MOST_AWAY_SECONDS))

    async def _comes_and_goes(self, name: str) -> None:
        session = self.oracle.session(name)
        try:
            async with await trio.open_unix_socket(self._socket) as stream:
                client = Client(stream)
                connection = await self._opened(client, session)
                await self._with_replies(connection, self._write_some)
                session.close()
                await client.send(Cmd.DISC)
                with trio.fail_after(REPLY_SECONDS):
                    await client.rest()
                session.seen_off()
                self.report.counts["session left unflushed"] += 1
        finally:
            if session.closed == NEVER:
                session.close()

    async def _write_some(self, connection: Connection) -> None:
        for _ in range(self.random.randint(1, MOST_WRITTEN)):
            length = self.random.randint(1, LONGEST_BLOCKS)
            start = self.random.randrange(self.plan.blocks - length)
            op = connection.session.write(start, length, steps=self.plan.in_steps(start, length))
            await connection.ask(op, Cmd.WRITE)

    async def newcomer(self) -> None:
        """Somebody who comes when all others have gone, and finds everything in order."""
        session = self.oracle.session("newcomer")
        try:
            async with await trio.open_unix_socket(self._socket) as stream:
                client = Client(stream)
                connection = await self._opened(client, session)
                await self._with_replies(connection, self._finish)
                await client.send(Cmd.DISC)
        except (Left, *GONE) as end:
            self.report.problem(f"the newcomer was cut off: {end!r}")
        finally:
            session.close()

    async def _with_replies(
        self, connection: Connection, do: Callable[[Connection], Awaitable[None]]
    ) -> None:
        left = False
        try:
            async with trio.open_nursery() as receiving:
                receiving.start_soon(connection.receive)
                await do(connection)
                receiving.cancel_scope.cancel()
        except* Left:
            left = True
        if left:
            raise Left

    async def _work(self, connection: Connection) -> None:
        async def work(connection: Connection) -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(self.plan.depth):
                    nursery.start_soon(self._worker, connection)
            await self._finish(connection)

        await self._with_replies(connection, work)

    async def _worker(self, connection: Connection) -> None:
        random, session = self.random, connection.session
        weights = {"read": WEIGHTS["read"]} if self.plan.readers else WEIGHTS
        kinds = ["flush", *weights]
        while not self.stopping:
            kind = random.choices(kinds, [self.flush_weight, *weights.values()])[0]
            count = random.randint(1, LONGEST_BLOCKS)
            start = random.randrange(self.plan.blocks - count)
            if kind == "flush":
                await connection.ask(session.flush(), Cmd.FLUSH)
            elif kind == "read":
                await connection.ask(session.read(start, count), Cmd.READ)
            elif kind == "zero":
                op = session.write(start, count, zeros=True, steps=self.plan.in_steps(start, count))
                await connection.ask(op, Cmd.WRITE_ZEROES)
            else:
                steps = self.plan.in_steps(start, count)
                op = session.write(start, count, fua=kind == "fua", steps=steps)
                flags = CmdFlag.FUA if kind == "fua" else 0
                await connection.ask(op, Cmd.WRITE, flags=flags)

    async def _finish(self, connection: Connection) -> None:
        """FLUSH until that succeeds, and read everything."""
        session = connection.session
        for _ in range(FINAL_FLUSHES):
            if not await connection.ask(session.flush(), Cmd.FLUSH):
                break
        else:
            self.report.problem(f"{session.name}: {FINAL_FLUSHES} FLUSHes in the end have failed")
        for start in range(0, self.plan.blocks, LONGEST_BLOCKS):
            count = min(LONGEST_BLOCKS, self.plan.blocks - start)
            await connection.ask(session.read(start, count), Cmd.READ)


# --- The run


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

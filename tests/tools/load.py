"""Clients under load, and what they know: each reply is judged by the oracle."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from random import Random

import trio

from gateway.wire.constants import Cmd, CmdFlag, Errno, name_of
from gateway.wire.constants import TransmissionFlag as Flag
from tests.embedded.peers import Client
from tests.tools.findings import MOST_PROBLEMS
from tests.tools.history import NEVER, Op, Session
from tests.tools.kill_plan import Plan, Report
from tests.tools.oracle import Oracle
from tests.tools.stamps import BLOCK_BYTES, Broken

LONGEST_BLOCKS = 8
"""Of one command: two of nbdkit's cache, which has blocks of 4 KiB."""

REPLY_SECONDS = 90
"""A reply that is not there by then will not come: more than `reconnect-seconds`."""

AT_WORK = 50
"""WRITEs that are answered between two kills of the gateway, but for those that come at once."""

FINAL_FLUSHES = 4
"""How often a session may be told of losses in the end: once by each kill that it has not asked after, and they
are told together. Several, for kills that overlapped with a FLUSH."""

WEIGHTS = {"write": 50, "read": 25, "fua": 4, "zero": 5}

FLUSH_WEIGHTS = (0.1, 1.0, 12.0)
"""One of them until the next kill. While nbdkit flushes it does nothing else, so where there are many FLUSHes
most kills hit one, and hardly anything that was acknowledged is in its cache only.
"""

MOST_WRITTEN = 12
"""Commands of one who is about to leave."""

MOST_AWAY_SECONDS = 0.5
"""How long whoever has left stays away: some kills come meanwhile."""


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

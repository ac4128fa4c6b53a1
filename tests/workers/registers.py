"""The register model (`tests.sessions.registers`) over a gateway with two workers, as real processes.

A disk of four blocks has sixteen registers in each, of some bytes that are written together. The clients of the
disk come to both workers, and write parts of its blocks, each several at a time; the server takes whole blocks
only, carries out what it has been asked in any order, and crashes now and then, losing what it will of what is
not stable. The gateway writes that again (`unflushed = "replay"`), so nobody may notice: any READ gives what a
disk would have given. It does not crash again before all that the last crash has hit is answered: what two in a
row hit would be taken for their cause and get EIO (`gateway.bundle.pieces`).

With homes there is one place that knows which parts of blocks are being written, and what was lost. Without
them (`homes` false) two workers write back blocks that each had read before the other wrote, and after a crash
each writes again what it knows of. So it has to be `Broken` then: the proof that it can.

The seed decides what is asked; processes have their own say, so a seed gives a similar run, not the same.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import trio

from gateway.embedded.personality import PLAIN
from gateway.wire.constants import Cmd, CmdFlag
from gateway.wire.handshake import BlockSizes
from tests.embedded.peers import Client
from tests.sessions.registers import BLOCK, SIZE, Broken, History, Write
from tests.tools.volatile import VolatileServer, some
from tests.workers.running import HOMELESS, NOTHING_ADDED, Gateway, gateway, server_at

CELL_BYTES = 256
"""Of a register: so that a block has 4 KiB, and the disk 16 KiB."""

SIZE_BYTES = SIZE * CELL_BYTES
COARSE = replace(PLAIN, block_sizes=BlockSizes(BLOCK * CELL_BYTES, BLOCK * CELL_BYTES, 1 << 25))

CONFIG = """\
[upstream.u]
uri = "nbd+unix:///?socket={at}/u.sock"
connections = "shared"
unflushed = "replay"
sole-writer = true
late-write-seconds = 0
"""

CLIENTS = 4
DEPTH = 3
"""Commands of each that are under way."""

COMMANDS = (Cmd.READ, Cmd.READ, Cmd.WRITE, Cmd.WRITE, Cmd.WRITE, Cmd.WRITE, Cmd.FLUSH)
MOST_PAUSE_SECONDS = 0.004
"""Of the server: as long as a few commands take to come to it."""

CRASH = 0.004
"""How likely it crashes, each time that it answers something."""


@dataclass
class Plan:
    """What is done: until so many commands were answered, and a crash has come, or until something is wrong."""

    seed: int
    commands: int
    homes: bool = True
    until_wrong: bool = False


@dataclass(eq=False)
class Asked:
    """A command under way."""

    command: Cmd
    began: int
    start: int = 0
    length: int = 0
    write: Write | None = None
    crashes: int = 0
    """How many there had been before it."""


@dataclass
class Run:
    """One run, and what has happened in it."""

    plan: Plan
    counts: Counter[str] = field(default_factory=Counter)
    broken: str = ""
    """The first promise that was."""

    def __post_init__(self) -> None:
        self.random = Random(self.plan.seed)
        self.history = History()
        self.server = VolatileServer(SIZE_BYTES, COARSE)
        self._value = 0
        self._under_way: set[Asked] = set()

    @property
    def over(self) -> bool:
        answered = sum(self.counts[command.name] for command in set(COMMANDS))
        enough = answered >= self.plan.commands and self.counts["crashes"] > 0
        return not self.plan.until_wrong and enough

    # --- The clients

    async def client(self, client: Client) -> None:
        """Ask, several at a time, until it is over; then wait for what is under way, and FLUSH."""
        under_way: dict[int, Asked] = {}
        while not self.over or under_way:
            while len(under_way) < DEPTH and not self.over:
                asked = self._chosen()
                under_way[await self._send(client, asked)] = asked
            cookie, error, data = await client.simple_reply()
            self._answered(under_way.pop(cookie), error, data)
        asked = self._asked(Cmd.FLUSH)
        _cookie, error, data = await client.simple_reply_to(Cmd.FLUSH)
        self._answered(asked, error, data)

    def _chosen(self) -> Asked:
        asked = self._asked(self.random.choice(COMMANDS))
        if asked.command is not Cmd.FLUSH:
            asked.start = self.random.randrange(SIZE)
            asked.length = self.random.randint(1, min(2 * BLOCK, SIZE - asked.start))
        if asked.command is Cmd.WRITE:
            self._value = self._value % 255 + 1
            end = asked.start + asked.length
            asked.write = Write(asked.start, end, self._value, asked.began)
            self.history.writes.append(asked.write)
        return asked

    def _asked(self, command: Cmd) -> Asked:
        self.history.now += 1
        asked = Asked(command, self.history.now, crashes=self.counts["crashes"])
        self._under_way.add(asked)
        return asked

    async def _send(self, client: Client, asked: Asked) -> int:
        offset, length = asked.start * CELL_BYTES, asked.length * CELL_BYTES
        if asked.write is None:
            return await client.send(asked.command, offset, length)
        data = bytes([asked.write.value]) * length
        flags = CmdFlag.FUA if not self.random.randrange(10) else 0
        return await client.send(asked.command, offset, flags=flags, data=data)

    def _answered(self, asked: Asked, error: int, data: bytes) -> None:
        self.history.now += 1
        self._under_way.remove(asked)
        self.counts[asked.command.name] += 1
        if error:
            raise Broken(f"{asked} has failed with {error}")
        if asked.write is not None:
            asked.write.ended = self.history.now
        self._check(asked.start, data, asked.began)

    def _check(self, start: int, data: bytes, began: int) -> None:
        for at, value in enumerate(_registers(data), start=start):
            if not self.history.may_be_read(at, value, began, self.history.now):
                raise Broken(f"a READ that began at {began} gives {value} in register {at}")

    # --- The server

    async def serve(self) -> None:
        """Answer what was asked in any order, and crash now and then."""
        server, random = self.server, self.random
        server.disk.hold("read", "write")
        while True:
            await server.disk.held()
            await trio.sleep(random.random() * MOST_PAUSE_SECONDS)
            if server.disk.pending:
                random.choice(server.disk.pending).answer()
            if random.random() < CRASH and not self._hit_before:
                self.counts["bytes lost"] += server.crash(some(random, tear=False))
                self.counts["crashes"] += 1
                await trio.sleep(random.random() * MOST_PAUSE_SECONDS)
                server.start()

    @property
    def _hit_before(self) -> bool:
        """Whether the last crash has hit something that is under way yet."""
        return any(asked.crashes < self.counts["crashes"] for asked in self._under_way)

    # --- All of it

    async def in_front_of(self, running: Gateway) -> None:
        """Have clients of both workers work, and look at the disk in the end. Raises `Broken`."""
        clients = [
            await running.session(worker=number % 2, structured=False) for number in range(CLIENTS)
        ]
        self.counts["homes"] = len({each["worker"] for each in await running.sessions()})
        async with trio.open_nursery() as serving:
            serving.start_soon(self.serve)
            async with trio.open_nursery() as working:
                for client in clients:
                    working.start_soon(self.client, client)
            serving.cancel_scope.cancel()
        self.server.disk.release()
        self.history.now += 1
        began = self.history.now
        newcomer = await running.session(structured=False)
        _cookie, error, data = await newcomer.simple_reply_to(Cmd.READ, 0, SIZE_BYTES)
        if error:
            raise Broken(f"the last READ has failed with {error}")
        self.history.now += 1
        self._check(0, data, began)
        stable = _registers(bytes(self.server.disk.store.stable))
        for write in self.history.writes[1:]:
            self.history.check_durable(write, stable, "in the end")


def _registers(data: bytes) -> bytes:
    """Give the value of each. Raises `Broken` for one that is torn."""
    values = data[::CELL_BYTES]
    if data != b"".join(bytes([value]) * CELL_BYTES for value in values):
        raise Broken("a register is torn")
    return values


async def run(plan: Plan, at: Path) -> Run:
    """Do all of it; what is `broken` is in what this gives."""
    running = Run(plan)
    environment = NOTHING_ADDED if plan.homes else HOMELESS
    async with (
        server_at(at / "u.sock", running.server),
        gateway(at, CONFIG.format(at=at), environment=environment) as gate,
    ):
        try:
            await running.in_front_of(gate)
        except* Broken as group:
            broken: BaseException = group
            while isinstance(broken, BaseExceptionGroup):
                broken = broken.exceptions[0]
            running.broken = str(broken)
            # What is under way comes to its end, and so does the gateway: else it waits for it.
            if running.server.down:
                running.server.start()
            running.server.disk.release()
    return running

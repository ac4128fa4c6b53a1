"""The oracle against a model of `unflushed = "sticky"`: one that is right never offends it, and each way to be
wrong is found. Commands overlap as they like, servers crash at any moment and keep any part of their cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest

from gateway.wire.constants import Errno
from tests.tools.history import Op, Session
from tests.tools.oracle import Oracle
from tests.tools.stamps import BLOCK_BYTES, Broken, stamps_of
from tests.tools.volatile import Store, some

pytestmark = pytest.mark.real

BLOCKS = 8
EVENTS = 400
MOST_UNDER_WAY = 6
SEEDS = 150

WRONG = (
    "one session is not told",
    "only one session is told",
    "who comes later is not told",
    "FUA clears what is to be told",
    "old data is read",
    "a FLUSH is not handed on",
    "FUA is not handed on",
    "a FLUSH fails for nothing",
    "told twice",
    "an old write comes late",
)


@dataclass(eq=False)
class Client:
    """A session as the gateway sees it."""

    session: Session
    owed: set[int] | None = None
    """Blocks of which it has to be told that they may be lost; None: there is nothing to tell."""


@dataclass(eq=False)
class Command:
    op: Op
    client: Client
    answer: tuple[int, bytes] | None = None


@dataclass
class Gateway:
    """One that carries out each command in one moment, somewhere between its beginning and its end."""

    random: Random
    wrong: str = ""
    oracle: Oracle = field(default_factory=lambda: Oracle(BLOCKS))
    store: Store = field(default_factory=lambda: Store(BLOCKS * BLOCK_BYTES))
    clients: list[Client] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    unflushed: set[int] = field(default_factory=set)
    untold: set[int] | None = None
    """What is owed to whoever comes, until anybody was told: as with Linux's errseq."""
    old: Op | None = None

    def run(self) -> None:
        for _ in range(EVENTS):
            self.random.choices(
                (self.open, self.close, self.begin, self.carry_out, self.end, self.crash),
                (1, 1, 40, 40, 40, 2),
            )[0]()
        while self.commands:
            self.carry_out()
            self.end()
        if not self.clients:
            self.open()
        for client in self.clients:
            for _ in range(2):
                self.commands.append(Command(client.session.flush(), client))
                self.carry_out()
                self.end()
        self.store.crash()
        self.oracle.check_final(stamps_of(self.store.stable))

    def open(self) -> None:
        if len(self.clients) < 4:
            owed = None if self.untold is None else set(self.untold)
            if self.wrong == "who comes later is not told":
                owed = None
            self.clients.append(Client(self.oracle.session(str(self.oracle.now)), owed))

    def close(self) -> None:
        if self.clients:
            client = self.clients.pop(self.random.randrange(len(self.clients)))
            client.session.close()
            client.session.seen_off()
            self.commands = [each for each in self.commands if each.client is not client]

    def begin(self) -> None:
        if not self.clients or len(self.commands) == MOST_UNDER_WAY:
            return
        client = self.random.choice(self.clients)
        count = self.random.randint(1, 3)
        start = self.random.randrange(BLOCKS - count)
        match self.random.choice(("write", "write", "write", "fua", "read", "read", "flush")):
            case "read":
                op = client.session.read(start, count)
            case "flush":
                op = client.session.flush()
            case kind:
                op = client.session.write(start, count, fua=kind == "fua")
        self.commands.append(Command(op, client))

    def carry_out(self) -> None:
        waiting = [each for each in self.commands if each.answer is None]
        if waiting:
            command = self.random.choice(waiting)
            command.answer = self.answer(command.op, command.client)
            self.commands.remove(command)
            self.commands.append(command)  # each session's replies leave in order

    def answer(self, op: Op, client: Client) -> tuple[int, bytes]:
        blocks = set(range(op.start, op.start + op.count))
        match op.kind:
            case "write":
                fua = op.fua and self.wrong != "FUA is not handed on"
                self.store.write(op.start * BLOCK_BYTES, op.data, fua=fua)
                self.unflushed = self.unflushed - blocks if fua else self.unflushed | blocks
                for owed in (self.untold, *(each.owed for each in self.clients)):
                    if owed is not None:
                        owed -= blocks
                if fua and self.wrong == "FUA clears what is to be told":
                    client.owed = None
                if self.wrong == "an old write comes late" and self.random.random() < 0.02:
                    late = self.old or op
                    self.store.write(late.start * BLOCK_BYTES, late.data)
                    self.old = op
            case "read":
                if blocks & (client.owed or set()) and self.wrong != "old data is read":
                    return Errno.EIO, b""
                return 0, self.store.read(op.start * BLOCK_BYTES, op.count * BLOCK_BYTES)
            case "flush":
                if self.wrong != "a FLUSH is not handed on":
                    self.store.flush()
                self.unflushed = set()
                if client.owed is not None or self.fails_for_nothing():
                    self.told(client)
                    return Errno.EIO, b""
        return 0, b""

    def fails_for_nothing(self) -> bool:
        return self.wrong == "a FLUSH fails for nothing" and self.random.random() < 0.05

    def told(self, client: Client) -> None:
        if self.wrong != "told twice" or self.random.random() < 0.5:
            client.owed = None
        self.untold = None
        if self.wrong == "only one session is told":
            for each in self.clients:
                each.owed = None

    def end(self) -> None:
        answered = [each for each in self.commands if each.answer is not None]
        if answered:
            client = self.random.choice(answered).client
            command = next(each for each in answered if each.client is client)
            self.commands.remove(command)
            assert command.answer is not None
            command.op.end(*command.answer)

    def crash(self) -> None:
        loss = self.oracle.lose()
        self.store.crash(some(self.random))
        self.oracle.dead(loss)
        self.oracle.check_stable(stamps_of(self.store.stable), gone=True)
        if not self.unflushed:
            return
        for number, client in enumerate(self.clients):
            if number or self.wrong != "one session is not told":
                client.owed = (client.owed or set()) | self.unflushed
        self.untold = (self.untold or set()) | self.unflushed
        self.unflushed = set()


def test_one_that_is_right_never_offends_it() -> None:
    for seed in range(SEEDS):
        try:
            Gateway(Random(seed)).run()
        except Broken as broken:
            pytest.fail(f"seed {seed}: {broken}")


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_found(wrong: str) -> None:
    found = 0
    for seed in range(SEEDS):
        try:
            Gateway(Random(seed), wrong).run()
        except Broken:
            found += 1
    assert found > 0
    print(f"{wrong}: {found} of {SEEDS}")

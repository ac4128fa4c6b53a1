"""Rates over several workers let through what one process would, and no more: on a clock that jumps."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

import pytest

from gateway.handover.message import ChannelMessage, decode, encode
from gateway.throttle import Bucket, Doors, Gate, Unit
from gateway.workers.loans import IDLE_SECONDS, Loans
from gateway.workers.rates import FEW, LendingRates, slice_of

RATE, BURST = 1000.0, 100.0
LATENCY_SECONDS = 0.0003
"""What a message takes from one process to another."""


class World:
    """A supervisor and its workers, and what is to happen at which time."""

    def __init__(self, workers: int) -> None:
        self.now = 1e6
        self.asked = 0
        self._plans: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self.rates = LendingRates(self._granted, lambda: None, lambda: self.now)
        self.workers = [Worker(self, number, workers) for number in range(workers)]

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._plans, (when, next(self._numbers), act))

    def later(self, act: Callable[[], None]) -> None:
        self.at(self.now + LATENCY_SECONDS, act)

    def heard(self, worker: int, message: ChannelMessage) -> None:
        message = decode(encode(message))
        self.asked += 1
        if message.kind == "wants tokens":
            self.later(lambda: self.rates.ask(worker, message["key"], *message["wants"]))
        else:
            assert message.kind == "gives tokens back"
            self.later(lambda: self.rates.give_back(message["key"], *message["tokens"]))

    def _granted(self, worker: int, key: str, tokens: float) -> None:
        self.later(lambda: self.workers[worker].loans.granted(key, tokens))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while True:
            doors = [self.rates.doors, *(each.doors for each in self.workers)]
            due = [(when, each) for each in doors if (when := each.next_opening()) is not None]
            opens = min((when for when, _doors in due), default=end + 1)
            plan = self._plans[0][0] if self._plans else end + 1
            if min(opens, plan) > end:
                break
            self.now = max(self.now, min(opens, plan))
            if plan <= opens:
                heapq.heappop(self._plans)[2]()
            else:
                for each in doors:
                    each.open_due(self.now)
        self.now = end


class Worker:
    """One of them, with one bucket for whoever shares the rate."""

    def __init__(self, world: World, number: int, workers: int) -> None:
        self.world = world
        self.doors = Doors(lambda: None)
        self.loans = Loans(lambda message: world.heard(number, message), lambda: world.now)
        self.loans.workers = workers
        self.bucket = self.made()

    def made(self) -> Bucket:
        bucket = Bucket(RATE, BURST, lambda: self.world.now, ("bytes", "ann"))
        self.loans.lend_to("ann", bucket)
        return bucket


@dataclass(eq=False)
class Client:
    """Sends as much as it may, in requests of such a length, with so long between them."""

    worker: Worker
    length: int
    pause: float = 0.0
    passed: list[tuple[float, int]] = field(default_factory=list)
    stopped: bool = False

    def __post_init__(self) -> None:
        charges = [(self.worker.bucket, Unit.BYTES)]
        self.gate = Gate(charges, self._try, self.worker.doors)
        self._try()

    def _try(self) -> None:
        world = self.worker.world
        while not self.stopped and self.gate.take(self.length):
            self.passed.append((world.now, self.length))
            if self.pause:
                world.at(world.now + self.pause, self._try)
                return

    @property
    def sum(self) -> int:
        return sum(length for _when, length in self.passed)


def passed(clients: list[Client]) -> list[tuple[float, int]]:
    return sorted(each for client in clients for each in client.passed)


def check_never_too_much(clients: list[Client], began: float, workers: int) -> None:
    """What had passed at any time is what one bucket would have let pass, and one request of each worker."""
    longest = max(client.length for client in clients)
    sum_ = 0
    for when, length in passed(clients):
        sum_ += length
        may = BURST + RATE * (when - began) + workers * longest
        assert sum_ <= may + 1e-3, f"{sum_} after {when - began} s"


@pytest.mark.parametrize("workers", [2, 8])
@pytest.mark.parametrize("seed", range(8))
def test_it_is_never_too_much_and_in_the_long_run_all(seed: int, workers: int) -> None:
    random, world = Random(seed), World(workers)
    began = world.now
    clients = [
        Client(
            random.choice(world.workers),
            random.choice([1, 3, 10, 200, 3000]),
            random.choice([0, 0, 0.01]),
        )
        for _ in range(random.randint(1, 12))
    ]
    world.run(10)
    check_never_too_much(clients, began, workers)
    if any(not client.pause for client in clients):
        assert sum(client.sum for client in clients) >= 0.99 * RATE * 10


@pytest.mark.parametrize("length", [1, 7, 300])
def test_all_sessions_get_equal_parts_wherever_they_are(length: int) -> None:
    world = World(2)
    crowd = [Client(world.workers[0], length) for _ in range(3)]
    alone = Client(world.workers[1], 1)
    world.run(20)
    for client in (*crowd, alone):
        assert client.sum == pytest.approx(RATE * 20 / 4, rel=0.1)


def test_who_is_alone_has_it_all() -> None:
    world = World(8)
    client = Client(world.workers[3], 1)
    world.run(10)
    assert client.sum == pytest.approx(RATE * 10 + BURST, rel=0.02)


def test_what_is_asked_does_not_grow_with_what_is_done() -> None:
    """A slice at a time: about `RATE / slice_of`, twice, for half of it is left when more is asked for."""
    world = World(2)
    Client(world.workers[0], 1)
    world.run(10)
    assert world.asked <= 2 * 10 * RATE / slice_of(RATE, BURST, 2) + 20


def test_nobody_waits_for_the_asking_while_there_is_enough() -> None:
    world = World(2)
    world.run(1)
    client = Client(world.workers[0], 1, pause=2 / RATE)
    world.run(10)
    gaps = [b[0] - a[0] for a, b in zip(client.passed, client.passed[1:], strict=False)]
    assert max(gaps) == pytest.approx(2 / RATE)


@pytest.mark.parametrize("workers", [2, 8])
def test_no_more_is_saved_up_than_the_burst(workers: int) -> None:
    """Half of it by the supervisor, and half in slices; the last one may be more than is there, as the last
    request may of one process.
    """
    world = World(workers)
    world.run(1)
    began = world.now
    clients = [Client(each, 1) for each in world.workers]
    world.run(10 * LATENCY_SECONDS)
    at_once = sum(client.sum for client in clients)
    assert at_once <= BURST + RATE * (world.now - began) + workers + BURST / 2 / workers
    assert at_once >= BURST * 0.9


def test_a_debt_is_paid() -> None:
    """One request of 5 s of the rate by each worker; then nobody has anything for at least that time."""
    world = World(2)
    world.run(0.1)
    clients = [Client(each, 5000) for each in world.workers]
    for client in clients:
        client.stopped = True
    world.run(0.1)
    late = Client(world.workers[0], 1)
    assert [client.sum for client in clients] == [5000, 5000]
    world.run(4.7)
    assert late.sum == 0
    world.run(15)
    assert sum(client.sum for client in (*clients, late)) == pytest.approx(RATE * 20, rel=0.02)


def test_what_is_not_used_goes_back() -> None:
    """And who comes by one worker after the other has no less for it."""
    world = World(2)
    sums = 0
    for number in range(100):
        client = Client(world.workers[number % 2], 1)
        world.run(0.05)
        client.stopped = True
        client.gate.close()
        sums += client.sum
    assert sums == pytest.approx(RATE * 100 * 0.05, rel=0.05)
    worker = world.workers[0]
    assert worker.bucket.level > 0
    world.run(2 * IDLE_SECONDS)
    # Whoever comes has it looked for what is idle.
    worker.loans.lend_to("eve", Bucket(RATE, BURST, lambda: world.now, ("bytes", "eve")))
    assert len(worker.loans) == 1
    assert worker.bucket.level == 0


def test_a_worker_that_has_died_is_waited_for_by_nobody() -> None:
    world = World(2)
    dead, alive = [Client(each, 10) for each in world.workers]
    world.run(5)
    world.rates.forget(0)
    dead.stopped = True
    before = alive.sum
    world.run(10)
    assert alive.sum - before == pytest.approx(RATE * 10, rel=0.05)


def test_a_new_rate_holds_at_once_also_for_who_waits() -> None:
    world = World(2)
    client = Client(world.workers[0], 10_000)
    world.run(0.01)
    client.length = 10
    assert client.sum == 10_000
    bucket = world.workers[0].bucket
    bucket.change(1e6, 1e5)
    world.workers[0].loans.lend_to("ann", bucket)
    world.run(0.02)
    assert client.sum > 10_000
    world.run(1)
    assert client.sum == pytest.approx(1e6, rel=0.2)


def test_without_its_supervisor_a_worker_has_its_part() -> None:
    """Also one whose bucket was forgotten, for nobody had used it."""
    world = World(4)
    clients = [Client(world.workers[number], 10) for number in (0, 1)]
    world.run(1)
    idle = world.workers[2].bucket
    for worker in world.workers:
        worker.loans.end()
    before = sum(client.sum for client in clients)
    clients.append(Client(world.workers[2], 10))
    world.run(10)
    assert not idle.borrows
    now = sum(client.sum for client in clients)
    assert now - before == pytest.approx(3 / 4 * RATE * 10, rel=0.05)


def test_what_nobody_uses_is_forgotten() -> None:
    said: list[Any] = []
    now = 0.0
    rates = LendingRates(lambda *lent: said.append(lent), lambda: None, lambda: now)
    for number in range(10 * FEW):
        rates.ask(0, str(number), 10, RATE, BURST, 1)
        now += 1
    assert len(said) == 10 * FEW
    assert len(rates) <= 2 * FEW

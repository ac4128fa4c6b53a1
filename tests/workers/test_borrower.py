"""A worker and the supervisor's book: what a session has borrowed is given back, however it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from gateway.access.chain import Placed, join
from gateway.handover.message import ChannelMessage
from gateway.policy import Denied, Session
from gateway.sessions.opened import limits_of
from gateway.workers.borrower import Borrower, key_of
from gateway.workers.ledger import LendingBook
from policies.limit import Limit
from policies.rate import Rate
from tests.policies.harness import configured
from tests.policies.harness import session as of_policies


def placed(number: int = 1, *, observed: bool = False, **options: Any) -> Placed:
    place = ("rule", "all", "limit", str(number))
    named = {name.replace("_", "-"): value for name, value in options.items()}
    return Placed(configured(Limit, named), "limit", observed, {}, place)


def session(name: str = "ann") -> Session:
    return of_policies(psk_user=name)


class Supervisor:
    """Answers from its book, at once or when it is told to."""

    def __init__(self) -> None:
        self.ledger = LendingBook()
        self.workers: list[Borrower] = []
        self.waits = False
        self.waiting: list[tuple[int, ChannelMessage]] = []

    def worker(self) -> Borrower:
        number = len(self.workers)
        self.workers.append(Borrower(lambda message: self._heard(number, message)))
        return self.workers[-1]

    def answer(self) -> None:
        self.waits = False
        for number, message in self.waiting:
            self._heard(number, message)

    def _heard(self, worker: int, message: ChannelMessage) -> None:
        if message.kind == "gives back":
            self.ledger.give_back(worker, message["keys"])
        elif self.waits:
            self.waiting.append((worker, message))
        else:
            wants = list(zip(message["keys"], message["most"], strict=True))
            full = self.ledger.borrow(worker, wants)
            why = [] if full is None else [full.want, full.lent]
            self.workers[worker].heard({"number": message["number"], "full": why})


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


async def joined(worker: Borrower, chain: Sequence[Placed], whose: Session) -> Any:
    return join(chain, whose, await worker.reserve(chain, whose))


async def test_a_number_holds_for_all_workers(supervisor: Supervisor) -> None:
    """Each has policies of its own, and knows nothing of the others' sessions."""
    chains = [[placed(connections=2, connections_per_identity=1)] for _ in range(3)]
    workers = [supervisor.worker() for _ in range(3)]
    ann = await joined(workers[0], chains[0], session("ann"))
    with pytest.raises(Denied, match=r"1 connection is open of this identity, and 1 may be"):
        await joined(workers[1], chains[1], session("ann"))
    bob = await joined(workers[1], chains[1], session("bob"))
    with pytest.raises(Denied, match=r"2 connections are open, and 2 may be"):
        await joined(workers[2], chains[2], session("eve"))
    ann.leave()
    ann.leave()
    eve = await joined(workers[2], chains[2], session("eve"))
    for each in (bob, eve):
        each.leave()
    assert len(supervisor.ledger) == 0


async def test_who_is_denied_by_one_policy_has_nothing_of_the_others(
    supervisor: Supervisor,
) -> None:
    chain = [placed(1, connections=5), placed(2, connections=1)]
    worker = supervisor.worker()
    first = await joined(worker, chain, session())
    with pytest.raises(Denied):
        await joined(worker, chain, session())
    assert supervisor.ledger.lent(key_of(chain[0], chain[0].policy.counted(session())[0])) == 1
    first.leave()
    assert len(supervisor.ledger) == 0


async def test_an_observed_one_keeps_nobody_out(supervisor: Supervisor) -> None:
    worker = supervisor.worker()
    chain = [placed(observed=True, connections=1)]
    first, second = [await joined(worker, chain, session()) for _ in range(2)]
    assert first.would == []
    assert second.would == ["limit: 1 connection is open, and 1 may be"]
    assert len(second.chain) == 0
    second.leave()
    first.leave()
    assert len(supervisor.ledger) == 0
    assert not chain[0].policy._counts  # type: ignore[attr-defined] # it is a limit


@pytest.mark.parametrize("waits", [True, False])
async def test_who_stops_waiting_keeps_nothing(supervisor: Supervisor, *, waits: bool) -> None:
    """Whether the answer has come by then or comes later."""
    worker, chain = supervisor.worker(), [placed(connections=1)]
    supervisor.waits = waits
    with trio.CancelScope() as scope:
        scope.cancel()
        await joined(worker, chain, session())
    assert scope.cancelled_caught
    supervisor.answer()
    (await joined(worker, chain, session())).leave()
    assert len(supervisor.ledger) == 0


async def test_when_the_supervisor_has_ended_nobody_waits(supervisor: Supervisor) -> None:
    worker, chain = supervisor.worker(), [placed(connections=1)]
    supervisor.waits = True

    async def denied() -> None:
        with pytest.raises(Denied, match="shutting down"):
            await joined(worker, chain, session())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(denied)
        await trio.testing.wait_all_tasks_blocked()
        worker.end()
    await denied()


def test_a_number_is_known_by_its_place_and_what_is_counted() -> None:
    one = placed(connections=1)
    [counted] = one.policy.counted(session())
    others = [
        (placed(2, connections=1), counted),
        (replace(one, place=("rule", "all1", "limit", "")), counted),
        (one, replace(counted, by=("identity", "ann"))),
    ]
    assert len({key_of(one, counted), *(key_of(*other) for other in others)}) == 4


def rate(per: str, number: int = 1) -> Placed:
    options = {"operations-per-second": 5, "bytes-per-second": "1M", "per": per}
    place = ("rule", "all", "rate", str(number))
    return Placed(configured(Rate, options), "rate", False, {}, place)


def keys_asked_for(placed: Placed, whose: Session) -> list[str]:
    """Give what a worker asks its supervisor for when a session is charged to a policy's buckets."""
    said: list[ChannelMessage] = []
    limits_of([placed], whose, Borrower(said.append))
    assert {message.kind for message in said} <= {"wants tokens"}
    return [message["key"] for message in said]


def test_a_rate_is_known_by_its_place_who_shares_it_and_what_it_counts() -> None:
    """By the same words in each worker, which has policies of its own."""
    asked = keys_asked_for(rate("identity"), session("ann"))
    assert keys_asked_for(rate("identity"), session("ann")) == asked
    others = [
        keys_asked_for(rate("identity"), session("bob")),
        keys_asked_for(rate("identity", number=2), session("ann")),
    ]
    assert len({*asked, *others[0], *others[1]}) == 6


@pytest.mark.parametrize("per", ["session", "export"])
def test_what_no_other_worker_shares_is_not_asked_for(per: str) -> None:
    assert not keys_asked_for(rate(per), session())


def test_what_is_only_observed_is_each_workers_own() -> None:
    assert not keys_asked_for(replace(rate("identity"), observed=True), session())

"""Requests are timed from when they come to when the whole reply has gone on, whoever does the steps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.counts.seconds import ByCommand
from gateway.scan.timing import BATCHES, Timing
from gateway.wire.constants import Cmd
from tests.hub.checks import terms
from tests.hub.races import Racer, racer

SIZE = 64 * 1024


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Its:
    """A session that is timed, by a clock that stands still but for what a test adds."""

    def __init__(self, its: Racer) -> None:
        self.its, self.clock = its, Clock()
        self.whole, self.upstream = ByCommand(), ByCommand()
        self.traffic.timing = Timing(self.clock, (self.whole,), self.upstream)

    @property
    def traffic(self):  # type: ignore[no-untyped-def]
        return self.its.wires.session.traffic

    def ask(self, count: int = 1, length: int = 512) -> None:
        framing = self.traffic.plan.offer.framing
        request = framing.encode_request(Cmd.READ, 0, 7, 0, length)
        self.its.wires.client.send(request * count)
        self.its.settle()

    def answer(self, cookie: int, length: int = 512, *, cut: int | None = None) -> None:
        """Answer one; or all of it up to a byte, or the rest from there on (below 0)."""
        link = self.traffic.plan.link
        reply = link.data_head(cookie, 0, 0, length, done=True) + bytes(length)
        piece = reply if cut is None else reply[:cut] if cut > 0 else reply[-cut:]
        self.its.wires.upstream.send(piece)
        self.its.settle()


@pytest.fixture(params=[True, False], ids=["pumped", "plain"])
def it(request: pytest.FixtureRequest) -> Iterator[Its]:
    its = Its(racer(terms((True, False), (True, False))))
    if not request.param:
        its.its.wires.session._pump_no_more()
    yield its
    its.its.wires.close()


def test_the_first_request_is_timed_and_then_one_batch_in_so_many(it: Its) -> None:
    for number in range(1, 2 * BATCHES + 3):
        it.ask()
        it.clock.now += 1
        it.answer(number)
    assert (it.whole["READ"].count, it.whole["READ"].total) == (3, 3.0)
    assert it.upstream["READ"].total == 3.0


def test_the_one_in_the_middle_of_a_batch_is_timed(it: Its) -> None:
    it.ask(9)
    for number in range(1, 10):
        it.clock.now += 1
        it.answer(number)
    assert (it.whole["READ"].count, it.whole["READ"].total) == (1, 5.0)


def test_a_reply_has_come_when_all_of_it_has(it: Its) -> None:
    it.ask(2, SIZE)
    it.answer(2, SIZE)
    it.clock.now += 1
    it.answer(1, SIZE, cut=1000)
    assert it.whole["READ"].count == 0
    it.clock.now += 1
    it.answer(1, SIZE, cut=-1000)
    assert (it.whole["READ"].count, it.whole["READ"].total) == (1, 2.0)


def test_what_is_under_way_when_the_link_dies_is_not_timed(it: Its) -> None:
    it.ask()
    it.its.wires.upstream.close()
    it.its.settle()
    assert it.whole["READ"].count == 0

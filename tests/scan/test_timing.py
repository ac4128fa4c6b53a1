"""Which request is timed, and how long it took, on a clock of the test."""

from __future__ import annotations

from gateway.counts.seconds import ByCommand
from gateway.scan.timing import NOTHING, Timing
from gateway.wire.constants import Cmd

READ, WRITE = int(Cmd.READ), int(Cmd.WRITE)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now

    def goes_on(self, seconds: float) -> None:
        self.now += seconds


class Timed:
    def __init__(self) -> None:
        self.clock = Clock()
        self.whole, self.export, self.upstream = ByCommand(), ByCommand(), ByCommand()
        self.timing = Timing(self.clock, (self.whole, self.export), self.upstream)

    @property
    def seconds(self) -> dict[str, tuple[float, float]]:
        assert {k: v.total for k, v in self.whole.items()} == {
            k: v.total for k, v in self.export.items()
        }
        return {
            command: (round(each.total, 6), round(self.upstream[command].total, 6))
            for command, each in self.whole.items()
        }


def test_a_request_over_the_link() -> None:
    it = Timed()
    assert it.timing.comes()
    it.clock.goes_on(1)
    flight = dict.fromkeys(range(1, 6), (0, READ, 0, 512))
    assert it.timing.sent(0, 5, flight) == 3  # in the middle of the batch
    assert not it.timing.wants
    it.clock.goes_on(4)
    received = it.timing.now()
    it.clock.goes_on(2)
    it.timing.answered(received)
    assert it.seconds == {"READ": (7, 4)}
    assert (it.timing.last_seconds, it.timing.last_upstream_seconds) == (7, 4)


def test_what_has_come_was_no_request() -> None:
    it = Timed()
    assert it.timing.comes()
    assert it.timing.sent(7, 7, {7: (0, READ, 0, 512)}) == NOTHING
    assert not it.timing.wants


def test_a_request_that_was_answered_in_the_same_step() -> None:
    it = Timed()
    assert it.timing.comes()
    assert it.timing.sent(7, 8, {}) == NOTHING


def test_a_job_that_asks_twice() -> None:
    it = Timed()
    assert it.timing.comes()
    it.clock.goes_on(1)
    it.timing.takes_job(WRITE)
    assert it.timing.sent(0, 5, {3: (0, READ, 0, 512)}) == NOTHING  # it has the place
    assert not it.timing.comes()  # one at a time
    it.clock.goes_on(1)
    for _ in range(2):
        it.timing.asks()
        it.clock.goes_on(3)
        it.timing.has_answers()
    it.clock.goes_on(5)
    it.timing.ends()
    assert it.seconds == {"WRITE": (13, 6)}
    assert it.timing.comes()


def test_a_job_that_asks_nobody() -> None:
    it = Timed()
    assert it.timing.comes()
    it.timing.takes_job(READ)
    it.clock.goes_on(2)
    it.timing.ends()
    assert it.seconds == {"READ": (2, 0)}
    assert not it.upstream["READ"].count
    assert it.timing.last_upstream_seconds is None

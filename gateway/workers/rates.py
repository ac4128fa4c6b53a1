"""Rates that hold for all workers together: how much is lent to which worker, and when. Pure.

Every worker has a bucket of its own for who shares a rate (`gateway.throttle`), in which requests wait, each in
its turn. It fills by slices that are lent to it from one bucket here, so together they let through what one
process would. A worker asks before its bucket is empty, so no request waits for the asking while there is
enough; and it asks for a slice, not for a request, so what is asked does not grow with what is done.

Here each worker is a gate before the bucket, and a slice is what it takes at a time. Its weight is how many of
its sessions wait: so all sessions get equal parts of a rate, wherever they are.

Half of a burst is saved up here; the other half is what the workers have, in one slice each. So all together
have saved up no more than the burst. (Where it is very small, a slice is what `LEAST_SECONDS` bring, and they
may have a little more.) What a worker has had too much, because a request is longer than what was lent, it
asks for by itself before it asks for more: so nothing is let through anywhere before it is paid.

A worker that has died has spent what it had. A rate is what was asked with last: it stands in the
configuration, which is the same for all but for the moment of a reload.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from gateway.throttle import Bucket, Clock, Doors, Gate, Unit
from gateway.workers.ledger import Key

LEAST_SECONDS = 0.002
"""What a slice has at least: so that nobody asks more than so often, whatever the burst is."""

FEW = 64
"""Fewer rates than this are not worth looking which of them have been idle long enough to be forgotten."""

Grant = Callable[[int, Key, float], None]
"""Is told what is lent to a worker."""


def slice_of(per_second: float, burst: float, workers: int) -> float:
    """Give how much a worker has lent to it at most."""
    return max(burst / 2 / workers, per_second * LEAST_SECONDS)


@dataclass(eq=False)
class _Rate:
    """One of them, the gates of the workers before it, and what each has asked for and has not got."""

    bucket: Bucket
    gates: dict[int, Gate] = field(default_factory=dict)
    wanted: dict[int, float] = field(default_factory=dict)


class LendingRates:
    """All of them. Whoever owns this calls `doors.open_due` when it is time; `sooner` is told when that is
    earlier.
    """

    def __init__(
        self, grant: Grant, sooner: Callable[[], None], clock: Clock = time.monotonic
    ) -> None:
        self._grant = grant
        self._clock = clock
        self.doors = Doors(sooner)
        self._rates: dict[Key, _Rate] = {}
        self._look_at = FEW

    def __len__(self) -> int:
        return len(self._rates)

    def ask(
        self, worker: int, key: Key, tokens: float, per_second: float, burst: float, weight: float
    ) -> None:
        """A worker wants so many tokens of a rate: it is granted them now or later. Until then it asks for no
        more; 0 says only what the rate is.
        """
        rate = self._rates.get(key)
        if rate is None:
            self._forget_the_full()
            rate = _Rate(Bucket(per_second, burst / 2, self._clock))
            self._rates[key] = rate
        elif (rate.bucket.per_second, rate.bucket.burst) != (per_second, burst / 2):
            rate.bucket.change(per_second, burst / 2)
        if tokens <= 0 or worker in rate.wanted:
            return
        gate = rate.gates.get(worker)
        if gate is None:
            again = partial(self._take, worker, key, rate)
            gate = Gate([(rate.bucket, Unit.BYTES)], again, self.doors)
            rate.gates[worker] = gate
        gate.weight = weight
        rate.wanted[worker] = tokens
        self._take(worker, key, rate)

    def give_back(self, key: Key, tokens: float) -> None:
        """Take back what a worker has not used."""
        rate = self._rates.get(key)
        if rate is not None:
            room = rate.bucket.burst - rate.bucket.level
            rate.bucket.lend(max(0.0, min(tokens, room)))

    def forget(self, worker: int) -> None:
        """A worker has died: it wants nothing any more."""
        for rate in self._rates.values():
            rate.wanted.pop(worker, None)
            gate = rate.gates.pop(worker, None)
            if gate is not None:
                gate.close()

    def _take(self, worker: int, key: Key, rate: _Rate) -> None:
        if rate.gates[worker].take(rate.wanted[worker]):
            self._grant(worker, key, rate.wanted.pop(worker))

    def _forget_the_full(self) -> None:
        """Drop what nobody has asked for lately: there are no more than twice as many as are in use."""
        if len(self._rates) < self._look_at:
            return
        for key, rate in list(self._rates.items()):
            if not rate.wanted and rate.bucket.full:
                del self._rates[key]
        self._look_at = max(FEW, 2 * len(self._rates))

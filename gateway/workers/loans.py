"""What a worker has borrowed of rates that hold for all workers (`gateway.workers.rates`).

A bucket that is shared (`Bucket.shared`) holds nothing of its own here. It has a slice lent to it when a
session comes that is charged to it, and the next one when half of that is gone. Whoever waits at an empty
bucket waits for the supervisor's answer, as long as the rate takes.

What is left in a bucket that nobody has used for a while goes back, and the bucket is forgotten here; should a
session use it again, it borrows again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from gateway.handover.message import ChannelMessage
from gateway.throttle import Bucket, Clock
from gateway.workers.ledger import Key
from gateway.workers.rates import slice_of

Say = Callable[[ChannelMessage], None]

IDLE_SECONDS = 1.0
"""What has not been used for so long goes back. That is many times what a slice is worth of a usual burst (a
tenth of a second)."""


@dataclass(eq=False)
class _Loan:
    """One bucket, and what is lent to it."""

    loans: Loans
    key: Key
    bucket: Bucket
    asked: bool = False
    said: tuple[float, float] = (0.0, 0.0)
    """The rate and the burst that the supervisor was told last."""
    used: float = 0.0
    """When it was last low."""

    def low(self) -> None:
        """Ask for more, unless that is done already. What is owed is asked for by itself."""
        if not self.loans.know(self):
            return
        level, most = self.bucket.level, self.loans.slice_of(self.bucket)
        if not self.asked and level < most / 2:
            self.asked = True
            self.say(-level if level < 0 else most - level)

    def say(self, tokens: float) -> None:
        """Ask for so many tokens; 0 says only what the rate is."""
        bucket = self.bucket
        self.said = bucket.per_second, bucket.burst
        wants = [tokens, *self.said, 1 + bucket.waiting]
        self.loans.say(ChannelMessage("wants tokens", {"key": self.key, "wants": wants}))

    def stand_alone(self) -> None:
        """Nobody lends anything any more: each worker has its part of the rate."""
        bucket, workers = self.bucket, self.loans.workers
        bucket.borrow_no_more()
        bucket.change(bucket.per_second / workers, bucket.burst / workers)

    def granted(self, tokens: float) -> None:
        """Have it. Where it was owed, the next slice is asked for at once."""
        self.asked = False
        self.bucket.lend(tokens)
        if self.bucket.level <= 0:
            self.low()


class Loans:
    """All of a worker's. `say` tells the supervisor; `granted` is told what it answers."""

    def __init__(self, say: Say, clock: Clock = time.monotonic) -> None:
        self.say = say
        self.workers = 1
        """How many there are; known before the first session."""
        self.now = clock
        self._loans: dict[Key, _Loan] = {}
        self._looked = clock()
        self._over = False

    def __len__(self) -> int:
        return len(self._loans)

    def slice_of(self, bucket: Bucket) -> float:
        """Give how much it has at most."""
        return slice_of(bucket.per_second, bucket.burst, self.workers)

    def lend_to(self, key: Key, bucket: Bucket) -> None:
        """Have a bucket borrow, before a session uses it. It may do so already, with another rate by now."""
        if self._over:
            return
        loan = self._loans.get(key)
        if loan is None or loan.bucket is not bucket:
            loan = _Loan(self, key, bucket)
        elif loan.said != (bucket.per_second, bucket.burst):
            loan.say(0)  # who waits there waits by the new rate
        bucket.borrow(loan.low, self.slice_of(bucket) / 2)
        loan.low()

    def know(self, loan: _Loan) -> bool:
        """Note that one is in use. Say whether there is somebody who lends."""
        if self._over:
            loan.stand_alone()
            return False
        now = loan.used = self.now()
        self._loans[loan.key] = loan
        if now - self._looked >= IDLE_SECONDS:
            self._looked = now
            self._give_back_what_is_idle(now - IDLE_SECONDS)
        return True

    def granted(self, key: Key, tokens: float) -> None:
        """The supervisor has lent something."""
        loan = self._loans.get(key)
        if loan is None:
            self.say(ChannelMessage("gives tokens back", {"key": key, "tokens": [tokens]}))
        else:
            loan.granted(tokens)

    def end(self) -> None:
        """The supervisor has ended, and each worker ends when its sessions have."""
        self._over = True
        for loan in self._loans.values():
            loan.stand_alone()
        self._loans.clear()

    def _give_back_what_is_idle(self, before: float) -> None:
        for key, loan in list(self._loans.items()):
            level = loan.bucket.level
            if loan.used <= before and not loan.asked and level >= 0:
                del self._loans[key]
                if level:
                    loan.bucket.lend(-level)
                    said = {"key": key, "tokens": [level]}
                    self.say(ChannelMessage("gives tokens back", said))

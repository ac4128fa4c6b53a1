"""Token buckets that sessions share fairly, and the gates that hold their requests back.

A `Bucket` fills with so many tokens a second, up to its burst. A request may begin while the level is above
zero, and then takes its whole cost, even if the level falls below zero. So a request of any size gets through a
bucket of any burst, and the average is exact: when one request has taken too much, the next waits until the
bucket has filled again.

Who comes first where several sessions share a bucket? Not whoever asks first: requests of 1 MiB would get 256
times what those of 4 KiB get. Each session has a *turn*, a virtual time that grows by the cost of what it
takes. The request that would end first by that time goes first (weighted fair queueing: Demers, Keshav and
Shenker, SIGCOMM 1989). The bucket's own virtual time grows by the cost of a request divided among all who want
something. A session that is new, or was idle, begins at the bucket's time: it does not have to wait until all
others have had as much as it, and gains nothing by having been idle. (If the request that begins first went
first, a session that waits for each reply would see every small request wait for a large one of each other
session.)

A `Gate` is one session's door. It may stand before several buckets: bytes and operations, of the session, its
identity, its export. It asks them one after the other, waits at the first that refuses, and charges all of them
when the last has agreed. So it never holds tokens while it waits. When a bucket has agreed to a request, it
does not take that back, even if others empty it before the request begins. If the gate had to ask again, one
that stands before two busy buckets would starve: each is open for an instant at a time, and hardly ever both at
once. So each gate that waits elsewhere may overdraw a bucket by one request; the average stays exact.

A bucket that is only *watched* holds nobody back. It says for how long it would have (`Bucket.would_hold`), and
counts that apart from its level. So when a rate that was tried out takes effect, its level has not been lowered
meanwhile.

Where a rate is one for several processes, each has a bucket that only *borrows*: what it holds does not come
with time, but is lent to it in slices by whoever has the one bucket of all (`gateway.workers.rates`).
There each process is a gate, with the `weight` of those who wait in it, and a slice is its request.

`Doors` knows which buckets are waited for, and when the earliest of them opens. Whoever owns it sleeps until
then and calls `open_due`. Nothing here sleeps, and a session without a gate costs nothing.

This is longer than other modules: a bucket, its gates and the order among them are one rule.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from enum import Enum
from itertools import count
from typing import NamedTuple

Clock = Callable[[], float]
"""Gives seconds that never go back."""

MAX_WAKES = 64
"""Gates that one `open_due` opens: each goes on with its session at once, and others want to run as well."""


class Unit(Enum):
    """What of a request a bucket counts."""

    BYTES = "bytes"
    """The length of a READ or WRITE; other commands cost nothing, and do not wait."""
    OPERATIONS = "operations"
    """Every request is one."""


class Bucket:
    """Tokens that come with time and go with requests. Everyone who shares one uses the same `clock`."""

    __slots__ = (
        "__weakref__",
        "_at",
        "_clock",
        "_doors",
        "_due",
        "_enough",
        "_level",
        "_low",
        "_now",
        "_queue",
        "_waiting_weight",
        "_would_at",
        "_would_level",
        "burst",
        "per_second",
        "shared",
    )

    def __init__(
        self,
        per_second: float,
        burst: float,
        clock: Clock = time.monotonic,
        shared: tuple[str, ...] = (),
    ) -> None:
        _check(per_second, burst)
        self.per_second = per_second
        self.burst = burst
        self.shared = shared
        """Who shares it, in words that are the same in every process of the gateway. Empty: all who do are in
        this process."""
        self._clock = clock
        self._level = float(burst)
        self._at = clock()  # when the level was that
        self._now = 0.0  # its virtual time
        self._queue: list[_Turn] = []  # who waits, in order
        self._waiting_weight = 0.0  # of all of them
        self._low: Callable[[], None] | None = None  # asks for more, where it only borrows
        self._enough = 0.0  # what it asks below
        self._doors: Doors | None = None  # of those who wait
        self._due: _Due | None = None  # its entry there
        # The same for requests that are only watched:
        self._would_level, self._would_at = self._level, self._at

    def __repr__(self) -> str:
        return f"<Bucket {self.per_second:g}/s, burst {self.burst:g}, level {self._level:g}>"

    @property
    def level(self) -> float:
        """What it holds now; below zero if it is overdrawn."""
        self._refill(self._clock())
        return self._level

    @property
    def full(self) -> bool:
        """Nothing of it has to be remembered: it holds its whole burst, and would if it had been charged for
        watched requests as well; or whoever lends to it remembers.
        """
        if self.borrows:
            return True
        self._refill_watched(self._clock())
        return self.level >= self.burst and self._would_level >= self.burst

    @property
    def waiting(self) -> int:
        """How many gates wait here."""
        return len(self._queue)

    def change(self, per_second: float, burst: float) -> None:
        """Go on with another rate, also for those who wait. The level stays, above zero or below it."""
        _check(per_second, burst)
        now = self._clock()
        self._refill(now)
        self._refill_watched(now)
        self.per_second = per_second
        self.burst = burst
        self._level = min(self._level, burst)
        self._would_level = min(self._would_level, burst)
        if self._doors is not None:
            self._doors.expect(self)

    # --- What is borrowed

    @property
    def borrows(self) -> bool:
        """What it holds is lent to it, and does not come with time."""
        return self._low is not None

    def borrow(self, low: Callable[[], None], enough: float) -> None:
        """Hold only what is lent, from now on. `low` is called whenever somebody is charged or waits and there
        is less than `enough`.
        """
        if self._low is None:
            self._level = min(0.0, self.level)
        self._low, self._enough = low, enough

    def borrow_no_more(self) -> None:
        """What it holds comes with time again."""
        self._low, self._at = None, self._clock()
        if self._doors is not None:
            self._doors.expect(self)

    def lend(self, tokens: float) -> None:
        """Add something to what it holds, or take something of it back (below 0)."""
        self._level += tokens
        if self._doors is not None:
            self._doors.expect(self)

    def _refill(self, now: float) -> None:
        seconds = now - self._at
        if seconds <= 0:
            return
        self._at = now
        if self._low is not None:
            return
        gained = seconds * self.per_second
        if self._queue:
            # Somebody waits, so the bucket was not idle: its driver is late (Trio's timers are good for a
            # millisecond). What came meanwhile must not be lost, however small the burst.
            self._level += gained
        elif self._level < self.burst:
            self._level = min(self._level + gained, self.burst)

    def would_hold(self, cost: float) -> float:
        """Charge a request that passes in any case to a level beside the real one. Give for how many seconds
        the bucket would have held it back.

        We reckon as if the request had waited so long, and as if all that its client sends after it had come so
        much later. So the next one is not held for the same bytes again, and the seconds of all requests add
        up.
        """
        self._refill_watched(self._clock())
        seconds = max(0.0, -self._would_level / self.per_second)
        self._would_level = max(0.0, self._would_level) - cost
        return seconds

    def _refill_watched(self, now: float) -> None:
        gained = max(0.0, now - self._would_at) * self.per_second
        self._would_level = min(self._would_level + gained, self.burst)
        self._would_at = max(self._would_at, now)

    def _lets(self, spot: _Spot, cost: float) -> bool:
        self._refill(self._clock())
        if not spot.asks:
            spot.asks = True
            spot.turn = max(spot.turn, self._now)
        if self._level <= 0:
            if self._low is not None:
                self._low()
            return False
        if not self._queue:
            return True
        first = self._queue[0]
        return first is spot.waits or spot.turn + cost / spot.gate.weight < first[0]

    def _charge(self, spot: _Spot, cost: float) -> None:
        self._refill(self._clock())  # it may have agreed long ago, and have been full since
        self._level -= cost
        weight = spot.gate.weight
        self._now += cost / (weight + self._waiting_weight)
        spot.turn += cost / weight
        spot.asks = False
        if self._low is not None and self._level < self._enough:
            self._low()

    def _opening(self) -> float:
        """Give when it lets somebody through, by its level at the last look.

        If it does not do so now, that is strictly later than the last look. By rounding, the level may still be
        short of zero then, and a driver that wakes for nothing must not wake at the same time for ever.
        """
        if self._level > 0:
            return self._at
        if self._low is not None:  # it opens when something is lent
            return math.inf
        return math.nextafter(self._at - self._level / self.per_second, math.inf)

    def _next_in_turn(self, now: float) -> _Spot | None:
        """Take the first out of the queue if there is one and it may go on."""
        self._refill(now)
        if self._level <= 0 or not self._queue:
            return None
        spot = self._queue[0][2]
        self._remove(spot)
        return spot

    def _insert(self, spot: _Spot, turn: _Turn) -> None:
        spot.waits = turn
        insort(self._queue, turn)
        self._waiting_weight += spot.gate.weight

    def _remove(self, spot: _Spot) -> None:
        assert spot.waits is not None
        del self._queue[bisect_left(self._queue, spot.waits)]
        spot.waits = None
        self._waiting_weight = self._waiting_weight - spot.gate.weight if self._queue else 0.0


class _Spot:
    """Where one gate stands at one bucket."""

    __slots__ = ("agreed", "asks", "bucket", "gate", "turn", "unit", "waits")

    def __init__(self, gate: Gate, bucket: Bucket, unit: Unit) -> None:
        self.gate = gate
        self.bucket = bucket
        self.unit = unit
        self.turn = 0.0
        """Its virtual time: where the request at the gate begins. If there is none, the next begins no
        earlier."""
        self.asks = False
        """There is a request at the gate; as long as there is, `turn` does not change."""
        self.waits: _Turn | None = None
        """Its entry in the queue."""
        self.agreed = False
        """The bucket has agreed to the request at the gate."""


_Turn = tuple[float, int, _Spot]
"""(virtual time when the request would have ended, a number that tells equal ones apart, who)"""

_Due = tuple[float, int, Bucket]
"""(when, a number that tells equal ones apart, what)"""

_numbers = count()


class Charge(NamedTuple):
    """A bucket, and what of a request it counts."""

    bucket: Bucket
    unit: Unit

    def __str__(self) -> str:
        return f"{self.bucket.per_second:.15g} {self.unit.value} per second"


Charges = Sequence[tuple[Bucket, Unit]]
"""What a session's requests are counted against."""


class Watch(NamedTuple):
    """A bucket that holds nothing back; `held` is told for how many seconds it would have."""

    bucket: Bucket
    unit: Unit
    held: Callable[[float], None]


class Gate:
    """One session's door. `wake` is called when a request that was held back may be tried again."""

    __slots__ = ("_doors", "_spots", "_waits_at", "_wake", "_watched", "weight")

    def __init__(
        self,
        charges: Charges,
        wake: Callable[[], None],
        doors: Doors,
        watched: Sequence[Watch] = (),
    ) -> None:
        self.weight = 1.0
        """So many times as much it gets as others. It does not change while a request is held back."""
        self._wake = wake
        self._doors = doors
        self._waits_at: _Spot | None = None
        self._spots = [_Spot(self, bucket, unit) for bucket, unit in charges]
        self._watched = watched

    @property
    def waits(self) -> bool:
        """A request is held back."""
        return self._waits_at is not None

    @property
    def waits_at(self) -> Bucket | None:
        """The bucket that holds it back."""
        return None if self._waits_at is None else self._waits_at.bucket

    def take(self, length: float) -> bool:
        """Let a request through and charge it everywhere; or say False, and call `wake` when the same request
        is to be tried again. `length` is that of its data.
        """
        spots = self._spots
        for spot in spots:
            if length or spot.unit is Unit.OPERATIONS:
                cost = length if spot.unit is Unit.BYTES else 1
                if not spot.agreed:
                    spot.agreed = spot.bucket._lets(spot, cost)
                if not spot.agreed:
                    self._wait_at(spot, cost)
                    return False
        self._leave()
        for spot in spots:
            spot.agreed = False
            if spot.unit is Unit.OPERATIONS:
                spot.bucket._charge(spot, 1)
            elif length:
                spot.bucket._charge(spot, length)
        for bucket, unit, held in self._watched:
            cost = length if unit is Unit.BYTES else 1
            seconds = bucket.would_hold(cost) if cost else 0
            if seconds:
                held(seconds)
        return True

    def replace(self, charges: Charges, watched: Sequence[Watch] = ()) -> None:
        """Count requests against other buckets from now on. In a bucket that stays, the gate keeps its turn."""
        turns = {(spot.bucket, spot.unit): spot.turn for spot in self._spots}
        waited = self.waits
        self._leave()
        self._spots = [_Spot(self, bucket, unit) for bucket, unit in charges]
        for spot in self._spots:
            spot.turn = turns.get((spot.bucket, spot.unit), 0)
        self._watched = watched
        if waited:
            self._wake()

    def close(self) -> None:
        """Wait for nothing any more; `wake` is not called again."""
        self._leave()
        self._spots = []
        self._watched = ()

    def _wait_at(self, spot: _Spot, cost: float) -> None:
        if self._waits_at is spot:
            return
        self._leave()
        self._waits_at = spot
        bucket = spot.bucket
        bucket._insert(spot, (spot.turn + cost / self.weight, next(_numbers), spot))
        if len(bucket._queue) == 1:
            self._doors.expect(bucket)

    def _leave(self) -> None:
        spot = self._waits_at
        if spot is None:
            return
        self._waits_at = None
        bucket = spot.bucket
        if spot.waits is not None:
            bucket._remove(spot)
            if not bucket._queue:
                self._doors.expect(bucket)

    def _open(self, spot: _Spot) -> None:
        """Its turn has come; the bucket has taken it out of the queue."""
        spot.agreed = True
        self._waits_at = None
        self._wake()


class Doors:
    """The buckets that gates wait for. Gates that share a bucket share this, too. `sooner` is called when
    `next_opening` has become earlier.
    """

    def __init__(self, sooner: Callable[[], None]) -> None:
        self._sooner = sooner
        self._due: list[_Due] = []

    def next_opening(self) -> float | None:
        """When `open_due` has something to do, by the buckets' clock, and not before; None: nobody waits."""
        return self._due[0][0] if self._due else None

    def open_due(self, now: float) -> None:
        """Wake the gates whose turn has come, in order, as long as the level lasts. If they are very many, some
        are left: call again (`next_opening` says so).
        """
        woken = 0
        while self._due and self._due[0][0] <= now and woken < MAX_WAKES:
            bucket = self._due[0][2]
            while woken < MAX_WAKES and (spot := bucket._next_in_turn(now)):
                spot.gate._open(spot)  # the gate may come back at once with its next request
                woken += 1
            self.expect(bucket)

    def expect(self, bucket: Bucket) -> None:
        """Find out anew when a bucket opens, or that nobody waits there any more."""
        if bucket._due is not None:
            del self._due[bisect_left(self._due, bucket._due)]
            bucket._due = bucket._doors = None
        if bucket._queue:
            bucket._doors = self
            bucket._due = bucket._opening(), next(_numbers), bucket
            insort(self._due, bucket._due)
            if self._due[0] is bucket._due:
                self._sooner()


def _check(per_second: float, burst: float) -> None:
    """Check both: without either, nothing would ever get through. A configuration was checked before; this is
    for whoever makes a bucket by hand.
    """
    for name, value in (("per_second", per_second), ("burst", burst)):
        if not 0 < value < math.inf:
            raise ValueError(f"a bucket's {name} is more than 0 and finite, not {value!r}")

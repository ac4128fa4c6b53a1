"""Limit how many bytes and how many operations there are in a second.

`bytes-per-second` counts the data of READ and WRITE, both directions together; `operations-per-second` counts
every command. At least one of them has to be given. Of a refused request, only the data that came with it
counts, not the length that it names. A client sees a slower disk and no errors: the gateway does not read its
next request before that may begin. A client that has a timeout for its requests gives up if the rate is far
too low for what it sends.

`per` says who shares a rate:

- `"session"` (default): nobody; each session has a rate of its own. A client that opens another connection
  has it twice: see `limit`, or choose one of the others.
- `"identity"`: all sessions of one client where the policy stands. A client is known by its PSK user, else
  its certificate's issuer and subject, else its Unix user, else its address.
- `"export"`: all sessions of one `[[export]]`. In a `[[rule]]`: of these, the sessions for which the rule
  decides.

Sessions that share a rate get equal bytes of it, not equal numbers of requests. The rate is exact on average.
A request that is longer than the burst begins at once, and what follows waits that much longer. A session
that was idle may have saved up to `burst-bytes` and `burst-operations`; without these, it is what a tenth of
a second brings, and one operation at least. To connect again shortens no wait and saves nothing up, except
with `"session"`.

Several workers have each of these rates together, as one process would.

On reload, a changed rate holds at once, also for running sessions. What they have saved up stays, and so does
what they still have to wait for.

With `mode = "observe"` nobody waits, and the log says how much each session would have waited (`would be
held`: how many commands, and seconds in all); sessions that share a rate share these seconds. When the rate
is enforced later, nobody waits for what was done before.

nbdkit's rate filter counts bits (its `rate=8M` is `bytes-per-second = "1M"`), has a rate for reads and one
for writes, and saves up 2 seconds (`burstiness`). Its `connection-rate` is `per = "session"`, its `rate` is
`per = "export"`; for both, give the policy twice.

    policies = [ { use = "rate", bytes-per-second = "10M", operations-per-second = 500, per = "identity" } ]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self
from weakref import WeakValueDictionary

from pydantic import model_validator

from gateway.policy import (
    Bucket,
    Charge,
    Field,
    Headcount,
    Policy,
    PrivateAttr,
    Scope,
    Session,
    Size,
    Unit,
)

BURST_SECONDS = 0.1
"""What is saved up by default: little enough that no second has much more than its rate."""

MAX_GONE = 1024
"""Identities and exports that have gone and whose buckets are remembered. A bucket fills by itself, so most are
forgotten soon; who can come under more names than this at a time needs another limit.
"""

_Key = tuple[str, Unit, object]
"""(`per`, what is counted, who)"""


@dataclass
class _Buckets:
    """Everybody's buckets at one place of the configuration."""

    clock: Callable[[], float] = time.monotonic
    live: WeakValueDictionary[_Key, Bucket] = field(default_factory=WeakValueDictionary)
    """Those that somebody uses, whether or not it joined: a session may be older than this policy. And
    those in `gone`."""
    held: dict[Session, dict[_Key, Bucket]] = field(default_factory=dict)
    """What sessions that have joined use."""
    gone: dict[_Key, Bucket] = field(default_factory=dict)
    """Of those who left, until they are full: nobody is to begin anew with a full bucket because it connects
    again."""

    def forget_the_full(self) -> None:
        """Drop what is full again, and beyond `MAX_GONE` what has been there for longest."""
        for key, bucket in list(self.gone.items()):
            if bucket.full:
                del self.gone[key]
        while len(self.gone) > MAX_GONE:
            del self.gone[next(iter(self.gone))]


class Rate(Policy):
    """`use = "rate"`."""

    bytes_per_second: Size | None = Field(None, description="Data of READ and WRITE in a second.")
    operations_per_second: float | None = Field(None, gt=0, description="Commands in a second.")
    burst_bytes: Size | None = Field(None, description="Bytes that may be saved up.")
    burst_operations: float | None = Field(None, ge=1, description="Commands that may be saved up.")
    per: Literal["session", "identity", "export"] = Field(
        "session", description="Who shares the rate."
    )

    # Sessions leave the instance that they joined, so it and its successors have the same buckets.
    _buckets: _Buckets = PrivateAttr(default_factory=_Buckets)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.bytes_per_second is None and self.operations_per_second is None:
            raise ValueError(
                "expected bytes-per-second or operations-per-second, or both, got none"
            )
        for what, rate, burst in (
            ("bytes", self.bytes_per_second, self.burst_bytes),
            ("operations", self.operations_per_second, self.burst_operations),
        ):
            if rate == 0:
                raise ValueError(f"expected {what}-per-second of more than 0, got 0")
            if burst == 0:
                raise ValueError(f"expected burst-{what} of 1 or more, got 0")
            if burst is not None and rate is None:
                raise ValueError(f"burst-{what} is given: expected {what}-per-second too, got none")
        return self

    def join(self, session: Session) -> Policy:
        """Remember what the session uses from now on: they may not be full when it leaves."""
        self._buckets.forget_the_full()
        self._buckets.held[session] = {}
        return self

    def remembers(self) -> Scope:
        """Those who share a rate."""
        scopes: Mapping[str, Scope] = {"session": "session", "export": "export"}
        return scopes.get(self.per, "place")

    def counted(self, session: Session) -> Sequence[Headcount]:
        """Turn nobody away. What all of this place share are buckets, which say so."""
        return ()

    def leave(self, session: Session) -> None:
        """Remember no more of it than its buckets, until they are full."""
        buckets = self._buckets
        for key, bucket in buckets.held.pop(session, {}).items():
            if key[0] != "session":  # nobody comes again as the same session
                buckets.gone[key] = bucket
        buckets.forget_the_full()

    def charges(self, session: Session) -> Sequence[Charge]:
        """Give the buckets that the session has, or shares; the same ones each time."""
        return [Charge(bucket, unit) for (_, unit, _), bucket in self._use(session).items()]

    def inherit(self, before: Self) -> None:
        """Go on with everybody's buckets, at the rates of now."""
        self._buckets = before._buckets
        rates = {unit: (rate, burst) for unit, rate, burst in self._rates()}
        for (_, unit, _), bucket in list(self._buckets.live.items()):
            if unit in rates:
                bucket.change(*rates[unit])

    def _use(self, session: Session) -> dict[_Key, Bucket]:
        live, who = self._buckets.live, self._who(session)
        used: dict[_Key, Bucket] = {}
        for unit, rate, burst in self._rates():
            key = (self.per, unit, who)
            bucket = live.get(key)
            if bucket is None:
                shared = self._shared(session, unit)
                live[key] = bucket = Bucket(rate, burst, self._buckets.clock, shared)
            used[key] = bucket
        if session in self._buckets.held:
            self._buckets.held[session] = used
        return used

    def _who(self, session: Session) -> object:
        if self.per == "session":
            return session.client.id
        return session.client.identity.key if self.per == "identity" else session.export

    def _shared(self, session: Session, unit: Unit) -> tuple[str, ...]:
        """Say who shares a bucket, if they may be in several processes: those of one export are all in one."""
        return (unit.value, *session.client.identity.key) if self.per == "identity" else ()

    def _rates(self) -> Iterator[tuple[Unit, float, float]]:
        """Give what is limited: rates and bursts."""
        for unit, rate, burst in (
            (Unit.BYTES, self.bytes_per_second, self.burst_bytes),
            (Unit.OPERATIONS, self.operations_per_second, self.burst_operations),
        ):
            if rate is not None:
                yield unit, rate, max(1, rate * BURST_SECONDS) if burst is None else burst

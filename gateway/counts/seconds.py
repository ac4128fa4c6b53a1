"""How long something took, each time, in a bounded number of numbers: how often it took how long.

The bounds are powers of two, so a bucket is found without a search, and what it says of a time is right within
a factor of two, from a reply out of memory to a server that is stuck. Adding costs no memory, however often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHORTEST_EXPONENT = -15
"""The first bucket is what took up to 2 to this seconds: 30.5 us, less than any request over a socket takes."""

LONGEST_EXPONENT = 6
"""The last bound: 64 s, longer than a client waits before it calls its disk dead. What takes longer has a
bucket without a bound."""

BOUNDS: Sequence[float] = tuple(
    2.0**exponent for exponent in range(SHORTEST_EXPONENT, LONGEST_EXPONENT + 1)
)
"""The upper bounds of all buckets but the last, in seconds."""

_PER_SECOND = 1 << -SHORTEST_EXPONENT
_LAST = len(BOUNDS)


class Seconds:
    """A histogram of times."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (_LAST + 1)
        """How many times were in each bucket; the last is for those above all `BOUNDS`."""
        self.total = 0.0
        """All times together, in seconds."""

    def add(self, seconds: float) -> None:
        """Add a time."""
        self.counts[bucket_of(seconds)] += 1
        self.total += seconds

    @property
    def count(self) -> int:
        """How many times were added."""
        return sum(self.counts)

    def at(self, share: float) -> float | None:
        """Give the bound, in seconds, under which this share (0 to 1) of all times was; infinity if they are
        above all bounds, None if there are none.
        """
        left = share * self.count
        if not left:
            return None
        for bound, count in zip(BOUNDS, self.counts, strict=False):
            left -= count
            if left <= 0:
                return bound
        return float("inf")


def bucket_of(seconds: float) -> int:
    """Give the number of the bucket that a time is in. (A time that is a bound is in the bucket above it: no
    clock tells the two apart.)
    """
    return min(int(seconds * _PER_SECOND).bit_length(), _LAST)


class ByCommand(dict[str, Seconds]):
    """Times by the name of a command. There are as many names as proto.md has commands, and one for others."""

    def __missing__(self, command: str) -> Seconds:
        made = self[command] = Seconds()
        return made


SHARES = {"half_under": 0.5, "p99_under": 0.99, "p999_under": 0.999}
"""What is said of times, and the share of them that it is about."""


def as_said(times: Mapping[str, Seconds]) -> dict[str, Any]:
    """Give times by command as names and numbers: how many, and the bounds under which half, 99 of 100, and all
    but one of a thousand were; in seconds, None if there is no such bound.
    """
    return {command: said_of(each) for command, each in times.items()}


def said_of(times: Seconds) -> dict[str, Any]:
    """Give the same of all times together."""
    count = times.count
    return {
        "sampled": count,
        "mean": round(times.total / count, 6) if count else None,
        **{name: _bounded(times.at(share)) for name, share in SHARES.items()},
        "total": round(times.total, 6),
        "buckets": _without_zeros(times.counts),
    }


def _without_zeros(counts: Sequence[int]) -> list[int]:
    """Leave out the buckets after the last that has any."""
    most = max((number for number, count in enumerate(counts, start=1) if count), default=0)
    return list(counts[:most])


def _bounded(bound: float | None) -> float | None:
    return None if bound is None or bound == float("inf") else bound

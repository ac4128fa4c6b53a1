"""What was acknowledged between two events of a disk, and the order of its events.

What was acknowledged is kept by *eras*: from one event of the disk's `Order` to the next. So a WRITE is no
event of its own, for there are many. All the same we know what came before a FLUSH and what came after it.

An era also knows when it was asked. The reply to a write may wait in a socket as long as a slow client does not
read, while its server is long gone. Whenever we see the reply, the write is in the memory of the process that
it was asked of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b

from gateway.losses.survival import Doubt
from gateway.losses.witnesses import Sample
from gateway.protocol.asks import Ask
from gateway.wire.limits import KIB, MIB
from gateway.wire.ranges import Range, merged, without

MOST_RANGES = 1024
"""How many ranges are kept of what was written between two FLUSHes. If there are more, they are widened to
whole blocks, and to larger ones as long as it takes. Then a loss makes more fail than it must, and never
less."""

LEAST_BLOCK_BYTES = 64 * KIB
"""The size of block that widening begins with."""

LONG_BYTES = 64 * MIB
"""A range of so many bytes or more that was written in one go stays a range: as blocks it would make all the
others wide."""

MOST_LONG = 16
"""How many ranges stay for that reason."""

LONG_AGO = -1
"""Before any event: when something was asked that only its own link knows of."""


class Keep(Enum):
    """What is kept of a write."""

    RANGES = "ranges"
    DIGESTS = "digests"
    DATA = "data"


KEPT = {
    Doubt.STICKY: Keep.RANGES,
    Doubt.ASSUME_DURABLE: Keep.RANGES,
    Doubt.VERIFY: Keep.DIGESTS,
    Doubt.REPLAY: Keep.DATA,
}
"""What has to be kept of a write until it is flushed."""


@dataclass(slots=True)
class Written:
    """One write, TRIM or WRITE_ZEROES that was acknowledged."""

    ask: Ask
    """The command; with its data only if that is kept."""
    digest: bytes | None = None
    """The digest of its data. None: we cannot tell what is there now (it was partly written over, or
    trimmed)."""


def digest_of(data: bytes | bytearray | memoryview) -> bytes:
    """Give what tells content from other content that a crash may have left."""
    return blake2b(data, digest_size=16).digest()


@dataclass(slots=True)
class Order:
    """The order of events of one disk. `now` is the number of the last one. What happens between two events has
    the number of the first.
    """

    now: int = 0

    def tick(self) -> int:
        """Something happens: give its number."""
        self.now += 1
        return self.now


@dataclass(slots=True, eq=False)
class Era:
    """What was acknowledged between two events.

    Every write of the data plane is added to it, so that only lengthens a list. To merge ranges is dear: it is
    done when the list is full, or when they are asked for.
    """

    first: int
    last: int
    """The events after which the first and the last of it were acknowledged. Whoever is told of a loss after
    that has all of it in doubt."""
    asked: int
    """The event after which the first of it was asked. A link that was up by then leads to the process that has
    it."""
    reached: int
    """The event after which the last of it reached its link's server, for the last time. Only a FLUSH that was
    sent after that covers it. Clients have heard of it then, or before (it was written again), or after (it is
    one step of a command)."""
    written: list[Written] = field(default_factory=list)
    whole: bool = True
    """We know what all of it is, and not only where (if that is wanted)."""
    bytes: int = 0
    """How many bytes of data take memory. Of a write that is kept in part, all of it may."""
    sample: Sample | None = None
    """A sample of one of its writes (`gateway.losses.witnesses`)."""
    _sample_due: int = 0
    """The next sample is taken when there are so many ranges."""
    _ranges: list[Range] = field(default_factory=list)
    _blocks: set[int] = field(default_factory=set)
    """The numbers of blocks that were written, since there were too many ranges."""
    _block: int = 0
    """Their size in bytes; 0: there are none yet."""

    def __bool__(self) -> bool:
        return bool(self._ranges or self._blocks)

    @property
    def ranges(self) -> list[Range]:
        """Where it is."""
        size = self._block
        return merged([*self._ranges, *((n * size, n * size + size) for n in self._blocks)])

    @property
    def as_noted(self) -> Sequence[Range]:
        """The same, without merging: what was written twice may be there twice."""
        return self.ranges if self._block else self._ranges

    def keep_sample(self, sample: Sample) -> None:
        """Keep a sample of what was added last, in place of the one before."""
        self.sample, self._sample_due = sample, 2 * len(self._ranges)

    def add(self, added: Iterable[Range]) -> bool:
        """Take in ranges that were written. Say whether a sample of the last one is wanted: it is if there is
        none, or if twice as much was written as when it was taken. Blocks have no samples, for in them what was
        written twice is there once.
        """
        ranges = self._ranges
        ranges += added
        if len(ranges) > MOST_RANGES:
            self._make_fewer()
        return not self._block and (self.sample is None or len(ranges) >= self._sample_due)

    def common(self, ranges: Iterable[Range]) -> list[Range]:
        """Give what of these ranges it has."""
        mine = self.ranges
        both = ((max(a, s), min(b, e)) for s, e in ranges for a, b in mine)
        return merged((start, end) for start, end in both if start < end)

    def take_out(self, start: int, end: int) -> None:
        """Take these bytes out. What is only known by its block stays."""
        if self.sample is not None and self.sample.start < end and start < self.sample.end:
            self.sample = None
        self._ranges = without(self._ranges, start, end)

    def absorb(self, later: Era) -> None:
        """Take in the era that came next. Whoever asks when it was acknowledged gets the first or the last time
        of both.
        """
        self.last = max(self.last, later.last)
        self.asked = min(self.asked, later.asked)
        self.reached = max(self.reached, later.reached)
        self.written += later.written
        self.whole = self.whole and later.whole
        self.bytes += later.bytes
        self.sample = None  # which of both has written it last is known no more
        self.add(later.ranges)

    def _make_fewer(self) -> None:
        """Merge ranges that touch. If that does not help, go over to blocks, except for long ranges without a
        gap.
        """
        self.sample = None  # what was written twice is there once now
        if not self._block:
            self._ranges = merged(self._ranges)
            if len(self._ranges) <= MOST_RANGES // 2:
                return
            self._block = LEAST_BLOCK_BYTES
        size, added, self._ranges = self._block, self._ranges, []
        wide = [each for each in added if each[0] // size != (each[1] - 1) // size]
        self._blocks |= {
            start // size for start, end in added if start // size == (end - 1) // size
        }
        for start, end in wide:
            if end - start >= LONG_BYTES and len(self._ranges) < MOST_LONG:
                self._ranges.append((start, end))
            else:
                self._add_blocks(start, end)
        while len(self._blocks) > MOST_RANGES:
            self._widen()

    def _add_blocks(self, start: int, end: int) -> None:
        while (end - start) // self._block > MOST_RANGES:
            self._widen()
        self._blocks.update(range(start // self._block, -(-end // self._block)))

    def _widen(self) -> None:
        self._block *= 2
        self._blocks = {number >> 1 for number in self._blocks}

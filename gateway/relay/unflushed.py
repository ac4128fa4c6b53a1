"""What has been acknowledged over a link, or a bundle of links, and is not known to be durable. Storage: the
rule by which it is covered or lost is in `losses`.

Everything that a server acknowledged since its last FLUSH may be in memory only. How much of it is kept
depends on what is done when the server comes back without it: the ranges alone, checksums to look for it, or
all of it to write it again.

What was acknowledged is kept by *eras*: from one event of the disk's `Order` to the next. So a WRITE, of which
there are many, costs no event of its own, and it is known all the same what came before a FLUSH and what after.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from hashlib import blake2b

from gateway.relay.scan.asks import Ask
from gateway.upstream.mode import Doubt
from gateway.wire.constants import Cmd
from gateway.wire.limits import KIB, MIB
from gateway.wire.ranges import Range, merged, touched, without

MOST_RANGES = 1024
"""Ranges that are kept of what was written between two FLUSHes. Beyond that they are widened to whole blocks,
larger ones as long as it takes: a loss then makes more fail than it must, and never less."""

LEAST_BLOCK_BYTES = 64 * KIB
"""What widening begins with."""

LONG_BYTES = 64 * MIB
"""What was written in one go, so many bytes or more, stays a range: in blocks it would make all others wide."""

MOST_LONG = 16
"""So many of these."""

MOST_ERAS = 64
"""Eras that are kept apart. Beyond that the oldest are taken for one: what was acknowledged in it is covered
when its last is, which asks for more than it must, and never for less."""


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
"""What has to be kept of what is not flushed."""


@dataclass(slots=True)
class Written:
    """One write, TRIM or WRITE_ZEROES that was acknowledged."""

    ask: Ask
    """With its data only where that is kept."""
    digest: bytes | None = None
    """Of its data; None: what is there now cannot be told (it is partly written over, or trimmed)."""


def digest_of(data: bytes | bytearray | memoryview) -> bytes:
    """Give what tells content from other content that a crash may have left."""
    return blake2b(data, digest_size=16).digest()


@dataclass(slots=True)
class Order:
    """The order of events of one disk: `now` is the number of the last. What happens between two events has
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

    It is added to with every write of the data plane, so that only lengthens a list. What is dear, to merge
    ranges, is done when the list is full, or when they are asked for.
    """

    first: int
    last: int
    """The events behind which the first and the last of it were acknowledged."""
    written: list[Written] = field(default_factory=list)
    bytes: int = 0
    _ranges: list[Range] = field(default_factory=list)
    _blocks: set[int] = field(default_factory=set)
    """Numbers of blocks that were written, from the time on when there were too many ranges."""
    _block: int = 0
    """Their size in bytes; 0: there are none yet."""

    def __bool__(self) -> bool:
        return bool(self._ranges or self._blocks)

    @property
    def ranges(self) -> list[Range]:
        size = self._block
        return merged([*self._ranges, *((n * size, n * size + size) for n in self._blocks)])

    def add(self, added: Iterable[Range]) -> None:
        self._ranges += added
        if len(self._ranges) > MOST_RANGES:
            self._make_fewer()

    def take_out(self, start: int, end: int) -> None:
        """These bytes do not count any more; what is only known by its block stays."""
        self._ranges = without(self._ranges, start, end)

    def absorb(self, later: Era) -> None:
        """Take in what came next. Whoever asks when it was acknowledged is told of the first, or of the
        last."""
        self.last = max(self.last, later.last)
        self.written += later.written
        self.bytes += later.bytes
        self.add(later.ranges)

    def _make_fewer(self) -> None:
        """Merge what touches. If that does not help, go over to blocks, but for what is long without a gap."""
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


class Unflushed:
    """What was acknowledged over one link, or one bundle. Without `records` it keeps nothing."""

    def __init__(
        self, keep: Keep = Keep.RANGES, order: Order | None = None, *, records: bool = True
    ) -> None:
        self.keep = keep
        self.eras: list[Era] = []
        """In order, none of them empty."""
        self.records = records
        self._order = order or Order()

    def __bool__(self) -> bool:
        return bool(self.eras)

    def __len__(self) -> int:
        """How many writes are kept, beside their ranges."""
        return sum(len(era.written) for era in self.eras)

    @property
    def bytes(self) -> int:
        """How much data is kept."""
        return sum(era.bytes for era in self.eras)

    def add(self, ask: Ask) -> None:
        """A command that writes has been acknowledged."""
        if not self.records:
            return
        digest = None
        if self.keep is Keep.DIGESTS:
            digest = digest_of(ask.data) if ask.command is Cmd.WRITE else None
            self._overwritten(ask.offset, ask.end)
        era = self._era()
        era.add([(ask.offset, ask.end)])
        if self.keep is Keep.DATA:
            era.written.append(Written(ask))
            era.bytes += len(ask.data)
        elif self.keep is Keep.DIGESTS:
            era.written.append(Written(replace(ask, data=b""), digest))

    def replaced(self, ask: Ask) -> None:
        """A command with FUA has been acknowledged: it is durable, and what it has written over is not to be
        looked for, nor written again on top of it.
        """
        if not self.touches(ask.offset, ask.end):
            return
        if self.keep is Keep.DATA:
            self.add(ask)  # in its place in the order
            return
        for era in self.eras:
            era.take_out(ask.offset, ask.end)
        self._overwritten(ask.offset, ask.end)
        self.eras = [era for era in self.eras if era]

    def note(self, ranges: Iterable[Range]) -> None:
        """The same of many, where ranges are all that is kept."""
        if self.records:
            self._era().add(ranges)

    def _era(self) -> Era:
        """Give that of now."""
        eras, now = self.eras, self._order.now
        if not eras or eras[-1].last != now:
            eras.append(Era(now, now))
            self._make_fewer()
        return eras[-1]

    def _make_fewer(self) -> None:
        """The oldest eras become one, so that what is new stays apart, and can be covered."""
        while len(self.eras) > MOST_ERAS:
            self.eras[0].absorb(self.eras.pop(1))

    def _overwritten(self, start: int, end: int) -> None:
        for era in self.eras:
            kept = []
            for written in era.written:
                ask = written.ask
                if ask.offset < end and start < ask.end:
                    if start <= ask.offset and ask.end <= end:
                        continue
                    written.digest = None
                kept.append(written)
            era.written = kept

    def absorb(self, other: Unflushed) -> None:
        """Take in what another one has, and leave nothing there."""
        self.eras = sorted([*self.eras, *other.take()], key=lambda era: era.first)
        self._make_fewer()

    def lacks(self, before: float, *, since: int) -> bool:
        """Say whether there is nothing that `take` would give."""
        return not any(era.last < before and era.first >= since for era in self.eras)

    def cover(self, before: int, *, since: int = -1) -> None:
        """What was acknowledged before one event, and not before another, is durable."""
        self.take(before, since=since)

    def take(self, before: float = math.inf, *, since: int = -1) -> list[Era]:
        """Give what was acknowledged before one event, and not before another; it is not kept any more."""
        eras = self.eras
        taken = [era for era in eras if era.last < before and era.first >= since]
        if taken:
            self.eras = [era for era in eras if not (era.last < before and era.first >= since)]
        return taken

    def take_era(self, era: Era) -> list[Era]:
        """Give one era, which is not kept any more."""
        self.eras.remove(era)
        return [era]

    @property
    def ranges(self) -> list[Range]:
        """Where it is."""
        return merged(each for era in self.eras for each in era.ranges)

    @property
    def written(self) -> list[Written]:
        """What it is, in the order in which it was acknowledged."""
        return [written for era in self.eras for written in era.written]

    def touches(self, start: int, end: int) -> bool:
        """Say whether any of these bytes are part of it."""
        return any(touched(era.ranges, start, end) for era in self.eras)

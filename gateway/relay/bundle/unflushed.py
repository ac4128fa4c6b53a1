"""What has been acknowledged to clients and is not known to be durable.

Everything that a server acknowledged since its last FLUSH may be in memory only. How much of it is kept
depends on what is done when the server comes back without it: the ranges alone, checksums to look for it, or
all of it to write it again.

A FLUSH covers what was acknowledged before it was sent. So `mark` is asked for when one is sent, and `flushed`
with that mark when it has answered 0: whatever was added in between stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from hashlib import blake2b

from gateway.relay.scan.asks import Ask
from gateway.upstream.mode import Doubt
from gateway.wire.constants import Cmd
from gateway.wire.limits import KIB, MIB

Range = tuple[int, int]
"""(start, end), in bytes; the end is not part of it."""

MOST_RANGES = 1024
"""Ranges that are kept of what was written between two FLUSHes. Beyond that they are widened to whole blocks,
larger ones as long as it takes: a loss then makes more fail than it must, and never less."""

LEAST_BLOCK_BYTES = 64 * KIB
"""What widening begins with."""

LONG_BYTES = 64 * MIB
"""What was written in one go, so many bytes or more, stays a range: in blocks it would make all others wide."""

MOST_LONG = 16
"""So many of these."""


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


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Give the same bytes in as few ranges as can be, in order."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def without(ranges: Iterable[Range], start: int, end: int) -> list[Range]:
    """Give ranges without the bytes from `start` up to `end`."""
    left = []
    for first, behind in ranges:
        if first < start:
            left.append((first, min(behind, start)))
        if behind > end:
            left.append((max(first, end), behind))
    return [each for each in left if each[0] < each[1]]


def touched(ranges: Iterable[Range], start: int, end: int) -> bool:
    """Say whether any of the bytes from `start` up to `end` are in the ranges."""
    return any(first < end and start < behind for first, behind in ranges)


@dataclass(slots=True)
class _Era:
    """What was acknowledged between two FLUSHes.

    It is added to with every write of the data plane, so that only lengthens a list. What is dear, to merge
    ranges, is done when the list is full, or when they are asked for.
    """

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
    """What one bundle, or one session over a link of its own, has written."""

    def __init__(self, keep: Keep = Keep.RANGES) -> None:
        self.keep = keep
        self._now = _Era()
        self._eras: dict[int, _Era] = {0: self._now}
        self._last = 0

    def __bool__(self) -> bool:
        return any(self._eras.values())

    def __len__(self) -> int:
        """How many writes are kept, beside their ranges."""
        return sum(len(era.written) for era in self._eras.values())

    @property
    def bytes(self) -> int:
        """How much data is kept."""
        return sum(era.bytes for era in self._eras.values())

    def add(self, ask: Ask) -> None:
        """A command that writes has been acknowledged."""
        era = self._now
        era.add([(ask.offset, ask.end)])
        if self.keep is Keep.DATA:
            era.written.append(Written(ask))
            era.bytes += len(ask.data)
        elif self.keep is Keep.DIGESTS:
            digest = digest_of(ask.data) if ask.command is Cmd.WRITE else None
            self._overwritten(ask.offset, ask.end)
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
        for era in self._eras.values():
            era.take_out(ask.offset, ask.end)
        self._overwritten(ask.offset, ask.end)

    def note(self, ranges: Iterable[Range]) -> None:
        """The same of many, where ranges are all that is kept."""
        self._now.add(ranges)

    def _overwritten(self, start: int, end: int) -> None:
        for era in self._eras.values():
            kept = []
            for written in era.written:
                ask = written.ask
                if ask.offset < end and start < ask.end:
                    if start <= ask.offset and ask.end <= end:
                        continue
                    written.digest = None
                kept.append(written)
            era.written = kept

    def mark(self) -> int:
        """A FLUSH is sent now: give what `flushed` has to be told when it has answered."""
        mark = self._last
        if self._now:
            self._begin()
            return mark
        return mark - 1

    def flushed(self, mark: int) -> None:
        """A FLUSH has answered 0."""
        for number in [number for number in self._eras if number <= mark]:
            del self._eras[number]

    def forget(self) -> None:
        """All of it is durable, or given up."""
        self._eras = {}
        self._begin()

    def _begin(self) -> None:
        self._last += 1
        self._eras[self._last] = self._now = _Era()

    @property
    def ranges(self) -> list[Range]:
        """Where it is."""
        return merged(each for era in self._eras.values() for each in era.ranges)

    @property
    def written(self) -> list[Written]:
        """What it is, in the order in which it was acknowledged."""
        return [written for era in self._eras.values() for written in era.written]

    def touches(self, start: int, end: int) -> bool:
        """Say whether any of these bytes are part of it."""
        return any(touched(era.ranges, start, end) for era in self._eras.values())

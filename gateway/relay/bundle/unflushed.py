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
from gateway.wire.constants import Cmd
from gateway.wire.limits import KIB

Range = tuple[int, int]
"""(start, end), in bytes; the end is not part of it."""

MOST_RANGES = 1024
"""Ranges that are kept of what was written between two FLUSHes. Beyond that they are widened to whole blocks,
larger ones as long as it takes: a loss then makes more fail than it must, and never less."""

LEAST_BLOCK_BYTES = 64 * KIB
"""What widening begins with."""


class Keep(Enum):
    """What is kept of a write."""

    RANGES = "ranges"
    DIGESTS = "digests"
    DATA = "data"


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
    """What was acknowledged between two FLUSHes."""

    ranges: list[Range] = field(default_factory=list)
    written: list[Written] = field(default_factory=list)
    bytes: int = 0

    def add(self, start: int, end: int) -> None:
        ranges = self.ranges
        if ranges and ranges[-1][1] == start:  # one after the other, as most is written
            ranges[-1] = ranges[-1][0], end
            return
        ranges.append((start, end))
        if len(ranges) > MOST_RANGES:
            self._make_fewer()

    def _make_fewer(self) -> None:
        block = LEAST_BLOCK_BYTES
        self.ranges = merged(self.ranges)
        while len(self.ranges) > MOST_RANGES // 2:
            widened = ((a - a % block, -(-b // block) * block) for a, b in self.ranges)
            self.ranges = merged(widened)
            block *= 2


class Unflushed:
    """What one bundle, or one session over a link of its own, has written."""

    def __init__(self, keep: Keep = Keep.RANGES) -> None:
        self.keep = keep
        self._eras: dict[int, _Era] = {0: _Era()}
        self._last = 0

    def __bool__(self) -> bool:
        return any(era.ranges for era in self._eras.values())

    def __len__(self) -> int:
        """How many writes are kept, beside their ranges."""
        return sum(len(era.written) for era in self._eras.values())

    @property
    def bytes(self) -> int:
        """How much data is kept."""
        return sum(era.bytes for era in self._eras.values())

    def add(self, ask: Ask) -> None:
        """A command that writes has been acknowledged."""
        era = self._eras[self._last]
        era.add(ask.offset, ask.end)
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
            era.ranges = without(era.ranges, ask.offset, ask.end)
        self._overwritten(ask.offset, ask.end)

    def note(self, offset: int, length: int) -> None:
        """The same, where ranges are all that is kept."""
        self._eras[self._last].add(offset, offset + length)

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
        if self._eras[mark].ranges:
            self._last += 1
            self._eras[self._last] = _Era()
            return mark
        return mark - 1

    def flushed(self, mark: int) -> None:
        """A FLUSH has answered 0."""
        for number in [number for number in self._eras if number <= mark]:
            del self._eras[number]

    def forget(self) -> None:
        """All of it is durable, or given up."""
        self._last += 1
        self._eras = {self._last: _Era()}

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

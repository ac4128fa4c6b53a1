"""Whether the disk that is found after a reconnect is the one that was left: what can bear witness to it. Pure.

A connection that is made again leads to whatever is at the address now. That may be a server that lost nothing;
one that gives each connection a disk of its own (nbd-server with copyonwrite, `nbdkit tmpdisk`, `qemu-nbd
--snapshot`); an older snapshot; or, behind a load balancer, another disk of the same size. On any of the last
three, what a client has written and *flushed* is gone, and nothing in NBD says so. So some of what was flushed
is remembered by a digest, and read back over the new connection before anything else is done there.

**How something becomes a witness.** When a WRITE is acknowledged its data is at hand for the last time. Then a
`Sample` is taken: the first bytes of the last WRITE of a batch, at most `PIECE_BYTES`, without a look at them.
It lies with the era (`unflushed`) in which the write was acknowledged, one an era, and shares its fate: lost
with it, or, when a FLUSH has covered it, made a `Witness` by its digest. It gives way to another one whenever
twice as much has been written in that era: so it is of the latter half, which an older snapshot lacks, and
takes no work per request. A WRITE with FUA is one at once. Of
zeros there is none: they are everywhere.

**What it may say.** Only what surely is on the disk. A witness that overlaps anything that was, or may have
been, written after it, or at the same time, is dropped, whichever session wrote that, and with whatever
command. No list is kept for that beside those that are there anyway:

- what is acknowledged and not flushed is in the eras of some trail, and what is under way in some in-flight
  table: these are asked when witnesses are to be read (`Losses.to_look_for`), and again when they have been;
- when something leaves these books, for whatever reason, it goes *over* the witnesses (`over`), and they go;
- so does what never was in the books: a write with FUA, one that failed, one of which nobody will hear.

A sample is no witness yet, and what goes over has to be held against it when it becomes one. So the last of
that is remembered (`MOST_OVER` ranges); of a sample that is older than what is remembered nothing is known, and
it is dropped. What was under way together with a write, and went over before that was acknowledged, may come
out on top of it all the same: so a sample counts from when its write was *asked*.

**Whose witnesses are looked for.** Those of the scope in which the session that reconnects relies on writes
(`Losses.scope`). With CAN_MULTI_CONN, or over shared links, all of the disk: what any session has flushed has
to be seen over every connection. Without, only its own: what others have written over theirs it need not see,
and its own it has to see over whatever follows the connection that it wrote over. Who has written nothing looks
for nothing: what others make of the disk is theirs to notice. Nor does anybody look for what was written before
his own first connection was made: he may have come when the disk was another one already.

**What a difference means** (`is_another`). Without CAN_MULTI_CONN nobody but this gateway's session may be
counted on to have changed what it wrote; with `sole-writer` that was even promised. So one difference is
enough. With CAN_MULTI_CONN the disk may well have other writers, that go past this gateway: heartbeats and
leases of a cluster are written over by others all the time. So it takes most of the `NEWEST`, and more than
one. Those are what an older snapshot lacks, however little older it is; of another disk nothing is right. So it
is where clients of other gateways write to the disk as well (`Survival.through_us`).

What it costs: nothing per request. A sample is a reference to bytes that were copied anyway, or a copy of
`PIECE_BYTES`: ten of them for a thousand WRITEs between two FLUSHes. A FLUSH costs some ten microseconds: a
digest for each era that it has covered (most of the time one), and a tenth of a microsecond for each range. So
does a batch with FUA.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from gateway.wire.limits import KIB
from gateway.wire.ranges import Range, fewer, touched

Data = bytes | bytearray | memoryview

MOST_WITNESSES = 64
"""How many are kept of one disk: the newest. To read them takes four rounds over a new connection, before
anything else goes on."""

PIECE_BYTES = 4 * KIB
"""How much of one write we look at, at most: a block of most file systems, and a page of most databases. All
witnesses together are a quarter of a megabyte to read."""

NEWEST = 4
"""What was written last is the first that an older snapshot lacks. Of so many of the newest, most have to be
gone: half of them and one more. So two over which others have written do not end a session."""

MOST_OVER = 1024
"""How many ranges are remembered, to be compared with samples: as many as are kept between two FLUSHes. They
are some ten KiB of references to what was there anyway."""

_ZEROS = bytes(PIECE_BYTES)

MOST_UNKNOWN = 64
"""How many ranges of writes that may come late are kept. If there are more, the least gaps between them are
closed."""

ANOTHER_DISK = (
    "the server is there again with another disk, or with an older state of this one: what was written and"
    " flushed is not there"
)


@dataclass(slots=True)
class Sample:
    """The first bytes of a write that was acknowledged, and is not flushed."""

    start: int
    data: Data = field(repr=False)
    at: int
    """`Witnesses.gone_over` when the write was asked."""

    @property
    def end(self) -> int:
        """The byte after it."""
        return self.start + len(self.data)


@dataclass(frozen=True, slots=True, eq=False)
class Witness:
    """Some bytes that were written and flushed; nothing has been written over them since."""

    start: int
    end: int
    digest: bytes = field(repr=False)
    scope: object
    """The session that alone relies on it; None: all do."""
    at: int = 0
    """`Witnesses.gone_over` when it was asked to be written."""

    def says(self, data: Data) -> bool:
        """Say whether this is what was written there."""
        return _digest(data) == self.digest


@dataclass(frozen=True, slots=True)
class Flushed:
    """What a FLUSH has covered: the ranges of an era, its sample, and whose it is."""

    ranges: Sequence[Range]
    sample: Sample | None
    scope: object


class Witnesses:
    """The witnesses of one disk."""

    def __init__(self) -> None:
        self.gone_over = 0
        """How often something was written that may have gone over them."""
        self.blind = False
        """Somebody writes to the disk whose writes are not noted, so there can be no witnesses."""
        self._newest_last: dict[Witness, None] = {}
        # The same by place; they do not overlap. `_ends` has one more, before the first: who searches for the
        # last that begins before some byte finds it at the same index, or nothing.
        self._by_start: list[Witness] = []
        self._starts: list[int] = []
        self._ends: list[int] = [-1]
        self._over: deque[tuple[int, Sequence[Range]]] = deque()
        """(`gone_over` then, what has gone over them), the last of it."""
        self._over_count = 0
        self._unknown: list[Range] = []
        self._forgotten = 0
        """`gone_over` of the last one that is not remembered any more."""

    def __len__(self) -> int:
        return len(self._by_start)

    def over(self, ranges: Sequence[Range]) -> None:
        """All this was written, or may have been written, or may still be."""
        if not ranges:
            return
        self.gone_over += 1
        self._over.append((self.gone_over, ranges))
        self._over_count += len(ranges)
        while self._over_count > MOST_OVER and len(self._over) > 1:
            self._forgotten, gone = self._over.popleft()
            self._over_count -= len(gone)
        if self._by_start:
            starts, ends = self._starts, self._ends
            hit = [(start, end) for start, end in ranges if ends[bisect_left(starts, end)] > start]
            for start, end in hit:
                for witness in [w for w in self._by_start if w.start < end and start < w.end]:
                    self.drop(witness)

    def unknown(self, start: int, end: int) -> None:
        """A write has failed, and we do not know whether it was done, or will be: the end of its connection did
        not stop it. Where it may come there is no witness any more.
        """
        self.over([(start, end)])
        self._unknown = fewer([*self._unknown, (start, end)], MOST_UNKNOWN)

    def flushed(self, eras: Collection[Flushed]) -> None:
        """A FLUSH has covered all this. What no two of the writes have written can bear witness."""
        good = [
            (era.sample, era.scope)
            for era in eras
            if era.sample is not None and self._stands(era.sample, eras)
        ]
        for era in eras:
            self.over(era.ranges)
        for sample, scope in good:
            self._add(sample, scope)

    def durable(self, written: Sequence[Range], sample: Sample | None, scope: object) -> None:
        """Writes with FUA have been acknowledged."""
        self.flushed([Flushed(written, sample, scope)])

    def _stands(self, sample: Sample, eras: Collection[Flushed]) -> bool:
        """Say whether nobody has written there since but the write that a sample is of."""
        if self.blind or sample.at < self._forgotten:
            return False
        start, end = sample.start, sample.end
        if touched(self._unknown, start, end):
            return False
        for at, ranges in reversed(self._over):
            if at <= sample.at:
                break
            if touched(ranges, start, end):
                return False
        # Its own write is one of these.
        return sum(s < end and start < e for era in eras for s, e in era.ranges) == 1

    def _add(self, sample: Sample, scope: object) -> None:
        data = sample.data
        if data == _ZEROS[: len(data)]:
            return
        witness = Witness(sample.start, sample.end, _digest(data), scope, sample.at)
        at = bisect_left(self._starts, witness.start)
        self._starts.insert(at, witness.start)
        self._ends.insert(at + 1, witness.end)
        self._by_start.insert(at, witness)
        self._newest_last[witness] = None
        if len(self._newest_last) > MOST_WITNESSES:
            self.drop(next(iter(self._newest_last)))

    def drop(self, witness: Witness) -> None:
        """Drop a witness. Dropping it twice is once."""
        if self._newest_last.pop(witness, witness) is None:
            at = bisect_left(self._starts, witness.start)
            del self._starts[at], self._ends[at + 1], self._by_start[at]

    def drop_touched(self, ranges: Sequence[Range]) -> None:
        """Drop the witnesses that overlap any of this, because we do not know yet whether it was written."""
        for witness in list(self._newest_last):
            if touched(ranges, witness.start, witness.end):
                self.drop(witness)

    def begin(self) -> int:
        """A link was made. Give what `of` has to be told to give only what is written from now on."""
        self.gone_over += 1
        return self.gone_over

    def of(self, scope: object, since: int = 0) -> list[Witness]:
        """Give those of a scope, the newest first; `since`: only of what was asked since then (`begin`)."""
        return [
            each for each in reversed(self._newest_last) if each.scope is scope and each.at >= since
        ]

    def forget(self, scope: object) -> None:
        """The session of a scope has ended: drop what it alone relied on."""
        for witness in self.of(scope):
            self.drop(witness)

    def clear(self) -> None:
        """Begin anew: nobody relies on the disk any more, or somebody says that it is another one."""
        for witness in list(self._newest_last):
            self.drop(witness)
        self._forgotten = self.gone_over = self.gone_over + 1
        self._over.clear()
        self._over_count = 0
        self._unknown.clear()

    def look_away(self) -> None:
        """From now on somebody writes whose writes are not noted (`blind`)."""
        self.blind = True
        self.clear()


def is_another(
    newest_first: Sequence[Witness], differ: Collection[Witness], *, strict: bool
) -> bool:
    """Say whether the disk is another one, or an older one, if these witnesses differ. `strict`: nobody else
    can have written there.
    """
    if strict:
        return bool(differ)
    newest = newest_first[:NEWEST]
    gone = sum(witness in differ for witness in newest)
    return gone > 1 and 2 * gone > len(newest)


def sample_of(start: int, data: Data, at: int) -> Sample:
    """Take a sample of a write that was acknowledged: its first bytes. `data` does not change any more, unless
    it is a memoryview.
    """
    if isinstance(data, memoryview) or len(data) > PIECE_BYTES:
        data = bytes(memoryview(data)[:PIECE_BYTES])
    return Sample(start, data, at)


def _digest(data: Data) -> bytes:
    return sha256(data).digest()  # processors do it: a third of what blake2b costs there

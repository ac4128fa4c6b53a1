"""What several clients of one disk may read, may lose and may be told. Pure.

Theory
------

As in `tests.relay.registers`: commands take time, from when their client begins to send them until it has the
reply; an unanswered one never ends; two are in order if one has ended before the other begins, and concurrent
otherwise. Here every block of 512 bytes is a register, each write has a stamp of its own, and a block's bytes
say which write it was. So a READ may give a block what one of its writes has left, unless another write to it
lies wholly between the two.

What is new is that servers die, and lose what they have acknowledged:

- a write is *safe* once it is answered with FUA, or once a FLUSH is answered that was sent later. Unless
  whoever sent that FLUSH was told before that something is lost, which the write may have been part of:
  *telling* is a FLUSH that fails, after a loss. Each session has to be told itself; one that was opened after
  the write began may leave that to any other.
- a write that is not safe may be gone after a loss, but who has not been told of it may not notice. For
  those, reading what was before is as wrong as after a FLUSH.
- a write that began when the dead server was surely gone has not been lost with it.
- stable storage has to hold, at any moment, what safe writes left, or something newer.

That leaves one thing open, which `inversions` looks for: a value that comes back after a newer one was
read, as when a write is issued again. Of a history without losses, with a stamp for each write, it is known
when an order of all commands explains it (Gibbons and Korach, "Testing Shared Memories", 1997): take each
write with the READs that gave it; if the first of them to end has done so before the last began, the value
was surely there in between. No two values were there at once, and none came and went while another was
surely there.

`Loss` is when a server was killed and when it was surely dead. In a history without one, what was acknowledged
stays. That is also what a gateway promises that keeps all that is not flushed (`unflushed = "replay"`): do not
tell the oracle of losses then.

Every command is an `Op`: made by `Session.write`, `read`, `flush`; ended by `Op.end`, which raises `Broken`; or
never ended. The clock counts those events.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from struct import Struct

BLOCK_BYTES = 512
NEVER = 10**12
MANY = 32
"""So many writes of one block are remembered before those are looked for that nobody may read any more."""

_MARK = Struct(">QQ")


class Broken(AssertionError):
    """A promise was broken."""


def block(stamp: int, number: int) -> bytes:
    """Give what a write of a stamp leaves in a block; stamp 0 is zeros."""
    return _MARK.pack(stamp, number) * (BLOCK_BYTES // _MARK.size) if stamp else bytes(BLOCK_BYTES)


def content(stamp: int, start: int, count: int) -> bytes:
    """Give the payload of a write of `count` blocks."""
    return b"".join(block(stamp, number) for number in range(start, start + count))


def stamps_of(data: bytes | bytearray | memoryview, start: int = 0) -> list[int]:
    """Give the stamp of each block from block `start` on. Raises `Broken` for a block that no write left."""
    found: list[int] = []
    for number, stamps in enumerate(mixtures_of(data, start), start=start):
        if len(stamps) > 1:
            raise Broken(f"block {number} is torn: it has stamps {sorted(stamps)}")
        found += stamps
    return found


def mixtures_of(data: bytes | bytearray | memoryview, start: int = 0) -> list[set[int]]:
    """Give the stamps in each block: several if a READ was given it while it was being written, as by qemu-nbd,
    since no system call holds readers and writers apart. Raises `Broken` for bytes of no write.
    """
    found = []
    for at in range(0, len(data), BLOCK_BYTES):
        number = start + at // BLOCK_BYTES
        piece = bytes(data[at : at + BLOCK_BYTES])
        stamp, _ = _MARK.unpack_from(piece)
        if piece == block(stamp, number):
            found.append({stamp})
            continue
        marks = list(_MARK.iter_unpack(piece)) if len(piece) == BLOCK_BYTES else []
        # A mark of zeros has the number 0; memory is copied in words, so half of each may come together.
        if not marks or any(whose not in (0, number) for _, whose in marks):
            raise Broken(
                f"block {number} is another's, or nobody's: it begins with {piece[:16].hex()}"
            )
        found.append({stamp for stamp, _ in marks})
    return found


@dataclass(eq=False)
class Loss:
    """A server that dies."""

    began: int
    ended: int = NEVER
    """It is surely dead, and carries out nothing any more."""


@dataclass(eq=False)
class Op:
    """One command."""

    session: Session | None
    """None: what was there in the beginning, or somebody who looks at the disk."""
    kind: str
    """"read", "write" or "flush"."""
    start: int = 0
    count: int = 0
    """In blocks."""
    stamp: int = 0
    fua: bool = False
    certain: bool = True
    """A write that, once ended, has left its stamp; a TRIM need not have."""
    began: int = 0
    ended: int = NEVER
    error: int = 0
    safe: bool = False
    gone: set[int] = field(default_factory=set)
    """Its blocks that a crash has surely lost."""
    told_before: int | None = None
    """See `Oracle._told_before`."""

    @property
    def data(self) -> bytes:
        """A write's payload."""
        return content(self.stamp, self.start, self.count)

    @property
    def good(self) -> bool:
        """It was answered, without an error."""
        return self.ended < NEVER and not self.error

    def end(self, error: int = 0, data: bytes | bytearray = b"") -> None:
        """Say how it was answered, and what a READ gave. Raises `Broken`."""
        assert self.session is not None
        self.session.oracle._end(self, error, data)

    def __str__(self) -> str:
        who = self.session.name if self.session else "the beginning"
        blocks = f" of {self.count} blocks at {self.start}" if self.count else ""
        stamp = f", stamp {self.stamp}" if self.kind == "write" else ""
        ended = "not answered" if self.ended == NEVER else f"to {self.ended}"
        fua = " with FUA" if self.fua else ""
        return f"{self.kind}{fua}{blocks}{stamp}, by {who} from {self.began} {ended}"


@dataclass(eq=False)
class Session:
    """One client's connection."""

    oracle: Oracle
    name: str
    opened: int
    closed: int = NEVER

    def write(
        self,
        start: int,
        count: int,
        *,
        fua: bool = False,
        zeros: bool = False,
        certain: bool = True,
    ) -> Op:
        """Begin a write; `zeros` for WRITE_ZEROES, and for TRIM with `certain` false."""
        return self.oracle._begin_write(self, start, count, fua=fua, zeros=zeros, certain=certain)

    def read(self, start: int, count: int) -> Op:
        """Begin a READ."""
        return self.oracle._begin(Op(self, "read", start, count))

    def flush(self) -> Op:
        """Begin a FLUSH."""
        return self.oracle._begin(Op(self, "flush"))

    def close(self) -> None:
        """Say that the connection is gone; what was not answered never will be."""
        self.closed = self.oracle._tick()
        for op in list(self.oracle._under_way):
            if op.session is self:
                self.oracle._under_way.discard(op)


@dataclass
class Oracle:
    """All that has happened to a disk of so many `blocks`, all zeros in the beginning."""

    blocks: int
    coherent: bool = True
    """What one session has written others see at once. If not, a READ is held to its own session's writes."""
    now: int = 0
    losses: list[Loss] = field(default_factory=list)
    flushes: list[Op] = field(default_factory=list)
    """Those that did not succeed, or not yet."""
    _writes: list[list[Op]] = field(default_factory=list)
    _zones: list[dict[int, tuple[int, int]]] = field(default_factory=list)
    """For each block and stamp: when the first of its commands ended, and the last began."""
    _unsafe: list[Op] = field(default_factory=list)
    _under_way: set[Op] = field(default_factory=set)
    _last_stamp: int = 0

    def __post_init__(self) -> None:
        first = Op(None, "write", 0, self.blocks, began=-2, ended=-1, safe=True)
        self._writes = [[first] for _ in range(self.blocks)]
        self._zones = [{} for _ in range(self.blocks)]

    def session(self, name: str) -> Session:
        """Say that a client has begun to connect."""
        return Session(self, name, self._tick())

    def lose(self) -> Loss:
        """Say that a server is about to be killed; tell the loss `dead` when it is."""
        loss = Loss(self._tick())
        self.losses.append(loss)
        return loss

    def dead(self, loss: Loss) -> None:
        """Say that the killed server carries out nothing any more."""
        loss.ended = self._tick()

    def may_be_read(self, number: int, by: Session | None = None) -> set[int]:
        """Give the stamps that a READ of a block may give that is sent and answered now."""
        look = Op(by, "read", number, 1, began=self._tick())
        look.ended = self._tick()
        return {write.stamp for write in self._readable(look, number)}

    def check_stable(
        self, stamps: Sequence[int], what: str = "stable storage", *, gone: bool = False
    ) -> int:
        """Hold what a crash has left against what is safe. Give how many blocks have lost something that was
        acknowledged; raises `Broken` where that was safe.

        `gone`: nobody brings that back, so from now on a FLUSH may not claim it.
        """
        lost = 0
        for number, stamp in enumerate(stamps):
            newest = self._certain(number, lambda op: op.safe)
            allowed = self._left_by(number, newest)
            if stamp not in allowed:
                raise Broken(self._said(what, number, stamp, allowed, newest))
            newest = self._certain(number, lambda op: True)
            if stamp not in self._left_by(number, newest):
                lost += 1
                if gone:
                    self._lose(number, stamp)
        return lost

    def _lose(self, number: int, stamp: int) -> None:
        """Writes to a block that have come wholly after what was left there are gone."""
        left = [write.ended for write in self._writes[number] if write.stamp == stamp]
        for write in self._certain(number, lambda op: op.began > max(left)):
            write.gone.add(number)

    def check_final(self, stamps: Sequence[int], *, lossless: bool = False) -> None:
        """Hold the disk against everything, when it is over: a READ of it all, by somebody who has come last.
        `lossless`: what was acknowledged has to be there, whatever was told. Raises `Broken`.
        """
        now = self._tick()
        look = Op(Session(self, "the end", now), "read", began=now, ended=self._tick())
        if lossless:
            look.told_before = -NEVER
        for number, stamp in enumerate(stamps):
            self._check(look, number, stamp, "the disk")

    def inversions(self) -> list[str]:
        """Give the blocks in which no order of all commands explains what was read, and why; without losses."""
        found = []
        for number, zones in enumerate(self._zones):
            held = sorted(
                (end, begin, stamp) for stamp, (end, begin) in zones.items() if end < begin
            )
            for one, other in pairwise(held):
                if other[0] < one[1]:
                    found.append(
                        f"block {number} had stamp {one[2]} until {one[1]}, and {other[2]} from {other[0]}"
                    )
            starts = [end for end, _, _ in held]
            for stamp, (end, begin) in zones.items():
                at = bisect(starts, begin) - 1
                if begin <= end and at >= 0 and end < held[at][1]:
                    found.append(
                        f"block {number} had stamp {held[at][2]} from {held[at][0]} to {held[at][1]}, "
                        f"and {stamp} in between, from {begin} to {end}"
                    )
        return found

    # --- Events

    def _tick(self) -> int:
        self.now += 1
        return self.now

    def _begin(self, op: Op) -> Op:
        op.began = self._tick()
        self._under_way.add(op)
        if op.kind == "flush":
            self.flushes.append(op)
        return op

    def _begin_write(
        self, session: Session, start: int, count: int, *, fua: bool, zeros: bool, certain: bool
    ) -> Op:
        self._last_stamp += 1
        stamp = 0 if zeros else self._last_stamp
        op = self._begin(Op(session, "write", start, count, stamp, fua, certain))
        for number in range(start, start + count):
            self._writes[number].append(op)
            if len(self._writes[number]) > MANY:
                self._forget(number)
        return op

    def _end(self, op: Op, error: int, data: bytes | bytearray) -> None:
        now = self._tick()
        self._under_way.discard(op)
        op.error = error
        if op.kind == "write":
            # One that has failed may take effect at any time: it never ends.
            op.ended = NEVER if error else now
            op.safe = op.fua and not error
            if not error and op.stamp:
                for number in range(op.start, op.start + op.count):
                    self._note(op, number, op.stamp)
            if not error and not op.safe:
                self._unsafe.append(op)
            return
        op.ended = now
        if op.kind == "flush":
            if error:
                self._check_telling(op)
            else:
                self.flushes.remove(op)
                self._make_safe(op)
        elif not error:
            found = mixtures_of(data, op.start)
            if len(found) != op.count:
                raise Broken(f"{op} gave {len(data)} bytes")
            for number, stamps in enumerate(found, start=op.start):
                for stamp in stamps:
                    self._check(op, number, stamp, str(op))
                if len(stamps) == 1:
                    self._note(op, number, *stamps)
        elif not self._is_tainted(op):
            raise Broken(f"{op} failed with error {error}, and nothing was lost that was not told")

    def _note(self, op: Op, number: int, stamp: int) -> None:
        if stamp:  # zeros may be of any write of zeros
            end, begin = self._zones[number].get(stamp, (NEVER, -NEVER))
            self._zones[number][stamp] = min(end, op.ended), max(begin, op.began)

    def _make_safe(self, flush: Op) -> None:
        """What was acknowledged before a FLUSH was sent that has succeeded."""
        left = []
        for write in self._unsafe:
            if write.ended < flush.began and not self._was_told(write, flush):
                write.safe = True
                for number in write.gone:
                    self._check_claim(flush, write, number)
            else:
                left.append(write)
        self._unsafe = left

    def _check_claim(self, flush: Op, write: Op, number: int) -> None:
        """What is gone may have been written again."""
        if not self._certain(number, lambda op: op.began > write.ended and number not in op.gone):
            raise Broken(f"{flush} succeeded, but block {number} of {write} was lost")

    # --- Rules

    def _check(self, look: Op, number: int, stamp: int, what: str) -> None:
        readable = self._readable(look, number)
        if not any(write.stamp == stamp for write in readable):
            newest = self._certain(number, lambda op: self._holds(op, look))
            raise Broken(
                self._said(what, number, stamp, {write.stamp for write in readable}, newest)
            )

    def _said(
        self, what: str, number: int, stamp: int, allowed: set[int], newest: Sequence[Op]
    ) -> str:
        wrote = [write for write in self._writes[number] if write.stamp == stamp]
        last = max(newest, key=lambda write: write.ended, default=None)
        return (
            f"{what}: block {number} has stamp {stamp} "
            f"({wrote[-1] if wrote else 'of no write that could be there'}), not one of {sorted(allowed)}; "
            f"there was {last}{' (safe)' if last and last.safe else ''}, and it is now {self.now}"
        )

    def _readable(self, look: Op, number: int) -> list[Op]:
        """Give the writes that have left what a READ may give of a block."""
        holding = self._certain(number, lambda op: self._holds(op, look))
        return [
            write
            for write in self._writes[number]
            if write.began < look.ended
            and not any(
                write.ended < other.began and self._is_seen(write, other, look) for other in holding
            )
        ]

    def _holds(self, write: Op, look: Op) -> bool:
        """Say whether a write has ended before a READ, and is still there as far as the reader may know."""
        return write.ended < look.began and (write.safe or not self._was_told(write, look))

    def _is_seen(self, write: Op, later: Op, look: Op) -> bool:
        if self.coherent or look.session is None:
            return True
        return later.session is look.session and write.session in (None, look.session)

    def _certain(self, number: int, when: Callable[[Op], bool]) -> list[Op]:
        return [
            write
            for write in self._writes[number]
            if write.certain and write.ended < NEVER and when(write)
        ]

    def _left_by(self, number: int, newest: Iterable[Op]) -> set[int]:
        began = max((write.began for write in newest), default=-NEVER)
        return {write.stamp for write in self._writes[number] if write.ended >= began}

    def _was_told(self, write: Op, asked: Op) -> bool:
        """Say whether whoever sends `asked` may have been told that a write is lost."""
        if asked.told_before is None:
            asked.told_before = self._told_before(asked)
        return write.began < asked.told_before

    def _told_before(self, asked: Op) -> int:
        """Give when what has begun earlier may be lost, as whoever sends `asked` may know."""
        opened = asked.session.opened if asked.session else 0
        horizon = -NEVER
        for flush in self.flushes:
            if flush is asked or flush.began >= asked.ended:
                continue
            assert flush.session is not None
            until = min(flush.ended, flush.session.closed)
            told = next(
                (loss.ended for loss in reversed(self.losses) if loss.began < until), -NEVER
            )
            own = flush.session is asked.session
            horizon = max(horizon, told if own else min(told, opened))
        return horizon

    def _is_tainted(self, asked: Op) -> bool:
        """Say whether a command may fail: there was a loss of which its session has not been told, or another
        one in place of it.
        """
        assert asked.session is not None
        opened = asked.session.opened
        return any(
            loss.began < asked.ended and not self._is_settled(loss, asked, opened)
            for loss in self.losses
        )

    def _is_settled(self, loss: Loss, asked: Op, opened: int) -> bool:
        for flush in self.flushes:
            if flush is asked or flush.ended == NEVER or flush.began < loss.ended:
                continue
            own = flush.session is asked.session and flush.ended < asked.began
            if own or (opened > loss.ended and flush.ended < opened):
                return True
        return False

    def _check_telling(self, flush: Op) -> None:
        if not self._is_tainted(flush):
            raise Broken(
                f"{flush} failed with error {flush.error}, and nothing was lost that was not told"
            )

    # --- To stay small

    def _forget(self, number: int) -> None:
        """Drop writes that nothing may read, now or later: a safe one came wholly after."""
        oldest = min((op.began for op in self._under_way if op.kind != "write"), default=self.now)
        newest = max(
            (
                write.began
                for write in self._writes[number]
                if write.safe and write.certain and write.ended < oldest
            ),
            default=-NEVER,
        )
        gone = [write for write in self._writes[number] if write.ended < newest]
        self._writes[number] = [write for write in self._writes[number] if write.ended >= newest]
        # It is not looked for any more in blocks where it is still remembered, if it has others: it stays
        # not safe there, which only allows more.
        forgotten = {id(write) for write in gone if write.count == 1}
        self._unsafe = [write for write in self._unsafe if id(write) not in forgotten]

"""What is remembered of what a session does over a link of its own, so that it can live on when that dies.

Three things, all in the upstream's ranges:

- data of the client's WRITEs until they are answered, for they have to be asked again elsewhere. It is kept
  where it was received, or, if it is short, in a copy;
- what has been acknowledged and is not known to be durable. The data plane only notes it, many at a time;
- what the server says is lost, for the others on that disk have to be told.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from gateway.protocol.commands import WRITE_CLASS
from gateway.relay.scan.locks import Entry
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.limits import MIB

if TYPE_CHECKING:
    from gateway.relay.scan.traffic import Traffic

MAX_KEPT_BYTES = 32 * MIB
"""Data of WRITEs that is kept until they are answered, before no further request is begun. One of any size is
always taken, so a session keeps less than twice as much."""

LOSING = frozenset({Errno.EIO, Errno.ENOSPC})
"""Errors of a FLUSH by which a server says that something was lost, and it will not say so twice. With others
it has not tried."""

_WRITE = int(Cmd.WRITE)
_FUA = CmdFlag.FUA << 16


class Pinned(Protocol):
    """A buffer that is not used for anything else while it has pins."""

    pins: int

    def unpin(self) -> None:
        """Take a pin off."""
        ...


class Acknowledged(Protocol):
    """What is not known to be durable (`gateway.relay.bundle.unflushed` is one)."""

    def note(self, ranges: Iterable[tuple[int, int]]) -> None:
        """These have been written: (start, end)."""
        ...

    def mark(self) -> int:
        """A FLUSH is sent."""
        ...

    def forget(self) -> None:
        """It is lost, and that is known."""
        ...

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Where it is: (start, end)."""
        ...

    def flushed(self, mark: int) -> None:
        """The FLUSH that was given this mark has answered 0."""
        ...


class Losses(Protocol):
    """What is lost (`gateway.relay.bundle.ledger` is one)."""

    tainted: bool
    """There may be something."""

    def written(self, start: int, end: int) -> None:
        """Bytes have been written again."""
        ...

    def flush_failed(self, traffic: Traffic, why: str, *, told: bool) -> None:
        """The server has said over one link that it could not flush; its client is `told` so."""
        ...


Kept = bytearray | list[tuple[Pinned, memoryview]]
"""Data of a WRITE: a copy, or where it was received."""


class Memory:
    """Of one session, over one link."""

    __slots__ = ("acknowledged", "answered", "kept", "kept_bytes", "losses", "marks")

    def __init__(self, acknowledged: Acknowledged, losses: Losses) -> None:
        self.acknowledged = acknowledged
        self.losses = losses
        self.kept: dict[int, Kept] = {}
        """Our cookie -> data of a client's WRITE that is not answered."""
        self.kept_bytes = 0
        self.answered: list[tuple[int, Entry]] = []
        """(our cookie, what it was) of commands without data in their reply that have succeeded: whoever adds
        to it calls `remember`, once for many."""
        self.marks: dict[int, int] = {}
        """Our cookie of a FLUSH -> what `Acknowledged.mark` gave for it."""

    def take_data(self) -> dict[int, bytes]:
        """Give what has come of the client's WRITEs (by our cookie), which is not kept any more."""
        data = {}
        for ours, kept in self.kept.items():
            pieces = [kept] if isinstance(kept, bytearray) else [view for _segment, view in kept]
            data[ours] = b"".join(pieces)
        self.forget_all()
        return data

    def forget(self, ours: int, length: int) -> None:
        """A client's WRITE is answered."""
        kept = self.kept.pop(ours, None)
        if kept is not None:
            self.kept_bytes -= length
            if type(kept) is list:
                for segment, _view in kept:
                    segment.unpin()

    def forget_all(self) -> None:
        """Nobody is to have any of it again."""
        for ours in list(self.kept):
            self.forget(ours, 0)
        self.kept_bytes = 0

    def flush_is_sent(self, ours: int) -> None:
        """A FLUSH goes upstream."""
        self.marks[ours] = self.acknowledged.mark()

    def succeeded(self, ours: int, word: int, offset: int, length: int) -> None:
        """A command without data in its reply has succeeded."""
        command = word & 0xFFFF
        if command == Cmd.FLUSH:
            self.acknowledged.flushed(self.marks.pop(ours))
        elif command in WRITE_CLASS:
            self.forget(ours, length)
            if not word & _FUA:
                self.acknowledged.note([(offset, offset + length)])
            if self.losses.tainted:
                self.losses.written(offset, offset + length)

    def remember(self) -> None:
        """Do the same for all that are `answered`."""
        kept = self.kept
        noted = []
        freed = 0
        for ours, (_cookie, word, offset, length) in self.answered:
            if word & 0xFFFF != _WRITE:
                self.succeeded(ours, word, offset, length)
                continue
            data = kept.pop(ours)
            freed += length
            if type(data) is list:
                for segment, _view in data:
                    segment.unpin()
            if not word & _FUA:
                noted.append((offset, offset + length))
            if self.losses.tainted:
                self.losses.written(offset, offset + length)
        self.kept_bytes -= freed
        if noted:
            self.acknowledged.note(noted)
        self.answered.clear()

    def failed(
        self,
        traffic: Traffic,
        ours: int,
        word: int,
        error: int,
        text: str = "",
        *,
        told: bool = True,
    ) -> None:
        """A command that is no READ has failed, which was under way in this traffic. `told`: it was the
        client's, which hears of it.
        """
        if word & 0xFFFF == Cmd.FLUSH:
            del self.marks[ours]
            if error in LOSING:
                self.losses.flush_failed(traffic, text or Errno(error).name, told=told)

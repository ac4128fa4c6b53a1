"""What is remembered of what a session does over a link of its own, so that it can live on when that dies.

Two things, both in the upstream's ranges:

- the data of the client's WRITEs until they are answered, for it may have to be sent again, elsewhere. It is
  kept where it was received, or, if it is short, in a copy;
- what has been acknowledged and is not known to be durable. The data plane only notes it, many at a time.

`gateway.losses.rule` says what becomes of all that when the link dies.
"""

from __future__ import annotations

from typing import Protocol

from gateway.jobs.locks import Entry
from gateway.losses.eras import LONG_AGO
from gateway.losses.rule import Trail
from gateway.losses.witnesses import Data, Sample, sample_of
from gateway.protocol.commands import WRITE_CLASS
from gateway.wire.constants import Cmd, CmdFlag
from gateway.wire.limits import MIB
from gateway.wire.ranges import Range

MAX_KEPT_BYTES = 32 * MIB
"""How much data of unanswered WRITEs a session keeps. While it keeps so much, it begins no request; while it
keeps less, it takes what is in a buffer, and a WRITE of any size. So it keeps no more than this, a buffer, and
the longest WRITE."""

MOST_NEWS = 16
"""How many events of the disk are remembered, to tell when a command was asked. A command that is older than
these is taken to be as old as can be: then only its own link covers it, and a FLUSH that has failed since may
have lost it."""

_WRITE = int(Cmd.WRITE)
_FUA = CmdFlag.FUA << 16


class Pinned(Protocol):
    """A buffer that is not used for anything else while it has pins."""

    pins: int

    def unpin(self) -> None:
        """Take a pin off."""
        ...


Kept = bytearray | list[tuple[Pinned, memoryview]]
"""Data of a WRITE: a copy, or where it was received."""


class Memory:
    """The memory of one session, over one link. What is acknowledged goes to its `trail`."""

    __slots__ = (
        "_gone_over",
        "_last_news",
        "_losses",
        "_news",
        "_old",
        "_older",
        "_quiet",
        "_trail",
        "_witnesses",
        "answered",
        "kept",
        "kept_bytes",
    )

    def __init__(self, trail: Trail) -> None:
        self._losses = trail.losses
        self._witnesses = trail.losses.witnesses
        self._trail = trail
        self._last_news = trail.losses.asked()
        self._news: list[tuple[int, int]] = []
        """(our newest cookie when something came that changes `Losses.asked`, what that was before)."""
        self._old = self._older = 0
        """Commands with our cookies up to these may have been asked before the last event in `_news`, and
        before the first of them."""
        self._gone_over = self._witnesses.gone_over
        """`Witnesses.gone_over`, as far as this memory has seen it."""
        self._quiet = 0
        """Commands with our cookies up to this may have been asked before that."""
        self.kept: dict[int, Kept] = {}
        """Our cookie -> data of a client's WRITE that is not answered."""
        self.kept_bytes = 0
        self.answered: list[tuple[int, Entry]] = []
        """(our cookie, what it was) of commands without data in their reply that have succeeded, and of which
        nothing is noted yet. Whoever feeds the scanner that adds to it calls `remember`, once for many, as soon
        as the replies have been sent: so a client that waits for them does not wait for that, too."""

    def take_data(self) -> dict[int, bytes]:
        """Give the data that has come of the client's WRITEs, by our cookies, and keep it no more."""
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
        """Forget all of it: nobody will ask for it again."""
        for ours in list(self.kept):
            self.forget(ours, 0)
        self.kept_bytes = 0

    def look_for_news(self, last_cookie: int) -> None:
        """Look whether another link has come up, for that knows nothing of what was asked before, whenever we
        hear the answer. Look also whether a FLUSH has failed, for the server may have carried out before it
        what is under way.
        """
        news = self._losses.last_news
        if news != self._last_news:
            self._news.append((last_cookie, self._last_news))
            self._last_news, self._old = news, last_cookie
            if len(self._news) > MOST_NEWS:
                self._older, _event = self._news.pop(0)
        gone_over = self._witnesses.gone_over
        if gone_over != self._gone_over:
            self._gone_over, self._quiet = gone_over, last_cookie

    def _asked(self, ours: int) -> int:
        """Give an event before which a command was surely not asked (`Losses.asked`)."""
        if ours <= self._older:
            return LONG_AGO
        return next((event for newest, event in self._news if ours <= newest), self._last_news)

    def _note(self, ours: int, offset: int, length: int, sample: Sample | None) -> None:
        """Bytes were written, and are not durable."""
        ranges, asked = [(offset, offset + length)], self._asked(ours)
        if self._losses.is_done_before(self._trail, asked):
            self._losses.done_before(self._trail, ranges)
        else:
            unflushed = self._trail.unflushed
            if unflushed.note(ranges, asked):
                unflushed.keep_sample(sample)

    def _sample(self, ours: int, offset: int, data: Kept | Data | None) -> Sample | None:
        """Take a sample of a WRITE that has been acknowledged, if we know of everything that came while it was
        under way.
        """
        if ours <= self._quiet:
            return None
        if type(data) is list:
            # Where it was received; nothing is received there while we look.
            data = data[0][1] if data else None
        return sample_of(offset, data, self._gone_over) if data else None  # type: ignore[arg-type]

    def succeeded(
        self,
        ours: int,
        word: int,
        offset: int,
        length: int,
        last_cookie: int,
        own: Range | None = None,
        data: Data | None = None,
    ) -> None:
        """A command without data in its reply has succeeded, and it is no FLUSH. `last_cookie`: the newest of
        ours. `data`: of a WRITE that is not the client's.
        """
        self.look_for_news(last_cookie)
        if word & 0xFFFF in WRITE_CLASS:
            sample = self._sample(ours, offset, data or self.kept.get(ours))
            self._trail.wrote = True
            self.forget(ours, length)
            if self._losses.tainted:
                self._losses.written(self._trail, *(own or (offset, offset + length)))
            if not word & _FUA:
                self._note(ours, offset, length, sample)
            else:
                self._losses.durable(self._trail, [(offset, offset + length)], sample)

    def failed(self, ours: int, word: int, offset: int, length: int) -> None:
        """A command has failed: what it should have written may be there, or not."""
        self.forget(ours, length)
        if word & 0xFFFF in WRITE_CLASS:
            self._witnesses.over([(offset, offset + length)])

    def remember(self, last_cookie: int) -> None:
        """Do the same for all that are `answered`."""
        self.look_for_news(last_cookie)
        kept, old = self.kept, self._old
        noted: list[Range] = []
        fua: list[Range] = []
        freed = 0
        answered = self.answered.copy()
        if not answered:
            return
        self.answered.clear()  # first: whatever goes wrong, it is done once
        newest, (_cookie, word, offset, _length) = answered[-1]
        plain = word & 0xFFFF == _WRITE and newest > old
        sampled = newest, offset, kept[newest] if plain else None
        for ours, (_cookie, word, offset, length) in answered:
            if word & 0xFFFF != _WRITE:
                self.succeeded(ours, word, offset, length, last_cookie)
                continue
            data = kept.pop(ours)
            freed += length
            if type(data) is list:
                for segment, _view in data:
                    segment.unpin()
            if self._losses.tainted:
                self._losses.written(self._trail, offset, offset + length)
            if word & _FUA:
                fua.append((offset, offset + length))
                continue
            if ours > old:
                noted.append((offset, offset + length))
            else:
                self._note(ours, offset, length, None)
        self.kept_bytes -= freed
        if fua:
            self._losses.durable(self._trail, fua, self._sample(*sampled) if word & _FUA else None)
        if noted:
            self._trail.wrote = True
            unflushed = self._trail.unflushed
            if unflushed.note(noted, self._last_news) and not word & _FUA:
                unflushed.keep_sample(self._sample(*sampled))

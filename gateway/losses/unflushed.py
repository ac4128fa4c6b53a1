"""What was acknowledged over a link, or a bundle of links, and is not known to be durable. This only stores it:
the rule by which it is covered or lost is in `rule`.

Everything that a server has acknowledged since its last FLUSH may be in memory only. What is kept of it depends
on what we do when the server comes back without it: the ranges alone, checksums to look for it, or all of it to
write it again. It is kept by eras (`eras`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from gateway.losses.eras import LONG_AGO, Era, Keep, Order, Written, digest_of
from gateway.losses.witnesses import Sample
from gateway.protocol.asks import Ask
from gateway.wire.constants import Cmd
from gateway.wire.ranges import Range, merged, touched

MOST_ERAS = 64
"""How many eras are kept apart. If there are more, the oldest ones become one, which is covered when its last
part is. So more is asked of a FLUSH than it must cover, and never less. What is new stays apart while a FLUSH
is under way, unless dozens of other FLUSHes are: then it has to be proved."""

SAMPLED_ERAS = 4
"""Samples are kept of so many eras, the newest ones. So a session that writes and does not FLUSH, while others
do, has no more than four pages."""


class Unflushed:
    """What was acknowledged over one link, or one bundle. Without `records` nothing is kept. `begun` is called
    when the first is there. `gone` is called with ranges that are not kept any more, or never were; not with
    those that a FLUSH has covered.
    """

    def __init__(
        self,
        keep: Keep = Keep.RANGES,
        order: Order | None = None,
        *,
        records: bool = True,
        begun: Callable[[], None] = lambda: None,
        gone: Callable[[Sequence[Range]], None] = lambda _ranges: None,
    ) -> None:
        self.keep = keep
        self._wanted = keep
        self.eras: list[Era] = []
        """In order, none of them empty."""
        self.records = records
        self.closed = False
        """Nothing is kept any more: whatever is acknowledged now reaches nobody."""
        self._order = order or Order()
        self._begun = begun
        self._gone = gone
        self._apart = -1
        """What was acknowledged before this event never becomes one era with what was acknowledged after it."""

    def __bool__(self) -> bool:
        return bool(self.eras)

    def __len__(self) -> int:
        """How many writes are kept, beside their ranges."""
        return sum(len(era.written) for era in self.eras)

    @property
    def bytes(self) -> int:
        """How much data is kept."""
        return sum(era.bytes for era in self.eras)

    def add(self, ask: Ask, asked: int | None = None) -> bool:
        """Take in a command that writes and was acknowledged. `asked`: what `Losses.asked` gave for it, if that
        was not just now. Say whether a sample of it is wanted (`keep_sample`).
        """
        if not self.records or self.closed:
            self._gone([(ask.offset, ask.end)])
            return False
        digest = None
        if self.keep is Keep.DIGESTS:
            digest = digest_of(ask.data) if ask.command is Cmd.WRITE else None
            self._overwritten(ask.offset, ask.end)
        era = self._era(asked)
        is_wanted = era.add([(ask.offset, ask.end)])
        if self.keep is Keep.DATA:
            era.written.append(Written(ask))
            era.bytes += len(ask.data)
        elif self.keep is Keep.DIGESTS:
            era.written.append(Written(replace(ask, data=b""), digest))
        else:
            era.whole = False
        return is_wanted

    def replaced(self, ask: Ask) -> None:
        """A command with FUA was acknowledged: it is durable. What it has written over is not looked for any
        more. It is not written again either, even if this command would be written again after it, for the
        server may die between the two.
        """
        if not self.touches(ask.offset, ask.end):
            return
        # Which of both is there nobody can tell, if both were under way.
        self._gone([(ask.offset, ask.end)])
        for era in self.eras:
            era.take_out(ask.offset, ask.end)
        self._overwritten(ask.offset, ask.end)
        self.eras = [era for era in self.eras if era]

    def note(self, ranges: Sequence[Range], asked: int | None = None) -> bool:
        """Take in many ranges at once, where only ranges are kept. The sample is of one of them."""
        if not self.records or self.closed:
            self._gone(ranges)
            return False
        return self._era(asked).add(ranges)

    def keep_sample(self, sample: Sample | None) -> None:
        """Keep the sample that was wanted of what was added last. None: it could not be had."""
        if sample is not None:
            self.eras[-1].keep_sample(sample)
            for era in self.eras[:-SAMPLED_ERAS]:
                era.sample = None

    def _era(self, asked: int | None) -> Era:
        """Give the era of now, for something that was asked at an event."""
        eras, now = self.eras, self._order.now
        if asked is None:
            asked = now
        if eras:
            era = eras[-1]
            if era.first == now and era.asked == asked:
                return era
        else:
            self._begun()
        eras.append(Era(now, now, asked, now))
        self._make_fewer()
        return eras[-1]

    def keep_apart(self) -> None:
        """A FLUSH is sent that has to cover all there is. Nothing that is acknowledged until it is answered
        becomes one era with what was before. Otherwise a FLUSH of others would wait as long as anything is
        written here.
        """
        self._apart = self._order.now

    def _make_fewer(self) -> None:
        """Make the oldest eras one, so that what is new stays apart, and can be covered."""
        while len(self.eras) > MOST_ERAS:
            at = int(self.eras[0].reached < self._apart <= self.eras[1].first)
            self.eras[at].absorb(self.eras.pop(at + 1))

    def forget_content(self) -> None:
        """Nobody will look for it any more, or write it again. Keep only where it is."""
        for era in self.eras:
            era.written.clear()
            era.bytes = 0
            era.whole = False

    def keep_less(self) -> None:
        """There is no room for more than where it is."""
        self.keep = Keep.RANGES
        self.forget_content()

    def keep_as_before(self) -> None:
        """There is room again."""
        self.keep = self._wanted

    @property
    def is_whole(self) -> bool:
        """We know what all of it is, so that it can be looked for, or written again."""
        return all(era.whole for era in self.eras)

    def _overwritten(self, start: int, end: int) -> None:
        for era in self.eras:
            kept: list[Written] = []
            for written in era.written:
                ask = written.ask
                if end <= ask.offset or ask.end <= start:
                    kept.append(written)
                elif start <= ask.offset and ask.end <= end:
                    era.bytes -= len(ask.data)
                elif self.keep is Keep.DATA:
                    parts = ((ask.offset, start), (end, ask.end))
                    kept += [Written(ask.part(*each)) for each in parts if each[0] < each[1]]
                else:
                    written.digest = None
                    kept.append(written)
            era.written = kept

    def absorb(self, other: Unflushed) -> None:
        """Take in what another one has, and leave nothing there."""
        taken = other.cover(math.inf)
        if taken and not self.eras:
            self._begun()
        self.eras = sorted([*self.eras, *taken], key=lambda era: era.first)
        self._make_fewer()

    def renew(self) -> None:
        """All of it was found, or written again, over a link that is up now. Only a FLUSH over that link covers
        it. The time when it was acknowledged stays, so a session that was told of a loss since then has it in
        doubt.
        """
        for era in self.eras:
            era.reached, era.asked = self._order.now, LONG_AGO
            era.sample = None  # that it is there may be taken on trust

    def renew_since(self, event: int, written: Sequence[Range]) -> None:
        """Count what was acknowledged of these ranges after an event as acknowledged now. What is kept of
        writes stays in one era with them, in its order: there all of an era counts so.
        """
        now, apart = self._order.now, []
        for era in self.eras:
            here = era.common(written) if era.last >= event else []
            if here and era.written:
                era.last = now
            elif here:
                later = Era(now, now, era.asked, era.reached, whole=era.whole)
                later.add(here)
                for start, end in here:
                    era.take_out(start, end)
                apart.append(later)
        if apart:
            self.eras = [*(era for era in self.eras if era), *apart]
            self._make_fewer()

    def take(self) -> list[Era]:
        """Give all there is, and keep it no more."""
        taken, self.eras = self.eras, []
        for era in taken:
            self._gone(era.as_noted)
        return taken

    def cover(self, before: float, *, since: int = LONG_AGO) -> list[Era]:
        """Give what reached the server before one event, and was not asked before another; keep it no more. It
        is durable, or kept elsewhere.
        """
        eras = self.eras
        taken = [era for era in eras if era.reached < before and era.asked >= since]
        if taken:
            self.eras = [era for era in eras if not (era.reached < before and era.asked >= since)]
        return taken

    @property
    def first(self) -> float:
        """The event after which the first of it was acknowledged; infinite if there is nothing."""
        return self.eras[0].first if self.eras else math.inf

    def begun_before(self, event: int) -> list[Era]:
        """Give the eras that have something from before an event. They are kept."""
        return [era for era in self.eras if era.first < event]

    def drop(self, eras: Collection[Era]) -> None:
        """Keep these no more."""
        for era in eras:
            self._gone(era.as_noted)
        self.eras = [era for era in self.eras if era not in eras]

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

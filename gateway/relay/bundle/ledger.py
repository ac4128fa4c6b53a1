"""What is lost of an export, and who has still to be told.

A server that restarts may have lost what it acknowledged. As Linux does for fsync, every session that was open
at the loss is told once, by EIO at its next FLUSH; if none of them lives to be told, the first that opens the
export later is. Until a session has been told, or the bytes are written again, its READs of what is lost get
EIO: never old data.

A loss counts from the moment on in which the link is found dead, not when there is another one: a FLUSH over
a link that is new knows nothing of it. A server that dies takes all its links along, and one after the other is
found dead. That is one loss, of which each session is told once.

One ledger for each export of an upstream, whatever sessions and bundles it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from gateway.relay.bundle.unflushed import Range, merged, without
from gateway.relay.scan.fences import Fences
from gateway.relay.scan.traffic import Traffic

ONE_CAUSE_SECONDS = 1.0
"""Links that were there before the first was found dead, and are found dead so soon after it, died with it."""


@dataclass(slots=True)
class _Loss:
    why: str
    ranges: list[Range]


class Ledger:
    """The sessions of one export, and what they owe."""

    def __init__(self) -> None:
        self._open: dict[Traffic, None] = {}
        self.fences = Fences()
        """Where its sessions may not write for a while."""
        self.tainted = False
        """Something may be lost; false as long as nothing ever was."""
        self.bundles = 0
        """How many bundles tell it of losses."""
        self._untold: _Loss | None = None  # what no session has been told yet
        self._lost_at = -math.inf
        self._told_since: set[Traffic] = set()

    @property
    def traffics(self) -> list[Traffic]:
        """The sessions that are open."""
        return list(self._open)

    def join(self, traffic: Traffic) -> None:
        """A session opens the export."""
        self._open[traffic] = None
        traffic.fences = self.fences
        traffic.told = partial(self._told, traffic)
        loss = self._untold
        if loss is not None:
            traffic.owe(loss.why, loss.ranges)

    def leave(self, traffic: Traffic) -> None:
        """A session has ended."""
        if traffic in self._open:
            del self._open[traffic]
            traffic.forget_losses()
        self._told_since.discard(traffic)

    def exchange(self, before: Traffic, after: Traffic) -> None:
        """A session goes on with another traffic, which has taken over what the one before owed."""
        if before in self._open:
            del self._open[before]
            self._open[after] = None
            after.fences = self.fences
            after.told = partial(self._told, after)
            if before in self._told_since:
                self._told_since.remove(before)
                self._told_since.add(after)

    def lose(
        self,
        why: str,
        ranges: Iterable[Range],
        *,
        but: Traffic | None = None,
        at: float = -math.inf,
        since: float = math.inf,
    ) -> None:
        """What was acknowledged in these ranges may be gone; all sessions have to be told, except one that is
        told `but` now. `at`: when a link was found dead that was there `since` (seconds of one clock); without
        that it is a loss of its own.
        """
        self.tainted = True
        lost = merged(ranges)
        same = since <= self._lost_at and at - self._lost_at < ONE_CAUSE_SECONDS
        if not same:
            self._lost_at = at
            self._told_since.clear()
        if not self._told_since:
            before = [] if self._untold is None else self._untold.ranges
            self._untold = _Loss(why, merged([*before, *lost]))
        for traffic in self._open:
            if traffic is not but and traffic not in self._told_since:
                traffic.owe(why, lost)
        if but is not None:
            self._told(but)

    def written(self, start: int, end: int) -> None:
        """Bytes have been written (again): what is there now is what a client wrote."""
        if self._untold is not None:
            self._untold.ranges = without(self._untold.ranges, start, end)
        for traffic in self._open:
            if traffic.lost:
                traffic.lost = without(traffic.lost, start, end)

    def flush_failed(self, traffic: Traffic, why: str, *, told: bool) -> None:
        """A FLUSH over a session's own link has failed, of which its client is `told`, or nobody."""
        assert traffic.memory is not None
        written = traffic.memory.acknowledged
        but = traffic if told else None
        self.lose(f"a FLUSH of the server has failed: {why}", written.ranges, but=but)
        written.forget()

    @property
    def quiet(self) -> bool:
        """Nothing is lost that anybody has to be told of."""
        return self._untold is None and not any(each.unflushed for each in self._open)

    @property
    def in_use(self) -> bool:
        """There are sessions, or bundles, or there is something that the next session has to be told."""
        return bool(self._open or self.bundles or self.fences) or self._untold is not None

    def _told(self, traffic: Traffic) -> None:
        self._untold = None
        self._told_since.add(traffic)

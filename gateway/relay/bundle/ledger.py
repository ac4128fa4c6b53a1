"""What is lost of an export, and who has still to be told.

A server that restarts may have lost what it acknowledged. As Linux does for fsync, every session that was open
at the loss is told once, by EIO at its next FLUSH; if none of them lives to be told, the first that opens the
export later is. Until a session has been told, or the bytes are written again, its READs of what is lost get
EIO: never old data.

A server that dies takes all its links along, and each of them is found lost, and made again, in its own time.
Of these losses the sessions are told once: whoever owns what may be gone *doubts* it when its last link is
lost, and the first who knows that it has to be told has all told of what is doubted then.

One ledger for each export of an upstream, whatever sessions and bundles it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gateway.relay.bundle.unflushed import Range, merged, without
from gateway.relay.scan.traffic import Traffic


@dataclass(slots=True)
class _Loss:
    why: str
    ranges: list[Range]


class Ledger:
    """The sessions of one export, and what they owe."""

    def __init__(self) -> None:
        self._open: dict[Traffic, None] = {}
        self.tainted = False
        """Something may be lost; false as long as nothing ever was."""
        self.bundles = 0
        """How many bundles tell it of losses."""
        self._untold: _Loss | None = None  # what no session has been told yet
        self._doubts: dict[object, list[Range]] = {}

    @property
    def traffics(self) -> list[Traffic]:
        """The sessions that are open."""
        return list(self._open)

    def join(self, traffic: Traffic) -> None:
        """A session opens the export."""
        self._open[traffic] = None
        traffic.told = self._told
        loss = self._untold
        if loss is not None:
            traffic.owe(loss.why, loss.ranges)

    def leave(self, traffic: Traffic) -> None:
        """A session has ended."""
        self._open.pop(traffic, None)

    def exchange(self, before: Traffic, after: Traffic) -> None:
        """A session goes on with another traffic, which has taken over what the one before owed."""
        if before in self._open:
            del self._open[before]
            self._open[after] = None
            after.told = self._told

    def lose(self, why: str, ranges: Iterable[Range], *, but: Traffic | None = None) -> None:
        """What was acknowledged in these ranges may be gone; all sessions have to be told, except one that is
        told at once.
        """
        self.tainted = True
        doubted = [each for doubts in self._doubts.values() for each in doubts]
        self._doubts.clear()
        lost = merged([*ranges, *doubted])
        before = [] if self._untold is None else self._untold.ranges
        self._untold = _Loss(why, merged([*before, *lost]))
        for traffic in self._open:
            if traffic is not but:
                traffic.owe(why, lost)
        if but is not None:
            self._told()

    def doubt(self, owner: object, ranges: Iterable[Range]) -> None:
        """What has been written in these ranges may be gone, for the links of its owner have died."""
        self._doubts[owner] = list(ranges)

    def doubts(self, owner: object) -> bool:
        """Say whether what its owner doubts has not been told yet, and take it back: it is for the owner to say
        now.
        """
        return self._doubts.pop(owner, None) is not None

    def written(self, start: int, end: int) -> None:
        """Bytes have been written (again): what is there now is what a client wrote."""
        if self._untold is not None:
            self._untold.ranges = without(self._untold.ranges, start, end)
        for traffic in self._open:
            if traffic.lost:
                traffic.lost = without(traffic.lost, start, end)

    def flush_failed(self, traffic: Traffic, why: str) -> None:
        """A session's own FLUSH has failed: the server tells its client, and nobody else."""
        assert traffic.memory is not None
        written = traffic.memory.acknowledged
        self.lose(f"a FLUSH of another client has failed: {why}", written.ranges, but=traffic)
        written.forget()

    @property
    def quiet(self) -> bool:
        """Nothing is lost that anybody has to be told of."""
        return self._untold is None and not any(each.unflushed for each in self._open)

    @property
    def in_use(self) -> bool:
        """There are sessions, or bundles, or there is something that the next session has to be told."""
        return bool(self._open or self.bundles) or self._untold is not None

    def _told(self) -> None:
        self._untold = None

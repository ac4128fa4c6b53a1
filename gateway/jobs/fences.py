"""Ranges over which nobody writes for a while, because an older WRITE may still come late.

A link dies, and a WRITE has no answer. The old server may still be about to carry it out, over whatever was
written meanwhile. (That its bytes are found on the disk proves nothing: they may have been there before.) So
from that moment there is a *fence* over its range, for all sessions of the disk and all links. READs and
FLUSHes pass the fence; commands that write wait.

A fence stands as long as the dead link's WRITEs may come (`Late`): some seconds, or until it is proven that
the process at the link's other end has ended.

No clock here: whoever has one calls `look`, now and then while any fence stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gateway.peer import Peer


@dataclass(frozen=True, slots=True, eq=False)
class Late:
    """A link that has died. What was under way on it may still be carried out, until its peer is gone. After
    `until` (in seconds) nobody expects it any more.
    """

    until: float
    peer: Peer

    def over(self, now: float) -> bool:
        """Say whether nothing comes any more."""
        return now >= self.until or self.peer.gone()


def still_coming(lates: Iterable[Late], now: float) -> list[Late]:
    """Give those that are not over."""
    return [late for late in lates if not late.over(now)]


@dataclass(frozen=True, slots=True)
class Fence:
    """The bytes from `start` up to `end`."""

    start: int
    end: int
    late: Late


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """Somebody who is called when the bytes from `start` up to `end` may be written to."""

    start: int
    end: int
    go_on: Callable[[], None]


class Fences:
    """The fences of one disk. There are no more of them than commands under way on its links. No more commands
    wait for them than there are under way in its sessions.
    """

    def __init__(self) -> None:
        self.standing: list[Fence] = []
        self.raised: Callable[[], None] = _nobody
        """Called when the first fence is raised: somebody has to `look` from now on."""
        self._waiting: dict[Waiting, None] = {}

    def __bool__(self) -> bool:
        return bool(self.standing)

    def add(self, start: int, end: int, late: Late) -> None:
        """Raise one."""
        first = not self.standing
        self.standing.append(Fence(start, end, late))
        if first:
            self.raised()

    def bar(self, start: int, end: int) -> bool:
        """Say whether nobody may write there now."""
        return any(each.start < end and start < each.end for each in self.standing)

    def over(self, start: int, end: int) -> list[Late]:
        """Give what may still be written there."""
        return [each.late for each in self.standing if each.start < end and start < each.end]

    def wait(self, start: int, end: int, go_on: Callable[[], None]) -> Waiting:
        """Have `look` call `go_on` when these bytes may be written to."""
        waiting = Waiting(start, end, go_on)
        self._waiting[waiting] = None
        return waiting

    def forget(self, waiting: Waiting) -> None:
        """Forget somebody who waits: its session has ended."""
        self._waiting.pop(waiting, None)

    def look(self, now: float) -> None:
        """Take away fences that are over, and call those who have waited for that, in the order in which they
        came. Must not be called while a scanner is at work.
        """
        over = {late for late in {each.late for each in self.standing} if late.over(now)}
        if not over:
            return
        self.standing = [each for each in self.standing if each.late not in over]
        free = [each for each in self._waiting if not self.bar(each.start, each.end)]
        for waiting in free:
            del self._waiting[waiting]
        for waiting in free:  # they may wait again
            waiting.go_on()


def _nobody() -> None:
    pass

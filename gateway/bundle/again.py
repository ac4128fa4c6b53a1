"""When a lost link is made again, and whether what comes back is what was promised.

If a server is down, or says ERR_SHUTDOWN, which is as good as down, we wait for it. But if it is up and does
not have the export any more (ERR_UNKNOWN), or does not let us have it (ERR_POLICY), waiting does not change
that. We give it some seconds, for a server that has just been started may add its exports one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gateway.protocol.export import Export, lacks
from gateway.wire.constants import Rep

SHORT_SECONDS = 1.0
"""A link that is lost sooner than this is not made again at once. A server that breaks the protocol, or dies,
over something it is asked will do so each time."""

LEAST_PAUSE_SECONDS = 0.25
"""How long we wait the first time; then twice as long each time."""

MOST_PAUSE_SECONDS = 5.0
"""How long we wait at most. It costs nobody anything, and it is short beside what clients bear."""


REJECTIONS = 3
"""If an export is refused so often in a row, it is gone."""

REJECTIONS_SECONDS = 5.0
"""The refusals have to come within so many seconds, so that nothing else can have happened in between."""

REJECTED_PAUSE_SECONDS = 1.5
"""After such a refusal the next attempt comes so much later. So a server that is starting has about 3 s."""

_FOR_GOOD = (Rep.ERR_UNKNOWN, Rep.ERR_POLICY)


@dataclass(slots=True)
class Rejections:
    """What a server has said when it was asked for an export again. Times are in seconds of one clock."""

    at: list[float] = field(default_factory=list)

    def said(self, reply: int, now: float) -> bool:
        """The server has refused the export with this reply. Say whether that is for good."""
        if reply not in _FOR_GOOD:
            self.forget()
            return False
        self.at = [at for at in self.at if now - at < REJECTIONS_SECONDS]
        self.at.append(now)
        return len(self.at) >= REJECTIONS

    def forget(self) -> None:
        """Something else has happened: count from the beginning."""
        self.at.clear()


@dataclass(slots=True)
class Pause:
    """How long to wait between one link and the next in its place. Times are in seconds of one clock."""

    seconds: float = 0.0
    made_at: float = -math.inf

    def made(self, now: float) -> None:
        """A link has been made."""
        self.made_at = now

    def lost(self, now: float) -> None:
        """The link is lost: find out how long to wait."""
        short = now - self.made_at < SHORT_SECONDS
        longer = min(max(2 * self.seconds, LEAST_PAUSE_SECONDS), MOST_PAUSE_SECONDS)
        self.seconds = longer if short else 0.0


def shrunk(was: Export, now: Export) -> list[str]:
    """Say what an export had, and does not have any more."""
    found = []
    if now.size != was.size:
        found.append(f"size {now.size} instead of {was.size}")
    if now.block_sizes != was.block_sizes:
        found.append(f"block sizes {now.block_sizes} instead of {was.block_sizes}")
    if now.framing is not was.framing:
        found.append(f"{now.framing} framing instead of {was.framing}")
    return found + lacks(was, now)

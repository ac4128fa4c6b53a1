"""When a link is made again that was lost, and whether what comes back is what was promised."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gateway.protocol.export import Export, lacks

SHORT_SECONDS = 1.0
"""A link that is lost sooner than this is not made again at once: a server that breaks the protocol, or dies,
over what it is asked does so each time."""

LEAST_PAUSE_SECONDS = 0.25
"""How long not, the first time; then twice as long each time."""

MOST_PAUSE_SECONDS = 5.0
"""And at most: long enough to cost nobody anything, and short beside what clients bear."""


@dataclass(slots=True)
class Pause:
    """Between one link and the next in the same place. Times are in seconds of one clock."""

    seconds: float = 0.0
    made_at: float = -math.inf

    def made(self, now: float) -> None:
        """A link has been made."""
        self.made_at = now

    def lost(self, now: float) -> None:
        """It is lost: find out how long to wait."""
        short = now - self.made_at < SHORT_SECONDS
        longer = min(max(2 * self.seconds, LEAST_PAUSE_SECONDS), MOST_PAUSE_SECONDS)
        self.seconds = longer if short else 0.0


def shrunk(was: Export, now: Export) -> list[str]:
    """Say what an export does not have any more that it had."""
    found = []
    if now.size != was.size:
        found.append(f"size {now.size} instead of {was.size}")
    if now.block_sizes != was.block_sizes:
        found.append(f"block sizes {now.block_sizes} instead of {was.block_sizes}")
    if now.framing is not was.framing:
        found.append(f"{now.framing} framing instead of {was.framing}")
    return found + lacks(was, now)

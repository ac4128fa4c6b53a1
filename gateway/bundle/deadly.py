"""What recoveries ask that may be what takes the server down.

If the line of a recovery dies, the recovery begins anew with the next line. So if it asks something that takes
the server down, it would do so for ever, and all clients would wait as long. Therefore deaths are counted as
for what clients ask (`pieces`). After the first death a recovery asks one thing after the other, so that the
next death is over one thing alone. What too many lines have died over is asked no more, and fails. Every step
of a recovery can go on then: what cannot be read bears no witness and was not found; what cannot be written or
flushed is lost.

A series of recoveries ends when the bundle is up. Until then nothing is forgotten, even if it was answered
meanwhile. A server that dies over something else each time would have us begin for ever, too: `MOST_DEATHS` is
for that.
"""

from __future__ import annotations

from gateway.bundle.line import Line
from gateway.bundle.pieces import MOST_LOSSES
from gateway.protocol.asks import Ask
from gateway.wire.constants import Cmd

MOST_DEATHS = 8
"""So many lines may die over what a series of recoveries asks, whatever that was. With the pauses in between
this takes half a minute. A server that is killed so often before it has answered a few READs is no use."""

MOST_WRITE_DEATHS = 3
"""So many lines in a row may die over one FLUSH or WRITE of recoveries. If we give up one of these, something
is lost, and a server that is being restarted may well be killed twice in the middle of one, by chance. For a
READ it is as for a client's, for nothing is lost with it."""

_Key = tuple[Cmd, int, int]


class Deadly:
    """What the recoveries of one bundle have asked, and lines have died over."""

    def __init__(self) -> None:
        self._losses: dict[_Key, tuple[int, int]] = {}
        """How many lines have died over each, and the number of the last death that counts."""
        self._deaths = 0
        """Lines of this series that have died over anything."""
        self._lost_at = 0

    def lose(self, ask: Ask, line: Line, deaths: int, *, blamed: bool) -> None:
        """An ask was under way on a line that has died. `deaths`: how many lines of the bundle have died by
        now. `blamed`: the line may have died because of the ask.
        """
        if line.deaths_before >= self._lost_at:
            self._deaths += 1
            self._lost_at = deaths
        losses, lost_at = self._losses.get(_key(ask), (0, 0))
        if blamed and line.deaths_before >= lost_at:
            self._losses[_key(ask)] = losses + 1, deaths

    @property
    def suspected(self) -> bool:
        """A line has died over something, so nothing goes beside anything else."""
        return bool(self._deaths)

    def is_deadly(self, ask: Ask) -> bool:
        """Say whether so many lines have died over this that no other line may."""
        most = MOST_LOSSES if ask.command is Cmd.READ else MOST_WRITE_DEATHS
        return self._losses.get(_key(ask), (0, 0))[0] >= most

    def why_not(self, ask: Ask) -> str:
        """Say why this is not asked any more; empty if it may be."""
        if self.is_deadly(ask):
            losses, _lost_at = self._losses[_key(ask)]
            return f"{losses} connections in a row were lost over it"
        if self._deaths >= MOST_DEATHS:
            return f"{self._deaths} connections were lost over what was looked for or written again"
        return ""

    def mended(self) -> None:
        """The bundle is up: forget what its recoveries have asked."""
        self._losses.clear()
        self._deaths = 0


def _key(ask: Ask) -> _Key:
    return ask.command, ask.offset, ask.length

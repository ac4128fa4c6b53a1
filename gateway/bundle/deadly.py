"""What recoveries ask that may be what takes the server down.

A recovery begins anew with the next line if its line dies. So whatever takes the server down each time would do
so for ever, and all clients would wait for as long. It is therefore counted as it is of what clients ask
(`pieces`): from the first death on a recovery asks one thing after the other, so that the next death is over
one alone; and what so many lines have died over is asked no more. It fails instead, which every step of a
recovery knows what to do about: what cannot be read bears no witness and was not found, and what cannot be
written or flushed is lost.

A series of recoveries ends when the bundle is up. Nothing is forgotten before, though it was answered
meanwhile: a server that dies over something else each time would have us begin for ever as well. `MOST_DEATHS`
is for that.
"""

from __future__ import annotations

from gateway.bundle.line import Line
from gateway.bundle.pieces import MOST_LOSSES
from gateway.protocol.asks import Ask
from gateway.wire.constants import Cmd

MOST_DEATHS = 8
"""So many lines may die over what a series of recoveries asks, whatever that was. With the pauses in between
that takes half a minute; and a server that is killed so often before it has answered some READs is no use."""

MOST_WRITE_DEATHS = 3
"""So many lines in a row may die over one FLUSH or WRITE of recoveries: to give that up loses something, and a
server that is being restarted may well be killed twice in the middle of one, by chance. Of a READ as many as
of a client's: nothing is lost with it."""

_Key = tuple[Cmd, int, int]


class Deadly:
    """What the recoveries of one bundle have asked over which lines have died."""

    def __init__(self) -> None:
        self._losses: dict[_Key, tuple[int, int]] = {}
        """How many lines have died over it, and which death of the bundle's lines was the last that counts."""
        self._deaths = 0
        """Lines of this series that have died over anything."""
        self._lost_at = 0

    def lose(self, ask: Ask, line: Line, deaths: int, *, blamed: bool) -> None:
        """The line has died over which this was under way, as so many lines of the bundle have by now.
        `blamed`: it may be what that has died over.
        """
        if line.deaths_before >= self._lost_at:
            self._deaths += 1
            self._lost_at = deaths
        losses, lost_at = self._losses.get(_key(ask), (0, 0))
        if blamed and line.deaths_before >= lost_at:
            self._losses[_key(ask)] = losses + 1, deaths

    @property
    def suspected(self) -> bool:
        """A line has died over something: nothing goes beside anything else."""
        return bool(self._deaths)

    def is_deadly(self, ask: Ask) -> bool:
        """Say whether so many lines have died over this that no other is to."""
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
        """The bundle is up: what recoveries have asked is past."""
        self._losses.clear()
        self._deaths = 0


def _key(ask: Ask) -> _Key:
    return ask.command, ask.offset, ask.length

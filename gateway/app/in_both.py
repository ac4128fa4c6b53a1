"""The verbs `pause`, `resume` and `switch` while two processes serve (an upgrade).

An operator speaks to the newer one. The sessions of an export may be the older one's, or its own, or where
nothing is remembered of a disk, of both (`gateway.upgrade.giving`); and whoever comes, comes to the newer one
first. So

- *paused* is an export in both: first there, then here. If it cannot be held here, it goes on there as well.
- *resumed* it is in both, and if the older one cannot (its link is gone), it stays paused here, too.
- *switched* it is by the home of its disk alone, which tells the other where it is now. If it has sessions in
  both, that is refused: neither knows when the other's are quiet.

Which of the two knows of an export is not asked before: one that does not, says so (`ControlAnswer.not_here`).
When the older one ends meanwhile, it has no sessions any more, and all is done here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import trio

from gateway.admin.control import ControlAnswer, Verb
from gateway.config.exports import exact_name
from gateway.sessions.service import Service

if TYPE_CHECKING:
    from gateway.upgrade.newer import Newer

WORDS = ("pause", "resume", "switch")
"""The verbs that are about sessions that run."""


class InBoth:
    """Those verbs, done in both processes. `newer` gives what is known of the older one; None: it has ended."""

    def __init__(
        self, service: Service, verbs: Mapping[str, Verb], newer: Callable[[], Newer | None]
    ) -> None:
        self._service = service
        self._own = verbs
        self._newer = newer

    async def pause(self, asked: Mapping[str, Any]) -> ControlAnswer:
        """The verb."""
        newer = self._newer()
        there = None if newer is None else await newer.errands.send("pause", asked)
        if newer is None or there is None:
            return await self._own["pause"](asked)
        if not there.ok and not there.not_here:
            return _of(newer, there)
        try:
            with self._is_known(newer, asked if there.ok else {}):
                here = await self._own["pause"](asked)
        except BaseException:
            await _undo(there)
            raise
        if here.ok:
            return _both(newer, there, here)
        if there.ok and here.not_here:
            return replace(_of(newer, there), while_connected=bool(asked.get("while-connected")))
        await _undo(there)
        return here

    async def resume(self, asked: Mapping[str, Any]) -> ControlAnswer:
        """The verb."""
        newer = self._newer()
        there = None if newer is None else await newer.errands.send("resume", asked)
        if newer is None or there is None:
            return await self._own["resume"](asked)
        if not there.ok and not there.not_here:
            return _of(newer, there)
        here = await self._own["resume"](asked)
        if here.ok or not there.ok:
            return _both(newer, there, here)
        # The older process has said that it goes on, and it does here since.
        return _of(newer, there) if here.not_here else _both(newer, there, here)

    async def switch(self, asked: Mapping[str, Any]) -> ControlAnswer:
        """The verb."""
        newer, service = self._newer(), self._service
        there = None
        if newer is not None:
            here = {each.name for each in service.running}
            here |= {each.grant.name for each in service.opening}
            there = await newer.errands.send("switch", asked, here)
        if newer is None or there is None or there.not_here:
            done = await self._own["switch"](asked)
            if newer is not None:  # if we die, the older one has to lead clients to the same server
                await newer.all_said()
            return done
        return replace(_of(newer, there), undo=None)

    @contextmanager
    def _is_known(self, newer: Newer, asked: Mapping[str, Any]) -> Iterator[None]:
        """Ask no server whether there is an export that the older process has found: it may have no room for
        that.
        """
        export = asked.get("export")
        name = exact_name(export) if isinstance(export, str) else None
        assert newer.beside is not None
        names = set() if name is None else {name} - newer.beside.spoken_of
        newer.beside.spoken_of |= names
        try:
            yield
        finally:
            newer.beside.spoken_of -= names


def _of(newer: Newer, there: ControlAnswer) -> ControlAnswer:
    """Give an answer of the older process as such."""
    done = tuple(f"{each} (process {newer.older_pid})" for each in there.done)
    problems = tuple(f"{each} (process {newer.older_pid})" for each in there.problems)
    return replace(there, done=done, problems=problems, not_here=False)


def _both(newer: Newer, there: ControlAnswer, here: ControlAnswer) -> ControlAnswer:
    """Give what was done in both."""
    if not there.ok:
        return here
    told = _of(newer, there)

    async def undo() -> None:
        await _undo(there)
        if here.undo is not None:
            await here.undo()

    return replace(
        here,
        done=(*told.done, *here.done),
        undo=None if here.undo is None else undo,
    )


async def _undo(there: ControlAnswer) -> None:
    if there.undo is not None:
        with trio.CancelScope(shield=True):  # it is said, and waits for nobody
            await there.undo()

"""Takes the fences of a disk away (`gateway.jobs.fences`) as soon as no old write can come any more, whatever
has become of the session or the bundle that raised them.
"""

from __future__ import annotations

import trio

from gateway.jobs.fences import Fences

LOOK_FOR_ENDS_SECONDS = 0.25
"""How often we look whether a process has ended for which somebody waits. It is often enough for whoever waits,
and seldom enough for what a look costs."""


async def lift(fences: Fences) -> None:
    """Take each fence away when it is over, until there is none."""
    while fences:
        await trio.sleep(LOOK_FOR_ENDS_SECONDS)
        # What is asked again at the end of that time goes first: its server has it already, perhaps.
        fences.look(trio.current_time() - LOOK_FOR_ENDS_SECONDS)

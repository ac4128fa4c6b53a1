"""Sees to it that who waits for an old write that may come late waits no longer than that: for fences of a disk
(`gateway.jobs.fences`), whatever has become of the session or the bundle that raised them.
"""

from __future__ import annotations

import trio

from gateway.jobs.fences import Fences

LOOK_SECONDS = 0.25
"""How often it is looked whether a process has ended that somebody waits for: often enough for those,
and seldom beside what a look costs."""


async def lift(fences: Fences) -> None:
    """Take fences away when they are over, until there is none."""
    while fences:
        await trio.sleep(LOOK_SECONDS)
        # What is asked again at the end of that time goes first: its server has it already, perhaps.
        fences.look(trio.current_time() - LOOK_SECONDS)

"""Who is refused, for the log: the first is told of at once, and then how many there were and who was the last.

A scraper that has a wrong token asks every few seconds, for weeks, and anybody may ask by the thousand. Whoever
only wanted to look is told of apart from who wanted something done: of the one kind there may be many, and of
the other each is news.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial

import trio

from gateway.net.tally import Tally
from gateway.web.doors import Caller

REFUSED_LOG_SECONDS = 60
"""How often the log says how many they were, at most: a wrong token is not mended sooner."""


class Wrong(StrEnum):
    """What was wrong with a request."""

    TOKEN = "a token that is none"
    HOST = "a Host that is not ours"
    PAGE = "a page of somebody else's"


class Refusals:
    """Counts them; somebody has to `run` it. `say(why, client, count)` writes a line."""

    def __init__(self, say: Callable[[str, str, int], None]) -> None:
        self._say = say
        self._shown: dict[tuple[bool, Wrong], str] = {}
        self._tallies: dict[bool, Tally[Wrong]] = {
            does: Tally(REFUSED_LOG_SECONDS, partial(self._tell, does)) for does in (False, True)
        }

    def add(self, wrong: Wrong, caller: Caller, *, does: bool, shown: str = "") -> None:
        """Somebody was refused who wanted to look, or something done (`does`); `shown` is the name that he came
        by.
        """
        self._shown[does, wrong] = shown
        self._tallies[does].add(wrong, caller.where)

    async def run(self) -> None:
        """Tell of them, until cancelled; then of those that are left."""
        async with trio.open_nursery() as nursery:
            for tally in self._tallies.values():
                nursery.start_soon(tally.run)

    def _tell(self, does: bool, wrong: Wrong, count: int, client: str) -> None:
        shown = self._shown[does, wrong]
        wanted = "to have something done" if does else "to look"
        self._say(f"{wrong}{': ' if shown else ''}{shown}, {wanted}", client, count)

"""How many connections there may be to a backend (`max-connections`), and who gives one up.

Each connection has a *slot*, from before it is dialled until it is closed.
"""

from __future__ import annotations

import math
from typing import Protocol

import trio


class Slot:
    """One of the connections that an upstream may have. Without a limiter, somebody else has it for this
    connection.
    """

    def __init__(self, limiter: trio.CapacityLimiter | None) -> None:
        self._limiter = limiter
        self.left = False
        """Another may have it by now."""

    def leave(self) -> None:
        """Let another have it, once."""
        if self._limiter is not None:
            self._limiter.release_on_behalf_of(self)
            self._limiter, self.left = None, True


class Spare(Protocol):
    """Whoever has connections that nobody has asked for yet (`gateway.upstream.warm`)."""

    async def give_way(self) -> None:
        """Give up one, if there is one: somebody needs its slot."""


class Slots:
    """The slots of one backend, for all servers that are over it."""

    def __init__(self, most: float = math.inf) -> None:
        self.limiter = trio.CapacityLimiter(most)
        """The server in force says how many there may be."""
        self.spare: set[Spare] = set()
        """Who keeps connections ready."""

    @property
    def full(self) -> bool:
        """There may be no more connections than there are."""
        return self.limiter.available_tokens < 1

    def free(self) -> Slot | None:
        """Take a slot if there is one that nobody waits for."""
        slot = Slot(self.limiter)
        try:
            self.limiter.acquire_on_behalf_of_nowait(slot)
        except trio.WouldBlock:
            return None
        return slot

    async def given_up(self) -> Slot | None:
        """Take a slot that was taken by what is only kept ready, if there is such a one."""
        for spare in list(self.spare):
            await spare.give_way()
            if slot := self.free():
                return slot
        return None

    async def take(self, seconds: float | None) -> Slot | None:
        """Take a slot as soon as there is one, within so many seconds (None: now)."""
        slot = self.free() or await self.given_up()
        if slot is not None or seconds is None:
            return slot
        slot = Slot(self.limiter)
        with trio.move_on_after(seconds):
            await self.limiter.acquire_on_behalf_of(slot)
            return slot
        return None

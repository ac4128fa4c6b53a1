"""How clients are let go: those of one listener, or all, because the gateway ends.

A gateway that ends first lets nobody in: its listeners are closed, so that who comes finds the next one. The
sessions that there are may go on for `leave-seconds`, or as long as the `drain` says that has asked for it: a
copy may come to its end, a virtual machine be moved away. Then they end in good order: what is under way is
answered, and a client that finds itself disconnected and connects again loses nothing. What is not answered
within `drain-seconds` from then on is cut.

A listener that is drained stays open, and hangs up on who comes. Its sessions go on; with a deadline they end
at that, unless the listener takes clients again before. A client that was in its negotiation then ends as soon
as it has a session.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio

from gateway.hub.ends import Cause
from gateway.sessions.service import Service

LOOK_SECONDS = 1.0
"""How soon it is seen that a client which was in its negotiation at the deadline has a session."""


class Leaving:
    """The end of the gateway, from when it is asked for."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        self._scope = trio.CancelScope(deadline=math.inf)
        self._over = False

    def begin(self, seconds: float = 0) -> bool:
        """Have the gateway end, and let its sessions go on for so long; a later word counts for those that
        still do. Say whether it counts: else they have been told to end.
        """
        if not self._over:
            self._scope.deadline = trio.current_time() + seconds
            self._over = not seconds
            self.begun.set()
            return True
        return False

    @property
    def seconds_left(self) -> float | None:
        """How long sessions may go on; None: as long as they like, or they have been told to end."""
        if not self.begun.is_set() or self._over:
            return None
        return max(0.0, self._scope.deadline - trio.current_time())

    async def wait(self, all_have_left: Callable[[], Awaitable[object]]) -> None:
        """Wait until all have left, or the time is over."""
        with self._scope:
            await all_have_left()
        self._over = True


class Drained:
    """Listeners that take no more clients, by their URIs, and when their sessions end. A reload keeps them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._deadlines: dict[str, float] = {}
        """In seconds of `trio.current_time`; infinite: never."""
        self._changed = trio.Event()

    def __contains__(self, listener: str) -> bool:
        return listener in self._deadlines

    def add(self, listener: str, seconds: float | None) -> None:
        """Take no more clients there, and have its sessions end in so long, if at all."""
        self._deadlines[listener] = trio.current_time() + (math.inf if seconds is None else seconds)
        self._changed.set()

    def discard(self, listener: str) -> None:
        """Take clients again."""
        self._deadlines.pop(listener, None)

    def clear(self) -> None:
        """Take clients everywhere, also where nobody listens now and a reload has us listen again."""
        self._deadlines.clear()

    def seconds_left(self, listener: str) -> float | None:
        """How long its sessions may go on; None: as long as they like."""
        at = self._deadlines.get(listener, math.inf)
        return None if math.isinf(at) else max(0.0, at - trio.current_time())

    async def run(self) -> None:
        """End the sessions whose time is over, until cancelled."""
        while True:
            self._changed = trio.Event()
            now = trio.current_time()
            due = {each for each, at in self._deadlines.items() if at <= now}
            self._end_sessions(due)
            left = [at for at in self._deadlines.values() if at > now]
            next_look = LOOK_SECONDS if due and self._service.negotiations else math.inf
            with trio.move_on_after(min(next_look, min(left, default=math.inf) - now)):
                await self._changed.wait()

    def _end_sessions(self, listeners: set[str]) -> None:
        seconds = self._service.config.drain_seconds
        for running in list(self._service.running if listeners else ()):
            if running.membership.session.client.listener in listeners:
                running.relaying.finish("its listener is drained", seconds, Cause.DRAIN)

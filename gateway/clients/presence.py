"""Whether a client is still there while an upstream is asked for it. A client that has left must keep neither
its place nor an upstream connection. One that has said something before it closed is not gone as long as that
was not read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol, TypeVar

import trio

from gateway.hub.hub import Hub
from gateway.net.drive import PeerClosed

_Result = TypeVar("_Result")


class Patiently(Protocol):
    """Waits for an upstream as long as the client is there, and gives what came of it."""

    async def __call__(self, wait: Callable[[], Awaitable[_Result]], /) -> _Result:
        """Wait."""
        ...


class Presence:
    """Watches the client at the other end of a socket. The hub does that from the first time that an upstream
    is asked until the end of the negotiation, for a client may ask about thousands of exports, each in a
    moment. The hub sees only what the kernel does; whether nothing is left to receive, `has_left` says.
    """

    def __init__(
        self, hub: Hub, sock: trio.socket.SocketType, has_left: Callable[[], bool]
    ) -> None:
        self._hub = hub
        self._socket = sock
        self._has_left = has_left
        self._stay = trio.CancelScope()
        self._watch = ExitStack()
        self._is_watched = False
        self._silent = False  # it sends nothing more
        self._waits = False  # for an upstream

    @contextmanager
    def needed(self) -> Iterator[None]:
        """End this block (`PeerClosed`) if the client leaves while an upstream is asked. After the block nobody
        is asked whether it has: whoever has this knows that, and would have himself (`Traffic.let_go`).
        """
        try:
            with self._watch, self._stay:
                yield
        finally:
            self._has_left = _nobody_has_left
        if self._stay.cancelled_caught:
            raise PeerClosed("the client left while the upstream was asked")

    async def patiently(self, wait: Callable[[], Awaitable[_Result]]) -> _Result:
        """Wait for an upstream, as long as the client is there."""
        self._waits = True
        if not self._is_watched:
            self._is_watched = True
            watch = self._hub.told_when_silent(self._socket, self._has_fallen_silent)
            self._watch.enter_context(watch)
        self._leave_if_it_has()
        try:
            return await wait()
        finally:
            self._waits = False

    def _has_fallen_silent(self) -> None:
        self._silent = True
        self._leave_if_it_has()

    def _leave_if_it_has(self) -> None:
        if self._silent and self._waits and self._has_left():
            self._stay.cancel()


def _nobody_has_left() -> bool:
    return False

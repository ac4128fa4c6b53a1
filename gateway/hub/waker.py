"""What wakes the hub: a descriptor in its epoll that we make ready ourselves (eventfd(2))."""

from __future__ import annotations

import os

import trio

from gateway.hub.crowd import Crowd


class Waker:
    """The hub has `woken` called when `fd` is ready, as it does for any socket."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._served = trio.Event()

    def wake(self) -> None:
        """Have the hub go round, if it is parked."""
        os.eventfd_write(self.fd, 1)

    async def goes_round(self) -> None:
        """Wait until the hub has looked for what is ready once more, and has come to this."""
        self.wake()
        await self._served.wait()

    def woken(self, _events: int) -> int:
        """Note that the hub goes round."""
        os.eventfd_read(self.fd)
        self._served.set()
        self._served = trio.Event()
        return Crowd.NONE

    def close(self) -> None:
        """Close, after the epoll."""
        os.close(self.fd)

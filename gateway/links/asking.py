"""Asking a server before its client has a session: policies may want to see something of the disk.

This uses the data plane's own machinery, without a client: a job asks, and the scanner of replies collects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import trio

from gateway.net.options import Awaited, RelaySocket
from gateway.scan.chunks import reply_scan
from gateway.scan.traffic import Traffic
from gateway.wire.errors import WireError
from gateway.wire.limits import KIB

RECEIVED_BYTES = 64 * KIB
"""How much is received at a time. Little is asked for."""


class Asking(ABC):
    """Sends what the jobs of a `Traffic` ask that belongs to no session."""

    @abstractmethod
    async def until(self, done: Callable[[], bool]) -> None:
        """Send what the jobs ask, and hand them the answers, until they are `done`. Raises `WireError` and
        `trio.BrokenResourceError`.
        """


class OverSocket(Asking):
    """Over a link that nothing else uses."""

    def __init__(self, socket: RelaySocket, traffic: Traffic) -> None:
        self._traffic = traffic
        self._replies = reply_scan(traffic)
        self._socket = Awaited(socket)
        self._received = bytearray()

    async def until(self, done: Callable[[], bool]) -> None:
        """See `Asking`."""
        while not done():
            await self._step()

    async def _step(self) -> None:
        asks = b"".join(self._traffic.to_upstream)
        self._traffic.to_upstream.clear()
        if asks:
            await self._socket.send_all(asks)
        data = await self._socket.receive_some(RECEIVED_BYTES)
        if not data:
            raise WireError("the server has closed the connection")
        self._received += data
        received = bytearray(self._received)
        taken = self._replies.feed(received, memoryview(received), 0, len(received), [])
        del self._received[:taken]


class OverPort(Asking):
    """Over a trunk that others use, too. `push` has it send what was asked; `wakes` is told who hands out
    answers.
    """

    def __init__(
        self,
        push: Callable[[], None],
        wakes: Callable[[Callable[[Callable[[], None]], None]], None],
    ) -> None:
        self._push = push
        self._woken = trio.Event()
        wakes(self._act)

    def _act(self, go_on: Callable[[], None]) -> None:
        go_on()
        self._woken.set()

    async def until(self, done: Callable[[], bool]) -> None:
        """See `Asking`."""
        while not done():
            self._woken = trio.Event()
            self._push()
            if not done():
                await self._woken.wait()

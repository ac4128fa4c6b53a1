"""What goes over a connection, and how it ends; and a task that is cancelled at any of its steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from tests.embedded.peers import socket_pair


@dataclass
class Tap:
    """One connection to a server, listened in on."""

    sent: bytes = b""
    """By whom we look at."""
    end: str = ""
    """How it left: "FIN" or "RST"; empty: it has not."""

    def connect(
        self,
        nursery: trio.Nursery,
        serve: Callable[[trio.SocketStream], Awaitable[object]],
    ) -> trio.SocketStream:
        """Connect to a server."""
        near, middle = socket_pair()
        onward, far = socket_pair()

        async def there() -> None:
            try:
                while data := await middle.receive_some():
                    self.sent += data
                    await onward.send_all(data)
                self.end = "FIN"
                await onward.send_eof()
            except trio.BrokenResourceError as error:
                if not self.end:
                    reset = isinstance(error.__cause__, ConnectionResetError)
                    self.end = "RST" if reset else "FIN"

        async def back() -> None:
            try:
                while data := await onward.receive_some():
                    await middle.send_all(data)
                await middle.send_eof()
            except trio.BrokenResourceError:
                pass

        async def listen_in() -> None:
            async with middle, onward, trio.open_nursery() as both:
                both.start_soon(there)
                both.start_soon(back)

        async def served() -> None:
            async with far:
                await serve(far)

        nursery.start_soon(listen_in)
        nursery.start_soon(served)
        return near


class AtStep(trio.abc.Instrument):
    """Cancels a scope when the task that has opened it takes its step of that number, from 1."""

    def __init__(self, number: int) -> None:
        self.scope = trio.CancelScope()
        self._left = number
        self._task = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if not self._left:
                self.scope.cancel()


async def cancelled_at(number: int, act: Callable[[], Awaitable[object]]) -> bool:
    """Do something in this task, and cancel it at its step of that number; say whether it came to that."""
    at = AtStep(number)
    trio.lowlevel.add_instrument(at)
    try:
        with at.scope:
            await act()
            return False
    finally:
        trio.lowlevel.remove_instrument(at)
    return True

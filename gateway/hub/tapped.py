"""Sockets with a tap: who looks on is shown all that is received and sent.

A session with a tap goes on as it was, over these sockets in the place of its own, and without the pump, which
knows no sockets but the kernel's. A session without one has its own sockets, and nothing that asks about taps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.net.options import RelaySocket

Show = Callable[[bytes | memoryview], None]
"""Is shown bytes in their order; they are overwritten afterwards."""


class Tapped:
    """A `RelaySocket` that shows what comes and goes over another one. Whatever becomes of that harms nobody:
    if looking on fails, `failed` is told, and nothing more is shown of this direction.
    """

    def __init__(
        self,
        sock: RelaySocket,
        received: Show,
        sent: Show,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._sock = sock
        self._received = received
        self._sent = sent
        self._failed = failed

    def fileno(self) -> int:
        """Give the descriptor to wait for."""
        return self._sock.fileno()

    def recv_into(self, buffer: bytearray | memoryview, /) -> int:
        """Receive; 0 is the end. Raises BlockingIOError, OSError."""
        count = self._sock.recv_into(buffer)
        if count:
            self.show_received(memoryview(buffer)[:count])
        return count

    def recv(self, count: int, /) -> bytes:
        """Receive something, to see whether it is the end: nobody needs it any more."""
        return self._sock.recv(count)

    def send(self, data: bytes | memoryview, /) -> int:
        """Send some. Raises BlockingIOError, OSError."""
        count = self._sock.send(data)
        self._show_sent(data[:count])
        return count

    def sendmsg(self, slices: Sequence[bytes | memoryview], /) -> int:
        """Send some. Raises BlockingIOError, OSError."""
        count = left = self._sock.sendmsg(slices)
        for piece in slices:
            if not left:
                break
            self._show_sent(piece[:left])
            left -= min(left, len(piece))
        return count

    def shutdown(self, how: int, /) -> None:
        """Say that nothing more is sent. Raises OSError."""
        self._sock.shutdown(how)

    def close(self) -> None:
        """Close."""
        self._sock.close()

    def show_received(self, data: bytes | memoryview) -> None:
        """Show what was received, here or before."""
        try:
            self._received(data)
        except Exception as error:
            self._received = _show_nobody
            self._failed(error)

    def _show_sent(self, data: bytes | memoryview) -> None:
        try:
            self._sent(data)
        except Exception as error:
            self._sent = _show_nobody
            self._failed(error)


def _show_nobody(_data: bytes | memoryview) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Midway:
    """Where we are in what is said over a connection, when somebody begins to look on."""

    rest_received: int
    """So many bytes that are not here yet belong to a message that has begun."""
    received: bytes
    """What is here of messages that nobody has read; with a rest, there is nothing."""
    rest_sent: int
    """So many bytes that are not sent yet belong to messages that have begun, or wait."""

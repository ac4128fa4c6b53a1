"""The socket of a link to a disk of which this gateway is the home: it looks before each batch whether it still
may.

It stands where the link's own socket would (`gateway.net.options.RelaySocket`), so whatever is sent to the
server passes here: requests, what the gateway asks by itself, and what is written again after a loss. To
whoever sends, "it may not" is a connection that is lost. What becomes of sessions then is decided where it
always is. A DISC alone may go at any time: it asks nothing of the disk, and a server that is told of the end
does not have to find out.

When the lease has run out, `cut` throws away what waits in the kernel to be sent, as far as it can: the socket
is told to be reset when it is closed (SO_LINGER, socket(7)), and whoever reads from it is woken by its end.

Whether a link has *ended well* is seen here, too. A `Goodbye` is only said when nothing is under way, so if it
was the last thing that was sent, all else was answered. A disk is given away in good order only if all its
links have ended so. A DISC is told by that and not by its bytes: what a client has for the disk may look the
same.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress

from gateway.net.options import TCP_FAMILIES, RelaySocket
from gateway.wire.framing import Goodbye

Buffer = bytes | memoryview

_RESET = struct.pack("ii", 1, 0)  # struct linger: on, no seconds


class GuardedSocket:
    """A link's socket. `may` says whether something may be sent at this moment. What was sent stays
    unacknowledged for `user_timeout_seconds` at most. `closed` is told whether it has ended well.
    """

    __slots__ = ("__weakref__", "_closed", "_ended_well", "_is_closed", "_may", "_sock")

    def __init__(
        self,
        sock: RelaySocket,
        may: Callable[[], bool],
        closed: Callable[[bool], object],
        user_timeout_seconds: float,
    ) -> None:
        self._sock = sock
        self._may = may
        self._closed = closed
        self._ended_well = True  # nothing was sent
        self._is_closed = False
        _set(
            *(sock, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
            max(1, int(user_timeout_seconds * 1000)),
        )

    def fileno(self) -> int:
        """Give the descriptor to wait for."""
        return self._sock.fileno()

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        """Receive; 0 is the end. Raises BlockingIOError, OSError."""
        return self._sock.recv_into(buffer)

    def recv(self, count: int) -> bytes:
        """Receive something, to see whether it is the end."""
        return self._sock.recv(count)

    def send(self, data: Buffer) -> int:
        """Look, and send some. Raises BlockingIOError, OSError."""
        goes = isinstance(data, Goodbye)
        if not goes:
            self._look()
        self._ended_well = goes
        return self._sock.send(data)

    def sendmsg(self, slices: Sequence[Buffer]) -> int:
        """Look, and send some. Raises BlockingIOError, OSError."""
        self._look()
        self._ended_well = False
        return self._sock.sendmsg(slices)

    def _look(self) -> None:
        if not self._may():
            raise OSError(errno.ESTALE, "this gateway may not send to the disk any more")

    def shutdown(self, how: int) -> None:
        """Say that nothing more is sent. Raises OSError."""
        self._sock.shutdown(how)

    def cut(self) -> None:
        """Have nothing more go out, as far as that can be, and wake whoever reads."""
        if self._sock.fileno() >= 0:
            _set(self._sock, socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            with suppress(OSError):
                sock = socket.socket(fileno=self._sock.fileno())
                try:
                    sock.shutdown(socket.SHUT_RD)
                finally:
                    sock.detach()

    def close(self) -> None:
        """Close. Closing twice is once."""
        if not self._is_closed:
            self._is_closed = True
            self._closed(self._ended_well)
        self._sock.close()


def _set(sock: RelaySocket, level: int, option: int, value: int | bytes) -> None:
    """Set an option of what may be a TLS connection; a Unix socket has none of these."""
    with suppress(OSError):
        plain = socket.socket(fileno=sock.fileno())
        try:
            if plain.family in TCP_FAMILIES:
                plain.setsockopt(level, option, value)
        finally:
            plain.detach()

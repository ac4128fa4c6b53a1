"""TLS over a connection that the hub relays: a non-blocking socket.

A `TlsSocket` behaves as such a socket does, with one promise more, because the hub waits for the kernel and not
for OpenSSL: nothing that could be read is left inside. It receives no more ciphertext than there is room for
plaintext, which is never longer, that of a record begun before included; so whatever is still to be read is in
the kernel, which says so. A buffer with no room for a record is not read into. And a byte counts as sent when
the kernel has its ciphertext: what is encrypted and not yet sent is still in the caller's hands, who will come
again with it, since he has to.

Small slices are joined before they are encrypted: a record costs as much as the copy of a few KiB. Large ones
are not copied (docs/performance.md).
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import suppress

import trio

from gateway.wire.limits import KIB

PIECE_BYTES = 256 * KIB
"""What is received, or encrypted and sent, at a time: more would not stay in the processor's cache."""

JOIN_BYTES = 16 * KIB
"""A slice of this size fills a record by itself."""

MOST_INSIDE_BYTES = 5 + 16 * KIB + 2 * KIB
"""What OpenSSL may hold of a record that is not whole (RFC 5246, 6.2.3): it does not show in the BIO."""

MAX_EMPTY_BYTES = 64 * KIB
"""What a peer may send that brings no data: half a record, and some key updates. Each of those has 27 bytes and
costs as much as 100 KiB of data: a receive of nothing else would keep everybody waiting for half a second."""

WORTH = 16
"""A byte of data is worth so many that were received: a request of 28 bytes comes in 50."""

MOST_ANSWERS_BYTES = 16 * KIB
"""What a peer that does not read may make us say to its key updates (RFC 8446, 4.6.3): some hundred of them."""

Buffer = bytes | bytearray | memoryview


class TlsSocket:
    """A non-blocking socket over TLS, as the hub needs one. Its errors are OSErrors, as `ssl.SSLError` is."""

    __slots__ = (
        *("__weakref__", "_empty", "_ended", "_incoming", "_join_bytes", "_outgoing"),
        *("_owed", "_sock", "_tls", "_unsent"),
    )

    def __init__(
        self,
        sock: socket.socket,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        *,
        joins: bool = True,
    ) -> None:
        self._sock = sock
        self._join_bytes = JOIN_BYTES if joins else 0
        self._tls = tls
        self._incoming = incoming
        self._outgoing = outgoing
        self._unsent = memoryview(b"")  # ciphertext
        self._owed = 0  # bytes of the caller's that are encrypted, and in `_unsent`
        self._empty = (
            1  # bytes received that brought no data worth them; the first receive is a small one
        )
        self._ended = False

    def fileno(self) -> int:
        """Give the descriptor to wait for."""
        return self._sock.fileno()

    def recv_into(self, buffer: Buffer) -> int:
        """Receive plaintext; 0 is the end, with close_notify or without.

        Raises BlockingIOError if there is none, or no room for a record, and OSError.
        """
        if self._ended:
            return 0
        view = memoryview(buffer)
        most = PIECE_BYTES if not self._empty else MAX_EMPTY_BYTES
        room = min(len(view) - MOST_INSIDE_BYTES, most)
        if room <= 0:
            raise BlockingIOError
        received = self._sock.recv_into(_SCRATCH, room)
        if received:
            self._incoming.write(_SCRATCH[:received])
        else:
            self._incoming.write_eof()
        count, filled = 0, 0
        read = self._tls.read
        try:
            while filled < len(view):
                count = read(len(view) - filled, view[filled:])  # type: ignore[assignment] # a number
                if not count:  # close_notify
                    self.end()
                    break
                filled += count
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self.end()
        if self._outgoing.pending and not self._ended:
            self._send_unsent()  # the answer to a key update, behind what is unsent
            if self._outgoing.pending > MOST_ANSWERS_BYTES:
                raise OSError("TLS: more key updates than answers are taken")
        self._empty = max(0, self._empty + received - WORTH * filled)
        if self._empty > MAX_EMPTY_BYTES:
            raise OSError(f"TLS: {self._empty} bytes and hardly any data in them")
        if not filled and not self._ended:
            raise BlockingIOError
        return filled

    def end(self) -> None:
        """Remember that nothing more comes. With a close_notify the kernel may not know it; now it does, and
        calls the caller again, who may not have been told yet.
        """
        self._ended = True
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

    def send(self, data: Buffer) -> int:
        """Send; give how many bytes the kernel has taken. Raises BlockingIOError if none, and OSError."""
        return self.sendmsg((data,))

    def sendmsg(self, slices: Sequence[Buffer]) -> int:
        """Send; give how many bytes of the slices the kernel has taken. Raises BlockingIOError if none, and
        OSError.

        What it has not taken has to come again, as any socket's caller does it: it may be encrypted already.
        """
        if not self._send_unsent():
            raise BlockingIOError
        sent, self._owed = self._owed, 0
        for pieces in _batches(slices, sent, self._join_bytes):
            size = sum(map(self._tls.write, pieces))
            if not self._send_unsent():
                self._owed = size
                break
            sent += size
        if not sent and self._owed:
            raise BlockingIOError
        return sent

    def _send_unsent(self) -> bool:
        """Send ciphertext; say whether all is sent."""
        while self._unsent or self._outgoing.pending:
            if not self._unsent:
                self._unsent = memoryview(self._outgoing.read())
            try:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
            except BlockingIOError:
                return False
        return True

    def shutdown(self, how: int) -> None:
        """Say that nothing more is sent, or received."""
        self._say_goodbye()
        self._sock.shutdown(how)

    def recv(self, count: int) -> bytes:
        """Receive something, only to see the end of it (b""): it stays encrypted."""
        return self._sock.recv(count)

    def close(self) -> None:
        """Close, with a close_notify if that takes no time."""
        if self._sock.fileno() >= 0:
            self._say_goodbye()
            self._sock.close()

    def _say_goodbye(self) -> None:
        # Behind half a record it would be taken for a part of it.
        if not self._unsent:
            with suppress(OSError):
                say_goodbye(self._tls, self._outgoing, self._sock)


_SCRATCH = memoryview(bytearray(PIECE_BYTES))
"""Where ciphertext is received: only for as long as it takes to hand it on, in one thread."""


def _batches(slices: Sequence[Buffer], skip: int, join_bytes: int) -> Iterator[list[Buffer]]:
    """Give the slices, without the first `skip` bytes, in batches of up to `PIECE_BYTES`: each is encrypted
    piece by piece, and sent at once. Neighbours of less than `join_bytes` are one piece.
    """
    batch: list[Buffer] = []
    small: list[Buffer] = []
    room = PIECE_BYTES
    for part in slices:
        start = min(skip, len(part))
        skip -= start
        while start < len(part):
            piece = memoryview(part)[start : start + room]
            start += len(piece)
            room -= len(piece)
            if len(piece) < join_bytes:
                small.append(piece)
            else:
                batch += [*_joined(small), piece]
                small = []
            if not room:
                yield [*batch, *_joined(small)]
                batch, small, room = [], [], PIECE_BYTES
    if batch or small:
        yield [*batch, *_joined(small)]


def _joined(small: list[Buffer]) -> list[Buffer]:
    return [b"".join(small)] if small else []


def say_goodbye(
    tls: ssl.SSLObject, outgoing: ssl.MemoryBIO, sock: socket.socket | trio.socket.SocketType
) -> None:
    """Send close_notify, if the kernel takes it at once. The other side's is not waited for."""
    with suppress(ssl.SSLError, ValueError):
        # It has not come, and need not; or there was no handshake.
        tls.unwrap()
    if outgoing.pending:
        # A Trio socket's own `send` would have to be awaited.
        with socket.socket(fileno=sock.fileno()) as plain:
            try:
                plain.setblocking(False)
                plain.send(outgoing.read())
            finally:
                plain.detach()

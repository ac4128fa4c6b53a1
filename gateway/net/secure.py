"""TLS over a connection: a stream while it is negotiated on, and then a socket for the hub.

`SSLObject` over two `MemoryBIO`s, never `SSLSocket`: what is received and what is sent is in our hands, so that
one receive takes as many records as there are, and nothing that came in the clear gets in.

A `TlsSocket` behaves as a non-blocking socket does, with one promise more, because the hub waits for the
kernel and not for OpenSSL: nothing that could be read is left inside. It receives no more ciphertext than there
is room for plaintext, which is never longer, that of a record begun before included; so whatever is still to be
read is in the kernel, which says so. A buffer with no room for a record is not read into.
And a byte counts as sent when the kernel has its ciphertext: what is encrypted and not yet sent is still in the
caller's hands, who will come again with it, since he has to.

Small slices are joined before they are encrypted: a record costs as much as the copy of a few KiB. Large ones
are not copied (docs/performance.md).

This is longer than other modules: stream and socket are two ways to use one and the same inside, and the one
becomes the other.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import trio

from gateway.net.options import plain_socket, send_from
from gateway.tls.credentials import Admitted, TlsSession
from gateway.tls.errors import NotAdmitted
from gateway.wire.limits import KIB

RECEIVE_BYTES = 16 * KIB
"""Ciphertext that one receive takes during negotiation: a record."""

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


class TlsError(Exception):
    """The TLS handshake has failed; the text says why, for the log. There is no way back: hang up."""


class TlsStream:
    """A Trio stream over TLS, for negotiations; made by `accept` and `connect`."""

    def __init__(self, transport: trio.SocketStream, session: TlsSession, received: bytes) -> None:
        self._transport = transport
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._incoming.write(received)
        self._tls = session.wrap(self._incoming, self._outgoing)
        self._session = session
        self._unsent = bytearray()  # ciphertext
        self._kept = b""  # plaintext that was found when we looked whether there is any

    @classmethod
    async def accept(
        cls, transport: trio.SocketStream, choose: Callable[[bytes], TlsSession | None]
    ) -> tuple[TlsStream, Admitted]:
        """Be the server of a handshake; `choose` gives the session by what the client has sent so far.

        Raises `TlsError`.
        """
        received = b""
        while (session := choose(received)) is None:
            received += await _received(transport)
        stream = cls(transport, session, received)
        return stream, await stream._shake_hands()

    @classmethod
    async def connect(
        cls, transport: trio.SocketStream, session: TlsSession
    ) -> tuple[TlsStream, Admitted]:
        """Be the client of a handshake. Raises `TlsError`."""
        stream = cls(transport, session, b"")
        return stream, await stream._shake_hands()

    async def _shake_hands(self) -> Admitted:
        try:
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await self._flush()
                    self._incoming.write(await _received(self._transport))
            await self._flush()
            return self._session.admitted(self._tls)
        except ssl.SSLError as error:
            with suppress(trio.BrokenResourceError):
                await self._flush()  # the alert that says why
            why = self._session.failure(reason_of(error), openssl=error.reason or "")
            raise TlsError(why) from None
        except NotAdmitted as error:
            raise TlsError(str(error)) from None
        except TlsError as error:
            raise TlsError(self._session.failure(str(error))) from None
        except trio.BrokenResourceError as error:
            broken = f"the connection broke in the TLS handshake: {error.__cause__ or error}"
            raise TlsError(self._session.failure(broken)) from None

    @property
    def socket(self) -> trio.socket.SocketType:
        """The connection's socket, to look at."""
        return self._transport.socket

    @property
    def version(self) -> str | None:
        """As OpenSSL calls it, `TLSv1.3`."""
        return self._tls.version()

    @property
    def cipher(self) -> str | None:
        """The cipher suite."""
        cipher = self._tls.cipher()
        return cipher[0] if cipher else None

    async def receive_some(self, max_bytes: int = RECEIVE_BYTES) -> bytes:
        """Receive; b"" is the end. Raises `trio.BrokenResourceError`."""
        if self._kept:
            kept, self._kept = self._kept[:max_bytes], self._kept[max_bytes:]
            return kept
        while True:
            try:
                return self._tls.read(max_bytes)
            except ssl.SSLWantReadError:
                await self._flush()  # answers to key updates: who takes none gets no further
                self._take(await self._transport.receive_some(RECEIVE_BYTES))
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            except ssl.SSLError as error:
                raise trio.BrokenResourceError from _broken(error)

    def _take(self, received: bytes | bytearray) -> None:
        if received:
            self._incoming.write(received)
        else:  # without close_notify: so do GnuTLS's peers
            self._incoming.write_eof()

    def has_left(self) -> bool:
        """Say whether the other side sends nothing more, and nothing is left to receive either. Only what is
        encrypted can tell, so it is taken here, and what was said is kept for who receives next. Nobody may be
        receiving meanwhile.
        """
        if self._kept:
            return False
        try:
            for _ in range(MAX_EMPTY_BYTES // RECEIVE_BYTES):  # who sends more is there
                try:
                    self._kept = self._tls.read(RECEIVE_BYTES)
                    return not self._kept  # close_notify
                except ssl.SSLWantReadError:
                    self._take(os.read(self._transport.socket.fileno(), RECEIVE_BYTES))
        except BlockingIOError:
            return False
        except OSError:  # among them OpenSSL's: the end without close_notify, or nonsense
            return True
        return False

    async def send_all(self, data: bytes) -> None:
        """Send. What a cancellation leaves unsent goes first the next time. Raises
        `trio.BrokenResourceError`.
        """
        try:
            if data:
                self._tls.write(data)
        except ssl.SSLError as error:
            raise trio.BrokenResourceError from _broken(error)
        await self._flush()

    async def aclose(self) -> None:
        """Say goodbye, if that takes no time, and close."""
        self.say_goodbye()
        await trio.aclose_forcefully(self._transport)

    def say_goodbye(self) -> trio.SocketStream:
        """Say that nothing more comes, if that takes no time; give the connection below."""
        # Behind half a record it would be taken for a part of it.
        if self._transport.socket.fileno() >= 0 and not self._unsent:  # the hub has not taken it
            with suppress(OSError):
                say_goodbye(self._tls, self._outgoing, self._transport.socket)
        return self._transport

    async def _flush(self) -> None:
        self._unsent += self._outgoing.read()
        await send_from(self._transport, self._unsent)

    def into_socket(self, *, joins: bool = True) -> tuple[TlsSocket, bytes]:
        """Give the connection to the hub, with what was received and not read yet: the kernel has it no more
        and so would not speak of it. The stream is of no use afterwards. Unless it `joins` them, no two slices
        are in one record.
        """
        data = bytearray(self._kept)
        ended = True
        try:
            while piece := self._tls.read(RECEIVE_BYTES):
                data += piece
        except ssl.SSLWantReadError:
            ended = False
        except ssl.SSLError:
            pass  # close_notify, or worse
        sock = plain_socket(self._transport)
        secure = TlsSocket(sock, self._tls, self._incoming, self._outgoing, joins=joins)
        if ended:
            secure.end()
        return secure, bytes(data)


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
    with suppress(
        ssl.SSLError, ValueError
    ):  # it has not come, and need not; or there was no handshake
        tls.unwrap()
    if outgoing.pending:
        # A Trio socket's own `send` would have to be awaited.
        with socket.socket(fileno=sock.fileno()) as plain:
            try:
                plain.setblocking(False)
                plain.send(outgoing.read())
            finally:
                plain.detach()


def reason_of(error: ssl.SSLError) -> str:
    """Say what went wrong, as OpenSSL calls it, without its file and line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError):
        return "the connection was closed in the TLS handshake"
    return (error.reason or str(error)).replace("_", " ").lower()


def _broken(error: ssl.SSLError) -> OSError:
    return OSError(f"TLS: {reason_of(error)}")


async def _received(transport: trio.SocketStream) -> bytes:
    try:
        data = await transport.receive_some(RECEIVE_BYTES)
    except trio.BrokenResourceError as error:
        why = error.__cause__ or error
        raise TlsError(f"the connection broke in the TLS handshake: {why}") from None
    if not data:
        raise TlsError("the connection was closed in the TLS handshake")
    return bytes(data)

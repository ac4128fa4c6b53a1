"""TLS below an embedded server: plaintext in and out, a record at a time.

`gateway.net.secure` has one task, which negotiates, and gives its connection to the hub afterwards. Here one
task receives and another sends, and whoever receives has to know where a record ends.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable

import trio

from gateway.tls.errors import NotAdmitted
from gateway.tls.session import TlsSession
from gateway.wire.limits import KIB

RECORD_BYTES = 16 * KIB
"""The longest record (RFC 8446, 5.1)."""

Choose = Callable[[bytes], TlsSession | None]
"""Gives the session by what a client has sent so far; None: that is too little to tell."""


class SecureStream:
    """A connection over TLS, made by `accept`. All methods raise `OSError` if it ends, or breaks."""

    def __init__(self, stream: trio.SocketStream, session: TlsSession, received: bytes) -> None:
        self._stream = stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._incoming.write(received)
        self._tls = session.wrap(self._incoming, self._outgoing)

    @classmethod
    async def accept(cls, stream: trio.SocketStream, choose: Choose) -> SecureStream:
        """Be the server of a handshake."""
        received = b""
        while (session := choose(received)) is None:
            received += await _some(stream)
        secured = cls(stream, session, received)
        try:
            await secured._shake_hands()
            session.admitted(secured._tls)
        except NotAdmitted as error:
            raise OSError(str(error)) from None
        return secured

    async def _shake_hands(self) -> None:
        try:
            while True:
                try:
                    self._tls.do_handshake()
                    return
                except ssl.SSLWantReadError:
                    await self._flush()
                    self._incoming.write(await _some(self._stream))
        finally:  # also the alert that says why
            await self._flush()

    async def receive_into(self, view: memoryview) -> int:
        """Receive what one record has, or as much of it as there is room for; 0 is the end."""
        while True:
            try:
                return self._tls.read(len(view), view)  # type: ignore[return-value] # a number
            except ssl.SSLWantReadError:
                self._incoming.write(await _some(self._stream))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        self._tls.write(data)
        await self._flush()

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise OSError(str(error.__cause__ or error)) from None


async def _some(stream: trio.SocketStream) -> bytes:
    try:
        data = await stream.receive_some(RECORD_BYTES)
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise OSError(str(error.__cause__ or error)) from None
    if not data:
        raise OSError("the peer closed the connection")
    return bytes(data)

"""TLS over a connection while it is negotiated on: a stream, which becomes a socket for the hub afterwards
(`secure_socket`).

`SSLObject` over two `MemoryBIO`s, never `SSLSocket`: what is received and what is sent is in our hands, so that
one receive takes as many records as there are, and nothing that came in the clear gets in.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from contextlib import suppress

import trio

from gateway.net.options import plain_socket, send_from
from gateway.net.secure_socket import MAX_EMPTY_BYTES, TlsSocket, say_goodbye
from gateway.tls.errors import NotAdmitted
from gateway.tls.purpose import is_of_purpose
from gateway.tls.session import Admitted, TlsSession
from gateway.wire.limits import KIB

RECEIVE_BYTES = 16 * KIB
"""Ciphertext that one receive takes during negotiation: a record."""


class TlsError(Exception):
    """The TLS handshake has failed; the text says why, for the log. There is no way back: hang up."""


class OtherPurpose(TlsError):
    """OpenSSL has refused the peer's certificate for what it is for. Whoever connects again finds another check
    (`gateway.tls.purpose`).
    """


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
        """Be the client of a handshake. Raises `TlsError`, also `OtherPurpose`."""
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
            reason = reason_of(error, by_server=self._tls.server_side)
            why = self._session.failure(reason, openssl=error.reason or "")
            forgiven = self._session.forgive(error)
            raise (OtherPurpose if forgiven else TlsError)(why) from None
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


def reason_of(error: ssl.SSLError, *, by_server: bool = False) -> str:
    """Say what went wrong, as OpenSSL calls it, without its file and line. `by_server`: that is our side."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"its certificate is not accepted: {error.verify_message}"
        if is_of_purpose(error):
            # GnuTLS does not ask, so it is news to whoever has tried it with nbdkit, libnbd or qemu.
            wanted = ("servers", "clients")[by_server]
            text += f" (its extendedKeyUsage or keyUsage says that it is not for {wanted})"
        return text
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

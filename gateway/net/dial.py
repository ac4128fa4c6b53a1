"""Servers that we connect to by address."""

from __future__ import annotations

import errno
import math
import socket
from typing import Any

import trio

from gateway.there import unexpanded
from gateway.uri import NbdUri, Transport
from gateway.wire.constants import DEFAULT_PORT

SAME_STORAGE_SECONDS = 3.0
"""How long the address that was used last may take before the others of its name are tried, if all lead to the
same storage: long enough for one SYN to be lost."""

_DOWN = frozenset(
    {
        # Nobody listens; a Unix socket is not there yet, or its queue is full (connect(2)).
        *(errno.ECONNREFUSED, errno.ENOENT, errno.EAGAIN, errno.ECONNRESET, errno.ECONNABORTED),
        *(errno.EPIPE, errno.ENOTCONN),  # it has closed the connection, and was quicker than we are
        # The way there is cut.
        *(errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN),
        errno.ENODEV,  # vsock: the machine does not run
    }
)


class DialError(Exception):
    """A server cannot be reached; the text says why.

    `down`: it is not there now, and may be again. Else the reason is not the server's, or waiting mends
    nothing.
    """

    def __init__(self, text: str, *, down: bool = False) -> None:
        super().__init__(text)
        self.down = down


class Dialler:
    """Connects to where a URI points: always to the same address.

    A name may have several addresses, and they need not be those of one disk. So we keep to the first address
    that takes a connection: whatever is written, over however many connections, is written in one place. With
    `same_storage` the other addresses will do, too, if that one does not answer.
    """

    def __init__(self, uri: NbdUri) -> None:
        self.uri = uri
        self._kept: tuple[socket.AddressFamily, _Address] | None = None

    async def connect(self, *, same_storage: bool = False) -> trio.SocketStream:
        """Connect. Raises `DialError`."""
        uri = self.uri
        if self._kept is not None:
            with trio.move_on_after(SAME_STORAGE_SECONDS if same_storage else math.inf):
                try:
                    return await self._connect_to(*self._kept)
                except DialError:
                    if not same_storage:
                        raise
        try:
            match uri.transport:
                case Transport.TCP:
                    stream = await trio.open_tcp_stream(
                        uri.host or "localhost", uri.port or DEFAULT_PORT
                    )
                case Transport.UNIX:
                    assert uri.socket_path is not None
                    return await trio.open_unix_socket(uri.socket_path)
                case Transport.VSOCK:
                    return await _connected(socket.AF_VSOCK, (uri.cid, uri.port or DEFAULT_PORT))
        except (OSError, UnicodeError) as error:
            raise self._error(error) from None
        return await self._keep(stream, same_storage=same_storage)

    async def _keep(self, stream: trio.SocketStream, *, same_storage: bool) -> trio.SocketStream:
        """Keep to the address of a connection, or to that which another one has found meanwhile."""
        try:
            address = stream.socket.getpeername()
        except OSError:
            return stream  # it is gone again, and nothing will be written over it
        if self._kept is None or same_storage:
            self._kept = stream.socket.family, address
        if self._kept[1] == address:
            return stream
        await trio.aclose_forcefully(stream)
        return await self._connect_to(*self._kept)

    async def _connect_to(
        self, family: socket.AddressFamily, address: _Address
    ) -> trio.SocketStream:
        try:
            return await _connected(family, address)
        except OSError as error:
            raise self._error(error, address[0]) from None

    def _error(self, error: OSError | UnicodeError, kept: str | int | None = None) -> DialError:
        if isinstance(error, UnicodeError):
            # Of who looks names up; URIs have none that it would be.
            return DialError(f"cannot connect to {self.uri}: no name of a host: {error}")
        # trio tries all addresses of a name, and says why each failed in a cause of the error.
        cause = error.__cause__
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        why = cause if isinstance(cause, OSError) else error
        reason = why.strerror or str(why)
        text = f"cannot connect to {self.uri}: {reason}{unexpanded(self.uri.socket_path or '')}"
        if kept is not None and kept != self.uri.host:
            text += f" ({kept}, the address that was found first, is kept to)"
        if isinstance(why, socket.gaierror):
            return DialError(text, down=why.errno == socket.EAI_AGAIN)
        return DialError(text, down=why.errno in _DOWN)


_Address = tuple[Any, ...]
"""As getpeername() gives it: the host comes first."""


async def _connected(family: socket.AddressFamily, address: _Address) -> trio.SocketStream:
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        await sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def dial(uri: NbdUri) -> trio.SocketStream:
    """Connect once to where a URI points. Raises `DialError`."""
    return await Dialler(uri).connect()

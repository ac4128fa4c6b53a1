"""Socket options of every connection, a client's as an upstream's (tcp(7))."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import trio

from gateway.identity import Identity, UnixPeer
from gateway.peer import Connection

KEEPALIVE_PROBES = 3
"""Unanswered keepalive probes after which a peer is given up."""

TCP_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def tune(sock: socket.socket, *, keepalive_seconds: int, user_timeout_seconds: int) -> None:
    """Set up a connection so that small messages go out at once, and a peer that has vanished is found
    out: after `keepalive_seconds` of silence it is asked whether it is there, and data that it does not
    acknowledge for `user_timeout_seconds` ends it (0: the kernel's defaults). Unix sockets need none of it.
    """
    if sock.family not in TCP_FAMILIES:
        return
    options = [(socket.TCP_NODELAY, 1)]
    if user_timeout_seconds:
        options.append((socket.TCP_USER_TIMEOUT, user_timeout_seconds * 1000))
    if keepalive_seconds:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        interval = max(1, keepalive_seconds // KEEPALIVE_PROBES)
        options += [
            (socket.TCP_KEEPIDLE, keepalive_seconds),
            (socket.TCP_KEEPINTVL, interval),
            (socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
        ]
    for option, value in options:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def plain_socket(stream: trio.SocketStream) -> socket.socket:
    """Take the non-blocking socket out of a Trio stream, which is of no use afterwards.

    Trio limits what may wait unsent in the kernel to 16 KiB, for its own tasks' sake; relaying needs the
    kernel's default.
    """
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    if sock.family in TCP_FAMILIES:
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)
    return sock


async def send_from(stream: trio.SocketStream, unsent: bytearray) -> None:
    """Send what is in a buffer, and take it out as it goes: after a cancellation the buffer has what has not
    gone, which `SocketStream.send_all` leaves unknown. No checkpoint where there is room for all of it. Raises
    `trio.BrokenResourceError`.
    """
    while unsent:
        try:
            # Trio's own way lets others run each time, which takes longer than to send.
            count = os.write(stream.socket.fileno(), unsent)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(stream.socket)
        except OSError as error:
            raise trio.BrokenResourceError from error
        else:
            del unsent[:count]


class RelaySocket(Protocol):
    """What the hub needs of a connection: a non-blocking socket, or a `TlsSocket` over one."""

    def fileno(self) -> int:
        """Give the descriptor to wait for."""

    def recv_into(self, buffer: bytearray | memoryview, /) -> int:
        """Receive; 0 is the end. Raises BlockingIOError, OSError."""

    def recv(self, count: int, /) -> bytes:
        """Receive something, to see whether it is the end."""

    def send(self, data: bytes | memoryview, /) -> int:
        """Send some. Raises BlockingIOError, OSError."""

    def sendmsg(self, slices: Sequence[bytes | memoryview], /) -> int:
        """Send some. Raises BlockingIOError, OSError."""

    def shutdown(self, how: int, /) -> None:
        """Say that nothing more is sent. Raises OSError."""

    def close(self) -> None:
        """Close."""


def has_gone(sock: Connection) -> bool:
    """Say whether the other side has said that it sends nothing more, or has gone; what it has sent before may
    be there to receive.
    """
    descriptor = sock.fileno()
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP)
    return bool(poll.poll(0))


def has_said(sock: Connection) -> bool:
    """Say whether there is anything to receive, were it only the end."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class Awaited:
    """A `RelaySocket`, to be awaited: for programs of ours that talk over a link without the hub."""

    def __init__(self, sock: RelaySocket) -> None:
        self._sock = sock

    async def send_all(self, data: bytes) -> None:
        """Send. Raises `trio.BrokenResourceError`."""
        left = memoryview(data)
        while left:
            try:
                left = left[self._sock.send(left) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock.fileno())
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def receive_some(self, max_bytes: int) -> bytes:
        """Receive; b"" is the end. Raises `trio.BrokenResourceError`."""
        buffer = bytearray(max_bytes)
        while True:
            try:
                return bytes(buffer[: self._sock.recv_into(buffer)])
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock.fileno())
            except OSError as error:
                raise trio.BrokenResourceError from error

    def close(self) -> None:
        """Close."""
        self._sock.close()


def peer_of(sock: socket.socket | trio.socket.SocketType) -> Identity:
    """Say who is at the other end, as far as the kernel knows."""
    try:
        peer = sock.getpeername()
    except OSError:
        return Identity("a client that has gone")
    if sock.family in TCP_FAMILIES:
        return Identity.at(peer[0], peer[1])
    if sock.family == socket.AF_UNIX:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        unix = UnixPeer(*_UCRED.unpack(credentials))
        return Identity(str(unix), unix=unix)
    if sock.family == socket.AF_VSOCK:
        cid, port = peer
        return Identity(f"{cid}:{port}", cid=cid)
    return Identity(str(peer))


_UCRED = struct.Struct("iII")  # pid, uid, gid

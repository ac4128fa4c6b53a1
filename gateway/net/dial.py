"""Servers that we connect to: by address, or started by command."""

from __future__ import annotations

import errno
import math
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from gateway.net.processes import Child
from gateway.peer import UNKNOWN, Peer
from gateway.uri import NbdUri, Transport
from gateway.wire.constants import DEFAULT_PORT

FIRST_PASSED_DESCRIPTOR = 3
"""Where socket activation puts the sockets (sd_listen_fds(3))."""

STOP_SECONDS = 5
"""How long a server that we started may take to end after SIGTERM."""


SAME_STORAGE_SECONDS = 3.0
"""How long the address that was used last may take before the others of its name are tried, where all lead to
the same storage: long enough for one SYN to be lost."""

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

    A name may have several addresses, and they need not be those of one disk. So the first that takes a
    connection is kept to: whatever is written, over however many connections, is written in one place. With
    `same_storage` the other addresses are good as well when that one does not answer.
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
        except OSError as error:
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

    def _error(self, error: OSError, kept: str | int | None = None) -> DialError:
        # trio tries all addresses of a name, and says why each failed in a cause of the error.
        cause = error.__cause__
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        why = cause if isinstance(cause, OSError) else error
        reason = why.strerror or str(why)
        text = f"cannot connect to {self.uri}: {reason}"
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


def unstartable(command: Sequence[str]) -> str | None:
    """Say why a server cannot be started by a command; None if nothing is known against it."""
    if shutil.which(command[0]) is None:
        return f"there is no program {command[0]!r}"
    return None


class Command:
    """A server that is started by socket activation when it is first needed, and again if it ended.

    It inherits a listening Unix socket as descriptor 3 (sd_listen_fds(3): LISTEN_PID, LISTEN_FDS), as
    qemu-nbd, nbdkit and nbd-server take it; nobody else can connect there.
    """

    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._child: Child | None = None
        self._lock = trio.Lock()  # one start at a time: two servers on one disk would spoil it

    def __str__(self) -> str:
        return " ".join(self._command)

    async def connect(self) -> trio.SocketStream:
        """Connect to the server, which is started if it does not run. Raises `DialError`."""
        async with self._lock:
            if self.process is not None and self.process.poll() is not None:
                await self._stop()
            if self.process is None:
                self._start()
            assert self._directory is not None
            path = str(Path(self._directory.name) / "socket")
        try:
            return await trio.open_unix_socket(path)
        except OSError as error:
            status = None if self.process is None else self.process.poll()
            why = f"{error.strerror}" if status is None else f"it has ended with status {status}"
            raise DialError(f"cannot connect to the server {self}: {why}") from None

    def at(self, _stream: trio.SocketStream) -> Peer:
        """Say who is at the other end of a connection that has just been made."""
        return UNKNOWN if self._child is None else self._child

    def _start(self) -> None:
        """Start the server. Our own copy of its socket is closed, so that it is refused, not left waiting,
        whoever connects to a server that has ended.
        """
        if why := unstartable(self._command):
            raise DialError(f"cannot start the server {self}: {why}")
        directory = tempfile.TemporaryDirectory(prefix="nbd-gateway-")
        # LISTEN_PID is the server's own number, which is known only inside it: the shell that sets it
        # becomes the server.
        script = f'exec {FIRST_PASSED_DESCRIPTOR}<&0 0</dev/null; LISTEN_PID=$$ exec "$@"'
        environment = os.environ | {"LISTEN_FDS": "1"}
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                listener.bind(str(Path(directory.name) / "socket"))
                listener.listen()
                self.process = subprocess.Popen(
                    ["/bin/sh", "-c", script, "sh", *self._command],
                    stdin=listener.fileno(),
                    env=environment,
                    # Ctrl-C is for us: we still have to drain. And what belongs to it can be told by this.
                    start_new_session=True,
                )
        except OSError as error:
            directory.cleanup()
            raise DialError(f"cannot start the server {self}: {error.strerror}") from None
        self._directory = directory
        self._child = Child(self.process)

    async def stop(self) -> None:
        """End the server, and wait until it has ended."""
        async with self._lock:
            await self._stop()

    async def _stop(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.terminate()
            with trio.move_on_after(STOP_SECONDS) as limit:
                await trio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)
            if limit.cancelled_caught:
                self.process.kill()
                await trio.to_thread.run_sync(self.process.wait)
            self.process = None
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

"""Servers that we connect to: by address, or started by command."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import trio

from gateway.uri import NbdUri, Transport
from gateway.wire.constants import DEFAULT_PORT

FIRST_PASSED_DESCRIPTOR = 3
"""Where socket activation puts the sockets (sd_listen_fds(3))."""

STOP_SECONDS = 5
"""How long a server that we started may take to end after SIGTERM."""


class DialError(Exception):
    """A server cannot be reached; the text says why."""


async def dial(uri: NbdUri) -> trio.SocketStream:
    """Connect to where a URI points. Raises `DialError`."""
    try:
        match uri.transport:
            case Transport.TCP:
                return await trio.open_tcp_stream(uri.host or "localhost", uri.port or DEFAULT_PORT)
            case Transport.UNIX:
                assert uri.socket_path is not None
                return await trio.open_unix_socket(uri.socket_path)
            case Transport.VSOCK:
                sock = trio.socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
                try:
                    await sock.connect((uri.cid, uri.port or DEFAULT_PORT))
                except BaseException:
                    sock.close()
                    raise
                return trio.SocketStream(sock)
    except OSError as error:
        # trio tries all addresses of a name, and says why each failed in a cause of the error.
        cause = error.__cause__
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        why = cause if isinstance(cause, OSError) else error
        reason = why.strerror or str(why)
        raise DialError(f"cannot connect to {uri}: {reason}") from None


class Command:
    """A server that is started by socket activation when it is first needed, and again if it ended.

    It inherits a listening Unix socket as descriptor 3 (sd_listen_fds(3): LISTEN_PID, LISTEN_FDS), as
    qemu-nbd, nbdkit and nbd-server take it; nobody else can connect there.
    """

    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self.process: subprocess.Popen[bytes] | None = None
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

    def _start(self) -> None:
        """Start the server. Our own copy of its socket is closed, so that it is refused, not left waiting,
        whoever connects to a server that has ended.
        """
        if shutil.which(self._command[0]) is None:
            raise DialError(f"cannot start the server {self}: there is no program of that name")
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
                    start_new_session=True,  # Ctrl-C is for us: we still have to drain
                )
        except OSError as error:
            directory.cleanup()
            raise DialError(f"cannot start the server {self}: {error.strerror}") from None
        self._directory = directory

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

"""Servers that we connect to: by address, or started by command."""

from __future__ import annotations

import os
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
        self._listener: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __str__(self) -> str:
        return " ".join(self._command)

    async def connect(self) -> trio.SocketStream:
        """Connect to the server, which is started if it does not run. Raises `DialError`."""
        if self._process is not None and self._process.poll() is not None:
            await self.stop()
        if self._process is None:
            self._start()
        assert self._directory is not None
        try:
            return await trio.open_unix_socket(str(Path(self._directory.name) / "socket"))
        except OSError as error:
            raise DialError(f"cannot connect to the server {self}: {error.strerror}") from None

    def _start(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="nbd-gateway-")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(Path(self._directory.name) / "socket"))
        self._listener.listen()
        # LISTEN_PID is the server's own number, which is known only inside it: the shell that sets it
        # becomes the server.
        script = f'exec {FIRST_PASSED_DESCRIPTOR}<&0 0</dev/null; LISTEN_PID=$$ exec "$@"'
        environment = os.environ | {"LISTEN_FDS": "1"}
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", script, "sh", *self._command],
                stdin=self._listener.fileno(),
                env=environment,
                start_new_session=True,  # Ctrl-C is for us: we still have to drain
            )
        except OSError as error:
            raise DialError(f"cannot start the server {self}: {error.strerror}") from None

    async def stop(self) -> None:
        """End the server, and wait until it has ended."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            with trio.move_on_after(STOP_SECONDS) as limit:
                await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)
            if limit.cancelled_caught:
                self._process.kill()
                await trio.to_thread.run_sync(self._process.wait)
            self._process = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

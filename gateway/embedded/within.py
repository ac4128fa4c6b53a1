"""An embedded server that is reached from within the process, over socket pairs."""

from __future__ import annotations

import socket

import trio

from gateway.embedded.file_disk import FileDisk
from gateway.embedded.server import Server
from gateway.net.dial import DialError

CLIENTS_GONE_SECONDS = 5
"""How long we wait for a server to see that its last client has gone, before we close its file. If it takes
longer, the file stays open, for a write may need it."""


class InProcess:
    """A server whose connections live in a nursery."""

    def __init__(self, server: Server, nursery: trio.Nursery) -> None:
        self._server = server
        self._nursery = nursery
        self._served = 0
        self._quiet = trio.Event()

    async def connect(self) -> trio.SocketStream:
        """Connect. Raises `DialError`."""
        try:
            pair = socket.socketpair()
        except OSError as error:
            raise DialError(f"cannot connect to the server in here: {error.strerror}") from None
        for end in pair:
            end.setblocking(False)
        ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in pair)
        self._nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, stream: trio.SocketStream) -> None:
        self._served += 1
        try:
            await self._server.serve(stream)
        except Exception:
            # A bug. Another server would end over it; this one shares its process with the gateway, which must
            # not end.
            import structlog  # not before it is needed: it would slow every start

            structlog.get_logger().exception(
                "a server in here lost a connection to an internal error"
            )
            await trio.aclose_forcefully(stream)
        finally:
            self._served -= 1
            self._quiet.set()
            self._quiet = trio.Event()

    async def close_files(self) -> None:
        """Close the files that are served, once nobody is served any more."""
        with trio.move_on_after(CLIENTS_GONE_SECONDS):
            while self._served:
                await self._quiet.wait()
            for disk in self._server.exports.values():
                if isinstance(disk, FileDisk):
                    disk.close()

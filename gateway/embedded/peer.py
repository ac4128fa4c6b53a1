"""The other end of a connection: bytes in, bytes out, and the faults that concern bytes alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import trio

from gateway.embedded.disk import Data
from gateway.embedded.faults import Faults
from gateway.wire.limits import KIB

if TYPE_CHECKING:
    from gateway.embedded.secure import Choose, SecureStream  # costs nothing where there is no TLS

RECEIVE_BYTES = 64 * KIB
"""What one receive takes of what is ignored."""

JOIN_BYTES = 32 * KIB
"""Pieces up to this are copied together, to be sent at once: a system call costs more than the copy."""


class PeerGone(Exception):
    """The peer has closed the connection, or it broke: nothing more can come or go."""


class Cut(Exception):
    """A fault: close now, as if the server had crashed."""


class Stalled(Exception):
    """A fault: send nothing any more."""


class FaultyStream:
    """A stream. One task receives and one sends."""

    def __init__(self, stream: trio.SocketStream, faults: Faults) -> None:
        self._stream = stream
        self._secure: SecureStream | None = None
        self._end: type[Cut | Stalled] = Cut
        self._bytes_left: int | None = None  # until `self._end` is raised
        for limit, end in ((faults.cut_after_bytes, Cut), (faults.stall_after_bytes, Stalled)):
            if limit is not None and (self._bytes_left is None or limit < self._bytes_left):
                self._bytes_left, self._end = limit, end
        self._counting = not faults.count_from_transmission

    def begin_transmission(self) -> None:
        """Say that the negotiation is over."""
        self._counting = True
        if self._bytes_left == 0:
            raise self._end

    @property
    def is_secure(self) -> bool:
        """It goes over TLS."""
        return self._secure is not None

    async def secure(self, choose: Choose) -> None:
        """Go over to TLS, as its server. Raises `PeerGone`."""
        from gateway.embedded.secure import SecureStream

        try:
            self._secure = await SecureStream.accept(self._stream, choose)
        except OSError as error:
            raise PeerGone(f"TLS: {error}") from None

    async def receive_into(self, view: memoryview) -> int:
        """Receive some bytes, over TLS those of one record; give their number. Raises `PeerGone`, also for an
        orderly end.
        """
        try:
            if self._secure is not None:
                count = await self._secure.receive_into(view)
                if not count:
                    raise PeerGone("the peer closed the connection")
                return count
            # Not SocketStream.receive_some, which would allocate, and copy once more.
            count = await self._stream.socket.recv_into(view)
        except OSError as error:
            raise PeerGone(f"the connection broke: {error.strerror or error}") from None
        if not count:
            raise PeerGone("the peer closed the connection")
        return count

    async def swallow(self) -> None:
        """Receive, and ignore, until the peer closes."""
        view = memoryview(bytearray(RECEIVE_BYTES))
        while True:
            await self.receive_into(view)

    async def send(self, pieces: Iterable[Data]) -> None:
        """Send all. Raises `PeerGone`, or `Cut` or `Stalled` after what that fault lets through."""
        joined = bytearray()
        for piece in pieces:
            if len(piece) <= JOIN_BYTES:
                joined += piece
                if len(joined) <= 2 * JOIN_BYTES:
                    continue
                piece = b""
            await self._send(joined)
            await self._send(piece)
            joined = bytearray()
        await self._send(joined)

    async def _send(self, data: Data) -> None:
        if self._counting and self._bytes_left is not None:
            data = memoryview(data)[: self._bytes_left]
            self._bytes_left -= len(data)
        if data:
            try:
                await (self._secure or self._stream).send_all(data)
            except OSError as error:
                raise PeerGone(f"the connection broke: {error.strerror or error}") from None
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise PeerGone(f"the connection broke: {error.__cause__ or error}") from None
        if self._counting and self._bytes_left == 0:
            raise self._end

"""What a connection has received and not looked at yet: whole headers and whole data are taken from it."""

from __future__ import annotations

from struct import Struct

from gateway.embedded.disk import Data
from gateway.embedded.peer import FaultyStream
from gateway.wire import limits

BUFFER_BYTES = 128 * limits.KIB
"""What one receive takes: 32 WRITEs of 4 KiB, or 4,681 requests without data."""


class Inbox:
    """What was received and not looked at yet."""

    def __init__(self, peer: FaultyStream, received: bytes) -> None:
        self._peer = peer
        self._view = memoryview(bytearray(max(BUFFER_BYTES, len(received))))
        self._view[: len(received)] = received
        self._start, self._end = 0, len(received)

    async def request(self, header_of: Struct) -> tuple[int, int, int, int, int]:
        """Take one request's header."""
        size = header_of.size
        if self._end - self._start < size:
            rest = bytes(self._view[self._start : self._end])
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
            while self._end < size:
                self._end += await self._peer.receive_into(self._view[self._end :])
        header: tuple[int, int, int, int, int] = header_of.unpack_from(self._view, self._start)
        self._start += size
        return header

    async def data(self, length: int, *, keep: bool) -> Data:
        """Take `length` bytes; unless `keep`, they are good only until the next call."""
        here = self._view[self._start : min(self._end, self._start + length)]
        self._start += len(here)
        if len(here) == length:
            return bytes(here) if keep else here
        data = bytearray(length)
        view = memoryview(data)
        view[: len(here)] = here
        at = len(here)
        while at < length:
            at += await self._peer.receive_into(view[at:])
        return data

    async def skip(self, length: int) -> None:
        """Take `length` bytes and forget them."""
        here = min(length, self._end - self._start)
        self._start += here
        length -= here
        while length:
            # All that was received is taken, so the whole buffer is free.
            self._start = self._end = 0
            length -= await self._peer.receive_into(self._view[:length])


class RecordInbox(Inbox):
    """Over TLS, that of a server that looks for the next request when its socket has something: what else was
    in the record of the last one is not in the socket any more, and lies here until another record has come.
    """

    def __init__(self, peer: FaultyStream, received: bytes) -> None:
        super().__init__(peer, b"")
        self._held = bytearray(received)

    async def request(self, header_of: Struct) -> tuple[int, int, int, int, int]:
        """Take one request's header, of which there may be many here, behind another record."""
        if len(self._held) < BUFFER_BYTES:  # who fills that has it emptied without
            await self._take_record()
        header: tuple[int, int, int, int, int] = header_of.unpack(await self._take(header_of.size))
        return header

    async def data(self, length: int, *, keep: bool) -> Data:
        """Take `length` bytes."""
        return await self._take(length)

    async def skip(self, length: int) -> None:
        """Take `length` bytes and forget them."""
        while length:
            length -= len(await self._take(min(length, BUFFER_BYTES)))

    async def _take(self, length: int) -> bytes:
        while len(self._held) < length:
            await self._take_record()
        data = bytes(self._held[:length])
        del self._held[:length]
        return data

    async def _take_record(self) -> None:
        count = await self._peer.receive_into(self._view)
        self._held += self._view[:count]

"""What a connection has written, over a disk that stays as it is: copy-on-write.

nbd-server with `copyonwrite`, `nbdkit tmpdisk` (over zeros) and `qemu-nbd --snapshot` (until it ends) have such
disks. FLUSH and FUA succeed on them, and yet all is gone when the connection, or the server, ends.
"""

from __future__ import annotations

from gateway.embedded.disk import Data, Extent, ServedDisk
from gateway.wire.limits import KIB

BLOCK_BYTES = 4 * KIB
"""What is copied at a time."""


class OverlayDisk:
    """A disk of one connection. Nothing reaches the one below."""

    def __init__(self, disk: ServedDisk) -> None:
        self._disk = disk
        self._blocks: dict[int, bytearray] = {}
        self.size = disk.size
        self.read_only = disk.read_only
        self.immediate = disk.immediate
        self.cache = disk.cache

    async def read(self, offset: int, length: int) -> Data:
        """Read what was written here, and the disk below elsewhere."""
        data = bytearray(await self._disk.read(offset, length))
        for number, block in self._blocks.items():
            start = max(offset, number * BLOCK_BYTES)
            end = min(offset + length, (number + 1) * BLOCK_BYTES)
            if start < end:
                at = number * BLOCK_BYTES
                data[start - offset : end - offset] = block[start - at : end - at]
        return data

    async def write(self, offset: int, data: Data, *, fua: bool) -> None:
        """Write here."""
        end = offset + len(data)
        for number in range(offset // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
            at = number * BLOCK_BYTES
            if number not in self._blocks:
                below = await self._disk.read(at, min(BLOCK_BYTES, self.size - at))
                self._blocks.setdefault(number, bytearray(below))
            start, stop = max(offset, at), min(end, at + BLOCK_BYTES)
            self._blocks[number][start - at : stop - at] = data[start - offset : stop - offset]

    async def flush(self) -> None:
        """Do nothing: it is durable as long as it is there."""

    async def trim(self, offset: int, length: int, *, fua: bool) -> None:
        """Write zeros."""
        await self.write(offset, bytes(length), fua=fua)

    async def zero(
        self, offset: int, length: int, *, fua: bool, may_trim: bool, fast: bool
    ) -> None:
        """Write zeros."""
        await self.write(offset, bytes(length), fua=fua)

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """All is data."""
        return [(length, 0)]

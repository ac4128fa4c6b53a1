"""What a dirty bitmap knows: which parts of a disk were written since the server was made."""

from __future__ import annotations

from gateway.embedded.disk import MAX_EXTENTS_TOLD, Data, Extent, ServedDisk
from gateway.wire.limits import KIB

GRAIN_BYTES = 64 * KIB
"""qemu's usual granularity of a bitmap."""

DIRTY = 1 << 0


class TrackedDisk:
    """A disk that notes where it was changed: one byte for each `GRAIN_BYTES`."""

    def __init__(self, disk: ServedDisk) -> None:
        self._disk = disk
        self._dirty = bytearray(-(-disk.size // GRAIN_BYTES))
        self.size = disk.size
        self.read_only = disk.read_only
        self.immediate = disk.immediate
        self.read = disk.read
        self.flush = disk.flush
        self.cache = disk.cache
        self.extents = disk.extents

    async def write(self, offset: int, data: Data, *, fua: bool) -> None:
        """Write, and note where."""
        self._mark(offset, len(data))
        await self._disk.write(offset, data, fua=fua)

    async def trim(self, offset: int, length: int, *, fua: bool) -> None:
        """Trim, and note where."""
        self._mark(offset, length)
        await self._disk.trim(offset, length, fua=fua)

    async def zero(
        self, offset: int, length: int, *, fua: bool, may_trim: bool, fast: bool
    ) -> None:
        """Zero, and note where."""
        self._mark(offset, length)
        await self._disk.zero(offset, length, fua=fua, may_trim=may_trim, fast=fast)

    def dirty(self, offset: int, length: int) -> list[Extent]:
        """Tell dirty from clean, as `ServedDisk.extents` tells holes from data."""
        end = offset + length
        behind = -(-end // GRAIN_BYTES)
        extents: list[Extent] = []
        while offset < end and len(extents) < MAX_EXTENTS_TOLD:
            grain = offset // GRAIN_BYTES
            dirty = self._dirty[grain]
            other = self._dirty.find(not dirty, grain, behind)
            until = end if other < 0 else other * GRAIN_BYTES
            extents.append((until - offset, DIRTY if dirty else 0))
            offset = until
        return extents

    def _mark(self, offset: int, length: int) -> None:
        first, last = offset // GRAIN_BYTES, (offset + length - 1) // GRAIN_BYTES
        self._dirty[first : last + 1] = bytes([DIRTY]) * (last + 1 - first)

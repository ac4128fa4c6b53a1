"""A part of an image, as `qemu-nbd --offset` of old exports it.

Data lies where it should: the export's first byte is the image's at the offset. But qemu 2.11 to 3.1 look for
holes without adding the offset (Q-S6), and so tell those of another place.
"""

from __future__ import annotations

from gateway.embedded.disk import Data, ServedDisk


class OffsetDisk:
    """What lies behind the first `offset` bytes of an image."""

    def __init__(self, image: ServedDisk, offset: int) -> None:
        self._image = image
        self._offset = offset
        self.size = image.size - offset
        self.read_only = image.read_only
        self.immediate = image.immediate
        self.flush = image.flush
        self.extents = image.extents  # Q-S6: the offset is not added

    async def read(self, offset: int, length: int) -> Data:
        """Read from the right place."""
        return await self._image.read(self._offset + offset, length)

    async def write(self, offset: int, data: Data, *, fua: bool) -> None:
        """Write to the right place."""
        await self._image.write(self._offset + offset, data, fua=fua)

    async def trim(self, offset: int, length: int, *, fua: bool) -> None:
        """Trim the right place."""
        await self._image.trim(self._offset + offset, length, fua=fua)

    async def zero(
        self, offset: int, length: int, *, fua: bool, may_trim: bool, fast: bool
    ) -> None:
        """Zero the right place."""
        at = self._offset + offset
        await self._image.zero(at, length, fua=fua, may_trim=may_trim, fast=fast)

    async def cache(self, offset: int, length: int) -> None:
        """Have the image read ahead."""
        await self._image.cache(self._offset + offset, length)

"""What an embedded server exports: the `ServedDisk` protocol, and `MemoryDisk`.

A disk knows bytes and nothing of NBD. The server has checked every range before it calls, so offsets and
lengths always lie inside the disk; what goes wrong is raised as OSError, and its errno becomes the reply's.
"""

from __future__ import annotations

import mmap
from typing import Protocol

from gateway.wire.limits import KIB

Data = bytes | bytearray | memoryview

Extent = tuple[int, int]
"""Length in bytes, and status flags of `base:allocation`: HOLE | ZERO, or 0 for data."""

HOLE = 1 << 0
ZERO = 1 << 1
HOLE_AND_ZERO = HOLE | ZERO

MAX_EXTENTS_TOLD = 2**17
"""Extents that a disk gives at once: qemu's own bound, 1 MiB of reply. A shorter answer than asked is legal."""


class DiskError(Exception):
    """A disk cannot be had; the text is for the person who asked for it."""


class ServedDisk(Protocol):
    """Bytes that can be exported.

    All connections of a server use the same disk at the same time. What a finished write left must be seen
    by every read that begins after it: that is what lets a server offer CAN_MULTI_CONN.
    """

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def read_only(self) -> bool:
        """No method that changes the disk may be called."""

    @property
    def immediate(self) -> bool:
        """No method waits for anything, so that a server need not start a task for a command."""

    async def read(self, offset: int, length: int) -> Data:
        """Give `length` bytes; the caller sends them soon and keeps nothing."""

    async def write(self, offset: int, data: Data, *, fua: bool) -> None:
        """Write; `fua`: on stable storage when this returns. `data` is good only until then."""

    async def flush(self) -> None:
        """Put on stable storage what finished writes left."""

    async def trim(self, offset: int, length: int, *, fua: bool) -> None:
        """Say that the content is needed no more; what is read there afterwards is anybody's guess."""

    async def zero(
        self, offset: int, length: int, *, fua: bool, may_trim: bool, fast: bool
    ) -> None:
        """Make a range read as zeros; `may_trim`: it may become a hole. `fast`: raise ENOTSUP, with nothing
        done, if that would not be quicker than to write zeros.
        """

    async def cache(self, offset: int, length: int) -> None:
        """Read ahead."""

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Tell holes from data, from `offset` on: at least one extent, none of them empty, none reaching beyond
        `offset + length`. If they are too many, give only the first.
        """


BLOCK_BYTES = 64 * KIB
"""What `MemoryDisk` allocates at a time, and thus the grain of its holes. A multiple of every page size."""

# Python has a name for it from 3.13 on. The value is asm-generic's; a kernel with another one ignores this.
_MAP_NORESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000)


class MemoryDisk:
    """A disk in memory: zeros in the beginning, gone at the end.

    It is one anonymous mapping of the whole size. The kernel provides only the pages that were written, so
    `memory:1T` costs nothing until it is filled; MADV_DONTNEED gives the pages of a hole back. One byte for
    each block says whether the block was written.
    """

    immediate = True

    def __init__(self, size: int, *, read_only: bool = False) -> None:
        """Make a disk of `size` bytes. Raises `DiskError`."""
        self.size = size
        self.read_only = read_only
        try:
            # mmap refuses an empty mapping.
            self._memory = mmap.mmap(
                -1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
            )
            self._written = bytearray(-(-size // BLOCK_BYTES))
        except (OSError, OverflowError, MemoryError):
            raise DiskError(f"a disk of {size} bytes is more than can be had of memory") from None
        self._view = memoryview(self._memory)

    async def read(self, offset: int, length: int) -> Data:
        """Give a view of the memory: nothing is copied."""
        return self._view[offset : offset + length]

    async def write(self, offset: int, data: Data, *, fua: bool = False) -> None:
        """Copy `data` into the memory."""
        if data:
            self._memory[offset : offset + len(data)] = data
            self._mark(offset, len(data))

    async def flush(self) -> None:
        """Do nothing: what is written is as stable as it will ever be."""

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Give back the blocks that lie whole in the range; rounding inwards is allowed."""
        self._forget(*self._whole_blocks(offset, offset + length))

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        may_trim: bool = True,
        fast: bool = False,
    ) -> None:
        """Give back whole blocks, and write zeros to what is left at both ends. Always fast.

        Without `may_trim` it does the same, but the blocks count as data: this disk reserves no memory anyway.
        """
        end = offset + length
        first, behind = self._whole_blocks(offset, end)
        if first < behind:
            self._forget(first, behind)
            self._wipe(offset, first * BLOCK_BYTES)
            self._wipe(min(behind * BLOCK_BYTES, end), end)
        else:
            self._wipe(offset, end)
        if not may_trim:
            self._mark(offset, length)

    async def cache(self, offset: int, length: int) -> None:
        """Do nothing: it is memory."""

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Tell as holes the blocks that were never written, or were given back since."""
        end = offset + length
        behind = -(-end // BLOCK_BYTES)
        extents: list[Extent] = []
        while offset < end and len(extents) < MAX_EXTENTS_TOLD:
            block = offset // BLOCK_BYTES
            written = self._written[block]
            other = self._written.find(not written, block, behind)
            until = end if other < 0 else other * BLOCK_BYTES
            extents.append((until - offset, 0 if written else HOLE_AND_ZERO))
            offset = until
        return extents

    def _mark(self, offset: int, length: int) -> None:
        if length:
            first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
            if first == last:
                self._written[first] = 1
            else:
                self._written[first : last + 1] = b"\1" * (last + 1 - first)

    def _whole_blocks(self, start: int, end: int) -> tuple[int, int]:
        """Give the first block that lies whole between `start` and `end`, and the one behind the last. The
        disk's last block counts as whole even if the disk ends within it.
        """
        behind = len(self._written) if end == self.size else end // BLOCK_BYTES
        return -(-start // BLOCK_BYTES), behind

    def _forget(self, first: int, behind: int) -> None:
        """Give the memory of blocks back; they read as zeros."""
        # Only what was written is touched, so that a WRITE_ZEROES of a whole empty disk costs nothing.
        if self._written.find(1, first, behind) >= 0:
            start = first * BLOCK_BYTES
            length = min(behind * BLOCK_BYTES, self.size) - start
            self._memory.madvise(mmap.MADV_DONTNEED, start, length)
            self._written[first:behind] = bytes(behind - first)

    def _wipe(self, start: int, end: int) -> None:
        """Write zeros to less than two blocks, where they were written at all."""
        while start < end:
            block = start // BLOCK_BYTES
            until = min(end, (block + 1) * BLOCK_BYTES)
            if self._written[block]:
                self._memory[start:until] = bytes(until - start)
            start = until

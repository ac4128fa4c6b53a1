"""A connection's own cache of a disk, which knows nothing of the other connections'.

qemu before 4.2 did not mean to promise that one connection sees what another wrote; 3.0.0 promised it by
mistake. Wherever the real one was tried, it was coherent (0 stale reads of 9,600 over four connections). But
nobody had checked that promise, and this is the worst that could have come of it: a client or gateway that
believes it fails in a test. Writes stay here until FLUSH, FUA or the end of the connection, and what was read
once is read from here until a FLUSH. A server that does not set CAN_MULTI_CONN may do both.
"""

from __future__ import annotations

import trio

from gateway.embedded.disk import HOLE_AND_ZERO, Data, Extent, ServedDisk
from gateway.wire.limits import KIB, MAX_REQUEST_BYTES, MIB

BLOCK_BYTES = 4 * KIB
"""What is read and written through at a time. What another connection wrote to the same block meanwhile is
overwritten, as it would be by a page cache."""

MAX_BLOCKS = MAX_REQUEST_BYTES // BLOCK_BYTES + 1
"""How many blocks are kept: as many as one request can touch. Before there are more, all are written through
and forgotten."""

MAX_STATUS_BYTES = 4 * MIB
"""How many bytes one answer tells the extents of: to find them we read all."""

_ZERO_BLOCK = bytes(BLOCK_BYTES)


class IncoherentDisk:
    """A disk as one connection sees it."""

    def __init__(self, disk: ServedDisk) -> None:
        self._disk = disk
        self._blocks: dict[int, bytearray] = {}
        self._dirty: set[int] = set()
        # A block must not be read from the disk while it is written to here.
        self._lock = trio.Lock()
        self.size = disk.size
        self.read_only = disk.read_only
        self.immediate = disk.immediate

    async def read(self, offset: int, length: int) -> Data:
        """Read; what is in the cache comes from there."""
        async with self._lock:
            return await self._read(offset, length)

    async def write(self, offset: int, data: Data, *, fua: bool) -> None:
        """Write to the cache; with `fua`, to the disk as well."""
        async with self._lock:
            await self._load(offset, len(data))
            at = 0
            for number, start, end in _blocks(offset, len(data)):
                self._blocks[number][start:end] = data[at : at + end - start]
                self._dirty.add(number)
                at += end - start
            if fua:
                await self._write_back(offset, len(data))
                await self._disk.flush()

    async def flush(self) -> None:
        """Write everything through, and forget it."""
        async with self._lock:
            await self._empty()
            await self._disk.flush()

    async def trim(self, offset: int, length: int, *, fua: bool) -> None:
        """Trim the disk itself."""
        async with self._lock:
            await self._forget(offset, length)
            await self._disk.trim(offset, length, fua=fua)

    async def zero(
        self, offset: int, length: int, *, fua: bool, may_trim: bool, fast: bool
    ) -> None:
        """Zero the disk itself."""
        async with self._lock:
            await self._forget(offset, length)
            await self._disk.zero(offset, length, fua=fua, may_trim=may_trim, fast=fast)

    async def cache(self, offset: int, length: int) -> None:
        """Have the disk read ahead."""
        await self._disk.cache(offset, length)

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Tell blocks of zeros, as this connection reads them, from others."""
        async with self._lock:
            length = min(length, MAX_STATUS_BYTES)
            await self._load(offset, length)
            extents: list[Extent] = []
            for number, start, end in _blocks(offset, length):
                status = HOLE_AND_ZERO if self._blocks[number] == _ZERO_BLOCK else 0
                if extents and extents[-1][1] == status:
                    extents[-1] = (extents[-1][0] + end - start, status)
                else:
                    extents.append((end - start, status))
            return extents

    async def _read(self, offset: int, length: int) -> bytes:
        await self._load(offset, length)
        return b"".join(
            memoryview(self._blocks[number])[start:end]
            for number, start, end in _blocks(offset, length)
        )

    async def _load(self, offset: int, length: int) -> None:
        """Have all blocks of a range in the cache."""
        numbers = [number for number, *_ in _blocks(offset, length)]
        missing = [number for number in numbers if number not in self._blocks]
        if not missing:
            return
        if len(self._blocks) + len(missing) > MAX_BLOCKS:
            await self._empty()
            missing = numbers
        # One read for all of them: what is cached in between is simply not taken.
        first = missing[0] * BLOCK_BYTES
        end = min((missing[-1] + 1) * BLOCK_BYTES, self.size)
        data = memoryview(await self._disk.read(first, end - first))
        for number in missing:
            at = number * BLOCK_BYTES - first
            block = bytearray(data[at : at + BLOCK_BYTES])
            self._blocks[number] = block.ljust(BLOCK_BYTES, b"\0")

    async def _write_back(self, offset: int, length: int) -> None:
        """Write the dirty blocks of a range through; they stay in the cache."""
        last = (offset + length - 1) // BLOCK_BYTES
        for number in sorted(n for n in self._dirty if offset // BLOCK_BYTES <= n <= last):
            start = number * BLOCK_BYTES
            data = memoryview(self._blocks[number])[: self.size - start]
            await self._disk.write(start, data, fua=False)
            self._dirty.discard(number)

    async def _empty(self) -> None:
        await self._write_back(0, self.size)
        self._blocks.clear()

    async def _forget(self, offset: int, length: int) -> None:
        """Write the blocks of a range through, and drop them from the cache."""
        await self._write_back(offset, length)
        last = (offset + length - 1) // BLOCK_BYTES
        for number in [n for n in self._blocks if offset // BLOCK_BYTES <= n <= last]:
            del self._blocks[number]


def _blocks(offset: int, length: int) -> list[tuple[int, int, int]]:
    """Give the blocks of a range: number, and where in the block the range begins and ends."""
    end = offset + length
    return [
        (
            number,
            max(offset - number * BLOCK_BYTES, 0),
            min(end - number * BLOCK_BYTES, BLOCK_BYTES),
        )
        for number in range(offset // BLOCK_BYTES, -(-end // BLOCK_BYTES))
    ]

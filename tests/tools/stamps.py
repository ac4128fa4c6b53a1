"""What is written to a disk in a test: each block of 512 bytes says which write it was, and where it belongs.

So a READ says whose data it gave, and data that is torn, or of another block, shows as such. Stamp 0 is zeros.
"""

from __future__ import annotations

from struct import Struct

BLOCK_BYTES = 512

_MARK = Struct(">QQ")


class Broken(AssertionError):
    """A promise was broken."""


def block(stamp: int, number: int) -> bytes:
    """Give what a write of a stamp leaves in a block; stamp 0 is zeros."""
    return _MARK.pack(stamp, number) * (BLOCK_BYTES // _MARK.size) if stamp else bytes(BLOCK_BYTES)


def content(stamp: int, start: int, count: int) -> bytes:
    """Give the payload of a write of `count` blocks."""
    return b"".join(block(stamp, number) for number in range(start, start + count))


def stamps_of(data: bytes | bytearray | memoryview, start: int = 0) -> list[int]:
    """Give the stamp of each block from block `start` on. Raises `Broken` for a block that no write left."""
    found: list[int] = []
    for number, stamps in enumerate(mixtures_of(data, start), start=start):
        if len(stamps) > 1:
            raise Broken(f"block {number} is torn: it has stamps {sorted(stamps)}")
        found += stamps
    return found


def mixtures_of(data: bytes | bytearray | memoryview, start: int = 0) -> list[set[int]]:
    """Give the stamps in each block: several if a READ was given it while it was being written, as by qemu-nbd,
    since no system call holds readers and writers apart. Raises `Broken` for bytes of no write.
    """
    found = []
    for at in range(0, len(data), BLOCK_BYTES):
        number = start + at // BLOCK_BYTES
        piece = bytes(data[at : at + BLOCK_BYTES])
        stamp, _ = _MARK.unpack_from(piece)
        if piece == block(stamp, number):
            found.append({stamp})
            continue
        marks = list(_MARK.iter_unpack(piece)) if len(piece) == BLOCK_BYTES else []
        # A mark of zeros has the number 0; memory is copied in words, so half of each may come together.
        if not marks or any(whose not in (0, number) for _, whose in marks):
            raise Broken(
                f"block {number} is another's, or nobody's: it begins with {piece[:16].hex()}"
            )
        found.append({stamp for stamp, _ in marks})
    return found

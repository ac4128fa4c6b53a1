"""Show a part of the disk as if it were all of it: a range, or a partition.

The client sees `size` bytes from `offset` on, or the partition of that number, and nothing of the rest. If
the window is not inside the disk, the client is refused, with the numbers. The window slows no request.

Partitions are numbered as Linux numbers them: 1 to 4 of an MBR, its logical partitions from 5 on, or the
entries of a GPT, which is used if the MBR says so (a protective entry). The gateway reads the table each time
it connects to the upstream, so the table must not change while clients are there. Note that whoever can write
to all of the disk chooses what this window shows.

A GPT must have right checksums. If its first copy is damaged, the one at the end of the disk is used. If
something is wrong with a table, the client is refused and told what. Where sectors have 4096 bytes,
`sector-size` has to say so. It is not guessed, for a wrong guess finds the wrong place in an MBR.

Like nbdkit's offset and partition filters. `protect` with a complement lets all be read, and one part be
written.

    policies = [ { use = "window", partition = 1 } ]
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from struct import Struct
from typing import Annotated
from zlib import crc32

from pydantic import AfterValidator, model_validator

from gateway.policy import Cmd, Denied, Field, Next, Policy, PrivateAttr, Request, Size, View

_MOST_PARTITIONS = 1024
"""Of a GPT. Every tool makes 128 entries, which is what UEFI asks for at least."""

_MOST_TABLE_BYTES = 128 << 10
"""1024 entries of the usual 128 bytes. All are read for their checksum each time a link is made, and a hostile
disk announces 4 billion.
"""

_MOST_LINKS = 256
"""Of a chain of logical partitions. Linux takes no more partitions of one disk; hostile chains have no end."""

_READ_BYTES = 16 << 10
"""Tables are read in pieces of this size: a usual GPT's entries, in one."""

_SECTOR_SIZES = (512, 4096)

# MBR and EBR: boot code | 4 entries | 0x55 0xaa. An entry: state, CHS | type | CHS | first sector | sectors
_MBR_SIZE = 512
_MBR_ENTRIES = slice(446, 510)
_MBR_ENTRY = Struct("<4xB3xII")
_MBR_SIGNATURE = b"\x55\xaa"
_PROTECTIVE = 0xEE
_EXTENDED = (0x05, 0x0F, 0x85)

# GPT header: "EFI PART" | revision | header size | its CRC | reserved | its own sector | other copy's sector
# | first usable | last usable | GUID | entries' sector | entries | entry size | entries' CRC
_GPT_HEADER = Struct("<8s4xII4xQ8xQQ16xQIII")
_GPT_SIGNATURE = b"EFI PART"
_GPT_CRC = slice(16, 20)

# GPT entry: type | GUID | first sector | last sector (inclusive) | attributes, name
_GPT_ENTRY = Struct("<16s16xQQ")
_SMALLEST_GPT_ENTRY = 128
_NO_TYPE = bytes(16)

_Sectors = tuple[int, int]
"""The first one, and how many."""


def _sector_size(number: int) -> int:
    if number not in _SECTOR_SIZES:
        raise ValueError(f"expected 512 or 4096, got {number}")
    return number


class Window(Policy):
    """`use = "window"`."""

    offset: Size = Field(default=0, description="Where the window begins on the disk.")
    size: Size | None = Field(
        default=None, description="How large it is; by default up to the end of the disk."
    )
    partition: int | None = Field(
        default=None,
        ge=1,
        le=_MOST_PARTITIONS,
        description="The number of a partition that is the window, instead of `offset` and `size`.",
    )
    sector_size: Annotated[Size, AfterValidator(_sector_size)] = Field(
        default=512, description="The unit of the partition table: 512 or 4096 bytes."
    )
    _found: str = PrivateAttr(default="")
    """What the window is, in words, if it was looked up."""

    @model_validator(mode="after")
    def _asks_for_one_thing(self) -> "Window":
        given = self.model_fields_set
        if self.partition is None and not given & {"offset", "size"}:
            raise ValueError("expected partition, or offset and size, got neither")
        if self.partition is not None and given & {"offset", "size"}:
            raise ValueError("expected partition, or offset and size, got both")
        if self.partition is None and "sector_size" in given:
            raise ValueError("expected sector-size with partition, got it without")
        return self

    def prepares(self) -> bool:
        """Only a partition has to be looked up."""
        return self.partition is not None

    async def prepare(self, view: View, next: Next) -> Policy:
        """Look up the partition."""
        if self.partition is None:
            return self
        disk = _Disk(view, next, self.sector_size)
        try:
            kind, (first, count) = await _find(disk, self.partition)
            disk.check_inside(first, count)
        except Denied as denied:
            raise Denied(f"partition {self.partition}: {denied}") from None
        place = {"offset": first * disk.sector_size, "size": count * disk.sector_size}
        here = self.model_copy(update=place | {"partition": None})
        here._found = f"partition {self.partition} of {kind} disk"
        return here

    def describe(self, view: View) -> View:
        """Give the part of the export that is in the window."""
        if self.partition is not None:
            raise Denied(
                f"partition {self.partition}: where it is stands on the disk, which was not read"
            )
        size = max(0, view.size - self.offset) if self.size is None else self.size
        if self.offset + size > view.size:
            raise Denied(
                f"a window of {size} bytes at {self.offset} is not inside a disk of {view.size} bytes"
            )
        minimum = view.block_sizes.minimum
        if not view.any_alignment and self.offset % minimum:
            raise Denied(
                f"a window at {self.offset} does not begin at one of the whole blocks of {minimum} bytes"
                " that alone are taken"
            )
        if self._found and view.description:
            view = replace(view, description=f"{self._found}: {view.description}")
        return view.window(self.offset, size)


@dataclass(frozen=True, slots=True)
class _Disk:
    """What partition tables are read from. What is read is untrusted: it may lead to nothing but `Denied`."""

    view: View
    next: Next
    sector_size: int

    @property
    def sectors(self) -> int:
        """How many whole ones there are."""
        return self.view.size // self.sector_size

    def check_inside(self, first: int, count: int) -> None:
        """Raise `Denied` if there are no such sectors."""
        if first + count > self.sectors:
            raise Denied(
                f"{count} sectors of {self.sector_size} bytes at sector {first} are not inside a disk of"
                f" {self.view.size} bytes"
            )

    async def read(self, first: int, length: int) -> bytes:
        """Give `length` bytes from a sector on. The length must be bounded."""
        self.check_inside(first, -(-length // self.sector_size))
        start = first * self.sector_size
        block = self.view.block_sizes.minimum
        at = start - start % block
        end = start + length
        stop = min(self.view.size, end + -end % block)
        piece = max(block, _READ_BYTES)
        got = bytearray()
        for offset in range(at, stop, piece):
            got += await self.next(Request(Cmd.READ, offset, min(piece, stop - offset)))
        return bytes(got[start - at : end - at])


async def _find(disk: _Disk, number: int) -> tuple[str, _Sectors]:
    """Give what kind of table the disk has, and where a partition is."""
    boot = await disk.read(0, _MBR_SIZE)
    if not boot.endswith(_MBR_SIGNATURE):
        raise Denied("the disk has neither an MBR nor a GPT: sector 0 does not end with 55 aa")
    # As Linux does: what is left over of a GPT does not count where the MBR does not point to it.
    if any(kind == _PROTECTIVE and first == 1 for kind, first, _ in _mbr_entries(boot)):
        return "GPT", await _in_gpt(disk, number)
    return "MBR", await _in_mbr(disk, boot, number)


# --- MBR


def _mbr_entries(sector: bytes) -> Iterator[tuple[int, int, int]]:
    """Give type, first sector and number of sectors of the four entries."""
    return _MBR_ENTRY.iter_unpack(sector[_MBR_ENTRIES])


async def _in_mbr(disk: _Disk, boot: bytes, number: int) -> _Sectors:
    entries = [*_mbr_entries(boot)]
    if number > len(entries):
        for kind, first, count in entries:
            if kind in _EXTENDED and count:
                return await _logical(disk, first, first + count, number)
        raise Denied("the MBR has no extended partition, which logical ones (5 and above) are in")
    kind, first, count = entries[number - 1]
    if not kind or not count:
        raise Denied("the MBR has no such partition")
    if kind in _EXTENDED:
        raise Denied("it is the extended partition, which holds the logical ones (5 and above)")
    if not first:
        raise Denied("it begins with the partition table")
    return first, count


async def _logical(disk: _Disk, start: int, end: int, number: int) -> _Sectors:
    """Follow the chain of EBRs in the extended partition from sector `start` up to `end`.

    An EBR has two entries that count: a partition, relative to the EBR, and the next EBR, relative to the
    extended partition. As for Linux, an EBR without a partition takes no number, and the chain may go back and
    forth.
    """
    at, numbered = start, 4
    seen: set[int] = set()
    while True:
        if not (at and start <= at < end):
            raise Denied(f"the chain of logical partitions leaves the extended one at sector {at}")
        if at in seen or len(seen) == _MOST_LINKS:
            raise Denied(f"the chain of logical partitions has no end in {len(seen)} links")
        seen.add(at)
        sector = await disk.read(at, _MBR_SIZE)
        if not sector.endswith(_MBR_SIGNATURE):
            raise Denied(f"the chain of logical partitions is broken: no 55 aa in sector {at}")
        link = None
        for kind, first, count in [*_mbr_entries(sector)][:2]:
            if kind in _EXTENDED and count:
                link = first if link is None else link
            elif count:
                numbered += 1
                if numbered == number:
                    if not first or at + first + count > end:
                        raise Denied("it is not inside the extended partition, behind its EBR")
                    return at + first, count
        if link is None:
            raise Denied(f"the MBR has no such partition; the last one is {numbered}")
        at = start + link


# --- GPT


async def _in_gpt(disk: _Disk, number: int) -> _Sectors:
    try:
        return await _in_gpt_copy(disk, 1, number)
    except _Damaged as damaged:
        primary = damaged
    try:
        return await _in_gpt_copy(disk, disk.sectors - 1, number)
    except _Damaged as backup:
        raise Denied(f"the GPT is damaged ({primary}), and so is its copy ({backup})") from None


class _Damaged(Exception):
    """One copy of the GPT cannot be used; the other one may."""


async def _in_gpt_copy(disk: _Disk, lba: int, number: int) -> _Sectors:
    first_usable, last_usable, entry_bytes, table = await _gpt_table(disk, lba)
    at = (number - 1) * entry_bytes
    if at >= len(table):
        raise Denied(f"the GPT has {len(table) // entry_bytes} entries")
    kind, first, last = _GPT_ENTRY.unpack_from(table, at)
    if kind == _NO_TYPE:
        raise Denied("the GPT has no such partition")
    if not max(2, first_usable) <= first <= last <= last_usable:
        raise Denied(
            f"it has sectors {first} to {last}, and {first_usable} to {last_usable} are there for partitions"
        )
    return first, last - first + 1


async def _gpt_table(disk: _Disk, lba: int) -> tuple[int, int, int, bytes]:
    """Give the first and the last sector for partitions, the size of an entry, and all entries, after they were
    checked. Raises `_Damaged`.
    """
    try:
        sector = await disk.read(lba, disk.sector_size)
    except Denied as denied:
        raise _Damaged(str(denied)) from None
    (
        signature,
        header_bytes,
        crc,
        its_lba,
        first,
        last,
        entries_lba,
        entries,
        entry_bytes,
        table_crc,
    ) = _GPT_HEADER.unpack_from(sector)
    if signature != _GPT_SIGNATURE:
        raise _Damaged(f'no "EFI PART" in sector {lba} of {disk.sector_size} bytes')
    if not _GPT_HEADER.size <= header_bytes <= disk.sector_size:
        raise _Damaged(f"a header of {header_bytes} bytes")
    blanked = bytearray(sector[:header_bytes])
    blanked[_GPT_CRC] = bytes(4)
    if crc32(blanked) != crc:
        raise _Damaged(f"the checksum of the header is {crc:#x}, not {crc32(blanked):#x}")
    if its_lba != lba:
        raise _Damaged(f"the header in sector {lba} says that it is in {its_lba}")
    if entry_bytes < _SMALLEST_GPT_ENTRY or entry_bytes & (entry_bytes - 1):
        raise _Damaged(f"entries of {entry_bytes} bytes, not 128 or a larger power of two")
    if not 0 < entries * entry_bytes <= _MOST_TABLE_BYTES:
        raise _Damaged(
            f"{entries} entries of {entry_bytes} bytes; 1 byte to {_MOST_TABLE_BYTES} are read"
        )
    try:
        table = await disk.read(entries_lba, entries * entry_bytes)
    except Denied as denied:
        raise _Damaged(f"the entries: {denied}") from None
    if crc32(table) != table_crc:
        raise _Damaged(f"the checksum of the entries is {table_crc:#x}, not {crc32(table):#x}")
    return first, last, entry_bytes, table

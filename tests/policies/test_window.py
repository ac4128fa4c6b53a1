"""Tables are built here byte by byte; those of a real program are read in the interop test at the end."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Any
from zlib import crc32

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy import BlockSizes, Cmd, Denied, Errno, Failed, Request, Result, View
from policies.window import Window
from tests.interop.processes import run
from tests.policies.harness import KIB, MIB, Disk, configured, view

LINUX = 0x83
SECTORS = 2048  # of the disks here


# --- offset and size


@pytest.mark.parametrize(
    ("options", "base", "size"),
    [
        ({"offset": "4K"}, 4 * KIB, MIB - 4 * KIB),
        ({"size": 100}, 0, 100),
        ({"offset": 7, "size": 5}, 7, 5),
        ({"offset": "512K", "size": "512K"}, 512 * KIB, 512 * KIB),
        ({"offset": "1M"}, MIB, 0),
    ],
)
async def test_a_range(options: dict[str, object], base: int, size: int) -> None:
    policy = configured(Window, options)
    disk = Disk()
    assert await policy.prepare(view(), disk) is policy
    shown = policy.describe(view())
    assert (shown.base, shown.size) == (base, size)
    assert not policy.hooked(view())
    assert not disk.asked


def test_a_window_in_a_window() -> None:
    outer = configured(Window, {"offset": 1000, "size": 500}).describe(view())
    inner = configured(Window, {"offset": 100}).describe(outer)
    assert (inner.base, inner.size) == (1100, 400)
    with pytest.raises(
        Denied, match="a window of 2 bytes at 499 is not inside a disk of 500 bytes"
    ):
        configured(Window, {"offset": 499, "size": 2}).describe(outer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offset": MIB + 1}, "a window of 0 bytes at 1048577 is not inside a disk of 1048576"),
        ({"size": MIB + 1}, "a window of 1048577 bytes at 0 is not inside"),
        ({"offset": 1, "size": "1M"}, "a window of 1048576 bytes at 1 is not inside"),
        ({"offset": 2**63 - 1, "size": 2**63 - 1}, "is not inside a disk of 1048576 bytes"),
    ],
)
def test_what_is_not_inside_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(Denied, match=message):
        configured(Window, options).describe(view())


def test_where_whole_blocks_alone_are_taken() -> None:
    blocks = BlockSizes(512, 4096, MIB)
    odd, even = configured(Window, {"offset": 100}), configured(Window, {"offset": 1024})
    assert odd.describe(view(block_sizes=blocks)).base == 100
    strict = view(block_sizes=blocks, any_alignment=False)
    assert even.describe(strict).base == 1024
    with pytest.raises(Denied, match="at 100 does not begin at one of the whole blocks of 512"):
        odd.describe(strict)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected partition, or offset and size, got neither"),
        ({"partition": 1, "offset": 0}, "expected partition, or offset and size, got both"),
        ({"partition": 1, "size": 5}, "expected partition, or offset and size, got both"),
        ({"offset": 5, "sector-size": 512}, "expected sector-size with partition, got it without"),
        ({"partition": 1, "sector-size": 1024}, "expected 512 or 4096, got 1024"),
        ({"partition": 0}, "greater than or equal to 1"),
        ({"partition": 1025}, "less than or equal to 1024"),
        ({"partition": "1"}, "valid integer"),
        ({"offset": -1}, "expected a size of 0 or more, got -1"),
    ],
)
def test_a_mistake_is_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match="1 validation error") as told:
        configured(Window, options)
    assert message in str(told.value)


def test_a_partition_is_not_guessed() -> None:
    with pytest.raises(Denied, match="which was not read"):
        configured(Window, {"partition": 1}).describe(view())


# --- Partitions

Entry = tuple[int, int, int]
"""Type, first sector, sectors."""


def boot_sector(*entries: Entry) -> bytes:
    """An MBR or EBR."""
    table = b"".join(Struct("<4xB3xII").pack(*entry) for entry in entries)
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


def mbr_disk(sectors: dict[int, bytes], sector_size: int = 512) -> Disk:
    content = bytearray(SECTORS * sector_size)
    for number, sector in sectors.items():
        content[number * sector_size : number * sector_size + len(sector)] = sector
    return Disk(content)


def gpt_header(table: bytes, **changes: Any) -> bytes:
    said: dict[str, Any] = {
        "signature": b"EFI PART",
        "header_bytes": 92,
        "lba": 1,
        "first": 34,
        "last": SECTORS - 34,
        "entries_lba": 2,
        "entries": len(table) // 128,
        "entry_bytes": 128,
        "table_crc": crc32(table),
    } | changes
    layout = Struct("<8sIIIIQQQQ16sQIII")
    fields = [
        said["signature"],
        0x10000,
        said["header_bytes"],
        0,
        0,
        said["lba"],
        SECTORS - 1,
        said["first"],
        said["last"],
        bytes(16),
        said["entries_lba"],
        said["entries"],
        said["entry_bytes"],
        said["table_crc"],
    ]
    fields[3] = crc32(
        layout.pack(*fields).ljust(said["header_bytes"], b"\0")[: said["header_bytes"]]
    )
    if "crc" in changes:
        fields[3] = changes["crc"]
    return layout.pack(*fields)


def gpt_table(
    *partitions: tuple[int, int] | None, entries: int = 128, entry_bytes: int = 128
) -> bytes:
    """Entries with a first and a last sector."""
    table = b""
    for partition in partitions:
        entry = Struct("<16s16sQQ").pack(b"L" * 16, b"G" * 16, *partition) if partition else b""
        table += entry.ljust(entry_bytes, b"\0")
    return table.ljust(entries * entry_bytes, b"\0")


PROTECTIVE = boot_sector((0xEE, 1, SECTORS - 1))
TABLE = gpt_table((100, 199), None, (1000, 1000))


def gpt_disk(
    *,
    boot: bytes = PROTECTIVE,
    table: bytes = TABLE,
    header: bytes | None = None,
    backup: bytes = b"",
    backup_table: bytes = b"",
    sector_size: int = 512,
) -> Disk:
    sectors = {0: boot, 1: gpt_header(table) if header is None else header, 2: table}
    if backup:
        sectors |= {SECTORS - 33: backup_table, SECTORS - 1: backup}
    return mbr_disk(sectors, sector_size)


async def found(
    disk: Disk, number: int, seen: View | None = None, sector_size: int = 512
) -> tuple[int, int]:
    """The first sector of a partition, and how many it has."""
    seen = seen or view(len(disk.content))
    policy = configured(Window, {"partition": number, "sector-size": sector_size})
    shown = (await policy.prepare(seen, disk)).describe(seen)
    assert shown.base % sector_size == 0
    assert shown.size % sector_size == 0
    return shown.base // sector_size, shown.size // sector_size


async def why_not(disk: Disk, number: int, seen: View | None = None) -> str:
    with pytest.raises(Denied) as denied:
        await found(disk, number, seen)
    text = str(denied.value)
    assert text.startswith(f"partition {number}: ")
    return text


EXTENDED = (0x0F, 200, 800)
MBR = boot_sector((LINUX, 1, 99), (0, 0, 0), EXTENDED, (LINUX, 1000, SECTORS - 1000))
CHAIN = {
    0: MBR,
    200: boot_sector((LINUX, 1, 9), (5, 300, 10)),
    500: boot_sector((0, 0, 0), (5, 100, 10)),  # holds nothing, and the next is before it
    300: boot_sector((LINUX, 2, 48), (5, 700, 100)),
    900: boot_sector((LINUX, 1, 99)),
}


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize(
    ("number", "place"),
    [
        (1, (1, 99)),
        (4, (1000, SECTORS - 1000)),
        (5, (201, 9)),
        (6, (302, 48)),
        (7, (901, 99)),
    ],
)
async def test_an_mbr(number: int, place: tuple[int, int], sector_size: int) -> None:
    disk = mbr_disk(CHAIN, sector_size)
    assert await found(disk, number, sector_size=sector_size) == place


@pytest.mark.parametrize(
    ("number", "sectors", "message"),
    [
        (1, {}, "neither an MBR nor a GPT: sector 0 does not end with 55 aa"),
        (2, CHAIN, "the MBR has no such partition"),
        (3, CHAIN, "it is the extended partition, which holds the logical ones"),
        (8, CHAIN, "the MBR has no such partition; the last one is 7"),
        (5, {0: boot_sector((LINUX, 1, 9))}, "the MBR has no extended partition"),
        (1, {0: boot_sector((0, 1, 9))}, "the MBR has no such partition"),
        (1, {0: boot_sector((LINUX, 0, 9))}, "it begins with the partition table"),
        (
            1,
            {0: boot_sector((LINUX, 1, SECTORS))},
            "2048 sectors of 512 bytes at sector 1 are not inside a disk of 1048576 bytes",
        ),
        (1, {0: boot_sector((LINUX, 0xFFFFFFFF, 0xFFFFFFFF))}, "not inside a disk"),
        (5, {0: boot_sector((5, 0, 9))}, "leaves the extended one at sector 0"),
        (5, {0: boot_sector((5, 5000, 9))}, "not inside a disk"),
        (5, {0: boot_sector((5, 20, 9))}, "is broken: no 55 aa in sector 20"),
        (
            6,
            {0: boot_sector((5, 20, 9)), 20: boot_sector((LINUX, 1, 1), (5, 9, 1))},
            "the chain of logical partitions leaves the extended one at sector 29",
        ),
        (
            6,
            {0: boot_sector((5, 20, 9)), 20: boot_sector((LINUX, 1, 1), (5, 0, 1))},
            "the chain of logical partitions has no end in 1 links",
        ),
        (
            5,
            {
                0: boot_sector((5, 20, 9)),
                20: boot_sector((0, 0, 0), (5, 4, 1)),
                24: boot_sector((0, 0, 0), (5, 0, 1)),
            },
            "the chain of logical partitions has no end in 2 links",
        ),
        (
            5,
            {0: boot_sector((5, 20, 9)), 20: boot_sector((0, 0, 0), (5, 4, 0))},
            "the MBR has no such partition; the last one is 4",
        ),
        (
            5,
            {0: boot_sector((5, 20, 9)), 20: boot_sector((LINUX, 0, 5))},
            "it is not inside the extended partition, behind its EBR",
        ),
        (
            5,
            {0: boot_sector((5, 20, 9)), 20: boot_sector((LINUX, 1, 9))},
            "it is not inside the extended partition, behind its EBR",
        ),
        (1, {0: boot_sector((0xEE, 5, 9)), 1: gpt_header(TABLE)}, None),  # a partition of that type
    ],
)
async def test_what_an_mbr_does_not_give(
    number: int, sectors: dict[int, bytes], message: str | None
) -> None:
    if message is None:
        assert await found(mbr_disk(sectors), number) == (5, 9)
    else:
        assert message in await why_not(mbr_disk(sectors), number)


async def test_a_chain_is_read_for_a_while() -> None:
    chain = {at: boot_sector((0, 0, 0), (5, at, 1)) for at in range(1, 1001)}
    disk = mbr_disk(chain | {0: boot_sector((5, 1, 1500))})
    assert "has no end in 256 links" in await why_not(disk, 5)
    assert len(disk.asked) == 257


@pytest.mark.parametrize("sector_size", [512, 4096])
async def test_a_gpt(sector_size: int) -> None:
    disk = gpt_disk(sector_size=sector_size)
    assert await found(disk, 1, sector_size=sector_size) == (100, 100)
    assert await found(disk, 3, sector_size=sector_size) == (1000, 1)


async def test_the_header_and_the_entries_may_be_longer() -> None:
    table = gpt_table((100, 199), (300, 399), entry_bytes=256, entries=16)
    header = gpt_header(table, header_bytes=512, entry_bytes=256, entries=16)
    assert await found(gpt_disk(table=table, header=header), 2) == (300, 100)


async def test_a_gpt_that_the_mbr_does_not_point_to_is_left_over() -> None:
    disk = gpt_disk(boot=boot_sector((LINUX, 7, 8)))
    assert await found(disk, 1) == (7, 8)


@pytest.mark.parametrize(
    ("table", "number", "message"),
    [
        (TABLE, 2, "the GPT has no such partition"),
        (TABLE, 128, "the GPT has no such partition"),
        (TABLE, 129, "the GPT has 128 entries"),
        (gpt_table((199, 100)), 1, "it has sectors 199 to 100, and 34 to 2014 are there"),
        (gpt_table((33, 100)), 1, "it has sectors 33 to 100, and 34 to 2014 are there"),
        (gpt_table((34, 2015)), 1, "it has sectors 34 to 2015, and 34 to 2014 are there"),
        (gpt_table((34, 2**64 - 1)), 1, "it has sectors 34 to 18446744073709551615"),
    ],
)
async def test_what_a_gpt_does_not_give(table: bytes, number: int, message: str) -> None:
    assert message in await why_not(gpt_disk(table=table), number)


@pytest.mark.parametrize(
    ("first", "last", "place", "message"),
    [
        (0, SECTORS, (0, 9), "it has sectors 0 to 9"),
        (0, SECTORS, (1, 9), "it has sectors 1 to 9"),
        (0, 2**64 - 1, (34, SECTORS), "2015 sectors of 512 bytes at sector 34 are not inside"),
        (0, 2**64 - 1, (34, 2**64 - 1), "are not inside a disk of 1048576 bytes"),
    ],
)
async def test_a_header_that_leaves_room_where_none_is(
    first: int, last: int, place: tuple[int, int], message: str
) -> None:
    table = gpt_table(place)
    disk = gpt_disk(table=table, header=gpt_header(table, first=first, last=last))
    assert message in await why_not(disk, 1)


DAMAGE = [
    ({"signature": b"EFI FART"}, 'no "EFI PART" in sector 1 of 512 bytes'),
    ({"header_bytes": 91}, "a header of 91 bytes"),
    ({"header_bytes": 513}, "a header of 513 bytes"),
    ({"crc": 5}, "the checksum of the header is 0x5, not "),
    ({"lba": 2}, "the header in sector 1 says that it is in 2"),
    ({"entry_bytes": 64}, "entries of 64 bytes, not 128 or a larger power of two"),
    ({"entry_bytes": 0}, "entries of 0 bytes, not 128 or a larger power of two"),
    ({"entry_bytes": 384}, "entries of 384 bytes, not 128 or a larger power of two"),
    ({"entries": 0}, "0 entries of 128 bytes; 1 byte to 131072 are read"),
    ({"entries": 1025}, "1025 entries of 128 bytes; 1 byte to 131072 are read"),
    ({"entries": 2**32 - 1, "entry_bytes": 2**31}, "4294967295 entries of 2147483648 bytes;"),
    ({"entries_lba": SECTORS}, "the entries: 32 sectors of 512 bytes at sector 2048 are not"),
    ({"entries_lba": 2**64 - 1}, "the entries: 32 sectors of 512 bytes at sector 184467440737"),
    ({"entries_lba": 3}, "the checksum of the entries is "),
    ({"table_crc": 6}, "the checksum of the entries is 0x6, not "),
]


@pytest.mark.parametrize(("changes", "message"), DAMAGE)
async def test_a_damaged_gpt(changes: dict[str, object], message: str) -> None:
    header = gpt_header(TABLE, **changes)
    text = await why_not(gpt_disk(header=header), 1)
    assert f"the GPT is damaged ({message}" in text
    assert 'and so is its copy (no "EFI PART" in sector 2047 of 512 bytes)' in text

    good = gpt_header(TABLE, lba=SECTORS - 1, entries_lba=SECTORS - 33)
    mended = gpt_disk(header=header, backup=good, backup_table=TABLE)
    assert await found(mended, 1) == (100, 100)


async def test_the_copy_has_no_say_while_the_first_is_good() -> None:
    other = gpt_table((500, 599))
    copy = gpt_header(other, lba=SECTORS - 1, entries_lba=SECTORS - 33)
    disk = gpt_disk(backup=copy, backup_table=other)
    assert await found(disk, 1) == (100, 100)
    assert "no such partition" in await why_not(disk, 2)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024])
async def test_a_disk_that_is_too_small(size: int) -> None:
    disk = Disk(bytearray(PROTECTIVE.ljust(1024, b"\0")[:size]))
    assert "not inside a disk of" in await why_not(disk, 1) or size == 1024


@pytest.mark.parametrize("minimum", [1, 512, 4096, 64 * KIB])
@pytest.mark.parametrize("disk", [gpt_disk(), mbr_disk(CHAIN)], ids=["gpt", "mbr"])
async def test_reads_are_whole_blocks_and_short(minimum: int, disk: Disk) -> None:
    disk.asked.clear()
    blocks = BlockSizes(minimum, max(512, minimum), 32 * MIB)
    for number in range(1, 9):
        with suppress(Denied):  # not every one is there, or begins at a block
            await found(disk, number, view(block_sizes=blocks, any_alignment=False))
    assert disk.asked
    for read in disk.asked:
        assert read.command is Cmd.READ
        assert read.offset % minimum == read.length % minimum == 0
        assert 0 < read.length <= max(minimum, 16 * KIB)


async def test_the_last_block_may_be_short() -> None:
    disk = mbr_disk({0: boot_sector((5, 2000, 40)), 2000: boot_sector((LINUX, 1, 9))})
    del disk.content[-512:]
    blocks = view(len(disk.content), block_sizes=BlockSizes(64 * KIB, 64 * KIB, MIB))
    assert await found(disk, 5, blocks) == (2001, 9)
    assert disk.asked[-1].end == len(disk.content)


async def test_a_disk_that_cannot_be_read() -> None:
    with pytest.raises(Failed, match="EIO"):
        await found(Disk(fails={Cmd.READ: Errno.EIO}), 1)


async def test_a_partition_is_told_in_the_description() -> None:
    disk, seen = gpt_disk(), view(description="a disk")
    policy = configured(Window, {"partition": 3})
    here = await policy.prepare(seen, disk)
    assert here.describe(seen).description == "partition 3 of GPT disk: a disk"
    assert here.describe(view()).description is None


async def test_each_link_looks_for_itself() -> None:
    policy = configured(Window, {"partition": 1})
    first = await policy.prepare(view(), gpt_disk())
    second = await policy.prepare(view(), mbr_disk(CHAIN))
    assert (first.describe(view()).base, second.describe(view()).base) == (100 * 512, 512)


class Hostile(Disk):
    """A disk of any size whose sectors come from a list, over and over."""

    sectors: list[bytes]

    async def __call__(self, request: Request) -> Result:
        self.asked.append(request)
        assert len(self.asked) <= 600, "it reads for ever"
        data = b"".join(
            self.sectors[at // 512 % len(self.sectors)]
            for at in range(request.offset - request.offset % 512, request.end, 512)
        )
        return data[request.offset % 512 :][: request.length]


numbers = st.one_of(st.integers(0, 50), st.integers(0, 2**32 - 1))
entries = st.tuples(st.sampled_from([0, 5, 15, LINUX, 0xEE]), numbers, numbers)
boots = st.lists(entries, max_size=4).map(lambda given: boot_sector(*given))
headers = st.fixed_dictionaries(
    {},
    optional={
        "header_bytes": st.integers(0, 2000),
        "lba": numbers,
        "first": numbers,
        "last": numbers,
        "entries_lba": numbers,
        "entries": numbers,
        "entry_bytes": st.sampled_from([0, 127, 128, 256, 4096, 2**31]),
        "table_crc": st.sampled_from([0, crc32(bytes(128)), crc32(TABLE)]),
    },
).map(lambda changes: gpt_header(TABLE, **changes).ljust(512, b"\0"))
any_sector = st.one_of(boots, headers, st.binary(min_size=512, max_size=512))


@given(
    st.one_of(boots, st.just(PROTECTIVE)),
    st.lists(any_sector, max_size=6),
    st.integers(1, 1024),
    st.one_of(st.integers(0, 4000), st.integers(0, 2**63 - 1)),
    st.sampled_from([512, 4096]),
)
def test_a_hostile_disk_is_refused_or_gives_what_is_inside(
    boot: bytes, rest: list[bytes], number: int, size: int, sector_size: int
) -> None:
    disk, seen = Hostile(), view(size)
    disk.sectors = [boot, *rest]
    policy = configured(Window, {"partition": number, "sector-size": sector_size})
    try:
        shown = trio.run(policy.prepare, seen, disk).describe(seen)
    except Denied:
        return
    assert shown.base + shown.size <= size
    assert shown.base >= sector_size


@pytest.mark.real
@pytest.mark.parametrize(
    ("kind", "numbers"), [("gpt", range(1, 8)), ("mbr", [1, 2, 3, 5, 6, 7, 8])]
)
async def test_what_nbdkit_partitions(kind: str, numbers: list[int], tmp_path: Path) -> None:
    files = []
    for byte in range(1, 8):
        file = tmp_path / f"{byte}"
        file.write_bytes(bytes([byte]) * (byte * 512))
        files.append(file)
    image = tmp_path / "disk"
    copy = f"qemu-img convert -f raw -O raw $uri {image}"
    # The shell of nbdkit's --run knows the server as $uri.
    run("nbdkit", "-U-", "partitioning", *files, f"partition-type={kind}", "--run", copy)
    disk = Disk(bytearray(image.read_bytes()))
    for number, file in zip(numbers, files, strict=True):
        first, count = await found(disk, number)
        assert disk.content[first * 512 : (first + count) * 512] == file.read_bytes()

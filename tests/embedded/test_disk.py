from __future__ import annotations

import ctypes
import errno
import os
import resource
import stat
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.embedded import DiskError, FileDisk, MemoryDisk, ServedDisk, file_disk, incoherent
from gateway.embedded.dirty import TrackedDisk
from gateway.embedded.disk import BLOCK_BYTES, HOLE_AND_ZERO, Data, Extent
from gateway.embedded.incoherent import IncoherentDisk

T = TypeVar("T")

KIB = 1024
MIB = 1024 * KIB


def at_once(call: Coroutine[Any, Any, T]) -> T:
    """The result of a call that waits for nothing: what `immediate` promises."""
    try:
        call.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("it waited")


# --- The law of all disks: what was written is read, whatever happened to its neighbours

SIZE = 3 * BLOCK_BYTES + 1000

ranges = st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE)).map(
    lambda r: (r[0], min(r[1], SIZE - r[0]))
)
operations = st.lists(
    st.tuples(st.sampled_from(["write", "zero", "provide", "trim", "flush"]), ranges), max_size=12
)


async def check_against_model(disk: ServedDisk, steps: list[tuple[str, tuple[int, int]]]) -> None:
    model = bytearray(SIZE)
    for number, (what, (offset, length)) in enumerate(steps, start=1):
        match what:
            case "write":
                await disk.write(offset, bytes([number]) * length, fua=number % 3 == 0)
                model[offset : offset + length] = bytes([number]) * length
            case "zero" | "provide":
                trim = what == "zero"
                await disk.zero(offset, length, fua=False, may_trim=trim, fast=False)
                model[offset : offset + length] = bytes(length)
            case "trim":
                await disk.trim(offset, length, fua=False)
                left = bytes(await disk.read(offset, length))
                pairs = zip(left, model[offset : offset + length], strict=True)
                assert all(now in (0, before) for now, before in pairs)
                model[offset : offset + length] = left
            case "flush":
                await disk.flush()
        assert bytes(await disk.read(0, SIZE)) == model
    position, rest = 0, SIZE
    while rest:
        extents = await disk.extents(position, rest)
        assert extents
        for extent, status in extents:
            assert 0 < extent <= rest
            if status == HOLE_AND_ZERO:
                assert not any(model[position : position + extent])
            position, rest = position + extent, rest - extent


@given(operations)
def test_memory_disk_is_a_disk(steps: list[tuple[str, tuple[int, int]]]) -> None:
    at_once(check_against_model(MemoryDisk(SIZE), steps))


@settings(max_examples=25, deadline=None)
@given(operations)
def test_incoherent_disk_is_a_disk_for_its_connection(
    steps: list[tuple[str, tuple[int, int]]],
) -> None:
    trio.run(check_against_model, IncoherentDisk(TrackedDisk(MemoryDisk(SIZE))), steps)


@settings(max_examples=25, deadline=None)
@given(operations)
def test_incoherent_disk_keeps_no_more_blocks_than_it_may(
    steps: list[tuple[str, tuple[int, int]]],
) -> None:
    """One request may touch as many blocks as are kept; what was written is read all the same."""
    most = SIZE // incoherent.BLOCK_BYTES + 2

    class Watched(IncoherentDisk):
        async def read(self, offset: int, length: int) -> Data:
            await super().read(SIZE + offset, length)  # elsewhere, so that there is too much
            assert len(self._blocks) <= most
            data = await super().read(offset, length)
            assert len(self._blocks) <= most
            return data

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(incoherent, "MAX_BLOCKS", most)
        trio.run(check_against_model, Watched(MemoryDisk(2 * SIZE)), steps)


@settings(max_examples=25, deadline=None)
@given(operations)
def test_file_disk_is_a_disk(steps: list[tuple[str, tuple[int, int]]]) -> None:
    with tempfile.NamedTemporaryFile() as file:
        os.truncate(file.name, SIZE)
        disk = FileDisk(file.name)
        trio.run(check_against_model, disk, steps)
        disk.close()


# --- Memory


def test_memory_is_taken_only_where_something_was_written() -> None:
    disk = MemoryDisk(1 << 40)
    at_once(disk.write(5 << 36, b"x"))
    assert bytes(at_once(disk.read((5 << 36) - 1, 3))) == b"\0x\0"
    at_once(disk.zero(0, 1 << 40))
    assert at_once(disk.extents(0, 1 << 30)) == [(1 << 30, HOLE_AND_ZERO)]


@pytest.mark.parametrize(
    ("offset", "length", "extents"),
    [
        (0, 4 * BLOCK_BYTES, [(BLOCK_BYTES, 3), (2 * BLOCK_BYTES, 0), (BLOCK_BYTES, 3)]),
        (BLOCK_BYTES - 1, 2, [(1, 3), (1, 0)]),
        (BLOCK_BYTES + 5, 10, [(10, 0)]),
        (3 * BLOCK_BYTES, 1, [(1, 3)]),
    ],
)
def test_memory_extents(offset: int, length: int, extents: list[Extent]) -> None:
    disk = MemoryDisk(4 * BLOCK_BYTES)
    at_once(disk.write(2 * BLOCK_BYTES - 1, b"ab"))
    assert at_once(disk.extents(offset, length)) == extents


def test_memory_is_given_back() -> None:
    disk = MemoryDisk(64 * MIB)
    at_once(disk.write(0, b"x" * 64 * MIB))
    full = resident_bytes()
    at_once(disk.trim(1, 64 * MIB - 1))
    assert full - resident_bytes() > 60 * MIB
    assert at_once(disk.extents(0, 64 * MIB)) == [
        (BLOCK_BYTES, 0),
        (64 * MIB - BLOCK_BYTES, HOLE_AND_ZERO),
    ]


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_zeroes_without_no_hole_are_data() -> None:
    disk = MemoryDisk(4 * BLOCK_BYTES)
    at_once(disk.zero(0, 2 * BLOCK_BYTES, may_trim=False))
    assert at_once(disk.extents(0, 4 * BLOCK_BYTES)) == [
        (2 * BLOCK_BYTES, 0),
        (2 * BLOCK_BYTES, HOLE_AND_ZERO),
    ]


@pytest.mark.parametrize("size", [0, 1, 511, BLOCK_BYTES + 1])
def test_sizes(size: int) -> None:
    disk = MemoryDisk(size)
    assert bytes(at_once(disk.read(0, size))) == bytes(size)


def test_more_memory_than_can_be_had() -> None:
    with pytest.raises(DiskError, match="more than can be had"):
        MemoryDisk(2**63 - 1)


# --- Files


@pytest.fixture
def image(workdir: Path) -> Path:
    path = workdir / "disk.img"
    path.touch()
    os.truncate(path, 4 * MIB)
    return path


@contextmanager
def opened(path: Path) -> Iterator[FileDisk]:
    disk = FileDisk(path)
    yield disk
    disk.close()
    disk.close()  # does no harm


async def test_holes_of_a_file(image: Path) -> None:
    with opened(image) as disk:
        await disk.write(1 * MIB, b"x" * MIB)
        assert await disk.extents(0, 4 * MIB) == [(MIB, 3), (MIB, 0), (2 * MIB, 3)]
        assert await disk.extents(MIB + 7, 5) == [(5, 0)]
        await disk.trim(MIB, MIB, fua=True)
        assert await disk.extents(0, 4 * MIB) == [(4 * MIB, 3)]
        assert image.stat().st_blocks == 0


async def test_zeroes_of_a_file_free_its_blocks_unless_no_hole(image: Path) -> None:
    with opened(image) as disk:
        await disk.write(0, b"x" * MIB)
        await disk.zero(0, MIB, may_trim=False)
        assert bytes(await disk.read(0, MIB)) == bytes(MIB)
        await disk.flush()
        assert image.stat().st_blocks * 512 >= MIB
        await disk.zero(0, MIB)
        assert image.stat().st_blocks == 0


async def test_where_fallocate_is_not_to_be_had(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(image) as disk:
        await disk.write(0, b"x" * 4 * MIB)
        monkeypatch.setattr(file_disk, "_fallocate64", _no_fallocate)
        with pytest.raises(OSError, match="zeros would have to be written") as caught:
            await disk.zero(0, 3 * MIB, fast=True)
        assert caught.value.errno == errno.ENOTSUP
        await disk.trim(0, MIB)
        assert bytes(await disk.read(0, 2)) == b"xx"
        await disk.zero(1, 2 * MIB)
        assert bytes(await disk.read(0, 4 * MIB)) == (b"x" + bytes(2 * MIB) + b"x" * (2 * MIB - 1))


def _no_fallocate(_fd: int, _mode: int, _offset: int, _length: int) -> int:
    ctypes.set_errno(errno.EOPNOTSUPP)
    return -1


async def test_a_file_system_that_is_full_says_enospc(image: Path) -> None:
    # EFBIG, which is what a limit gives, is ENOSPC on the wire (test_server.py).
    with opened(image) as disk:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                await disk.write(MIB, b"x" * 4096)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


GONE = (MIB - 1, 2)
BEYOND_ITS_END: dict[str, Callable[[FileDisk], Awaitable[object]]] = {
    "read": lambda disk: disk.read(*GONE),
    "write": lambda disk: disk.write(MIB - 1, b"xx"),
    "write behind all of it": lambda disk: disk.write(3 * MIB, b"x"),
    "trim": lambda disk: disk.trim(*GONE),
    "zero": lambda disk: disk.zero(*GONE),
    "zero without a hole": lambda disk: disk.zero(*GONE, may_trim=False),
    "cache": lambda disk: disk.cache(*GONE),
    "extents": lambda disk: disk.extents(*GONE),  # a READ tells holes from data by them
}


@pytest.mark.parametrize("what", BEYOND_ITS_END)
async def test_a_file_that_has_become_shorter(image: Path, what: str) -> None:
    with opened(image) as disk:
        os.truncate(image, MIB)
        with pytest.raises(OSError, match="shorter") as caught:
            await BEYOND_ITS_END[what](disk)
        assert caught.value.errno == errno.EIO
        assert image.stat().st_size == MIB
        assert bytes(await disk.read(0, MIB)) == bytes(MIB)  # what is left is served
        await disk.write(MIB - 1, b"x")


async def test_a_file_that_is_not_writable(image: Path) -> None:
    if os.geteuid() == 0:
        # The superuser may write to everything but what is being executed.
        image = Path("/proc/self/exe").resolve()
    else:
        image.chmod(stat.S_IRUSR)
    with opened(image) as disk:
        assert disk.read_only
        assert len(await disk.read(0, 4)) == 4
        await disk.cache(0, 4)
        await disk.flush()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere.img", "cannot open .*: No such file or directory"),
        (".", "is a directory, not a file or a block device"),
        ("/dev/full", "is a character device"),
        ("pipe", "is a FIFO"),
    ],
)
def test_what_cannot_be_a_disk(workdir: Path, path: str, said: str) -> None:
    os.mkfifo(workdir / "pipe")
    with pytest.raises(DiskError, match=said):
        FileDisk(workdir / path)

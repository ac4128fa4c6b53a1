"""`FileDisk`: a regular file or a block device as a disk.

Whatever may wait for the medium runs in a thread. (A read is tried without one first: the page cache may answer
it at once, by RWF_NOWAIT.) Each call says at which position (pread, pwrite), so any number of commands may be
under way. Holes are found with SEEK_DATA and SEEK_HOLE and made with fallocate(2), which Python lacks.

Somebody may make the file shorter while it is served. Any command to the part that is gone then fails with EIO.
The kernel would write beyond the end, and tell of one large hole there; both would make up a disk that nobody
has. (We look at the size before the call, so what is cut in between is noticed next time.)
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trio

from gateway.embedded.disk import HOLE_AND_ZERO, MAX_EXTENTS_TOLD, Data, DiskError, Extent
from gateway.there import unexpanded
from gateway.wire.limits import KIB, MIB

T = TypeVar("T")

FILE_THREADS = 16
"""Calls of one disk that may wait for the medium at a time: as many as qemu has in flight for one connection.
More would only queue, and the rest of the process needs threads as well."""

NOWAIT_BYTES = 256 * KIB
"""Longest read that is tried without a thread; copying more would hold up everybody else for too long."""

ZEROS = memoryview(bytes(MIB))
"""What is written, over and over, where zeros have to be written."""

# linux/falloc.h
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10

_NOT_TO_BE_HAD = frozenset(
    # What fallocate gives where the file system, the device or the alignment does not allow it.
    {errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL, errno.ENOTTY}
)
_READ_ONLY_THEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY})

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate64 = _libc.fallocate64
_fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate64.restype = ctypes.c_int


class FileDisk:
    """A file or block device that exists, of the size that it has when it is opened."""

    immediate = False

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        """Open `path` for reading and writing, or for reading alone if it is not writable.

        Raises `DiskError`.
        """
        self.path = Path(path)
        try:
            mode = self.path.stat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise DiskError(f"{path} is {_kind(mode)}, not a file or a block device")
            self._fd, self.read_only = self._open(read_only=read_only)
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            why = f"{error.strerror or error}{unexpanded(path)}"
            raise DiskError(f"cannot open {path}: {why}") from None
        self._limiter = trio.CapacityLimiter(FILE_THREADS)
        self._nowait = True
        self._closed = False

    def _open(self, *, read_only: bool) -> tuple[int, bool]:
        if not read_only:
            try:
                return os.open(self.path, os.O_RDWR | os.O_CLOEXEC), False
            except OSError as error:
                if error.errno not in _READ_ONLY_THEN:
                    raise
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC), True

    def close(self) -> None:
        """Close the file; nothing may be under way."""
        if not self._closed:
            self._closed = True
            os.close(self._fd)

    # --- Disk

    async def read(self, offset: int, length: int) -> Data:
        """Read, at once if the page cache has all of it."""
        data = bytearray(length)
        if self._nowait and length <= NOWAIT_BYTES:
            try:
                if os.preadv(self._fd, [data], offset, os.RWF_NOWAIT) == length:
                    return data
            except BlockingIOError:
                pass
            except OSError:
                self._nowait = False  # not every file system has it
        await self._in_thread(lambda: self._read_all(memoryview(data), offset))
        return data

    async def write(self, offset: int, data: Data, *, fua: bool = False) -> None:
        """Write all of it."""
        await self._in_range(
            offset, len(data), lambda: self._write_all(memoryview(data), offset), fua=fua
        )

    async def flush(self) -> None:
        """Call fdatasync."""
        await self._in_thread(lambda: os.fdatasync(self._fd))

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Make a hole. Where that is not possible, do nothing: TRIM allows it."""
        await self._in_range(
            offset,
            length,
            lambda: self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length),
            fua=fua,
        )

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        may_trim: bool = True,
        fast: bool = False,
    ) -> None:
        """Make a hole if `may_trim`, else a range that is known to be zero. Where neither is possible, write
        zeros, or raise ENOTSUP if `fast`.
        """
        await self._in_range(
            offset,
            length,
            lambda: self._zero(offset, length, may_trim=may_trim, fast=fast),
            fua=fua,
        )

    async def cache(self, offset: int, length: int) -> None:
        """Ask the kernel to read ahead."""
        await self._in_range(
            offset,
            length,
            lambda: os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED),
        )

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Ask the file system. If it does not know, all is data, and so it is of a device."""
        return await self._in_range(offset, length, lambda: self._extents(offset, offset + length))

    # --- In a thread

    async def _in_range(
        self, offset: int, length: int, call: Callable[[], T], *, fua: bool = False
    ) -> T:
        """Do something in a thread. Raises EIO if it goes beyond the end of the file, where the kernel would do
        it all the same.
        """

        def run() -> T:
            # Not st_size, which a block device does not have.
            if offset + length > os.lseek(self._fd, 0, os.SEEK_END):
                raise _shorter()
            return call()

        return await self._in_thread(run, fua=fua)

    async def _in_thread(self, call: Callable[[], T], *, fua: bool = False) -> T:
        def run() -> T:
            result = call()
            if fua:
                os.fdatasync(self._fd)
            return result

        return await trio.to_thread.run_sync(run, limiter=self._limiter)

    def _read_all(self, view: memoryview, offset: int) -> None:
        while view:
            count = os.preadv(self._fd, [view], offset)
            if not count:
                raise _shorter()
            view, offset = view[count:], offset + count

    def _write_all(self, view: memoryview, offset: int) -> None:
        while view:
            count = os.pwrite(self._fd, view, offset)
            view, offset = view[count:], offset + count

    def _zero(self, offset: int, length: int, *, may_trim: bool, fast: bool) -> None:
        if may_trim and self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length):
            return
        if self._fallocate(_ZERO_RANGE | _KEEP_SIZE, offset, length):
            return
        if fast:
            raise OSError(errno.ENOTSUP, "zeros would have to be written")
        while length:
            piece = min(length, len(ZEROS))
            self._write_all(ZEROS[:piece], offset)
            offset, length = offset + piece, length - piece

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        """Call fallocate; say whether the file allows it."""
        while _fallocate64(self._fd, mode, offset, length) != 0:
            error = ctypes.get_errno()
            if error in _NOT_TO_BE_HAD:
                return False
            if error != errno.EINTR:
                raise OSError(error, os.strerror(error))
        return True

    def _extents(self, offset: int, end: int) -> list[Extent]:
        extents: list[Extent] = []
        while offset < end and len(extents) < MAX_EXTENTS_TOLD:
            data = self._seek(offset, os.SEEK_DATA, end)
            if data > offset:
                extents.append((data - offset, HOLE_AND_ZERO))
            if data < end:
                hole = self._seek(data, os.SEEK_HOLE, end)
                extents.append((hole - data, 0))
                data = hole
            offset = data
        return extents

    def _seek(self, offset: int, whence: int, end: int) -> int:
        """Give where data, or a hole, begins: `end` if not before."""
        try:
            found = os.lseek(self._fd, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data up to the end of the file
                return end
            if error.errno == errno.EINVAL:  # the file system cannot tell: all is data
                return offset if whence == os.SEEK_DATA else end
            raise
        # Somebody may write to the file between two calls. `_extents` must get further all the same.
        if whence == os.SEEK_HOLE and found <= offset:
            return end
        return min(found, end)


def _shorter() -> OSError:
    return OSError(errno.EIO, "the file has become shorter")


def _kind(mode: int) -> str:
    for test, kind in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a character device"),
    ):
        if test(mode):
            return kind
    return "something else"

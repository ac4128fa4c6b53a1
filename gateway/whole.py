"""Files that are whole or not there.

What is written in its place is half there when the disk is full, and whoever comes next takes it for what it
should be, or for somebody's that must not be overwritten. So a file is written beside its place, under a name
that nobody looks for, and renamed when all of it is on the disk. Several go to their places only when all of
them are written.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


def write_whole(
    files: Mapping[Path, bytes], *, mode: int = 0o666, replacing: Collection[Path] = ()
) -> None:
    """Write files, in their order, or none of them.

    Only what is in `replacing` may be there already; its owner and mode stay. New files have `mode`, less what
    the umask takes.

    Raises `OSError`, whose `filename` is that of the file that could not be written. Then no new file is there,
    and those to be replaced are as they were, unless it was the renaming that has failed: each is then the old
    one or the new.
    """
    beside: list[Path] = []
    new: list[Path] = []
    try:
        for path, content in files.items():
            with _named(path):
                before = path.stat() if path in replacing and path.exists() else None
                beside.append(_beside(path))
                _write(beside[-1], content, mode, before)
        for path, written in zip(files, beside, strict=True):
            with _named(path):
                if path not in replacing:
                    if os.path.lexists(path):
                        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
                    new.append(path)
                written.replace(path)
    except BaseException:
        for path in (*beside, *new):
            with suppress(OSError):
                path.unlink()
        raise


def _beside(path: Path) -> Path:
    """Give where a file is written first: always there, so that what a killed try has left is found again."""
    return path.with_name(f".{path.name}.new")


def _write(path: Path, content: bytes, mode: int, before: os.stat_result | None) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        if before is not None:
            with suppress(PermissionError):  # whoever may write here need not be its owner
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # some file systems say only then that they are full


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(path)
        raise

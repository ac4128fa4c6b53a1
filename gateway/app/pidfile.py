"""The file that has our number in it as long as we serve.

Whoever has it holds a lock on it (flock(2)), which ends with him however he ends. So a number that a killed
gateway has left is nobody's, and is written over; what another gateway holds is left alone, and it is said
whose it is.

A symbolic link is no pidfile. Where it leads would be written over, which is a trap in a directory that others
may write; and to put a file in its place would undo what somebody has set up. So it is left alone, and who
starts the gateway is told.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gateway.upstream.configured import StartError

SHOWN_BYTES = 20
"""Of what is in a file that another holds: a number, one should think."""


@contextmanager
def pidfile(path: Path | None) -> Iterator[None]:
    """Have our number in a file, if there is to be one. Raises `StartError`."""
    if path is None:
        yield
        return
    try:
        fd = _held(path)
    except BlockingIOError:
        raise StartError(f"{path} is held by another gateway{_whose(path)}") from None
    except OSError as error:
        # Path.is_symlink raises for some paths, in some versions of Python.
        is_link = os.path.islink(path)  # noqa: PTH114
        why = "it is a symbolic link" if is_link else error.strerror
        raise StartError(f"cannot write {path}: {why}") from None
    try:
        yield
    finally:
        with suppress(OSError):
            if _is_at(fd, path):
                path.unlink()
        os.close(fd)


def _held(path: Path) -> int:
    """Give a descriptor of the file, which is locked, and has our number. Raises `OSError`."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(fd, path):
                os.ftruncate(fd, 0)
                os.write(fd, f"{os.getpid()}\n".encode())
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # who held it has removed it meanwhile: there is another one, or none


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _whose(path: Path) -> str:
    try:
        with path.open("rb") as file:
            number = file.read(SHOWN_BYTES).strip()
    except OSError:
        return ""
    return f" (pid {number.decode()})" if number.isdigit() else ""

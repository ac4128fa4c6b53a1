"""The file that has our number in it as long as we serve.

Whoever has it holds a lock on it (flock(2)), which ends with him however he ends. So a number that a killed
gateway has left is nobody's, and is written over; what another gateway holds is left alone, and it is said
whose it is.

What has anything else in it than a number is no pidfile, but a file whose name was given by mistake: it would
be written over, and removed at the end. A number of a process that runs says nothing: the system gives the
numbers of those that have ended away again, and in a container we have the same one each time. So without a
lock it is nobody's.

A symbolic link is no pidfile. Where it leads would be written over, which is a trap in a directory that others
may write; and to put a file in its place would undo what somebody has set up. So it is left alone, and who
starts the gateway is told.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gateway.upstream.configured import StartError

NUMBER_BYTES = 20
"""A number has no more, with what is written around it."""


class Pidfile:
    """A pidfile that is held. Who has a copy of its descriptor holds it as well (flock(2))."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.is_ours = True
        """Our number is in it, and it goes with us. False: it has another process's."""

    def write(self) -> None:
        """Write our number. Raises `OSError`."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)
        self.is_ours = True


@contextmanager
def pidfile(path: Path | None, held: int | None = None) -> Iterator[Pidfile | None]:
    """Have our number in a file, if there is to be one. `held`: the descriptor of a pidfile that another
    process holds for us, and in which its number stays until we `write` ours. Raises `StartError`.
    """
    if path is None:
        yield None
        return
    if held is not None and _is_at(held, path):
        file = Pidfile(held)
        file.is_ours = False
        with _kept(file, path):
            yield file
        return
    try:
        fd = _held(path)
    except BlockingIOError:
        raise StartError(f"{path} is held by another gateway{_whose(path)}") from None
    except OSError as error:
        # Path.is_symlink raises for some paths, in some versions of Python.
        is_link = os.path.islink(path)  # noqa: PTH114 # as said
        why = "it is a symbolic link" if is_link else error.strerror
        raise StartError(f"cannot write {path}: {why}") from None
    file = Pidfile(fd)
    with _kept(file, path):
        yield file


@contextmanager
def _kept(file: Pidfile, path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(OSError):
            if file.is_ours and _is_at(file.fd, path):
                path.unlink()
        os.close(file.fd)


def _held(path: Path) -> int:
    """Give a descriptor of the file, which is locked, and has our number. Raises `OSError`, and `StartError`
    for what is no pidfile.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(fd, path):
                if not _has_a_number(fd):
                    raise StartError(
                        f"cannot write {path}: it has something else in it than a process's number"
                    )
                Pidfile(fd).write()
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # who held it has removed it meanwhile: there is another one, or none


def _has_a_number(fd: int) -> bool:
    """Say whether a file is one that has a number in it, or nothing yet."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return False  # and what is none may have no end, or make us wait for its beginning
    content = os.pread(fd, NUMBER_BYTES + 1, 0)
    return len(content) <= NUMBER_BYTES and not content.strip().strip(b"0123456789")


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _whose(path: Path) -> str:
    try:
        with path.open("rb") as file:
            number = file.read(NUMBER_BYTES).strip()
    except OSError:
        return ""
    return f" (pid {number.decode()})" if number.isdigit() else ""

"""Tickets on the disk: a file for each in one directory, so that they outlive whatever happens to the gateway.

A file is written beside its place, synced, renamed, and then the directory is synced: after a kill or a loss of
power at any moment it is the old one, or the new one, or none, and never a part. Who asked hears that it is
done after that. What a killed try has left beside is removed at the next start.

The file's name is a hash, because a ticket's may have 4,096 bytes and any character; what it is called stands
inside. A file whose content belongs to another name is no ticket: somebody has copied it.

Nothing in the directory can keep a gateway from its start. What cannot be read, is too large, or is none of
ours is told and left alone, for a person to look at. Only a directory that is not there and cannot be made, or
that another gateway has, is an error: nobody would know what becomes of the tickets in it.

The directory is the one that was opened at the start, whatever is done to its name meanwhile. A ticket is
removed from it wherever it has been moved to. None is written while another directory, or none, has the name:
the next start would look there, and another gateway may have it.

Everything here may hang as long as the disk does, so it is called in a thread. `TicketStore` is what a book
asks of whoever keeps its tickets: this, or the etcd of a fleet (`gateway.fleet.tickets`).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import trio

from gateway.there import unexpanded
from gateway.whole import write_whole
from gateway.wire.limits import KIB

MAX_TICKET_BYTES = 16 * KIB
"""Of one file: three names of 4,096 bytes at most, and a page of policies and patterns."""

MAX_TICKETS = 10_000
"""At a time: more than one gateway has clients. Ten thousand are read within three seconds at a start, and
take some 70 MB of memory."""

MODE, DIRECTORY_MODE = 0o600, 0o700
"""A ticket's name may be all that somebody has to know."""

ENDING, BESIDE = ".json", ".new"

EXCHANGED = "another directory is in its place since the start; a restart reads that one"


class NotKept(Exception):
    """A ticket cannot be kept now; the text says why."""


class TicketChanged(NotKept):
    """Another gateway has changed a ticket at the same moment. The book has been told what it is now."""


class TicketStore(Protocol):
    """Keeps tickets."""

    @property
    def place(self) -> str:
        """Where, in words."""

    @property
    def gateway(self) -> str | None:
        """What this gateway is called among those that have the same tickets; None: it is alone."""

    async def put(self, name: str, content: Mapping[str, Any]) -> None:
        """Keep a ticket, in the place of the one before it. Raises `NotKept`: then the one before is there
        still, or nobody knows which.
        """

    async def drop(self, names: Sequence[str]) -> None:
        """Keep tickets no more, where there are any. Raises `NotKept`: some may come back; `TicketChanged`:
        those that another gateway has changed are kept.
        """

    def close(self) -> None:
        """Let another gateway have the place."""


class StoreError(Exception):
    """The directory cannot be used; the text is for people."""


@dataclass(frozen=True, slots=True)
class Unread:
    """A file that is there and is no ticket."""

    file: str
    why: str


class Store:
    """The files of one directory, which is this gateway's as long as it is open. Raises `StoreError`.

    `held` is a descriptor of it from another process of this gateway, which has it (`share`): it belongs to
    this from now on. The lock is one for both (flock(2)), so no other gateway gets the directory, whoever of
    them dies.
    """

    gateway: str | None = None

    def __init__(self, directory: Path, held: int | None = None) -> None:
        self.directory = directory
        if held is not None:
            self._held = held
            return
        try:
            with suppress(FileExistsError):
                directory.mkdir(DIRECTORY_MODE)
            self._held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            text = f"{directory} cannot be had: {error.strerror}{unexpanded(directory)}"
            raise StoreError(text) from None
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._held)
            why = "another gateway has it" if isinstance(error, BlockingIOError) else error.strerror
            raise StoreError(f"{directory} cannot be had: {why}") from None

    @property
    def place(self) -> str:
        """See `TicketStore`."""
        return str(self.directory)

    async def put(self, name: str, content: Mapping[str, Any]) -> None:
        """See `TicketStore`."""
        try:
            await trio.to_thread.run_sync(partial(self.write, name, content))
        except OSError as error:
            raise NotKept(error.strerror) from None
        except ValueError as error:
            raise NotKept(str(error)) from None

    async def drop(self, names: Sequence[str]) -> None:
        """See `TicketStore`."""
        try:
            await trio.to_thread.run_sync(self.remove, names)
        except OSError as error:
            raise NotKept(error.strerror) from None

    def share(self) -> int:
        """Give a descriptor by which another process of this gateway has the directory as well. Raises
        `OSError`.
        """
        return os.dup(self._held)

    def close(self) -> None:
        """Let another gateway have it."""
        os.close(self._held)

    def clean(self) -> None:
        """Remove what tries that were killed have left."""
        with suppress(OSError), os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.name.startswith(".") and entry.name.endswith(ENDING + BESIDE):
                    with suppress(OSError):
                        Path(entry.path).unlink()

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Put a ticket's file in place, in that of the one before it. Raises `OSError`, and `ValueError` if it
        would be larger than may be. Then the one before is there still, or (where the directory could not be
        synced) nobody knows which.
        """
        text = text_of_content(content)
        if not self._is_in_its_place():
            raise OSError(errno.ESTALE, EXCHANGED)
        path = self.directory / file_of(name)
        write_whole({path: text}, mode=MODE, replacing=[path])
        os.fsync(self._held)

    def remove(self, names: Iterable[str]) -> None:
        """Remove the files of tickets, where there are any. Raises `OSError`: some may come back with the next
        start.
        """
        files = [file_of(name) for name in names]
        for file in files:
            with suppress(FileNotFoundError):
                os.unlink(file, dir_fd=self._held)
        os.fsync(self._held)
        with suppress(FileNotFoundError):  # then the next start finds none of them
            copied = any((self.directory / file).exists() for file in files)
            if copied and not self._is_in_its_place():
                raise OSError(errno.ESTALE, EXCHANGED)

    def _is_in_its_place(self) -> bool:
        """Say whether our directory has its name still. Raises `OSError` if nothing has."""
        return os.path.samestat(self.directory.stat(), os.fstat(self._held))


def read_all(directory: Path) -> Iterator[dict[str, Any] | Unread]:
    """Give the content of each file, in the order of their names, and of each that cannot be read why. Raises
    `OSError` for the directory.
    """
    with os.scandir(directory) as entries:
        files = sorted(
            entry.name
            for entry in entries
            if not (entry.name.startswith(".") and entry.name.endswith(BESIDE))
        )
    count = 0
    for file in files:
        if count == MAX_TICKETS:
            yield Unread(file, f"{MAX_TICKETS} tickets are read, and no more: nor what follows it")
            return
        try:
            content = _content(directory / file)
        except (OSError, ValueError, RecursionError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            yield Unread(file, why or str(error))
            continue
        count += 1
        yield content


def _content(path: Path) -> dict[str, Any]:
    """Read a file. Raises `OSError`, `ValueError`, `RecursionError`."""
    with _opened(path) as file:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ValueError("is no file")
        text = os.read(file, MAX_TICKET_BYTES + 1)
    return content_of(text, path.name)


def text_of_content(content: Mapping[str, Any]) -> bytes:
    """Give a ticket as it is kept. Raises `ValueError` if it would be larger than may be."""
    text = json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"
    if len(text) > MAX_TICKET_BYTES:
        raise ValueError(f"expected a ticket of {MAX_TICKET_BYTES} bytes at most, got {len(text)}")
    return text


def content_of(text: bytes, file: str) -> dict[str, Any]:
    """Read what is kept under the name of a file. Raises `ValueError`, `RecursionError`."""
    if len(text) > MAX_TICKET_BYTES:
        raise ValueError(f"is larger than {MAX_TICKET_BYTES} bytes, which no ticket is")
    try:
        content = json.loads(text)
    except ValueError:  # not UTF-8 is one, too
        raise ValueError("is no JSON; is it only a part?") from None
    ticket = content.get("ticket") if isinstance(content, dict) else None
    name = ticket.get("name") if isinstance(ticket, dict) else None
    if not isinstance(content, dict) or not isinstance(name, str):
        raise ValueError("says nothing of a ticket")
    if file != _safe(name):
        raise ValueError("is not where its name belongs: somebody has copied or renamed it")
    return content


def file_of(name: str) -> str:
    """Give the name of a ticket's file."""
    return hashlib.sha256(name.encode()).hexdigest() + ENDING


def _safe(name: str) -> str | None:
    try:
        return file_of(name)
    except UnicodeEncodeError:  # JSON can write half of a character
        return None


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    # A pipe does not wait for who will write.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.open(path, flags)
    try:
        yield file
    finally:
        os.close(file)

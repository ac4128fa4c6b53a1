"""The tickets of a configuration, as they are on the disk, for who serves nobody. Nothing is changed, and a
gateway that has them is not disturbed: each of their files is whole at any time.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gateway.access.rules import Access
from gateway.config import Config
from gateway.plural import plural
from gateway.there import status_of, unexpanded
from gateway.wire.handshake import shown

if TYPE_CHECKING:
    from gateway.tickets.book import Book


def with_tickets(config: Config) -> tuple[Config, Access]:
    """Give a configuration with its tickets, and its rules. Raises what policies raise, and `OSError`."""
    book = _book(config)
    if book is None:
        return config, Access(config)
    config = config.with_tickets(book.names)
    return config, Access(config, book.chains)


def said_of(config: Config) -> Iterator[str]:
    """Say how many there are, and which of them nobody can have. Raises `OSError`."""
    book = _book(config)
    if book is None:
        return
    yield f"{plural(len(book), 'export was', 'exports were')} made at run time, in {config.tickets.directory}"
    for unread in book.unread:
        yield f"warning: {unread.file} is no ticket: {unread.why}"
    for kept in book.not_in_force():
        yield f"warning: ticket {shown(kept.name)} is not in force: {kept.why_not}"


def unkeepable(config: Config) -> str | None:
    """Say why tickets cannot be kept where they are to be. Nothing is tried."""
    directory = config.tickets.directory
    if directory is None:
        return None
    try:
        there = status_of(directory)
        if there is not None and not stat.S_ISDIR(there.st_mode):
            return f"{directory} is no directory"
        makes = directory if there is not None else directory.parent
        if status_of(makes) is None:
            return f"there is no directory {makes}{unexpanded(directory)}"
    except OSError as error:
        return f"{directory}: {error.strerror}"
    return None if os.access(makes, os.W_OK | os.X_OK) else f"nothing can be made in {makes}"


def _book(config: Config) -> Book | None:
    directory = config.tickets.directory
    if directory is None or status_of(directory) is None:
        return None
    from gateway.tickets.book import Book

    book = Book(None, config)
    book.read(directory)
    return book

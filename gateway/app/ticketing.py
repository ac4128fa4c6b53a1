"""Exports that are made at run time, as a part of the gateway: how their book is opened and exchanged, and the
verbs that change it (`gateway.app.ticket_verbs`). Nothing of that is loaded where there are none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from gateway.admin.control import ControlAnswer, Verb
from gateway.config import Config
from gateway.handover.message import NotUnderstood
from gateway.plural import plural
from gateway.sessions.service import Service
from gateway.upstream.configured import StartError

if TYPE_CHECKING:
    from gateway.tickets.book import Book
    from gateway.upgrade.tickets import TicketsThere

WORDS = ("add", "renew", "remove", "list")
"""The verbs, each after `export-`."""

MOST_TOLD = 20
"""Tickets that a reload names which has no place for them."""


def verbs_of(service: Service) -> dict[str, Verb]:
    """Give the verbs, by their names."""
    return {f"export-{word}": partial(_do, service, word) for word in WORDS}


async def _do(service: Service, word: str, arguments: Mapping[str, Any]) -> ControlAnswer:
    from gateway.app import ticket_verbs

    return await ticket_verbs.verbs_of(service)[word](arguments)


async def opened_book(config: Config, there: TicketsThere | None = None) -> Book | None:
    """Give the tickets of a configuration, if they are kept anywhere; those that an older process has told, if
    it has. Raises `StartError`.
    """
    directory = config.tickets.directory
    if there is not None and there.complete:
        if directory is not None and there.is_at(directory):
            return await _told_book(config, directory, there)
        if there.said:
            count = plural(len(there.said), "ticket is", "tickets are")
            kept = f"{count} in {there.directory}"
            raise StartError(f"tickets.directory: {kept}")
    if there is not None:  # it has died, or has none: its directory is anybody's
        there.close()
    if directory is None:
        return None
    from gateway.tickets.book import Book
    from gateway.tickets.store import Store, StoreError

    def opened() -> Book:
        store = Store(directory)
        try:
            store.clean()
            book = Book(store, config)
            book.read(directory)
        except BaseException:
            store.close()
            raise
        return book

    try:
        return await trio.to_thread.run_sync(opened)
    except StoreError as error:
        raise StartError(f"tickets: {error}") from None
    except OSError as error:
        raise StartError(f"tickets: {directory} cannot be read: {error.strerror}") from None


async def _told_book(config: Config, directory: Path, there: TicketsThere) -> Book:
    """Give the tickets that an older process has told, at its directory. Raises `StartError`."""
    from gateway.tickets.book import Book
    from gateway.tickets.store import Store

    book = Book(Store(directory, there.taken()), config)
    try:
        if wrong := await trio.to_thread.run_sync(there.fill, book):
            raise StartError(_could_not_be(wrong))
    except NotUnderstood as error:
        book.close()
        raise StartError(f"tickets: {error}") from None
    except BaseException:
        book.close()
        raise
    return book


def _could_not_be(wrong: list[str]) -> str:
    more = f"; and {len(wrong) - MOST_TOLD} more" if len(wrong) > MOST_TOLD else ""
    return "; ".join(wrong[:MOST_TOLD]) + more


async def following_book(config: Config, service: Service, opened: AsyncExitStack) -> Book | None:
    """Give the tickets that there are when a configuration is in force: those that there are now, if they fit.
    What is opened is put down to be closed. Raises `StartError`.
    """
    here, kept = service.tickets, service.config.tickets.directory
    if config.tickets.directory != kept:
        if here:
            raise StartError(
                f"tickets.directory: {plural(len(here), 'ticket is', 'tickets are')} in {kept}"
            )
        if here is not None and here.say is not None:
            raise StartError(
                "tickets.directory: another process of the gateway serves with it still"
            )
        here = await opened_book(config)
        if here is not None:
            opened.callback(here.close)
    elif here is not None and (wrong := await trio.to_thread.run_sync(here.misfits, config)):
        raise StartError(_could_not_be(wrong))
    return here


@asynccontextmanager
async def one_turn(tickets: Book | None) -> AsyncIterator[None]:
    """Have no ticket be made, renewed or removed meanwhile."""
    if tickets is None:
        yield
        return
    async with tickets.my_turn():
        yield

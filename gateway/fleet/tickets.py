"""Tickets of a fleet: each is a key of etcd, and all its gateways have all of them.

A gateway that makes, renews or removes one changes the key, if it is as it knows it (compare and swap): of two
that change it at a time one is told what the other has done. All follow the keys (`following`), so the others
have it a moment later. So it is with the beginning of a use of a ticket that is for one: who is the first to
have written down whose use it is, has it, and every other client is refused, at whichever gateway it asks.

What was taken up stays in force while etcd does not answer. Nothing can be made or renewed then, and no use
begins; what is removed is over here, and for the others when etcd answers again. That a ticket is over each
gateway sees by its own clocks (`gateway.tickets.clock`), and who sees it first removes the key: so the clocks
of a fleet have to agree about as well as its tickets are to end. A key is removed only as it is known, so
whoever has not heard of a renewal takes nothing away.

A key's name is a hash, as that of a file is, for the same reasons (`gateway.tickets.store`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gateway.config import Fleet
from gateway.fleet.answers import EtcdKey, EtcdRefused, EtcdUnavailable
from gateway.fleet.etcd import Etcd, EtcdPut
from gateway.fleet.following import FollowedKeys
from gateway.fleet.keys import FleetKeys
from gateway.tickets.store import (
    NotKept,
    TicketChanged,
    Unread,
    content_of,
    file_of,
    text_of_content,
)

if TYPE_CHECKING:
    from gateway.tickets.book import Book


CHANGED = "another gateway has changed it at the same moment: ask again"


class EtcdTickets:
    """A `TicketStore` in etcd, and the book that is told of what others change."""

    place = "etcd"

    def __init__(self, etcd: Etcd, settings: Fleet) -> None:
        self.gateway: str | None = settings.name
        self._etcd = etcd
        self._prefix = FleetKeys(settings.prefix).tickets
        self._followed = FollowedKeys(etcd, self._prefix, self._brought, self._begun_anew)
        self._known: dict[str, int] = {}
        """At which revision each key was changed last, as far as the book has been told."""
        self._dropped: dict[str, int] = {}
        """At which revision we have removed a key, as long as news of it may be older than that."""
        self._names: dict[str, str] = {}
        self._tried: dict[str, str] = {}
        """What may stand under a key, because no answer came."""
        self._book: Book

    async def read(self, book: Book) -> None:
        """Give a book all tickets that there are. Raises `EtcdUnavailable`, `EtcdRefused`."""
        self._book = book
        await self._followed.read()

    async def run(self) -> None:
        """Tell the book what others change, until cancelled."""
        await self._followed.run()

    async def _brought(self, key: EtcdKey) -> None:
        async with self._book.turn:
            self._take_over(key)

    def _begun_anew(self) -> None:
        self._known = dict.fromkeys(self._known, 0)
        self._dropped.clear()

    def _take_over(self, key: EtcdKey) -> None:
        """Tell the book of a key, while it is our turn, if it has not been told or done it itself."""
        file = key.key.removeprefix(self._prefix)
        known = max(self._known.get(file, 0), self._dropped.get(file, 0))
        if key.gone and key.revision >= known:
            self._known.pop(file, None)
            self._dropped.pop(file, None)
            if (name := self._names.pop(file, None)) is not None:
                self._book.following.taken_away(name)
        elif not key.gone and key.revision > known:
            self._dropped.pop(file, None)
            self._known[file] = key.revision
            try:
                content = content_of(key.value.encode(), file)
            except (ValueError, RecursionError) as error:
                self._book.following.not_read(Unread(file, str(error)))
                return
            name = content["ticket"]["name"]
            self._names[file] = name
            self._book.following.brought(content)

    async def put(self, name: str, content: Mapping[str, Any]) -> None:
        """See `TicketStore`."""
        file = file_of(name)
        key, known = f"{self._prefix}{file}", self._known.get(file, 0)
        try:
            text = text_of_content(content).decode()
            self._tried[file] = text
            done = await self._etcd.change([EtcdKey(key, "", known)], [EtcdPut(key, text)])
            if not done:
                there = await self._etcd.get(key)
                if there.revision and there.value == text:
                    done = there.revision  # it was done, and the answer was lost
            if not done:
                self._take_over(there if there.revision else EtcdKey(key, "", known, gone=True))
                del self._tried[file]
                raise TicketChanged(CHANGED)
        except ValueError as error:
            raise NotKept(str(error)) from None
        except (EtcdUnavailable, EtcdRefused) as error:
            raise NotKept(str(error)) from None
        del self._tried[file]
        self._dropped.pop(file, None)
        self._known[file], self._names[file] = done, name
        self._followed.note_ours(key, done)

    async def drop(self, names: Sequence[str]) -> None:
        """See `TicketStore`."""
        changed = False
        for name in names:
            file = file_of(name)
            key = f"{self._prefix}{file}"
            try:
                there = await self._etcd.get(key)
                ours = there.revision == self._known.get(file) or there.value == self._tried.get(
                    file
                )
                if not there.revision:
                    done = 1
                elif ours:
                    done = await self._etcd.change([there], [], [key])
                else:
                    done = 0
            except (EtcdUnavailable, EtcdRefused) as error:
                raise NotKept(str(error)) from None
            self._tried.pop(file, None)
            if not done:
                self._known.pop(file, None)
                self._take_over(await self._again(key))
                changed = True
                continue
            self._names.pop(file, None)
            self._known.pop(file, None)
            self._dropped[file] = done
        if changed:
            raise TicketChanged(CHANGED)

    async def _again(self, key: str) -> EtcdKey:
        try:
            return await self._etcd.get(key)
        except (EtcdUnavailable, EtcdRefused) as error:
            raise NotKept(str(error)) from None

    def close(self) -> None:
        """See `TicketStore`; there is nothing that others wait for."""

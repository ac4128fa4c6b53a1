"""What is in force, and who is here: what a reload exchanges, and what it has to wait for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from gateway.admin.control import ControlSocket
from gateway.app.manager import Manager
from gateway.net.listen import Listener
from gateway.upstream.backends import Backend
from gateway.upstream.configured import Servers

if TYPE_CHECKING:
    from gateway.app.web import AdminDoor  # costs nothing where there is no [admin]
    from gateway.tickets.book import Book
    from gateway.tls.keyring import Keyring


class Present:
    """Who is connected, by how many configurations there had been when they came."""

    def __init__(self) -> None:
        self.age = 0
        self._counts: Counter[int] = Counter()
        self._left = trio.Event()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Have somebody be there."""
        age = self.age
        self._counts[age] += 1
        try:
            yield
        finally:
            self._counts[age] -= 1
            if not self._counts[age]:
                del self._counts[age]
                self._left.set()
                self._left = trio.Event()

    def any_of(self, age: int) -> bool:
        """Say whether anybody is here who came at this age or before."""
        return any(each <= age for each in self._counts)

    async def next_to_leave(self) -> None:
        """Wait until the last of some age has left."""
        await self._left.wait()


@dataclass
class Listeners:
    """What is listened on."""

    listeners: list[Listener]
    control: ControlSocket | None = None
    admin: AdminDoor | None = None

    async def aclose(self) -> None:
        """Close all of it."""
        for listener in self.listeners:
            await listener.aclose()
        if self.control is not None:
            await self.control.aclose()
        if self.admin is not None:
            await self.admin.aclose()


@dataclass
class Standing:
    """What is in force."""

    servers: Servers
    keyring: Keyring | None
    doors: Listeners
    manager: Manager = field(default_factory=Manager)
    """Who is told what becomes of us."""
    tickets: Book | None = None
    """The exports that are made at run time, where they can be."""
    leaving: dict[Backend, int] = field(default_factory=dict)
    """What nobody is led to any more, and up to which age clients may be connected to it."""

    def takes(self, tickets: Book | None) -> bool:
        """Have tickets be kept elsewhere, where there are none yet; say whether that is elsewhere."""
        before, self.tickets = self.tickets, tickets
        if before is not None and before is not tickets:
            before.close()
        return before is not tickets

    async def aclose(self) -> None:
        """Close and end everything: the gateway ends."""
        with trio.CancelScope(shield=True):  # these have limits of their own
            await self.doors.aclose()
            for backend in self.leaving:
                await backend.end()
            await self.servers.end()
        if self.tickets is not None:
            self.tickets.close()
        self.manager.close()

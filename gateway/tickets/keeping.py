"""Which of two processes keeps the tickets, and whose turn it is to change one.

While two processes serve (an upgrade), both have the same tickets, and *one keeps them*: it alone writes into
the directory. The older one keeps them until it tells the newer one to accept, and from then on the newer one
does. The other has a copy:

- Who keeps them says each change after it is on the disk (`gateway.tickets.book.Say`), and the other follows
  (`gateway.tickets.following`).
- A use of a ticket for one use begins where they are kept. The other asks there (`BeginUse`) before its client
  is told that the export is open. So of two clients, in two processes, one has it.
- Sessions of both count where they are kept, so a use is over when no session of either has been open for a
  while.
- That its time is over, each sees by itself, by the same two clocks: what is left goes along, and not only the
  time on the wall. So each ends its own sessions, even if the other hangs.
- If who keeps them dies, the other does (`is_kept_here`), and reads the directory again before anything else:
  something may have been written there and not said.

Where there is one process it keeps them, and nothing of this happens. A gateway of a fleet does not upgrade, so
what is said here of a directory is of one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from gateway.config import NoTicket
from gateway.tickets.following import Following
from gateway.tickets.roll import Roll
from gateway.tickets.store import Store, TicketStore, Unread, read_all

BeginUse = Callable[[str, tuple[str, ...]], Awaitable[str | None]]
"""Has another process begin a use of the ticket of a name, of a client by its identity. Gives why that refuses
it (empty: it has begun); None: that process has ended, and the tickets are kept here."""

ELSEWHERE = (
    "a newer process of the gateway keeps the tickets: ask again, it answers at the same socket"
)


class Keeping:
    """Knows where the tickets of a roll are kept: here, at first. `now_here` is called when they are kept here
    again.
    """

    def __init__(
        self,
        store: TicketStore | None,
        roll: Roll,
        following: Following,
        now_here: Callable[[], None],
    ) -> None:
        self.turn = trio.Lock()
        """Whose turn it is to change something."""
        self.stale = False
        """Another process has kept them, and died."""
        self._store = store
        self._roll = roll
        self._following = following
        self._now_here = now_here
        self._elsewhere: BeginUse | None = None
        """Another process keeps them; None: this one does."""

    @property
    def is_elsewhere(self) -> bool:
        """Another process keeps them."""
        return self._elsewhere is not None

    def refuse_if_elsewhere(self) -> None:
        """Have nobody change here what another process keeps. Raises `NoTicket`."""
        if self.is_elsewhere:
            raise NoTicket(ELSEWHERE)

    @asynccontextmanager
    async def my_turn(self) -> AsyncIterator[None]:
        """Have nobody else change anything meanwhile; what another process has written is known."""
        async with self.turn:
            if self.stale:
                await self._read_again()
            yield

    async def begin_elsewhere(self, name: str, user: tuple[str, ...]) -> bool:
        """Have another process begin a use, if one keeps them; say whether it has. Raises `NoTicket`."""
        if self._elsewhere is None:
            return False
        refused = await self._elsewhere(name, user)
        if refused:
            raise NoTicket(refused)
        return refused is not None

    def share(self) -> tuple[Path, int] | None:
        """Give the directory, and a descriptor by which another process has it as well; None: there is none.
        Raises `OSError`.
        """
        store = self._store
        return (store.directory, store.share()) if isinstance(store, Store) else None

    def is_kept_by(self, elsewhere: BeginUse) -> None:
        """Another process keeps them from now on."""
        self._elsewhere = elsewhere
        self._roll.gone.clear()  # it was told, and sees to them
        self._roll.count_uses(here=False)

    def is_kept_here(self, *, read_again: bool) -> None:
        """They are kept here from now on. `read_again`: by somebody who may have written what he has not
        said.
        """
        self._elsewhere, self.stale = None, self.stale or read_again
        self._roll.count_uses(here=True)
        self._now_here()

    async def _read_again(self) -> None:
        assert isinstance(self._store, Store)  # no other is shared
        directory = self._store.directory

        def read() -> list[dict[str, Any]]:
            return [each for each in read_all(directory) if not isinstance(each, Unread)]

        try:
            there = {each["ticket"]["name"]: each for each in await trio.to_thread.run_sync(read)}
        except OSError as error:
            why = error.strerror or str(error)
            self._roll.log.warning("ticket not read", file=str(directory), why=why)
        else:
            for name in [name for name in self._roll.all if name not in there]:
                self._following.taken_away(name)
            for found in there.values():
                self._following.brought(found)
        self.stale = False

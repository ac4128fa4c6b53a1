"""The book of a gateway's tickets: how they are made, renewed, used and removed, and how they come to be over.

What is promised is on the disk first: a ticket is in force after its file is. What is taken away is taken away
at once, and on the disk afterwards: if that cannot be done, who asked is told that it comes back with the next
start. Where others have the same tickets, it is tried until it is done: else they had it for as long as they
like. Changes go one after the other (`turn`), so that of two with one name each is whole. A reload takes its
turn among them, and finds the same tickets at its end as at its beginning.

Here is what this gateway does. What others do to the same tickets, gateways of a fleet or another process, is
followed (`gateway.tickets.following`). While another process keeps them (`gateway.tickets.keeping`), nothing is
changed here but what is over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from gateway.access.named import POLICIES_ALONE
from gateway.config import Config, NeverTicket, NoTicket, Ticket
from gateway.config.tickets import ticket_of
from gateway.tickets.clock import OF_THE_MACHINE, Clock
from gateway.tickets.following import Following
from gateway.tickets.keeping import Keeping
from gateway.tickets.kept import IssuedTicket, Over, text_of
from gateway.tickets.roll import REMOVED, Ended, Roll
from gateway.tickets.store import MAX_TICKETS, NotKept, TicketChanged, TicketStore, Unread
from gateway.wire.handshake import shown

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

LOOK_SECONDS = 5
"""How often we look at the least whether the clock on the wall was set, where there is a ticket that ends. Who
asks for one that is over is refused at once; this is how late its sessions may be told."""

SET_SECONDS = 1
"""By how much that clock has to have been set for all to be reckoned anew. NTP moves it by less all the
time."""

AT_A_TIME = 50
"""Tickets that are ended before the sessions have their turn: a line of the log each, in a millisecond."""

MOST_TRIES = 5
"""How often a use is written down anew that another gateway has changed the ticket under: three at a time are
many for one client, and each has its turn."""

Say = Callable[[IssuedTicket, Over | None], object]
"""Is told of each change: a ticket is as it is now, or it is over."""

USED = "the ticket is for one use, and another client uses it"


class Book:
    """The tickets of a store, for a configuration. Without a store, nothing can be changed."""

    def __init__(
        self, store: TicketStore | None, config: Config, clock: Clock = OF_THE_MACHINE
    ) -> None:
        self._store = store
        self._clock = clock
        self._apart = clock.apart
        self._news = trio.Event()
        self._roll = Roll(config, self._wake)
        self._due = self._roll.due
        self._look_later = self._due.look_later
        self._leaving: list[IssuedTicket] = []
        """Those whose use goes on elsewhere, which is to be written down."""
        self._in_vain: set[str] = set()
        """Those that could not be removed where they are kept, as the log has it."""
        self.names, self.chains = self._roll.names, self._roll.chains
        """Those in force."""
        self.following = Following(self._roll, clock, None if store is None else store.gateway)
        self.keeping = Keeping(store, self._roll, self.following, self._wake)
        self.turn, self.my_turn = self.keeping.turn, self.keeping.my_turn
        self.say: Say | None = None
        """Tells another process, which follows; None: there is none."""

    def _wake(self) -> None:
        self._news.set()

    # --- What there is

    def __len__(self) -> int:
        return len(self._roll.all)

    def get(self, name: str) -> IssuedTicket | None:
        """Give the ticket of a name, in force or not."""
        return self._roll.all.get(name)

    def after(self, name: str | None, most: int) -> list[IssuedTicket]:
        """Give so many, in the order of their names, from the one after a name on."""
        return self._roll.after(name, most)

    def misfits(self, config: Config) -> list[str]:
        """Say which of the tickets in force would not fit a configuration, and why."""
        return self._roll.misfits(config)

    def not_in_force(self) -> list[IssuedTicket]:
        """Give those for which the configuration has no place."""
        return self._roll.not_in_force()

    @property
    def unread(self) -> list[Unread]:
        """The files of which no tickets came."""
        return self.following.unread

    @property
    def is_elsewhere(self) -> bool:
        """Another process keeps them."""
        return self.keeping.is_elsewhere

    # --- The start

    def read(self, directory: Path) -> None:
        """Take up what is on the disk. Raises `OSError` for the directory."""
        self.following.read(directory)

    def come_into_force(self, config: Config, ended: Ended, log: FilteringBoundLogger) -> None:
        """Another configuration is in force, or the first: it may have a place for tickets that had none. From
        now on tickets end.
        """
        self._roll.come_into_force(config, ended, log)
        self.following.tell()

    def close(self) -> None:
        """Let another gateway have the directory."""
        if self._store is not None:
            self._store.close()

    # --- Made, renewed, removed

    async def add(self, said: Mapping[str, Any], until: float | None, by: str) -> IssuedTicket:
        """Make a ticket. Raises `NoTicket`."""
        ticket = ticket_of(said, POLICIES_ALONE)
        async with self.my_turn():
            self.keeping.refuse_if_elsewhere()
            if ticket.name in self._roll.all:
                raise NoTicket(f"there is a ticket {shown(ticket.name)} already")
            if len(self._roll.all) >= MAX_TICKETS:
                raise NoTicket(f"there are {MAX_TICKETS} tickets, and no more may be: remove some")
            if wrong := self._roll.why_not(ticket):
                raise NoTicket(*wrong)
            now = self._clock.wall()
            if until is not None and until <= now:
                raise NeverTicket(f"{text_of(until)} is over already; it is {text_of(now)} here")
            assert self._store is not None
            kept = IssuedTicket(
                *(ticket, said, self._clock, now, until),
                gateway=self._store.gateway,
                idle=self._look_later,
            )
            kept.counts_from_now()
            await self._written(kept)
            self._roll.enter(kept)
            self._say(kept)
        self._roll.log.info(
            "ticket made",
            export=kept.name,
            upstream=kept.ticket.upstream,
            until=kept.ends,
            by=by,
        )
        return kept

    async def renew(self, name: str, until: float | None, by: str) -> IssuedTicket:
        """Have a ticket be in force until another time. Raises `NoTicket`."""
        async with self.my_turn():
            self.keeping.refuse_if_elsewhere()
            kept = self._there(name)
            now = self._clock.wall()
            if until is not None and until <= now:
                raise NeverTicket(f"{text_of(until)} is over already; it is {text_of(now)} here")
            before, kept.until = kept.until, until
            content = kept.on_disk()
            kept.until = before  # it is over as before, until the new time is on the disk
            await self._written(kept, content)
            self._roll.renew(kept, until)
            self._say(kept)
        self._roll.log.info(
            "ticket renewed",
            export=kept.name,
            upstream=kept.ticket.upstream,
            until=kept.ends,
            by=by,
        )
        return kept

    async def remove(self, name: str, by: str) -> str | None:
        """End a ticket and its sessions. Say why its file is there still, if it is. Raises `NoTicket`."""
        self.keeping.refuse_if_elsewhere()
        kept = self._there(name)
        self._roll.drop(kept)
        self._roll.log.info(
            "ticket removed",
            export=kept.name,
            upstream=kept.ticket.upstream,
            until=kept.ends,
            by=by,
        )
        self._say(kept, REMOVED)
        self._roll.ended({id(kept.ticket): REMOVED})
        self._roll.gone.append(name)  # for `watch`, if whoever asks goes before it is done
        async with self.my_turn():
            # Who keeps them since has been told that it is over, and sees to the file.
            left = None if self.is_elsewhere else await self._files_removed([name])
            tried = 1
            while isinstance(left, TicketChanged) and tried < MOST_TRIES:
                left = await self._files_removed([name])
                tried += 1
        self._roll.gone[:] = [each for each in self._roll.gone if each != name]
        if left is None:
            return None
        if self._others_have_it:
            self._roll.gone.append(name)
            self._wake()
        return f"{self._place}: {left}"

    async def begin_use(self, name: str, ticket: Ticket) -> None:
        """Note on the disk that a ticket is in use, if it is for one use. Raises `NoTicket`."""
        kept = self._roll.all.get(name)
        if kept is None or kept.ticket is not ticket or not ticket.once or kept.begun:
            return  # if it is over, the rules say so
        if kept.user is not None and await self.keeping.begin_elsewhere(name, kept.user):
            return
        async with self.my_turn():
            user = kept.user
            for tried in range(MOST_TRIES):
                if kept.begun or user is None or self._roll.all.get(name) is not kept:
                    return
                if kept.kept_user not in (None, user):
                    raise NoTicket(USED)
                try:
                    await self._use_written(kept, user)
                except _Changed:
                    if tried == MOST_TRIES - 1:
                        raise  # of two clients at two gateways the first has it

    async def begin_use_elsewhere(self, name: str, user: tuple[str, ...]) -> None:
        """Begin a use for a client of another process. Raises `NoTicket`."""
        async with self.my_turn():
            self.keeping.refuse_if_elsewhere()
            kept = self._there(name)
            if kept.user not in (None, user):
                raise NoTicket(USED)
            if kept.ticket.once and not kept.begun:
                await self._use_written(kept, user)

    async def _use_written(self, kept: IssuedTicket, user: tuple[str, ...]) -> None:
        used = {"user": list(user), **kept.used_at(here=True)}
        await self._written(kept, {**kept.on_disk(), **used})
        kept.begins_use(user)
        self._say(kept)

    def _there(self, name: str) -> IssuedTicket:
        kept = self._roll.all.get(name)
        if kept is None or kept.over() is not None:
            raise NoTicket(f"there is no ticket {shown(name)}")
        return kept

    def _say(self, kept: IssuedTicket, over: Over | None = None) -> None:
        if self.say is not None:
            self.say(kept, over)

    async def _written(self, kept: IssuedTicket, content: Mapping[str, Any] | None = None) -> None:
        """Have a ticket on the disk, whoever goes meanwhile. Raises `NoTicket`."""
        assert self._store is not None
        name, there = kept.name, self._roll.all.get(kept.name)
        try:
            with trio.CancelScope(shield=True):
                await self._store.put(name, content or kept.on_disk())
        except TicketChanged as error:
            raise _Changed(str(error)) from None
        except NotKept as error:
            if there is None:
                self._roll.gone.append(name)  # it may be there, and not for sure
                self._wake()
            raise NoTicket(f"{self._place}: {error}") from None
        if self._roll.all.get(name) is not there:
            await self._files_removed([name])
            raise NoTicket(f"the ticket {shown(name)} has ended meanwhile")

    @property
    def _place(self) -> str:
        return "" if self._store is None else self._store.place

    @property
    def _others_have_it(self) -> bool:
        """What is kept others have, too, for as long as it is."""
        return self._store is not None and self._store.gateway is not None

    async def _files_removed(self, names: Collection[str]) -> NotKept | None:
        """Remove the files of tickets that are no more; say why one is there still."""
        assert self._store is not None
        gone = [name for name in names if name not in self._roll.all]  # it may have been made anew
        try:
            with trio.CancelScope(shield=True):
                await self._store.drop(gone)
        except NotKept as error:
            if not self._in_vain.issuperset(gone):
                why = f"{self._place}: {error}"
                self._roll.log.warning(
                    "ticket not removed from the disk", tickets=len(gone), why=why
                )
            self._in_vain |= {*gone}
            return error
        self._in_vain -= {*gone}
        return None

    # --- Over

    async def watch(self) -> None:
        """End tickets when they are over, and remove their files, until cancelled."""
        while True:
            await self.look()
            if not self.is_elsewhere and (self._roll.gone or self.keeping.stale):
                async with self.my_turn():
                    gone = [*self._roll.gone]
                    self._roll.gone.clear()
                    left = await self._files_removed(gone) if gone else None
                    if left is not None and not isinstance(left, TicketChanged):
                        self._roll.gone += gone if self._others_have_it else []
            leaving, self._leaving = self._leaving, []
            for kept in leaving:
                async with self.my_turn():
                    await self._leave(kept)
            wait = self._due.next_at - self._clock.steady()
            looks = self._due or self._roll.gone
            with trio.move_on_after(min(max(wait, 0), LOOK_SECONDS if looks else inf)):
                await self._news.wait()
            self._news = trio.Event()

    async def _leave(self, kept: IssuedTicket) -> None:
        """Write down that the use of a ticket is not here any more, if that is so still."""
        if kept.has_left and self._roll.all.get(kept.name) is kept:
            try:
                await self._written(kept, {**kept.on_disk(), **kept.used_at(here=False)})
                kept.is_left()
            except NoTicket:  # or it was changed, and may be over: it is looked at again
                kept.rejoin_until = self._clock.steady() + LOOK_SECONDS
            self._look_later(kept)

    async def look(self) -> None:
        """End what is over now."""
        if abs(self._clock.apart - self._apart) > SET_SECONDS:
            self._apart = self._clock.apart
            self._due.reckon_anew()
        while self._due.next_at <= self._clock.steady():
            self._end_some()
            await trio.lowlevel.checkpoint()

    def _end_some(self) -> None:
        over: dict[int, Over] = {}
        while len(over) < AT_A_TIME and (kept := self._due.take(self._clock.steady())) is not None:
            why = kept.over()
            if why is None and kept.has_left:
                self._leaving.append(kept)
                continue
            if why is None:
                self._look_later(kept)
                continue
            over[id(kept.ticket)] = why
            self._roll.drop(kept)
            self._say(kept, why)
            if not self.is_elsewhere:
                self._roll.gone.append(kept.name)
                self._roll.log.info("ticket is over", export=kept.name, why=why.why)
        if over:
            self._roll.ended(over)


class _Changed(NoTicket):
    """Another gateway has changed it at the same moment."""

"""All tickets of a gateway: made, renewed, used, removed, and over.

What is promised is on the disk first: a ticket is in force after its file is. What is taken away is taken away
at once, and on the disk afterwards: if that cannot be done, who asked is told that it comes back with the next
start. Changes go one after the other (`turn`), so that of two with one name each is whole. A reload takes its
turn among them, and finds the same tickets at its end as at its beginning.

A ticket that does not fit the configuration at a start (its upstream is gone, an [[export]] has its name) stays
on the disk and is not in force, until a configuration has a place for it, its time is over, or somebody removes
it. A reload that would put one out of force is refused (`misfits`).

Where other gateways have the same tickets (`gateway.fleet.tickets`), what they change is `brought`, in its turn
among our own changes.

The dictionaries of names and chains are given to `Config` and `Access`, which look into them each time.

This is longer than other modules: whatever makes a ticket come, change or go, here or at another gateway, has
to leave the same few tables right.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Collection, Iterable, Mapping
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from gateway.access.chain import Placed
from gateway.access.named import POLICIES_ALONE
from gateway.config import Config, NoTicket, Ticket
from gateway.config.tickets import misfits, ticket_of
from gateway.tickets.clock import OF_THE_MACHINE, Clock
from gateway.tickets.kept import REJOIN_SECONDS, IssuedTicket, Over, seconds_of, text_of
from gateway.tickets.store import (
    MAX_TICKETS,
    NotKept,
    TicketChanged,
    TicketStore,
    Unread,
    file_of,
    read_all,
)
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

MOST_TOLD = 20
"""Files that cannot be read and are told of, each in a line of the log. The others are counted."""

ANOTHER = "another gateway of the fleet"
"""Who has made, renewed or removed a ticket that is brought."""

Ended = Callable[[Mapping[int, Over]], None]
"""Is told which tickets are over, by their `id`, so that their sessions are ended."""


class Book:
    """The tickets of a store. `config` is the one that is in force; a reload exchanges it. Without a store,
    nothing can be changed.
    """

    _log: FilteringBoundLogger

    def __init__(
        self, store: TicketStore | None, config: Config, clock: Clock = OF_THE_MACHINE
    ) -> None:
        self.config = config
        self.turn = trio.Lock()
        """Whose turn it is to change something."""
        self.names: dict[str, Ticket] = {}
        """Those in force."""
        self.chains: dict[str, tuple[Placed, ...]] = {}
        self._ended: Ended = lambda _over: None
        self._told = False
        self.unread: list[Unread] = []
        """The files of which no tickets came."""
        self._store = store
        self._clock = clock
        self._all: dict[str, IssuedTicket] = {}
        self._sorted: list[str] = []
        self._due: list[tuple[float, int, IssuedTicket]] = []
        """A heap: when to look at which."""
        self._number = count()
        self._gone: list[str] = []
        """Names whose files are still there and should not be."""
        self._leaving: list[IssuedTicket] = []
        """Those whose use goes on elsewhere, which is to be written down."""
        self._apart = clock.apart
        self._news = trio.Event()

    # --- What there is

    def __len__(self) -> int:
        return len(self._all)

    def get(self, name: str) -> IssuedTicket | None:
        """Give the ticket of a name, in force or not."""
        return self._all.get(name)

    def after(self, name: str | None, most: int) -> list[IssuedTicket]:
        """Give so many, in the order of their names, from the one after a name on."""
        start = 0 if name is None else bisect_right(self._sorted, name)
        return [self._all[each] for each in self._sorted[start : start + most]]

    def misfits(self, config: Config) -> list[str]:
        """Say which of the tickets in force would not fit a configuration, and why."""
        wrong = []
        for name, ticket in list(self.names.items()):
            for why in misfits(config, ticket):
                wrong.append(f"ticket {shown(name)} could not be in force any more: {why}")
        return wrong

    # --- The start

    def read(self, directory: Path) -> None:
        """Take up what is on the disk. Raises `OSError` for the directory."""
        for found in read_all(directory):
            unread = found if isinstance(found, Unread) else self._take_up(found)
            if unread is not None:
                self.unread.append(unread)

    def _tell(self) -> None:
        """Say what of the disk was not taken up."""
        for unread in self.unread[:MOST_TOLD]:
            self._log.warning("ticket not read", file=unread.file, why=unread.why)
        if (more := len(self.unread) - MOST_TOLD) > 0:
            self._log.warning("ticket not read", file=f"{more} files more", why="see those before")
        for kept in self.not_in_force()[:MOST_TOLD]:
            self._log.warning("ticket is not in force", export=kept.name, why=kept.why_not)

    def not_in_force(self) -> list[IssuedTicket]:
        """Give those for which the configuration has no place."""
        return [each for each in self._all.values() if each.why_not is not None]

    def _take_up(self, found: Mapping[str, Any]) -> Unread | None:
        """Take up the content of a file; say why, if it makes no ticket."""
        said = found["ticket"]
        try:
            made, until = found.get("made"), found.get("until")
            user, gateways = _user_of(found.get("user")), _texts(found.get("at", []), "at")
            gateway = None if self._store is None else self._store.gateway
            kept = IssuedTicket(
                ticket_of(said),  # its policies are looked at when it is put in force
                said,
                self._clock,
                seconds_of(made),
                None if until is None else seconds_of(until),
                gateway=gateway,
                idle=self._look_later,
            )
        except (NoTicket, ValueError, OverflowError) as error:
            return Unread(file_of(said["name"]), str(error))
        kept.is_used(user, gateways)
        if user is not None and (gateway is None or gateway in gateways):
            kept.begun, kept.rejoin_until = True, self._clock.steady() + REJOIN_SECONDS
        kept.counts_from_now()
        self._enter(kept)
        return None

    def _enter(self, kept: IssuedTicket) -> None:
        self._all[kept.name] = kept
        insort(self._sorted, kept.name)
        self._look_later(kept)
        self._put_in_force(kept)

    def _put_in_force(self, kept: IssuedTicket) -> None:
        """Put it in force if the configuration has a place for it; else say why not."""
        why = next(misfits(self.config, kept.ticket), None)
        chain: tuple[Placed, ...] = ()
        if why is None:
            try:
                chain = (kept.placed(), *_placed(kept.ticket))
            except (Exception, SystemExit) as error:  # a policy's, of whoever wrote it
                why = f"policies: {error}"
        kept.why_not = why
        if why is None:
            self.names[kept.name] = kept.ticket
            self.chains[kept.name] = chain

    def come_into_force(self, config: Config, ended: Ended, log: FilteringBoundLogger) -> None:
        """Another configuration is in force, or the first: it may have a place for tickets that had none. From
        now on tickets end.
        """
        self.config, self._ended, self._log = config, ended, log
        for kept in self.not_in_force():
            self._put_in_force(kept)
        if not self._told:
            self._told = True
            self._tell()

    # --- What other gateways have done, while it is our turn

    def brought(self, name: str, found: Mapping[str, Any]) -> None:
        """A ticket is kept so now: it was made, renewed or used."""
        kept = self._all.get(name)
        if name in self._gone:
            return  # ours, and to be removed
        if kept is not None and _is_same(kept, found):
            self._follow(kept, found)
            return
        if kept is not None:
            self._taken_away(kept)
        if len(self._all) >= MAX_TICKETS:
            unread: Unread | None = Unread(
                file_of(name), f"there are {MAX_TICKETS} tickets already"
            )
        else:
            unread = self._take_up(found)
        if unread is not None:
            self.not_read(unread)
        elif self._told:
            kept = self._all[name]
            ours = {"upstream": kept.ticket.upstream, "until": _end(kept)}
            self._log.info("ticket made", export=name, **ours, by=ANOTHER)

    def not_read(self, unread: Unread) -> None:
        """What is kept is no ticket."""
        if self._told:
            self._log.warning("ticket not read", file=unread.file, why=unread.why)
        else:
            self.unread.append(unread)

    def _follow(self, kept: IssuedTicket, found: Mapping[str, Any]) -> None:
        try:
            until = None if found.get("until") is None else seconds_of(found["until"])
            kept.is_used(_user_of(found.get("user")), _texts(found.get("at", []), "at"))
        except (ValueError, OverflowError) as error:
            self._log.warning("ticket not read", file=file_of(kept.name), why=str(error))
            return
        if until != kept.until:
            self._is_renewed(kept, until)
            ours = {"upstream": kept.ticket.upstream, "until": _end(kept)}
            self._log.info("ticket renewed", export=kept.name, **ours, by=ANOTHER)
        self._look_later(kept)

    def taken_away(self, name: str) -> None:
        """A ticket is not kept any more."""
        if (kept := self._all.get(name)) is not None:
            self._taken_away(kept)

    def _taken_away(self, kept: IssuedTicket) -> None:
        over = kept.over() or Over("the ticket was removed", expired=False)
        self._drop(kept)
        self._ended({id(kept.ticket): over})
        ours = {"upstream": kept.ticket.upstream, "until": _end(kept)}
        self._log.info("ticket removed", export=kept.name, **ours, by=ANOTHER)

    # --- Made, renewed, removed

    async def add(self, said: Mapping[str, Any], until: float | None, by: str) -> IssuedTicket:
        """Make a ticket. Raises `NoTicket`."""
        ticket = ticket_of(said, POLICIES_ALONE)
        async with self.turn:
            if ticket.name in self._all:
                raise NoTicket(f"there is a ticket {shown(ticket.name)} already")
            if len(self._all) >= MAX_TICKETS:
                raise NoTicket(f"there are {MAX_TICKETS} tickets, and no more may be: remove some")
            if wrong := [*misfits(self.config, ticket)]:
                raise NoTicket(*wrong)
            now = self._clock.wall()
            if until is not None and until <= now:
                raise NoTicket(f"{text_of(until)} is over already; it is {text_of(now)} here")
            assert self._store is not None
            kept = IssuedTicket(
                *(ticket, said, self._clock, now, until),
                gateway=self._store.gateway,
                idle=self._look_later,
            )
            kept.counts_from_now()
            await self._written(kept)
            self._enter(kept)
        self._log.info(
            "ticket made",
            export=kept.name,
            upstream=kept.ticket.upstream,
            until=_end(kept),
            by=by,
        )
        return kept

    async def renew(self, name: str, until: float | None, by: str) -> IssuedTicket:
        """Have a ticket be in force until another time. Raises `NoTicket`."""
        async with self.turn:
            kept = self._there(name)
            now = self._clock.wall()
            if until is not None and until <= now:
                raise NoTicket(f"{text_of(until)} is over already; it is {text_of(now)} here")
            before, kept.until = kept.until, until
            content = kept.on_disk()
            kept.until = before  # it is over as before, until the new time is on the disk
            await self._written(kept, content)
            self._is_renewed(kept, until)
        self._log.info(
            "ticket renewed",
            export=kept.name,
            upstream=kept.ticket.upstream,
            until=_end(kept),
            by=by,
        )
        return kept

    def _is_renewed(self, kept: IssuedTicket, until: float | None) -> None:
        kept.until = until
        kept.counts_from_now()
        self._look_later(kept)
        if kept.name in self.chains:
            self.chains[kept.name] = (kept.placed(), *self.chains[kept.name][1:])

    async def remove(self, name: str, by: str) -> str | None:
        """End a ticket and its sessions. Say why its file is there still, if it is. Raises `NoTicket`."""
        kept = self._there(name)
        self._drop(kept)
        self._log.info(
            "ticket removed",
            export=kept.name,
            upstream=kept.ticket.upstream,
            until=_end(kept),
            by=by,
        )
        self._ended({id(kept.ticket): Over("the ticket was removed", expired=False)})
        self._gone.append(name)  # for `watch`, if whoever asks goes before it is done
        async with self.turn:
            why = await self._files_removed([name])
        self._gone = [each for each in self._gone if each != name]
        return why

    async def begin_use(self, name: str, ticket: Ticket) -> None:
        """Note on the disk that a ticket is in use, if it is for one use. Raises `NoTicket`."""
        kept = self._all.get(name)
        if kept is None or kept.ticket is not ticket or not ticket.once or kept.begun:
            return  # if it is over, the rules say so
        async with self.turn:
            user = kept.user
            for tried in range(MOST_TRIES):
                if kept.begun or user is None or self._all.get(name) is not kept:
                    return
                if kept.kept_user not in (None, user):
                    raise NoTicket("the ticket is for one use, and another client uses it")
                used = {"user": list(user), **kept.used_at(here=True)}
                try:
                    await self._written(kept, {**kept.on_disk(), **used})
                except _Changed:
                    if tried == MOST_TRIES - 1:
                        raise
                    continue  # of two clients at two gateways the first has it
                kept.begins_use(user)

    def _there(self, name: str) -> IssuedTicket:
        kept = self._all.get(name)
        if kept is None or kept.over() is not None:
            raise NoTicket(f"there is no ticket {shown(name)}")
        return kept

    async def _written(self, kept: IssuedTicket, content: Mapping[str, Any] | None = None) -> None:
        """Have a ticket on the disk, whoever goes meanwhile. Raises `NoTicket`."""
        assert self._store is not None
        name, there = kept.name, self._all.get(kept.name)
        try:
            with trio.CancelScope(shield=True):
                await self._store.put(name, content or kept.on_disk())
        except TicketChanged as error:
            raise _Changed(str(error)) from None
        except NotKept as error:
            if there is None:
                self._gone.append(name)  # it may be there, and not for sure
                self._news.set()
            raise NoTicket(f"{self._store.place}: {error}") from None
        if self._all.get(name) is not there:
            await self._files_removed([name])
            raise NoTicket(f"the ticket {shown(name)} has ended meanwhile")

    async def _files_removed(self, names: Collection[str]) -> str | None:
        """Remove the files of tickets that are no more; say why one is there still."""
        assert self._store is not None
        gone = [name for name in names if name not in self._all]  # it may have been made anew
        try:
            with trio.CancelScope(shield=True):
                await self._store.drop(gone)
        except NotKept as error:
            why = f"{self._store.place}: {error}"
            self._log.warning("ticket not removed from the disk", tickets=len(gone), why=why)
            return why
        return None

    def _drop(self, kept: IssuedTicket) -> None:
        """It is there no more."""
        name = kept.name
        del self._all[name]
        del self._sorted[bisect_right(self._sorted, name) - 1]
        self.names.pop(name, None)
        chain = self.chains.pop(name, ())
        for placed in chain:
            try:
                placed.policy.retire()
            except (Exception, SystemExit):
                self._log.exception("a policy failed at the end of a ticket", policy=placed.name)

    # --- Over

    def _look_later(self, kept: IssuedTicket) -> None:
        """Have a ticket looked at when it may be over."""
        at = kept.next_look()
        if at >= kept.looked_at:
            return  # it is looked at before that
        kept.looked_at = at
        heappush(self._due, (at, next(self._number), kept))
        if len(self._due) > 2 * len(self._all) + AT_A_TIME:
            self._sort_anew()  # most are of times that are renewed
        self._news.set()

    def _sort_anew(self) -> None:
        for kept in self._all.values():
            kept.looked_at = kept.next_look()
        waiting = (each for each in self._all.values() if each.looked_at < inf)
        self._due = [(each.looked_at, next(self._number), each) for each in waiting]
        heapify(self._due)

    async def watch(self) -> None:
        """End tickets when they are over, and remove their files, until cancelled."""
        while True:
            await self.look()
            if self._gone:
                gone, self._gone = self._gone, []
                async with self.turn:
                    await self._files_removed(gone)
            leaving, self._leaving = self._leaving, []
            for kept in leaving:
                async with self.turn:
                    await self._leave(kept)
            wait = self._due[0][0] - self._clock.steady() if self._due else inf
            with trio.move_on_after(min(max(wait, 0), LOOK_SECONDS if self._due else inf)):
                await self._news.wait()
            self._news = trio.Event()

    async def _leave(self, kept: IssuedTicket) -> None:
        """Write down that the use of a ticket is not here any more, if that is so still."""
        if kept.has_left and self._all.get(kept.name) is kept:
            try:
                await self._written(kept, {**kept.on_disk(), **kept.used_at(here=False)})
                kept.is_left()
            except NoTicket:  # or it was changed, and may be over: it is looked at again
                kept.rejoin_until = self._clock.steady() + LOOK_SECONDS
            self._look_later(kept)

    async def look(self) -> None:
        """End what is over now."""
        if abs(self._clock.apart - self._apart) > SET_SECONDS:
            self._reckon_anew()
        while self._due and self._due[0][0] <= self._clock.steady():
            self._end_some()
            await trio.lowlevel.checkpoint()

    def _reckon_anew(self) -> None:
        """The clock on the wall was set. What is left of a ticket may become less by that, and never more."""
        self._apart = self._clock.apart
        for kept in self._all.values():
            before = kept.due
            kept.counts_from_now()
            kept.due = min(kept.due, before)
        self._sort_anew()

    def _end_some(self) -> None:
        over: dict[int, Over] = {}
        while self._due and self._due[0][0] <= self._clock.steady() and len(over) < AT_A_TIME:
            at, _number, kept = heappop(self._due)
            if at != kept.looked_at or self._all.get(kept.name) is not kept:
                continue  # it is looked at another time, or has gone
            kept.looked_at = inf
            why = kept.over()
            if why is None and kept.has_left:
                self._leaving.append(kept)
                continue
            if why is None:
                self._look_later(kept)
                continue
            over[id(kept.ticket)] = why
            self._drop(kept)
            self._gone.append(kept.name)
            self._log.info("ticket is over", export=kept.name, why=why.why)
        if over:
            self._ended(over)

    def close(self) -> None:
        """Let another gateway have the directory."""
        if self._store is not None:
            self._store.close()


class _Changed(NoTicket):
    """Another gateway has changed it at the same moment."""


def _is_same(kept: IssuedTicket, found: Mapping[str, Any]) -> bool:
    """Say whether what is kept is a ticket that we have, and not another one of its name."""
    return bool(kept.said == found["ticket"] and text_of(kept.made) == found.get("made"))


def _end(kept: IssuedTicket) -> str:
    return "it is removed" if kept.until is None else text_of(kept.until)


def _user_of(user: object) -> tuple[str, ...] | None:
    """Read who uses a ticket. Raises ValueError."""
    if user is None:
        return None
    return _texts(user, "user")


def _texts(found: object, key: str) -> tuple[str, ...]:
    """Read a list of texts. Raises ValueError."""
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(f"expected a list of texts as {key}, got {found}")
    return tuple(found)


def _placed(ticket: Ticket) -> Iterable[Placed]:
    """Give the policies that a ticket names."""
    if ticket.policies:
        from gateway.access.loading import made  # costs nothing where there are no policies

        for use in ticket.policies:
            yield Placed(made(use), use.name, use.observed, use.options)

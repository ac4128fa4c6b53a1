"""Tickets on their way from the older process to the newer one; `gateway.tickets.keeping` has the theory.

While the newer process is prepared, the older one tells it all tickets, and then each change; so the newer one
reads nothing of the directory, and has them as they are in the moment in which it begins to accept. It has the
directory by the older one's descriptor, lock and all.

The older one begins no change any more when the newer one is ready, and says `go` after the last one is done.
So whoever is told that a ticket was made finds it in the newer process.

A configuration that has no place for a ticket in force is refused, as a reload with it would be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from gateway.admin.control import ControlAnswer
from gateway.config import NoTicket
from gateway.handover.message import ChannelMessage, NotUnderstood
from gateway.upgrade.errands import Errands
from gateway.wire.handshake import shown

if TYPE_CHECKING:
    from gateway.tickets.book import Book  # costs nothing where there are no tickets
    from gateway.tickets.kept import IssuedTicket, Over

AT_A_TIME = 40
"""Tickets that are told before the sessions have their turn: a millisecond."""

BEGIN = "begin-use"
"""The errand by which a use begins."""


@dataclass(eq=False)
class TicketsThere:
    """What the newer process was told, before it has a book of its own."""

    directory: Path
    descriptor: int
    """Of the directory, with the older process's lock."""
    said: dict[str, ChannelMessage] = field(default_factory=dict)
    """The tickets, by their names."""
    complete: bool = False

    def heard(self, message: ChannelMessage) -> None:
        """Take what is told. Raises `NotUnderstood`."""
        if message.kind == "ticket":
            self.said[_name(message)] = message
        elif message.kind == "ticket-over":
            self.said.pop(message["name"], None)
        else:
            self.complete = True

    def is_at(self, directory: Path) -> bool:
        """Say whether they are kept there."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), directory.stat())
        except OSError:
            return False

    def taken(self) -> int:
        """Give the descriptor, which is the caller's then."""
        descriptor, self.descriptor = self.descriptor, -1
        return descriptor

    def close(self) -> None:
        """Leave the directory to others."""
        if self.descriptor >= 0:
            os.close(self.taken())

    def fill(self, book: Book) -> list[str]:
        """Have a book have them, which the older process keeps; say which could not be in force any more, and
        why. Raises `NotUnderstood`.
        """
        book.keeping.is_kept_by(_nobody)
        for message in self.said.values():
            follow(book, message)
        wrong = []
        for name, message in self.said.items():
            kept = book.get(name)
            if message["in-force"] and (kept is None or kept.why_not is not None):
                why = "it is not understood" if kept is None else kept.why_not
                wrong.append(f"ticket {shown(name)} could not be in force any more: {why}")
        return wrong


async def _nobody(_name: str, _user: tuple[str, ...]) -> str | None:
    """Nobody is served yet."""
    return None


def follow(book: Book, message: ChannelMessage, *, with_files: bool = False) -> None:
    """Have a book follow what another process has said. Raises `NotUnderstood`."""
    if message.kind == "ticket-over":
        from gateway.tickets.kept import Over

        over = Over(message["why"], message["expired"])
        book.following.follow_end(message["name"], over, with_file=with_files)
        return
    due = message.said.get("due")
    try:
        book.following.follow(message["file"], due if isinstance(due, int | float) else inf)
    except (AttributeError, KeyError, TypeError) as error:
        raise NotUnderstood(f"expected a ticket, got {message.said!r:.80} ({error!r})") from None


def _name(message: ChannelMessage) -> str:
    ticket = message["file"].get("ticket")
    name = ticket.get("name") if isinstance(ticket, dict) else None
    if not isinstance(name, str):
        raise NotUnderstood(f"expected a ticket with a name, got {message.said!r:.80}")
    return name


class TicketsOfTwo:
    """The tickets of one of the two processes, and what it has to do with the other's. `say` tells that
    something, `tasks` end with the gateway.
    """

    def __init__(
        self,
        book: Book | None,
        say: Callable[[ChannelMessage], None],
        errands: Errands,
        tasks: trio.Nursery,
    ) -> None:
        self._book = book
        self._say = say
        self._errands = errands
        self._tasks = tasks
        self._rests: trio.CancelScope | None = None

    # --- The older process

    def begin(self) -> None:
        """Tell all of them, and then each change."""
        if self._book is not None:
            self._book.say = self._say_one
            self._tasks.start_soon(self._say_all, self._book)

    async def _say_all(self, book: Book) -> None:
        last: str | None = None
        while part := book.after(last, AT_A_TIME):
            for kept in part:
                self._say_one(kept, None)
            last = part[-1].name
            await trio.lowlevel.checkpoint()
        self._say(ChannelMessage("tickets-said"))

    def _say_one(self, kept: IssuedTicket, over: Over | None) -> None:
        if over is not None:
            said = {"name": kept.name, "why": over.why, "expired": over.expired}
            self._say(ChannelMessage("ticket-over", said))
            return
        due = None if kept.due == inf else kept.due
        in_force = kept.why_not is None
        said = {"file": kept.on_disk(), "due": due, "in-force": in_force}
        self._say(ChannelMessage("ticket", said))

    def when_at_rest(self, then: Callable[[], object]) -> None:
        """Begin no change any more, and go on when none is under way: at once, where there are no tickets."""
        if self._book is None:
            then()
        else:
            self._rests = trio.CancelScope()
            self._tasks.start_soon(self._rest, self._book, self._rests, then)

    async def _rest(self, book: Book, until: trio.CancelScope, then: Callable[[], object]) -> None:
        with until:
            async with book.my_turn():
                then()
                await trio.sleep_forever()

    def go(self) -> None:
        """The newer process keeps them from now on."""
        if self._book is not None:
            self._book.say = None
            self._book.keeping.is_kept_by(self._ask)
        self._work_again()

    async def _ask(self, name: str, user: tuple[str, ...]) -> str | None:
        answer = await self._errands.send(BEGIN, {"name": name, "user": [*user]})
        if answer is None:
            return None
        return "" if answer.ok else "; ".join(answer.problems) or "it is refused"

    def take_back(self) -> None:
        """The newer process has died, or was never there: they are kept here."""
        self.are_ours_alone()
        self._work_again()

    def _work_again(self) -> None:
        if self._rests is not None:
            self._rests.cancel()

    # --- The newer process

    def keep(self) -> None:
        """They are kept here from now on, and the older process has a copy."""
        if self._book is not None:
            self._book.keeping.is_kept_here(read_again=False)
            self._book.say = self._say_one

    def are_ours_alone(self) -> None:
        """The other process has ended. If it has kept them, something may be on the disk that it has not
        said.
        """
        if self._book is not None:
            self._book.say = None
            if self._book.is_elsewhere:
                self._book.keeping.is_kept_here(read_again=True)

    async def begin_use(self, asked: Mapping[str, Any]) -> ControlAnswer:
        """Do the errand by which a use begins."""
        name, user = asked.get("name"), asked.get("user")
        is_user = isinstance(user, list) and all(isinstance(each, str) for each in user)
        if self._book is None or not isinstance(name, str) or not is_user:
            return ControlAnswer(False, problems=("there are no tickets here",))
        try:
            await self._book.begin_use_elsewhere(name, tuple(user or ()))
        except NoTicket as error:
            return ControlAnswer(False, problems=error.problems)
        return ControlAnswer(True)

    # --- Both

    def heard(self, message: ChannelMessage, *, with_files: bool = False) -> None:
        """Follow the other process. `with_files`: it may not come to remove those of tickets that are over.
        Raises `NotUnderstood`.
        """
        if self._book is not None:
            follow(self._book, message, with_files=with_files)

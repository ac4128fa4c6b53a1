"""Tickets as they are kept, whoever has done it: read at the start, and followed from then on.

Somebody else may keep the same tickets: other gateways of a fleet (`gateway.fleet.tickets`), another process of
this one (`gateway.tickets.keeping`), or this gateway before it was started. What we hear is the same each time:
the content of a ticket's file as it is now, or that there is none any more. So it is followed in one way. A
ticket that we do not have is taken up. If we have another one of its name, it takes that one's place. If we
have it, its time and its use become what is kept. Nothing is written.

Two things differ: whether the news may be older than what we have done ourselves, and who has logged it.

- What another process says (`follow`, `follow_end`) is newer than all that we know.
- What is found where tickets are kept (`brought`, `taken_away`) may be a ticket of ours that is over and about
  to be removed. That is not taken up again. Nobody says there why one has gone: then its time is over, or it
  was removed.
- Each gateway of a fleet has a log of its own, so what another one has done is logged here as well. What the
  other process has done, it has logged.

What is found is followed while it is our turn. What another process says is followed at once, because as long
as it keeps the tickets nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from gateway.config import NoTicket
from gateway.plural import plural
from gateway.tickets.clock import Clock
from gateway.tickets.kept import IssuedTicket, Over, issued, text_of, until_of, use_of
from gateway.tickets.roll import REMOVED, Roll
from gateway.tickets.store import MAX_TICKETS, Unread, file_of, read_all

MOST_TOLD = 20
"""Files that cannot be read and are told of, each in a line of the log. The others are counted."""

ANOTHER = "another gateway of the fleet"
"""Who has made, renewed or removed a ticket that is brought."""


LEFT_OUT: Mapping[str, None] = {"made": None, "until": None, "user": None}
"""What a file may leave out, and means by that. A process says all of it."""


class Following:
    """Has the tickets of a roll be as they are kept. `gateway`: what this one is called, where others have the
    same tickets.
    """

    def __init__(self, roll: Roll, clock: Clock, gateway: str | None) -> None:
        self._roll = roll
        self._clock = clock
        self._gateway = gateway
        self._told = False
        self.unread: list[Unread] = []
        """The files of which no tickets came, until they are told of."""

    # --- The start

    def read(self, directory: Path) -> None:
        """Take up what is on the disk. Raises `OSError` for the directory."""
        for found in read_all(directory):
            unread = found if isinstance(found, Unread) else self._take_up(found)
            if unread is not None:
                self.unread.append(unread)

    def tell(self) -> None:
        """Say, once, what of the disk was not taken up. From now on each is said when it comes."""
        if self._told:
            return
        self._told, log = True, self._roll.log
        for unread in self.unread[:MOST_TOLD]:
            log.warning("ticket not read", file=unread.file, why=unread.why)
        if (more := len(self.unread) - MOST_TOLD) > 0:
            log.warning(
                "ticket not read", file=f"{plural(more, 'file')} more", why="see those before"
            )
        for kept in self._roll.not_in_force()[:MOST_TOLD]:
            log.warning("ticket is not in force", export=kept.name, why=kept.why_not)

    def not_read(self, unread: Unread) -> None:
        """What is kept is no ticket."""
        if self._told:
            self._roll.log.warning("ticket not read", file=unread.file, why=unread.why)
        else:
            self.unread.append(unread)

    # --- Found where they are kept

    def brought(self, found: Mapping[str, Any]) -> None:
        """A ticket is kept so now: it was made, renewed or used."""
        if found["ticket"]["name"] not in self._roll.gone:  # else it is ours, and to be removed
            self.follow({**LEFT_OUT, **found})

    def taken_away(self, name: str) -> None:
        """A ticket is not kept any more, and nobody says why."""
        if (kept := self._roll.all.get(name)) is not None:
            self._end(kept, kept.over() or REMOVED)

    # --- Said by another process

    def follow(self, found: Mapping[str, Any], due: float = inf) -> None:
        """A ticket is kept so now, as its file says it. `due`: it is over then on the steady clock, if not
        before. Raises `KeyError` for what no file says.
        """
        name = found["ticket"]["name"]
        if missing := LEFT_OUT.keys() - found.keys():
            raise KeyError(*sorted(missing))
        kept = self._roll.all.get(name)
        if kept is not None and kept.is_the_one(found):
            self._change(kept, found, due)
            return
        if kept is not None:
            self.taken_away(name)
        if (unread := self._take_up(found, due)) is not None:
            self.not_read(unread)
        elif self._is_news:
            kept = self._roll.all[name]
            ours = {"upstream": kept.ticket.upstream, "until": kept.ends}
            self._roll.log.info("ticket made", export=name, **ours, by=ANOTHER)

    def follow_end(self, name: str, over: Over, *, with_file: bool = False) -> None:
        """A ticket is over. `with_file`: whoever says so may not come to remove its file."""
        if (kept := self._roll.all.get(name)) is not None:
            self._end(kept, over)
        if with_file:
            self._roll.gone.append(name)

    # --- How

    @property
    def _is_news(self) -> bool:
        """Nobody has written it into this gateway's log."""
        return self._told and self._gateway is not None

    def _take_up(self, found: Mapping[str, Any], due: float = inf) -> Unread | None:
        """Take up the content of a file; say why, if it makes no ticket."""
        name = found["ticket"]["name"]
        if len(self._roll.all) >= MAX_TICKETS:
            return Unread(file_of(name), f"there are {MAX_TICKETS} tickets already")
        try:
            kept = issued(found, self._clock, self._gateway, self._roll.due.look_later)
        except (NoTicket, ValueError, OverflowError) as error:
            return Unread(file_of(name), str(error))
        kept.due = min(kept.due, due)
        self._roll.enter(kept)
        return None

    def _change(self, kept: IssuedTicket, found: Mapping[str, Any], due: float) -> None:
        """Have a ticket be in force until when it is kept so, and be used by whom."""
        try:
            until, (user, gateways) = until_of(found), use_of(found)
        except (ValueError, OverflowError) as error:
            self.not_read(Unread(file_of(kept.name), str(error)))
            return
        if not _same_time(until, kept.until):
            self._roll.renew(kept, until)
            if self._is_news:
                ours = {"upstream": kept.ticket.upstream, "until": kept.ends}
                self._roll.log.info("ticket renewed", export=kept.name, **ours, by=ANOTHER)
        kept.follows(user, gateways)
        kept.due = min(kept.due, due)
        self._roll.due.look_later(kept)

    def _end(self, kept: IssuedTicket, over: Over) -> None:
        self._roll.drop(kept)
        self._roll.ended({id(kept.ticket): over})
        if self._is_news:
            ours = {"upstream": kept.ticket.upstream, "until": kept.ends}
            self._roll.log.info("ticket removed", export=kept.name, **ours, by=ANOTHER)


def _same_time(one: float | None, other: float | None) -> bool:
    """Compare times as files have them, in milliseconds: whoever has renewed a ticket may have said more."""
    if one is None or other is None:
        return one is other
    return text_of(one) == text_of(other)

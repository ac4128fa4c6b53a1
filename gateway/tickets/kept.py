"""A ticket that was made, and how it stands: until when it is in force, and who uses it.

What a *use* is, of a ticket that is for one: the sessions of one client, from the first that opens it until
none has been open for `REJOIN_SECONDS`. Programs need that. nbdcopy opens one connection to ask whether there
may be more, and then four; qemu-img looks at a disk before it copies it; qemu and libvirt connect again after a
connection was lost. One client is who counts as one for `limit`, too (`Identity.key`): the same PSK user, the
same name in a certificate, the same Unix user; and if it has proved nothing, the same address. While one uses
it, others are refused. To look (INFO, LIST_META_CONTEXT) is no use.

That a use has begun is on the disk before the client is told that the export is open, with who it is. So after
a kill of the gateway at any moment nobody else gets it; the same client may come back, within `REJOIN_SECONDS`
of the start.

Several gateways may have the same tickets. Then each that a use has come to is named where the ticket is kept,
and takes itself out when nobody has come back to it for so long; the last one ends the use. One that was
killed, and does not come back, stays named: the use goes on until the ticket's time, for the same client and
nobody else.

All this is said by a policy, the first of the ticket's chain, so that whoever asks the rules asks the ticket.

While two processes serve (an upgrade), one of them keeps the tickets, and counts the sessions of both; only
there a use begins, and is over (`gateway.tickets.keeping`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from typing import Any, NamedTuple

from gateway.access.chain import Placed
from gateway.access.who import why_not
from gateway.config import Ticket
from gateway.config.tickets import ticket_of
from gateway.policy import Client, Denied, Policy, PrivateAttr, Session
from gateway.tickets.clock import Clock

REJOIN_SECONDS = 10
"""How long after its last session a use goes on. The next program of a script starts within a second; qemu
tries to reconnect about once a second; and so long may whoever has seen the client's traffic try to come as
it."""

POLICY_NAME = "ticket"
"""What stands in `use`, if anything did: how the log, `explain` and errors call it."""


class Over(NamedTuple):
    """Why a ticket is over."""

    why: str
    expired: bool
    """By itself: at its time, or after its use."""


def _nothing(_kept: IssuedTicket) -> None:
    pass


@dataclass(eq=False, slots=True)
class IssuedTicket:
    """A ticket that was made. Times of the wall are in seconds since the epoch."""

    ticket: Ticket
    said: Mapping[str, Any]
    """The ticket as it was said."""
    clock: Clock
    made: float
    until: float | None
    """When it is over, on the wall. None: when it is removed."""
    due: float = inf
    """When it is over, on the steady clock."""
    user: tuple[str, ...] | None = None
    """The identity of who uses it, if it is for one use."""
    begun: bool = False
    """Its use has come here, and that is where the ticket is kept."""
    gateway: str | None = None
    """What this gateway is called, where several have the ticket."""
    others: frozenset[str] = frozenset()
    """The other gateways that its use has come to."""
    kept_user: tuple[str, ...] | None = None
    """Whose use it is, as it is kept."""
    sessions: int = 0
    counts_uses: bool = True
    """The sessions that are known here are all that there are. Else another process says when a use is over."""
    rejoin_until: float = inf
    """Its use is over then, on the steady clock, if nobody comes back."""
    why_not: str | None = None
    """Why it is not in force, whatever the time: the configuration has no place for it."""
    idle: Callable[[IssuedTicket], None] = _nothing
    """Called when its use will be over if nobody comes back."""
    looked_at: float = inf
    """When the book will look at it, on the steady clock."""

    @property
    def name(self) -> str:
        """Its name, and the export's."""
        return self.ticket.name

    def counts_from_now(self) -> None:
        """Reckon what is left of it: it is made, read or renewed, or the clock on the wall was set."""
        self.due = inf if self.until is None else self.clock.due(self.until, self.made)

    def next_look(self) -> float:
        """Give when it may be over, on the steady clock."""
        return min(self.due, inf if self.sessions else self.rejoin_until)

    def over(self) -> Over | None:
        """Say whether it is over, and why."""
        steady = self.clock.steady()
        if self.until is not None and (steady >= self.due or self.clock.wall() >= self.until):
            return Over(f"the ticket was in force until {text_of(self.until)}", True)
        if self._nobody_came_back and not self.others:
            return Over("the ticket was for one use, and was used", True)
        return None

    @property
    def _nobody_came_back(self) -> bool:
        return self.begun and not self.sessions and self.clock.steady() >= self.rejoin_until

    @property
    def has_left(self) -> bool:
        """Its use goes on, but not here."""
        return self._nobody_came_back and bool(self.others)

    def is_left(self) -> None:
        """It is kept that its use is not here any more."""
        self.begun, self.rejoin_until = False, inf

    def is_used(self, user: tuple[str, ...] | None, gateways: Collection[str]) -> None:
        """It is kept so, by whomever: whose use it is, and which gateways that has come to."""
        self.kept_user, self.others = user, frozenset(gateways) - {self.gateway or ""}
        if not self.sessions:
            self.user = user

    def follows(self, user: tuple[str, ...] | None, gateways: Collection[str]) -> None:
        """Somebody else keeps it so. A use that another gateway has begun has not come here. One that another
        process has begun has: both are one gateway.
        """
        if self.gateway is not None:
            self.is_used(user, gateways)
        elif user is not None and not self.begun:
            self.begins_use(user)

    def refuses(self, client: Client) -> str | None:
        """Say why a client does not get the export."""
        if (over := self.over()) is not None:
            return over.why
        if (why := why_not(self.ticket.who, client.identity)) is not None:
            return f"the ticket is not for it: {why}"
        if self.user not in (None, client.identity.key):
            return "the ticket is for one use, and another client uses it"
        return None

    def used_by(self, client: Client) -> None:
        """A session of a client begins."""
        self.sessions += 1
        if self.ticket.once:
            self.user = client.identity.key

    def used_elsewhere(self, client: Client) -> bool:
        """Another process has a session of a client: count it, unless another client uses the ticket. Whose use
        it is, is said when that begins.
        """
        if self.ticket.once and self.user not in (None, client.identity.key):
            return False
        self.sessions += 1
        return True

    def begins_use(self, user: tuple[str, ...]) -> None:
        """The disk has whose use it is. Whoever had asked may have gone meanwhile."""
        self.begun, self.user, self.kept_user = True, user, user
        self._waits_for_more()

    def counts_them_all(self, *, counts: bool) -> None:
        """From now on the sessions of all processes are counted here; or another one says when its use is
        over.
        """
        self.counts_uses, self.rejoin_until = counts, inf
        if self.begun:
            self._waits_for_more()

    def _waits_for_more(self) -> None:
        if self.counts_uses and not self.sessions:
            self.rejoin_until = self.clock.steady() + REJOIN_SECONDS
            self.idle(self)

    def left(self) -> None:
        """A session has ended."""
        self.sessions -= 1
        if self.sessions or not self.ticket.once:
            return
        if self.begun:
            self._waits_for_more()
        else:
            self.user = self.kept_user  # it was not opened after all

    @property
    def ends(self) -> str:
        """Until when it is in force, as the log has it."""
        return "it is removed" if self.until is None else text_of(self.until)

    def is_the_one(self, found: Mapping[str, Any]) -> bool:
        """Say whether a file is of this ticket, and not of another one of its name."""
        return bool(self.said == found["ticket"] and text_of(self.made) == found["made"])

    def on_disk(self) -> dict[str, Any]:
        """Give what its file says; `issued` reads it."""
        until = None if self.until is None else text_of(self.until)
        user = self.user if self.begun else self.kept_user
        return {
            "ticket": self.said,
            "made": text_of(self.made),
            "until": until,
            "user": None if user is None else list(user),
            **self.used_at(here=self.begun),
        }

    def used_at(self, *, here: bool) -> dict[str, Any]:
        """Give where its use has come to, as its file says it, if there are several gateways."""
        if self.gateway is None:
            return {}
        return {"at": sorted({*self.others, self.gateway} if here else self.others)}

    def placed(self) -> Placed:
        """Give the policy that speaks for it."""
        terms = TicketTerms()
        terms._kept = self
        options: dict[str, Any] = {}
        if self.until is not None:
            options["until"] = text_of(self.until)
        options |= {key: self.said[key] for key in ("once", "who") if key in self.said}
        return Placed(terms, POLICY_NAME, options=options)


def issued(
    found: Mapping[str, Any],
    clock: Clock,
    gateway: str | None,
    idle: Callable[[IssuedTicket], None],
) -> IssuedTicket:
    """Read a ticket from what its file says. Its policies are looked at when it is put in force. Raises
    `NoTicket`, ValueError, OverflowError.
    """
    said, (user, gateways) = found["ticket"], use_of(found)
    kept = IssuedTicket(
        *(ticket_of(said), said, clock, seconds_of(found.get("made")), until_of(found)),
        gateway=gateway,
        idle=idle,
    )
    kept.is_used(user, gateways)
    kept.begun = user is not None and (gateway is None or gateway in gateways)
    kept.counts_from_now()
    return kept


def until_of(found: Mapping[str, Any]) -> float | None:
    """Read from a file when its ticket is over, on the wall. Raises ValueError, OverflowError."""
    until = found.get("until")
    return None if until is None else seconds_of(until)


def use_of(found: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Read from a file who uses its ticket, and which gateways that has come to. Raises ValueError."""
    user = found.get("user")
    return None if user is None else _texts(user, "user"), _texts(found.get("at", []), "at")


def _texts(found: object, key: str) -> tuple[str, ...]:
    """Read a list of texts. Raises ValueError."""
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(f"expected a list of texts as {key}, got {found}")
    return tuple(found)


class TicketTerms(Policy):
    """Lets in whom a ticket is for, as long as it is in force."""

    _kept: IssuedTicket = PrivateAttr()

    def admit(self, client: Client) -> None:
        """Refuse whom it is not for."""
        if (why := self._kept.refuses(client)) is not None:
            raise Denied(why)

    def join(self, session: Session) -> Policy:
        """Count a session."""
        self.admit(session.client)
        self._kept.used_by(session.client)
        return self

    def stands_elsewhere(self, session: Session) -> bool:
        """Count a session of another process."""
        return self._kept.used_elsewhere(session.client)

    def leave(self, session: Session) -> None:
        """Count it no more."""
        self._kept.left()


def text_of(seconds: float) -> str:
    """Give a time of the wall as files and people have it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def seconds_of(text: object) -> float:
    """Read such a time. Raises ValueError, OverflowError."""
    if not isinstance(text, str):
        raise ValueError(f"expected a time in quotes, got {text}")
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f'expected a time with its zone, as in "2026-12-24T18:00:00Z", got {text}')
    return moment.astimezone(UTC).timestamp()  # which no year after 9999 has

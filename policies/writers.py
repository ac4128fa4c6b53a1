"""Let only so many clients write at a time: two machines on one disk destroy it.

At most `most` identities (default 1) may be writers of an export at a time. Others see the export read-only,
or are refused with `others = "refuse"`. An identity is a PSK user, else a certificate's issuer and subject,
else a Unix user, else an address. All sessions of one identity take one place together, so a client with
several connections (MULTI_CONN) needs no more. Two virtual machines that come from one host with the same
certificate are one writer: give each its own certificate, or its own PSK user.

A client takes a place by opening the export, whether or not it is going to write, and even if another policy
makes it read-only. If readers have a `[[rule]]` of their own, put `writers` into the rule of those who may
write, not into the `[[export]]`. In a rule, every export has places of its own.

A place is free when the last session of its identity has ended. A client that was given the export read-only
meanwhile keeps it so until it connects again. A client that is lost without a word keeps its place until
keepalive finds out (`keepalive-seconds` of `[[listen]]`). That is for the better: nobody knows whether it is
dead. A client that was killed keeps its place until what it had under way has been done, for up to 30 s.

The server knows nothing of this lock. Not counted are writers that reach the disk past this gateway, by
another export that leads to it, or by a rule or export that has no `writers`, or one of its own. On reload, a
smaller `most` takes no place from anybody. Sessions that began before there was this policy have no place,
and go on writing.

nbdkit has no such filter; its limit filter with `limit=1` refuses every second connection.

    policies = [ { use = "writers", most = 1, others = "read-only" } ]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Self

from gateway.policy import Denied, Field, Flag, Policy, PrivateAttr, Scope, Session, View

_Identity = tuple[str, ...]


class _Reader(Policy):
    """Stands in the place of `Writers` for those who come too late."""

    def describe(self, view: View) -> View:
        return view.having(Flag.READ_ONLY)


@dataclass
class _Places:
    """Who writes. An identity that has no session any more has no entry, nor has an export without one."""

    taken: dict[str, dict[_Identity, set[Session]]] = field(default_factory=dict)
    """Export -> identity -> sessions."""

    def free(self, session: Session, most: int) -> bool:
        """Say whether the identity has a place, or may have one."""
        here = self.taken.get(session.export, {})
        return session.client.identity.key in here or len(here) < most

    def take(self, session: Session) -> None:
        """Take a place."""
        who = session.client.identity.key
        self.taken.setdefault(session.export, {}).setdefault(who, set()).add(session)

    def give_back(self, session: Session) -> None:
        """Free its place if it was the last one of its identity; a reader has none."""
        here, who = self.taken.get(session.export, {}), session.client.identity.key
        sessions = here.get(who, set())
        sessions.discard(session)
        if not sessions:
            here.pop(who, None)
        if not here:
            self.taken.pop(session.export, None)


class Writers(Policy):
    """`use = "writers"`."""

    most: int = Field(1, ge=1, description="How many identities may write at a time.")
    others: Literal["read-only", "refuse"] = Field(
        "read-only", description="What becomes of those for whom there is no place."
    )

    # Sessions leave the instance that they joined, so it and its successors have the same places.
    _places: _Places = PrivateAttr(default_factory=_Places)

    def peek(self, session: Session) -> Policy:
        """Say what it would be: a writer or a reader."""
        if self._places.free(session, self.most):
            return self
        if self.others == "refuse":
            writers = "another client has" if self.most == 1 else "others have"
            raise Denied(f"{writers} it open for writing, and no more than {self.most} may")
        return _Reader()

    def join(self, session: Session) -> Policy:
        """Take a place, or stand there as a reader."""
        stands = self.peek(session)
        if stands is self:
            self._places.take(session)
        return stands

    def stands_elsewhere(self, session: Session) -> bool:
        """Give its identity a place if there is one: there it may be a reader, too."""
        stands = self._places.free(session, self.most)
        if stands:
            self._places.take(session)
        return stands

    def remembers(self) -> Scope:
        """Every export has its own places."""
        return "export"

    def leave(self, session: Session) -> None:
        """Give the place back."""
        self._places.give_back(session)

    def inherit(self, before: Self) -> None:
        """Leave their places to those who are here."""
        self._places = before._places

"""Limit how many connections there are, how many commands are under way, and how long they may be.

At least one of these has to be given:

- `connections`: how many sessions there may be at a time where the policy stands. In an `[[export]]`, these
  are the sessions of that export; in a `[[rule]]`, all sessions for which the rule decides, of whatever
  export.
- `connections-per-identity`: how many of them one client may have. A client is known by its PSK user, else
  its certificate's issuer and subject, else its Unix user, else its address.
- `connections-per-address`: how many of them may come from one IP address, whoever the clients are. Unix
  sockets and vsock have no address, and are not counted. A whole network behind one router has one address; a
  client that has IPv6 usually has 2^64 of them.
- `in-flight`: how many commands of one session may be under way; the next one is not read until one of them
  is answered.
- `request-size`: the longest READ or WRITE. It is told as a block size, and a longer request gets EINVAL.
  proto.md lets clients that do not look at block sizes send 32 MiB, so such clients get errors.

A client that is one too many is refused with a text that says which limit it has met. A client with several
connections (MULTI_CONN) needs a place for each. A connection that is lost without a word keeps its place
until keepalive finds out (`keepalive-seconds` of `[[listen]]`), so leave room for a client that comes again.

On reload, smaller numbers end no session; they hold for new ones. `in-flight` and `request-size` hold at
once. Sessions that began before there was a `limit` here are not counted.

nbdkit's limit filter has `connections` alone. Its default is 1, and 0 means no limit; here, what is left out
is not limited.

    policies = [ { use = "limit", connections = 4, connections-per-identity = 2, in-flight = 64 } ]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from pydantic import model_validator

from gateway.policy import (
    BlockSizes,
    Cmd,
    Denied,
    Field,
    Headcount,
    Policy,
    PrivateAttr,
    Scope,
    Session,
    Size,
    Table,
    View,
    format_size,
)

SMALLEST_REQUEST_BYTES = 512
"""proto.md's smallest preferred block; the maximum may not be below it."""


_SESSIONS = ("sessions",)


class _Counts(Counter[tuple[str, ...]]):
    """Who is here, by what is counted. What has gone to 0 has no entry."""

    def add(self, session: Session, number: int) -> None:
        """Count a session (1), or count it no more (-1)."""
        for by in (_SESSIONS, *_whose(session)):
            self[by] += number
            if not self[by]:
                del self[by]


def _whose(session: Session) -> list[tuple[str, ...]]:
    """Give what a session counts in beside all: its identity, and its address, if it has one."""
    identity = session.client.identity
    found: list[tuple[str, ...]] = [("identity", *identity.key)]
    if identity.address is not None:
        found.append(("address", str(identity.address)))
    return found


class Limit(Policy):
    """`use = "limit"`."""

    connections: int | None = Field(None, ge=1, description="Sessions here at a time.")
    connections_per_identity: int | None = Field(
        None, ge=1, description="Sessions of one identity here at a time."
    )
    connections_per_address: int | None = Field(
        None, ge=1, description="Sessions from one IP address here at a time."
    )
    in_flight: int | None = Field(
        None, ge=1, description="Commands of one session that may be under way."
    )
    request_size: Size | None = Field(None, description="Longest READ or WRITE.")

    # Everything is counted, whatever is limited: the next configuration may limit something else. Those who
    # are here leave the instance that they joined, so it and its successors have the same counts.
    _counts: _Counts = PrivateAttr(default_factory=_Counts)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.model_fields_set:
            names = (option.alias or name for name, option in type(self).model_fields.items())
            raise ValueError(f"expected one of {', '.join(names)} at least, got none")
        if self.request_size is not None and self.request_size < SMALLEST_REQUEST_BYTES:
            raise ValueError(
                f"expected a request-size of {SMALLEST_REQUEST_BYTES} or more, "
                f"got {format_size(self.request_size)}"
            )
        return self

    def peek(self, session: Session) -> Policy:
        """Say whether there is room."""
        for each in self.counted(session):
            here = self._counts[each.by]
            if here >= each.most:
                raise Denied(each.full(here))
        return self

    def join(self, session: Session) -> Policy:
        """Count the session, if there is room."""
        self.peek(session)
        self._counts.add(session, 1)
        return self

    def stands_elsewhere(self, session: Session) -> bool:
        """Count a session of another process."""
        self._counts.add(session, 1)
        return True

    def remembers(self) -> Scope:
        """All of this place, unless it limits each session by itself."""
        counted = (
            self.connections,
            self.connections_per_identity,
            self.connections_per_address,
        )
        return "session" if counted == (None, None, None) else "place"

    def counted(self, session: Session) -> Sequence[Headcount]:
        """Say what is limited of what it counts in."""
        limited = {
            "sessions": (self.connections, ""),
            "identity": (self.connections_per_identity, " of this identity"),
            "address": (self.connections_per_address, " from this address"),
        }
        return [
            Headcount(by, most, whose)
            for by in (_SESSIONS, *_whose(session))
            for most, whose in (limited[by[0]],)
            if most is not None
        ]

    def leave(self, session: Session) -> None:
        """Count it no more."""
        self._counts.add(session, -1)

    def describe(self, view: View) -> View:
        """Tell the longest request."""
        if self.request_size is None or self.request_size >= view.block_sizes.maximum:
            return view
        return replace(view, block_sizes=_capped(view.block_sizes, self.request_size))

    def commands(self, table: Table) -> None:
        """Limit the longest request, and the commands under way."""
        if self.in_flight is not None:
            table.limit_in_flight(self.in_flight)
        if self.request_size is not None:
            text = f"no more than {format_size(self.request_size)} at a time"
            for command in (Cmd.READ, Cmd.WRITE):
                table.limit_length(command, self.request_size, text=text)

    def inherit(self, before: Self) -> None:
        """Go on counting those who are here."""
        self._counts = before._counts


def _capped(sizes: BlockSizes, most: int) -> BlockSizes:
    maximum = most - most % sizes.minimum
    if not maximum:
        raise Denied(
            f"requests may have {format_size(most)}, and the export's smallest block is "
            f"{format_size(sizes.minimum)}"
        )
    # The preferred block is a power of two, and not above the maximum ("Size constraints").
    preferred = min(sizes.preferred, 1 << maximum.bit_length() - 1)
    return BlockSizes(sizes.minimum, preferred, maximum)

"""Ranges of an upstream's export that one command has to itself for a while.

A WRITE that does not fill whole blocks of the upstream is read-modify-write here: between the read and the
write nobody else may write to those blocks, from whichever session. So all sessions of one upstream's
export share one `RangeLocks`. Who has to keep others away claims a range, in upstream offsets, widened to
blocks.

Most writes are whole blocks, and go on as they come without asking for anything. A claim waits for those
that are under way and overlap it; and while there is any claim, writes that begin claim their range as
well. Who comes later waits for whoever overlaps before it, granted or not: nobody is overtaken, so nobody
starves.

A grant is told by `tell` and at no other time: that a range is free is found while a scanner is in the
middle of a buffer, and whoever is granted it goes on at once, perhaps in that very session.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.protocol.commands import WRITE_CLASS

Entry = tuple[int, int, int, int]
"""(cookie, word, offset, length) of a command under way; see `traffic`."""

ASK = 1 << 32
"""Set in the word of an entry that belongs to a job; no word on the wire has that bit. Jobs claim for
themselves."""


@dataclass(slots=True, eq=False)
class Held:
    """One claim on the bytes from `start` up to `end`."""

    start: int
    end: int
    granted: Callable[[], None] = field(repr=False)
    """Called by `tell` when a claim that had to wait is granted."""
    owner: dict[int, Entry] | None = field(default=None, repr=False)
    """The in-flight table of the session that claims."""
    claims_before: int = 0
    """How many earlier claims overlap this one."""
    writes_before: list[tuple[dict[int, Entry], int]] = field(default_factory=list, repr=False)
    """Writes without a claim that overlap and are under way: the table they are in, and their key."""

    @property
    def is_granted(self) -> bool:
        """Nothing is waited for."""
        return not self.claims_before and not self.writes_before


class RangeLocks:
    """The claims on one export. A job that waits for one is a command under way, so each session has at most
    `MAX_IN_FLIGHT`, and lists are short.
    """

    def __init__(self) -> None:
        self._tables: list[dict[int, Entry]] = []
        self._claims: list[Held] = []
        self._to_tell: list[Held] = []
        self._telling = False

    @property
    def in_use(self) -> bool:
        """Sessions take part."""
        return bool(self._tables)

    @property
    def busy(self) -> bool:
        """There are claims, so that who writes has to claim."""
        return bool(self._claims)

    def join(self, in_flight: dict[int, Entry]) -> None:
        """A session takes part: what it has under way counts from now on."""
        self._tables.append(in_flight)

    def leave(self, in_flight: dict[int, Entry]) -> None:
        """A session has ended; what it had under way is waited for no longer."""
        self._tables = [table for table in self._tables if table is not in_flight]
        in_flight.clear()
        self.look_again()

    def claim(self, held: Held) -> bool:
        """Claim a range; say whether it is granted at once. Otherwise `tell` will call `held.granted`."""
        held.claims_before = sum(_overlap(held, other) for other in self._claims)
        held.writes_before = [
            (table, cookie)
            for table in self._tables
            for cookie, (_cookie, word, offset, length) in table.items()
            if not word & ASK
            and word & 0xFFFF in WRITE_CLASS
            and offset < held.end
            and held.start < offset + length
        ]
        self._claims.append(held)
        return held.is_granted

    def release(self, held: Held) -> None:
        """Give a claim up, granted or not."""
        at = self._claims.index(held)
        del self._claims[at]
        for other in self._claims[at:]:
            if _overlap(held, other):
                other.claims_before -= 1
                if other.is_granted:
                    self._to_tell.append(other)

    def look_again(self) -> None:
        """Replies have come: grant what waited for the writes that they were for."""
        for held in self._claims:
            if held.writes_before:
                held.writes_before = [
                    (table, cookie) for table, cookie in held.writes_before if cookie in table
                ]
                if held.is_granted:
                    self._to_tell.append(held)

    def waiting_for(self, in_flight: dict[int, Entry]) -> list[Held]:
        """Give the claims of other sessions that wait for this one."""
        found: list[Held] = []
        own: list[Held] = []  # those that were claimed before the one that is looked at
        for held in self._claims:
            if held.owner is in_flight:
                own.append(held)
            elif any(_overlap(held, before) for before in own) or any(
                table is in_flight for table, _cookie in held.writes_before
            ):
                found.append(held)
        return found

    def tell(self) -> None:
        """Tell those whose claims have been granted. Not to be called while any scanner is at work."""
        if self._telling:  # the loop below will come to it: no recursion from grant to grant
            return
        self._telling = True
        try:
            while self._to_tell:
                held = self._to_tell.pop(0)
                if held in self._claims:
                    held.granted()
        finally:
            self._telling = False


def _overlap(one: Held, other: Held) -> bool:
    return one.start < other.end and other.start < one.end

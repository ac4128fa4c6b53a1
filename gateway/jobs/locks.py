"""Ranges of a disk that one command has to itself for a while.

A WRITE that does not fill whole blocks of the upstream is read-modify-write here: between the read and the
write no session may write to those blocks. So all sessions on one disk share one `RangeLocks`. A command that
has to keep others away claims a range, in upstream offsets, widened to blocks.

Most writes are whole blocks, and go on as they come, without a claim. A claim waits for the writes that are
under way and overlap it. While there is any claim, every write that begins claims its range as well. A claim
waits for all earlier claims that overlap it, granted or not: nobody is overtaken, so nobody starves.

**Disks that may be one.** Some servers have one disk under all names, and NBD has no way to ask. So a claim
keeps out of the way of the server's other disks as well, its *kin*. But the kin may just as well be other
disks, with clients and storage of their own, and no disk may wait for another one's server. Therefore

- only what is under way counts for kin. A claim that still waits for its own disk keeps no kin waiting. When it
  has its own disk's range to itself, it is *ready*: now it waits for what is under way on its kin, and later
  claims wait for it. What is ready waits only for what was ready before it. So nobody waits in a circle, and
  nobody is overtaken for ever;
- a session whose link is lost is *loose*: what it had claimed and sent no longer counts for kin, nor does
  what it claims until it has a link again. Otherwise kin would wait through a reconnect, or for
  `late-write-seconds`. This has a price: if they are one disk after all, what the session does after the loss
  may undo what was written under another name at that moment;
- a session is loose, too, if it keeps kin waiting too long with one and the same command (`waits_for_kin`). It
  is loose until something of it ends.

On its own disk none of this makes a difference: there a claim counts until it is released.

Only `tell` tells of a grant. We find out that a range is free while a scanner is in the middle of a buffer, and
whoever is granted it goes on at once, perhaps in that very session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from gateway.protocol.commands import WRITE_CLASS

Entry = tuple[int, int, int, int]
"""(cookie, word, offset, length) of a command under way; see `traffic`."""

ASK = 1 << 32
"""Set in the word of an entry that belongs to a job; no word on the wire has that bit. Jobs claim for
themselves."""

InFlight = dict[int, Entry]


@dataclass(slots=True, eq=False)
class _Session:
    """What a session has under way, and what of it counts for kin."""

    in_flight: InFlight
    lost: bool = False
    """Its link is lost."""
    slow: bool = False
    """It has kept kin waiting too long with a command that is still under way."""
    loose_to: int = -1
    """What was sent with cookies up to this one does not count for kin."""

    @property
    def loose(self) -> bool:
        """What it claims does not count for kin."""
        return self.lost or self.slow

    def writes(self, held: Held) -> Iterator[_Write]:
        """Give the writes under way that overlap a claim. Those of jobs are left out: jobs claim for
        themselves.
        """
        for cookie, (_cookie, word, offset, length) in self.in_flight.items():
            if word & ASK or word & 0xFFFF not in WRITE_CLASS:
                continue
            if offset < held.end and held.start < offset + length:
                yield self, cookie


_Write = tuple[_Session, int]
"""A write under way: whose it is, and its key in that in-flight table."""


@dataclass(slots=True, eq=False)
class Held:
    """One claim on the bytes from `start` up to `end`."""

    start: int
    end: int
    granted: Callable[[], None] = field(repr=False)
    """Called by `tell` when a claim that had to wait is granted."""
    owner: InFlight | None = field(default=None, repr=False)
    """The in-flight table of the session that claims."""
    claims_before: int = 0
    """How many earlier claims of the same disk overlap this one."""
    writes_before: list[_Write] = field(default_factory=list, repr=False)
    """Writes without a claim that overlap this one and are under way on its own disk."""
    ready: bool = False
    """It has its range on its own disk."""
    kin_claims: list[Held] = field(default_factory=list, repr=False)
    """What it has to wait for then: overlapping claims of kin, and their writes without a claim."""
    kin_writes: list[_Write] = field(default_factory=list, repr=False)
    loose: bool = False
    """It does not count for kin."""
    over: bool = False
    """It has been released."""

    @property
    def is_granted(self) -> bool:
        """It waits for nothing more."""
        return self.ready and not self.kin_claims and not self.kin_writes


Wait = tuple[Held, Held | _Write]
"""A claim, and something of kin that it waits for."""


class Kin:
    """The disks of one server, of which some may be one disk."""

    def __init__(self) -> None:
        self.disks: list[RangeLocks] = []
        """The disks that have sessions."""
        self.claims = 0
        """How many claims there are on all of them."""
        self.waiting: list[Held] = []
        """Claims that wait for kin, and for nothing else."""
        self.to_tell: list[Held] = []
        self.telling = False

    def look_again(self) -> None:
        """Something does not count any more: grant what waited for it."""
        for held in self.waiting:
            held.kin_claims = [each for each in held.kin_claims if not (each.over or each.loose)]
            held.kin_writes = [
                (session, cookie)
                for session, cookie in held.kin_writes
                if cookie in session.in_flight and cookie > session.loose_to
            ]
            if held.is_granted:
                self.to_tell.append(held)
        self.waiting = [held for held in self.waiting if not (held.is_granted or held.over)]


class RangeLocks:
    """The claims on one disk. A job that waits for one is a command under way, so each session has at most
    `MAX_IN_FLIGHT`, and lists are short.
    """

    def __init__(self, kin: Kin | None = None) -> None:
        """Without `kin`, it is surely another disk than all others."""
        self._kin = Kin() if kin is None else kin
        self._sessions: dict[
            int, _Session
        ] = {}  # by what names an in-flight table while it is there
        self._claims: list[Held] = []

    @property
    def in_use(self) -> bool:
        """Sessions take part."""
        return bool(self._sessions)

    @property
    def busy(self) -> bool:
        """There are claims, here or on kin. So whoever writes has to claim, too."""
        return bool(self._kin.claims)

    def join(self, in_flight: InFlight) -> None:
        """A session takes part: what it has under way counts from now on."""
        if not self._sessions:
            self._kin.disks.append(self)
        self._sessions[id(in_flight)] = _Session(in_flight)

    def leave(self, in_flight: InFlight) -> None:
        """A session has ended. Nobody waits for what it had under way any longer."""
        if self._sessions.pop(id(in_flight), None) is not None and not self._sessions:
            self._kin.disks.remove(self)
        in_flight.clear()
        self.look_again()

    def claim(self, held: Held) -> bool:
        """Claim a range; say whether it is granted at once. Otherwise `tell` will call `held.granted`."""
        held.claims_before = sum(_overlap(held, other) for other in self._claims)
        held.writes_before = [
            write for session in self._sessions.values() for write in session.writes(held)
        ]
        owner = self._sessions.get(id(held.owner))
        held.loose = owner is not None and owner.loose
        self._claims.append(held)
        self._kin.claims += 1
        return self._make_ready(held)

    def _make_ready(self, held: Held) -> bool:
        """If nothing is in the way of a claim on this disk, have it wait for kin. Say whether it is granted."""
        if held.claims_before or held.writes_before:
            return False
        held.ready = True
        for disk in self._kin.disks:
            if disk is not self:
                held.kin_claims += disk._in_the_way_of(held)
                for session in disk._sessions.values():
                    held.kin_writes += (w for w in session.writes(held) if w[1] > session.loose_to)
        if not held.is_granted:
            self._kin.waiting.append(held)
        return held.is_granted

    def _in_the_way_of(self, held: Held) -> Iterator[Held]:
        return (
            each for each in self._claims if each.ready and not each.loose and _overlap(held, each)
        )

    def release(self, held: Held) -> None:
        """Give a claim up, granted or not."""
        held.over = True
        at = self._claims.index(held)
        del self._claims[at]
        self._kin.claims -= 1
        for other in self._claims[at:]:
            if _overlap(held, other):
                other.claims_before -= 1
                if self._make_ready(other):
                    self._kin.to_tell.append(other)
        owner = self._sessions.get(id(held.owner))
        if owner is not None:
            owner.slow = False
        if self._kin.waiting:
            self._kin.look_again()

    def look_again(self) -> None:
        """Replies have come: grant what waited for the writes that they were for."""
        for held in self._claims:
            if held.writes_before:
                held.writes_before = [
                    (session, cookie)
                    for session, cookie in held.writes_before
                    if cookie in session.in_flight
                ]
                if self._make_ready(held):
                    self._kin.to_tell.append(held)
        if self._kin.waiting:
            self._kin.look_again()

    def waiting_for(self, in_flight: InFlight) -> list[Held]:
        """Give the claims of other sessions on this disk that wait for this one."""
        found: list[Held] = []
        own: list[Held] = []  # those that were claimed before the one that is looked at
        for held in self._claims:
            if held.owner is in_flight:
                own.append(held)
            elif any(_overlap(held, before) for before in own) or any(
                session.in_flight is in_flight for session, _cookie in held.writes_before
            ):
                found.append(held)
        return found

    # --- What counts for kin

    def loosen(self, in_flight: InFlight) -> None:
        """What a session has under way does not count for kin any more. Nor does what it claims, until
        `tighten`.
        """
        session = self._sessions.get(id(in_flight))
        if session is not None:
            session.lost = True
            self._loosen(session)

    def _loosen(self, session: _Session) -> None:
        session.loose_to = max(session.in_flight, default=session.loose_to)
        for held in self._claims:
            held.loose = held.loose or held.owner is session.in_flight
        self._kin.look_again()

    def tighten(self, in_flight: InFlight | None) -> None:
        """What a session claims from now on counts for kin again."""
        session = self._sessions.get(id(in_flight))
        if session is not None:
            session.lost = False

    @property
    def kin(self) -> Kin:
        """The disks that may be this one, and this one."""
        return self._kin

    def waits_for_kin(self) -> Iterator[tuple[Wait, InFlight]]:
        """Give the claims, of any disk, that wait for something that is under way on kin, and whose that is."""
        for held in self._kin.waiting:
            for claim in held.kin_claims:
                if claim.owner is not None and claim.is_granted:
                    yield (held, claim), claim.owner
            for write in held.kin_writes:
                yield (held, write), write[0].in_flight

    def loosen_kin(self, in_flight: InFlight) -> None:
        """A session of kin has kept others waiting too long."""
        for disk in self._kin.disks:
            session = disk._sessions.get(id(in_flight))
            if session is not None:
                session.slow = True
                disk._loosen(session)

    def tell(self) -> None:
        """Tell those whose claims were granted. Must not be called while a scanner is at work."""
        kin = self._kin
        if not kin.to_tell or kin.telling:  # the loop comes to it: no recursion from grant to grant
            return
        kin.telling = True
        try:
            while kin.to_tell:
                held = kin.to_tell.pop(0)
                if not held.over:
                    held.granted()
        finally:
            kin.telling = False


def _overlap(one: Held, other: Held) -> bool:
    return one.start < other.end and other.start < one.end

"""What a worker has borrowed for its sessions of numbers that hold for all workers (`gateway.workers.ledger`).

The supervisor is asked before a session joins the policies of its chain, and told when it has left them: by
the session's `Membership`, which is told of every end. Whoever stops waiting for the answer gives back what is
lent to him all the same, when it comes.

A policy that is only observed keeps nobody out. It is asked for by itself; that there was no place is noted,
and it counts the session no more than it would with one process. Of a rate that is only observed each worker
reckons for itself: what it would have held back is the least that it would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count
from typing import Any

import trio

from gateway.access.chain import Placed, objection
from gateway.handover.message import ChannelMessage
from gateway.policy import Bucket, Denied, Headcount, Session
from gateway.workers.loans import Loans
from gateway.workers.rendezvous import key_bytes

Say = Callable[[ChannelMessage], None]

KEY_BYTES = 16
"""Of a hash: that two numbers have one is less likely than that all processors are wrong at once."""

_ENDS = "the gateway is shutting down"


@dataclass(eq=False)
class _Want:
    """What the supervisor was asked for, and has not answered yet."""

    keys: list[str]
    answered: trio.Event = field(default_factory=trio.Event)
    lent: bool = False
    full: tuple[int, int] | None = None
    """Which one was full, and how many there are."""
    given_up: bool = False
    """Nobody waits for it any more."""


@dataclass(eq=False)
class _Borrowed:
    """What one session has of it; it leaves with the session's other policies."""

    say: Say
    keys: list[str] = field(default_factory=list)
    would: dict[int, str] = field(default_factory=dict)

    def leave(self, _session: Session) -> None:
        """Give it back."""
        keys, self.keys = self.keys, []
        if keys:
            self.say(ChannelMessage("gives back", {"keys": keys}))


class Borrower:
    """Asks the supervisor by `say`, and is told by `heard` what it answers."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._asked: dict[int, _Want] = {}
        self._numbers = count(1)
        self._over = False
        self.loans = Loans(say)

    def shares(self, placed: Placed, bucket: Bucket) -> None:
        """See `gateway.access.chain.Bookkeeper`."""
        self.loans.lend_to(_hashed(*placed.place, *bucket.shared), bucket)

    async def reserve(self, chain: Sequence[Placed], session: Session) -> _Borrowed:
        """See `gateway.access.chain.Bookkeeper`."""
        borrowed = _Borrowed(self._say)
        try:
            for number, placed in enumerate(chain):
                counted = placed.policy.counted(session)
                if not counted:
                    continue
                try:
                    borrowed.keys += await self._borrow(placed, counted)
                except Denied as denied:
                    if not placed.observed:
                        raise
                    borrowed.would[number] = objection(placed, denied)
        except BaseException:
            borrowed.leave(session)
            raise
        return borrowed

    async def _borrow(self, placed: Placed, counted: Sequence[Headcount]) -> list[str]:
        number = next(self._numbers)
        asked = _Want([key_of(placed, each) for each in counted])
        if self._over:
            raise Denied(_ENDS)
        self._asked[number] = asked
        said = {"number": number, "keys": asked.keys, "most": [each.most for each in counted]}
        self._say(ChannelMessage("borrows", said))
        try:
            await asked.answered.wait()
        except trio.Cancelled:
            asked.given_up = True
            if asked.lent:
                self._say(ChannelMessage("gives back", {"keys": asked.keys}))
            raise
        if asked.full is not None:
            which, there = asked.full
            raise Denied(counted[which].full(there))
        if not asked.lent:
            raise Denied(_ENDS)
        return asked.keys

    def heard(self, said: Any) -> None:
        """Take an answer: what was asked for is lent, or one of it is full."""
        asked = self._asked.pop(said["number"], None)
        if asked is None:
            return
        asked.lent = not said["full"]
        if not asked.lent:
            which, there = said["full"]
            asked.full = which, there
        elif asked.given_up:
            self._say(ChannelMessage("gives back", {"keys": asked.keys}))
        asked.answered.set()

    def end(self) -> None:
        """The supervisor has ended: nobody lends anything any more."""
        self._over = True
        self.loans.end()
        for asked in self._asked.values():
            asked.answered.set()
        self._asked.clear()


def key_of(placed: Placed, counted: Headcount) -> str:
    """Give by what a number is known: its place, and what is counted there. Both may be long, as the names of
    certificates are, so it is a hash of them.
    """
    return _hashed(*placed.place, *counted.by)


def _hashed(*words: str) -> str:
    return blake2b(key_bytes(words), digest_size=KEY_BYTES).hexdigest()

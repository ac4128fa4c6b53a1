"""A disk whose home is this gateway, or was, or that somebody asks for: its tenure, and its links' sockets.

A link gets a socket that looks (`guarded`), under the tenure in which it was made. What becomes of the tenure
is decided elsewhere; here is what hangs by it. Two things are noted for the day when the disk is to be given
away:

- *unwell*: a link of this tenure has ended with something under way. What it had sent may come late, so the
  disk cannot be called given in good order before `late` has passed. With a fence nothing is taken for gone
  that is only old, so it never can;
- *moves*: it is being given away. Nobody opens it any more, here or from elsewhere, until that has been done or
  has failed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf
from weakref import WeakSet

import trio

from gateway.fleet.guarded import GuardedSocket
from gateway.fleet.held import HeldLease, boottime
from gateway.fleet.tenure import Tenure, TenureStage
from gateway.net.options import RelaySocket


class NotNow(Exception):
    """What was to be done of a disk cannot be done now; the text says why."""


@dataclass(eq=False)
class DiskHome:
    """One disk. `disk` is what the fleet knows it by, `name` what its server does (None: it is all disks of the
    server), `words` what people call it. `late` is how long a write to its server may be on its way, in
    seconds; infinite, where a fence is to be relied on and no time.
    """

    disk: str
    name: str | None
    words: str
    late: float
    tenure: Tenure = field(default_factory=lambda: Tenure(TenureStage.OVER))
    turn: trio.Lock = field(default_factory=trio.Lock)
    """Whose turn it is to ask etcd for it."""
    asking: int = 0
    """How many wait for it here."""
    moves: bool = False
    _sockets: WeakSet[GuardedSocket] = field(default_factory=WeakSet)
    _changed: trio.Event = field(default_factory=trio.Event)
    _unwell_until: float = -inf

    @property
    def is_ours(self) -> bool:
        """Etcd has said that the home is here, and it was not given away or lost since."""
        return self.tenure.stage is not TenureStage.OVER

    @property
    def has_links(self) -> bool:
        """There are connections to its server."""
        return any(each.fileno() >= 0 for each in self._sockets)

    @property
    def unwell_for(self) -> float:
        """How long it will take until nothing can come any more of links that have ended in this tenure with
        something under way, in seconds; 0: nothing can.
        """
        return max(0.0, self._unwell_until - boottime())

    def may(self, held: HeldLease) -> bool:
        """Say whether something may be sent to its server."""
        return self.tenure.may(held.lease, boottime())

    def serves(self, held: HeldLease) -> bool:
        """Say whether it may be opened here."""
        return self.may(held) and not self.moves

    def begin(self, tenure: Tenure) -> None:
        """Have a new tenure: nothing was sent in it."""
        self._unwell_until = -inf
        self.become(tenure)

    def become(self, tenure: Tenure) -> None:
        """Have the same tenure, further on."""
        self.tenure = tenure
        self.note_change()

    def note_change(self) -> None:
        """Have those look again who wait for it."""
        self._changed.set()
        self._changed = trio.Event()

    async def change(self) -> None:
        """Wait until something about it is otherwise."""
        await self._changed.wait()

    def cut(self) -> None:
        """Cut all its links."""
        for sock in list(self._sockets):
            sock.cut()

    def guard(self, held: HeldLease) -> Callable[[RelaySocket], RelaySocket]:
        """Give what gives a link its socket, in the tenure of now."""
        tenure = self.tenure

        def closed(well: bool) -> None:
            if self.tenure is tenure and not well:
                self._unwell_until = boottime() + self.late

        def guarded(sock: RelaySocket) -> RelaySocket:
            looks = GuardedSocket(sock, partial(self._may_in, held, tenure), closed, held.margin)
            self._sockets.add(looks)
            return looks

        return guarded

    def _may_in(self, held: HeldLease, tenure: Tenure) -> bool:
        return self.tenure is tenure and tenure.may(held.lease, boottime())

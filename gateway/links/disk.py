"""Which disk an export is, and what there is once for each disk, however many exports lead to it.

An export of ours leads to a server and a name there. Several exports may lead to one disk: two `[[export]]`s,
two `[upstream]`s with one address, or an export that was switched to where another one is. Sessions on one disk
affect each other, whichever export they have opened. So what they share belongs to the disk:

- `locks`: a read-modify-write keeps all other sessions out of its range;
- `fences`: nobody writes for a while where an old write may still come;
- `losses`: all who rely on what the server has lost have to be told. Its `witnesses` are what was flushed: they
  tell this disk from another one when a connection is made again;
- `trunk`: clients who share connections share one set of them. Of two sets, neither would know what the other
  has not flushed, and each would promise CAN_MULTI_CONN as if it were alone.

Two exports are surely one disk if their server is the same, and their name there. A server is known by its
address (`gateway.upstream.backends`), also after a reload. A switch takes a session from one disk to another.

Two names of one server are *maybe* one disk, for some servers have one disk under all names. We cannot try that
out: other servers make a disk for every name they are asked for, so we send a server no name that no client has
asked for. Such disks keep out of each other's ranges (`gateway.jobs.locks` says how far), and share nothing
else. If `canonical-names` of the upstream says that every name is a disk of its own, they do not share even
that.

A disk is there as long as anybody uses it. If somebody has still to be told of a loss, it is remembered after
that: `MOST_KEPT` disks whole, `MOST_NAMED` more by a hash of their names. Of the latter, the next who opens one
is told that something was lost, and not what. If there are more, all that is known is that it may be any disk
of that server.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from hashlib import blake2b
from weakref import WeakSet, WeakValueDictionary

import trio

from gateway.jobs.fences import Fences
from gateway.jobs.locks import Kin, RangeLocks
from gateway.links.fencing import lift
from gateway.links.trunk import Trunk
from gateway.losses.rule import Losses
from gateway.upstream.server import Server

MOST_KEPT = 1024
"""Disks without sessions of which we remember what they have lost. Clients choose the names, and each disk may
keep some ten KiB of ranges."""

MOST_NAMED = 65_536
"""Further disks of which we remember that they have lost something, by 64 bits of a hash of their name: half a
million bytes or so. If two names have the same hash, somebody gets one EIO too many; the chance of that is
one in 2**47."""

NOT_REMEMBERED = (
    "something was lost of this disk, or of one of its server, before this client opened it"
)

Key = tuple[Hashable, str]
"""Whose disks (`Server.disks`), and the name there."""


class Disk:
    """One export of one server. `keep` is called when its last user may have gone, `count_again` with how many
    bytes were written once more after a loss.
    """

    def __init__(
        self,
        key: Key,
        losses: Losses,
        kin: Kin | None,
        keep: Callable[[Disk], None],
        count_again: Callable[[Disk, int], None],
    ) -> None:
        self.key = key
        self.locks = RangeLocks(kin)
        self.fences = Fences()
        self.losses = losses
        self.turn = trio.Lock()
        """Whoever begins or exchanges the trunk has it."""
        self._keep = keep
        self._count_again = count_again
        self._trunk: Trunk | None = None
        self.trunks: WeakSet[Trunk] = WeakSet()
        """All that lead to it and somebody has still: a session's own ones, too."""

    @property
    def trunk(self) -> Trunk | None:
        """The connections that its clients share, if there are any that a client may still join."""
        return self._trunk if self._trunk is not None and self._trunk.stands else None

    @trunk.setter
    def trunk(self, trunk: Trunk) -> None:
        self._trunk = trunk

    @property
    def busy(self) -> bool:
        """Something is under way over it, or may still come, whoever has left: a trunk is not closed yet, or an
        old write may come late.
        """
        return bool(self.fences) or any(not each.closed.is_set() for each in self.trunks)

    async def lift_fences(self) -> None:
        """Take its fences away in time, whoever has gone meanwhile."""
        await lift(self.fences)

    def is_left(self) -> None:
        """A session or a trunk has gone."""
        self._trunk = self.trunk
        self._keep(self)

    def wrote_again(self, size: int) -> None:
        """So many bytes were written once more after a loss."""
        self._count_again(self, size)


class Disks:
    """The disks of all servers. `make` gives the losses of a server's disk, by the disk's name; `start_soon`
    begins a task; `count_again` is told of which disk how many bytes were written once more.
    """

    def __init__(
        self,
        make: Callable[[Server, str], Losses] = lambda _server, _name: Losses(),
        start_soon: Callable[[Callable[[], Awaitable[object]]], None] = lambda _task: None,
        count_again: Callable[[Disk, int], None] = lambda _disk, _size: None,
    ) -> None:
        self._make = make
        self._start_soon = start_soon
        self._count_again = count_again
        self._there: WeakValueDictionary[Key, Disk] = WeakValueDictionary()
        self._kept: OrderedDict[Disk, None] = OrderedDict()
        """Those of which somebody has still to be told something, in the order in which their last users left.
        """
        self._named: OrderedDict[tuple[Hashable, bytes], None] = OrderedDict()
        """The same of more disks, as (whose disks, hash of the name)."""
        self._told: dict[Hashable, set[bytes]] = {}
        """Servers of which even that was too much -> hashes of the names whose next client has been told since.
        """
        self._kin: WeakValueDictionary[Hashable, Kin] = WeakValueDictionary()

    def at(self, server: Server, name: str) -> Disk:
        """Give the disk that a server has under a name."""
        key = server.disks, name
        disk = self._there.get(key)
        if disk is None:
            kin = (
                None
                if server.settings.canonical_names
                else self._kin.setdefault(server.disks, Kin())
            )
            losses = self._make(server, name)
            disk = self._there[key] = Disk(key, losses, kin, self._look_at, self._count_again)
            disk.fences.raised = partial(self._lift, weakref.ref(disk))
            if self._may_owe(key):
                disk.losses.tell_the_next(NOT_REMEMBERED)
                self._look_at(disk)  # who asks for it need not open it
        return disk

    def trunk(self, server: Server, name: str) -> Trunk | None:
        """Give the connections that the clients of a disk share, if there are any that a client may still join.
        No disk is made for whoever only asks.
        """
        disk = self._there.get((server.disks, name))
        return None if disk is None else disk.trunk

    def _lift(self, which: weakref.ref[Disk]) -> None:
        """The first fence of a disk was raised: keep the disk until its last fence has gone."""
        disk = which()
        if disk is not None:
            self._start_soon(disk.lift_fences)

    def of(self, trunk: Trunk) -> Disk:
        """Give the disk that a trunk is of."""
        return self.at(trunk.server, trunk.terms.name)

    def shared(self, server: Server) -> list[str]:
        """Give the names of those of a server's disks to which clients share connections at this moment."""
        return [
            name
            for (disks, name), disk in self._there.items()
            if disks == server.disks and disk.trunk
        ]

    def there(self) -> list[Disk]:
        """Give the disks that somebody uses, or has still to be told of."""
        return list(self._there.values())

    def untold(self) -> list[tuple[Key, Disk]]:
        """Give the disks that have lost something of which not everybody was told, with their keys. A disk that
        is only remembered by a hash has no name: `unnamed` counts those.
        """
        return [(key, disk) for key, disk in self._there.items() if disk.losses.untold()]

    @property
    def unnamed(self) -> int:
        """How many disks are remembered by a hash of their names alone."""
        return len(self._named)

    def remembered(self) -> tuple[list[tuple[Hashable, bytes]], list[Hashable]]:
        """Give what is remembered of disks that have no name here: whose disks, and the hash of the name; and
        whose disks may all have lost something.
        """
        return list(self._named), list(self._told)

    def remember(self, disks: Hashable, name: bytes | None) -> None:
        """Remember what another process did: a disk by the hash of its name, or (None) all of a server's."""
        if name is None:
            self._told[disks] = set()
        else:
            self._named[disks, name] = None

    def forget_unnamed(self) -> None:
        """Forget those: nobody is told any more of what they have lost."""
        self._named.clear()
        self._told.clear()

    def _look_at(self, disk: Disk) -> None:
        """Keep a disk if somebody has still to be told what it has lost, whoever else uses it; else let it
        go.
        """
        self._kept.pop(disk, None)
        if not disk.losses.must_remember:
            return
        self._kept[disk] = None
        if len(self._kept) > MOST_KEPT:
            oldest, _none = self._kept.popitem(last=False)
            disks, name = oldest.key
            if oldest.losses.must_remember:  # somebody else may have been told meanwhile
                self._named[disks, _hash(name)] = None
        if len(self._named) > MOST_NAMED:
            (disks, _name), _none = self._named.popitem(last=False)
            self._told.setdefault(disks, set())

    def _may_owe(self, key: Key) -> bool:
        """Say whether a disk that is not remembered whole may have lost something. The caller tells its next
        client.
        """
        disks, name = key[0], _hash(key[1])
        if (disks, name) in self._named:
            del self._named[disks, name]
            return True
        told = self._told.get(disks)
        if told is None or name in told:
            return False
        if len(told) >= MOST_NAMED:
            told.clear()  # some are told twice
        told.add(name)
        return True


def _hash(name: str) -> bytes:
    return blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()

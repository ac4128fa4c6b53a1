"""Which disk an export is, and what there is once for each disk, whoever leads to it.

An export of ours leads to a server and a name there. Several may lead to one disk: by two `[[export]]`s, by two
`[upstream]`s with one address, by a switch to where another export is. What sessions on one disk do to each
other does not go by how they were led there, so it belongs to the disk, and whoever needs it asks the disk:

- `locks`: a read-modify-write keeps others out of its range, whatever name they have opened;
- `fences`: where an old write may still come, nobody writes for a while;
- `losses`: what the server has lost has to be told to all who rely on it; and its `witnesses`: what was flushed
  tells the disk from another one when a connection is made again;
- `trunk`: clients who share connections share one set of them. Two before one disk would not know of what the
  other has not flushed, and each would promise CAN_MULTI_CONN as if it were alone.

Two exports are surely one disk if the server is the same and the name there. Whether it is the same server is
decided by its address (`gateway.upstream.backends`), and stays so through reloads. What a
session is on may change: by a switch, which takes it from one disk to another.

Two names of one server are *maybe* one disk: some servers have one under all names, and no name that no
client asked for is ever sent to a server to find that out, for others make a disk for every name. Such disks
keep out of each other's ranges (`gateway.jobs.locks` has how far), and have nothing else in common.
They have not even that where `canonical-names` of the upstream says that names are disks there.

A disk is there as long as anybody uses it. One that still has to tell somebody something is remembered after
that: `MOST_KEPT` of them whole, `MOST_NAMED` more by a hash of their names, so that the next who opens one is
told, if not of what exactly. Beyond that there is only the word that it may be any of that server.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import trio

from gateway.jobs.fences import Fences
from gateway.jobs.locks import Kin, RangeLocks
from gateway.links.fencing import lift
from gateway.losses.rule import Losses
from gateway.upstream.server import Server

if TYPE_CHECKING:
    from gateway.links.trunk import Trunk  # which is made elsewhere, and put here

MOST_KEPT = 1024
"""Disks without sessions of which it is known what they have lost: names are the clients' choice, and each
may keep some ten KiB of ranges."""

MOST_NAMED = 65_536
"""Disks beyond these of which it is known that they have lost something, by 64 bits of a hash of their name:
half a million bytes or so. That two names have the same hash costs somebody one EIO, and is a matter of one
in 2**47."""

NOT_REMEMBERED = (
    "something was lost of this disk, or of one of its server, before this client opened it"
)

Key = tuple[Hashable, str]
"""Whose disks (`Server.disks`), and the name there."""


class Disk:
    """One export of one server. `keep` is told when its last user may have gone."""

    def __init__(
        self, key: Key, losses: Losses, kin: Kin | None, keep: Callable[[Disk], None]
    ) -> None:
        self.key = key
        self.locks = RangeLocks(kin)
        self.fences = Fences()
        self.losses = losses
        self.turn = trio.Lock()
        """Of whoever begins or exchanges the trunk."""
        self._keep = keep
        self._trunk: Trunk | None = None

    @property
    def trunk(self) -> Trunk | None:
        """The connections that its clients share, if there are such that one may still join."""
        return self._trunk if self._trunk is not None and self._trunk.stands else None

    @trunk.setter
    def trunk(self, trunk: Trunk) -> None:
        self._trunk = trunk

    async def lift_fences(self) -> None:
        """See to it that its fences are taken away in time, whoever has gone meanwhile."""
        await lift(self.fences)

    def is_left(self) -> None:
        """A session or a trunk has gone."""
        self._trunk = self.trunk
        self._keep(self)


class Disks:
    """Those of all servers. `make` gives the losses of a disk of a server, by its name; `start_soon` begins a
    task.
    """

    def __init__(
        self,
        make: Callable[[Server, str], Losses] = lambda _server, _name: Losses(),
        start_soon: Callable[[Callable[[], Awaitable[object]]], None] = lambda _task: None,
    ) -> None:
        self._make = make
        self._start_soon = start_soon
        self._there: WeakValueDictionary[Key, Disk] = WeakValueDictionary()
        self._kept: OrderedDict[Disk, None] = OrderedDict()
        """Those that owe something, in the order in which their last users have left."""
        self._named: OrderedDict[tuple[Hashable, bytes], None] = OrderedDict()
        """(whose disks, hash of the name) of those that owed something."""
        self._told: dict[Hashable, set[bytes]] = {}
        """Servers of which even that was too much -> hashes of the names whose openers have been told since."""
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
            disk = self._there[key] = Disk(key, losses, kin, self._look_at)
            disk.fences.raised = partial(self._lift, weakref.ref(disk))
            if self._may_owe(key):
                disk.losses.owe_the_next(NOT_REMEMBERED)
                self._look_at(disk)  # who asks for it may not open it
        return disk

    def _lift(self, which: weakref.ref[Disk]) -> None:
        """The first fence of a disk stands: it is there until the last has gone."""
        disk = which()
        if disk is not None:
            self._start_soon(disk.lift_fences)

    def of(self, trunk: Trunk) -> Disk:
        """Give the disk that a trunk is of."""
        return self.at(trunk.server, trunk.terms.name)

    def shared(self, server: Server) -> list[str]:
        """Give the names of a server's disks that clients share connections to at this moment."""
        return [
            name
            for (disks, name), disk in self._there.items()
            if disks == server.disks and disk.trunk
        ]

    def untold(self) -> list[tuple[Key, Disk]]:
        """Give the disks that have lost something of which not everybody was told, with their keys. What is
        only remembered by a hash has no name to be given by: `unnamed` counts it.
        """
        return [(key, disk) for key, disk in self._there.items() if disk.losses.untold()]

    @property
    def unnamed(self) -> int:
        """How many disks are remembered by a hash of their names alone."""
        return len(self._named)

    def forget_unnamed(self) -> None:
        """Nobody is told any more of what is not remembered by its name."""
        self._named.clear()
        self._told.clear()

    def _look_at(self, disk: Disk) -> None:
        """Keep a disk that owes something, whoever else does; let one go that does not."""
        self._kept.pop(disk, None)
        if not disk.losses.owes:
            return
        self._kept[disk] = None
        if len(self._kept) > MOST_KEPT:
            oldest, _none = self._kept.popitem(last=False)
            disks, name = oldest.key
            if oldest.losses.owes:  # somebody else may have been told meanwhile
                self._named[disks, _hash(name)] = None
        if len(self._named) > MOST_NAMED:
            (disks, _name), _none = self._named.popitem(last=False)
            self._told.setdefault(disks, set())

    def _may_owe(self, key: Key) -> bool:
        """Say whether a disk that is not remembered may have something to tell, and take it to be told."""
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

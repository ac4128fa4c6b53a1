"""Which disk an export is, and what there is once for each disk, whoever leads to it.

An export of ours leads to a server and a name there. Several may lead to one disk: by two `[[export]]`s, by two
`[upstream]`s with one address, by a switch to where another export is. What sessions on one disk do to each
other does not go by how they were led there, so it belongs to the disk, and whoever needs it asks the disk:

- `locks`: a read-modify-write keeps others out of its range, whatever name they have opened;
- `ledger`: what the server has lost has to be told to all who are on that disk;
- `trunk`: clients who share connections share one set of them. Two before one disk would not know of what the
  other has not flushed, and each would promise CAN_MULTI_CONN as if it were alone.

Two exports are surely one disk if the server is the same and the name there. Whether it is the same server is
decided by its address where servers are made (`gateway.upstream.maker`), and stays so through reloads. What a
session is on may change: by a switch, which takes it from one disk to another.

Two names of one server are *maybe* one disk: some servers have one under all names, and no name that no
client asked for is ever sent to a server to find that out, for others make a disk for every name. Such disks
keep out of each other's ranges (`gateway.relay.scan.locks` has how far), and have nothing else in common.
They have not even that where `canonical-names` of the upstream says that names are disks there.

A disk is remembered as long as anybody uses it, or has to be told what it has lost.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import trio

from gateway.relay.bundle.ledger import Ledger
from gateway.relay.scan.locks import Kin, RangeLocks
from gateway.upstream.server import Server

if TYPE_CHECKING:
    from gateway.relay.bundle.trunk import Trunk  # which is made elsewhere, and put here


class Disk:
    """One export of one server."""

    def __init__(self, kin: Kin | None) -> None:
        self.locks = RangeLocks(kin)
        self.ledger = Ledger()
        self.turn = trio.Lock()
        """Of whoever begins or exchanges the trunk."""
        self._trunk: Trunk | None = None

    @property
    def trunk(self) -> Trunk | None:
        """The connections that its clients share, if there are such that one may still join."""
        return self._trunk if self._trunk is not None and self._trunk.stands else None

    @trunk.setter
    def trunk(self, trunk: Trunk) -> None:
        self._trunk = trunk

    @property
    def in_use(self) -> bool:
        """Sessions or connections are on it, or somebody has to be told what it has lost."""
        return self.locks.in_use or self.ledger.in_use or self.turn.locked() or bool(self.trunk)


class Disks:
    """Those of all servers."""

    def __init__(self) -> None:
        self._disks: dict[tuple[Hashable, str], Disk] = {}
        self._kin: WeakValueDictionary[Hashable, Kin] = WeakValueDictionary()

    def at(self, server: Server, name: str) -> Disk:
        """Give the disk that a server has under a name. Those that nobody uses are forgotten."""
        key = server.disks, name
        if key not in self._disks:
            used = {k: disk for k, disk in self._disks.items() if disk.in_use}
            kin = None if server.canonical_names else self._kin.setdefault(server.disks, Kin())
            self._disks = {**used, key: Disk(kin)}
        return self._disks[key]

    def of(self, trunk: Trunk) -> Disk:
        """Give the disk that a trunk is of."""
        return self.at(trunk.server, trunk.terms.name)

    def shared(self, server: Server) -> list[str]:
        """Give the names of a server's disks that clients share connections to at this moment."""
        return [
            name
            for (disks, name), disk in self._disks.items()
            if disks == server.disks and disk.trunk
        ]

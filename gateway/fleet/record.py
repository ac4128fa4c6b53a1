"""Who may write to a disk, as etcd keeps it. Pure.

Two keys of etcd are of a disk. The one says who its home is; it is bound to that gateway's lease, and etcd
removes it when the lease ends. The other one, the *record*, is never removed by etcd. It has the gateways from
which something may still come: the home, and those before it that have ended without giving the disk away. So
whoever finds no home knows whether the last one has gone in good order.

What changes the one changes the other, in one transaction of etcd:

    take it     there is no home, and the record is as it was read: home = me, the record has me beside the rest
    clear it    the home is me: the record has me alone
    give it     the home is me: there is no home, and the record is without me

A gateway that dies between taking and clearing has cleared nothing: the next one finds all names that it found,
and its own. A gateway stands in a record once, however often it was started; so a record has no more names than
the fleet has had gateways.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

MOST_WRITERS = 1000
"""Names in a record: more gateways than a fleet has. Who takes a disk with so many is refused."""


class NotARecord(Exception):
    """What etcd has is no record of ours; the text says what was expected, and what came."""


@dataclass(frozen=True, slots=True)
class HomeRun:
    """A gateway that is the home of a disk, or was: one start of it."""

    gateway: str
    """Its name in the fleet."""
    run: str
    """Which start of it (`gateway.log.ids.RUN`)."""
    address: str = ""
    """Where other gateways reach it."""


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """From whom something may still come."""

    writers: tuple[HomeRun, ...] = ()

    def taken(self, me: HomeRun) -> DiskRecord:
        """Give the record after `me` has become the home."""
        return DiskRecord((*self._without(me), me))

    def before(self, me: HomeRun) -> tuple[HomeRun, ...]:
        """Give from whom something may still come when `me` becomes the home, an earlier start of the same
        gateway among them.
        """
        return tuple(each for each in self.writers if each != me)

    def cleared(self, me: HomeRun) -> DiskRecord:
        """Give the record after nothing can come any more from those before `me`."""
        return DiskRecord((me,))

    def given(self, me: HomeRun) -> DiskRecord:
        """Give the record after `me`, the home, has given the disk away: all that it sent was answered."""
        return DiskRecord(self._without(me))

    def _without(self, me: HomeRun) -> tuple[HomeRun, ...]:
        return tuple(each for each in self.writers if each.gateway != me.gateway)

    def encode(self) -> str:
        """Give it as etcd keeps it."""
        writers = [[each.gateway, each.run, each.address] for each in self.writers]
        return json.dumps({"v": 1, "writers": writers})


def record_of(text: str | None) -> DiskRecord:
    """Read what `encode` gave; None, where there is nothing: nobody has had the disk. Raises `NotARecord`."""
    if text is None:
        return DiskRecord()
    wrong = f"expected the record of a disk, of version 1, got {text:.80}"
    try:
        said = json.loads(text)
        writers = said["writers"]
        if said["v"] != 1 or not isinstance(writers, list) or len(writers) > MOST_WRITERS:
            raise NotARecord(wrong)
        return DiskRecord(tuple(_holder(each) for each in writers))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotARecord(wrong) from None


def _holder(said: object) -> HomeRun:
    if not isinstance(said, list) or not all(isinstance(each, str) for each in said):
        raise TypeError
    gateway, run, address = said
    return HomeRun(gateway, run, address)

"""Who may write to a disk, as etcd keeps it. Pure.

Two keys of etcd are of a disk. The one says who its home is; it is bound to that gateway's lease, and etcd
removes it when the lease ends. The other one, the *record*, is never removed by etcd. It has the gateways from
which something may still come: the home, and those before it that have ended without giving the disk away. So
whoever finds no home knows whether the last one has gone in good order.

What changes the one changes the other, in one transaction of etcd:

    take it     there is no home, and the record is as it was read: home = me, the record has me beside the rest
    clear it    the home is me: the record has me alone
    give it     the home is me: there is no home, and the record is without me

Beside them it has what was *lost* of the disk, as far as its clients have still to be told, from when it is
given away until it is taken. So that goes along with the disk. (Whether one client has lost nothing is no
matter for the record: a home may have given the disk away, and have ended that client's session before. So the
home is asked, `gateway.fleet.door`.)

A gateway that dies between taking and clearing has cleared nothing: the next one finds all names that it found,
and its own. A gateway stands in a record once, however often it was started; so a record has no more names than
the fleet has had gateways.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

MOST_WRITERS = 1000
"""Names in a record: more gateways than a fleet has. Who takes a disk with so many is refused."""


MOST_LOST_DISKS = 16
"""Names of disks in a record that have lost something, where all disks of a server are one to the fleet. Of
more, all disks of the server are said to have."""

MOST_LOST_RANGES = 512
"""Ranges in a record, of one name. Of more, the first byte and the last are said: who is told reads more again
than he must. So a record has less than a megabyte, and etcd takes one and a half (`--max-request-bytes`)."""


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
class LostOf:
    """What whoever opens a disk next has to be told."""

    name: str | None
    """Its name at the server; None: it may be any disk of that server."""
    why: str
    ranges: tuple[tuple[int, int], ...] = ()
    """Where, from the one to before the other; none, if that is not known."""


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """From whom something may still come."""

    writers: tuple[HomeRun, ...] = ()
    lost: tuple[LostOf, ...] = ()

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

    def given(self, me: HomeRun, lost: Collection[LostOf] = ()) -> DiskRecord:
        """Give the record after `me`, the home, has given the disk away: all that it sent was answered. `lost`
        is what somebody has still to be told.
        """
        return DiskRecord(self._without(me), tuple(_fewer(lost)))

    def _without(self, me: HomeRun) -> tuple[HomeRun, ...]:
        return tuple(each for each in self.writers if each.gateway != me.gateway)

    def encode(self) -> str:
        """Give it as etcd keeps it."""
        writers = [[each.gateway, each.run, each.address] for each in self.writers]
        said: dict[str, object] = {"v": 1, "writers": writers}
        if self.lost:
            said["lost"] = [[each.name, each.why, each.ranges] for each in self.lost]
        return json.dumps(said)


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
        lost = tuple(_lost(each) for each in said.get("lost", ()))
        return DiskRecord(tuple(_holder(each) for each in writers), lost)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotARecord(wrong) from None


def _holder(said: object) -> HomeRun:
    if not isinstance(said, list) or not all(isinstance(each, str) for each in said):
        raise TypeError
    gateway, run, address = said
    return HomeRun(gateway, run, address)


def _lost(said: object) -> LostOf:
    if not isinstance(said, list):
        raise TypeError
    name, why, ranges = said
    if not isinstance(why, str) or not isinstance(name, str | None):
        raise TypeError
    return LostOf(name, why, tuple((int(start), int(end)) for start, end in ranges))


def _fewer(lost: Collection[LostOf]) -> Collection[LostOf]:
    """Say no less with no more than a record has room for."""
    if len(lost) > MOST_LOST_DISKS:
        return [LostOf(None, next(iter(lost)).why)]
    return [
        each
        if len(each.ranges) <= MOST_LOST_RANGES
        else LostOf(each.name, each.why, ((min(each.ranges)[0], max(e for _s, e in each.ranges)),))
        for each in lost
    ]

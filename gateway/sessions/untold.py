"""What disks have lost of which not everybody was told, in words for an operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import trio

from gateway.links.disk import Disk, Key
from gateway.losses.rule import Untold
from gateway.plural import plural
from gateway.sessions.led import disks_at_home
from gateway.sessions.service import Service
from gateway.wire.handshake import shown
from gateway.wire.ranges import Range

MOST_RANGES = 16
"""How many ranges of a disk are named: whoever wants to know more reads all of it again. Beside them we say how
many bytes there are in all."""


MOST_NAMES = 4
"""How many names of ours are told for a disk: with a pattern, each of its clients may have one of his own."""

MOST_DISKS = 200
"""How many disks are shown at a time in names and numbers, so that an answer has less than
`MAX_ANSWER_BYTES`.
"""

ASKED_AT_A_TIME = 50
"""How many sessions, or exports, are asked for their disks before the others have their turn: a quarter of a
millisecond.
"""


def in_words(untold: Untold) -> str:
    """Say what may be lost, why, and who has not been told."""
    whom = []
    if untold.sessions:
        whom.append(f"{untold.sessions} session{'s' if untold.sessions > 1 else ''} not told yet")
    if untold.nobody:
        whom.append("whoever opens it next will be told")
    return f"{_where(untold.ranges)} may be lost ({'; '.join(untold.why)}): {', '.join(whom)}"


def _where(ranges: Iterable[Range]) -> str:
    all_ranges = list(ranges)
    if not all_ranges:
        return "something, it is not known where,"
    size = sum(end - start for start, end in all_ranges)
    named = ", ".join(f"{start}-{end - 1}" for start, end in all_ranges[:MOST_RANGES])
    more = len(all_ranges) - MOST_RANGES
    rest = f" and {plural(more, 'range')} more" if more > 0 else ""
    return f"{plural(size, 'byte')} ({named}{rest})"


def losses_shown(service: Service, names: Called, export: str | None = None) -> dict[str, Any]:
    """Give the same of all disks, or of an export's, in names and numbers (docs/status.md has the names)."""
    lost = []
    for called, disk in lost_disks(service, names, export):
        untold = disk.losses.untold()
        if untold is not None:
            lost.append(loss_shown(called, untold))
    return {
        "losses": lost[:MOST_DISKS],
        "more": max(0, len(lost) - MOST_DISKS),
        "unnamed": 0 if export is not None else service.disks.unnamed,
    }


def loss_shown(called: str, untold: Untold) -> dict[str, Any]:
    """Give what one disk has lost."""
    return {
        "disk": called,
        "why": list(untold.why),
        "bytes": sum(end - start for start, end in untold.ranges) or None,
        "ranges": [list(each) for each in untold.ranges[:MOST_RANGES]],
        "more_ranges": max(0, len(untold.ranges) - MOST_RANGES),
        "sessions_not_told": untold.sessions,
        "next_is_told": untold.nobody,
    }


def lost_disks(
    service: Service, names: Called, export: str | None = None
) -> list[tuple[str, Disk]]:
    """Give the disks that have lost something of which not everybody was told, each with what it is called. Of
    an export: the disks that its sessions are on, and the one that its next client will be on.
    """
    if export is None:
        return [(names.of(key), disk) for key, disk in service.disks.untold()]
    route = service.config.route(export)
    location = None if route is None else service.location(export, route)
    if location is not None:
        service.disk_at(location)  # one that is remembered by a hash alone is found by its name
    here = {each.disk for each in service.running if each.name == export}
    return [
        (names.of(key), disk)
        for key, disk in service.disks.untold()
        if disk in here or (location is not None and key == (location.server.disks, location.name))
    ]


class Called:
    """What disks are called: the name there and the server, and what our clients call it. All sessions and
    exports are asked once, however many disks there are. Made by `of_all`.
    """

    def __init__(self) -> None:
        self._servers: dict[object, str] = {}
        self._ours: defaultdict[Key, set[str]] = defaultdict(set)

    @classmethod
    async def of_all(cls, service: Service) -> Called:
        """Ask them, a few at a time: the others have their turn meanwhile."""
        found = cls()
        for server in service.led_to:
            found._servers.setdefault(server.disks, server.name)
            found._servers.setdefault(disks_at_home(server), f"{server.name}@home")
        for number, each in enumerate(list(service.running)):
            if number % ASKED_AT_A_TIME == 0:
                await trio.lowlevel.checkpoint()
            location = each.opened.location
            found._servers.setdefault(location.server.disks, location.server.name)
            found._ours[location.server.disks, location.name].add(each.name)
        for number, export in enumerate(service.config.exports):
            if number % ASKED_AT_A_TIME == 0:
                await trio.lowlevel.checkpoint()
            exact = export.exact_name
            route = None if exact is None else service.config.route(exact)
            there = None if exact is None or route is None else service.location(exact, route)
            if exact is not None and there is not None:
                found._ours[there.server.disks, there.name].add(exact)
        await trio.lowlevel.checkpoint()
        return found

    def of(self, key: Key) -> str:
        """Say which disk it is."""
        disks, name = key
        there = self._servers.get(disks)
        where = f"upstream {there}" if there else "an upstream that nothing leads to any more"
        ours = sorted(self._ours.get(key, ()))
        named = ", ".join(map(shown, ours[:MOST_NAMES]))
        more = f" and {len(ours) - MOST_NAMES} more" if len(ours) > MOST_NAMES else ""
        return f"{shown(name)} of {where}{f', export {named}{more}' if ours else ''}"

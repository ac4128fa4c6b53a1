"""The disks of a gateway of a fleet, as its member asks for them: their sessions, and what was lost of them.

A session is on a disk as its home serves it, or it is led to the home from here (`gateway.sessions.led`). Only
the first ones are asked for: the others have the disk at another gateway, or they have it by a session that
counts itself. So they keep no disk here, nothing of them is held, and they outlive whatever becomes of it.

Sessions that were led here outlive a move of their disk: whoever has led them goes after the home. Those whose
clients came in here, and are served here, do not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from gateway.fleet.home import DiskHome, NotNow
from gateway.fleet.record import LostOf
from gateway.hub.ends import Cause
from gateway.links.disk import NOT_REMEMBERED
from gateway.plural import plural
from gateway.sessions.holding import Holding, NotDone, Within
from gateway.sessions.pausing import COMMAND_SECONDS

if TYPE_CHECKING:
    from gateway.config import Upstream
    from gateway.sessions.opened import Location
    from gateway.sessions.service import Relayed, Service
    from gateway.upstream.server import Server

MOST_KEPT = 10_000
"""Connections that are remembered because nothing of their clients is lost: as many as may be led here at a
time. Of more, the first are forgotten, whose clients are then told of a loss that is none."""


class DisksHere:
    """A `FleetOffice`."""

    def __init__(self) -> None:
        self._kept: dict[str, None] = {}
        """Connections whose client lost nothing, by what they are called; the newest are the last."""
        self._service: Service
        self._disk_of: Callable[[Upstream, str], str | None]

    def begin(self, service: Service, disk_of: Callable[[Upstream, str], str | None]) -> None:
        """Have sessions from now on; `disk_of` gives by what the fleet knows a disk."""
        self._service, self._disk_of = service, disk_of

    def end_sessions(self, disk: str, why: str, *, lost: bool) -> None:
        """See `FleetOffice`."""
        seconds = 0 if lost else self._service.config.drain_seconds
        for running in self._running_on(disk):
            cause = Cause.HOME_LOST if lost else Cause.DRAIN
            running.relaying.finish(why, seconds, cause)

    def is_used(self, disk: str) -> bool:
        """See `FleetOffice`."""
        opening = (each.location for each in self._service.opening)
        return bool(self._running_on(disk)) or any(self._is_on(each, disk) for each in opening)

    def _is_on(self, location: Location, disk: str) -> bool:
        server = location.server
        at_home = server.recipe.at_home
        return not at_home and self._disk_of(server.settings, location.name) == disk

    def _running_on(self, disk: str) -> list[Relayed]:
        """Give the sessions of a disk that are served here."""
        running = list(self._service.running)
        return [each for each in running if self._is_on(each.opened.location, disk)]

    def why_stays(self, disk: str) -> str:
        """See `FleetOffice`."""
        running = self._running_on(disk)
        here = sum(not each.way for each in running)
        if here:
            clients = plural(here, "session whose client", "sessions whose clients")
            return f"{clients} came in here"
        untold = (each.losses.untold() for each in {each.disk for each in running})
        count = sum(each.sessions for each in untold if each is not None)
        have = plural(count, "session that has", "sessions that have")
        return f"{have} still to be told what was lost" if count else ""

    @asynccontextmanager
    async def at_rest(self, disk: str) -> AsyncIterator[None]:
        """See `FleetOffice`."""

        def names() -> set[str]:
            opening = [each for each in self._service.opening if self._is_on(each.location, disk)]
            return {each.name for each in self._running_on(disk)} | {
                each.grant.name for each in opening
            }

        # Those that are led wait for the ones that are served: they would never be quiet.
        holding = Holding(self._service, lambda location: not location.server.recipe.at_home)
        held = names()
        try:
            within = Within(COMMAND_SECONDS)
            await holding.hold(held, within, accept_loss=True, who="fleet drain")
        except NotDone as error:
            raise NotNow(str(error)) from None
        try:
            if names() - held:
                raise NotNow("somebody has opened it meanwhile")
            yield
        finally:
            holding.let_go_on(*held)

    def vouch(self, disk: str) -> None:
        """See `FleetOffice`."""
        self._kept |= {each.way: None for each in self._running_on(disk) if each.way}
        for each in [*self._kept][:-MOST_KEPT]:
            del self._kept[each]

    def has_kept(self, way: str) -> bool:
        """Say whether all is durable that was answered here on a connection of this name (`Given.way`), and
        nothing that came by it is under way: its disk was given away.
        """
        return way in self._kept

    def lost(self, home: DiskHome) -> Collection[LostOf]:
        """See `FleetOffice`."""
        disks, found = self._service.disks, list[LostOf]()
        for server in self._servers_of(home):
            # One that is remembered by a hash alone is found by its name.
            asked = None if home.name is None else disks.at(server, home.name)
            for each in disks.there() if asked is None else [asked]:
                key, name = each.key
                if key != server.disks:
                    continue
                untold, left = each.losses.untold(), each.losses.left_behind()
                why = [*(untold.why if untold else ()), *([left[0]] if left else ())]
                ranges = {*(untold.ranges if untold else ()), *(left[1] if left else ())}
                if why:
                    found.append(LostOf(name, "; ".join(dict.fromkeys(why)), tuple(sorted(ranges))))
            named, all_of = disks.remembered()
            if home.name is None and (
                server.disks in all_of or any(at == server.disks for at, _ in named)
            ):
                found.append(LostOf(None, NOT_REMEMBERED))
        return found

    def tell(self, home: DiskHome, lost: Collection[LostOf]) -> None:
        """See `FleetOffice`."""
        disks = self._service.disks
        for server in self._servers_of(home)[:1]:
            for each in lost:
                name = home.name if each.name is None else each.name
                if name is None:
                    disks.remember(server.disks, None)
                    continue
                disk = disks.at(server, name)
                disk.losses.tell_the_next(each.why, each.ranges)
                disk.is_left()  # nobody is on it yet

    def _servers_of(self, home: DiskHome) -> list[Server]:
        """Give the servers that lead to a disk, of those with the same disks one."""
        found = {
            each.disks: each
            for each in self._service.led_to
            if self._disk_of(each.settings, home.name or "") == home.disk
        }
        return [*found.values()]

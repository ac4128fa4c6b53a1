"""What the older process gives: disks, with what was lost of them, and the servers that it has started.

A disk is given when nobody uses it here (`is_used`). With it goes what somebody has still to be told of it,
before the word that it is given. It is remembered here as well, for the newer process may die. What is not
known to be durable, of links that were closed or died, is told as lost: nobody will find out any more.

Where a disk has no state, both processes may serve it at a time (`_has_no_state`): nothing is remembered of it
that the other one would have to know. And where a server is one thing, whatever disks it has, it stays or goes
as a whole: it was started here, or may have only so many connections, or two of its names may be one disk in
which parts of blocks are written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio

from gateway.handover.given import DiskSite
from gateway.handover.message import ChannelMessage
from gateway.links.disk import Key
from gateway.sessions.opened import Location
from gateway.sessions.service import Relayed, Service
from gateway.upgrade.children import commands_of, given
from gateway.wire.constants import TransmissionFlag

TAKEN_SECONDS = 10
"""How long the newer process may take to say that it has a server."""

MOST_RANGES = 2048
"""Ranges of one disk's losses in one message, which has room for that many. More are told as one."""


class Gifts:
    """What there is to give. `say` tells the newer process."""

    def __init__(self, service: Service, say: Callable[[ChannelMessage], None]) -> None:
        self._service = service
        self._say = say
        self.wanted: Mapping[str, Any] = {}
        """What the newer process would start, by upstream."""
        self._turn = trio.Lock()  # nothing is given twice
        self.over = False
        """The newer process has died."""
        self._taken = trio.Event()
        self._told: dict[Key, tuple[str, Sequence[object]]] = {}

    # --- Who uses what

    def is_used(self, site: DiskSite) -> bool:
        """Say whether anybody uses a disk here, so that another process must not."""
        service = self._service
        for disk in service.disks.there():
            if disk.busy and any(site.meets(each) for each in self._sites_of(disk.key)):
                return True
        if any(site.meets(_site(each.location)) for each in service.opening):
            return True
        return any(_keeps(each, site) for each in service.running)

    def lists(self) -> bool:
        """Say whether a client that wants a list had better be here: another process would have to connect to
        servers that have no room for that, or to start them.
        """
        return any(
            each.disk.trunk is not None or _is_one_thing(each) for each in self._service.running
        )

    def _sites_of(self, key: Key) -> list[DiskSite]:
        service = self._service
        disks, name = key
        servers = [*service.led_to, *(each.opened.location.server for each in service.running)]
        found = [DiskSite.at(each.where, name) for each in servers if each.disks == disks]
        if not found and isinstance(disks, tuple):
            found = [DiskSite.at(frozenset({disks}), name)]
        return found

    # --- What is given

    async def give(self, site: DiskSite, number: Mapping[str, object]) -> None:
        """Give a disk: its server, if that is started by us, and what was lost, and then the word."""
        async with self._turn:
            await self._give_children(site)
            self._give_losses(site)
            self._say(ChannelMessage("yours", number))

    async def give_up(self, site: DiskSite) -> None:
        """Give a disk for which no client has come."""
        async with self._turn:
            await self._give_children(site)
            self._give_losses(site)

    async def give_all(self) -> None:
        """Give all that is left."""
        async with self._turn:
            await self._give_children(None)
            self._give_losses(None)
            self._give_unnamed()

    def taken(self, upstream: str) -> None:
        """The newer process has the server of an upstream."""
        for name, command in commands_of(self._service.servers.values()):
            if name == upstream and command.running is not None:
                command.leave()
        self._taken.set()

    async def _give_children(self, site: DiskSite | None) -> None:
        for upstream, command in commands_of(self._service.servers.values()):
            if self.over or (site is not None and ("upstream", upstream) not in site.where):
                continue
            await command.let_others_hear()
            try:
                message = given(upstream, command)
            except OSError:  # it has ended, or there are no descriptors: then it ends
                message = None
            if message is not None and self.wanted.get(upstream) == message["command"]:
                self._taken = trio.Event()
                self._say(message)
                with trio.move_on_after(TAKEN_SECONDS):
                    await self._taken.wait()
            elif message is not None:
                for descriptor in message.descriptors:
                    os.close(descriptor)
            if self.over:
                command.hear_again()
                return
            await command.stop()  # what nobody has taken
            command.ours = trio.Event()

    def take_back(self) -> None:
        """The newer process has died: nothing is given any more."""
        self.over = True
        self._taken.set()

    def _give_losses(self, site: DiskSite | None) -> None:
        for disk in self._service.disks.there():
            sites = self._sites_of(disk.key)
            if site is not None and not any(site.meets(each) for each in sites):
                continue
            left = disk.losses.left_behind()
            if left is None or not sites or self._told.get(disk.key) == left:
                continue
            self._told[disk.key] = left
            why, ranges = left
            if len(ranges) > MOST_RANGES:
                ranges = [(ranges[0][0], ranges[-1][1])]
            there = DiskSite(sites[0].where, disk.key[1])
            said = [list(each) for each in ranges]
            self._say(ChannelMessage("lost", {"site": there.as_said(), "why": why, "ranges": said}))

    def _give_unnamed(self) -> None:
        """Disks of which it is only remembered that they have lost something."""
        named, all_of = self._service.disks.remembered()
        for server in self._service.led_to:
            names = [name.hex() for disks, name in named if disks == server.disks]
            where = [list(each) for each in server.where]
            for start in range(0, len(names), MOST_RANGES):
                part = names[start : start + MOST_RANGES]
                self._say(ChannelMessage("unnamed", {"where": where, "names": part, "all": False}))
            if server.disks in all_of:
                self._say(ChannelMessage("unnamed", {"where": where, "names": [], "all": True}))


def _site(location: Location) -> DiskSite:
    return DiskSite.at(location.server.where, location.name)


def _keeps(running: Relayed, site: DiskSite) -> bool:
    """Say whether a session keeps a disk here."""
    here = _site(running.opened.location)
    if site.beside(here) and _is_one_thing(running):
        return True
    return site.meets(here) and not _has_no_state(running)


def _is_one_thing(running: Relayed) -> bool:
    """Say whether the server of a session is served by one process, whatever disks it has."""
    server = running.opened.location.server
    in_blocks = _smallest_block(running) > 1 and not server.settings.canonical_names
    return (
        server.recipe.backend.command is not None
        or server.settings.max_connections is not None
        or in_blocks
    )


def _has_no_state(running: Relayed) -> bool:
    """Say whether another process may serve the disk of a session beside this one: nothing is written, or
    nothing is remembered of what is; no connection is shared, no part of a block is written, and no policy
    counts who writes.
    """
    opened, server = running.opened, running.opened.location.server
    if opened.uplink.trunk is not None or running.disk.trunk is not None:
        return False
    read_only = bool(opened.offer.flags & TransmissionFlag.READ_ONLY)
    forgetful = server.mode.survival.reconnect_seconds == 0
    counted = any(placed.name == "writers" for placed in opened.membership.chain)
    return not counted and (read_only or (forgetful and _smallest_block(running) == 1))


def _smallest_block(running: Relayed) -> int:
    return running.opened.uplink.export.minimum

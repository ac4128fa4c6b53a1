"""What the newer process is given: disks, with what was lost of them, and the servers that the older one has
started (`giving` is the other end).

A disk that was given stays ours. Who connects to a server that the older process has started waits until that
is given (`children`), or until nobody lives any more of what that process has left.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from gateway.handover.given import DiskSite
from gateway.handover.message import ChannelMessage
from gateway.sessions.opened import Location
from gateway.sessions.service import Service
from gateway.upgrade.children import all_ended, commands_of
from gateway.upstream.server import Server

MOST_OURS = 65_536
"""Disks that are known to be ours. Of others the older process is asked again."""


class Received:
    """What was given so far. `say` tells the older process."""

    def __init__(self, service: Service, say: Callable[[ChannelMessage], None]) -> None:
        self._service = service
        self._say = say
        self._ours: set[DiskSite] = set()
        self._children: dict[str, int] = {}
        """Servers that the older process has started and not given: their numbers by upstream."""

    # --- Disks

    def has(self, site: DiskSite | None) -> bool:
        """Say whether a disk is known to be ours."""
        return site in self._ours

    def know(self, site: DiskSite) -> None:
        """A disk is ours from now on."""
        if len(self._ours) < MOST_OURS:
            self._ours.add(site)
        # A server is ours with the first of its disks.
        for upstream, command in commands_of(self._service.servers.values()):
            if ("upstream", upstream) in site.where:
                command.ours.set()

    def lose(self, message: ChannelMessage) -> None:
        """Something is lost of a disk: whoever opens it here is told."""
        service, site = self._service, DiskSite.of(message["site"])
        why, ranges = message["why"], message["ranges"]
        server = self._server_at(site.where)
        if server is None:
            service.log.warning(
                "losses of a disk that no upstream leads to any more", export=site.name, why=why
            )
            return
        disk = service.disk_at(Location(server, site.name))
        disk.losses.tell_the_next(why, [(int(start), int(end)) for start, end in ranges])
        disk.is_left()

    def lose_unnamed(self, message: ChannelMessage) -> None:
        """Disks of a server have lost something, and of them only that is remembered."""
        where, names, all_ = message["where"], message["names"], message["all"]
        server = self._server_at(DiskSite.of({"where": where, "name": ""}).where)
        if server is None:
            return
        disks = self._service.disks
        for name in names:
            disks.remember(server.disks, bytes.fromhex(name))
        if all_:
            disks.remember(server.disks, None)

    def _server_at(self, where: frozenset[tuple[str, ...]]) -> Server | None:
        there = (each for each in self._service.led_to if each.where & where)
        return next(there, None)

    # --- Servers

    def child_runs(self, message: ChannelMessage) -> None:
        """The older process has started one."""
        self._children[message["upstream"]] = message["pid"]

    def adopt(self, message: ChannelMessage) -> None:
        """Take a server that the older process has started, and say so."""
        upstream = message["upstream"]
        commands = dict(commands_of(self._service.servers.values()))
        command = commands.get(upstream)
        self._children.pop(upstream, None)
        try:
            if command is None or command.words != message["command"]:
                return  # it was not asked for: the older process ends it
            pidfd, *more = map(os.dup, message.descriptors)
            command.adopt(message["pid"], pidfd, message["path"], more[0] if more else None)
        except OSError as error:
            self._service.log.error("server not taken over", upstream=upstream, why=error.strerror)
            return
        command.ours.set()
        self._say(ChannelMessage("child-taken", {"upstream": upstream}))

    async def start_ourselves(self) -> None:
        """Start servers ourselves, once those of the older process have ended."""
        await all_ended(self._children)
        for _upstream, command in commands_of(self._service.servers.values()):
            command.ours.set()

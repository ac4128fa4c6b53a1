"""Sessions that are to go on over other links: to another server, or by new links to the one that they had.

For each session the export is opened as it was opened for its client, on the terms that the client negotiated.
The result is compared with what the client was promised (`fitting`). That may be done while the sessions still
run over the links that they have. When everything is there for all sessions, and they are held and flushed
(`holding`), they go over, in one step without an await. Until then nothing has changed for anybody, and if
anything fails, they stay on the links that they have.

Whether it is the same disk over there is the word of whoever switches. So what was flushed before bears no
witness any more (`gateway.losses.witnesses`). Somebody who only has lost connections made again in a pause
gives no such word. Then what was flushed is looked for as at any reconnect, by the same
`gateway.bundle.recovery`, and a session whose disk is not there ends. It does not end earlier: until a pause is
over, whoever exchanges the server may still `switch` to it.

Connections that are shared go over as a whole. If clients of other exports use them, too, they are not
exchanged: these clients would be taken along unasked, or be left on a second bundle before the same disk, and
neither bundle would know of the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

import trio

from gateway.access.chain import compile_chain, prepares
from gateway.bundle.recovery import OWN_DISK, AnotherDisk, has_left_its_disk
from gateway.hub.ends import Cause
from gateway.links.disk import Disk
from gateway.links.shared import shared_terms
from gateway.links.trunk import Trunk
from gateway.links.uplink import LinksLost, OwnLink, Uplink, lost
from gateway.losses.rule import Trail
from gateway.policy import Denied
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export
from gateway.sessions import seat
from gateway.sessions.fitting import misfits
from gateway.sessions.holding import (
    LOOK_IF_QUIET_SECONDS,
    Holding,
    NotDone,
    Within,
    answered,
)
from gateway.sessions.opened import Location, Opened
from gateway.sessions.promise import first_view
from gateway.sessions.reading import chain_over
from gateway.sessions.service import Relayed, Service
from gateway.sessions.surviving import OVER_SECONDS
from gateway.upstream.ladder import Rung
from gateway.upstream.negotiation import Negotiation
from gateway.wire.handshake import shown


class GoingOver:
    """The sessions of exports, on their way: each export (ours) to its location. Use it as a context: at the
    end it closes what was opened and not used. `vouched`: somebody has said that the disk there is the same.
    """

    def __init__(
        self,
        service: Service,
        holding: Holding,
        locations: Mapping[str, Location],
        within: Within,
        *,
        vouched: bool,
    ) -> None:
        self._service = service
        self._holding = holding
        self._locations = locations
        self._within = within
        self._vouched = vouched
        self.without_disk: dict[Relayed, str] = {}
        """Sessions whose disk is not there any more, and how we know. They end."""
        self._ready: dict[Relayed, Opened] = {}
        self._trunks: dict[Disk, Trunk] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close what was opened and not used. Closing twice is once."""
        for opened in self._ready.values():
            opened.uplink.leave()
        self._ready.clear()
        self._trunks.clear()
        await self._stack.aclose()

    # --- Opening

    async def open_for(self, sessions: Collection[Relayed], leaving: Collection[Trunk]) -> None:
        """Open the exports for these sessions, unless that was done and still stands. What the sessions share
        must not be one of the trunks that are left. Raises `NotDone`.
        """
        for location in self._locations.values():
            location.server.try_soon()
        with self._within.over(self._too_slow):
            for running in sessions:
                location = self._locations[running.name]
                opened = self._ready.get(running)
                if opened is not None and opened.uplink.is_alive:
                    continue
                if opened is not None:
                    del self._ready[running]
                    opened.uplink.leave()
                with refused_by(location), self._ends_without_disk(running):
                    self._refuse_if_disk_has_gone(running)
                    trunk = await self._trunk(location, leaving, sessions)
                    self._ready[running] = await self._opened_anew(running, location, trunk)

    async def look(self, export: str, leaving: Collection[Trunk]) -> Export:
        """Open an export as the next client would, and give what it is. Raises `NotDone`."""
        location = self._locations[export]
        location.server.try_soon()
        with self._within.over(self._too_slow), refused_by(location):
            trunk = await self._trunk(location, leaving, ())
            if trunk is not None:
                return trunk.export
            return await opened_for_a_look(location)

    def opened_for(self, running: Relayed) -> Export:
        """Give what was opened for a session."""
        return self._ready[running].uplink.export

    async def _trunk(
        self, location: Location, leaving: Collection[Trunk], sessions: Collection[Relayed]
    ) -> Trunk | None:
        """Give the trunk that these sessions share if they go to a location; None if each has links of its own.
        Raises `Refusal`, `NotDone`, `AnotherDisk`.
        """
        if not self._service.shares(location, leaving):
            return None
        disk = self._service.disk_at(location)
        if disk not in self._trunks:
            debts = {each.traffic.debt for each in sessions}
            exchange = self._service.trunks.exchange(
                disk, location.server, location.name, leaving, debts
            )
            self._trunks[disk] = await self._stack.enter_async_context(exchange)
            if not self._vouched:
                await self._trunks[disk].recognised(_trails(sessions))
        trunk = self._trunks[disk]
        if trunk.bundle.is_another:
            raise AnotherDisk(trunk.bundle.why)
        _refuse_if_lost(trunk)
        return trunk

    async def _opened_anew(
        self, running: Relayed, location: Location, trunk: Trunk | None
    ) -> Opened:
        """Open an export at another location, as it was opened for its client. `trunk` is the one that all of
        them share, if they do. Raises `NotDone`, `Refusal`, `Denied`, `AnotherDisk`.
        """
        before = running.opened
        asked = replace(before.asked, name=location.name)
        same = self._service.disk_at(location) is self._service.disk_at(before.location)
        lowest = before.uplink.rung if same else Rung.EXPORT_NAME
        uplink = await self._service.opened_anew(location, asked, trunk, lowest)
        if trunk is None and not self._vouched:
            uplink = await self._recognised(running, location, uplink)
        try:
            chain, route = before.membership.chain, before.grant.route
            if prepares(chain):
                chain = await chain_over(chain, route, uplink)
            agreed = compile_chain(chain, first_view(route, uplink.export))
            refuse_if_misfit(
                location, misfits(before.offer, before.uplink.export, uplink.export, agreed)
            )
            return replace(before, location=location, asked=asked, uplink=uplink, agreed=agreed)
        except BaseException:
            uplink.leave()
            raise

    # --- Whether it is the same disk

    @contextmanager
    def _ends_without_disk(self, running: Relayed) -> Iterator[None]:
        """A session does not go over to another disk."""
        try:
            yield
        except AnotherDisk as another:
            self.without_disk[running] = str(another)

    def _refuse_if_disk_has_gone(self, running: Relayed) -> None:
        """Do not even connect if the disk was gone with its last link. Raises `AnotherDisk`."""
        survival = running.opened.location.server.mode.survival
        dialect = running.opened.uplink.dialect
        for trail in () if self._vouched else _trails([running]):
            if has_left_its_disk(dialect, survival, trail):
                raise AnotherDisk(OWN_DISK)

    async def _recognised(self, running: Relayed, location: Location, uplink: Uplink) -> Uplink:
        """Find out whether an uplink leads to the disk that the session had, and give the uplink to use. Raises
        `NotDone`, `AnotherDisk`, and then it is closed.
        """
        asked = replace(running.opened.asked, name=location.name)

        def lend(own: OwnLink) -> Trunk:
            hub, disk, log = self._service.hub, running.disk, running.log
            return Trunk(location.server, asked, own.link, hub, disk, log)

        try:
            return await uplink.recognised(_trails([running]), lend)
        except LinksLost as gone:
            raise NotDone(str(gone)) from None

    def _too_slow(self) -> str:
        servers = {location.server: None for location in self._locations.values()}
        whys = [f"{each.name} ({each.why_down})" if each.down else each.name for each in servers]
        return f"{', '.join(whys)} has not opened it within {self._within.seconds:g} s"

    # --- Going over

    async def are_quiet(self, sessions: Collection[Relayed]) -> None:
        """Wait until nothing is under way over the links that are left. Raises `NotDone`."""
        with self._within.over(lambda: f"a FLUSH was not answered in {self._within.seconds:g} s"):
            for running in sessions:
                await answered(running)

    def go(self, sessions: Collection[Relayed], leaving: Collection[Trunk]) -> None:
        """Have these sessions go over, which are held, quiet, and opened anew. The trunks that they leave are
        given up. Raises `NotDone`, and then none has gone.
        """
        # A session that has ended meanwhile needs nothing any more.
        left = [
            running
            for running in sessions
            if running.relaying.held and running not in self.without_disk
        ]
        self._holding.refuse_if_draining()
        refuse_to_part_others(self._service, self._locations, leaving)
        if not all(running.relaying.quiet for running in left):
            raise NotDone("a session is not quiet any more")
        # From here on nothing may fail.
        for running in left:
            self._relink(running, self._ready.pop(running))
        for running, why in self.without_disk.items():
            server = self._locations[running.name].server
            gone = f"upstream {server.name!r} is gone: {why}"
            running.relaying.finish(gone, OVER_SECONDS, Cause.UPSTREAM_LOST)
        for disk, trunk in self._trunks.items():
            disk.trunk = trunk
        for each in leaving:
            if each not in self._trunks.values():
                each.retire()

    def _relink(self, running: Relayed, opened: Opened) -> None:
        service, session = self._service, running.relaying
        uplink, old, left = running.opened.uplink, running.traffic, running.disk
        disk = service.disk_at(opened.location)
        debt = old.debt if disk is left else disk.losses.open(old.debt)
        left_trail, lost = old.debt.trail, session.link_lost
        if self._vouched:
            disk.losses.witnesses.clear()
        seat.go_over(service, running, opened, disk, debt)
        if left_trail is not None and debt.trail is not None and not self._vouched:
            debt.trail.follows(left_trail)
        if old.trail is not None:
            old.trail.losses.left(old.trail)
        left.is_left()
        if not lost:
            uplink.say_disc()
        uplink.close()
        running.log.info("session switched", server=opened.location.server.name)


# --- Trunks


def trunk_of(opened: Opened) -> Trunk | None:
    """Give the trunk over which an export was opened. None: it has one link of its own."""
    return opened.uplink.trunk


def _trails(sessions: Collection[Relayed]) -> list[Trail]:
    """Give the trails of the links that these sessions have had, or share."""
    trails = (running.traffic.debt.trail for running in sessions)
    return list({trail: None for trail in trails if trail is not None})


def _refuse_if_lost(trunk: Trunk) -> None:
    """Raise `NotDone` if new links are gone already."""
    if not trunk.stands:
        raise NotDone(lost(trunk))


def others(service: Service, exports: Collection[str], trunk: Trunk) -> set[str]:
    """Give the other exports (our names) whose clients have shares of a trunk."""
    running = {each.name for each in service.running if trunk_of(each.opened) is trunk}
    opening = {each.grant.name for each in service.opening if trunk_of(each) is trunk}
    return (running | opening) - set(exports)


def refuse_to_part_others(
    service: Service, exports: Collection[str], trunks: Collection[Trunk]
) -> None:
    """Refuse to exchange connections that clients of other exports use, too; if such connections have ended,
    each export can go by itself. Raises `NotDone`.
    """
    standing = [trunk for trunk in trunks if not trunk.ended]
    shared = sorted({name for trunk in standing for name in others(service, exports, trunk)})
    if shared:
        raise NotDone(
            f"{', '.join(map(shown, exports))} shares its connections with clients of"
            f" {', '.join(map(shown, shared))}, which would have to go over with it: they have to leave first"
        )


async def part_from_links(sessions: Collection[Relayed], trunks: Collection[Trunk]) -> None:
    """Close the connections of sessions that are held and settled. The sessions live on without."""
    for running in sessions:
        if trunk_of(running.opened) is None:
            await answered(running)
            running.relaying.part_from_link()
    for trunk in trunks:
        trunk.end("the connections to the upstream were closed to be made anew")
    for trunk in trunks:
        await trunk.closed.wait()
    while not all(running.relaying.link_lost for running in sessions if running.relaying.held):
        await trio.sleep(LOOK_IF_QUIET_SECONDS)


# --- Links


async def opened_for_a_look(location: Location) -> Export:
    """Open an export for no client, with all contexts that it has, and leave it again. Raises `Refusal`."""
    negotiation = Negotiation(location.server)
    try:
        link = await negotiation.go(await shared_terms(negotiation, location.name))
    finally:
        await negotiation.aclose()
    OwnLink(location.server, link).leave()
    return link.export


def refuse_if_misfit(location: Location, problems: Collection[str]) -> None:
    """If what was opened is less than what was promised, leave everything as it is. Raises `NotDone`."""
    if problems:
        raise NotDone(f"{location.server.name} does not fit: {'; '.join(problems)}")


@contextmanager
def refused_by(location: Location) -> Iterator[None]:
    """If a location refuses something, or a policy refuses what is there, it is not done. Raises `NotDone`."""
    try:
        yield
    except (Refusal, Denied) as error:
        raise NotDone(f"{location.server.name}: {error}") from None

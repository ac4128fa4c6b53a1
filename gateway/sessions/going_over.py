"""Sessions that are to go on over other links: to another server, or anew to the one that they had.

For each session the export is opened as it was opened for its client, on the terms that this negotiated.
What comes of it is held against what the client was promised (`fitting`). That may be done while the
sessions still run over the links that they have. Only when all of it is there for all sessions, and these are
held and flushed (`holding`), they go over, in one step without an await. Until then nothing has changed for
anybody, and whatever fails leaves them on the links that they have.

Whether it is the same disk over there is the word of whoever switches, and what was flushed before bears no
witness any more (`gateway.losses.witnesses`). Who only has the connections made again that were lost in a pause
gives no such word: what was flushed is looked for as at any reconnect, by the same
`gateway.bundle.recovery`, and a session ends whose disk is not there. Not before that: until a pause is
over, whoever exchanges the server may still `switch` to it.

Connections that are shared go over as a whole. What clients of other exports use as well is not exchanged: they
would be taken along unasked, or be left where one disk has two bundles that know nothing of each other.
"""

from __future__ import annotations

import select
from collections.abc import Collection, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import replace
from types import TracebackType
from typing import Self

import trio

from gateway.access.chain import prepares, terms
from gateway.bundle.recovery import OWN_DISK, AnotherDisk, has_left_its_disk, looks
from gateway.links.disk import Disk
from gateway.links.shared import shared_terms
from gateway.links.trunk import Joined, Trunk
from gateway.losses.rule import Trail
from gateway.policy import Denied
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export
from gateway.scan.traffic import Traffic
from gateway.sessions.fitting import misfits
from gateway.sessions.holding import (
    LOOK_SECONDS,
    Holding,
    NotDone,
    Within,
    answered,
    relaying,
)
from gateway.sessions.hooks import Hooks
from gateway.sessions.promise import first_view
from gateway.sessions.reading import chain_over
from gateway.sessions.service import Place, Running, Service
from gateway.sessions.surviving import OVER_SECONDS, put_on_its_links
from gateway.sessions.transmit import Opened
from gateway.upstream.ladder import Rung
from gateway.upstream.link import Link
from gateway.upstream.negotiation import Negotiation
from gateway.wire.handshake import shown


class GoingOver:
    """The sessions of exports, on their way: each export (ours) to its place. To be used as a context: what was
    opened and not used by its end is closed. `vouched`: somebody has said that the disk there is the same.
    """

    def __init__(
        self,
        service: Service,
        holding: Holding,
        places: Mapping[str, Place],
        within: Within,
        *,
        vouched: bool,
    ) -> None:
        self._service = service
        self._holding = holding
        self._places = places
        self._within = within
        self._vouched = vouched
        self.without_disk: dict[Running, str] = {}
        """Sessions whose disk is not there any more, and how that is known. They end."""
        self._ready: dict[Running, Opened] = {}
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
        """Close what was opened and not used. Twice is once."""
        for opened in self._ready.values():
            _leave(opened.link)
        self._ready.clear()
        self._trunks.clear()
        await self._stack.aclose()

    # --- Opening

    async def open_for(self, sessions: Collection[Running], leaving: Collection[Trunk]) -> None:
        """Open the exports for these sessions, as far as that was not done, and does not stand any more; what
        they share is not to be one of the trunks that are left. Raises `NotDone`.
        """
        for place in self._places.values():
            place.server.try_soon()
        with self._within.over(self._too_slow):
            for running in sessions:
                place = self._places[running.name]
                opened = self._ready.get(running)
                if opened is not None and _is_alive(opened.link):
                    continue
                if opened is not None:
                    del self._ready[running]
                    _leave(opened.link)
                with refused_by(place), self._ends_without_disk(running):
                    self._refuse_if_disk_has_gone(running)
                    trunk = await self._trunk(place, leaving, sessions)
                    self._ready[running] = await self._opened_anew(running, place, trunk)

    async def look(self, export: str, leaving: Collection[Trunk]) -> Export:
        """Open an export as the next client would, who is not there, and give what it is. Raises `NotDone`."""
        place = self._places[export]
        place.server.try_soon()
        with self._within.over(self._too_slow), refused_by(place):
            trunk = await self._trunk(place, leaving, ())
            if trunk is not None:
                return trunk.export
            return await opened_for_a_look(place)

    def opened_for(self, running: Running) -> Export:
        """Give what was opened for a session."""
        return self._ready[running].link.export

    async def _trunk(
        self, place: Place, leaving: Collection[Trunk], sessions: Collection[Running]
    ) -> Trunk | None:
        """Give what these sessions share if they go to a place; None if each has links of its own. Raises
        `Refusal`, `NotDone`, `AnotherDisk`.
        """
        if not place.server.mode.wanted.shared:
            return None
        disk = self._service.disk_at(place)
        if disk not in self._trunks:
            debts = {each.traffic.debt for each in sessions}
            exchange = self._service.trunks.exchange(disk, place.server, place.name, leaving, debts)
            self._trunks[disk] = await self._stack.enter_async_context(exchange)
            if not self._vouched:
                await self._trunks[disk].recognised(_trails(sessions))
        trunk = self._trunks[disk]
        if trunk.bundle.is_another:
            raise AnotherDisk(trunk.bundle.why)
        _refuse_if_lost(trunk)
        return trunk

    async def _opened_anew(self, running: Running, place: Place, trunk: Trunk | None) -> Opened:
        """Open an export at another place, as it was opened for its client; `trunk` is for all of them, if
        there is one. Raises `NotDone`, `Refusal`, `Denied`, `AnotherDisk`.
        """
        before = running.opened
        asked = replace(before.asked, name=place.name)
        same = self._service.disk_at(place) is self._service.disk_at(before.place)
        lowest = before.link.rung if same else Rung.EXPORT_NAME
        link = await self._service.opened_anew(place, asked, trunk, lowest)
        if trunk is None and not self._vouched:
            link = await self._recognised(running, place, link)
        try:
            chain, route = before.membership.chain, before.grant.route
            if prepares(chain):
                chain = await chain_over(chain, route, link)
            agreed = terms(chain, first_view(route, link.export))
            refuse_if_misfit(place, misfits(before.offer, before.link.export, link.export, agreed))
            return replace(before, place=place, asked=asked, link=link, agreed=agreed)
        except BaseException:
            _leave(link)
            raise

    # --- Whether it is the same disk

    @contextmanager
    def _ends_without_disk(self, running: Running) -> Iterator[None]:
        """A session does not go over to another disk."""
        try:
            yield
        except AnotherDisk as another:
            self.without_disk[running] = str(another)

    def _refuse_if_disk_has_gone(self, running: Running) -> None:
        """Do not even connect where a disk is gone with its last link. Raises `AnotherDisk`."""
        survival = running.opened.place.server.mode.survival
        dialect = running.opened.link.dialect
        for trail in () if self._vouched else _trails([running]):
            if has_left_its_disk(dialect, survival, trail):
                raise AnotherDisk(OWN_DISK)

    async def _recognised(
        self, running: Running, place: Place, link: Link | Joined
    ) -> Link | Joined:
        """Give a link, or links, of a session's own when it is known that they lead to the disk that it had.
        Raises `NotDone`, `AnotherDisk`, and then they are closed.
        """
        trails = _trails([running])
        if isinstance(link, Joined):
            joined = link
        elif any(looks(place.server.mode.survival, trail) for trail in trails):
            joined = self._lent(running, place, link)
        else:
            return link
        try:
            await joined.trunk.recognised(trails)
            _refuse_if_lost(joined.trunk)
        except BaseException:
            joined.close()
            raise
        if joined is link:
            return link
        found, trail = joined.trunk.dissolve()
        joined.close()
        trail.losses.left(trail)
        return found

    def _lent(self, running: Running, place: Place, link: Link) -> Joined:
        """Have a link in a trunk of its own, which can look at what is there."""
        service = self._service
        asked = replace(running.opened.asked, name=place.name)
        trunk = Trunk(place.server, asked, link, service.hub, running.disk, running.log)
        trunk.start()
        return trunk.join()

    def _too_slow(self) -> str:
        servers = {place.server: None for place in self._places.values()}
        whys = [f"{each.name} ({each.why_down})" if each.down else each.name for each in servers]
        return f"{', '.join(whys)} has not opened it within {self._within.seconds:g} s"

    # --- Going over

    async def are_quiet(self, sessions: Collection[Running]) -> None:
        """Wait until nothing is under way over the links that are left. Raises `NotDone`."""
        with self._within.over(lambda: f"a FLUSH was not answered in {self._within.seconds:g} s"):
            for running in sessions:
                await answered(running)

    def go(self, sessions: Collection[Running], leaving: Collection[Trunk]) -> None:
        """Have these sessions go over, which are held, quiet, and opened anew; the trunks that they leave are
        given up. Raises `NotDone`: none has.
        """
        # A session that has ended meanwhile needs nothing any more.
        left = [
            running
            for running in sessions
            if relaying(running).held and running not in self.without_disk
        ]
        self._holding.refuse_if_draining()
        refuse_to_part_others(self._service, self._places, leaving)
        if not all(relaying(running).quiet for running in left):
            raise NotDone("a session is not quiet any more")
        # From here on nothing may fail.
        for running in left:
            self._relink(running, self._ready.pop(running))
        for running, why in self.without_disk.items():
            server = self._places[running.name].server
            relaying(running).finish(f"upstream {server.name!r} is gone: {why}", OVER_SECONDS)
        for disk, trunk in self._trunks.items():
            disk.trunk = trunk
        for each in leaving:
            if each not in self._trunks.values():
                each.retire()

    def _relink(self, running: Running, opened: Opened) -> None:
        service = self._service
        session, before, old, new = relaying(running), running.opened, running.traffic, opened.link
        joined = new if isinstance(new, Joined) else None
        plan = opened.plan
        disk = service.disk_at(opened.place)
        debt = old.debt if disk is running.disk else disk.losses.open(old.debt)
        ask = None if joined is None else joined.ask
        traffic = Traffic(plan, disk.locks, ask, debt, disk.fences)
        left_trail = old.debt.trail
        if self._vouched:
            disk.losses.witnesses.clear()
        if plan.hooked:
            assert running.nursery is not None
            Hooks(opened.agreed, plan, traffic.jobs, session.act, running.nursery, running.log)
        settled, lost = session.settled, session.link_lost
        push = None if joined is None else joined.push
        service.hub.relink(session, new.socket, traffic, push)
        session.settled = settled
        running.opened, running.traffic = opened, traffic
        session.survive = None
        put_on_its_links(service, running)
        if left_trail is not None and debt.trail is not None and not self._vouched:
            debt.trail.follows(left_trail)
        if old.trail is not None:
            old.trail.losses.left(old.trail)
        left, running.disk = running.disk, disk
        left.is_left()
        if isinstance(before.link, Link) and not lost:
            _say_disc(before.link)
        before.link.close()
        running.log.info("session switched", server=opened.place.server.name)


# --- Trunks


def trunk_of(opened: Opened) -> Trunk | None:
    """Give the links that are shared, or several, over which an export was opened; None: it has one alone."""
    return opened.link.trunk if isinstance(opened.link, Joined) else None


def _trails(sessions: Collection[Running]) -> list[Trail]:
    """Give what was written over the links that these sessions have had, or share."""
    trails = (running.traffic.debt.trail for running in sessions)
    return list({trail: None for trail in trails if trail is not None})


def _refuse_if_lost(trunk: Trunk) -> None:
    """Raise `NotDone` if new links are gone already."""
    if not trunk.stands:
        raise NotDone(f"the connections to {trunk.server.name} were lost: {trunk.bundle.why}")


def others(service: Service, exports: Collection[str], trunk: Trunk) -> set[str]:
    """Give the other exports (our names) that have clients in a trunk."""
    running = {each.name for each in service.running if trunk_of(each.opened) is trunk}
    opening = {each.grant.name for each in service.opening if trunk_of(each) is trunk}
    return (running | opening) - set(exports)


def refuse_to_part_others(
    service: Service, exports: Collection[str], trunks: Collection[Trunk]
) -> None:
    """Connections that clients of other exports use as well are not exchanged; of those that have ended, each
    goes by itself. Raises `NotDone`.
    """
    standing = [trunk for trunk in trunks if not trunk.ended]
    shared = sorted({name for trunk in standing for name in others(service, exports, trunk)})
    if shared:
        raise NotDone(
            f"{', '.join(map(shown, exports))} shares its connections with clients of"
            f" {', '.join(map(shown, shared))}, which would have to go over with it: they have to leave first"
        )


async def part_from_links(sessions: Collection[Running], trunks: Collection[Trunk]) -> None:
    """Close the connections of sessions that are held and settled; they live on without."""
    for running in sessions:
        if not isinstance(running.opened.link, Joined):
            await answered(running)
            relaying(running).part_from_link()
    for trunk in trunks:
        trunk.end("the connections to the upstream were closed to be made anew")
    for trunk in trunks:
        await trunk.closed.wait()
    while not all(relaying(running).link_lost for running in sessions if relaying(running).held):
        await trio.sleep(LOOK_SECONDS)


# --- Links


async def opened_for_a_look(place: Place) -> Export:
    """Open an export for nobody, with all contexts that it has, and leave it again. Raises `Refusal`."""
    negotiation = Negotiation(place.server)
    try:
        link = await negotiation.go(await shared_terms(negotiation, place.name))
    finally:
        await negotiation.aclose()
    _leave(link)
    return link.export


def refuse_if_misfit(place: Place, problems: Collection[str]) -> None:
    """Leave everything as it is if what was opened is less than what was promised. Raises `NotDone`."""
    if problems:
        raise NotDone(f"{place.server.name} does not fit: {'; '.join(problems)}")


@contextmanager
def refused_by(place: Place) -> Iterator[None]:
    """What a place refuses, or a policy does over what is there, is not done. Raises `NotDone`."""
    try:
        yield
    except (Refusal, Denied) as error:
        raise NotDone(f"{place.server.name}: {error}") from None


def _is_alive(link: Link | Joined) -> bool:
    """Say whether a link that was opened a while ago is there still, as far as is known."""
    if isinstance(link, Joined):
        return link.trunk.stands and bool(link.trunk.bundle.lines)
    poll = select.poll()
    poll.register(link.socket.fileno(), select.POLLRDHUP)
    return not poll.poll(0)


def _leave(link: Link | Joined) -> None:
    """Close a link over which nobody has asked anything."""
    if isinstance(link, Link):
        _say_disc(link)
    link.close()


def _say_disc(link: Link) -> None:
    with suppress(OSError):  # it has gone already
        link.socket.send(link.export.framing.disc())

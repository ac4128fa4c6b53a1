"""Pauses an export under its running clients, and has them go on over connections to another server.

A pause holds the export's sessions: they begin no request, what is under way is finished, and when all are
quiet a FLUSH on each link makes durable whatever the clients were told is done. Clients notice a slow server,
and nothing else; who would open the export meanwhile waits. A disk may be copied then, or its server exchanged.

A switch opens the export anew for every session, on the terms that its client negotiated, and holds what comes
of it against what the client was promised. Only when all of that is there for all sessions, they go over, in
one step without an await. Until then nothing has changed for anybody, and whatever fails leaves them on the
links that they have.

What may not happen:

- a FLUSH of ours takes the server's word that something was lost, and the client is never told. What it says
  is a loss as any other (`gateway.relay.losses`), and is told at the next FLUSH of each session that relies
  on it;
- a client hangs for ever because somebody forgot it. So a pause ends by itself, and says so;
- a server that restarts takes clients with it although nothing is under way and everything durable. So sessions
  of a paused export live without their links, and get others when they go on.

Whether all is quiet is looked at every few milliseconds rather than waited for by events: it is several things
of every session, and any of them may come to be while another is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, replace
from operator import eq, ge, le

import trio

from gateway.access.chain import Terms, prepares, terms
from gateway.policy import Denied
from gateway.protocol.commands import text_of_error
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export, Offer, lacks
from gateway.relay.bundle.trunk import Joined, Trunk
from gateway.relay.hooks import Hooks
from gateway.relay.losses import PROOF_SECONDS
from gateway.relay.promise import first_view, promise
from gateway.relay.reading import chain_over
from gateway.relay.scan.jobs import Answer
from gateway.relay.scan.traffic import Traffic
from gateway.relay.scan.translate import translate
from gateway.relay.service import Place, Running, Service
from gateway.relay.session import Session
from gateway.relay.surviving import survives, tie
from gateway.relay.transmit import Opened
from gateway.upstream.negotiation import Link
from gateway.upstream.server import Server
from gateway.wire.constants import Cmd
from gateway.wire.handshake import shown

QUIET_SECONDS = 30.0
"""How long sessions may take to become quiet, FLUSH included: as long as a server may reasonably take for one
command. Then all go on, for a client that waits longer begins to fail by itself."""

LASTS_SECONDS = 300.0
"""How long a pause lasts that nobody ends: enough to copy a disk's metadata or restart a server, and less than
systems in virtual machines bear without a disk."""

OPEN_SECONDS = 30.0
"""How long opening the export anew may take, for all sessions together."""

LOOK_SECONDS = 0.005
"""How often it is looked whether all is quiet: a pause that takes this much longer is none the worse."""


class NotDone(Exception):
    """What was asked has not been done, and all goes on as before; the text is for who asked."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where an export is to be from now on."""

    server: Server
    name: str | None = None
    """The export's name there; None: as the configuration has it."""


class Pauses:
    """The exports that are paused; one thing is done at a time. Ends of pauses are waited for in `nursery`."""

    def __init__(self, service: Service, nursery: trio.Nursery) -> None:
        self._service = service
        self._nursery = nursery
        self._turn = trio.Lock()
        self._waiting: dict[str, trio.CancelScope] = {}

    # --- What is asked for

    async def pause(
        self, export: str, *, seconds: float = QUIET_SECONDS, lasts: float = LASTS_SECONDS
    ) -> list[str]:
        """Pause an export; say what has been done. Once more is only longer. Raises `NotDone`."""
        async with self._turn:
            if export in self._service.paused:
                self._end_after(export, lasts)
                return [f"{shown(export)} was paused already, and is for {lasts:g} s from now on"]
            flushed = await self._hold(export, seconds)
            self._end_after(export, lasts)
        count = len(self._sessions(export))
        self._service.log.info("export paused", export=export, sessions=count, seconds=lasts)
        return [f"{shown(export)}: {count} sessions held, {flushed} flushed, for {lasts:g} s"]

    async def resume(self, export: str) -> list[str]:
        """Have an export's sessions go on; say what has been done. Raises `NotDone`: if it is not paused, or,
        and then it still is, if a session's link is gone and cannot be had anew.
        """
        async with self._turn:
            if export not in self._service.paused:
                raise NotDone(f"{shown(export)} is not paused")
            relinked = await self._reconnect(export)
            count = len(self._sessions(export))
            self._let_go_on(export)
        self._service.log.info("export resumed", export=export, sessions=count)
        done = f"{shown(export)}: {count} sessions go on"
        return [f"{done}, {relinked} of them over new connections" if relinked else done]

    async def switch(
        self,
        export: str,
        target: Target | None,
        *,
        seconds: float = QUIET_SECONDS,
        close_first: bool = False,
    ) -> list[str]:
        """Have an export's sessions go over to another server, or (None) to new connections to that of the
        configuration; one that was paused stays so. Say what has been done. Raises `NotDone`.

        `close_first`: close the old connections before the new ones are made, for servers that take only one.
        What fails then leaves the export paused.
        """
        async with self._turn:
            place = self._place(export, target)
            self._refuse_to_part_others(export, self._left(export, place, close_first))
            was_paused = export in self._service.paused
            if not was_paused:
                await self._hold(export, seconds)
            try:
                sessions = self._sessions(export)
                leaving = self._left(export, place, close_first)
                if close_first:
                    self._refuse_to_part_others(export, leaving)
                try:
                    if close_first:
                        await _part_from_links(sessions, leaving)
                    await self._go_over(export, sessions, place, leaving)
                except NotDone as error:
                    if close_first and not was_paused:
                        self._end_after(export, LASTS_SECONDS)
                        was_paused = True
                    if close_first:
                        text = f"{error}; it stays paused, for a switch or resume to another end"
                        raise NotDone(text) from None
                    raise
                self._lead_to(export, place, to_configured=target is None)
            finally:
                if not was_paused:
                    self._let_go_on(export)
        log = self._service.log
        log.info("export switched", export=export, server=place.server.name, sessions=len(sessions))
        done = f"{shown(export)}: {len(sessions)} sessions went over to {place.server.name}"
        return [f"{done}, and stay paused" if was_paused else done]

    # --- Trunks

    def _trunks(self, export: str) -> set[Trunk]:
        """Give the trunks that an export's sessions have a part in, and the one that its next client would
        have.
        """
        service, route = self._service, self._service.config.route(export)
        place = None if route is None else service.place(export, route)
        next_one = None if place is None else service.disk_at(place).trunk
        trunks = {_trunk(each.opened) for each in self._sessions(export)} | {next_one}
        return {trunk for trunk in trunks if trunk is not None}

    def _left(self, export: str, place: Place, close_first: bool) -> set[Trunk]:
        """Give the trunks that are given up when an export goes to a place. Where it was led to others by a
        switch, they keep theirs when it goes to another disk; unless the connections have to be closed first.
        """
        service = self._service
        if close_first:
            return self._trunks(export)
        here = {service.disk_at(each) for each in (place, self._place(export, None))}
        trunks = self._trunks(export)
        return {
            each
            for each in trunks
            if service.disks.of(each) in here or not self._others(export, each)
        }

    def _others(self, export: str, trunk: Trunk) -> set[str]:
        """Give the other exports (our names) that have clients in a trunk."""
        service = self._service
        running = {each.name for each in service.running if _trunk(each.opened) is trunk}
        opening = {each.grant.name for each in service.opening if _trunk(each) is trunk}
        return (running | opening) - {export}

    def _refuse_to_part_others(self, export: str, trunks: Collection[Trunk]) -> None:
        """Connections that clients of other exports use as well are not exchanged: these would be taken along
        unasked, or be left where one disk has two bundles that know nothing of each other. Raises `NotDone`.
        """
        others = sorted({name for trunk in trunks for name in self._others(export, trunk)})
        if others:
            names = ", ".join(map(shown, others))
            raise NotDone(
                f"{shown(export)} shares its connections with clients of {names}, which would have to go over"
                " with it: they have to leave first"
            )

    # --- Holding

    def _sessions(self, export: str) -> list[Running]:
        running = [each for each in self._service.running if each.name == export]
        return [each for each in running if each.relaying and not each.relaying.ended.is_set()]

    async def _hold(self, export: str, seconds: float) -> int:
        """Hold all sessions, and have them flushed: say how many were. Raises `NotDone`."""
        service = self._service
        if service.config.route(export) is None:
            raise NotDone(f"there is no export {shown(export)}")
        self._refuse_if_draining()
        service.paused[export] = trio.Event()
        service.note_change()
        for running in self._sessions(export):
            _relaying(running).hold()
        try:
            try:
                with trio.fail_after(seconds):
                    while self._busy(export):
                        await trio.sleep(LOOK_SECONDS)
                    flushed = await self._flush(export)
            except trio.TooSlowError:
                busy = self._busy(export)[:10] or ["a FLUSH"]
                text = f"within {seconds:g} s did not come to an end: {'; '.join(busy)}"
                raise NotDone(f"{shown(export)} goes on: {text}") from None
            self._refuse_if_draining()
        except BaseException:
            self._let_go_on(export)
            raise
        return flushed

    def _refuse_if_draining(self) -> None:
        if self._service.draining:
            raise NotDone("the gateway is shutting down")

    def _busy(self, export: str) -> list[str]:
        """Say who is not quiet, and why."""
        service = self._service
        busy = ["a client that opens it" for each in service.opening if each.grant.name == export]
        for running in self._sessions(export):
            session, traffic = _relaying(running), running.traffic
            if not session.quiet:
                what = f"{len(traffic.in_flight) + traffic.jobs.waiting} commands under way"
                client = running.membership.session.client.identity.peer
                busy.append(f"{client} ({what if session.between_requests else 'half a request'})")
        return busy

    async def _flush(self, export: str) -> int:
        """Make durable what the sessions have written; they are quiet. Raises `NotDone`."""
        problems: list[str] = []
        flushed = 0
        for running in self._sessions(export):
            # One after the other: of two at once, a server tells one alone that something is lost.
            if running.opened.link.export.can_flush and not _relaying(running).link_lost:
                flushed += 1
                await self._flush_one(running, problems)
        if problems:
            raise NotDone(f"{shown(export)} goes on, for a FLUSH failed: {problems[0]}")
        for running in self._sessions(export):
            _relaying(running).settled = True
        return flushed

    async def _flush_one(self, running: Running, problems: list[str]) -> None:
        answered = trio.Event()
        session, traffic = _relaying(running), running.traffic
        who = running.membership.session.client.identity.peer

        def done(answer: Answer) -> None:  # perhaps when nobody waits for it any more
            if answer.error:
                why = answer.text or text_of_error(answer.error)
                problems.append(f"{who}: {why}")
            answered.set()

        flush = translate(traffic.plan.upstream, Cmd.FLUSH, 0, 0, 0, b"")
        session.act(lambda: traffic.jobs.ask(flush, done))
        if session.ended.is_set():  # before it was asked
            return
        await answered.wait()

    def _let_go_on(self, export: str) -> None:
        over = self._service.paused.pop(export, None)
        if over is not None:
            over.set()
            self._service.note_change()
        waiting = self._waiting.pop(export, None)
        if waiting is not None:
            waiting.cancel()
        for running in self._sessions(export):
            _relaying(running).go_on()

    # --- The end that nobody asked for

    def _end_after(self, export: str, seconds: float) -> None:
        before = self._waiting.pop(export, None)
        if before is not None:
            before.cancel()
        waiting = self._waiting[export] = trio.CancelScope()
        self._nursery.start_soon(self._end, export, seconds, waiting)

    async def _end(self, export: str, seconds: float, waiting: trio.CancelScope) -> None:
        with waiting:
            await trio.sleep(seconds)
        async with self._turn:
            if self._waiting.get(export) is not waiting:
                return
            self._service.log.warning(
                "export resumed: nobody has done it", export=export, seconds=seconds
            )
            try:
                await self._reconnect(export)
            except NotDone as error:
                self._service.log.error("sessions end", export=export, why=str(error))
            self._let_go_on(export)

    # --- Other links

    def _place(self, export: str, target: Target | None) -> Place:
        service = self._service
        route = service.config.route(export)
        if route is None:
            raise NotDone(f"there is no export {shown(export)}")
        switches = service.switches[export] + 1
        if target is None:
            return Place(service.servers[route.upstream], route.upstream_name, switches)
        name = route.upstream_name if target.name is None else target.name
        return Place(target.server, name, switches)

    def _lead_to(self, export: str, place: Place, *, to_configured: bool) -> None:
        """Lead new clients there. What nobody was told of yet, they have to be told."""
        service, route = self._service, self._service.config.route(export)
        was = None if route is None else service.place(export, route)
        if was is not None:
            there = service.disk_at(place)
            service.disk_at(was).losses.hand_on(there.losses)
            there.is_left()  # nobody is on it yet
        service.switch(export, place, to_configured=to_configured)

    async def _reconnect(self, export: str) -> int:
        """Have the sessions whose link is gone get others, to where they were; say how many they are. Raises
        `NotDone`.
        """
        service = self._service
        lost = [each for each in self._sessions(export) if self._has_no_link(each)]
        if lost:
            service.switches[export] += 1
            if now := service.switched.get(export):
                service.switched[export] = replace(now, switches=service.switches[export])
        # A reload may have led some to one server, and those who came later to another.
        for was in {each.opened.place for each in lost}:
            place = replace(was, switches=service.switches[export])
            sessions = [each for each in lost if each.opened.place == was]
            trunks = {_trunk(each.opened) for each in sessions} - {None}
            await self._go_over(export, sessions, place, {each for each in trunks if each})
        return len(lost)

    def _has_no_link(self, running: Running) -> bool:
        """Say whether a held session has to be opened anew: nobody else cares for it."""
        trunk = _trunk(running.opened)
        if _relaying(running).link_lost or trunk is None:
            return bool(_relaying(running).link_lost)
        # With others, who are not held, it goes on as they do.
        return not trunk.bundle.lines and not self._others(running.name, trunk)

    async def _go_over(
        self,
        export: str,
        sessions: Collection[Running],
        place: Place,
        leaving: Collection[Trunk],
    ) -> None:
        """Open the export for all of these, and have them go over; the trunks that they leave are given up.
        Raises `NotDone`: none has.
        """
        ready: list[tuple[Running, Opened]] = []
        async with AsyncExitStack() as stack:
            try:
                with trio.fail_after(OPEN_SECONDS):
                    trunk: Trunk | None = None
                    if sessions and place.server.mode.wanted.shared:
                        trunk = await stack.enter_async_context(self._exchange(place, leaving))
                    for running in sessions:
                        ready.append(
                            (running, await self._opened_anew(running.opened, place, trunk))
                        )
                    for running in sessions:
                        await _answered(running)
            except trio.TooSlowError:
                _close(ready)
                text = f"{place.server.name} has not opened it within {OPEN_SECONDS:g} s"
                raise NotDone(text) from None
            except (Refusal, Denied) as error:
                _close(ready)
                raise NotDone(f"{place.server.name}: {error}") from None
            except BaseException:
                _close(ready)
                raise
            # From here on nothing is waited for.
            # A session that has ended meanwhile needs nothing any more.
            left = [each for each in ready if _relaying(each[0]).held]
            try:
                self._refuse_if_draining()
                self._refuse_to_part_others(export, leaving)
                if not all(_relaying(running).quiet for running, _opened in left):
                    raise NotDone("a session is not quiet any more")
            except NotDone:
                _close(ready)
                raise
            # And nothing may fail.
            for running, opened in ready:
                if (running, opened) in left:
                    self._relink(running, opened)
                else:
                    opened.link.close()
            if trunk is not None:
                self._service.disk_at(place).trunk = trunk
            for each in leaving:
                if each is not trunk:
                    each.retire()

    def _exchange(
        self, place: Place, leaving: Collection[Trunk]
    ) -> AbstractAsyncContextManager[Trunk]:
        service = self._service
        return service.trunks.exchange(service.disk_at(place), place.server, place.name, leaving)

    def _relink(self, running: Running, opened: Opened) -> None:
        service = self._service
        session, before, old, new = _relaying(running), running.opened, running.traffic, opened.link
        joined = new if isinstance(new, Joined) else None
        plan = opened.plan
        disk = service.disk_at(opened.place)
        debt = old.debt if disk is running.disk else disk.losses.open(old.debt)
        ask = None if joined is None else joined.ask
        traffic = Traffic(plan, disk.locks, ask, debt, disk.fences)
        if plan.hooked:
            assert running.nursery is not None
            Hooks(opened.agreed, plan, traffic.jobs, session.act, running.nursery, running.log)
        # That it is the same content there is the operator's word: what was there before bears no witness.
        disk.losses.witnesses.clear()
        settled, lost = session.settled, session.link_lost
        push = None if joined is None else joined.push
        service.hub.relink(session, new.socket, traffic, push)
        session.settled = settled
        running.opened, running.traffic = opened, traffic
        session.survive = None
        if joined is not None:
            tie(running, joined)
        else:
            survives(service, running)
        if old.trail is not None:
            old.trail.losses.left(old.trail)
        left, running.disk = running.disk, disk
        left.is_left()
        if isinstance(before.link, Link) and not lost:
            _say_disc(before.link)
        before.link.close()
        running.log.info("session switched", server=opened.place.server.name)

    async def _opened_anew(self, before: Opened, place: Place, trunk: Trunk | None) -> Opened:
        """Open an export at another place, as it was opened for its client; `trunk` is for all of them, if
        there is one.

        Raises `NotDone`, `Refusal`, `Denied`.
        """
        asked = replace(before.asked, name=place.name)
        link = await self._service.opened_anew(place, asked, trunk)
        try:
            chain, route = before.membership.chain, before.grant.route
            if prepares(chain):
                chain = await chain_over(chain, route, link)
            agreed = terms(chain, first_view(route, link.export))
            problems = misfits(before.offer, before.link.export, link.export, agreed)
            if problems:
                raise NotDone(f"{place.server.name} does not fit: {'; '.join(problems)}")
            return replace(before, place=place, asked=asked, link=link, agreed=agreed)
        except BaseException:
            link.close()
            raise


def _relaying(running: Running) -> Session:
    assert running.relaying is not None  # guaranteed by `_sessions`
    return running.relaying


def _trunk(opened: Opened) -> Trunk | None:
    return opened.link.trunk if isinstance(opened.link, Joined) else None


def _close(ready: Collection[tuple[Running, Opened]]) -> None:
    for _running, opened in ready:
        opened.link.close()


async def _part_from_links(sessions: Collection[Running], trunks: Collection[Trunk]) -> None:
    """Close the connections of sessions that are held and settled; they live on without."""
    for running in sessions:
        if not isinstance(running.opened.link, Joined):
            await _answered(running)
            _relaying(running).part_from_link()
    for trunk in trunks:
        trunk.end("the connections to the upstream were closed to be made anew")
    for trunk in trunks:
        await trunk.closed.wait()
    while not all(_relaying(running).link_lost for running in sessions if _relaying(running).held):
        await trio.sleep(LOOK_SECONDS)


async def _answered(running: Running) -> None:
    """Wait until nothing is under way over the link of a session that is held: a client of the same disk under
    another name may have had it FLUSHed. Raises `NotDone`.
    """
    with trio.move_on_after(PROOF_SECONDS):
        while not _relaying(running).quiet:
            await trio.sleep(LOOK_SECONDS)
    if not _relaying(running).quiet:
        raise NotDone(f"a FLUSH has not been answered within {PROOF_SECONDS:g} s")


def _say_disc(link: Link) -> None:
    with suppress(OSError):  # it has gone already
        link.socket.send(link.export.framing.disc())


def misfits(was: Offer, before: Export, after: Export, agreed: Terms) -> list[str]:
    """Say what a client was promised over one link that another, on terms that are agreed, does not have."""
    now = promise(agreed, structured=was.structured, extended=was.extended, selected=was.contexts)
    found: list[str] = []

    def compare(what: str, had: int, has: int, fits: Callable[[int, int], bool]) -> None:
        if not fits(has, had):
            found.append(f"{what} {has} instead of {had}")

    compare("size", before.size, after.size, eq)
    if not found:
        compare("size for the client", was.size, now.size, eq)
    compare("first byte", was.base, now.base, eq)
    old, new = was.block_sizes, now.block_sizes
    compare("minimum block", old.minimum, new.minimum, le)
    compare("maximum payload", old.maximum, new.maximum, ge)
    compare("alignment", was.alignment, now.alignment, le)
    return found + lacks(was, now)

"""Pauses exports under their running clients, and has them go on over connections to another server.

A pause holds the sessions of an export (`gateway.sessions.holding`): clients notice a slow server, and nothing
else; who would open the export meanwhile waits. A disk may be copied then, or its server exchanged.

A switch opens the export anew for every session (`going_over`) while all still run as they are,
and compares it: with what each client was promised, and, whoever is connected, with what the present server
says. Only then all are held and flushed, and go over in one step.

What may not happen:

- a FLUSH of ours takes the server's word that something was lost, and the client is never told. What it says
  is a loss as any other (`gateway.losses.rule`), and is told at the next FLUSH of each session that relies
  on it;
- an operator takes for flushed of which something may be lost. So nothing is done until all who rely on it
  were told; or it is said that this is accepted, and then what is owed goes along;
- a client hangs for ever because somebody forgot it. So a pause ends by itself, and says so; and one whose
  caller has gone before it could be told ends at once (`undo`);
- clients wait for what cannot be done. So all that may fail is done before any is held, and all of a command
  has one limit of time;
- a server that restarts takes clients with it although nothing is under way and everything durable. So sessions
  of a paused export live without their links, and get others when they go on.

Several exports can be taken together: all of them are done, or none.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio

from gateway.config import Route
from gateway.links.trunk import Trunk
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export
from gateway.sessions.fitting import misfits_for_anybody, plainly
from gateway.sessions.going_over import (
    GoingOver,
    opened_for_a_look,
    others,
    part_from_links,
    refuse_if_misfit,
    refuse_to_part_others,
    trunk_of,
)
from gateway.sessions.holding import Holding, NotDone, Within, relaying
from gateway.sessions.service import Place, Running, Service
from gateway.upstream.link import Terms
from gateway.upstream.server import Server
from gateway.wire.handshake import shown

QUIET_SECONDS = 30.0
"""How long a command may take, FLUSH included: as long as a server may reasonably take for one of a client's.
Then all go on, for a client that waits longer begins to fail by itself."""

LASTS_SECONDS = 300.0
"""How long a pause lasts that nobody ends: enough to copy a disk's metadata or restart a server, and less than
systems in virtual machines bear without a disk."""

OPEN_SECONDS = 30.0
"""How long opening exports anew may take for who resumes them, for all sessions together."""

LOOK_AT_PRESENT_SECONDS = 5.0
"""How long the present server may take to say what an export is of which nobody is connected. One that is in
order says it at once; one that is not may be the reason for the switch."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where an export is to be from now on."""

    server: Server
    name: str | None = None
    """The export's name there; None: as the configuration has it."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has asked for a pause."""

    by: object = None
    """Who holds it; None: nobody who would come back for it."""
    command: object = None
    """By which of his commands."""


@dataclass(slots=True)
class Reconnected:
    """What came of the sessions of an export that had lost their links in a pause."""

    count: int = 0
    """How many have got others."""
    ended: int = 0
    """How many have ended, for their disk is not there any more."""
    why: str = ""
    """How that is known of one of them."""

    def add(self, sessions: int, without_disk: Collection[str]) -> None:
        """So many sessions were seen to, and these are the reasons why some of them have ended."""
        self.count += sessions - len(without_disk)
        self.ended += len(without_disk)
        self.why = next(iter(without_disk), self.why)

    def in_words(self, export: str) -> str:
        """Say of an export that sessions have ended."""
        return f"{shown(export)}: {self.ended} sessions have ended: {self.why}"


Exports = str | Sequence[str]
"""One export (our name), or several that are taken together."""


class Pauses:
    """The exports that are paused; one thing is done at a time. Ends of pauses are waited for in `nursery`."""

    def __init__(self, service: Service, nursery: trio.Nursery) -> None:
        self._service = service
        self._nursery = nursery
        self._turn = trio.Lock()
        self._waiting: dict[str, trio.CancelScope] = {}
        self._ends_at: dict[str, float] = {}
        self._holders: dict[str, list[Holder]] = {}
        """Who have asked for it to be paused, since it is."""
        self._paused_by: dict[object, list[str]] = {}
        """What each has asked for and not taken back, as long as some of it is paused."""
        self.holding = Holding(service)

    # --- What is asked for

    async def pause(
        self,
        exports: Exports,
        *,
        seconds: float = QUIET_SECONDS,
        within: Within | None = None,
        lasts: float = LASTS_SECONDS,
        accept_loss: bool = False,
        by: object = None,
        command: object = None,
        anew: bool = False,
    ) -> list[str]:
        """Pause exports within some seconds, or what is left `within` those of a command; say what has been
        done. Once more is only longer, unless it has to be done `anew`. `by` is who may take it back by
        `resume`, be it of several commands; `undo` takes back this `command` alone. Raises `NotDone`.
        """
        names, service, within = _names(exports), self._service, within or Within(seconds)
        async with self._my_turn(within):
            for name in names:
                self._route(name)
            new = [name for name in names if name not in service.paused]
            if anew and len(new) < len(names):
                there = ", ".join(shown(name) for name in names if name not in new)
                raise NotDone(f"{there} is paused already, and stays so")
            if not accept_loss:
                self.holding.refuse_if_lost(new)
            flushed = await self.holding.hold(new, within, accept_loss=accept_loss) if new else {}
            if by is not None:
                self._paused_by[by] = list(dict.fromkeys([*self.paused_by(by), *names]))
            for name in names:
                self._holders.setdefault(name, []).append(Holder(by, command))
            last = {name: self._end_after(name, lasts) for name in names}
        return [self._paused(name, flushed.get(name), last[name]) for name in names]

    def _paused(self, export: str, flushed: int | None, lasts: float) -> str:
        if flushed is None:
            return f"{shown(export)} was paused already, and is for {lasts:g} s from now on"
        count = len(self.holding.sessions(export))
        self._service.log.info("export paused", export=export, sessions=count, seconds=lasts)
        return f"{shown(export)}: {count} sessions held, {flushed} flushed, for {lasts:g} s"

    async def resume(self, exports: Exports, by: object = None) -> list[str]:
        """Have the sessions of exports go on; say what has been done. Raises `NotDone`: if one is not paused,
        or, and then all still are, if a session's link is gone and cannot be had anew. Also, and then all is
        done, if sessions have ended, for their disk is not there any more. `by`: who has paused them, and only
        takes that back; those that others hold as well stay paused.
        """
        names = _names(exports)
        async with self._turn:
            for name in names:
                if name not in self._service.paused:
                    raise NotDone(f"{shown(name)} is not paused")
                if by is not None and not self._holds(name, by):
                    raise NotDone(
                        f"{shown(name)} has gone on meanwhile, and was paused by others since"
                    )
            kept = [] if by is None else [name for name in names if self._others_hold(name, by)]
            names = [name for name in names if name not in kept]
            reconnected = await self._reconnect(names)
            for name in kept:
                self._drop(name, [each for each in self._holders[name] if each.by == by])
            self._forget(by, [*kept, *names])
            counts = {name: len(self.holding.sessions(name)) for name in names}
            self._let_go_on(*names)
        done = [f"{shown(name)} stays paused: others have asked for that as well" for name in kept]
        for name, count in counts.items():
            self._service.log.info("export resumed", export=name, sessions=count)
            anew = reconnected[name].count
            words = f", {anew} of them over new connections" if anew else ""
            done.append(f"{shown(name)}: {count} sessions go on{words}")
        if any(each.ended for each in reconnected.values()):
            ended = [each.in_words(name) for name, each in reconnected.items() if each.ended]
            raise NotDone("; ".join([*ended, *done]))
        return done

    async def undo(self, command: object) -> None:
        """Take back the pauses of a command whose caller has gone since: they end, unless others have asked for
        them as well, or the same by another command.
        """
        async with self._turn:
            ends = []
            for export, holders in list(self._holders.items()):
                his = [each for each in holders if each.command is command]
                if not his:
                    continue
                self._drop(export, his)
                for each in his:
                    if not self._holds(export, each.by):
                        self._forget(each.by, [export])
                if not self._holders[export]:
                    ends.append(export)
            await self._end_now(*ends, why="who had it paused has gone")

    def paused_by(self, by: object) -> list[str]:
        """Give the exports that somebody has paused, be it that some of them have gone on meanwhile."""
        return list(self._paused_by.get(by, ()))

    def _holds(self, export: str, by: object) -> bool:
        return any(each.by == by for each in self._holders.get(export, ()))

    def _others_hold(self, export: str, by: object) -> bool:
        return any(each.by != by for each in self._holders[export])

    def _drop(self, export: str, holders: Collection[Holder]) -> None:
        self._holders[export] = [each for each in self._holders[export] if each not in holders]

    def _forget(self, by: object, exports: Collection[str]) -> None:
        """Somebody has taken back what he had asked for of these, and of no others."""
        left = [export for export in self.paused_by(by) if export not in exports]
        self._paused_by.pop(by, None)
        if left:
            self._paused_by[by] = left

    async def switch(
        self,
        exports: Exports,
        target: Target | None,
        *,
        seconds: float = QUIET_SECONDS,
        within: Within | None = None,
        close_first: bool = False,
        accept_loss: bool = False,
        note: Callable[[str], object] = lambda _what: None,
    ) -> list[str]:
        """Have the sessions of exports go over to another server, or (None) to new connections to that of the
        configuration, in the same time as a pause; one that was paused stays so. Say what has been done; `note`
        is told what has to be seen to. Raises `NotDone`.

        `close_first`: close the old connections before the new ones are made, for servers that take only one.
        What fails then leaves the exports paused.
        """
        names, service, within = _names(exports), self._service, within or Within(seconds)
        async with self._my_turn(within):
            config = service.config
            self.holding.refuse_if_draining()
            places = {name: self._place(name, target) for name in names}
            leaving = self._left(places, close_first)
            refuse_to_part_others(service, names, leaving)
            if not accept_loss:
                self.holding.refuse_if_lost(names)
            sessions = self.holding.sessions(*names)
            async with GoingOver(service, self.holding, places, within, vouched=True) as over:
                close_first = close_first and bool(sessions or leaving)
                if not close_first:
                    await self._compare(over, places, sessions, leaving, within, note)
                new = [name for name in names if name not in service.paused]
                if new:
                    await self.holding.hold(new, within, accept_loss=accept_loss)
                try:
                    if service.config is not config:
                        raise NotDone(
                            "there is another configuration since: see what it says first"
                        )
                    if not accept_loss:
                        self.holding.refuse_if_lost(names)
                    if close_first:
                        sessions = await self._close_first(over, places, new, within)
                    else:
                        sessions = self.holding.sessions(*names)
                        leaving = self._left(places, close_first)
                        await self._open_and_compare(over, places, sessions, leaving)
                        await over.are_quiet(sessions)
                        over.go(sessions, leaving)
                    for name, place in places.items():
                        self._lead_to(name, place, to_configured=target is None)
                finally:
                    self._let_go_on(*(name for name in new if name not in self._waiting))
        return self._switched(places, sessions)

    def _switched(self, places: dict[str, Place], sessions: Collection[Running]) -> list[str]:
        done = []
        for name, place in places.items():
            count = sum(each.name == name for each in sessions)
            self._service.log.info(
                "export switched", export=name, server=place.server.name, sessions=count
            )
            words = f"{shown(name)}: {count} sessions went over to {place.server.name}"
            done.append(f"{words}, and stay paused" if name in self._service.paused else words)
        return done

    @asynccontextmanager
    async def _my_turn(self, within: Within) -> AsyncIterator[None]:
        """Have one thing done at a time. Raises `NotDone`."""
        with within.over(lambda: f"others' commands took longer than {within.seconds:g} s"):
            await self._turn.acquire()
        try:
            yield
        finally:
            self._turn.release()

    def _route(self, export: str) -> Route:
        route = self._service.config.route(export)
        if route is None:
            raise NotDone(f"there is no export {shown(export)}")
        return route

    # --- Before anybody is held

    async def _compare(
        self,
        over: GoingOver,
        places: dict[str, Place],
        sessions: Collection[Running],
        leaving: Collection[Trunk],
        within: Within,
        note: Callable[[str], object],
    ) -> None:
        """Open the exports where they are to be, and compare them with what they are; `note` is told what could
        not be compared. Raises `NotDone`.
        """
        await self._open_and_compare(over, places, sessions, leaving)
        for name in places.keys() - {each.name for each in sessions}:
            place = places[name]
            before = await self._present(name, place, within)
            after = await over.look(name, leaving)
            if isinstance(before, Export):
                refuse_if_misfit(place, misfits_for_anybody(self._route(name), before, after))
            elif before is not None:
                note(before)

    async def _open_and_compare(
        self,
        over: GoingOver,
        places: dict[str, Place],
        sessions: Collection[Running],
        leaving: Collection[Trunk],
    ) -> None:
        """Open the exports for sessions, and compare what comes of it not only with what each was promised.
        Raises `NotDone`.
        """
        await over.open_for(sessions, leaving)
        pairs = {
            (each.name, plainly(each.opened.link.export), plainly(over.opened_for(each)))
            for each in sessions
        }
        for name, was, now in pairs:
            refuse_if_misfit(places[name], misfits_for_anybody(self._route(name), was, now))

    async def _present(self, export: str, to: Place, within: Within) -> Export | str | None:
        """Give what an export is now that nobody has open; or why that is not known. None: it goes to the same
        disk. Raises `NotDone`.
        """
        service, route = self._service, self._route(export)
        now = service.place(export, route)
        if now is None or service.disk_at(now) is service.disk_at(to):
            return None
        try:
            with trio.move_on_after(min(LOOK_AT_PRESENT_SECONDS, within.left / 2)):
                return await self._described(now)
            why = now.server.why_down or "it has not answered in time"
        except Refusal as refusal:
            why = str(refusal)
        spelled_out = any(each.exact_name == export for each in service.config.exports)
        if not spelled_out and export not in service.switched:
            raise NotDone(f"whether there is an export {shown(export)} is not known: {why}")
        return (
            f"{shown(export)} was not compared with what it was at {now.server.name}, where nobody is"
            f" connected: {why}"
        )

    async def _described(self, place: Place) -> Export:
        if not place.server.mode.wanted.shared:
            return await opened_for_a_look(place)
        negotiation = self._service.negotiation(place)
        try:
            asked = Terms(place.name, structured=True, extended=True)
            return (await negotiation.describe(asked))[0]
        finally:
            await negotiation.aclose()

    # --- Closing first

    async def _close_first(
        self, over: GoingOver, places: dict[str, Place], new: Collection[str], within: Within
    ) -> list[Running]:
        """Close the old connections, make the new ones, and have the sessions, which are held, go over: say
        which. Raises `NotDone`, and then the exports stay paused.
        """
        sessions, leaving = self.holding.sessions(*places), self._left(places, True)
        refuse_to_part_others(self._service, places, leaving)
        try:
            with within.over(
                lambda: f"the connections were not closed within {within.seconds:g} s"
            ):
                await part_from_links(sessions, leaving)
            await self._open_and_compare(over, places, sessions, leaving)
            await over.are_quiet(sessions)
            over.go(sessions, leaving)
        except NotDone as error:
            self._stay_paused(new)
            text = f"{error}; it stays paused, for a switch or resume to another end"
            raise NotDone(text) from None
        except BaseException:  # whoever has asked is gone
            if not self._service.draining:
                with trio.CancelScope(shield=True):
                    await over.aclose()  # it may have what they go back to
                    await self._undo_closing(places, new)
            raise
        return sessions

    async def _undo_closing(self, exports: Collection[str], new: Collection[str]) -> None:
        """Have the sessions go back to where they were, if that can be."""
        try:
            await self._reconnect(exports)
        except NotDone as error:
            self._service.log.error("export stays paused", exports=[*new], why=str(error))
            self._stay_paused(new)

    def _stay_paused(self, new: Collection[str]) -> None:
        for name in new:
            self._holders.setdefault(name, []).append(Holder())
            self._end_after(name, LASTS_SECONDS)

    # --- Trunks

    def _trunks(self, exports: Collection[str]) -> set[Trunk]:
        """Give the trunks that the exports' sessions have a part in, and those that their next clients would
        have.
        """
        service = self._service
        found = {trunk_of(each.opened) for each in self.holding.sessions(*exports)}
        for export in exports:
            place = service.place(export, self._route(export))
            found.add(None if place is None else service.disk_at(place).trunk)
        return {trunk for trunk in found if trunk is not None}

    def _left(self, places: dict[str, Place], close_first: bool) -> set[Trunk]:
        """Give the trunks that are given up when exports go to these places. Where one was led to others by a
        switch, they keep theirs when it goes to another disk; unless the connections have to be closed first.
        """
        service, trunks = self._service, self._trunks(places)
        if close_first:
            return trunks
        configured = [self._place(export, None) for export in places]
        here = {service.disk_at(each) for each in (*places.values(), *configured)}
        return {
            each
            for each in trunks
            if service.disks.of(each) in here or not others(service, places, each)
        }

    # --- The end

    def _let_go_on(self, *exports: str) -> None:
        for export in exports:
            self._holders.pop(export, None)
            self._ends_at.pop(export, None)
            waiting = self._waiting.pop(export, None)
            if waiting is not None:
                waiting.cancel()
        self.holding.let_go_on(*exports)
        for by, names in list(self._paused_by.items()):
            if self._service.paused.keys().isdisjoint(names):
                del self._paused_by[by]

    def _end_after(self, export: str, seconds: float) -> float:
        """Have a pause last so long, unless somebody has asked for longer: say how long it lasts."""
        now = trio.current_time()
        ends_at = self._ends_at.get(export, -math.inf)
        if ends_at > now + seconds:
            return round(ends_at - now)
        self._ends_at[export] = now + seconds
        before = self._waiting.pop(export, None)
        if before is not None:
            before.cancel()
        waiting = self._waiting[export] = trio.CancelScope()
        self._nursery.start_soon(self._end, export, seconds, waiting)
        return seconds

    async def _end(self, export: str, seconds: float, waiting: trio.CancelScope) -> None:
        with waiting:
            await trio.sleep(seconds)
        async with self._turn:
            if self._waiting.get(export) is waiting:
                await self._end_now(*self._due(), why="nobody has done it")

    def _due(self) -> list[str]:
        """Give the exports whose pause has lasted as long as it may: also those whose end has waited for
        another's.
        """
        now = trio.current_time()
        return [export for export in self._waiting if self._ends_at[export] <= now]

    async def _end_now(self, *exports: str, why: str) -> None:
        """End pauses, all at the same time: a server that says nothing is waited for once, and nobody waits for
        another's.
        """
        async with trio.open_nursery() as nursery:
            for export in exports:
                self._service.log.warning(f"export resumed: {why}", export=export)
                nursery.start_soon(self._end_one, export)

    async def _end_one(self, export: str) -> None:
        try:
            await self._reconnect([export])
        except NotDone as error:
            self._service.log.error(
                "sessions have no connection at the end of a pause", export=export, why=str(error)
            )
        self._let_go_on(export)

    # --- Other links

    def _place(self, export: str, target: Target | None) -> Place:
        service, route = self._service, self._route(export)
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

    async def _reconnect(self, exports: Collection[str]) -> dict[str, Reconnected]:
        """Have the sessions whose link is gone get others, to where they were, unless their disk is not there:
        say of each export what came of it. All are seen to at the same time, and have one limit. Raises
        `NotDone`.
        """
        done = {export: Reconnected() for export in exports}
        problems: dict[str, None] = {}

        async def reconnect(export: str) -> None:
            try:
                await self._reconnect_one(export, done[export], Within(OPEN_SECONDS))
            except NotDone as error:
                problems[str(error)] = None
            if done[export].ended:
                why = done[export].in_words(export)
                self._service.log.error("sessions have ended", export=export, why=why)

        async with trio.open_nursery() as nursery:
            for export in exports:
                nursery.start_soon(reconnect, export)
        if problems:
            ended = [each.in_words(export) for export, each in done.items() if each.ended]
            raise NotDone("; ".join([*problems, *ended]))
        return done

    async def _reconnect_one(self, export: str, done: Reconnected, within: Within) -> None:
        service = self._service
        await self._are_in_order(export, within)
        lost = [each for each in self.holding.sessions(export) if self._has_no_link(each)]
        if lost:
            service.switches[export] += 1
            if now := service.switched.get(export):
                service.switched[export] = replace(now, switches=service.switches[export])
        # A reload may have led some to one server, and those who came later to another.
        for was in {each.opened.place for each in lost}:
            place = replace(was, switches=service.switches[export])
            sessions = [each for each in lost if each.opened.place == was]
            trunks = {trunk_of(each.opened) for each in sessions}
            leaving = {each for each in trunks if each is not None}
            places = {export: place}
            async with GoingOver(service, self.holding, places, within, vouched=False) as over:
                await over.open_for(sessions, leaving)
                await over.are_quiet(sessions)
                over.go(sessions, leaving)
            done.add(len(sessions), over.without_disk.values())

    async def _are_in_order(self, export: str, within: Within) -> None:
        """Wait for the links that sessions of an export have got again by themselves: only then it is known
        whether they lead to the same disk. What clients of other exports use as well they wait for as they go
        on. Raises `NotDone`.
        """
        trunks = {trunk_of(each.opened) for each in self.holding.sessions(export)}
        coming = [
            trunk
            for trunk in trunks
            if trunk is not None
            and trunk.bundle.lines
            and not others(self._service, [export], trunk)
        ]
        with within.over(lambda: f"the connections are not in order after {within.seconds:g} s"):
            for trunk in coming:
                await trunk.restored()

    def _has_no_link(self, running: Running) -> bool:
        """Say whether a held session has to be opened anew: nobody else cares for it."""
        trunk = trunk_of(running.opened)
        if relaying(running).link_lost or trunk is None:
            return bool(relaying(running).link_lost)
        # With others, who are not held, it goes on as they do.
        is_down = trunk.ended or not trunk.bundle.lines
        return is_down and not others(self._service, [running.name], trunk)


def _names(exports: Exports) -> list[str]:
    return [exports] if isinstance(exports, str) else list(dict.fromkeys(exports))

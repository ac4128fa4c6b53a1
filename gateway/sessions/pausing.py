"""Pauses exports under their running clients, and has them go on over connections to another server.

A pause holds the sessions of an export (`gateway.sessions.holding`). Clients notice a slow server, and nothing
else; whoever would open the export meanwhile waits. Then a disk may be copied, or its server exchanged.

A switch opens the export anew for every session (`going_over`) while all sessions still run as they are. It
compares the new export with what each client was promised, and, whoever is connected, with what the present
server says. Only then all are held and flushed, and go over in one step.

What must not happen:

- A server tells a FLUSH of ours that something was lost, and the client is never told. So that is a loss like
  any other (`gateway.losses.rule`): each session that relies on it is told at its next FLUSH.
- An operator takes something for flushed of which a part may be lost. So nothing is done until all who rely on
  it were told; or until the operator says that this is accepted, and then the sessions are told later.
- A client hangs for ever because somebody forgot it. So a pause ends by itself, and says so. If its caller has
  gone before it could be told, it ends at once (`undo`).
- Clients wait for what cannot be done. So everything that may fail is done before any session is held, and
  there is one limit of time for the whole command.
- A server that restarts takes clients with it, although nothing is under way and everything is durable. So
  sessions of a paused export live on without their links, and get others when they go on.

Several exports can be taken together: all of them are done, or none.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from gateway.plural import plural
from gateway.sessions.comparing import compare, open_and_compare, route_of
from gateway.sessions.going_over import (
    GoingOver,
    part_from_links,
    refuse_to_part_others,
)
from gateway.sessions.holders import Holders
from gateway.sessions.holding import Holding, NotDone, NotHere, Within
from gateway.sessions.opened import Location
from gateway.sessions.reconnecting import Reconnecting
from gateway.sessions.service import Paused, Relayed, Service
from gateway.sessions.whereabouts import (
    Led,
    Target,
    anywhere,
    lead_to,
    location_now,
    location_of,
    trunks_left,
)
from gateway.wire.handshake import shown

COMMAND_SECONDS = 30.0
"""How long a command may take, FLUSH included: as long as a server may reasonably take for one of a client's.
Then all go on, for clients that have to wait longer begin to fail."""

LASTS_SECONDS = 300.0
"""How long a pause lasts that nobody ends: enough to copy a disk's metadata, or to restart a server, and less
than systems in virtual machines bear without a disk."""


Exports = str | Sequence[str]
"""One export (our name), or several that are taken together."""


class Pauses:
    """The exports that are paused. One command is done at a time. Tasks in `nursery` wait for the ends of
    pauses.
    """

    def __init__(self, service: Service, nursery: trio.Nursery) -> None:
        self._service = service
        self._nursery = nursery
        self._turn = trio.Lock()
        self._waiting: dict[str, trio.CancelScope] = {}
        self._ends_at: dict[str, float] = {}
        self._holders = Holders()
        self.holding = Holding(service)
        self._reconnecting = Reconnecting(service, self.holding)
        self.while_connected: set[str] = set()
        """Exports that are paused as long as who has asked is connected."""
        self.have_gone_on: Callable[[Collection[str]], object] = _nobody_minds
        """Is told which exports go on."""
        self.may_lead: Callable[[Led], Awaitable[None]] = anywhere
        """Asked before exports are led elsewhere; raises `NotDone`: they must not be, or not here."""
        self.have_led: Callable[[Mapping[str, Location], bool], object] = _nobody_minds
        """Is told where exports are now, and whether that is where the configuration says."""

    # --- What is asked for

    async def pause(
        self,
        exports: Exports,
        *,
        seconds: float = COMMAND_SECONDS,
        within: Within | None = None,
        lasts: float = LASTS_SECONDS,
        accept_loss: bool = False,
        by: object = None,
        command: object = None,
        anew: bool = False,
        who: str = "a command",
    ) -> list[str]:
        """Pause exports within some seconds, or within what is left of a command's time (`within`). Say what
        was done. An export that is paused already is only paused longer, unless it has to be done `anew`. `by`
        is whoever may take the pause back by `resume`, also if several commands have made it; `undo` takes back
        only this `command`. `who` is shown to operators. Raises `NotDone`.
        """
        names, service, within = _names(exports), self._service, within or Within(seconds)
        async with self._my_turn(within):
            for name in names:
                route_of(service, name)
            new = [name for name in names if name not in service.paused]
            if anew and len(new) < len(names):
                there = ", ".join(shown(name) for name in names if name not in new)
                raise NotDone(f"{there} is paused already, and stays so")
            if not accept_loss:
                self.holding.refuse_if_lost(new)
            flushed: dict[str, int] = {}
            if new:
                flushed = await self.holding.hold(new, within, accept_loss=accept_loss, who=who)
            self._holders.add(names, by, command)
            if anew:
                self.while_connected |= {*names}
            last = {name: self._end_after(name, lasts) for name in names}
        return [self._paused(name, flushed.get(name), last[name]) for name in names]

    def _paused(self, export: str, flushed: int | None, lasts: float) -> str:
        if flushed is None:
            return f"{shown(export)} was paused already, and is for {lasts:g} s from now on"
        count = len(self.holding.sessions(export))
        self._service.log.info("export paused", export=export, sessions=count, seconds=lasts)
        return (
            f"{shown(export)}: {plural(count, 'session')} held, {flushed} flushed, for {lasts:g} s"
        )

    async def resume(self, exports: Exports, by: object = None) -> list[str]:
        """Have the sessions of exports go on. Say what was done. `by`: who has paused them. Only that is taken
        back, and exports that others hold as well stay paused. Raises `NotDone` if an export is not paused.
        Also if a session's link is gone and cannot be had anew; then all stay paused. And also if sessions have
        ended, because their disk is not there any more; then everything else is done.
        """
        names = _names(exports)
        async with self._turn:
            for name in names:
                if name not in self._service.paused:
                    raise NotHere(f"{shown(name)} is not paused")
                if by is not None and not self._holders.held_by(name, by):
                    raise NotDone(
                        f"{shown(name)} has gone on meanwhile, and was paused by others since"
                    )
            kept = (
                []
                if by is None
                else [name for name in names if self._holders.others_hold(name, by)]
            )
            names = [name for name in names if name not in kept]
            reconnected = await self._reconnecting.reconnect(names)
            self._holders.taken_back(by, kept, names)
            counts = {name: len(self.holding.sessions(name)) for name in names}
            self._let_go_on(*names)
        done = [f"{shown(name)} stays paused: others have asked for that as well" for name in kept]
        for name, count in counts.items():
            self._service.log.info("export resumed", export=name, sessions=count)
            anew = reconnected[name].count
            words = f", {anew} of them over new connections" if anew else ""
            done.append(f"{shown(name)}: {plural(count, 'session goes', 'sessions go')} on{words}")
        if any(each.ended for each in reconnected.values()):
            ended = [each.in_words(name) for name, each in reconnected.items() if each.ended]
            raise NotDone("; ".join([*ended, *done]))
        return done

    async def undo(self, command: object) -> None:
        """Take back the pauses of a command whose caller has gone. They end, unless others have asked for them,
        too, or the same caller by another command.
        """
        async with self._turn:
            ends = self._holders.undo(command)
            await self._end_now(*ends, resumed="export resumed: who had it paused has gone")

    def paused_by(self, by: object) -> list[str]:
        """Give the exports that somebody has paused, even if some of them have gone on meanwhile."""
        return self._holders.paused_by(by)

    async def switch(
        self,
        exports: Exports,
        target: Target | None,
        *,
        seconds: float = COMMAND_SECONDS,
        within: Within | None = None,
        close_first: bool = False,
        accept_loss: bool = False,
        note: Callable[[str], object] = lambda _what: None,
    ) -> list[str]:
        """Have the sessions of exports go over to another server, or (None) to new connections to the server of
        the configuration, in the same time as a pause takes. An export that was paused stays paused. Say what
        was done. `note` is told what somebody has to see to. `close_first`: close the old connections before
        the new ones are made, for servers that take only one; what fails then leaves the exports paused. Raises
        `NotDone`.
        """
        names, service, within = _names(exports), self._service, within or Within(seconds)
        async with self._my_turn(within):
            config = service.config
            self.holding.refuse_if_draining()
            locations = {name: location_of(service, name, target) for name in names}
            await self.may_lead(
                {name: (location_now(service, name), locations[name]) for name in names}
            )
            leaving = trunks_left(service, self.holding, locations, close_first)
            refuse_to_part_others(service, names, leaving)
            if not accept_loss:
                self.holding.refuse_if_lost(names)
            sessions = self.holding.sessions(*names)
            async with GoingOver(service, self.holding, locations, within, vouched=True) as over:
                close_first = close_first and bool(sessions or leaving)
                if not close_first:
                    await compare(service, over, locations, sessions, leaving, within, note)
                new = [name for name in names if name not in service.paused]
                if new:
                    await self.holding.hold(new, within, accept_loss=accept_loss, who="a switch")
                try:
                    if service.config is not config:
                        raise NotDone(
                            "there is another configuration since: see what it says first"
                        )
                    if not accept_loss:
                        self.holding.refuse_if_lost(names)
                    if close_first:
                        sessions = await self._close_first(over, locations, new, within)
                    else:
                        sessions = self.holding.sessions(*names)
                        leaving = trunks_left(service, self.holding, locations, close_first)
                        await open_and_compare(self._service, over, locations, sessions, leaving)
                        await over.are_quiet(sessions)
                        over.go(sessions, leaving)
                    for name, location in locations.items():
                        lead_to(service, name, location, to_configured=target is None)
                    self.have_led(locations, target is None)
                finally:
                    self._let_go_on(*(name for name in new if name not in self._waiting))
        return self._switched(locations, sessions)

    def _switched(self, locations: dict[str, Location], sessions: Collection[Relayed]) -> list[str]:
        done = []
        for name, location in locations.items():
            count = sum(each.name == name for each in sessions)
            self._service.log.info(
                "export switched", export=name, server=location.server.name, sessions=count
            )
            words = f"{shown(name)}: {plural(count, 'session')} went over to {location.server.name}"
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

    # --- Another process

    def as_said(self) -> dict[str, dict[str, object]]:
        """Give the pauses for a message to another process."""
        now, paused = trio.current_time(), self._service.paused
        return {
            export: {
                "who": paused[export].by,
                "seconds": ends_at - now,
                "holders": self._holders.words(export),
            }
            for export, ends_at in self._ends_at.items()
            if export in paused
        }

    def take_over(self, said: Mapping[str, Any]) -> None:
        """Pause what another process has paused, and `as_said`: its sessions are there, and whoever comes here
        waits. Raises what a message raises that is not understood.
        """
        for export, each in said.items():
            self._service.paused[export] = Paused(each["who"])
            for by in each["holders"] or [None]:
                self._holders.add([export], by)
            self._end_after(export, max(0.0, each["seconds"]))
        self._service.note_change()

    async def go_on(self, exports: Collection[str]) -> None:
        """Exports have gone on in another process: here, too."""
        async with self._turn:
            for export in exports:
                if export in self._service.paused:
                    await self._end_one(export)

    # --- Closing first

    async def _close_first(
        self, over: GoingOver, locations: dict[str, Location], new: Collection[str], within: Within
    ) -> list[Relayed]:
        """Close the old connections, make the new ones, and have the sessions go over, which are held. Give the
        sessions. Raises `NotDone`, and then the exports stay paused.
        """
        sessions = self.holding.sessions(*locations)
        leaving = trunks_left(self._service, self.holding, locations, True)
        refuse_to_part_others(self._service, locations, leaving)
        try:
            with within.over(
                lambda: f"the connections were not closed within {within.seconds:g} s"
            ):
                await part_from_links(sessions, leaving)
            await open_and_compare(self._service, over, locations, sessions, leaving)
            await over.are_quiet(sessions)
            over.go(sessions, leaving)
        except NotDone as error:
            self._stay_paused(new)
            text = f"{error}; it stays paused, for a switch or resume to another end"
            raise NotDone(text) from None
        except BaseException:  # whoever has asked is gone
            if not self._service.told_to_end:
                with trio.CancelScope(shield=True):
                    await over.aclose()  # it may have what they go back to
                    await self._undo_closing(locations, new)
            raise
        return sessions

    async def _undo_closing(self, exports: Collection[str], new: Collection[str]) -> None:
        """Have the sessions go back to where they were, if possible."""
        try:
            await self._reconnecting.reconnect(exports)
        except NotDone as error:
            self._service.log.error("export stays paused", exports=[*new], why=str(error))
            self._stay_paused(new)

    def _stay_paused(self, new: Collection[str]) -> None:
        for name in new:
            self._holders.add([name])
            self._end_after(name, LASTS_SECONDS)

    # --- The end

    def _let_go_on(self, *exports: str) -> None:
        self.while_connected -= {*exports}
        for export in exports:
            self._holders.has_gone_on(export)
            self._ends_at.pop(export, None)
            waiting = self._waiting.pop(export, None)
            if waiting is not None:
                waiting.cancel()
        self.holding.let_go_on(*exports)
        self._holders.forget_all_but(self._service.paused)
        self.have_gone_on(exports)

    def _end_after(self, export: str, seconds: float) -> float:
        """Have a pause last so long, unless somebody has asked for longer. Say how long it lasts."""
        now = trio.current_time()
        ends_at = self._ends_at.get(export, -math.inf)
        if ends_at > now + seconds:
            return round(ends_at - now)
        self._ends_at[export] = now + seconds
        before = self._waiting.pop(export, None)
        if before is not None:
            before.cancel()
        waiting = self._waiting[export] = trio.CancelScope()
        end = partial(self._end, export, seconds, waiting)
        self._nursery.start_soon(self._service.hub.attempt, end)
        return seconds

    async def _end(self, export: str, seconds: float, waiting: trio.CancelScope) -> None:
        with waiting:
            await trio.sleep(seconds)
        async with self._turn:
            if self._waiting.get(export) is waiting:
                await self._end_now(*self._due(), resumed="export resumed: nobody has done it")

    def _due(self) -> list[str]:
        """Give the exports whose pause has lasted as long as it may, also if its end had to wait for
        another's.
        """
        now = trio.current_time()
        return [export for export in self._waiting if self._ends_at[export] <= now]

    async def _end_now(self, *exports: str, resumed: str) -> None:
        """End pauses, all at the same time; `resumed` is the log's event. If a server says nothing, we wait for
        it once, and no export waits for another.
        """
        async with trio.open_nursery() as nursery:
            for export in exports:
                self._service.log.warning(resumed, export=export)
                nursery.start_soon(self._end_one, export)

    async def _end_one(self, export: str) -> None:
        try:
            await self._reconnecting.reconnect([export])
        except NotDone as error:
            self._service.log.error(
                "sessions have no connection at the end of a pause", export=export, why=str(error)
            )
        except Exception as error:  # a bug, which must hold nobody for ever
            self._service.hub.failed(error)
        self._let_go_on(export)


def _nobody_minds(*_what: object) -> None:
    """Nobody has to be told."""


def _names(exports: Exports) -> list[str]:
    return [exports] if isinstance(exports, str) else list(dict.fromkeys(exports))

"""If sessions of a paused export have lost their links meanwhile, they get other links before they go on: to
where they were, and to the disk that they had.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import trio

from gateway.plural import plural
from gateway.sessions.going_over import GoingOver, others, trunk_of
from gateway.sessions.holding import Holding, NotDone, Within
from gateway.sessions.service import Relayed, Service
from gateway.wire.handshake import shown

OPEN_SECONDS = 30.0
"""How long it may take to open exports anew when they are resumed, for all sessions together."""


@dataclass(slots=True)
class Reconnected:
    """What came of the sessions of an export that had lost their links in a pause."""

    count: int = 0
    """How many have got other links."""
    ended: int = 0
    """How many have ended, because their disk is not there any more."""
    why: str = ""
    """How we know that of one of them."""

    def add(self, sessions: int, without_disk: Collection[str]) -> None:
        """Take note of so many sessions, and of the reasons why some of them have ended."""
        self.count += sessions - len(without_disk)
        self.ended += len(without_disk)
        self.why = next(iter(without_disk), self.why)

    def in_words(self, export: str) -> str:
        """Say of an export that sessions have ended."""
        return f"{shown(export)}: {plural(self.ended, 'session has', 'sessions have')} ended: {self.why}"


class Reconnecting:
    """Gets links for the sessions of exports, which are held."""

    def __init__(self, service: Service, holding: Holding) -> None:
        self._service = service
        self._holding = holding

    async def reconnect(self, exports: Collection[str]) -> dict[str, Reconnected]:
        """Get other links for the sessions whose link is gone, to where they were, unless their disk is not
        there. Say of each export what came of it. All exports are done at the same time, within one limit.
        Raises `NotDone`.
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
        lost = [each for each in self._holding.sessions(export) if self._has_no_link(each)]
        if lost:
            service.switches[export] += 1
            if now := service.switched.get(export):
                service.switched[export] = replace(now, switches=service.switches[export])
        # A reload may have led some to one server, and those who came later to another.
        for was in {each.opened.location for each in lost}:
            location = replace(was, switches=service.switches[export])
            sessions = [each for each in lost if each.opened.location == was]
            trunks = {trunk_of(each.opened) for each in sessions}
            leaving = {each for each in trunks if each is not None}
            locations = {export: location}
            async with GoingOver(service, self._holding, locations, within, vouched=False) as over:
                await over.open_for(sessions, leaving)
                await over.are_quiet(sessions)
                over.go(sessions, leaving)
            done.add(len(sessions), over.without_disk.values())

    async def _are_in_order(self, export: str, within: Within) -> None:
        """Wait for the links that sessions of an export get again by themselves, for only then we know whether
        they lead to the same disk. Sessions do not wait here for links that clients of other exports use, too:
        they wait for these when they go on. Raises `NotDone`.
        """
        trunks = {trunk_of(each.opened) for each in self._holding.sessions(export)}
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

    def _has_no_link(self, running: Relayed) -> bool:
        """Say whether a held session has to be opened anew, because nobody else gets it a link."""
        trunk = trunk_of(running.opened)
        if running.relaying.link_lost or trunk is None:
            return bool(running.relaying.link_lost)
        # What a client of another export has written since the FLUSH, nobody can mend but this trunk.
        is_down = trunk.ended or not (trunk.bundle.lines or trunk.bundle.is_in_doubt)
        # With others, who are not held, it goes on as they do.
        return is_down and not others(self._service, [running.name], trunk)

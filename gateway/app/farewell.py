"""The end of the gateway in good order, step by step (`gateway.app.draining` says what for).

Nobody is let in any more, and whoever negotiates still is told that we shut down. Sessions may go on, for as
long as they were given. Then they are told to end. Last, who waits for an answer over the control socket has
it.
"""

from __future__ import annotations

from collections.abc import Mapping

import trio

from gateway.app.draining import Leaving
from gateway.app.standing import Standing
from gateway.net.keeper import KILL_SECONDS, STOP_SECONDS
from gateway.net.listen import Listener
from gateway.sessions.service import Service
from gateway.sessions.transmit import LINGER_SECONDS

NEGOTIATION_DRAIN_SECONDS = 2
"""How long clients that have not opened an export yet may take to ask for one and be told ERR_SHUTDOWN."""

ANSWER_SECONDS = 1
"""How long those may take who wait for an answer over the control socket: what has had the gateway end, and may
have ended it at once, is answered by then."""

LOOK_AGAIN_SECONDS = 0.01


class Farewell:
    """Ends the gateway in good order. `clients` are counted by listener."""

    def __init__(
        self,
        service: Service,
        standing: Standing,
        leaving: Leaving,
        clients: Mapping[Listener, int],
    ) -> None:
        self._service = service
        self._standing = standing
        self._leaving = leaving
        self._clients = clients
        self._left = trio.Event()

    def note_left(self) -> None:
        """Note that a client has left."""
        self._left.set()

    def in_a_line(self) -> str:
        """Say for people how far it is."""
        what = "draining" if self._leaving.begun.is_set() else "serving"
        return f"{what}; sessions: {self._service.relayed}"

    async def say(self) -> None:
        """Do all of it."""
        service = self._service
        await self._let_nobody_in()
        await self._leaving.wait(self._all_sessions_have_left)
        if service.relayed:
            service.log.info("sessions are told to end", sessions=service.relayed)
        service.drain()
        await self._wait_for_clients()
        await self._answer_who_has_asked()

    async def _let_nobody_in(self) -> None:
        service, leave = self._service, self._leaving.seconds_left
        clients = sum(self._clients.values())
        service.log.info("shutting down", clients=clients, sessions_end_in_seconds=leave)
        for listener in self._standing.doors.listeners:
            await listener.aclose()
        service.let_nobody_open()
        seconds = (leave or 0) + service.config.drain_seconds + LINGER_SECONDS + ANSWER_SECONDS
        servers = STOP_SECONDS + KILL_SECONDS
        await self._standing.manager.stopping(seconds + servers, self.in_a_line())

    async def _all_sessions_have_left(self) -> None:
        while self._service.relayed:
            await self._next_to_leave()

    async def _wait_for_clients(self) -> None:
        """Wait until all clients have gone, but no longer than the configuration says (then the sessions have
        been cut, and what is left is to see them off).
        """
        with trio.move_on_after(self._service.config.drain_seconds + LINGER_SECONDS):
            with trio.move_on_after(NEGOTIATION_DRAIN_SECONDS):
                while any(self._clients.values()):
                    await self._next_to_leave()
            await self._all_sessions_have_left()
            await self._service.hub.all_seen_off()

    async def _answer_who_has_asked(self) -> None:
        control = self._standing.doors.control
        with trio.move_on_after(ANSWER_SECONDS):
            while control is not None and control.answering:
                await trio.sleep(LOOK_AGAIN_SECONDS)

    async def _next_to_leave(self) -> None:
        self._left = trio.Event()
        await self._left.wait()

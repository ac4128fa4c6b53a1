"""Clients from when they are accepted until they have gone: who is let in, and who is counted where.

A client counts at its listener from the first moment, so that those in their negotiation count for
`max-connections` too; with an older process or other workers beside this one, theirs count as well. Nothing
that a client does, and no bug of ours or of a policy, takes others with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import trio

from gateway.app.descriptors import why_short
from gateway.app.let_in_nowhere import LetInNowhere
from gateway.app.standing import Present, Standing
from gateway.clients.client import ChooseSession, naming, serve_client, serve_given
from gateway.config import Listen
from gateway.log.ids import new_id
from gateway.net.listen import Listener, take_clients
from gateway.net.options import peer_of
from gateway.net.tally import Tally
from gateway.sessions.service import Service

if TYPE_CHECKING:
    from gateway.handover.given import Given
    from gateway.identity import Identity
    from gateway.workers.member import Member

SHORTAGE_LOG_SECONDS = 60


class Arrivals:
    """The clients of a gateway. `present` counts them by the configuration with which they came."""

    def __init__(
        self, service: Service, standing: Standing, present: Present, member: Member | None
    ) -> None:
        self._service = service
        self._standing = standing
        self._present = present
        self._member = member
        self.clients: dict[str, tuple[Listener, Identity]] = {}
        """Who is connected, by their ids; of two connections of one client the newer one."""
        self.counts: Counter[Listener] = Counter()
        self.had_one = False
        """One that has asked for something: who only looks whether the port is open is none."""
        self.is_drained: Callable[[Listener], bool] = lambda _listener: False
        """Says whether an operator lets nobody in."""
        self.elsewhere: Callable[[Listener], int] = lambda _listener: 0
        """Says how many an older process has that came by a listener."""
        self.left: Callable[[], object] = lambda: None
        """Is told that one has left."""
        self._shortages: Tally[str] = Tally(SHORTAGE_LOG_SECONDS, self._say_shortage)
        self._turned_away = LetInNowhere(service.counts, service.log)

    @property
    def tallies(self) -> list[Callable[[], Awaitable[object]]]:
        """What says now and then how many were not let in; each has to run."""
        return [self._shortages.run, self._turned_away.run]

    def taking(
        self, listener: Listener, tasks: trio.Nursery
    ) -> list[Callable[[], Awaitable[object]]]:
        """Give what takes the clients of a listener, each in `tasks`, until cancelled."""

        def take(stream: trio.SocketStream) -> None:
            tasks.start_soon(self._client, listener, stream)

        return [partial(take_clients, each, take, self.short) for each in listener.sockets]

    def take(
        self, listener: Listener, stream: trio.SocketStream, given: Given, tasks: trio.Nursery
    ) -> None:
        """Serve a client that another process has handed over."""
        entry = self.clients[given.session_id] = listener, given.identity
        tasks.start_soon(self._client, listener, stream, given, entry)

    def short(self, number: int) -> None:
        """Nobody could be accepted: an error number says what there is too little of."""
        self._shortages.add(why_short(number))

    def _say_shortage(self, why: str, count: int, _last: str) -> None:
        self._service.log.error("could not accept a client", why=why, attempts=count)

    async def _client(
        self,
        listener: Listener,
        stream: trio.SocketStream,
        given: Given | None = None,
        entry: tuple[Listener, Identity] | None = None,
    ) -> None:
        """Serve a client. One that was handed over has its `entry` among `clients`."""
        log = self._service.log
        session_id = new_id() if given is None else given.session_id
        counts = given is None or not given.via_tls  # else it has a place where its TLS is
        self._count(listener, 1, counts=counts)
        try:
            if entry is None:
                entry = self.clients[session_id] = listener, peer_of(stream.socket)
            _listener, who = entry
            log = naming(who, log, session_id)
            with self._present.one():
                async with stream:
                    await self._serve(listener, stream, session_id, given)
        except (Exception, SystemExit):
            # A bug, ours or a policy's; it must not take the other clients with it.
            log.exception("client lost to an internal error")
        finally:
            # One that another gateway has led here again may have come before its broken connection ends.
            if self.clients.get(session_id) is entry:
                self.clients.pop(session_id, None)
            self._count(listener, -1, counts=counts)
            self.left()

    async def _serve(
        self, listener: Listener, stream: trio.SocketStream, session_id: str, given: Given | None
    ) -> None:
        listen, reached, tls = listener.settings, str(listener.uri), self._tls(listener.settings)
        here = self.counts[listener] + self.elsewhere(listener)
        if self._member is not None:
            here = self._member.there(listener)
        if given is not None:
            await serve_given(self._service, listen, stream, given, tls, reached=reached)
        elif self.is_drained(listener):
            self._turned_away.add(listener, stream, "the listener is drained")
        elif here > listen.max_connections:
            why = f"{listen.max_connections} are connected"
            self._turned_away.add(listener, stream, why)
        elif await serve_client(
            self._service, listen, stream, tls, session_id=session_id, reached=reached
        ):
            self.had_one = True

    def _count(self, listener: Listener, number: int, *, counts: bool) -> None:
        """Count a client (1), or count it no more (-1); in the whole gateway, if it `counts` there."""
        self.counts[listener] += number
        if not self.counts[listener]:
            del self.counts[listener]
        if self._member is not None and counts:
            self._member.comes(listener, number)

    def _tls(self, listen: Listen) -> ChooseSession | None:
        keyring = self._standing.keyring
        ring = None if keyring is None else keyring.listener(listen)
        return None if ring is None else ring.current.session

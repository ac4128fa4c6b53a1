"""How a session reaches its disk: over a link of its own, or by a share of a trunk. Both are an `Uplink`.

Whoever opens an export, or puts a session on its uplink (`gateway.sessions.seat`), does the same with either
kind. What differs is here. With a link of its own, a session writes to the socket, and the session alone knows
what was written over the link. With a share, it asks the bundle by a port, and the bundle knows.
"""

from __future__ import annotations

import select
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Protocol

from gateway.bundle.again import Pause
from gateway.bundle.lines import State
from gateway.bundle.recovery import looks
from gateway.links.asking import Asking, OverPort, OverSocket
from gateway.links.trunk import Trunk, speaks_for_all
from gateway.losses.rule import Flushed, Trail
from gateway.losses.survival import Doubt
from gateway.net.options import RelaySocket, has_gone
from gateway.protocol.asks import Ask, Done, Outcome
from gateway.protocol.export import Export
from gateway.quirks import Dialect
from gateway.scan.traffic import Traffic
from gateway.upstream.ladder import Rung
from gateway.upstream.link import Link
from gateway.upstream.server import Server
from gateway.wire.constants import Cmd

Act = Callable[[Callable[[], None]], None]
"""Runs something in the data plane, between two steps of a session."""


class LinksLost(Exception):
    """The connections of an uplink were lost before any session was on it; the text says which, and why."""


class Sitter(Protocol):
    """What an uplink needs of the session that is put on it, and what it tells that session."""

    @property
    def traffic(self) -> Traffic:
        """What is under way between the session and this uplink."""

    @property
    def act(self) -> Act:
        """Runs something between two of the session's steps."""

    def has_own(self, own: OwnLink, trail: Trail) -> None:
        """It has a link of its own; `trail` is what is written over that link."""

    def has_share(self, share: Share) -> None:
        """It has a share of a trunk, and ends when the trunk does."""


class Uplink(ABC):
    """A session's way to its disk. Close it with `leave` while nothing is under way, else with `close`."""

    def __init__(
        self,
        server: Server,
        export: Export,
        first: Link,
        *,
        socket: RelaySocket | None = None,
        trunk: Trunk | None = None,
        ask: Callable[[Ask, Done], None] | None = None,
        push: Callable[[], None] | None = None,
    ) -> None:
        self.server = server
        self.export = export
        """As the upstream means it: repaired. Over a share, CAN_MULTI_CONN is what clients may be promised."""
        self.dialect: Dialect = first.dialect
        """How the upstream is spoken to."""
        self.quirks = first.quirks
        """Names of the quirks in force."""
        self.cleared = first.cleared
        """Transmission flags that the server sets and nobody is told."""
        self.rung: Rung = first.rung
        """How much of the protocol the server was found to bear."""
        self.socket = socket
        """The link's, if the session itself sends and receives over it."""
        self.trunk = trunk
        """What this is a share of; None: a link of the session's own."""
        self.ask = ask
        """Takes what a session's jobs ask, and calls each back once. None: they ask over the socket."""
        self.push = push
        """Sends what was asked by `ask`."""

    @property
    @abstractmethod
    def why(self) -> str:
        """Why every command is TRANSLATED; empty if that is not so."""

    @property
    def why_away(self) -> str | None:
        """Why nothing leads to the server at this moment, where others are waiting for that; else None."""
        return None

    @property
    @abstractmethod
    def stands(self) -> bool:
        """Nobody has given it up since it was opened."""

    @property
    @abstractmethod
    def is_alive(self) -> bool:
        """It still leads to the server, as far as is known."""

    @property
    @abstractmethod
    def connections(self) -> dict[str, object]:
        """What the log says of its connections; nothing, if there is only one."""

    @abstractmethod
    def take(self, sitter: Sitter) -> None:
        """Put a session on it, and tell the session what it has."""

    @abstractmethod
    def asking(self, traffic: Traffic) -> Asking:
        """Give what asks over it while no session is on it. The asks are those of the jobs of `traffic`, which
        was made with `ask`.
        """

    @abstractmethod
    async def recognised(self, left: Collection[Trail], lend: Callable[[OwnLink], Trunk]) -> Uplink:
        """Find out whether it leads to the disk that was left with other links, and give the uplink to use. A
        trunk can look at what is there: `lend` makes one of a link of one's own. Raises `LinksLost` and
        `AnotherDisk`, and then it is closed.
        """

    @abstractmethod
    def say_disc(self) -> None:
        """Say DISC, unless others do that."""

    @abstractmethod
    def close(self) -> None:
        """Close it. Closing twice is once."""

    def leave(self) -> None:
        """Close it in good order, while nothing is under way over it."""
        self.say_disc()
        self.close()


class OwnLink(Uplink):
    """A link of a session's own. If it was used before, `trail` is what was written over it. `pause` says how
    long to wait before it is made again.
    """

    def __init__(
        self, server: Server, link: Link, trail: Trail | None = None, pause: Pause | None = None
    ) -> None:
        super().__init__(server, link.export, link, socket=link.socket)
        self.link = link
        self.trail = trail
        self.pause = pause or Pause()

    @property
    def why(self) -> str:
        """See `Uplink`."""
        return ""

    @property
    def stands(self) -> bool:
        """See `Uplink`."""
        return True

    @property
    def is_alive(self) -> bool:
        """See `Uplink`."""
        poll = select.poll()
        poll.register(self.link.socket.fileno(), select.POLLRDHUP)
        return not poll.poll(0)

    @property
    def connections(self) -> dict[str, object]:
        """See `Uplink`."""
        return {}

    @property
    def lives_on(self) -> bool:
        """When it dies, another one is made."""
        return bool(self.server.mode.survival.reconnect_seconds)

    def take(self, sitter: Sitter) -> None:
        """See `Uplink`. What the session writes is noted in a trail of its disk's losses."""
        traffic, trail = sitter.traffic, self.trail
        debt = traffic.debt
        if trail is None:
            owner = None if speaks_for_all(self.export) else debt
            records = self.lives_on and self.export.can_flush
            trail = self.trail = debt.losses.trail(owner, records=records)
            trail.believed = self.server.mode.survival.unflushed is Doubt.ASSUME_DURABLE
            trail.unseen = not self.server.mode.survival.through_us
            debt.losses.came_up(trail)
        note_writes(trail, traffic, self.link.socket, sitter.act)
        sitter.has_own(self, trail)

    def asking(self, traffic: Traffic) -> Asking:
        """See `Uplink`."""
        return OverSocket(self.link.socket, traffic)

    async def recognised(self, left: Collection[Trail], lend: Callable[[OwnLink], Trunk]) -> Uplink:
        """See `Uplink`."""
        if not any(looks(self.server.mode.survival, trail) for trail in left):
            return self
        trunk = lend(self)
        trunk.start()
        share = Share(trunk)
        await share.recognised(left, lend)
        link, trail = trunk.dissolve()
        share.close()
        trail.losses.left(trail)
        return OwnLink(self.server, link)

    def say_disc(self) -> None:
        """See `Uplink`."""
        with suppress(OSError):  # it has gone already
            self.link.socket.send(self.export.framing.disc())

    def close(self) -> None:
        """See `Uplink`."""
        self.link.close()


def note_writes(trail: Trail, traffic: Traffic, socket: RelaySocket, act: Act) -> None:
    """Connect a trail with the session that writes over a link of its own. The session notes there what it
    writes, and sends a FLUSH when others need one. `act` is the session's.
    """
    trail.under_way = traffic.writing
    trail.cut = partial(has_gone, socket)
    trail.flush = partial(_flush, act, traffic)
    traffic.trail = traffic.debt.trail = trail


def _flush(act: Act, traffic: Traffic, done: Flushed) -> None:
    """Send a FLUSH over a session's own link, because others have to know what is durable."""

    def answered(outcome: Outcome) -> None:
        done(outcome.error, outcome.text)

    act(lambda: traffic.asks.send(Ask(Cmd.FLUSH, 0, 0), answered))


class Share(Uplink):
    """A session's part in a trunk, in place of a link of its own."""

    trunk: Trunk
    ask: Callable[[Ask, Done], None]
    push: Callable[[], None]

    def __init__(self, trunk: Trunk) -> None:
        self.port = trunk.join()
        super().__init__(
            trunk.server,
            trunk.export,
            trunk.first,
            trunk=trunk,
            ask=partial(trunk.bundle.ask, self.port),
            push=trunk.push,
        )

    @property
    def why(self) -> str:
        """See `Uplink`."""
        return self.server.mode.why_translated(self.trunk.decision.count)

    @property
    def why_away(self) -> str | None:
        """See `Uplink`."""
        bundle = self.trunk.bundle
        return bundle.why if bundle.state is State.DOWN else None

    @property
    def stands(self) -> bool:
        """See `Uplink`."""
        return self.trunk.stands

    @property
    def is_alive(self) -> bool:
        """See `Uplink`."""
        return self.trunk.stands and bool(self.trunk.bundle.lines)

    @property
    def connections(self) -> dict[str, object]:
        """See `Uplink`."""
        shared = {"shared": True} if self.server.mode.wanted.shared else {}
        return {"connections": self.trunk.decision.count, **shared}

    def take(self, sitter: Sitter) -> None:
        """See `Uplink`. What the session writes is noted by the bundle."""
        self.serve(sitter.traffic, sitter.act)
        self.trunk.belongs_to(sitter.traffic.debt)
        sitter.has_share(self)

    def serve(self, traffic: Traffic, act: Act) -> None:
        """Serve a session from now on; `act` hands out the answers."""
        self.port.traffic = traffic
        self.trunk.bundle.work.ports.there[self.port] = None
        if self.trunk.loose:
            traffic.locks.loosen(traffic.in_flight)
        self._wakes(act)

    def adopt(self, ask: Ask, done: Done) -> None:
        """Take over an ask that was sent over a link that is gone."""
        self.trunk.bundle.adopt(self.port, ask, done)

    def _wakes(self, act: Act) -> None:
        self.port.wake = partial(act, partial(self.trunk.bundle.answers, self.port))

    def asking(self, traffic: Traffic) -> Asking:
        """See `Uplink`. The traffic was made with `ask`."""
        return OverPort(self.trunk.push, self._wakes)

    async def recognised(self, left: Collection[Trail], lend: Callable[[OwnLink], Trunk]) -> Uplink:
        """See `Uplink`."""
        trunk = self.trunk
        try:
            await trunk.recognised(left)
            if not trunk.stands:
                raise LinksLost(lost(trunk))
        except BaseException:
            self.close()
            raise
        return self

    def dissolved(self) -> OwnLink:
        """End the trunk, and give its only link as a link of one's own. Nobody else has joined it, all is in
        order, and nothing is asked.
        """
        link, trail = self.trunk.dissolve()
        return OwnLink(self.server, link, trail, self.trunk.pauses[0])

    def say_disc(self) -> None:
        """See `Uplink`. The trunk says it when the last session has left."""

    def close(self) -> None:
        """See `Uplink`."""
        trunk = self.trunk
        trunk.contain(partial(trunk.bundle.leave, self.port))
        trunk.contain(partial(trunk.leave, self.port))


def lost(trunk: Trunk) -> str:
    """Say which connections were lost, and why."""
    return f"the connections to {trunk.server.name} were lost: {trunk.bundle.why}"

"""How a session reaches its disk: over a link of its own, or by a share of a trunk. Both are an `Uplink`.

Whoever opens an export, or puts a session on what came of that (`gateway.sessions.seat`), does the same with
either. What differs is here. Over a link of its own a session writes to the socket, and it alone knows what is
written over it. With a share it asks the bundle by a port, and the bundle knows.
"""

from __future__ import annotations

import select
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Protocol

from gateway.bundle.again import Pause
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
"""Runs something in the data plane, between two of a session's steps."""


class LinksLost(Exception):
    """The connections of an uplink are gone before anybody has sat down on it; the text says which, and why."""


class Sitter(Protocol):
    """What an uplink needs of the session that is put on it, and tells that."""

    @property
    def traffic(self) -> Traffic:
        """What the session does over this uplink."""

    @property
    def act(self) -> Act:
        """The session's."""

    def has_own(self, own: OwnLink, trail: Trail) -> None:
        """It has a link of its own, and `trail` is what is written over that."""

    def has_share(self, share: Share) -> None:
        """It has a share of a trunk, and ends with that."""


class Uplink(ABC):
    """A session's way to its disk. Close it with `leave`, or with `close` when more than that is over."""

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
        """As the upstream means it: repaired; of a share, with CAN_MULTI_CONN as clients may be promised it."""
        self.dialect: Dialect = first.dialect
        """How the upstream is spoken to."""
        self.quirks = first.quirks
        """Names of the quirks in force."""
        self.rung: Rung = first.rung
        """How much of the protocol the server was found to bear."""
        self.socket = socket
        """The link's, where it is the session that uses it."""
        self.trunk = trunk
        """What it is a share of."""
        self.ask = ask
        """Takes what a session's jobs ask, and calls back once; None: they ask over the socket."""
        self.push = push
        """Sends what was asked by `ask`."""

    @property
    @abstractmethod
    def why(self) -> str:
        """Why every command is TRANSLATED; empty if that is not so."""

    @property
    @abstractmethod
    def stands(self) -> bool:
        """Nobody has given it up since it was opened."""

    @property
    @abstractmethod
    def is_alive(self) -> bool:
        """It leads to the server still, as far as is known."""

    @property
    @abstractmethod
    def connections(self) -> dict[str, object]:
        """What the log says of them, unless there is one alone."""

    @abstractmethod
    def take(self, sitter: Sitter) -> None:
        """Have a session on it from now on, which is told what it has."""

    @abstractmethod
    def asking(self, traffic: Traffic) -> Asking:
        """Give what asks over it for the jobs of a `traffic` that was made with `ask`, while no session is on
        it.
        """

    @abstractmethod
    async def recognised(self, left: Collection[Trail], lend: Callable[[OwnLink], Trunk]) -> Uplink:
        """Give it when it is known whether it leads to the disk that was left with others. `lend` gives a
        trunk, which can look at what is there, a link of one's own. Raises `LinksLost` and `AnotherDisk`, and
        then it is closed.
        """

    @abstractmethod
    def say_disc(self) -> None:
        """Say goodbye, unless others do that."""

    @abstractmethod
    def close(self) -> None:
        """Close it. Closing twice is once."""

    def leave(self) -> None:
        """Close it in good order; nothing is under way over it."""
        self.say_disc()
        self.close()


class OwnLink(Uplink):
    """A link of a session's own. `trail` is what was written over it, if it was used before; `pause` has seen
    it made, and those before.
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
        """When it dies, another is made."""
        return bool(self.server.mode.survival.reconnect_seconds)

    def take(self, sitter: Sitter) -> None:
        """See `Uplink`. What the session writes is noted in the losses of its disk."""
        traffic, trail = sitter.traffic, self.trail
        debt = traffic.debt
        if trail is None:
            owner = None if speaks_for_all(self.export) else debt
            records = self.lives_on and self.export.can_flush
            trail = self.trail = debt.losses.trail(owner, records=records)
            trail.believed = self.server.mode.survival.unflushed is Doubt.ASSUME_DURABLE
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
    """Have what a session writes over a link of its own noted in a trail, and FLUSHed for who relies on it.
    `act` is the session's.
    """
    trail.under_way = traffic.writing
    trail.cut = partial(has_gone, socket)
    trail.flush = partial(_flush, act, traffic)
    traffic.trail = traffic.debt.trail = trail


def _flush(act: Act, traffic: Traffic, done: Flushed) -> None:
    """Send a FLUSH over a session's own link, for what others have to know."""

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
        """Have it as the uplink of a session, whose answers are handed out by `act`."""
        self.port.traffic = traffic
        self.trunk.bundle.work.ports.there[self.port] = None
        if self.trunk.loose:
            traffic.locks.loosen(traffic.in_flight)
        self._wakes(act)

    def adopt(self, ask: Ask, done: Done) -> None:
        """Have it taken over, that was asked over a link that is gone."""
        self.trunk.bundle.adopt(self.port, ask, done)

    def _wakes(self, act: Act) -> None:
        self.port.wake = partial(act, partial(self.trunk.bundle.answers, self.port))

    def asking(self, traffic: Traffic) -> Asking:
        """See `Uplink`. What it asks goes by `ask`, as the traffic has it."""
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
        """End the trunk, which nobody else has joined, while all is in order and nothing is asked: give its
        only link as one of one's own.
        """
        link, trail = self.trunk.dissolve()
        return OwnLink(self.server, link, trail, self.trunk.pauses[0])

    def say_disc(self) -> None:
        """See `Uplink`: the trunk does, when the last has left."""

    def close(self) -> None:
        """See `Uplink`."""
        trunk = self.trunk
        trunk.contain(partial(trunk.bundle.leave, self.port))
        trunk.contain(partial(trunk.leave, self.port))


def lost(trunk: Trunk) -> str:
    """Say that links are gone that were made for somebody."""
    return f"the connections to {trunk.server.name} were lost: {trunk.bundle.why}"

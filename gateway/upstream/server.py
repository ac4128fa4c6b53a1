"""One upstream of the configuration, or where an export was switched to, and what is known of it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol
from weakref import WeakSet

from gateway.net.options import RelaySocket
from gateway.protocol.export import Export
from gateway.quirks import Evidence, Quirk, catalogue, recognised
from gateway.upstream.coherence import Decision, decide
from gateway.upstream.connecting import Connector
from gateway.upstream.errors import Full
from gateway.upstream.examined import Examined
from gateway.upstream.handshake import Handshake
from gateway.upstream.ladder import Ladder
from gateway.upstream.listed import LastList
from gateway.upstream.mode import mode_of
from gateway.upstream.news import News, Said
from gateway.upstream.recipe import Recipe, Tls
from gateway.upstream.slots import Slot, Spare


class Ready(Spare, Protocol):
    """Whoever keeps connections to a server ready for its next clients (`gateway.upstream.warm`)."""

    @property
    def count(self) -> int:
        """How many connections are ready."""

    def served(self) -> None:
        """A client has its export."""

    async def take(self) -> Handshake | None:
        """Give a connection, which is the caller's from now on, if there is one."""


class Server:
    """The server of a recipe. `tls` gives the TLS session of a new connection, one for each place; if there is
    none, the server is spoken to in the clear. `chance` gives numbers from 0 to 1, so that many gateways do not
    all come at once.
    """

    def __init__(
        self, recipe: Recipe, *tls: Tls, chance: Callable[[], float] = random.random
    ) -> None:
        self.recipe = recipe
        """What it is made of."""
        self.name = recipe.name
        self.settings = recipe.settings
        """How it is spoken to."""
        self.tls: Sequence[Tls] = tls
        self.chance = chance
        self.mode = mode_of(recipe.settings, through_us=not recipe.at_home)
        """Over how many connections it serves, and what becomes of clients when they are lost."""
        self.disks = recipe.backend.disks
        """Whose disks they are: servers for which this is equal lead to the same disks, however they are spoken
        to."""
        self.where = recipe.where
        """Where it is, in words that two processes have in common."""
        self.slots = recipe.backend.slots
        """The slots of its backend, which all servers over that share."""
        self.connector = Connector(
            recipe,
            chance=chance,
            tell=lambda news: self.tell(news),
            serves=lambda: self.serves,
            another=self.forget,
        )
        """Connects to it."""
        self.tell: Callable[[News], None] = lambda _news: None
        """Is told when it goes down and comes back."""
        self.unusable = ""
        """Why the last connection to it was of no use, though it came about: its certificate, for one. Empty:
        it was of use."""
        self.told = Said()
        """What clients' logs have been told of it."""
        self.warm: Ready | None = None
        """What keeps connections to it ready, while something does."""
        self.ladder = Ladder()
        """How much of the protocol it bears."""
        self.examined = Examined()
        """What an INFO has shown of it."""
        self.listed = LastList()
        self.misnamed: tuple[str, ...] = ()
        """What its last list had by names that are no strings."""
        """What it serves."""
        self.guard: Callable[[str], Callable[[RelaySocket], RelaySocket]] | None = None
        """Gives what gives a link to an export (by its name there) its socket, where other gateways may come to
        serve it; raises `Unreachable` if nothing may be sent to it from here. None: no others may.
        """
        self.links: WeakSet[RelaySocket] = WeakSet()
        """The sockets of the links that it has served, as long as anybody has them."""

    @property
    def may_differ(self) -> bool:
        """Connections may lead to different servers and, as far as is known, to different disks."""
        return len(self.connector.connects) > 1 and not self.settings.same_storage

    def decide(self, exports: Sequence[Export], repaired: Iterable[str]) -> Decision:
        """Decide over how many connections an export is served. `exports`: what it is on each connection that
        is open.
        """
        return decide(
            self.mode.wanted,
            exports,
            same_storage=self.settings.same_storage,
            may_differ=self.may_differ,
            repaired=repaired,
        )

    def come_into_force(self, tell: Callable[[News], None]) -> None:
        """Become the server that clients are led to. `tell` is told when it goes down and comes back."""
        self.tell = tell
        self.slots.limiter.total_tokens = self.settings.max_connections or math.inf

    @property
    def serves(self) -> bool:
        """A link to it is there, as far as is known."""
        return any(sock.fileno() >= 0 for sock in self.links)

    @property
    def down(self) -> bool:
        """It cannot be connected to, as far as is known."""
        return self.connector.down

    @property
    def why_down(self) -> str:
        """Why, if it is."""
        return self.connector.why_down

    def try_soon(self) -> None:
        """An operator says that it is there: the next who connects tries."""
        self.connector.try_soon()

    def forget(self) -> None:
        """Forget what was learnt of it. Who has asked something because of that still goes by it."""
        self.ladder.seen_down()
        self.examined = Examined()

    async def slot(self, *, patient: bool = True, seconds: float | None = None) -> Slot:
        """Take a slot for a connection, as soon as there is one, within `seconds` (None: `connect_seconds`).
        Raises `Full`.
        """
        waits = self.settings.connect_seconds if seconds is None else seconds
        slot = await self.slots.take(waits if patient and self.connector.patient else None)
        if slot is None:
            most = f"max-connections = {self.slots.limiter.total_tokens:g}"
            raise Full(f"upstream {self.name!r} is in use: {most} lets it have no more connections")
        return slot

    def quirks(self, evidence: Evidence) -> tuple[Quirk, ...]:
        """Give the quirks that are in force on a link that showed this evidence."""
        if isinstance(self.settings.quirks, str):
            return recognised(evidence)
        return tuple(catalogue()[name] for name in self.settings.quirks)

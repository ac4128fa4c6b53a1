"""What all clients share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from gateway.config import Config, Route
from gateway.protocol.server import ServerNegotiation
from gateway.relay.hub import Hub
from gateway.relay.scan.locks import RangeLocks
from gateway.upstream.server import Server

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


@dataclass
class Service:
    """What all clients share."""

    config: Config
    servers: Mapping[str, Server]
    hub: Hub
    log: FilteringBoundLogger
    draining: bool = False
    """Shutting down: no export is opened any more."""
    negotiations: set[ServerNegotiation] = field(default_factory=set)
    """Those that are under way."""
    relayed: int = 0
    """Clients that have opened an export and are not seen off yet."""
    _locks: WeakValueDictionary[tuple[str, str], RangeLocks] = field(
        default_factory=WeakValueDictionary
    )

    def locks_of(self, route: Route) -> RangeLocks:
        """Give the locks that all sessions of one upstream's export share, for as long as any uses them."""
        return self._locks.setdefault((route.upstream, route.upstream_name), RangeLocks())

    def drain(self) -> None:
        """Begin to shut down: refuse to open exports, and end the sessions in good order."""
        self.draining = True
        for negotiation in self.negotiations:
            negotiation.shutting_down = True
        self.hub.finish("shutting down", self.config.drain_seconds)

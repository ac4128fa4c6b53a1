"""What a negotiation is for: a link, and what the link has to be."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.net.options import RelaySocket
from gateway.peer import UNKNOWN, Peer
from gateway.protocol.export import Export
from gateway.quirks import Dialect
from gateway.upstream.ladder import Rung
from gateway.upstream.slots import Slot


@dataclass(frozen=True, slots=True)
class Link:
    """An upstream connection after negotiation, ready for commands."""

    socket: RelaySocket
    export: Export
    """As the upstream means it: repaired."""
    dialect: Dialect
    quirks: tuple[str, ...]
    """Names of the quirks in force."""
    rung: Rung
    """How much of the protocol the server was found to bear."""
    slot: Slot
    """Its slot among the upstream's connections."""
    cleared: int = 0
    """Transmission flags that the server sets and nobody is told: it does not keep what they promise."""
    peer: Peer = UNKNOWN
    """Who is at the other end."""

    def close(self) -> None:
        """Close it, and let another have its slot. Closing twice is once."""
        self.socket.close()
        self.slot.leave()


@dataclass(frozen=True, slots=True)
class Terms:
    """What a link has to be: for which export, with which framing and contexts."""

    name: str
    structured: bool
    extended: bool = False
    """Extended headers, or structured replies where the server has none."""
    queries: tuple[str, ...] | None = None
    """What SET_META_CONTEXT asks; None: it is not sent."""

    def differ_in_name_alone(self, others: Terms) -> bool:
        """Say whether these are the others for another export."""
        ours = self.structured, self.extended, self.queries
        return ours == (others.structured, others.extended, others.queries)

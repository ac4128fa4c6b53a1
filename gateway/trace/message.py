"""One message, and the direction of a connection that it was seen in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from gateway.wire.framing import Framing

Requested = tuple[int, int, int]
"""(word, offset, length) of a request."""


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """One direction of a connection."""

    session: str
    """Its id; empty where several share the connection."""
    connection: int
    """Tells the connections of one trace apart."""
    side: Literal["client", "server"]
    """Who is at the other end from us."""
    from_gateway: bool
    framing: Framing
    contexts: Mapping[int, str] = field(default_factory=dict)
    """The names of the meta contexts that were agreed on, by their ids."""


class Kind(Enum):
    """What was seen."""

    REQUEST = "a request"
    SIMPLE = "a simple reply"
    CHUNK = "a chunk of a reply"
    STRANGE = "bytes that are no message"
    CUT = "the beginning of a message whose end has not come"


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """One message."""

    direction: Direction
    seconds: float
    """When its first byte was seen."""
    kind: Kind
    raw: bytes
    """Its first bytes: the header, and what is shown of what is behind that."""
    length: int
    """How many bytes it has."""
    at: int
    """How many bytes of this direction came before it."""
    asked: Requested | None = None
    """Of a reply: what it answers, if that was seen."""
    whose: str = ""
    """Of a request to a server: on whose behalf."""

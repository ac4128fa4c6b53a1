"""What is told of a server, to whoever is to know how it is: the log, and the operator that reads it."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.upstream.places import Outage


@dataclass(frozen=True, slots=True)
class WentDown:
    """Connecting has begun to fail."""

    why: str
    entirely: bool = True
    """No other place works either."""


@dataclass(frozen=True, slots=True)
class CameBack:
    """Connecting works again."""

    outage: Outage
    entirely: bool = True
    """No other place had worked."""


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """A client was told that the upstream is down."""


@dataclass(frozen=True, slots=True)
class Unwell:
    """A health check has connected, and got no further."""

    why: str


@dataclass(frozen=True, slots=True)
class WellAgain:
    """A health check gets a greeting again."""


News = WentDown | CameBack | TurnedAway | Unwell | WellAgain

"""What is told of a server, to whoever is to know how it is: the log, and the operator who reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from gateway.quirks import Quirk, catalogue
from gateway.upstream.circuits import Outage
from gateway.wire.constants import TransmissionFlag as Flag

MAX_SAID = 1000
"""Of how many exports we remember what was said: clients choose the names."""


@dataclass(frozen=True, slots=True)
class WentDown:
    """Connecting has begun to fail."""

    why: str
    entirely: bool = True
    """No other place works, either."""


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


@dataclass(frozen=True, slots=True)
class Misnamed:
    """It lists exports by names that are no strings. Told once."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ForClientsAlone:
    """OpenSSL refuses its certificate for what it is for; another check decides. Told once."""

    why: str


News = WentDown | CameBack | TurnedAway | Unwell | WellAgain | Misnamed | ForClientsAlone


class Said:
    """What has been told of a server, so that it is told once."""

    def __init__(self) -> None:
        self.repaired: Counter[str] = Counter()
        """Links on which each quirk was in force, by its name."""
        self.cleared: Counter[str] = Counter()
        """Links on which each transmission flag was set that is not believed, by its name."""
        self._said: set[tuple[str, str]] = set()

    def is_news(self, export: str, what: str) -> bool:
        """Say whether this is said of an export for the first time: every client would say it again."""
        if (export, what) in self._said:
            return False
        if len(self._said) >= MAX_SAID:
            self._said.clear()
        self._said.add((export, what))
        return True

    def count_repairs(self, quirks: Iterable[str], cleared: int) -> list[Quirk]:
        """Count the quirks of a link that serves a client, and the transmission flags that are not believed;
        give the quirks that are in force for the first time.
        """
        names = list(quirks)
        self.cleared.update(flag.name for flag in Flag(cleared) if flag.name is not None)
        new = [catalogue()[name] for name in names if name not in self.repaired]
        self.repaired.update(names)
        return new

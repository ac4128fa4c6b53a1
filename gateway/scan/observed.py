"""What policies that are only observed would have done to one session's requests.

Who scans notes it here, and says that there is something to tell (`news`); who tells it takes it (`take`), when
no request is in the way. So a client whose every request would be refused costs two additions for each, and as
many lines of the log as its owner likes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class WouldRefuse:
    """Requests of one command that would have been answered with one error."""

    first: str
    """Why the first of them would have been refused."""
    count: int = 0


@dataclass(slots=True)
class WouldHold:
    """Requests that would have been held back."""

    count: int = 0
    seconds: float = 0
    """How many seconds they would have been held together: so much later the last of them would have come."""


@dataclass(slots=True)
class Noted:
    """What has been noted, and not been taken yet."""

    refused: dict[tuple[str, str], WouldRefuse]
    """(command, error) -> what would have been refused."""
    held: dict[tuple[str, str], WouldHold]
    """(policy, its rate in words) -> what it would have held back."""

    def __bool__(self) -> bool:
        return bool(self.refused or self.held)


class Observed:
    """What would have been done to one session, however many links it has had."""

    __slots__ = ("_ever", "_untold", "ever_held", "news")

    def __init__(self) -> None:
        self._untold = Noted({}, {})
        self._ever: set[tuple[str, str]] = set()  # what has been noted, now or before
        self.ever_held: dict[tuple[str, str], bool] = {}
        """(policy, its rate in words), of each that is watched."""
        self.news: Callable[[bool], None] = _nobody_listens
        """Called whenever something has been noted: whether it is the first of its kind."""

    @property
    def untold(self) -> bool:
        """Something has been noted, and not been taken yet."""
        return bool(self._untold)

    def let_go(self) -> None:
        """Nobody is told any more."""
        self.news = _nobody_listens

    def refuse(self, command: str, error: str, why: str) -> None:
        """A request would have been refused."""
        refused = self._untold.refused
        noted = refused.get((command, error))
        if noted is None:
            noted = refused[command, error] = WouldRefuse(why)
        noted.count += 1
        self.news(self._is_first((command, error)))

    def watch(self, policy: str, rate: str) -> None:
        """A rate is watched from now on: that it held nothing back is an answer, too."""
        self.ever_held.setdefault((policy, rate), False)

    def hold(self, policy: str, rate: str, seconds: float) -> None:
        """A request would have been held back."""
        held = self._untold.held
        noted = held.get((policy, rate))
        if noted is None:
            noted = held[policy, rate] = WouldHold()
            self.ever_held[policy, rate] = True
        noted.count += 1
        noted.seconds += seconds
        self.news(self._is_first((policy, rate)))

    def _is_first(self, kind: tuple[str, str]) -> bool:
        if kind in self._ever:
            return False
        self._ever.add(kind)
        return True

    def take(self) -> Noted:
        """Give what was noted since the last time."""
        untold, self._untold = self._untold, Noted({}, {})
        return untold


def _nobody_listens(_is_first: bool) -> None:
    pass

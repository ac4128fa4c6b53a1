"""Tells the log what policies that are only observed would have done to a session: the first time at once, and
then seldom, however often it happens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.scan.observed import Observed

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

OBSERVED_LOG_SECONDS = 10
"""How often the log says it of one session at most. If something is tried out on a thousand sessions, that is a
hundred lines a second, as many as `gateway.log.rates` lets clients have."""


class Teller:
    """Tells what one session notes. `later` calls something after so many seconds, when no session is in the
    middle of a step.
    """

    def __init__(
        self,
        observed: Observed,
        later: Callable[[float, Callable[[], None]], None],
        log: FilteringBoundLogger,
    ) -> None:
        self._observed = observed
        self._later = later
        self._log = log
        self._waits = False
        observed.news = self._hear

    def tell(self) -> None:
        """Tell what has not been told."""
        untold = self._observed.take()
        for (command, error), refused in untold.refused.items():
            said = {"command": command, "error": error, "count": refused.count}
            self._log.warning("would be refused", **said, first=refused.first)
        for (policy, rate), held in untold.held.items():
            seconds = round(held.seconds, 3)
            self._log.warning(
                "would be held", policy=policy, rate=rate, count=held.count, seconds=seconds
            )

    def tell_the_end(self) -> None:
        """The session has ended: tell the rest."""
        self.tell()
        for (policy, rate), held in self._observed.ever_held.items():
            if not held:
                self._log.info("would not be held", policy=policy, rate=rate)
        self._observed.let_go()

    def _hear(self, is_first: bool = False) -> None:
        if not self._waits:
            self._waits = True
            self._later(0, self._tell_and_wait)
        elif is_first:  # of its kind: it does not wait for what others have told
            self._later(0, self.tell)

    def _tell_and_wait(self) -> None:
        self.tell()
        self._later(OBSERVED_LOG_SECONDS, self._hear_again)

    def _hear_again(self) -> None:
        self._waits = False
        if self._observed.untold:
            self._hear()

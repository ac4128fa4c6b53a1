"""Clients that are let in nowhere: as many are connected to their listener as may be, or it is drained. They
are counted one by one, and told to the log seldom, for there may be a flood of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from gateway.counts.totals import Became, Counts
from gateway.net.listen import Listener
from gateway.net.options import peer_of
from gateway.net.tally import Tally

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

LOG_SECONDS = 1
"""How often the log says how many they were."""


class LetInNowhere:
    """Counts them; somebody has to `run` it."""

    def __init__(self, counts: Counts, log: FilteringBoundLogger) -> None:
        self._handshakes = counts.handshakes
        self._log = log
        self._tally: Tally[tuple[str, str]] = Tally(LOG_SECONDS, self._say)
        self.run = self._tally.run

    def add(self, listener: Listener, stream: trio.SocketStream, why: str) -> None:
        """A client has come to a listener and is turned away."""
        uri = str(listener.uri)
        self._handshakes[uri, Became.TURNED_AWAY] += 1
        self._tally.add((uri, why), peer_of(stream.socket).peer)

    def _say(self, where: tuple[str, str], count: int, client: str) -> None:
        listener, why = where
        self._log.warning(
            "client turned away", listener=listener, client=client, why=why, count=count
        )

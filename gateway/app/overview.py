"""What an operator is shown of the gateway that is not its sessions' (`gateway.status.verbs.House`): its
listeners, whether they take clients, and the certificates.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from gateway.app.standing import Standing
from gateway.counts.totals import Counts
from gateway.net.listen import Listener


class Overview:
    """Shows what stands; `clients` are counted by listener."""

    def __init__(self, standing: Standing, clients: Mapping[Listener, int], counts: Counts) -> None:
        self.began = time.time()
        """See `House`."""
        self._standing = standing
        self._clients = clients
        self._counts = counts
        self._drained: set[str] = set()
        """URIs of listeners at which no more clients are taken; a reload keeps them."""

    def is_drained(self, listener: Listener) -> bool:
        """Say whether no more clients are taken there."""
        return str(listener.uri) in self._drained

    def listeners_shown(self) -> list[dict[str, Any]]:
        """See `House`."""
        return [
            {
                "listener": str(listener.uri),
                "tls": listener.settings.tls_mode,
                "clients": self._clients.get(listener, 0),
                "most_clients": listener.settings.max_connections,
                "drained": self.is_drained(listener),
                "handshakes": _at(listener, self._counts.handshakes),
                "tls_versions": _at(listener, self._counts.tls),
            }
            for listener in self._standing.doors.listeners
        ]

    def terms_shown(self) -> list[dict[str, Any]]:
        """See `House`: those that are over, or will be within 30 days."""
        keyring = self._standing.keyring
        found = () if keyring is None else keyring.warnings(datetime.now(UTC))
        return [{"of": whose, "what": what} for whose, what in found]

    def drain(self, listener: str | None, *, drained: bool) -> list[str]:
        """See `House`."""
        done = []
        for each in self._standing.doors.listeners:
            uri = str(each.uri)
            if listener not in (None, uri, str(each.settings.uri)):
                continue
            if drained:
                self._drained.add(uri)
                done.append(f"{uri} takes no more clients; {self._clients.get(each, 0)} are there")
            else:
                self._drained.discard(uri)
                done.append(f"{uri} takes clients")
        return done


def _at(listener: Listener, counted: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Give what was counted at a listener."""
    uri = str(listener.settings.uri)
    return {str(what): times for (where, what), times in counted.items() if where == uri}

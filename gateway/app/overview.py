"""What an operator is shown of the gateway that is not its sessions' (`gateway.status.verbs.House`): its
listeners, whether they take clients, and the certificates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from gateway.app.draining import Drained, Leaving
from gateway.app.standing import Standing
from gateway.net.listen import Listener
from gateway.plural import plural
from gateway.sessions.service import Service


class Overview:
    """Shows what stands; `clients` are counted by listener."""

    def __init__(
        self,
        standing: Standing,
        clients: Mapping[Listener, int],
        service: Service,
        drained: Drained,
        leaving: Leaving,
    ) -> None:
        self.began = time.time()
        """See `House`."""
        self._standing = standing
        self._clients = clients
        self._service = service
        self._drained, self._leaving = drained, leaving
        self.older_shown: Callable[[], dict[str, Any] | None] = lambda: None
        """See `House`."""
        self.fleet_shown: Callable[[], dict[str, Any] | None] = lambda: None
        """See `House`."""

    def is_drained(self, listener: Listener) -> bool:
        """Say whether no more clients are taken there."""
        return str(listener.uri) in self._drained

    @property
    def drained(self) -> list[str]:
        """The URIs of listeners at which no more clients are taken."""
        there = self._standing.doors.listeners
        return [str(each.uri) for each in there if self.is_drained(each)]

    def listeners_shown(self) -> list[dict[str, Any]]:
        """See `House`."""
        return [
            {
                "listener": str(listener.uri),
                "tls": listener.settings.tls_mode,
                "clients": self._clients.get(listener, 0),
                "most_clients": listener.settings.max_connections,
                "drained": self.is_drained(listener),
                "sessions_end_in_seconds": _rounded(self._drained.seconds_left(str(listener.uri))),
                "handshakes": _at(listener, self._service.counts.handshakes),
                "tls_versions": _at(listener, self._service.counts.tls),
            }
            for listener in self._standing.doors.listeners
        ]

    def terms_shown(self) -> list[dict[str, Any]]:
        """See `House`: those that are over, or will be within 30 days."""
        keyring = self._standing.keyring
        found = () if keyring is None else keyring.warnings(datetime.now(UTC))
        return [{"of": whose, "what": what} for whose, what in found]

    def expiries_shown(self) -> list[dict[str, Any]]:
        """See `House`."""
        keyring, now = self._standing.keyring, datetime.now(UTC)
        ends = {} if keyring is None else keyring.ends
        return [
            {"file": str(path), "seconds": round((end - now).total_seconds())}
            for path, end in ends.items()
        ]

    def sessions_end_in_seconds(self) -> float | None:
        """See `House`."""
        return _rounded(self._leaving.seconds_left)

    def end(self, seconds: float | None) -> list[str]:
        """See `House`."""
        if seconds is None:
            seconds = self._service.config.leave_seconds
        if not self._leaving.begin(seconds):
            return []
        return [
            f"no more clients are taken; {plural(self._service.relayed, 'session')} may go on for {seconds:g} s"
        ]

    def drain(self, listener: str | None, seconds: float | None) -> list[str]:
        """See `House`."""
        found = self._found(listener)
        ends = "" if seconds is None else f", and may go on for {seconds:g} s"
        for each in found:
            self._drained.add(str(each.uri), seconds)
        return [
            f"{each.uri} takes no more clients; {plural(self._clients.get(each, 0), 'is', 'are')} there{ends}"
            for each in found
        ]

    def undrain(self, listener: str | None) -> list[str]:
        """See `House`."""
        found = self._found(listener)
        for each in found:
            self._drained.discard(str(each.uri))
        if listener is None:
            self._drained.clear()
        return [f"{each.uri} takes clients" for each in found]

    def _found(self, listener: str | None) -> list[Listener]:
        """Give the listeners of a URI, or all."""
        there = self._standing.doors.listeners
        return [each for each in there if listener in (None, str(each.uri), str(each.settings.uri))]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _at(listener: Listener, counted: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Give what was counted at a listener."""
    uri = str(listener.uri)
    return {str(what): times for (where, what), times in counted.items() if where == uri}

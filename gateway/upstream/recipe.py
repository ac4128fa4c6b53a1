"""What a server is made of: how it is spoken to (its *settings*), over what it leads to (its *backend*).

A `Server` is one over the other, so whoever has one has all that the settings say, wherever it leads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from gateway.config import Upstream
from gateway.net.drive import Stream
from gateway.net.processes import Processes
from gateway.peer import Peer
from gateway.upstream.backends import Backend, Connect
from gateway.uri import NbdUri

if TYPE_CHECKING:
    from gateway.tls.session import TlsSession  # costs nothing where there is no TLS

Tls = Callable[[], "TlsSession"]
"""Gives the TLS session of a new connection."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a server was made of, to make another like it."""

    upstream: str
    """The NAME of the `[upstream.NAME]` whose settings these are."""
    settings: Upstream
    backend: Backend
    uri: NbdUri | None = None
    """Where an export was switched to; None: it is the upstream of the configuration."""
    at_home: bool = False
    """It is the gateway of a fleet that is the home of a disk, and sees to all that the upstream needs
    (`gateway.sessions.led`)."""

    @property
    def name(self) -> str:
        """What the server is called."""
        if self.at_home:
            return f"{self.upstream}@home"
        return self.upstream if self.uri is None else str(self.uri)

    @property
    def connects(self) -> tuple[Connect, ...]:
        """What connects to it: one for each place."""
        dialled = (
            partial(each.connect, same_storage=self.settings.same_storage)
            for each in self.backend.diallers
        )
        return tuple(dialled) or self.backend.connects

    @property
    def where(self) -> frozenset[tuple[str, ...]]:
        """Say where it leads, in words that two processes of the gateway have in common: its addresses, or its
        file. What lives in this process, or is started by it, is known by the name of its upstream.
        """
        backend = self.backend
        if backend.addresses:
            return frozenset(backend.addresses)
        if isinstance(backend.disks, tuple):
            return frozenset({backend.disks})
        return frozenset({("upstream", self.upstream)})

    @property
    def processes(self) -> Processes | None:
        """What has to be watched to know who is at the other end of a connection, if anything."""
        return self.backend.processes if self.settings.server_is_peer else None

    @property
    def peer_of(self) -> Callable[[Stream], Peer]:
        """Says who is at the other end of a connection that has just been made."""
        return self.backend.peer_of if self.processes is None else self.processes.at

    @property
    def started_by_us(self) -> bool:
        """If one of these ends before its greeting, it does so however long we wait."""
        return self.settings.command is not None and self.uri is None

    @property
    def credentials(self) -> tuple[object, ...]:
        """Who we say that we are there, and whether it goes over TLS."""
        settings = self.settings
        uris = settings.nbd_uris if self.uri is None else (self.uri,)
        if not any(uri.tls for uri in uris):
            return ()
        said = settings.certificates, settings.psk, settings.psk_user
        return *said, {(uri.username, *sorted(uri.parameters.items())) for uri in uris}

"""What a server is made of: how it is spoken to (its *settings*), over what it leads to (its *backend*).

A `Server` is one over the other, so whoever has one has all that the settings say, wherever it leads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.config import Upstream
from gateway.upstream.backends import Backend
from gateway.uri import NbdUri

if TYPE_CHECKING:
    from gateway.tls.credentials import Session  # costs nothing where there is no TLS

Tls = Callable[[], "Session"]
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

    @property
    def credentials(self) -> tuple[object, ...]:
        """What is said of who we are there, and whether it goes over TLS."""
        settings = self.settings
        uris = settings.nbd_uris if self.uri is None else (self.uri,)
        if not any(uri.tls for uri in uris):
            return ()
        said = settings.certificates, settings.psk, settings.psk_user
        return *said, {(uri.username, *sorted(uri.parameters.items())) for uri in uris}

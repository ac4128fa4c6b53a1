"""All TLS credentials of a configuration: loaded at the start, exchanged when their files change, and warned of
before they end.

Files are looked at every `LOOK_SECONDS`, and on SIGHUP at once; why they are not watched stands in
`gateway.tls.rotation`. New sessions use the new ones, running ones go on with the old; what cannot be loaded is
reported, and the old ones stay.

Imported only where a configuration has TLS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import trio

from gateway.config import Config, Listen, Upstream
from gateway.tls.credentials import (
    ClientCredentials,
    ServerCredentials,
    server_credentials,
    server_paths,
)
from gateway.tls.errors import CredentialsError
from gateway.tls.rotation import Rotating
from gateway.tls.server_uri import wanted_of
from gateway.uri import NbdUri

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

LOOK_SECONDS = 5
"""How often the files are looked at: soon enough for whoever has just exchanged them and tries it out."""

WARN_SECONDS = 24 * 60 * 60
"""How often the log warns of what ends soon."""

Ring = Rotating[ServerCredentials] | Rotating[ClientCredentials]
_Ring = TypeVar("_Ring", bound=Ring)


class KeyringError(Exception):
    """Credentials cannot be loaded at the start; the text says where, and what was expected."""


class Keyring:
    """The credentials of each listener and upstream that has TLS. Raises `KeyringError`."""

    def __init__(self, config: Config) -> None:
        self._listeners: list[tuple[Listen, Rotating[ServerCredentials]]] = []
        for listen in config.listen:
            if listen.tls_mode != "off":
                with_name = f"listener {listen.uri}"
                self._listeners.append((listen, _loaded(with_name, listen)))
        self._upstreams: dict[str, Rotating[ClientCredentials]] = {
            name: _loaded_upstream(f"upstream {name}", upstream)
            for name, upstream in config.upstream.items()
            if upstream.secure
        }

    def listener(self, listen: Listen) -> Rotating[ServerCredentials] | None:
        """Give a listener's credentials; None if it has no TLS."""
        return next((ring for which, ring in self._listeners if which is listen), None)

    @property
    def upstreams(self) -> Mapping[str, Rotating[ClientCredentials]]:
        """Those of the upstreams that have TLS, by name."""
        return self._upstreams

    async def watch(self, log: FilteringBoundLogger) -> None:
        """Exchange credentials whose files have changed, and warn of those that end, until cancelled."""
        warned = float("-inf")
        while True:
            if trio.current_time() - warned >= WARN_SECONDS:
                warned = trio.current_time()
                self._warn(log)
            await trio.sleep(LOOK_SECONDS)
            for whose, ring in self._rings():
                if ring.changed():
                    _reload(log, whose, ring)

    def reload(self, log: FilteringBoundLogger) -> None:
        """Load everything anew, now."""
        for whose, ring in self._rings():
            _reload(log, whose, ring)

    def _rings(self) -> Iterator[tuple[str, Ring]]:
        for listen, ring in self._listeners:
            yield str(listen.uri), ring
        yield from self._upstreams.items()

    def _warn(self, log: FilteringBoundLogger) -> None:
        for whose, ring in self._rings():
            _warn(log, whose, ring)


def _loaded(whose: str, listen: Listen) -> Rotating[ServerCredentials]:
    verify = listen.verify_client is not False

    def load() -> ServerCredentials:
        return server_credentials(listen.certificates, listen.psk, verify_client=verify)

    return _first(whose, lambda: Rotating(load, server_paths(listen.certificates, listen.psk)))


def _loaded_upstream(whose: str, upstream: Upstream) -> Rotating[ClientCredentials]:
    uri = upstream.uri
    assert isinstance(uri, NbdUri)

    def first() -> Rotating[ClientCredentials]:
        wanted = wanted_of(
            uri,
            certificates=upstream.certificates,
            psk=upstream.psk,
            psk_user=upstream.psk_user,
        )
        return Rotating(wanted.load, wanted.paths)

    return _first(whose, first)


def _first(whose: str, load: Callable[[], _Ring]) -> _Ring:
    try:
        return load()
    except CredentialsError as error:
        raise KeyringError(f"{whose}: {error}") from None


def _warn(log: FilteringBoundLogger, whose: str, ring: Ring) -> None:
    for text in ring.current.warnings(datetime.now(UTC)):
        log.warning("certificate", of=whose, what=text)


def _reload(log: FilteringBoundLogger, whose: str, ring: Ring) -> None:
    try:
        changes = ring.reload()
    except CredentialsError as error:
        log.error("credentials stay as they were", of=whose, why=str(error))
    else:
        if changes:
            log.info("credentials exchanged", of=whose, files=list(changes))
            _warn(log, whose, ring)

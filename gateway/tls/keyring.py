"""All TLS credentials of a configuration: loaded at the start, exchanged when their files change, and warned of
before they end.

We look at files every `LOOK_AT_FILES_SECONDS`, and on SIGHUP at once; `gateway.tls.rotation` says why we do not
watch them. New sessions use new credentials, running ones go on with the old. If new ones cannot be loaded,
that is reported, and the old ones stay.

This is imported only if a configuration has TLS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

import trio

from gateway.config import Config, Listen, Upstream
from gateway.tls.credentials import (
    ClientCredentials,
    ServerCredentials,
    server_credentials,
    server_paths,
)
from gateway.tls.errors import CredentialsError
from gateway.tls.rotation import LOOK_AT_FILES_SECONDS, Rotating
from gateway.tls.server_uri import wanted_of
from gateway.uri import NbdUri

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

WARN_SECONDS = 24 * 60 * 60
"""How often the log warns of a certificate that ends soon."""

Ring = Rotating[ServerCredentials] | Rotating[ClientCredentials]
_Ring = TypeVar("_Ring", bound=Ring)


class KeyringError(Exception):
    """Credentials cannot be loaded at the start; the text says where, and what was expected."""

    def __init__(self, whose: str, errors: Sequence[CredentialsError]) -> None:
        super().__init__("; ".join(f"{whose}: {error}" for error in errors))
        self.whose = whose
        """The listener or server that they belong to."""
        self.errors = tuple(errors)
        """All that is wrong with them."""


@dataclass(frozen=True, slots=True)
class Exchanged:
    """The result of loading credentials anew."""

    done: list[str]
    """Whose credentials were exchanged, and which files have changed."""
    problems: list[str]
    """Which credentials stay as they were because the new ones cannot be loaded."""


class Keyring:
    """The credentials of each listener and upstream that has TLS. Where the keyring `before` was configured in
    the same way, its credentials are kept. Raises `KeyringError`.
    """

    def __init__(self, config: Config, before: Keyring | None = None) -> None:
        self._listeners: list[tuple[Listen, Rotating[ServerCredentials]]] = []
        for listen in config.listen:
            if listen.tls_mode != "off":
                ring = None if before is None else before._as_for(listen)
                self._listeners.append((listen, ring or _loaded(f"listener {listen.uri}", listen)))
        self._settings = {name: each for name, each in config.upstream.items() if each.secure}
        self._upstreams: dict[str, tuple[Rotating[ClientCredentials], ...]] = {}
        for name, upstream in self._settings.items():
            known = {} if before is None else before._known_of(name)
            self._upstreams[name] = tuple(
                known.get(_said_of_upstream(upstream, uri))
                or _loaded_for(f"upstream {_named(name, uri, upstream)}", uri, upstream)
                for uri in upstream.nbd_uris
            )
        self._elsewhere: WeakValueDictionary[tuple[object, ...], Rotating[ClientCredentials]]
        self._elsewhere = WeakValueDictionary() if before is None else before._elsewhere

    def _as_for(self, listen: Listen) -> Rotating[ServerCredentials] | None:
        """Give the credentials that we have for the same settings of a listener."""
        wanted = _said(listen)
        return next((ring for other, ring in self._listeners if _said(other) == wanted), None)

    def _known_of(self, name: str) -> dict[tuple[object, ...], Rotating[ClientCredentials]]:
        """Give the credentials of an upstream, by its settings for them."""
        upstream = self._settings.get(name)
        if upstream is None:
            return {}
        said = [_said_of_upstream(upstream, uri) for uri in upstream.nbd_uris]
        return dict(zip(said, self._upstreams[name], strict=True))

    def become(self, other: Keyring, log: FilteringBoundLogger) -> list[str]:
        """Go over to the credentials of another configuration. Warn of those that are new, if need be, and say
        whose they are.
        """
        here = [ring for _whose, ring in self._rings()]
        self._listeners, self._upstreams = other._listeners, other._upstreams
        self._settings = other._settings
        new = [(whose, ring) for whose, ring in self._rings() if ring not in here]
        for whose, ring in new:
            _warn(log, whose, ring)
        return [whose for whose, _ring in new]

    @property
    def whose(self) -> list[str]:
        """Say whose credentials there are."""
        return [whose for whose, _ring in self._rings()]

    def listener(self, listen: Listen) -> Rotating[ServerCredentials] | None:
        """Give a listener's credentials; None if it has no TLS."""
        return next((ring for which, ring in self._listeners if which is listen), None)

    @property
    def upstreams(self) -> Mapping[str, tuple[Rotating[ClientCredentials], ...]]:
        """The credentials of the upstreams that have TLS, by name: for each of its URIs."""
        return self._upstreams

    def elsewhere(self, uri: NbdUri, upstream: Upstream) -> Rotating[ClientCredentials]:
        """Give the credentials for a server that an export of an upstream is switched to. They are exchanged
        and warned of as long as anybody holds them. Raises `KeyringError`.
        """
        said = _said_of_upstream(upstream, uri)
        ring = self._elsewhere.get(said)
        for name in self._settings:
            ring = ring or self._known_of(name).get(said)
        ring = ring or _loaded_for(str(uri), uri, upstream)
        self._elsewhere[said] = ring
        return ring

    async def watch(self, log: FilteringBoundLogger) -> None:
        """Exchange credentials whose files have changed, and warn of those that end, until cancelled."""
        warned = float("-inf")
        while True:
            if trio.current_time() - warned >= WARN_SECONDS:
                warned = trio.current_time()
                self._warn(log)
            await trio.sleep(LOOK_AT_FILES_SECONDS)
            for whose, ring in self._rings():
                if ring.changed():
                    with suppress(CredentialsError):  # `_reload` has logged it
                        _reload(log, whose, ring)

    def reload(self, log: FilteringBoundLogger) -> Exchanged:
        """Load everything anew, now."""
        done: list[str] = []
        problems: list[str] = []
        for whose, ring in self._rings():
            try:
                changes = _reload(log, whose, ring)
            except CredentialsError as error:
                problems.append(f"the credentials of {whose} stay as they were: {error}")
            else:
                if changes:
                    done.append(f"{whose} ({', '.join(changes)})")
        return Exchanged(done, problems)

    def _rings(self) -> Iterator[tuple[str, Ring]]:
        for listen, ring in self._listeners:
            yield str(listen.uri), ring
        known: list[Ring] = []
        for name, upstream in self._settings.items():
            for uri, client in zip(upstream.nbd_uris, self._upstreams[name], strict=True):
                yield _named(name, uri, upstream), client
                known.append(client)
        for said, other in list(self._elsewhere.items()):
            if other not in known:
                yield str(said[0]), other

    def warnings(self, now: datetime) -> Iterator[tuple[str, str]]:
        """Say whose certificates are not valid at `now`, or end soon, and whose keys others can read."""
        for whose, ring in self._rings():
            for text in ring.current.warnings(now):
                yield whose, text
            if ring.current.exposed is not None:
                yield whose, ring.current.exposed

    @property
    def ends(self) -> dict[Path, datetime]:
        """When the first certificate, or list of revoked ones, of each file ends."""
        found: dict[Path, datetime] = {}
        for _whose, ring in self._rings():
            for term in ring.current.terms:
                if term.end is not None:
                    found[term.path] = min(term.end, found.get(term.path, term.end))
        return found

    def _warn(self, log: FilteringBoundLogger) -> None:
        for whose, ring in self._rings():
            _warn(log, whose, ring)


def _said(listen: Listen) -> tuple[object, ...]:
    return (listen.certificates, listen.psk, listen.verify_client)


def _said_of_upstream(upstream: Upstream, uri: NbdUri) -> tuple[object, ...]:
    return (uri, upstream.certificates, upstream.psk, upstream.psk_user)


def _named(name: str, uri: NbdUri, upstream: Upstream) -> str:
    """Say which upstream it is, and which server of it if there are several."""
    return f"{name} ({uri})" if upstream.uris else name


def _loaded(whose: str, listen: Listen) -> Rotating[ServerCredentials]:
    verify = listen.verify_client is not False

    def load() -> ServerCredentials:
        return server_credentials(listen.certificates, listen.psk, verify_client=verify)

    return _first(whose, lambda: Rotating(load, server_paths(listen.certificates, listen.psk)))


def _loaded_for(whose: str, uri: NbdUri, upstream: Upstream) -> Rotating[ClientCredentials]:
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
        raise KeyringError(whose, error.each) from None


def _warn(log: FilteringBoundLogger, whose: str, ring: Ring) -> None:
    for text in ring.current.warnings(datetime.now(UTC)):
        log.warning("certificate", of=whose, what=text)
    if ring.current.exposed is not None:
        log.warning("key", of=whose, what=ring.current.exposed)


def _reload(log: FilteringBoundLogger, whose: str, ring: Ring) -> tuple[str, ...]:
    """Load credentials anew, and say which files have changed. Raises `CredentialsError`; the log has it."""
    try:
        changes = ring.reload()
    except CredentialsError as error:
        log.error("credentials stay as they were", of=whose, why=str(error))
        raise
    if changes:
        log.info("credentials exchanged", of=whose, files=list(changes))
        _warn(log, whose, ring)
    return changes

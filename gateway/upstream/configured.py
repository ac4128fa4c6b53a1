"""The servers of a configuration, made once and kept through reloads.

A reload keeps

- the `Server` where nothing of the upstream has changed: what has been learnt of it, its list of exports;
- the backend where it leads to the same place, under the same name or (`[upstream.a]` is now `[upstream.b]`)
  under another: the content of a `memory:` disk, and the one process that may have a disk open. Two servers on
  one disk would spoil it, and a memory disk that is begun anew is empty;
- where exports have been switched to, with the settings of now;
- nothing else. A backend that no upstream leads to any more serves on for those who were connected at the
  reload, and ends when the last of them has gone; at the latest, with the gateway. That may be later than its
  own last session: who holds up the end is then another session of that age. It costs a process that is idle.

An export that is switched is led to a server that `switched_to` gives: spoken to as the upstream of the
configuration is that it comes from, in all that its settings say.
"""

from __future__ import annotations

import os
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Hashable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from gateway.config import Config, Upstream
from gateway.net.command import Command
from gateway.net.dial import Dialler
from gateway.net.keeping import Keeper
from gateway.quirks import catalogue
from gateway.upstream.backends import Backend, Where, backend_at, dialled, disks_by_address
from gateway.upstream.errors import Unreachable
from gateway.upstream.recipe import Recipe
from gateway.upstream.server import Server
from gateway.uri import Address, FileUri, NbdUri, Target

if TYPE_CHECKING:
    from gateway.tls.credentials import ClientCredentials
    from gateway.tls.keyring import Keyring  # these cost nothing where there is no TLS
    from gateway.tls.rotation import Rotating
    from gateway.upstream.recipe import Tls


class StartError(Exception):
    """The gateway cannot be as its configuration says. The text is for the person who wrote that."""


@dataclass(frozen=True)
class Servers:
    """The servers of one configuration, by their names."""

    settings: Mapping[str, Upstream] = field(default_factory=dict)
    backends: Mapping[str, Backend] = field(default_factory=dict)
    servers: Mapping[str, Server] = field(default_factory=dict)
    switched: Mapping[Server, Server] = field(default_factory=dict)
    """Servers that exports had been switched to -> what leads there now."""
    keeper: Keeper | None = None
    """What starts processes for them; None: there have been no servers yet."""

    @property
    def led_to(self) -> list[Backend]:
        """The backends of these servers, and of those that exports are switched to."""
        return [*self.backends.values(), *_backends_of(self.switched.values())]

    def gone(self, after: Servers) -> list[Backend]:
        """Give the backends that another configuration does not lead to."""
        return [backend for backend in self.led_to if backend not in after.led_to]

    def words(self, before: Servers) -> str:
        """Say what has become of the servers before."""
        kept = sum(server is before.servers.get(name) for name, server in self.servers.items())
        changed = len(self.servers.keys() & before.servers.keys()) - kept
        gone = len(before.servers.keys() - self.servers.keys())
        return counted(kept, changed, len(self.servers) - kept - changed, gone)

    async def end(self) -> None:
        """End everything that we run."""
        for backend in self.backends.values():
            await backend.end()
        if self.keeper is not None:
            await self.keeper.aclose()


def counted(kept: int, changed: int, new: int, gone: int) -> str:
    """Say of things of one kind what has become of them."""
    counts = {"kept": kept, "changed": changed, "new": new, "gone": gone}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count)


def servers_of(
    config: Config,
    embedded: trio.Nursery,
    keyring: Keyring | None,
    before: Servers = Servers(),
    leaving: Iterable[Backend] = (),
    made: Callable[[Backend], object] = lambda _backend: None,
    switched: Collection[Server] = (),
) -> Servers:
    """Make the servers of a configuration. What can be kept is taken from those before, or from those that were
    left and run for their last sessions. Servers that exports are `switched` to are made anew, if need be.
    Embedded servers live in the nursery, and so does what watches over those that we start. Raises
    `StartError`; the caller has to end what was `made` until then.
    """
    for name, settings in config.upstream.items():
        unknown = [quirk for quirk in _named_quirks(settings) if quirk not in catalogue()]
        if unknown:
            known = ", ".join(sorted(catalogue()))
            raise StartError(f"upstream {name}: there is no quirk {unknown[0]!r}, only {known}")
    keeper = before.keeper or Keeper(embedded)
    left = list(leaving)
    backends = _kept_backends(config, before, left)
    here = [*before.backends.values(), *left, *_backends_of(switched)]
    disks = disks_by_address(here, (each.nbd_uris for each in config.upstream.values()))
    for name, settings in config.upstream.items():
        if name not in backends:
            known_now = [*here, *backends.values()]
            backends[name] = _backend(
                name, settings, embedded, keeper, known_now, disks, before.backends.get(name)
            )
            made(backends[name])
    servers = {}
    for name, settings in config.upstream.items():
        if before.settings.get(name) == settings:  # and so the backend is the same
            servers[name] = before.servers[name]
        else:
            rings = () if keyring is None else keyring.upstreams.get(name, ())
            servers[name] = Server(Recipe(name, settings, backends[name]), *map(_tls, rings))
    now = {each: _made_anew(each, config, backends, keyring) for each in switched}
    return Servers(config.upstream, backends, servers, now, keeper)


def switched_to(
    uri: NbdUri,
    upstream: str,
    settings: Upstream,
    led_to: Sequence[Server],
    keyring: Keyring | None,
) -> Server:
    """Give the server at a URI, for an export of an upstream: one that exports are led to already, if it is
    made of the same. Loads its credentials, if it is over TLS. Raises `StartError`.
    """
    own_first = sorted(led_to, key=lambda each: each.name != upstream)
    recipe = Recipe(upstream, settings, backend_at(uri, _backends_of(own_first)), uri)
    for server in led_to:
        if server.recipe == recipe:
            return server
    return Server(recipe, *_tls_elsewhere(uri, settings, keyring))


def _made_anew(
    server: Server, config: Config, backends: Mapping[str, Backend], keyring: Keyring | None
) -> Server:
    """Give what leads from now on to where exports were switched: the same server, if nothing has changed, or
    if what the configuration says now cannot hold for it.
    """
    was = server.recipe
    if was.uri is None or was.upstream not in config.upstream:
        return server
    settings = config.upstream[was.upstream]
    own_first = sorted(backends, key=lambda name: name != was.upstream)
    led_to = [*(backends[name] for name in own_first), was.backend]
    recipe = Recipe(was.upstream, settings, backend_at(was.uri, led_to), was.uri)
    if recipe == was or settings.secure != was.uri.tls:
        return server
    return Server(recipe, *_tls_elsewhere(was.uri, settings, keyring))


def _backends_of(servers: Iterable[Server]) -> list[Backend]:
    return [server.recipe.backend for server in servers]


def load_keyring(config: Config, before: Keyring | None = None) -> Keyring | None:
    """Load all TLS credentials that were not loaded before; None if there is no TLS. Raises `StartError`."""
    listeners = any(listen.tls_mode != "off" for listen in config.listen)
    needed = listeners or any(upstream.secure for upstream in config.upstream.values())
    if before is None and not needed:
        return None
    from gateway.tls.keyring import Keyring, KeyringError

    try:
        return Keyring(config, before)
    except KeyringError as error:
        raise StartError(str(error)) from None


@asynccontextmanager
async def upstreams(
    config: Config, embedded: trio.Nursery, keyring: Keyring | None
) -> AsyncIterator[Mapping[str, Server]]:
    """Give the upstreams by name, for a look at them. We wait for none that is down, and the servers that we
    start are ended when this ends.
    """
    made = servers_of(config, embedded, keyring)
    for server in made.servers.values():
        server.connector.patient = False
    try:
        yield made.servers
    finally:
        with trio.CancelScope(shield=True):  # it has limits of its own
            await made.end()


def server_at(
    uri: NbdUri, *, seconds: float | None = None, quirks: str | tuple[str, ...] = "auto"
) -> Server:
    """Give the server at a URI, without a configuration: what the URI says of TLS is all there is. `seconds` is
    how long connecting, and each answer, may take. Raises `Unreachable` if the certificates or keys that the
    URI names cannot be used.
    """
    tls = []
    if uri.tls:
        from gateway.tls.errors import CredentialsError
        from gateway.tls.server_uri import wanted_of

        try:
            tls = [wanted_of(uri).load().session]
        except CredentialsError as error:
            raise Unreachable(f"{uri}: {error}") from None
    said: dict[str, object] = {"uri": uri, "quirks": quirks}
    if seconds is not None:
        said |= {"connect_seconds": seconds, "negotiate_seconds": seconds}
    recipe = Recipe(str(uri), _settings(said), Backend(uri, diallers=(Dialler(uri),)))
    server = Server(recipe, *tls)
    server.connector.patient = False
    return server


def _settings(said: Mapping[str, object]) -> Upstream:
    """Give the settings of a server that is in no configuration: what is said, and the defaults for all
    else.
    """
    return Upstream().model_copy(update=said)


@asynccontextmanager
async def server_of(
    target: Target, *, seconds: float | None = None, quirks: str | tuple[str, ...] = "auto"
) -> AsyncIterator[Server]:
    """Give the server that a command line names. An embedded one serves as long as this lasts. Raises
    `Unreachable`, as `server_at` does, and if an embedded one cannot be had.
    """
    if isinstance(target, NbdUri):
        yield server_at(target, seconds=seconds, quirks=quirks)
        return
    from gateway.embedded import DiskError, InProcess, make_server

    failed: Exception | None = None
    async with trio.open_nursery() as embedded:
        try:
            within = InProcess(make_server(target), embedded)
        except DiskError as error:
            failed = Unreachable(str(error))
        else:
            backend = Backend(target, (within.connect,))
            settings = _settings({"uri": target, "quirks": quirks})
            server = Server(Recipe(str(target), settings, backend))
            try:
                yield server
            except Exception as error:  # as itself, not in the nursery's group
                failed = error
            with trio.CancelScope(shield=True):
                await within.close_files()
        embedded.cancel_scope.cancel()
    if failed is not None:
        raise failed


def _kept_backends(
    config: Config, before: Servers, leaving: Iterable[Backend]
) -> dict[str, Backend]:
    kept = {
        name: before.backends[name]
        for name, settings in config.upstream.items()
        if name in before.backends and before.backends[name].target == _target(settings)
    }
    left = [each for name, each in before.backends.items() if name not in kept]
    # Not a file: it may be being closed, and two may have it open.
    left += [each for each in leaving if not isinstance(each.target, FileUri)]
    for name, settings in config.upstream.items():
        renamed = next((each for each in left if each.target == _target(settings)), None)
        if name not in kept and renamed is not None:
            kept[name] = renamed
            left.remove(renamed)
    return kept


def _target(settings: Upstream) -> Where:
    target = settings.uris or settings.uri or settings.command
    assert target is not None  # guaranteed by the checks of the configuration
    return target


def _tls(ring: Rotating[ClientCredentials]) -> Tls:
    return lambda: ring.current.session()


def _tls_elsewhere(uri: NbdUri, settings: Upstream, keyring: Keyring | None) -> list[Tls]:
    if not uri.tls:
        return []
    assert keyring is not None  # an upstream that is spoken to over TLS has credentials there
    from gateway.tls.keyring import KeyringError

    try:
        return [_tls(keyring.elsewhere(uri, settings))]
    except KeyringError as error:
        raise StartError(str(error)) from None


def _named_quirks(settings: Upstream) -> tuple[str, ...]:
    return () if settings.quirks == "auto" else settings.quirks


def _backend(
    name: str,
    settings: Upstream,
    embedded: trio.Nursery,
    keeper: Keeper,
    known: Sequence[Backend],
    disks: dict[Address, Hashable],
    before: Backend | None,
) -> Backend:
    target = _target(settings)
    if settings.command is not None:
        command = Command(name, settings.command, keeper)
        return Backend(
            target, (command.connect,), peer_of=command.at, command=command, end=command.stop
        )
    if uris := settings.nbd_uris:
        return dialled(target, uris, known, disks, before)
    assert settings.uri is not None  # guaranteed by the checks of the configuration
    assert not isinstance(settings.uri, NbdUri)
    from gateway.embedded import DiskError, InProcess, make_server  # where one is used, not before

    try:
        within = InProcess(make_server(settings.uri), embedded)
    except DiskError as error:
        raise StartError(f"upstream {name}: {error}") from None
    if isinstance(target, FileUri):
        where: Address = "file", os.path.realpath(target.path)
        return Backend(target, (within.connect,), disks=where, end=within.close_files)
    return Backend(target, (within.connect,))

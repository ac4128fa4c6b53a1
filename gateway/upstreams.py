"""The servers of a configuration, made once and kept through reloads.

What an upstream is, is its *backend*: an address that is dialled, a server that we start by command, or one in
here (`memory:`, `file:`, `legacy:`). How it is spoken to (time limits, quirks, credentials) are settings of the
`Server` over it. A reload keeps

- the `Server` where nothing of the upstream has changed: what has been learnt of it, its list of exports;
- the backend where it leads to the same place, under the same name or (`[upstream.a]` is now `[upstream.b]`)
  under another: the content of a `memory:` disk, and the one process that may have a disk open. Two servers on
  one disk would spoil it, and a memory disk that is begun anew is empty;
- nothing else. A backend that no upstream leads to any more serves on for those who were connected at the
  reload, and ends when the last of them has gone; at the latest, with the gateway. That may be later than its
  own last session: who holds up the end is then another session of that age. It costs a process that is idle.
"""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from gateway.config import Config, Upstream
from gateway.net.dial import Command, DialError, Dialler
from gateway.net.processes import Processes
from gateway.peer import UNKNOWN, Peer
from gateway.quirks import catalogue
from gateway.upstream.mode import Doubt, Mode, Survival, Unanswered
from gateway.upstream.server import Connect, Server
from gateway.uri import File, NbdUri, Target

if TYPE_CHECKING:
    from gateway.keyring import Keyring  # these two cost nothing where there is no TLS
    from gateway.tls.credentials import Session


QUIET_SECONDS = 5
"""How long a server in here may take to see that its last client has gone, before its file is closed. One that
takes longer keeps the file open, which is better than to take it from a write."""


class StartError(Exception):
    """The gateway cannot be as its configuration says; the text is for the person who wrote that."""


async def _nothing() -> None:
    """There is nothing to end."""


Where = Target | tuple[str, ...] | tuple[NbdUri, ...]


@dataclass(frozen=True, eq=False)
class Backend:
    """Where an upstream leads, and what runs for it."""

    target: Where
    """Its `uri`, `uris` or `command`."""
    connect: Connect
    diallers: tuple[Dialler, ...] = ()
    """What connects, if these are addresses: they know where they have been."""
    peer_of: Callable[[trio.SocketStream], Peer] = lambda _stream: UNKNOWN
    """Says who is at the other end of a connection, if that is known whatever the settings say."""
    processes: Processes = field(default_factory=Processes)
    """What would know it of Unix sockets."""
    disks: object = field(default_factory=object)
    """Whose disks these are: the same for what leads to the same ones."""
    connections: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(math.inf)
    )
    """Places for the connections to it; how many is said by the `Server` in force."""
    end: Callable[[], Awaitable[None]] = _nothing
    """Ends what we run, once nobody is connected to it."""


@dataclass(frozen=True)
class Servers:
    """Those of one configuration, by their names."""

    settings: Mapping[str, Upstream] = field(default_factory=dict)
    backends: Mapping[str, Backend] = field(default_factory=dict)
    servers: Mapping[str, Server] = field(default_factory=dict)

    def gone(self, after: Servers) -> list[Backend]:
        """Give the backends that another configuration does not have."""
        kept = list(after.backends.values())
        return [backend for backend in self.backends.values() if backend not in kept]

    def words(self, before: Servers) -> str:
        """Say what has become of those before."""
        kept = sum(server is before.servers.get(name) for name, server in self.servers.items())
        changed = len(self.servers.keys() & before.servers.keys()) - kept
        gone = len(before.servers.keys() - self.servers.keys())
        return counted(kept, changed, len(self.servers) - kept - changed, gone)

    async def end(self) -> None:
        """End everything that we run."""
        for backend in self.backends.values():
            await backend.end()


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
) -> Servers:
    """Make the servers of a configuration, with what can be kept of those before, or of those that have been
    left, and run for the last sessions over them. Embedded ones live in the nursery. Raises `StartError`;
    what was `made` until then is for the caller to end.
    """
    for name, settings in config.upstream.items():
        unknown = [quirk for quirk in _named_quirks(settings) if quirk not in catalogue()]
        if unknown:
            known = ", ".join(sorted(catalogue()))
            raise StartError(f"upstream {name}: there is no quirk {unknown[0]!r}, only {known}")
    backends = _kept_backends(config, before, leaving)
    for name, settings in config.upstream.items():
        if name not in backends:
            backends[name] = _backend(name, settings, embedded, before.backends.get(name))
            made(backends[name])
    servers = {}
    for name, settings in config.upstream.items():
        if before.settings.get(name) == settings:  # and so the backend is the same
            servers[name] = before.servers[name]
        else:
            servers[name] = _server(name, settings, backends[name], keyring)
    return Servers(config.upstream, backends, servers)


def load_keyring(config: Config, before: Keyring | None = None) -> Keyring | None:
    """Load all TLS credentials that were not loaded before; None if there is no TLS. Raises `StartError`."""
    listeners = any(listen.tls_mode != "off" for listen in config.listen)
    needed = listeners or any(upstream.secure for upstream in config.upstream.values())
    if before is None and not needed:
        return None
    from gateway.keyring import Keyring, KeyringError

    try:
        return Keyring(config, before)
    except KeyringError as error:
        raise StartError(str(error)) from None


@asynccontextmanager
async def upstreams(
    config: Config, embedded: trio.Nursery, keyring: Keyring | None
) -> AsyncIterator[Mapping[str, Server]]:
    """Give the upstreams by name, for a look at them: none that is down is waited for, and the servers that we
    start are ended with this.
    """
    made = servers_of(config, embedded, keyring)
    for server in made.servers.values():
        server.patient = False
    try:
        yield made.servers
    finally:
        with trio.CancelScope(shield=True):  # Command.stop has a limit of its own
            await made.end()


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
    left += [each for each in leaving if not isinstance(each.target, File)]
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


def _server(name: str, settings: Upstream, backend: Backend, keyring: Keyring | None) -> Server:
    same = settings.same_storage
    connects: list[Connect]
    connects = [partial(dialler.connect, same_storage=same) for dialler in backend.diallers]
    return Server(
        name,
        *(connects or [backend.connect]),
        connect_seconds=settings.connect_seconds,
        negotiate_seconds=settings.negotiate_seconds,
        keepalive_seconds=settings.keepalive_seconds,
        user_timeout_seconds=settings.user_timeout_seconds,
        quirks=settings.quirks,
        trust_allocation=settings.trust_allocation,
        tls=_upstream_session(keyring, name),
        disks=backend.disks,
        same_storage=same,
        max_connections=settings.max_connections or math.inf,
        connections=backend.connections,
        mode=mode_of(settings),
        keep_warm=settings.warm,
        check_seconds=settings.health_check_seconds,
        peer_of=backend.processes.at if settings.server_is_peer else backend.peer_of,
        processes=backend.processes if settings.server_is_peer else None,
    )


def mode_of(settings: Upstream) -> Mode:
    """Give over how many connections an upstream serves, and what becomes of clients when they are lost."""
    survival = Survival(
        settings.reconnect_seconds,
        Doubt(settings.unflushed),
        settings.replay_bytes,
        Unanswered(settings.unknown_writes),
        settings.late_write_seconds,
        settings.stall_seconds,
    )
    return Mode(
        settings.connections,
        settings.connections_required,
        settings.stripe,
        settings.coherence == "strong",
        survival,
    )


def _upstream_session(keyring: Keyring | None, name: str) -> Callable[[], Session] | None:
    if keyring is None or name not in keyring.upstreams:
        return None
    ring = keyring.upstreams[name]
    return lambda: ring.current.session()


def _dialled(target: Where, uris: tuple[NbdUri, ...], before: Backend | None) -> Backend:
    """Give what connects to addresses. Those that the upstream had before a reload are kept to, and what
    shares one of them shares its disks.
    """
    known = {} if before is None else {dialler.uri: dialler for dialler in before.diallers}
    diallers = tuple(known.get(uri) or Dialler(uri) for uri in uris)
    shares = before is not None and any(uri in known for uri in uris)
    backend = Backend(target, diallers[0].connect, diallers)
    if before is not None and shares:
        return replace(backend, disks=before.disks, connections=before.connections)
    return backend


def _named_quirks(settings: Upstream) -> tuple[str, ...]:
    return () if settings.quirks == "auto" else settings.quirks


def _backend(
    name: str, settings: Upstream, embedded: trio.Nursery, before: Backend | None
) -> Backend:
    target = _target(settings)
    if settings.command is not None:
        command = Command(settings.command)
        return Backend(target, command.connect, peer_of=command.at, end=command.stop)
    if settings.uris:
        return _dialled(target, settings.uris, before)
    assert settings.uri is not None  # guaranteed by the checks of the configuration
    if isinstance(settings.uri, NbdUri):
        return _dialled(target, (settings.uri,), before)
    from gateway.embedded import (
        DiskError,
        FileDisk,
        make_server,
    )  # costs nothing where no embedded one is used

    try:
        server = make_server(settings.uri)
    except DiskError as error:
        raise StartError(f"upstream {name}: {error}") from None

    served = 0
    quiet = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal served, quiet
        served += 1
        try:
            await server.serve(stream)
        finally:
            served -= 1
            quiet.set()
            quiet = trio.Event()

    async def connect() -> trio.SocketStream:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise DialError(f"cannot connect to the server in here: {error.strerror}") from None
        for end in (ours, theirs):
            end.setblocking(False)
        embedded.start_soon(serve, trio.SocketStream(trio.socket.from_stdlib_socket(theirs)))
        return trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    async def close_files() -> None:
        with trio.move_on_after(QUIET_SECONDS):
            while served:
                await quiet.wait()
            for disk in server.exports.values():
                assert isinstance(disk, FileDisk)
                disk.close()

    return Backend(target, connect, end=close_files if isinstance(target, File) else _nothing)

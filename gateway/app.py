"""The composition root: builds everything from a configuration, runs it, and ends it in good order.

The only module that knows all others. Signals: SIGTERM, or SIGINT once, drains (no new connections, nothing
new begun, what is under way finished within `drain-seconds`); a second one ends at once. SIGHUP loads TLS
credentials anew.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from gateway.config import Config, Listen, Upstream
from gateway.net.dial import Command, DialError, dial
from gateway.net.listen import Listener, ListenError, open_listener
from gateway.net.tally import Tally
from gateway.quirks import catalogue
from gateway.relay.client import ChooseSession, serve_client
from gateway.relay.hub import Hub
from gateway.relay.service import Service
from gateway.relay.transmit import LINGER_SECONDS
from gateway.upstream.server import Connect, Server
from gateway.uri import File, Legacy, Memory, NbdUri

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from gateway.keyring import Keyring  # these two cost nothing where there is no TLS
    from gateway.tls.credentials import Session

INTERRUPTED = 130
"""Exit status after a second signal, SIGTERM as well: what a shell gives for SIGINT."""

NEGOTIATION_DRAIN_SECONDS = 2
"""How long clients that have not opened an export yet may take, while shutting down, to ask for one and be
told ERR_SHUTDOWN."""

MAX_DESCRIPTORS = 1_048_576
"""Up to where the limit of open files is raised: two sockets for each client, and the kernel's own cap."""

SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Why a connection cannot be accepted now, though later it may (accept(2))."""

ACCEPT_AGAIN_SECONDS = 0.1
"""How long to leave a connection in the kernel's queue while there is a shortage."""

SHORTAGE_LOG_SECONDS = 60
TURNED_AWAY_LOG_SECONDS = 1
"""How often the log speaks of these at most: both come by the thousand, and from whoever likes to connect."""


class StartError(Exception):
    """The gateway cannot start; the text is for the person who started it."""


@dataclass(frozen=True)
class Options:
    """What concerns one run rather than the service."""

    run: str | None = None
    """A shell command: the gateway ends with it, and with its status."""
    pidfile: Path | None = None
    exit_after_last_client: bool = False


async def serve(
    config: Config,
    options: Options = Options(),
    *,
    listening: Callable[[tuple[NbdUri, ...]], None] | None = None,
) -> int:
    """Serve until a signal, the end of `--run` or the last client; give the exit status.

    `listening` is called with the listeners' URIs once clients can connect. Raises `StartError`.
    """
    _raise_descriptor_limit()
    # Signals first: whoever sees the socket may send one.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        failed: StartError | None = None
        async with trio.open_nursery() as embedded:
            try:
                keyring = load_keyring(config)
                async with upstreams(config, embedded, keyring) as servers:
                    status = await _serve(config, options, servers, keyring, signals, listening)
            except StartError as error:  # as itself, not in the nursery's group
                failed = error
            embedded.cancel_scope.cancel()
    if failed is not None:
        raise failed
    return status


async def _serve(
    config: Config,
    options: Options,
    servers: dict[str, Server],
    keyring: Keyring | None,
    signals: AsyncIterator[int],
    listening: Callable[[tuple[NbdUri, ...]], None] | None,
) -> int:
    listeners = await _open_listeners(config)
    try:
        with _pidfile(options.pidfile):
            if listening is not None:
                listening(tuple(listener.uri for listener in listeners))
            log = _logger(config)
            for listener in listeners:
                log.info("listening", uri=str(listener.uri))
            hub = Hub()
            service = Service(config, servers, hub, log)
            try:
                run = _Run(service, listeners, options, keyring, signals)
                return await run.until_the_end()
            finally:
                hub.close()
    finally:
        for listener in listeners:
            await listener.aclose()


class _Run:
    """One run of the gateway: what it serves, and when it ends."""

    def __init__(
        self,
        service: Service,
        listeners: list[Listener],
        options: Options,
        keyring: Keyring | None,
        signals: AsyncIterator[int],
    ) -> None:
        self._keyring = keyring
        self._signals = signals
        self._service = service
        self._listeners = listeners
        self._options = options
        self._clients = dict.fromkeys(listeners, 0)
        self._somebody_left = trio.Event()
        self._status = 0
        self._drain = trio.Event()
        self._shortages = Tally(SHORTAGE_LOG_SECONDS, self._say_shortage)
        self._turned_away = Tally(TURNED_AWAY_LOG_SECONDS, self._say_turned_away)

    @property
    def _client_count(self) -> int:
        return sum(self._clients.values())

    async def until_the_end(self) -> int:
        """Serve; give the exit status."""
        async with trio.open_nursery() as hub:
            hub.start_soon(self._service.hub.run)
            async with trio.open_nursery() as clients:
                async with trio.open_nursery() as doors:
                    doors.start_soon(self._obey_signals, hub.cancel_scope)
                    doors.start_soon(self._shortages.run)
                    doors.start_soon(self._turned_away.run)
                    if self._keyring is not None:
                        doors.start_soon(self._keyring.watch, self._service.log)
                    for listener in self._listeners:
                        for listening in listener.sockets:
                            doors.start_soon(self._accept, listener, listening, clients)
                    if self._options.run is not None:
                        doors.start_soon(self._run_command, self._options.run)
                    await self._drain.wait()
                    self._service.log.info("shutting down", clients=self._client_count)
                    for listener in self._listeners:
                        await listener.aclose()
                    self._service.drain()
                    await self._wait_for_clients()
                    doors.cancel_scope.cancel()
                clients.cancel_scope.cancel()
            hub.cancel_scope.cancel()
        for server in self._service.servers.values():
            if server.repaired:
                repaired = dict(sorted(server.repaired.items()))
                self._service.log.info("repaired", upstream=server.name, sessions=repaired)
        return self._status

    async def _wait_for_clients(self) -> None:
        """Wait until all clients have gone, but no longer than the configuration says (then the sessions have
        been cut, and what is left is to see them off).
        """
        with trio.move_on_after(self._service.config.drain_seconds + LINGER_SECONDS):
            with trio.move_on_after(NEGOTIATION_DRAIN_SECONDS):
                while self._client_count:
                    await self._next_to_leave()
            while self._service.relayed:
                await self._next_to_leave()

    async def _next_to_leave(self) -> None:
        self._somebody_left = trio.Event()
        await self._somebody_left.wait()

    async def _obey_signals(self, everything: trio.CancelScope) -> None:
        async for number in self._signals:
            if number == signal.SIGHUP:
                if self._keyring is not None:
                    self._keyring.reload(self._service.log)
                continue
            if self._drain.is_set():
                self._status = INTERRUPTED
                everything.cancel()
            self._drain.set()

    # --- Clients

    async def _accept(
        self, listener: Listener, listening: trio.SocketListener, clients: trio.Nursery
    ) -> None:
        """Take clients. As trio.serve_listeners does it, which logs a traceback ten times a second while
        there is a shortage.
        """
        # It ends when draining closes the listener under it.
        with suppress(trio.ClosedResourceError):
            while True:
                try:
                    stream = await listening.accept()
                except OSError as error:
                    if error.errno not in SHORTAGES:
                        raise
                    self._shortages.add(_shortage(error.errno))
                    await trio.sleep(ACCEPT_AGAIN_SECONDS)
                else:
                    clients.start_soon(self._client, listener, stream)

    def _say_shortage(self, why: str, count: int) -> None:
        self._service.log.error("could not accept a client", why=why, attempts=count)

    def _say_turned_away(self, why: str, count: int) -> None:
        self._service.log.warning("client turned away", why=why, count=count)

    async def _client(self, listener: Listener, stream: trio.SocketStream) -> None:
        log = self._service.log
        listen = listener.settings
        self._clients[listener] += 1
        try:
            async with stream:
                if self._clients[listener] > listen.max_connections:
                    self._turned_away.add(f"{listen.max_connections} are connected")
                else:
                    await serve_client(self._service, listen, stream, self._session_of(listen))
        except Exception:
            # Our bug; it must not take the other clients with it.
            log.exception("client lost to an internal error")
        finally:
            self._clients[listener] -= 1
            self._somebody_left.set()
            if self._client_count == 0 and self._options.exit_after_last_client:
                self._drain.set()

    def _session_of(self, listen: Listen) -> ChooseSession | None:
        ring = None if self._keyring is None else self._keyring.listener(listen)
        return None if ring is None else ring.current.session

    async def _run_command(self, command: str) -> None:
        uri = self._listeners[0].uri
        environment = os.environ | {
            "uri": str(uri),
            "port": str(uri.port or ""),
            "unixsocket": uri.socket_path or "",
        }
        process = await trio.run_process(
            ["/bin/sh", "-c", command], check=False, env=environment, stdin=None
        )
        status = process.returncode
        self._status = status if status >= 0 else 128 - status
        self._drain.set()


# --- Building


async def _open_listeners(config: Config) -> list[Listener]:
    listeners: list[Listener] = []
    try:
        for settings in config.listen:
            listeners.append(await open_listener(settings))
    except ListenError as error:
        for listener in listeners:
            await listener.aclose()
        raise StartError(str(error)) from None
    return listeners


def load_keyring(config: Config) -> Keyring | None:
    """Load all TLS credentials; None if there is no TLS. Raises `StartError`."""
    listeners = any(listen.tls_mode != "off" for listen in config.listen)
    if not listeners and not any(upstream.secure for upstream in config.upstream.values()):
        return None
    from gateway.keyring import Keyring, KeyringError

    try:
        return Keyring(config)
    except KeyringError as error:
        raise StartError(str(error)) from None


@asynccontextmanager
async def upstreams(
    config: Config, embedded: trio.Nursery, keyring: Keyring | None
) -> AsyncIterator[dict[str, Server]]:
    """Give the upstreams by name; the servers that we start are ended with this."""
    commands = []
    servers = {}
    for name, settings in config.upstream.items():
        unknown = [quirk for quirk in _named_quirks(settings) if quirk not in catalogue()]
        if unknown:
            known = ", ".join(sorted(catalogue()))
            raise StartError(f"upstream {name}: there is no quirk {unknown[0]!r}, only {known}")
        if settings.command is not None:
            commands.append(Command(settings.command))
            connect: Connect = commands[-1].connect
        else:
            assert settings.uri is not None
            connect = await _connector(name, settings.uri, embedded)
        servers[name] = Server(
            name,
            connect,
            connect_seconds=settings.connect_seconds,
            negotiate_seconds=settings.negotiate_seconds,
            keepalive_seconds=settings.keepalive_seconds,
            user_timeout_seconds=settings.user_timeout_seconds,
            quirks=settings.quirks,
            trust_allocation=settings.trust_allocation,
            tls=_upstream_session(keyring, name),
        )
    try:
        yield servers
    finally:
        with trio.CancelScope(shield=True):  # Command.stop has a limit of its own
            for command in commands:
                await command.stop()


def _upstream_session(keyring: Keyring | None, name: str) -> Callable[[], Session] | None:
    if keyring is None or name not in keyring.upstreams:
        return None
    ring = keyring.upstreams[name]
    return lambda: ring.current.session()


def _named_quirks(settings: Upstream) -> tuple[str, ...]:
    return () if settings.quirks == "auto" else settings.quirks


async def _connector(
    name: str, target: NbdUri | Memory | File | Legacy, embedded: trio.Nursery
) -> Connect:
    """Give what connects to an upstream; an embedded one is made here, and lives in the nursery."""
    if isinstance(target, NbdUri):
        return partial(dial, target)
    from gateway.embedded import (
        DiskError,
        make_server,
    )  # costs nothing where no embedded one is used

    try:
        server = make_server(target)
    except DiskError as error:
        raise StartError(f"upstream {name}: {error}") from None

    async def connect() -> trio.SocketStream:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise DialError(f"cannot connect to the server in here: {error.strerror}") from None
        for end in (ours, theirs):
            end.setblocking(False)
        embedded.start_soon(server.serve, trio.SocketStream(trio.socket.from_stdlib_socket(theirs)))
        return trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    return connect


def _shortage(number: int) -> str:
    """Say what there is too little of, to somebody who can have more of it."""
    text = os.strerror(number)
    if number != errno.EMFILE:
        return text
    limit, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"{text}: the limit is {limit}, raise it with ulimit -n or systemd's LimitNOFILE"


def _raise_descriptor_limit() -> None:
    """Take as many descriptors as we may have: the usual limit of 1,024 is met by 500 clients."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def _pidfile(path: Path | None) -> Iterator[None]:
    """Have our number in a file as long as we serve."""
    if path is None:
        yield
        return
    try:
        path.write_text(f"{os.getpid()}\n")
    except OSError as error:
        raise StartError(f"cannot write {path}: {error.strerror}") from None
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def _logger(config: Config) -> FilteringBoundLogger:
    """Set up logging, to standard error. structlog is imported here, when clients can connect already: it is
    a third of what starting takes.
    """
    import logging

    import structlog

    renderer: structlog.typing.Processor
    if config.log.format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info
            if config.log.format == "json"
            else structlog.processors.StackInfoRenderer(),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[config.log.level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger

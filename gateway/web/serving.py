"""Connections of HTTP: taken, held to their bounds, and handed to hypercorn, which speaks HTTP/1.1.

Hypercorn's own server does not say how long a client may take to read an answer, has no bound on connections,
and changes to HTTP/2 when it is asked to, which has bounds of another kind. So of hypercorn we take what is
below that, its HTTP/1.1, and nobody is led away from that (`PlainHttp`); receiving, sending and TLS are here,
where each has its bound:

- a connection without a request ends after `IDLE_SECONDS`, however its bytes trickle in;
- a client that takes nothing of an answer for `SEND_SECONDS` is cut;
- there are no more than `MOST_CONNECTIONS`. Another one has the place of who has been quiet for longest, who
  neither asks nor takes anything of an answer: so those who only hold connections open keep nobody out;
- of these, no more than `MOST_AT_WORK` are at work. Another one that asks has the place of who has taken
  nothing of an answer for longest; if all take theirs, or wait for the gateway, it is told to come again, and
  ends. In the places that are left it is asked whether the gateway lives and is ready, one question each
  (`gateway.web.guard`): so whatever all others do, these come and go;
- what goes wrong in one connection ends that one, and no other.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H2ProtocolAssumedError, H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, LifespanState

from gateway.net.listen import take_clients
from gateway.net.options import peer_of
from gateway.net.secure import TlsError, TlsStream
from gateway.tls.identity import identity_of
from gateway.tls.session import TlsSession
from gateway.web.doors import Caller
from gateway.web.settings import Door
from gateway.wire.limits import KIB

MOST_CONNECTIONS = 250
"""At a time: some thirty browsers, each with its six and an event stream, beside scrapers and probes. Each
costs some 100 KiB.
"""

MOST_AT_WORK = 200
"""At a time, but for questions about health: what all those browsers and scrapers need. Fifty places are left
for probes: an orchestrator that gets no answer ends the gateway.
"""

IDLE_SECONDS = 10.0
"""How long a connection may have no request that is whole, from its beginning or the last answer on: a browser
opens another when it needs one."""

SEND_SECONDS = 10.0
"""How long a client may take for so much of an answer as is sent at a time, if nobody else wants its place."""

QUIET_SECONDS = 1.0
"""How long nothing may be taken of it, if somebody does."""

HANDSHAKE_SECONDS = 5.0
"""How long TLS may take to begin."""

HEADER_BYTES = 16 * KIB
"""The longest head of a request: browsers' have a tenth of it."""

RECEIVE_BYTES = 16 * KIB
SEND_BYTES = 64 * KIB
"""What is received and sent at a time. `SEND_SECONDS` is for so much."""

PARTING_SECONDS = 5.0
"""How long what answers a client may go on when the client has gone."""

Stream = trio.SocketStream | TlsStream

_GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


def hypercorn_settings() -> Config:
    """Give what hypercorn is told."""
    config = Config()
    config.include_server_header = False  # of nobody's concern
    config.h11_max_incomplete_size = HEADER_BYTES
    config.errorlog = None
    config.accesslog = None
    return config


class PlainHttp(h11.Connection):
    """HTTP/1.1 as hypercorn has it from h11, but for two things."""

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Give a request without its offer to go over to another protocol, which a server may pass over
        (RFC 9110, 7.8). Hypercorn takes one up, and it is not ours: Java's HttpClient makes it each time.
        """
        event = super().next_event()
        if not isinstance(event, h11.Request):
            return event
        headers = [(name, value) for name, value in event.headers if name != b"upgrade"]
        return h11.Request(
            method=event.method,
            headers=headers,
            target=event.target,
            http_version=event.http_version,
        )

    def send(self, event: Any) -> Any:
        """Give the bytes of one of h11's events. If hypercorn is cancelled while the head of an answer waits to
        be sent, it does not know that there was one, and gives another: nobody is there for that any more.
        """
        if isinstance(event, h11.Response) and self.our_state is h11.SEND_BODY:
            return b""
        return super().send(event)


class HttpConnections:
    """All connections, and what is served to them. `failed` is told of what should not have gone wrong in one;
    `choose` gives TLS sessions, by a client's first bytes.
    """

    def __init__(
        self,
        app: AppWrapper,
        failed: Callable[[str], None],
        choose: Callable[[bytes], TlsSession | None] | None = None,
    ) -> None:
        self._app = app
        self._failed = failed
        self._choose = choose
        self._config = hypercorn_settings()
        self._context = WorkerContext(None)
        self._there: dict[HttpConnection, None] = {}  # the first was there first

    @property
    def at_work(self) -> int:
        """How many have a request that is not answered yet."""
        return sum(each.idle_since == math.inf for each in self._there)

    def __len__(self) -> int:
        return len(self._there)

    async def serve(self, door: Door, clients: trio.Nursery) -> None:
        """Take clients of an address, each in `clients`, until cancelled."""
        sock = trio.socket.from_stdlib_socket(socket.socket(fileno=door.descriptor))

        def take(stream: trio.SocketStream) -> None:
            clients.start_soon(self._serve, door, stream)

        # Where descriptors are short, to wait is all that can be done.
        async with trio.SocketListener(sock) as listening:
            await take_clients(listening, take, lambda _errno: None)

    async def _serve(self, door: Door, stream: trio.SocketStream) -> None:
        if len(self._there) >= MOST_CONNECTIONS and not _give_up_the_quietest(self._there):
            await trio.aclose_forcefully(stream)
            return
        connection = HttpConnection(self._app, self._config, self._context, self._has_room)
        self._there[connection] = None
        try:
            await connection.run(door, stream, self._choose)
        except* Exception as errors:
            for error in _each_of(errors):
                self._failed(f"{type(error).__name__}: {error}")
        finally:
            del self._there[connection]

    def _has_room(self) -> bool:
        """Say whether one more may be at work; who takes nothing of an answer has to go for it."""
        at_work = [each for each in self._there if each.works]
        return len(at_work) < MOST_AT_WORK or _give_up_the_quietest(at_work)


def _give_up_the_quietest(connections: Iterable[HttpConnection]) -> bool:
    """End who has neither asked nor taken anything for longest; False: all have a request, and take what they
    are sent.
    """
    quietest = min(connections, key=lambda each: each.quiet_since)
    if quietest.quiet_since == math.inf:
        return False
    quietest.cut()
    return True


def _each_of(errors: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    """Give what is in groups of errors, however deep."""
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _each_of(error)
        else:
            yield error


class HttpConnection:
    """One connection, from its first byte to its last."""

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        has_room: Callable[[], bool],
    ) -> None:
        self._app = app
        self._config = config
        self._context = context
        self._has_room = has_room
        self._scope = trio.CancelScope()
        self._idle = trio.CancelScope()
        self._sending = trio.Lock()
        self.idle_since = trio.current_time()
        """Since when it has no request; infinite: it has one."""
        self._sending_since = math.inf
        """Since when nothing is taken of what is being sent; infinite: nothing is."""
        self.works = False
        """It is one of those that there are so many of (`MOST_AT_WORK`)."""

    @property
    def quiet_since(self) -> float:
        """Since when its client has neither asked nor taken anything; infinite: it waits for us."""
        is_slow = trio.current_time() - self._sending_since >= QUIET_SECONDS
        return self._sending_since if is_slow else self.idle_since

    def cut(self) -> None:
        """End it now."""
        self.idle_since = self._sending_since = math.inf  # it is given up once
        self.works = False
        self._scope.cancel()

    def may_work(self) -> bool:
        """Say whether a request may be answered that is not about health."""
        self.works = self.works or self._has_room()
        return self.works

    async def run(
        self,
        door: Door,
        transport: trio.SocketStream,
        choose: Callable[[bytes], TlsSession | None] | None,
    ) -> None:
        """Serve until either side ends it."""
        stream: Stream = transport
        try:
            with self._scope:
                certified = None
                if door.secure:
                    assert choose is not None
                    with trio.fail_after(HANDSHAKE_SECONDS):
                        stream, admitted = await TlsStream.accept(transport, choose)
                    certified = name_of(admitted.certificate)
                await self._serve(stream, caller_at(door, transport, certified), door.secure)
        except (OSError, TlsError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it is its client's affair
        except trio.TooSlowError:
            pass
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await stream.aclose()

    async def _serve(self, stream: Stream, caller: Caller, secure: bool) -> None:
        self._stream = stream
        async with TaskGroup() as tasks:
            self._protocol = H11Protocol(
                self._app,
                self._config,
                self._context,
                tasks,
                ConnectionState(LifespanState({"caller": caller, "may_work": self.may_work})),
                secure,
                (caller.where, 0),
                None,
                self._send,
            )
            self._protocol.connection = PlainHttp(
                h11.SERVER, max_incomplete_event_size=self._config.h11_max_incomplete_size
            )
            try:
                while data := await self._receive():
                    await self._protocol.handle(RawData(data))
            except H2ProtocolAssumedError:
                pass  # we do not speak HTTP/2
            except (OSError, trio.BrokenResourceError):
                pass
            # What still answers is told that nobody hears it any more, and has a moment to end.
            self._scope.deadline = trio.current_time() + PARTING_SECONDS
            await self._protocol.handle(Closed())

    async def _receive(self) -> bytes:
        """Receive; b"" when the client has gone, or has been idle for too long."""
        with trio.CancelScope() as self._idle:
            self._idle.deadline = self.idle_since + IDLE_SECONDS
            return bytes(await self._stream.receive_some(RECEIVE_BYTES))
        return b""

    async def _send(self, event: Event) -> None:
        """Do what hypercorn wants done. Nothing is raised: it would be taken for a fault of what answers."""
        if isinstance(event, RawData):
            async with self._sending:
                await self._send_data(event.data)
        elif isinstance(event, Closed):
            # All that was to be sent is sent. What the client may still be sending is not waited for; and who
            # answers may be cancelled here, which must not keep this from its end.
            self._scope.cancel()
            with trio.CancelScope(shield=True), suppress(*_GONE):
                if isinstance(self._stream, trio.SocketStream):
                    await self._stream.send_eof()
        elif isinstance(event, Updated):
            self.idle_since = trio.current_time() if event.idle else math.inf
            self.works = self.works and not event.idle
            self._idle.deadline = self.idle_since + IDLE_SECONDS

    async def _send_data(self, data: bytes) -> None:
        try:
            for start in range(0, len(data), SEND_BYTES):
                self._sending_since = trio.current_time()
                with trio.fail_after(SEND_SECONDS):
                    await self._stream.send_all(data[start : start + SEND_BYTES])
        except (*_GONE, trio.TooSlowError):
            self._scope.cancel()
        finally:
            self._sending_since = math.inf


def caller_at(door: Door, transport: trio.SocketStream, certified: str | None) -> Caller:
    """Say who has connected."""
    peer = peer_of(transport.socket)
    uid = None if peer.unix is None else peer.unix.uid
    return Caller(door.kind, peer.peer or "a Unix socket", uid, certified)


def name_of(certificate: bytes | None) -> str | None:
    """Give what a client's certificate calls it."""
    if certificate is None:
        return None
    return identity_of(certificate, None).describe()

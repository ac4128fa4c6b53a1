"""Drives a pure negotiation on a Trio stream: its bytes in, its bytes out, its events to the caller."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

import trio

from gateway.net.options import RelaySocket, plain_socket, send_from
from gateway.wire.limits import KIB

RECEIVE_BYTES = 16 * KIB
"""How much one receive takes. More options than that are never under way."""

Event = TypeVar("Event", covariant=True)


if TYPE_CHECKING:
    from gateway.net.secure import TlsStream  # costs nothing where there is no TLS

Stream: TypeAlias = "trio.SocketStream | TlsStream"
"""What a conversation goes over."""


def take_socket(stream: Stream, *, one_slice_a_record: bool = False) -> tuple[RelaySocket, bytes]:
    """Take the socket out of a stream, for the hub, with what was received and not read yet. The stream is of
    no use afterwards. `one_slice_a_record`: over TLS slices are not joined.
    """
    if isinstance(stream, trio.SocketStream):
        return plain_socket(stream), b""
    return stream.into_socket(joins=not one_slice_a_record)


def has_left(stream: Stream) -> bool:
    """Say whether the peer sends nothing more, and nothing is left to receive either. Nobody may be receiving
    meanwhile.
    """
    if not isinstance(stream, trio.SocketStream):
        return stream.has_left()
    sock = stream.socket
    same = socket.socket(sock.family, sock.type, fileno=sock.fileno())  # no descriptor more
    try:
        return not same.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        same.detach()


async def hang_up(stream: Stream) -> None:
    """Say that nothing more comes, and take what the peer still says, until it says the same. If a connection
    is closed before that, it is reset, and what the peer has not read by then is lost. This may take for ever,
    and may be cancelled at any time. The stream has to be closed all the same.
    """
    transport = stream if isinstance(stream, trio.SocketStream) else stream.say_goodbye()
    with suppress(OSError, trio.BrokenResourceError):  # it has gone already
        transport.socket.shutdown(socket.SHUT_WR)
        while await transport.receive_some(RECEIVE_BYTES):
            pass


async def close_stream(stream: Stream) -> None:
    """Close a stream, without waiting for anybody."""
    if isinstance(stream, trio.SocketStream):
        await trio.aclose_forcefully(stream)
    else:
        await stream.aclose()


SENDS_A_TURN = 8
"""How often one conversation sends until it is the others' turn. It may have received hundreds of options, and
each is answered at once."""

TURN_SECONDS = 0.001
"""How long it keeps the processor at most, with waiting for its peer."""

MOMENT_SECONDS = 0.0002
"""How long it polls for what its peer says, where that is quick: a few times what a peer on the same machine
takes to answer. To sleep, and be woken, takes as long as the answer itself."""

MOMENTS = 4
"""How many such moments there are at most for one event; no clock counts them. Some peers send an event in a
few pieces, and only a peer that wants to be waited for sends it in many."""

ALONE_SECONDS = 0.00003
"""If the others' turn is over so soon, nobody was ready at that moment. Trio's loop alone takes 4 µs, and what
others do takes longer than this: the hub, once woken, polls for 200. That does not say that nobody is there: a
hub whose servers are slow sleeps as one without sessions does. What comes for it meanwhile waits for the end of
our turn: `TURN_SECONDS` and a poll of `MOMENT_SECONDS` at most. On a machine that is too slow for this nobody
ever polls, and each is woken, as over TLS."""


class PeerClosed(Exception):
    """The peer closed the connection, or it broke."""


class Core(Protocol[Event]):
    """What the two negotiations of `gateway.protocol` have in common."""

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer."""

    def next_event(self) -> Event | None:
        """Give the next event, or None if more bytes are needed."""

    def data_to_send(self) -> bytes:
        """Give bytes for the peer, once."""


class Conversation(Generic[Event]):
    """A core on a stream. One that goes on for long, as when a list is looked at one export after the other,
    mostly waits to be woken. So as long as nobody else is ready when the others have their turn, and the peer
    answers at once, it polls for the answer by itself, as the hub does for sessions.
    """

    def __init__(self, stream: Stream, core: Core[Event]) -> None:
        self.stream = stream
        self._core = core
        self._unsent = bytearray()
        self._sends = 0
        self._poll: select.poll | None = None
        """Set while nobody else was ready, and the peer is quick."""
        self._turn_began = 0.0

    async def next_event(
        self, clock: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> Event:
        """Send what the core has to say, and receive until it has an event. `clock` runs while it takes more
        than a moment.

        Raises `PeerClosed`, what the core raises, after sending what it still had to say, and what `clock`
        raises.
        """
        moments = MOMENTS
        while True:
            try:
                event = self._core.next_event()
            except Exception:
                with suppress(PeerClosed), clock():  # it need not hear what was wrong
                    await self.flush()
                raise
            if not self._sent_at_once():
                with clock():
                    await self._send()
            if self._sends >= SENDS_A_TURN or (self._poll is not None and self._turn_is_over()):
                await self._let_others_run()
            if event is not None:
                return event
            data = self._said_at_once() if moments else b""
            moments -= bool(data)
            if not data:
                with clock():
                    data = await self._receive()
            self._core.receive(data)

    async def flush(self) -> None:
        """Send what the core has to say. What a cancellation leaves unsent goes first the next time."""
        if not self._sent_at_once():
            await self._send()

    def _sent_at_once(self) -> bool:
        """Send what the core has to say, as far as that takes no waiting; say whether nothing is left to do."""
        self._unsent += self._core.data_to_send()
        if not self._unsent:
            return True
        self._sends += 1
        if not isinstance(self.stream, trio.SocketStream):
            return False
        try:
            # Trio's own way lets others run each time, which takes longer than to send.
            del self._unsent[: os.write(self.stream.socket.fileno(), self._unsent)]
        except OSError:
            return False  # it will be found again
        return not self._unsent

    async def _send(self) -> None:
        try:
            if isinstance(self.stream, trio.SocketStream):
                await send_from(self.stream, self._unsent)
            else:  # which keeps what it was given
                data = bytes(self._unsent)
                self._unsent.clear()
                await self.stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise PeerClosed(f"the connection broke: {error.__cause__ or error}") from None

    def _turn_is_over(self) -> bool:
        return time.perf_counter() - self._turn_began > TURN_SECONDS

    async def _let_others_run(self) -> None:
        began = time.perf_counter()
        await trio.lowlevel.checkpoint()
        self._turn_began = time.perf_counter()
        self._sends = 0
        self._poll = None
        if self._turn_began - began < ALONE_SECONDS and isinstance(self.stream, trio.SocketStream):
            self._poll = select.poll()
            self._poll.register(self.stream.socket.fileno(), select.POLLIN)

    def _said_at_once(self) -> bytes:
        """Give what the peer says in a moment; nothing, if it takes longer or is the end."""
        if self._poll is None:
            return b""
        assert isinstance(self.stream, trio.SocketStream)
        poll, over = self._poll.poll, time.perf_counter() + MOMENT_SECONDS
        while not poll(0):
            if time.perf_counter() > over:
                self._poll = None
                return b""
        try:
            return os.read(self.stream.socket.fileno(), RECEIVE_BYTES)
        except OSError:
            return b""  # it will be found again

    async def _receive(self) -> bytes:
        try:
            data = await self.stream.receive_some(RECEIVE_BYTES)
        except trio.BrokenResourceError as error:
            raise PeerClosed(f"the connection broke: {error.__cause__ or error}") from None
        if not data:
            raise PeerClosed("the peer closed the connection")
        return bytes(data)

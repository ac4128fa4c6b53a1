"""Drives a pure negotiation on a Trio stream: its bytes in, its bytes out, its events to the caller."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

import trio

from gateway.net.options import RelaySocket, plain_socket, send_from
from gateway.wire.limits import KIB

RECEIVE_BYTES = 16 * KIB
"""What one receive takes; more options than that are never under way."""

Event = TypeVar("Event", covariant=True)


if TYPE_CHECKING:
    from gateway.net.secure import TlsStream  # costs nothing where there is no TLS

Stream: TypeAlias = "trio.SocketStream | TlsStream"
"""What a conversation is on."""


def take_socket(stream: Stream, *, one_slice_a_record: bool = False) -> tuple[RelaySocket, bytes]:
    """Take the socket out of a stream, for the hub, with what was received and not read yet. The stream is of
    no use afterwards. `one_slice_a_record`: over TLS slices are not joined.
    """
    if isinstance(stream, trio.SocketStream):
        return plain_socket(stream), b""
    return stream.into_socket(joins=not one_slice_a_record)


async def hang_up(stream: Stream) -> None:
    """Say that nothing more comes, and take what the peer still says, until it says the same: a connection that
    is closed before is reset, and what the peer has not read by then is lost. It may take for ever, and be
    cancelled at any time. The stream is to be closed all the same.
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
"""So often one conversation sends until it is others' turn: what it has received may be hundreds of options, of
which each is answered at once."""


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
    """A core on a stream."""

    def __init__(self, stream: Stream, core: Core[Event]) -> None:
        self.stream = stream
        self._core = core
        self._unsent = bytearray()
        self._sends = 0

    async def next_event(
        self, clock: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> Event:
        """Send what the core has to say, and receive until it has an event. `clock` runs meanwhile.

        Raises `PeerClosed`, what the core raises, after sending what it still had to say, and what `clock`
        raises.
        """
        with clock():
            return await self._next_event()

    async def _next_event(self) -> Event:
        while True:
            try:
                event = self._core.next_event()
            finally:
                await self.flush()
            if event is not None:
                return event
            try:
                data = await self.stream.receive_some(RECEIVE_BYTES)
            except trio.BrokenResourceError as error:
                raise PeerClosed(f"the connection broke: {error.__cause__ or error}") from None
            if not data:
                raise PeerClosed("the peer closed the connection")
            self._core.receive(bytes(data))

    async def flush(self) -> None:
        """Send what the core has to say. What a cancellation leaves unsent goes first the next time."""
        self._unsent += self._core.data_to_send()
        if not self._unsent:
            return
        self._sends += 1
        if self._sends % SENDS_A_TURN == 0:
            await trio.lowlevel.checkpoint()
        try:
            if isinstance(self.stream, trio.SocketStream):
                await send_from(self.stream, self._unsent)
            else:  # which keeps what it was given
                data = bytes(self._unsent)
                self._unsent.clear()
                await self.stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise PeerClosed(f"the connection broke: {error.__cause__ or error}") from None

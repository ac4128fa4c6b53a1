"""A client over TLS whose home is another process: its TLS stays here, and its bytes go there over a socket
pair.

The keys of TLS cannot be handed over. So the other process is given one end of a pair, as if the client were
there, and here the bytes go from the one to the other and back. Each direction has one buffer, and takes no
more before that is sent: who is slow holds up the other side, and nobody else. When one side says that it sends
no more, so does the other; when one side breaks, both are closed.
"""

from __future__ import annotations

import socket

import trio

from gateway.net.options import RelaySocket
from gateway.wire.limits import KIB

BUFFER_BYTES = 256 * KIB
"""How much one direction takes at a time: a few records of TLS, and a request of the usual length."""


def stream_pair() -> tuple[socket.socket, socket.socket]:
    """Give an end for here, and one for the other process. Raises `OSError`."""
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    return ends


async def relay(client: RelaySocket, home: RelaySocket, early: bytes = b"") -> None:
    """Relay until both sides have ended, or one is broken. `early` is what the client has sent already. Closes
    neither. Never raises for anything that a peer does.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pass_on, client, home, early, nursery.cancel_scope)
        nursery.start_soon(_pass_on, home, client, b"", nursery.cancel_scope)


async def _pass_on(
    source: RelaySocket, sink: RelaySocket, first: bytes, both: trio.CancelScope
) -> None:
    """One direction. What breaks ends `both`."""
    buffer = memoryview(bytearray(BUFFER_BYTES))
    try:
        await _send(sink, memoryview(first))
        while count := await _received(source, buffer):
            await _send(sink, buffer[:count])
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        both.cancel()


async def _received(source: RelaySocket, buffer: memoryview) -> int:
    while True:
        try:
            return source.recv_into(buffer)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(source.fileno())


async def _send(sink: RelaySocket, left: memoryview) -> None:
    while left:
        try:
            left = left[sink.send(left) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sink.fileno())

"""The demo: a gateway before an embedded server with qemu 3.0's faults, looked at from both sides.

A small client of our own asks both what they offer, and then does what a client does with that offer: where
CAN_MULTI_CONN is promised it writes on one connection and reads on another, otherwise it uses one.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

import trio

from gateway import app
from gateway.config import parse
from gateway.embedded import Server, make_server
from gateway.net.dial import dial
from gateway.net.drive import Conversation
from gateway.protocol.client import Answered, ClientNegotiation, Event
from gateway.upstreams import StartError
from gateway.uri import Legacy, NbdUri, parse_nbd_uri
from gateway.wire.constants import Cmd, TransmissionFlag
from gateway.wire.transmission import DISC, SIMPLE_REPLY, encode_request

UPSTREAM_PORT = 10809
GATEWAY_PORT = 10810

SIZE_BYTES = 64 * 1024 * 1024
OLD, NEW = b"old data", b"new data"


@dataclass(frozen=True)
class Face:
    """What a client sees of a server."""

    uri: NbdUri
    flags: TransmissionFlag
    read_back: bytes
    """What a client that relies on the flags reads of what it has just written."""

    @property
    def multi_conn(self) -> bool:
        """The client was told that it may use several connections."""
        return bool(self.flags & TransmissionFlag.CAN_MULTI_CONN)


async def demo(show: Callable[[Face, Face], None]) -> int:
    """Call `show` with the direct face and the one through the gateway; then serve until a signal.

    Raises `gateway.upstreams.StartError`.
    """
    server = make_server(Legacy("qemu-3.0", SIZE_BYTES))
    async with trio.open_nursery() as nursery:
        upstream = await _serve(server, nursery)
        gateway = parse_nbd_uri(f"nbd://127.0.0.1:{_free(GATEWAY_PORT)}")
        config = parse(
            f'listen = [{{ uri = "{gateway}" }}]\nupstream.legacy.uri = "{upstream}"\nlog.level = "error"',
            "demo",
        )
        listening = trio.Event()

        async def look() -> None:
            await listening.wait()
            direct = await _face(upstream)
            show(direct, await _face(gateway))

        nursery.start_soon(look)
        failed: StartError | None = None
        try:
            status = await app.serve(config, listening=lambda _uris: listening.set())
        except StartError as error:  # as itself, not in the nursery's group
            failed = error
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed
    return status


def _free(port: int) -> int:
    """Give the port, or another one if it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


async def _serve(server: Server, nursery: trio.Nursery) -> NbdUri:
    listeners = await trio.open_tcp_listeners(_free(UPSTREAM_PORT), host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, server.serve, listeners)
    return parse_nbd_uri(f"nbd://127.0.0.1:{listeners[0].socket.getsockname()[1]}")


async def _face(uri: NbdUri) -> Face:
    """Look at a server as a client does that believes what it is told."""
    first, flags = await _open(uri)
    async with first:
        await _write(first, OLD)
        await first.send_all(encode_request(Cmd.FLUSH, 0, 3, 0, 0))
        await _receive(first, SIMPLE_REPLY.size)
        reader = first
        if flags & TransmissionFlag.CAN_MULTI_CONN:
            reader, _flags = await _open(uri)
        async with reader:
            await _read(reader)  # as any client reads a partition table
            await _write(first, NEW)
            face = Face(uri, flags, await _read(reader))
            await reader.send_all(DISC)
        if reader is not first:
            await first.send_all(DISC)
    return face


async def _open(uri: NbdUri) -> tuple[trio.SocketStream, TransmissionFlag]:
    stream = await dial(uri)
    core = ClientNegotiation()
    talk: Conversation[Event] = Conversation(stream, core)
    await talk.next_event()
    core.go("", ())
    answer = await talk.next_event()
    assert isinstance(answer, Answered)
    assert answer.export is not None
    return stream, TransmissionFlag(answer.export.flags)


async def _write(stream: trio.SocketStream, data: bytes) -> None:
    await stream.send_all(encode_request(Cmd.WRITE, 0, 1, 0, 512, data.ljust(512)))
    await _receive(stream, SIMPLE_REPLY.size)


async def _read(stream: trio.SocketStream) -> bytes:
    await stream.send_all(encode_request(Cmd.READ, 0, 2, 0, 512))
    reply = await _receive(stream, SIMPLE_REPLY.size + 512)
    return reply[SIMPLE_REPLY.size :].rstrip(b" \0")


async def _receive(stream: trio.SocketStream, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = await stream.receive_some(length - len(data))
        if not more:
            raise EOFError(f"the connection ended after {len(data)} of {length} bytes")
        data += more
    return data

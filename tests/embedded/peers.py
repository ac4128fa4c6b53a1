"""The other side of an embedded server in a test: a client that says exactly what it is told to."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from gateway.embedded import Server
from gateway.protocol.client_role import Answered, ClientNegotiation, Event, Greeted, Refused
from gateway.wire import transmission
from gateway.wire.constants import (
    EXTENDED_REPLY_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Cmd,
    CmdFlag,
    Info,
    ReplyFlag,
)
from gateway.wire.framing import EXTENDED, SIMPLE, Framing

BLOCK_SIZE = (Info.BLOCK_SIZE,)


@dataclass
class OneChunk:
    kind: int
    payload: bytes
    done: bool

    @property
    def offset(self) -> int:
        return int.from_bytes(self.payload[:8])

    @property
    def data(self) -> bytes:
        assert self.kind == Chunk.OFFSET_DATA
        return self.payload[8:]

    @property
    def error(self) -> int:
        return transmission.decode_error_chunk(self.kind, self.payload).error

    @property
    def extents(self) -> list[tuple[int, int]]:
        return self.status[1]

    @property
    def status(self) -> tuple[int, list[tuple[int, int]]]:
        """The context's id, and its extents."""
        decode = transmission.decode_extents
        if self.kind == Chunk.BLOCK_STATUS_EXT:
            decode = transmission.decode_extended_extents
        else:
            assert self.kind == Chunk.BLOCK_STATUS
        context, extents = decode(self.payload)
        return context, list(extents)


class Client:
    """One connection. `ask_*` of `negotiation`, then `event()`; after `open`, `send` and `reply`."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.negotiation = ClientNegotiation()
        self._received = bytearray()
        self._cookie = 0
        self._lengths: dict[int, int] = {}  # of READs, for their simple replies
        self._offsets: dict[int, int] = {}  # of all requests, for extended replies to repeat
        self.echo = 0
        """The offset that the last extended chunk repeats of its request."""

    # --- Negotiation

    async def event(self) -> Event:
        while True:
            event = self.negotiation.next_event()
            data = self.negotiation.data_to_send()
            if data:
                await self.stream.send_all(data)
            if event is not None:
                return event
            received = await self.stream.receive_some()
            if not received:
                raise EOFError
            self.negotiation.receive(bytes(received))

    async def greeting(self) -> Greeted:
        event = await self.event()
        assert isinstance(event, Greeted)
        return event

    async def answered(self) -> Answered:
        event = await self.event()
        assert isinstance(event, Answered), event
        return event

    async def refused(self) -> Refused:
        event = await self.event()
        assert isinstance(event, Refused), event
        return event

    async def structured(self) -> None:
        await self.greeting()
        self.negotiation.ask_structured_replies()
        await self.answered()

    async def go(
        self,
        name: str = "",
        *,
        structured: bool = True,
        extended: bool = False,
        contexts: Sequence[str] = (),
        wanted: Sequence[int] = BLOCK_SIZE,
    ) -> Answered:
        """All of a negotiation."""
        await self.greeting()
        if extended:
            self.negotiation.ask_extended_headers()
            await self.answered()
        elif structured:
            self.negotiation.ask_structured_replies()
            await self.answered()
        if contexts:
            self.negotiation.ask_contexts(name, contexts, select=True)
            await self.answered()
        self.negotiation.go(name, wanted)
        return await self.answered()

    # --- Transmission

    @property
    def framing(self) -> Framing:
        """How requests are framed."""
        return EXTENDED if self.negotiation.extended else SIMPLE

    def unread(self, data: bytes) -> None:
        """Have bytes received again."""
        self._received[:0] = data

    async def send(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        data: bytes = b"",
        cookie: int | None = None,
        marked: bool = True,
    ) -> int:
        """Send a request; give its cookie. With extended headers data is `marked` by PAYLOAD_LEN; qemu's
        client leaves it out (Q-C1).
        """
        if cookie is None:
            self._cookie = cookie = self._cookie + 1
        length = len(data) if data else length
        if command == Cmd.READ:
            self._lengths[cookie] = length
        self._offsets[cookie] = offset
        if data and marked and self.negotiation.extended:
            flags |= CmdFlag.PAYLOAD_LEN
        head = self.framing.encode_request(command, flags, cookie, offset, length)
        await self.stream.send_all(head + data)
        return cookie

    async def receive(self, count: int) -> bytes:
        while len(self._received) < count:
            data = await self.stream.receive_some()
            if not data:
                raise EOFError(f"{count} bytes wanted, {len(self._received)} came")
            self._received += data
        data = bytes(self._received[:count])
        del self._received[:count]
        return data

    async def simple_reply(self) -> tuple[int, int, bytes]:
        """Cookie, error, data."""
        magic, error, cookie = transmission.SIMPLE_REPLY.unpack(await self.receive(16))
        assert magic == SIMPLE_REPLY_MAGIC
        length = 0 if error else self._lengths.pop(cookie, 0)
        return cookie, error, await self.receive(length)

    async def simple_reply_to(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0
    ) -> tuple[int, int, bytes]:
        """Send a request; give cookie, error and data of its simple reply."""
        await self.send(command, offset, length, flags=flags)
        return await self.simple_reply()

    async def chunk(self) -> tuple[int, OneChunk]:
        if self.negotiation.extended:
            head = await self.receive(32)
            magic, word, cookie, self.echo, length = transmission.EXTENDED_CHUNK.unpack(head)
            assert magic == EXTENDED_REPLY_MAGIC
            payload = await self.receive(length)
            return cookie, OneChunk(word & 0xFFFF, payload, bool(word >> 16 & ReplyFlag.DONE))
        magic, word, cookie, length = transmission.CHUNK.unpack(await self.receive(20))
        assert magic == STRUCTURED_REPLY_MAGIC
        payload = await self.receive(length)
        return cookie, OneChunk(word & 0xFFFF, payload, bool(word >> 16 & ReplyFlag.DONE))

    async def reply(self, cookie: int) -> list[OneChunk]:
        """All chunks of the next reply, which has to be this cookie's and, if extended, its offset's."""
        chunks: list[OneChunk] = []
        while not chunks or not chunks[-1].done:
            found, chunk = await self.chunk()
            assert found == cookie
            if self.negotiation.extended and cookie in self._offsets:
                assert self.echo == self._offsets[cookie]
            chunks.append(chunk)
        return chunks

    async def ask(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> list[OneChunk]:
        """Send a request; give the chunks of its reply."""
        return await self.reply(await self.send(command, offset, length, flags=flags, data=data))

    async def status(
        self, offset: int, length: int, ids: Sequence[int] | None = None, *, flags: int = 0
    ) -> dict[int, list[tuple[int, int]]]:
        """The extents of each context; with `ids`, which asks by a payload, of those alone."""
        data = b"" if ids is None else transmission.encode_status_payload(length, ids)
        chunks = await self.ask(Cmd.BLOCK_STATUS, offset, length, flags=flags, data=data)
        if chunks[-1].kind == Chunk.NONE:
            chunks.pop()
        told = dict(chunk.status for chunk in chunks)
        assert len(told) == len(chunks)
        return told

    async def error(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> int:
        """Send a request; give the error of its reply, 0 if there is none. A reply without data may be
        simple."""
        cookie = await self.send(command, offset, length, flags=flags, data=data)
        magic = await self.receive(4)
        self._received[:0] = magic
        if int.from_bytes(magic) == SIMPLE_REPLY_MAGIC:
            found, error, _data = await self.simple_reply()
            assert found == cookie
            return error
        *_, last = await self.reply(cookie)
        return last.error if last.kind & 0x8000 else 0

    async def read(self, offset: int, length: int) -> bytes:
        """The data of a READ, put together of its chunks."""
        data = bytearray(b"?" * length)
        for chunk in await self.ask(Cmd.READ, offset, length):
            if chunk.kind == Chunk.NONE:
                continue
            at = chunk.offset - offset
            if chunk.kind == Chunk.OFFSET_HOLE:
                hole = int.from_bytes(chunk.payload[8:])
                data[at : at + hole] = bytes(hole)
            else:
                data[at : at + len(chunk.data)] = chunk.data
        assert len(data) == length
        return bytes(data)

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        data = bytes(self._received)
        while piece := await self.stream.receive_some():
            data += piece
        return data


def socket_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    one, other = (
        trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair()
    )
    return one, other


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Client]:
    """A client; its server has to end by itself once it has gone."""
    ours, theirs = socket_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, theirs)
        async with ours:
            yield Client(ours)


class Bytes(str):
    """A name that is sent as other bytes than its own."""

    def __new__(cls, sent: bytes) -> Bytes:
        made = super().__new__(cls, sent.decode(errors="replace"))
        made.sent = sent
        return made

    sent: bytes

    def encode(self, *_how: object, **_else: object) -> bytes:
        return self.sent


@asynccontextmanager
async def serving_once(server: Server) -> AsyncIterator[int]:
    """Serve one connection, ever, as qemu-nbd without -t does; give the port."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve() -> None:
        stream = await listener.accept()
        await listener.aclose()
        await server.serve(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def listening(server: Server, workdir: Path) -> AsyncIterator[str]:
    """The URI of a server on a Unix socket."""
    path = workdir / "sock"
    with trio.socket.socket(socket.AF_UNIX) as sock:
        await sock.bind(str(path))
        sock.listen(100)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, server.serve, [trio.SocketListener(sock)])
            yield f"nbd+unix:///?socket={path}"
            nursery.cancel_scope.cancel()
    path.unlink()

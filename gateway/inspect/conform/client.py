"""A client that believes nothing: one request at a time, and every reply is checked against its request. What
breaks the protocol is raised as `Broken`, in words for whoever looks after the server. A conformance test needs
that of its client; the data plane has none that does it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import trio

from gateway.net.options import Awaited, RelaySocket
from gateway.protocol.export import Export
from gateway.wire import limits, transmission
from gateway.wire.constants import (
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Cmd,
    Errno,
    name_of,
)
from gateway.wire.errors import WireError
from gateway.wire.handshake import MetaContext
from gateway.wire.limits import KIB, MIB

RECEIVE_BYTES = 256 * KIB
"""What one receive takes."""

SEND_BYTES = 1 * MIB
"""The most that one send is given. A longer payload is sent in such pieces, and is never whole in memory."""

MAX_READ_BYTES = 1 * MIB
"""The longest READ that we send, and so the most data in a reply."""

MAX_CHUNKS = 64 * KIB
"""Chunks of one reply. If a reply to the longest READ has more, they have less than 16 bytes on average. qemu's
and nbdkit's have 4 KiB and more; a server that sends more chunks is not worth the memory."""

MAX_STATUS_BYTES = 4 + 8 * MAX_CHUNKS
"""Longest BLOCK_STATUS chunk that is taken, for the same reason. (The specification allows 8 MiB, for
requests that are longer than any of ours.)"""

CLOSE_SECONDS = 5
"""How long a server may take to close after DISC: it may have to write its cache through."""

COOKIES_FROM = 0xC00C1E << 40
"""Where our cookies begin: with bits in both halves, because some servers echo only one half."""


class Broken(Exception):
    """The server did not do what it has to do. The connection is of no use afterwards."""

    def __init__(self, expected: str, came: str) -> None:
        super().__init__(f"expected {expected}; came {came}")
        self.expected = expected
        self.came = came


class HungUp(Broken):
    """The server closed the connection when it had to answer."""


class NoReply(Broken):
    """The server gave no answer in time."""


@dataclass(slots=True)
class Reply:
    """One reply, all of it."""

    error: int = 0
    """0: success."""
    text: str = ""
    """The server's text to its error."""
    data: bytearray = field(default_factory=bytearray)
    """What a READ gave, holes as zeros."""
    contents: list[tuple[int, int, int]] = field(default_factory=list)
    """Chunk type, offset and length in bytes of each content chunk; none in a simple reply."""
    extents: list[tuple[int, int]] = field(default_factory=list)
    """What BLOCK_STATUS gave: length in bytes, status flags."""

    def __str__(self) -> str:
        if not self.error:
            return "success"
        said = f' ("{self.text}")' if self.text else ""
        return name_of(Errno, self.error) + said


@dataclass(frozen=True, slots=True)
class _Request:
    command: int
    cookie: int
    offset: int
    length: int

    def __str__(self) -> str:
        return f"{name_of(Cmd, self.command)} of {self.length} bytes at {self.offset}"


class OpenExport(Protocol):
    """A connection on which somebody has opened an export."""

    @property
    def socket(self) -> RelaySocket:
        """Give its socket."""

    @property
    def export(self) -> Export:
        """Give what was told of the export."""


class RawClient:
    """A connection in its transmission phase, with simple or structured replies.

    `reply_seconds`: how long any one request may take, from its first byte to its reply's last.
    """

    def __init__(self, link: OpenExport, *, reply_seconds: float) -> None:
        self.export = link.export
        self._stream = Awaited(link.socket)
        self._reply_seconds = reply_seconds
        self._received = bytearray()
        self._cookie = COOKIES_FROM

    async def ask(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        data: bytes = b"",
        times: int = 1,
    ) -> Reply:
        """Send one request, legal or not, and give its reply. `offset` and `length` are in bytes. If there is
        `data`, the payload is that, so many `times`, and the request has its length.

        Raises `Broken` if what comes is no reply, or not one to this request ("Simple reply message",
        "Structured reply chunk message", "Structured reply types").
        """
        self._cookie += 1
        request = _Request(command, self._cookie, offset, len(data) * times or length)
        try:
            with trio.fail_after(self._reply_seconds):
                await self._send(request, flags, data, times)
                return await self._reply(request)
        except trio.TooSlowError:
            raise NoReply(f"a reply to {request}", f"none in {self._reply_seconds:g} s") from None
        except WireError as error:
            raise Broken(f"a reply to {request} as it is specified", str(error)) from None

    async def _send(self, request: _Request, flags: int, data: bytes, times: int) -> None:
        framing = self.export.framing
        head = framing.encode_request(
            request.command, flags, request.cookie, request.offset, request.length
        )
        try:
            await self._stream.send_all(head)
            for _ in range(times):
                for at in range(0, len(data), SEND_BYTES):
                    await self._stream.send_all(data[at : at + SEND_BYTES])
        except trio.BrokenResourceError:
            raise HungUp(
                f"{request} to be taken", "the connection was closed while it was sent"
            ) from None

    async def _take(self, request: _Request, count: int) -> bytes:
        while len(self._received) < count:
            try:
                more = await self._stream.receive_some(RECEIVE_BYTES)
            except trio.BrokenResourceError:
                more = b""
            if not more:
                raise HungUp(f"a reply to {request}", "the connection was closed")
            self._received += more
        data = bytes(self._received[:count])
        del self._received[:count]
        return data

    async def _reply(self, request: _Request) -> Reply:
        reply = Reply()
        chunks = _Chunks(self.export.contexts, request, reply)
        while True:
            head = await self._take(request, transmission.SIMPLE_REPLY.size)
            magic, word, cookie = transmission.SIMPLE_REPLY.unpack(head)
            chunked = self.export.structured and magic == STRUCTURED_REPLY_MAGIC
            if not chunked and (magic != SIMPLE_REPLY_MAGIC or chunks.count):
                known = "a chunk's" if chunks.count else "a reply's"
                raise Broken(f"{known} magic, of one to {request}", f"{magic:#010x}")
            if cookie != request.cookie:
                raise Broken(f"the cookie of {request}, {request.cookie:#x}", f"{cookie:#x}")
            if not chunked:
                await self._simple(request, reply, word)
                return reply
            # The rest of a chunk's header: its length.
            rest = await self._take(request, transmission.CHUNK.size - len(head))
            _, _, _, length = transmission.CHUNK.unpack(head + rest)
            chunks.announce(word & 0xFFFF, length)
            chunks.take(word & 0xFFFF, await self._take(request, length))
            if word & transmission.DONE_BIT:
                chunks.end()
                return reply
            if word & 0xFFFF == Chunk.NONE:
                raise Broken("DONE with a chunk NONE", "a NONE without")
            if chunks.count >= MAX_CHUNKS:
                raise Broken(f"at most {MAX_CHUNKS} chunks for {request}", "more")

    async def _simple(self, request: _Request, reply: Reply, error: int) -> None:
        if error:
            reply.error = _known(error, request)
        # "MUST NOT use a simple reply for NBD_CMD_READ (even for the case of an early EINVAL due to bad flags)"
        if self.export.structured and (
            request.command == Cmd.READ or (request.command == Cmd.BLOCK_STATUS and not error)
        ):
            raise Broken(f"a structured reply to {request}", f"a simple one: {reply}")
        if request.command == Cmd.READ and not error:
            reply.data = bytearray(await self._take(request, request.length))

    async def close(self) -> None:
        """Leave with DISC, and wait until the server has closed: then other connections see what it kept for
        this one. Raises nothing.
        """
        with trio.move_on_after(CLOSE_SECONDS), suppress(trio.BrokenResourceError):
            await self._stream.send_all(
                self.export.framing.encode_request(Cmd.DISC, 0, self._cookie + 1, 0, 0)
            )
            while await self._stream.receive_some(RECEIVE_BYTES):
                pass
        self.abandon()

    def abandon(self) -> None:
        """Close without a word."""
        self._stream.close()

    # --- What checks do all the time

    async def read(self, offset: int, length: int, *, flags: int = 0) -> bytearray:
        """READ at most `MAX_READ_BYTES`, which has to succeed. Raises `Broken`."""
        return (await self._succeed(Cmd.READ, offset, length, flags=flags)).data

    async def write(self, offset: int, data: bytes, *, flags: int = 0) -> None:
        """WRITE, which has to succeed. Raises `Broken`."""
        await self._succeed(Cmd.WRITE, offset, flags=flags, data=data)

    async def do(self, command: Cmd, offset: int = 0, length: int = 0, *, flags: int = 0) -> Reply:
        """Send a command without a payload, which has to succeed. Raises `Broken`."""
        return await self._succeed(command, offset, length, flags=flags)

    async def _succeed(
        self, command: Cmd, offset: int, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> Reply:
        reply = await self.ask(command, offset, length, flags=flags, data=data)
        if reply.error:
            with_flags = f" with flags {flags:#x}" if flags else ""
            request = _Request(command, 0, offset, len(data) or length)
            raise Broken(f"{request}{with_flags} to succeed", str(reply))
        return reply


class _Chunks:
    """The chunks of one structured reply, judged as they come."""

    def __init__(self, contexts: Iterable[MetaContext], request: _Request, reply: Reply) -> None:
        self.count = 0
        self._ids = {context.id for context in contexts}
        self._request = request
        self._reply = reply
        self._told: set[int] = set()
        if request.command == Cmd.READ:
            reply.data = bytearray(request.length)

    def announce(self, kind: int, length: int) -> None:
        """Judge a chunk's header before its payload is read."""
        if transmission.is_error(kind):
            most = limits.MAX_ERROR_CHUNK_BYTES
        elif kind == Chunk.OFFSET_DATA and self._request.command == Cmd.READ:
            most = transmission.OFFSET.size + self._request.length
        elif kind == Chunk.OFFSET_HOLE and self._request.command == Cmd.READ:
            most = transmission.HOLE.size
        elif kind == Chunk.BLOCK_STATUS and self._request.command == Cmd.BLOCK_STATUS:
            most = MAX_STATUS_BYTES
        elif kind == Chunk.NONE:
            most = 0
        else:
            raise Broken(
                f"a reply without content to {self._request}"
                if self._request.command != Cmd.READ
                else f"content in the reply to {self._request}",
                f"a chunk {name_of(Chunk, kind)} of {length} bytes",
            )
        if length > most:
            raise Broken(
                f"at most {most} bytes in a chunk {name_of(Chunk, kind)} for {self._request}",
                f"{length}",
            )

    def take(self, kind: int, payload: bytes) -> None:
        """Take a chunk that was announced. Raises `Broken` or `WireError`."""
        self.count += 1
        if transmission.is_error(kind):
            chunk = transmission.decode_error_chunk(kind, payload)
            self._reply.error = self._reply.error or _known(chunk.error, self._request)
            self._reply.text = self._reply.text or chunk.text
        elif kind == Chunk.OFFSET_DATA:
            if len(payload) <= transmission.OFFSET.size:
                raise WireError(f"OFFSET_DATA of {len(payload)} bytes; 9 are the least")
            (offset,) = transmission.OFFSET.unpack_from(payload)
            data = payload[transmission.OFFSET.size :]
            at = self._content(kind, offset, len(data))
            self._reply.data[at : at + len(data)] = data
        elif kind == Chunk.OFFSET_HOLE:
            if len(payload) != transmission.HOLE.size:
                raise WireError(f"OFFSET_HOLE of {len(payload)} bytes; it has 12")
            self._content(kind, *transmission.HOLE.unpack(payload))
        elif kind == Chunk.BLOCK_STATUS:
            context, extents = transmission.decode_extents(payload)
            if context not in self._ids or context in self._told:
                raise Broken(
                    "one chunk for each context that was selected", f"one for context id {context}"
                )
            self._told.add(context)
            self._reply.extents = list(extents)

    def _content(self, kind: int, offset: int, length: int) -> int:
        """Judge where a content chunk lies; give its place in the reply's data."""
        asked = self._request
        if not length or offset < asked.offset or offset + length > asked.offset + asked.length:
            # "MUST lie within the bounds of the original offset and length of the client's request"
            raise Broken(
                f"content within {asked}", f"{name_of(Chunk, kind)} of {length} bytes at {offset}"
            )
        self._reply.contents.append((kind, offset, length))
        return offset - asked.offset

    def end(self) -> None:
        """Judge the reply as a whole: its last chunk has come."""
        asked, reply = self._request, self._reply
        if reply.error:
            return
        if asked.command == Cmd.READ:
            # "MUST NOT overlap"; "MUST send enough data chunks to cover the entire region"
            at = asked.offset
            for _, offset, length in sorted(reply.contents, key=lambda content: content[1]):
                if offset != at:
                    raise Broken(
                        f"all of {asked}, each byte once",
                        f"content that {'overlaps' if offset < at else 'leaves a gap'} at {min(at, offset)}",
                    )
                at += length
            if at != asked.offset + asked.length:
                raise Broken(f"all of {asked}", f"nothing from {at} on")
        elif asked.command == Cmd.BLOCK_STATUS and self._told != self._ids:
            raise Broken("one chunk for each context that was selected", f"{len(self._told)}")


def _known(error: int, request: _Request) -> int:
    """Judge an error value: "the allowed values for the error field have been restricted"."""
    try:
        return Errno(error)
    except ValueError:
        raise Broken(f'for {request} one of the "Error values", or success', f"{error}") from None

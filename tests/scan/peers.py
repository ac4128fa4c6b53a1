"""Both ends of a session as plain code: feeding a scanner in pieces, and reading what comes out.

The readers unpack with their own layouts, so that a mistake in `gateway.wire` does not hide itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

from gateway.protocol.export import Export, Offer, offer, view_of
from gateway.quirks import Dialect
from gateway.scan.plan import plan
from gateway.scan.traffic import Traffic
from gateway.wire.constants import Cmd, TransmissionFlag
from gateway.wire.handshake import BlockSizes, MetaContext

SIZE = 256 * 2**20
ALL_FLAGS = int(
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_FUA
    | TransmissionFlag.SEND_TRIM
    | TransmissionFlag.SEND_WRITE_ZEROES
    | TransmissionFlag.SEND_DF
    | TransmissionFlag.SEND_CACHE
    | TransmissionFlag.SEND_FAST_ZERO
)
UPSTREAM_CONTEXTS = (MetaContext(70, "base:allocation"), MetaContext(71, "x:more"))
CLIENT_CONTEXTS = (MetaContext(5, "base:allocation"), MetaContext(6, "x:more"))


def traffic(
    *,
    client_structured: bool,
    link_structured: bool,
    client_extended: bool = False,
    link_extended: bool = False,
    flags: int = ALL_FLAGS,
    size: int = SIZE,
    block_sizes: BlockSizes | None = None,
    selected: tuple[MetaContext, ...] = CLIENT_CONTEXTS,
    answer_cache: bool = False,
    any_alignment: bool = True,
) -> Traffic:
    """A session without commands."""
    export = Export(
        size,
        flags,
        block_sizes,
        structured=link_structured,
        contexts=UPSTREAM_CONTEXTS if link_structured else (),
        extended=link_extended,
    )
    promised: Offer = offer(
        view_of(export, any_alignment=any_alignment),
        structured=client_structured,
        extended=client_extended,
        selected=selected if client_structured else (),
    )
    return Traffic(planned(promised, export, Dialect(answer_cache=answer_cache)))


planned = cache(plan)
"""Nothing changes a plan, and whoever cuts an answer at each of its bytes has the same one each time."""


class Scan(Protocol):
    """What a scanner has to have here."""

    def feed(
        self,
        buffer: bytearray,
        view: memoryview,
        start: int,
        end: int,
        out: list[memoryview | bytes],
    ) -> int: ...


def pieces_of(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Cut `data` at positions."""
    at = sorted({cut for cut in cuts if 0 < cut < len(data)})
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


@dataclass
class Feeder:
    """Feeds a scanner as a lane does: what it does not take is presented again."""

    scan: Scan
    sent: bytearray = field(default_factory=bytearray)
    held: bytes = b""

    def feed(self, data: bytes) -> None:
        margin = 3
        fresh = self.held + data
        buffer = bytearray(b"\xee" * margin + fresh)
        out: list[memoryview | bytes] = []
        view = memoryview(buffer)
        try:
            pos = self.scan.feed(buffer, view, margin, len(buffer), out)
        finally:
            for piece in out:
                self.sent += piece
        assert margin <= pos <= len(buffer)
        self.held = fresh[pos - margin :]
        assert bytes(buffer[pos:]) == self.held, "what is presented again was touched"
        assert buffer[:margin] == b"\xee" * margin

    def feed_all(self, pieces: Iterable[bytes]) -> Feeder:
        for piece in pieces:
            self.feed(piece)
        return self


# --- The upstream's end

Bytes = bytes


@dataclass(frozen=True)
class Request:
    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    data: bytes = b""

    @property
    def bytes(self) -> bytes:
        head = struct.pack(
            ">IHHQQI",
            0x25609513,
            self.flags,
            self.command,
            self.cookie,
            self.offset,
            self.length,
        )
        return head + self.data

    @property
    def extended_bytes(self) -> Bytes:
        """With extended headers, and PAYLOAD_LEN where there is a payload."""
        flags = self.flags | (32 if self.data else 0)
        where = self.cookie, self.offset, self.length
        return struct.pack(">IHHQQQ", 0x21E41C71, flags, self.command, *where) + self.data


def read_requests(sent: bytes, *, extended: bool = False) -> list[Request]:
    """What the upstream reads; every request must be whole."""
    layout, expected = (">IHHQQQ", 0x21E41C71) if extended else (">IHHQQI", 0x25609513)
    found, at = [], 0
    while at < len(sent):
        magic, flags, command, cookie, offset, length = struct.unpack_from(layout, sent, at)
        assert magic == expected
        at += struct.calcsize(layout)
        if extended:
            assert bool(flags & 32) == (command == Cmd.WRITE)
            flags &= ~32
        data = b""
        if command == Cmd.WRITE:
            data = sent[at : at + length]
            assert len(data) == length
            at += length
        found.append(Request(command, flags, cookie, offset, length, data))
    return found


# --- The client's end


@dataclass
class Reply:
    """What a whole reply means to the client."""

    cookie: int
    error: int = 0
    data: bytes = b""
    status: dict[int, list[tuple[int, int]]] = field(default_factory=dict)


@dataclass
class _Open:
    data: bytearray
    covered: bytearray
    error: int = 0
    status: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    content_chunks: int = 0


class Client:
    """Reads replies, and fails over whatever a client may not be sent."""

    def __init__(
        self, asked: Sequence[Request], *, structured: bool, extended: bool = False
    ) -> None:
        self.extended = extended
        self.under_way = {request.cookie: request for request in asked}
        assert len(self.under_way) == len(asked)
        self.structured = structured
        self.replies: list[Reply] = []
        self.open: dict[int, _Open] = {}
        self.cut_off = b""

    def read(self, sent: bytes) -> list[Reply]:
        """Take everything that was sent; what is not whole is in `cut_off` then."""
        at = 0
        while at < len(sent):
            length = self._one(sent[at:])
            if not length:
                break
            at += length
        self.cut_off = sent[at:]
        return self.replies

    def _one(self, sent: bytes) -> int:
        if len(sent) < 16:
            return 0
        (magic,) = struct.unpack_from(">I", sent)
        if self.extended:
            assert magic == 0x6E8A278C, hex(magic)
            return self._chunk(sent)
        if magic == 0x67446698:
            return self._simple(sent)
        assert magic == 0x668E33EF, hex(magic)
        assert self.structured
        return self._chunk(sent)

    def _simple(self, sent: bytes) -> int:
        error, cookie = struct.unpack_from(">IQ", sent, 4)
        request = self.under_way[cookie]
        data = b""
        if request.command == Cmd.READ:
            assert not self.structured, "READ must be answered with chunks"
            if not error:
                data = sent[16 : 16 + request.length]
                if len(data) < request.length:
                    return 0
        assert cookie not in self.open, "a simple reply to what chunks were sent for"
        assert request.command != Cmd.BLOCK_STATUS
        del self.under_way[cookie]
        self.replies.append(Reply(cookie, error, data))
        return 16 + len(data)

    def _chunk(self, sent: bytes) -> int:
        size: int
        head = 32 if self.extended else 20
        if len(sent) < head:
            return 0
        if self.extended:
            flags, kind, cookie, echo, size = struct.unpack_from(">HHQQQ", sent, 4)
            assert echo == self.under_way[cookie].offset
        else:
            flags, kind, cookie, size = struct.unpack_from(">HHQI", sent, 4)
        assert flags in (0, 1)
        payload = sent[head : head + size]
        if len(payload) < size:
            return 0
        request = self.under_way[cookie]
        wanted = request.length if request.command == Cmd.READ else 0
        reply = self.open.setdefault(cookie, _Open(bytearray(wanted), bytearray(wanted)))
        if kind == 0:
            assert flags == 1
            assert not payload
        elif kind in (1, 2):
            assert request.command == Cmd.READ
            assert size > 8
            (offset,) = struct.unpack_from(">Q", payload)
            if kind == 1:
                content = payload[8:]
            else:
                assert size == 12
                content = bytes(*struct.unpack_from(">I", payload, 8))
                assert content
            start = offset - request.offset
            assert 0 <= start <= wanted - len(content)
            assert not any(reply.covered[start : start + len(content)])
            reply.data[start : start + len(content)] = content
            reply.covered[start : start + len(content)] = b"\1" * len(content)
            reply.content_chunks += 1
        elif kind == (6 if self.extended else 5):
            assert request.command == Cmd.BLOCK_STATUS
            if self.extended:
                context, count, *numbers = struct.unpack(f">II{(size - 8) // 8}Q", payload)
                assert count == len(numbers) // 2
            else:
                context, *numbers = struct.unpack(f">{size // 4}I", payload)
            extents = list(zip(numbers[::2], numbers[1::2], strict=True))
            assert extents
            assert all(length for length, _ in extents)
            assert context not in reply.status
            assert sum(length for length, _ in extents[:-1]) < request.length
            reply.status[context] = extents
        elif kind in (0x8001, 0x8002):
            error, length = struct.unpack_from(">IH", payload)
            assert error in (1, 5, 12, 22, 28, 75, 95, 108)
            assert length <= 900
            assert len(payload) == 6 + length + (8 if kind == 0x8002 else 0)
            payload[6 : 6 + length].decode()
            reply.error = reply.error or error
        else:
            raise AssertionError(f"chunk type {kind:#x}")
        if flags:
            self._end(request, reply)
        return head + size

    def _end(self, request: Request, reply: _Open) -> None:
        del self.open[request.cookie]
        del self.under_way[request.cookie]
        if not reply.error:
            assert all(reply.covered), "success over a gap"
            if request.command == Cmd.BLOCK_STATUS:
                assert reply.status
        data = b"" if reply.error else bytes(reply.data)
        self.replies.append(Reply(request.cookie, reply.error, data, reply.status))


# --- What an upstream sends


def simple(cookie: int, error: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, cookie) + data


def chunk(kind: int, cookie: int, payload: bytes = b"", *, done: bool = False) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, done, kind, cookie, len(payload)) + payload


def data_chunk(cookie: int, offset: int, data: bytes, *, done: bool = False) -> bytes:
    return chunk(1, cookie, struct.pack(">Q", offset) + data, done=done)


def hole_chunk(cookie: int, offset: int, length: int, *, done: bool = False) -> bytes:
    return chunk(2, cookie, struct.pack(">QI", offset, length), done=done)


def status_chunk(
    cookie: int, context: int, extents: Sequence[tuple[int, int]], *, done: bool = False
) -> bytes:
    payload = struct.pack(">I", context) + b"".join(struct.pack(">II", *e) for e in extents)
    return chunk(5, cookie, payload, done=done)


def error_chunk(
    cookie: int, error: int, text: str = "", offset: int | None = None, *, done: bool = False
) -> bytes:
    payload = struct.pack(">IH", error, len(text.encode())) + text.encode()
    if offset is None:
        return chunk(0x8001, cookie, payload, done=done)
    return chunk(0x8002, cookie, payload + struct.pack(">Q", offset), done=done)


def extended(chunks: bytes, asked: dict[int, int]) -> bytes:
    """What the same upstream sends with extended headers; `asked`: the offset of the request that has a
    cookie."""
    sent, at = b"", 0
    while at < len(chunks):
        if chunks[at : at + 4] == b"\x67\x44\x66\x98":
            error, cookie = struct.unpack_from(">IQ", chunks, at + 4)
            at += 16
            flags, kind, payload = 1, 0, b""
            if error:
                kind, payload = 0x8001, struct.pack(">IH", error, 0)
        else:
            flags, kind, cookie, size = struct.unpack_from(">HHQI", chunks, at + 4)
            payload, at = chunks[at + 20 : at + 20 + size], at + 20 + size
        if kind == 5:
            context, *numbers = struct.unpack(f">{len(payload) // 4}I", payload)
            payload = struct.pack(f">II{len(numbers)}Q", context, len(numbers) // 2, *numbers)
            kind = 6
        head = (0x6E8A278C, flags, kind, cookie, asked.get(cookie, 0), len(payload))
        sent += struct.pack(">IHHQQQ", *head) + payload
    return sent


def none(cookie: int) -> bytes:
    return chunk(0, cookie, done=True)


def content(offset: int, length: int) -> bytes:
    """What stands on the export: never a zero."""
    return bytes((offset + i) % 251 + 1 for i in range(length))

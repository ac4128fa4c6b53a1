"""The three framings of the transmission phase, and how a reply is said in each.

A session has one towards its client and one towards its upstream. They differ in the size of headers and in
what a reply may be made of:

    SIMPLE      28-byte requests; a reply is one header, and the data of a READ. No text, offsets or holes.
    STRUCTURED  28-byte requests; a READ or BLOCK_STATUS is answered with chunks, what has no data in its
                reply may be answered either way (we do it simple, unless there is a text).
    EXTENDED    32-byte requests, 64-bit lengths; every reply is made of chunks with 32-byte headers, which
                repeat the offset of their request.

"Simple reply message", "Structured reply message" and "Extended request message" in proto.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from struct import Struct

from gateway.wire import limits, transmission
from gateway.wire.constants import (
    EXTENDED_REPLY_MAGIC,
    EXTENDED_REQUEST_MAGIC,
    REQUEST_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Cmd,
)
from gateway.wire.extents import NARROW, WIDE, Extents
from gateway.wire.transmission import DONE_BIT


class Goodbye(bytes):
    """A DISC: whatever was sent before is answered. It is known by its type, for what a client has for a disk
    may look the same.
    """

    __slots__ = ()


class Framing(ABC):
    """One framing. `cookie` is the client's, `asked` the offset of its request, both in every reply; offsets
    and lengths are in bytes.
    """

    name: str
    chunked: bool
    """Replies are made of chunks."""
    request: Struct
    request_magic: int
    max_length: int
    """The greatest length that a request can have."""

    def __str__(self) -> str:
        return self.name

    def encode_request(
        self, command: int, flags: int, cookie: int, offset: int, length: int
    ) -> bytes:
        """Give the header of a request."""
        return self.request.pack(self.request_magic, flags << 16 | command, cookie, offset, length)

    def disc(self, *, unanswered: object = None) -> bytes:
        """Give the request that says goodbye, to which there is no reply. Where something is `unanswered`, it
        is no `Goodbye`.
        """
        said = self.encode_request(Cmd.DISC, 0, 0, 0, 0)
        return said if unanswered else Goodbye(said)

    @abstractmethod
    def success(self, cookie: int, asked: int, *, read: bool) -> bytes:
        """Give the whole reply to a command that succeeded without data (`read`: a READ of nothing)."""

    @abstractmethod
    def failure(
        self,
        cookie: int,
        asked: int,
        error: int,
        text: str = "",
        *,
        offset: int | None = None,
        done: bool = True,
    ) -> bytes:
        """Give an error; `done`: its reply ends with it. Text and offset are told if the framing has room."""

    @abstractmethod
    def data_head(self, cookie: int, asked: int, offset: int, length: int, *, done: bool) -> bytes:
        """Give the header of `length` bytes of content at `offset`."""

    def end(self, cookie: int, asked: int) -> bytes:
        """Give the NONE chunk that ends a reply."""
        raise NotImplementedError

    def hole(self, cookie: int, asked: int, offset: int, length: int, *, done: bool) -> bytes:
        """Give `length` zeros at `offset`, told as a hole."""
        raise NotImplementedError

    def status(
        self,
        cookie: int,
        asked: int,
        context_id: int,
        extents: Sequence[tuple[int, int]],
        *,
        done: bool,
    ) -> bytes:
        """Give the extents (length in bytes, status flags) of one context."""
        raise NotImplementedError


class _Simple(Framing):
    name = "simple"
    chunked = False
    request = transmission.REQUEST
    request_magic = REQUEST_MAGIC
    max_length = 2**32 - 1

    def success(self, cookie: int, asked: int, *, read: bool) -> bytes:
        return transmission.encode_simple_reply(cookie)

    def failure(
        self,
        cookie: int,
        asked: int,
        error: int,
        text: str = "",
        *,
        offset: int | None = None,
        done: bool = True,
    ) -> bytes:
        return transmission.encode_simple_reply(cookie, error)

    def data_head(self, cookie: int, asked: int, offset: int, length: int, *, done: bool) -> bytes:
        return transmission.encode_simple_reply(cookie)


class _Chunked(Framing):
    chunked = True

    @abstractmethod
    def _head(self, cookie: int, asked: int, kind: int, length: int, *, done: bool) -> bytes: ...

    def failure(
        self,
        cookie: int,
        asked: int,
        error: int,
        text: str = "",
        *,
        offset: int | None = None,
        done: bool = True,
    ) -> bytes:
        kind, payload = transmission.encode_error_payload(error, text, offset)
        return self._head(cookie, asked, kind, len(payload), done=done) + payload

    def end(self, cookie: int, asked: int) -> bytes:
        return self._head(cookie, asked, Chunk.NONE, 0, done=True)

    def data_head(self, cookie: int, asked: int, offset: int, length: int, *, done: bool) -> bytes:
        head = self._head(cookie, asked, Chunk.OFFSET_DATA, length + 8, done=done)
        return head + transmission.OFFSET.pack(offset)

    def hole(self, cookie: int, asked: int, offset: int, length: int, *, done: bool) -> bytes:
        head = self._head(cookie, asked, Chunk.OFFSET_HOLE, 12, done=done)
        return head + transmission.HOLE.pack(offset, length)


class _Structured(_Chunked):
    name = "structured"
    request = transmission.REQUEST
    request_magic = REQUEST_MAGIC
    max_length = 2**32 - 1

    def _head(self, cookie: int, asked: int, kind: int, length: int, *, done: bool) -> bytes:
        word = (DONE_BIT if done else 0) | kind
        return transmission.CHUNK.pack(STRUCTURED_REPLY_MAGIC, word, cookie, length)

    def success(self, cookie: int, asked: int, *, read: bool) -> bytes:
        if read:
            return self.end(cookie, asked)
        return transmission.encode_simple_reply(cookie)

    def status(
        self,
        cookie: int,
        asked: int,
        context_id: int,
        extents: Sequence[tuple[int, int]],
        *,
        done: bool,
    ) -> bytes:
        body = Extents.of(extents).encoded(NARROW)
        head = self._head(cookie, asked, Chunk.BLOCK_STATUS, 4 + len(body), done=done)
        return b"".join((head, transmission.CONTEXT_ID.pack(context_id), body))


class _Extended(_Chunked):
    name = "extended"
    request = transmission.EXTENDED_REQUEST
    request_magic = EXTENDED_REQUEST_MAGIC
    max_length = limits.MAX_SIZE_BYTES

    def _head(self, cookie: int, asked: int, kind: int, length: int, *, done: bool) -> bytes:
        word = (DONE_BIT if done else 0) | kind
        return transmission.EXTENDED_CHUNK.pack(EXTENDED_REPLY_MAGIC, word, cookie, asked, length)

    def success(self, cookie: int, asked: int, *, read: bool) -> bytes:
        return self.end(cookie, asked)

    def status(
        self,
        cookie: int,
        asked: int,
        context_id: int,
        extents: Sequence[tuple[int, int]],
        *,
        done: bool,
    ) -> bytes:
        body = Extents.of(extents).encoded(WIDE)
        head = self._head(cookie, asked, Chunk.BLOCK_STATUS_EXT, 8 + len(body), done=done)
        count = len(extents)
        return b"".join((head, transmission.EXTENDED_STATUS_HEAD.pack(context_id, count), body))


class _Shifted(Framing):
    def __init__(self, framing: Framing, base: int) -> None:
        self._framing = framing
        self._base = base
        self.name, self.chunked = framing.name, framing.chunked
        self.request, self.request_magic = framing.request, framing.request_magic
        self.max_length = framing.max_length

    def _asked(self, asked: int) -> int:
        # A FLUSH has offset 0 on both sides.
        return asked - self._base if asked else 0

    def success(self, cookie: int, asked: int, *, read: bool) -> bytes:
        return self._framing.success(cookie, self._asked(asked), read=read)

    def failure(
        self,
        cookie: int,
        asked: int,
        error: int,
        text: str = "",
        *,
        offset: int | None = None,
        done: bool = True,
    ) -> bytes:
        where = None if offset is None else offset - self._base
        said = self._framing.failure
        return said(cookie, self._asked(asked), error, text, offset=where, done=done)

    def data_head(self, cookie: int, asked: int, offset: int, length: int, *, done: bool) -> bytes:
        base = self._base
        return self._framing.data_head(cookie, self._asked(asked), offset - base, length, done=done)

    def end(self, cookie: int, asked: int) -> bytes:
        return self._framing.end(cookie, self._asked(asked))

    def hole(self, cookie: int, asked: int, offset: int, length: int, *, done: bool) -> bytes:
        base = self._base
        return self._framing.hole(cookie, self._asked(asked), offset - base, length, done=done)

    def status(
        self,
        cookie: int,
        asked: int,
        context_id: int,
        extents: Sequence[tuple[int, int]],
        *,
        done: bool,
    ) -> bytes:
        return self._framing.status(cookie, self._asked(asked), context_id, extents, done=done)


def shifted(framing: Framing, base: int) -> Framing:
    """Give a framing that takes the upstream's offsets, for a client whose export begins at `base` of them."""
    return _Shifted(framing, base) if base else framing


SIMPLE: Framing = _Simple()
STRUCTURED: Framing = _Structured()
EXTENDED: Framing = _Extended()


def framing_of(*, structured: bool, extended: bool) -> Framing:
    """Give the framing that was negotiated; extended headers imply structured replies."""
    if extended:
        return EXTENDED
    return STRUCTURED if structured else SIMPLE

"""The messages of the transmission phase: requests, simple replies, structured reply chunks.

The data plane (`gateway.scan`) unpacks with these `Struct`s at an offset into its buffer; everybody else
uses the functions. The 16-bit flags and 16-bit type of a request, and of a chunk, stand side by side, so
they are read as one 32-bit *word* (`flags << 16 | type`) and looked up in one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct

from gateway.wire import limits
from gateway.wire.constants import (
    CHUNK_ERROR_BIT,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Cmd,
    ReplyFlag,
)
from gateway.wire.errors import WireError
from gateway.wire.extents import NARROW, WIDE, Extents

# C: 32 bits, request magic
# C: 16 bits, command flags
# C: 16 bits, type
# C: 64 bits, cookie
# C: 64 bits, offset
# C: 32 bits, length
# C: length bytes of data, if WRITE
REQUEST = Struct(">IIQQI")

# S: 32 bits, simple reply magic
# S: 32 bits, error (0: none)
# S: 64 bits, cookie
# S: length bytes of data, if READ and no error
SIMPLE_REPLY = Struct(">IIQ")

# S: 32 bits, structured reply magic
# S: 16 bits, flags
# S: 16 bits, type
# S: 64 bits, cookie
# S: 32 bits, length of the payload
# S: payload
CHUNK = Struct(">IIQI")

# OFFSET_DATA: 64 bits, offset; data
# A header and the offset behind it are read in one step.
CHUNK_AND_OFFSET = Struct(">IIQIQ")

# With extended headers (proto.md on its branch extension-ext-header) lengths have 64 bits, and every reply
# is a chunk that repeats the offset of its request:
# C: 32 bits, extended request magic; 16 bits, command flags; 16 bits, type; 64 bits, cookie; 64 bits, offset;
#    64 bits, length
EXTENDED_REQUEST = Struct(">IIQQQ")

# S: 32 bits, extended reply magic; 16 bits, flags; 16 bits, type; 64 bits, cookie; 64 bits, offset of the
#    request; 64 bits, length of the payload
EXTENDED_CHUNK = Struct(">IIQQQ")
EXTENDED_CHUNK_AND_OFFSET = Struct(">IIQQQQ")

# ERROR: 32 bits, error; 16 bits, length of the message; message
# ERROR_OFFSET: the same, and 64 bits, offset
ERROR_HEAD = Struct(">IH")
OFFSET = Struct(">Q")

# OFFSET_HOLE: 64 bits, offset; 32 bits, size of the hole
HOLE = Struct(">QI")

# BLOCK_STATUS: 32 bits, context id; (32 bits, length; 32 bits, status flags) x n
CONTEXT_ID = Struct(">I")
EXTENT = Struct(">II")

# BLOCK_STATUS_EXT: 32 bits, context id; 32 bits, n; (64 bits, length; 64 bits, status flags) x n
EXTENDED_STATUS_HEAD = Struct(">II")
EXTENDED_EXTENT = Struct(">QQ")

# The payload of a BLOCK_STATUS with PAYLOAD_LEN: 64 bits, effect length; (32 bits, context id) x n
STATUS_PAYLOAD_HEAD = Struct(">Q")

WORD = Struct(">I")  # flags and type, at WORD_AT in a request and in a chunk
WORD_AT = 4
COOKIE = Struct(">Q")  # at COOKIE_AT in a request, a simple reply and a chunk
COOKIE_AT = 8
OFFSET_AT = 16  # OFFSET in a request, and in an extended chunk

DONE_BIT = ReplyFlag.DONE << 16  # DONE in a chunk's word


def encode_request(
    command: int, flags: int, cookie: int, offset: int, length: int, data: bytes = b""
) -> bytes:
    """Give one request; `offset` and `length` in bytes."""
    return REQUEST.pack(REQUEST_MAGIC, flags << 16 | command, cookie, offset, length) + data


DISC = encode_request(Cmd.DISC, 0, 0, 0, 0)


def encode_simple_reply(cookie: int, error: int = 0) -> bytes:
    """Give the header of a simple reply."""
    return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)


def encode_chunk(cookie: int, kind: int, payload: bytes = b"", *, done: bool = True) -> bytes:
    """Give one structured reply chunk."""
    word = (DONE_BIT if done else 0) | kind
    return CHUNK.pack(STRUCTURED_REPLY_MAGIC, word, cookie, len(payload)) + payload


def encode_error_chunk(
    cookie: int, error: int, text: str = "", *, offset: int | None = None, done: bool = True
) -> bytes:
    """Give an ERROR chunk, or an ERROR_OFFSET chunk if there is an offset. The text is cut to what every client
    bears (Q-C3).
    """
    kind, payload = encode_error_payload(error, text, offset)
    return encode_chunk(cookie, kind, payload, done=done)


def encode_error_payload(error: int, text: str, offset: int | None) -> tuple[int, bytes]:
    """Give the type and the payload of an error chunk; see `encode_error_chunk`."""
    message = text.encode()[: limits.ERROR_TEXT_BYTES].decode(errors="ignore").encode()
    payload = ERROR_HEAD.pack(error, len(message)) + message
    if offset is None:
        return Chunk.ERROR, payload
    return Chunk.ERROR_OFFSET, payload + OFFSET.pack(offset)


@dataclass(frozen=True, slots=True)
class ErrorChunk:
    """What an ERROR or ERROR_OFFSET chunk says."""

    error: int
    text: str
    offset: int | None


def decode_error_chunk(kind: int, payload: bytes) -> ErrorChunk:
    """Take the payload of an error chunk; a type that we do not know is read as ERROR.

    An error of 0 and a message that is longer than its chunk are violations. If the type is unknown, bytes
    behind the message belong to that type, and are ignored.
    """
    if len(payload) < ERROR_HEAD.size:
        raise WireError(f"an error chunk of {len(payload)} bytes; its head takes {ERROR_HEAD.size}")
    error, length = ERROR_HEAD.unpack_from(payload)
    rest = len(payload) - ERROR_HEAD.size
    tail = OFFSET.size if kind == Chunk.ERROR_OFFSET else 0
    exact = kind in (Chunk.ERROR, Chunk.ERROR_OFFSET)
    if length + tail > rest or (exact and length + tail < rest):
        raise WireError(f"an error chunk's message claims {length} bytes where {rest - tail} stand")
    if error == 0:
        raise WireError("an error chunk with error 0")
    end = ERROR_HEAD.size + length
    text = payload[ERROR_HEAD.size : end].decode(errors="replace").replace("\0", "")
    return ErrorChunk(error, text, OFFSET.unpack_from(payload, end)[0] if tail else None)


MAX_DECODED_EXTENTS = 128 * limits.KIB
"""How many extents of one chunk we look at: as many as qemu tells. Fewer are always legal."""


def decode_extents(payload: bytes | memoryview) -> tuple[int, Extents]:
    """Take the payload of a BLOCK_STATUS chunk: the context's id, and extents, `MAX_DECODED_EXTENTS` at most.
    There is at least one. The caller judges what an empty extent means.
    """
    body = len(payload) - CONTEXT_ID.size
    if body < EXTENT.size or body % EXTENT.size:
        raise WireError(
            f"a block status chunk of {len(payload)} bytes; 4 and a multiple of 8 are allowed"
        )
    (context_id,) = CONTEXT_ID.unpack_from(payload)
    extents = memoryview(payload)[CONTEXT_ID.size :]
    return context_id, Extents.decoded(extents, NARROW, MAX_DECODED_EXTENTS)


def decode_extended_extents(payload: bytes | memoryview) -> tuple[int, Extents]:
    """Take the payload of a BLOCK_STATUS_EXT chunk, as `decode_extents` does of the other."""
    body = len(payload) - EXTENDED_STATUS_HEAD.size
    if body < EXTENDED_EXTENT.size or body % EXTENDED_EXTENT.size:
        raise WireError(
            f"an extended block status chunk of {len(payload)} bytes;"
            " 8 and a multiple of 16 are allowed"
        )
    context_id, count = EXTENDED_STATUS_HEAD.unpack_from(payload)
    if count != body // EXTENDED_EXTENT.size:
        raise WireError(
            f"an extended block status chunk says {count} extents and has"
            f" {body // EXTENDED_EXTENT.size}"
        )
    extents = memoryview(payload)[EXTENDED_STATUS_HEAD.size :]
    return context_id, Extents.decoded(extents, WIDE, MAX_DECODED_EXTENTS)


def decode_status_payload(payload: bytes) -> tuple[int, tuple[int, ...]]:
    """Take the payload of a BLOCK_STATUS with PAYLOAD_LEN: the effect length in bytes, and the ids of the
    contexts that are asked for.
    """
    body = len(payload) - STATUS_PAYLOAD_HEAD.size
    if body < 0 or body % CONTEXT_ID.size:
        raise WireError(
            f"a BLOCK_STATUS payload of {len(payload)} bytes; 8 and a multiple of 4 are allowed"
        )
    (length,) = STATUS_PAYLOAD_HEAD.unpack_from(payload)
    ids = CONTEXT_ID.iter_unpack(payload[STATUS_PAYLOAD_HEAD.size :])
    return length, tuple(context_id for (context_id,) in ids)


def encode_status_payload(length: int, ids: Sequence[int]) -> bytes:
    """Give the payload of a BLOCK_STATUS with PAYLOAD_LEN; `length` in bytes."""
    return STATUS_PAYLOAD_HEAD.pack(length) + b"".join(CONTEXT_ID.pack(i) for i in ids)


def is_error(kind: int) -> bool:
    """Say whether a chunk type is an error, known or not."""
    return bool(kind & CHUNK_ERROR_BIT)

"""A message in words: one line, of printable characters."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.trace.message import Direction, Kind, Message, Requested
from gateway.wire.constants import (
    BASE_ALLOCATION,
    Chunk,
    Cmd,
    CmdFlag,
    Errno,
    name_of,
)
from gateway.wire.errors import WireError
from gateway.wire.framing import EXTENDED
from gateway.wire.handshake import printable
from gateway.wire.limits import NAME_IN_TEXT_CHARS
from gateway.wire.transmission import (
    CHUNK,
    CONTEXT_ID,
    DONE_BIT,
    EXTENDED_CHUNK,
    EXTENDED_EXTENT,
    EXTENDED_STATUS_HEAD,
    EXTENT,
    HOLE,
    OFFSET,
    SIMPLE_REPLY,
    STATUS_PAYLOAD_HEAD,
    decode_error_chunk,
    is_error,
)

SHOWN_STRANGE_BYTES = 32
"""What is shown of bytes that are no message: enough to see what they are of."""

_ALLOCATION = {0: "data", 1: "hole", 2: "zero", 3: "hole, zero"}
"""What the status flags of base:allocation mean."""


def in_words(seen: Message) -> str:
    """Give what a message says. Never raises."""
    match seen.kind:
        case Kind.REQUEST:
            text = _request(seen)
        case Kind.SIMPLE:
            text = _simple(seen)
        case Kind.CHUNK:
            text = _chunk(seen)
        case Kind.STRANGE if seen.raw:
            framing = seen.direction.framing
            raw = seen.raw[:SHOWN_STRANGE_BYTES]
            text = f"no message, with {framing} framing: {_hex(raw)}"
        case Kind.STRANGE:
            text = f"{_bytes(seen.length)} of no message that was seen to begin"
        case _:
            text = _cut(seen)
    return printable(text)


def _request(seen: Message) -> str:
    request = seen.direction.framing.request
    _magic, word, cookie, offset, length = request.unpack_from(seen.raw)
    said = f"{_command(word, offset, length)} cookie {cookie}"
    if seen.whose:
        said += f" ({seen.whose})"
    data = seen.raw[request.size :]
    if word & 0xFFFF == Cmd.BLOCK_STATUS and len(data) >= STATUS_PAYLOAD_HEAD.size:
        (effect,) = STATUS_PAYLOAD_HEAD.unpack_from(data)
        whole = (len(data) - STATUS_PAYLOAD_HEAD.size) // CONTEXT_ID.size
        at = STATUS_PAYLOAD_HEAD.size
        ids = [CONTEXT_ID.unpack_from(data, at + 4 * n)[0] for n in range(whole)]
        contexts = ", ".join(_context(seen.direction, each) for each in ids)
        more = ", ..." if seen.length > len(seen.raw) else ""
        return f"{said}: {effect} bytes of {contexts or 'no context'}{more}"
    return said + _data(seen, request.size)


def _simple(seen: Message) -> str:
    _magic, error, cookie = SIMPLE_REPLY.unpack_from(seen.raw)
    said = name_of(Errno, error) if error else "OK"
    return f"{said} cookie {cookie}{_answers(seen.asked)}{_data(seen, SIMPLE_REPLY.size)}"


def _chunk(seen: Message) -> str:
    if seen.direction.framing is EXTENDED:
        header = EXTENDED_CHUNK.size
        _magic, word, cookie, _at, size = EXTENDED_CHUNK.unpack_from(seen.raw)
    else:
        header = CHUNK.size
        _magic, word, cookie, size = CHUNK.unpack_from(seen.raw)
    kind = word & 0xFFFF
    said, data = name_of(Chunk, kind), ""
    body = seen.raw[header:]
    if kind == Chunk.OFFSET_DATA and len(body) >= OFFSET.size:
        (offset,) = OFFSET.unpack_from(body)
        said += f" {offset}+{size - OFFSET.size}"
        data = _shown(seen.raw[header + OFFSET.size :])
    elif kind == Chunk.OFFSET_HOLE and len(body) == size == HOLE.size:
        offset, length = HOLE.unpack(body)
        said += f" {offset}+{length}"
    elif is_error(kind):
        said += f" {_error(kind, body)}"
    elif kind in (Chunk.BLOCK_STATUS, Chunk.BLOCK_STATUS_EXT):
        said += _status(seen.direction, kind, body, size)
    elif size:
        said += f" of {_bytes(size)}"
        data = _shown(body)
    flags = word >> 16 & ~(DONE_BIT >> 16)
    said += f" cookie {cookie}"
    said += f" flags {flags:#x}" if flags else ""
    said += " DONE" if word & DONE_BIT else ""
    return said + _answers(seen.asked) + data


def _error(kind: int, body: bytes) -> str:
    try:
        told = decode_error_chunk(kind, body)
    except WireError as error:
        return f"({error})"
    at = "" if told.offset is None else f" at {told.offset}"
    text = f": {named(told.text)}" if told.text else ""
    return f"{name_of(Errno, told.error)}{at}{text}"


def _status(direction: Direction, kind: int, body: bytes, size: int) -> str:
    if kind == Chunk.BLOCK_STATUS:
        head, extent = CONTEXT_ID.size, EXTENT
    else:
        head, extent = EXTENDED_STATUS_HEAD.size, EXTENDED_EXTENT
    if len(body) < head or (size - head) % extent.size:
        return f" of {_bytes(size)}, which is no whole number of extents"
    (context_id,) = CONTEXT_ID.unpack_from(body)
    name = direction.contexts.get(context_id)
    whole = (len(body) - head) // extent.size
    extents = [extent.unpack_from(body, head + extent.size * n) for n in range(whole)]
    count = (size - head) // extent.size
    said = "; ".join(f"{length} {_flags_of(name, flags)}" for length, flags in extents)
    more = f"; and {count - whole} more" if count > whole else ""
    return f" {_context(direction, context_id)}: {said or 'no extent'}{more}"


def _flags_of(context: str | None, flags: int) -> str:
    if context == BASE_ALLOCATION and flags in _ALLOCATION:
        return _ALLOCATION[flags]
    return f"{flags:#x}"


def _context(direction: Direction, context_id: int) -> str:
    name = direction.contexts.get(context_id)
    return f"context {context_id}" + ("" if name is None else f" {named(name)}")


def _cut(seen: Message) -> str:
    if not seen.raw:
        return f"{_bytes(seen.length)} of its data had not come when the trace ended"
    here = f"{_bytes(len(seen.raw))} of a message had come when the trace ended"
    return f"{here}: {_hex(seen.raw[:SHOWN_STRANGE_BYTES])}"


# --- What several have


def _command(word: int, offset: int, length: int) -> str:
    """Give a command with its flags; a range, if it has one."""
    command, flags = word & 0xFFFF, word >> 16
    said = name_of(Cmd, command)
    if offset or length or command not in (Cmd.FLUSH, Cmd.DISC):
        said += f" {offset}+{length}"
    known = [flag.name for flag in CmdFlag if flags & flag and flag.name]
    strange = flags & ~sum(CmdFlag)
    return " ".join([said, *known, *([f"flags {strange:#x}"] if strange else [])])


def _answers(asked: Requested | None) -> str:
    return " (asked before the trace)" if asked is None else f" ({_command(*asked)})"


def _data(seen: Message, header: int) -> str:
    behind = seen.length - header
    return f", {_bytes(behind)} of data{_shown(seen.raw[header:])}" if behind else ""


def _shown(data: bytes) -> str:
    return f": {_hex(data)}" if data else ""


def _hex(data: Sequence[int]) -> str:
    return bytes(data).hex(" ", 4)


def _bytes(count: int) -> str:
    return "1 byte" if count == 1 else f"{count} bytes"


def named(text: str) -> str:
    """Give a peer's string as a value of its own: made safe and short."""
    cut = NAME_IN_TEXT_CHARS
    return printable(text if len(text) <= cut else text[:cut] + "…")

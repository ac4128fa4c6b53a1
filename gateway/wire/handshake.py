"""The messages of negotiation: greetings, options, option replies ("Handshake phase", proto.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from struct import Struct

from gateway.wire import limits
from gateway.wire.constants import (
    IHAVEOPT,
    NBDMAGIC,
    OLDSTYLE_MAGIC,
    OPTION_REPLY_MAGIC,
    Info,
    Opt,
    Rep,
    name_of,
)
from gateway.wire.errors import NoString, WireError

U16 = Struct(">H")
U32 = Struct(">I")

# S: 64 bits, NBDMAGIC
# S: 64 bits, IHAVEOPT
# S: 16 bits, handshake flags
NEWSTYLE_GREETING = Struct(">QQH")

# S: 64 bits, NBDMAGIC
# S: 64 bits, oldstyle magic
# S: 64 bits, size of the export in bytes
# S: 32 bits, flags: handshake flags (high half, must be 0) and transmission flags
# S: 124 bytes, zeroes
OLDSTYLE_GREETING = Struct(">QQQHH124x")

GREETING_HEAD = Struct(">QQ")  # both styles begin with it; the second half tells them apart

# C: 32 bits, client flags
CLIENT_FLAGS = U32

# C: 64 bits, IHAVEOPT
# C: 32 bits, option
# C: 32 bits, length of the data
OPTION = Struct(">QII")

# S: 64 bits, option reply magic
# S: 32 bits, the option that this answers
# S: 32 bits, reply type
# S: 32 bits, length of the data
OPTION_REPLY = Struct(">QIII")

# S: 64 bits, size of the export in bytes
# S: 16 bits, transmission flags
# S: 124 bytes, zeroes, unless both sides said NO_ZEROES
EXPORT_NAME_REPLY = Struct(">QH")
EXPORT_NAME_PADDING = bytes(124)


def encode_greeting(handshake_flags: int) -> bytes:
    """Give the newstyle greeting of a server."""
    return NEWSTYLE_GREETING.pack(NBDMAGIC, IHAVEOPT, handshake_flags)


def encode_oldstyle_greeting(size: int, transmission_flags: int) -> bytes:
    """Give the oldstyle greeting, which opens the only export (`size` in bytes) at once."""
    return OLDSTYLE_GREETING.pack(NBDMAGIC, OLDSTYLE_MAGIC, size, 0, transmission_flags)


def encode_option(option: int, data: bytes = b"") -> bytes:
    """Give one option, as a client sends it."""
    return OPTION.pack(IHAVEOPT, option, len(data)) + data


def encode_option_reply(option: int, reply: int, data: bytes = b"") -> bytes:
    """Give one reply to an option, header and payload in one piece (Q-L2: nbd-client cannot do with
    less).
    """
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply, len(data)) + data


def encode_export_name_reply(size: int, transmission_flags: int, *, zeroes: bool) -> bytes:
    """Give the answer to EXPORT_NAME, which has no header; `zeroes` adds the 124 bytes of padding."""
    reply = EXPORT_NAME_REPLY.pack(size, transmission_flags)
    return reply + EXPORT_NAME_PADDING if zeroes else reply


TLS_WITHOUT_NBD = (
    "this is TLS without NBD: NBD begins in the clear, and goes over to TLS by STARTTLS (libnbd and qemu do so"
    " for nbds: and tls-creds)"
)
"""What we say of a client that begins with TLS, as an HTTPS client or a tunnel would."""

_TLS_HANDSHAKE = 0x1603
"""A record of type 22, handshake, and the major version, which is 3 since SSL 3.0 (RFC 8446, 5.1)."""


def begins_tls(first: int) -> bool:
    """Say whether the first 32 bits of a client are those of a ClientHello. In NBD they mean nothing."""
    return first >> 16 == _TLS_HANDSHAKE


def shown(text: str) -> str:
    """Give a peer's string in a form that is safe and short enough to repeat in a message."""
    cut = limits.NAME_IN_TEXT_CHARS
    return repr(text if len(text) <= cut else text[:cut] + "…")


def printable(text: str) -> str:
    """Escape whatever in a peer's text could move a terminal's cursor or end a line of the log."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def decode_string(data: bytes, what: str) -> str:
    """Take a string as proto.md allows them: UTF-8, no NUL, at most 4,096 bytes. Raises `NoString`."""
    if len(data) > limits.MAX_STRING_BYTES:
        raise NoString(
            f"{what} has {len(data)} bytes; at most {limits.MAX_STRING_BYTES} are allowed"
        )
    if 0 in data:
        raise NoString(f"{what} contains a NUL byte")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise NoString(f"{what} is not UTF-8: {error}") from None


def _take_string(data: bytes, start: int, what: str) -> tuple[str, int]:
    """Take a string that has its 32-bit length before it; give it and the position after it.

    The length is compared with what is there before anything is cut (CVE-2022-26495, -26496).
    """
    if len(data) - start < 4:
        raise WireError(f"the length of {what} is cut off after {len(data) - start} of 4 bytes")
    (length,) = U32.unpack_from(data, start)
    start += 4
    if length > len(data) - start:
        raise WireError(f"{what} claims {length} bytes, but only {len(data) - start} follow")
    return decode_string(data[start : start + length], what), start + length


def _string(text: str) -> bytes:
    encoded = text.encode()
    return U32.pack(len(encoded)) + encoded


# --- INFO and GO
# C: 32 bits, length of name; name (UTF-8)
# C: 16 bits, number of information requests
# C: 16 bits x n, information requests


@dataclass(frozen=True, slots=True)
class InfoRequest:
    """The data of INFO or GO: which export, and what the client wants to know of it."""

    name: str
    wanted: frozenset[int]


def encode_info_request(name: str, wanted: Iterable[int]) -> bytes:
    """Give the data of INFO or GO."""
    numbers = sorted(wanted)
    return _string(name) + U16.pack(len(numbers)) + b"".join(U16.pack(n) for n in numbers)


def decode_info_request(data: bytes) -> InfoRequest:
    """Take the data of INFO or GO; unknown information types are kept, for the caller to ignore."""
    name, at = _take_string(data, 0, "the export name")
    if len(data) - at < 2:
        raise WireError("the number of information requests is missing")
    (count,) = U16.unpack_from(data, at)
    at += 2
    if len(data) - at != 2 * count:
        raise WireError(
            f"{count} information requests take {2 * count} bytes, but {len(data) - at} follow"
        )
    return InfoRequest(name, frozenset(n for (n,) in U16.iter_unpack(data[at:])))


# --- LIST_META_CONTEXT and SET_META_CONTEXT
# C: 32 bits, length of name; name (UTF-8)
# C: 32 bits, number of queries
# C: (32 bits, length; query (UTF-8)) x n


@dataclass(frozen=True, slots=True)
class MetaQuery:
    """The data of LIST_META_CONTEXT or SET_META_CONTEXT."""

    name: str
    queries: tuple[str, ...]


def encode_meta_query(name: str, queries: Sequence[str]) -> bytes:
    """Give the data of LIST_META_CONTEXT or SET_META_CONTEXT."""
    return _string(name) + U32.pack(len(queries)) + b"".join(_string(q) for q in queries)


def decode_meta_query(data: bytes) -> MetaQuery:
    """Take the data of LIST_META_CONTEXT or SET_META_CONTEXT."""
    name, at = _take_string(data, 0, "the export name")
    if len(data) - at < 4:
        raise WireError("the number of queries is missing")
    (count,) = U32.unpack_from(data, at)
    at += 4
    if count > limits.MAX_QUERIES:
        raise WireError(f"{count} queries; at most {limits.MAX_QUERIES} are taken")
    queries = []
    for number in range(count):
        query, at = _take_string(data, at, f"query {number + 1}")
        queries.append(query)
    if at != len(data):
        raise WireError(f"{len(data) - at} bytes stand behind the last query")
    return MetaQuery(name, tuple(queries))


# --- REP_SERVER
# S: 32 bits, length of name; name (UTF-8)
# S: description (UTF-8), what is left


@dataclass(frozen=True, slots=True)
class ListedExport:
    """One export of a LIST."""

    name: str
    description: str = ""


def encode_server(export: ListedExport) -> bytes:
    """Give the payload of a REP_SERVER."""
    return _string(export.name) + export.description.encode()


def decode_server(data: bytes) -> ListedExport:
    """Take the payload of a REP_SERVER. Only a bad name raises `NoString`: a description is for people."""
    name, at = _take_string(data, 0, "the name of a listed export")
    try:
        return ListedExport(name, decode_string(data[at:], "the description of a listed export"))
    except NoString:
        return ListedExport(name)


def misnamed(data: bytes) -> str:
    """Give the name of a REP_SERVER that is no string (`NoString`), in a form for messages."""
    (length,) = U32.unpack_from(data)
    name = data[4:][: min(length, limits.NAME_IN_TEXT_CHARS)]
    return printable(name.decode(errors="backslashreplace"))


# --- REP_META_CONTEXT
# S: 32 bits, context id
# S: name (UTF-8), what is left


@dataclass(frozen=True, slots=True)
class MetaContext:
    """One context of a LIST_META_CONTEXT (id without meaning) or SET_META_CONTEXT."""

    id: int
    name: str


def encode_meta_context(context: MetaContext) -> bytes:
    """Give the payload of a REP_META_CONTEXT."""
    return U32.pack(context.id) + context.name.encode()


def decode_meta_context(data: bytes) -> MetaContext:
    """Take the payload of a REP_META_CONTEXT."""
    if len(data) < 5:
        raise WireError(f"a meta context reply of {len(data)} bytes; an id and a name take 5")
    (number,) = U32.unpack_from(data)
    return MetaContext(number, decode_string(data[4:], "the name of a meta context"))


# --- REP_INFO
# S: 16 bits, information type
# S: information payload:
#    EXPORT       64 bits, size in bytes; 16 bits, transmission flags
#    NAME         name (UTF-8)
#    DESCRIPTION  description (UTF-8)
#    BLOCK_SIZE   32 bits each: minimum, preferred, maximum payload, in bytes

_INFO_EXPORT = Struct(">HQH")
_INFO_BLOCK_SIZE = Struct(">HIII")


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """INFO_EXPORT: the size in bytes and the transmission flags."""

    size: int
    flags: int


@dataclass(frozen=True, slots=True)
class NameInfo:
    """INFO_NAME: the canonical name."""

    name: str


@dataclass(frozen=True, slots=True)
class DescriptionInfo:
    """INFO_DESCRIPTION."""

    description: str


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """INFO_BLOCK_SIZE: minimum and preferred block, and the longest payload, in bytes."""

    minimum: int
    preferred: int
    maximum: int


@dataclass(frozen=True, slots=True)
class UnknownInfo:
    """An information type that we do not know; to be ignored."""

    number: int


AnyInfo = ExportInfo | NameInfo | DescriptionInfo | BlockSizes | UnknownInfo


def encode_info(info: AnyInfo) -> bytes:
    """Give the payload of a REP_INFO."""
    match info:
        case ExportInfo(size, flags):
            return _INFO_EXPORT.pack(Info.EXPORT, size, flags)
        case NameInfo(name):
            return U16.pack(Info.NAME) + name.encode()
        case DescriptionInfo(description):
            return U16.pack(Info.DESCRIPTION) + description.encode()
        case BlockSizes(minimum, preferred, maximum):
            return _INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, minimum, preferred, maximum)
        case UnknownInfo(number):
            return U16.pack(number)


def decode_info(data: bytes) -> AnyInfo:
    """Take the payload of a REP_INFO. Where proto.md gives an exact length, no other is taken."""
    if len(data) < 2:
        raise WireError(f"an information reply of {len(data)} bytes; its type alone takes 2")
    (number,) = U16.unpack_from(data)
    match number:
        case Info.EXPORT:
            _expect_length(data, _INFO_EXPORT, "INFO_EXPORT")
            _, size, flags = _INFO_EXPORT.unpack(data)
            return ExportInfo(size, flags)
        case Info.NAME:
            return NameInfo(decode_string(data[2:], "the canonical name"))
        case Info.DESCRIPTION:
            return DescriptionInfo(decode_string(data[2:], "the description"))
        case Info.BLOCK_SIZE:
            _expect_length(data, _INFO_BLOCK_SIZE, "INFO_BLOCK_SIZE")
            return BlockSizes(*_INFO_BLOCK_SIZE.unpack(data)[1:])
        case _:
            return UnknownInfo(number)


def _expect_length(data: bytes, layout: Struct, what: str) -> None:
    if len(data) != layout.size:
        raise WireError(f"{what} has {len(data)} bytes; exactly {layout.size} are allowed")


def decode_error_text(data: bytes) -> str:
    """Take the text of an error reply. It is for people and may be bad: what cannot be decoded is replaced,
    what is too long is cut.
    """
    return data[: limits.ERROR_TEXT_BYTES].decode(errors="replace").replace("\0", "")


def refusal_sentence(option: int, reply: int, text: str) -> str:
    """Say in one sentence what an error reply to an option means."""
    said = f": {text}" if text else ""
    return f"{name_of(Opt, option)} was refused with {name_of(Rep, reply)}{said}"

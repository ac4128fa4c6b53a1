r"""What a load balancer says of its client before the client's own first byte: the PROXY protocol.

haproxy's doc/proxy-protocol.txt is the specification, and sections below are its own. Version 1 (section 2.1)
is a line of text, version 2 (section 2.2) is binary:

    PROXY TCP4 192.0.2.1 198.51.100.2 56324 10809\r\n
    PROXY TCP6 2001:db8::1 2001:db8::2 56324 10809\r\n
    PROXY UNKNOWN anything\r\n

    12 bytes  signature
     4 bits   version: 2
     4 bits   command: LOCAL, the load balancer's own connection, or PROXY, somebody's
     4 bits   address family
     4 bits   transport
    16 bits   length of what follows
    source address, destination address, source port, destination port; and more, which is skipped

The client's own bytes follow at once, and must not be taken with the header. So `decode_header` says how many
bytes are missing at least: a caller that receives no more than these never takes too many.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from struct import Struct

from gateway.wire.errors import WireError

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

# B: 12 bytes, signature
# B: 8 bits, version and command
# B: 8 bits, address family and transport
# B: 16 bits, length of what follows
HEAD = Struct(">12sBBH")

MAX_LINE_BYTES = 107
"""Longest line of version 1, with its CRLF ("worst case", section 2.1)."""

MAX_BLOCK_BYTES = 4096
"""Longest block behind the head of version 2. Headers are meant to fit into the smallest TCP segment, 536
bytes; with a client's certificate they have some KiB. nginx takes headers of up to 4 KiB as well."""

MAX_LONG_BLOCK_BYTES = 0xFFFF
"""Longest block that version 2 can say: for whoever is known before he says anything, and has more to say."""

_VERSION_1 = b"PROXY "
_SHORTEST_LINE = b"PROXY UNKNOWN\r\n"  # and no header of version 2 is shorter
_PORT = re.compile("0|[1-9][0-9]{0,4}")
_SHOWN_BYTES = 32


class ProxyCommand(IntEnum):
    """Whose connection it is."""

    LOCAL = 0
    PROXY = 1


class Family(IntEnum):
    """What kind of addresses follow."""

    UNSPEC = 0
    INET = 1
    INET6 = 2
    UNIX = 3


class ProxyTransport(IntEnum):
    """What the client came over."""

    UNSPEC = 0
    STREAM = 1
    DGRAM = 2


_ADDRESSES_BYTES = {Family.UNSPEC: 0, Family.INET: 12, Family.INET6: 36, Family.UNIX: 216}


@dataclass(frozen=True, slots=True)
class ProxySource:
    """Where the load balancer's client comes from. A client of its Unix socket has no address."""

    address: IPv4Address | IPv6Address | None
    port: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """A header: its length, and the client; None if the load balancer made the connection for itself."""

    length: int
    source: ProxySource | None
    more: bytes = field(default=b"", compare=False, repr=False)
    """What follows the addresses of version 2: vectors of type, length and value (section 2.2)."""


OURS = 0xE0
"""PP2_TYPE_MIN_CUSTOM: the first type of a vector that is left to whoever writes it (section 2.2)."""

_VECTOR = Struct(">BH")


def encode_header(source: ProxySource | None, ours: bytes) -> bytes:
    """Give a header of version 2 for a client that comes over TCP, or (None) in another way, with a vector of
    ours. Raises `ValueError` if that is longer than any header.
    """
    kind, addresses = 0, b""
    if source is not None and source.address is not None:
        family = Family.INET if source.address.version == 4 else Family.INET6
        kind = family << 4 | ProxyTransport.STREAM
        packed = source.address.packed
        addresses = packed + bytes(len(packed)) + source.port.to_bytes(2, "big") + b"\0\0"
    length = len(addresses) + _VECTOR.size + len(ours)
    if length > MAX_LONG_BLOCK_BYTES:
        raise ValueError(f"a PROXY header has at most {MAX_LONG_BLOCK_BYTES} bytes, not {length}")
    block = addresses + _VECTOR.pack(OURS, len(ours)) + ours
    return HEAD.pack(SIGNATURE, 2 << 4 | ProxyCommand.PROXY, kind, len(block)) + block


def ours_in(header: Header) -> bytes:
    """Give the value of our vector in a header. Raises `WireError` if there is none."""
    at = 0
    while at + _VECTOR.size <= len(header.more):
        kind, length = _VECTOR.unpack_from(header.more, at)
        at += _VECTOR.size
        if kind == OURS and at + length <= len(header.more):
            return header.more[at : at + length]
        at += length
    raise WireError(f"expected a vector of type 0x{OURS:02x} in a PROXY header, found none")


def decode_header(data: bytes, most_bytes: int = MAX_BLOCK_BYTES) -> Header | int:
    """Give the header that a connection begins with, or how many bytes of it are missing at least. One of
    version 2 has `most_bytes` behind its head.

    Raises `WireError` as soon as the bytes cannot be a header.
    """
    if data[: len(_VERSION_1)] == _VERSION_1[: len(data)]:
        return _decode_line(data)
    if data[: len(SIGNATURE)] == SIGNATURE[: len(data)]:
        return _decode_binary(data, most_bytes)
    raise WireError(f"expected a PROXY header, got {data[:_SHOWN_BYTES]!r}")


def _decode_line(data: bytes) -> Header | int:
    end = data.find(b"\r\n", 0, MAX_LINE_BYTES)
    if end >= 0:
        return Header(end + 2, _source_of_line(data[:end]))
    missing = max(len(_SHORTEST_LINE) - len(data), 1 if data.endswith(b"\r") else 2)
    if len(data) + missing > MAX_LINE_BYTES:
        shown = data[:_SHOWN_BYTES]
        raise WireError(f"a PROXY line has at most {MAX_LINE_BYTES} bytes; {shown!r}... has more")
    return missing


def _source_of_line(line: bytes) -> ProxySource | None:
    # No address and no port has a replaced character.
    match line.decode("ascii", "replace").split(" "):
        case ["PROXY", "UNKNOWN", *_]:
            return None
        case ["PROXY", "TCP4" | "TCP6" as family, source, destination, port, to_port]:
            kind = IPv4Address if family == "TCP4" else IPv6Address
            _address(destination, kind, line)
            _port(to_port, line)
            return ProxySource(_address(source, kind, line), _port(port, line))
    raise WireError(
        "expected PROXY UNKNOWN, or PROXY TCP4 or TCP6 with two addresses and two ports, each after"
        f" one space, got {line!r}"
    )


def _address(
    text: str, kind: type[IPv4Address | IPv6Address], line: bytes
) -> IPv4Address | IPv6Address:
    """Read an address. One of IPv6 may end in the form of IPv4: so the C library writes mapped addresses."""
    try:
        address = ip_address(text)
    except ValueError:
        address = None
    if not isinstance(address, kind) or "%" in text:
        family = "IPv4" if kind is IPv4Address else "IPv6"
        raise WireError(f"expected an {family} address in a PROXY line, got {text!r} in {line!r}")
    return address


def _port(text: str, line: bytes) -> int:
    if not _PORT.fullmatch(text) or int(text) > 0xFFFF:
        raise WireError(f"expected a port, 0 to 65535, in a PROXY line, got {text!r} in {line!r}")
    return int(text)


def _decode_binary(data: bytes, most_bytes: int) -> Header | int:
    if len(data) < HEAD.size:
        return HEAD.size - len(data)
    head: tuple[bytes, int, int, int] = HEAD.unpack_from(data)
    _signature, version_command, kind, length = head
    version, command = divmod(version_command, 16)
    family, transport = divmod(kind, 16)
    if version != 2:
        raise WireError(f"expected version 2 in a binary PROXY header, got {version}")
    if command not in tuple(ProxyCommand):
        raise WireError(
            f"expected LOCAL (0) or PROXY (1) as the command of a PROXY header, got {command}"
        )
    if length > most_bytes:
        raise WireError(
            f"a PROXY header announces {length} bytes more; at most {most_bytes} are allowed"
        )
    whole = HEAD.size + length
    if command == ProxyCommand.PROXY:  # after LOCAL, all that follows is ignored
        if family not in tuple(Family) or transport not in tuple(ProxyTransport):
            raise WireError(
                f"expected a known address family and transport in a PROXY header, got 0x{kind:02x}"
            )
        least = _ADDRESSES_BYTES[Family(family)]
        if length < least:
            name = Family(family).name
            raise WireError(
                f"a PROXY header announces {length} bytes more; its {name} addresses take {least}"
            )
    if len(data) < whole:
        return whole - len(data)
    if command == ProxyCommand.LOCAL:
        return Header(whole, None)
    more = data[HEAD.size + _ADDRESSES_BYTES[Family(family)] : whole]
    if transport != ProxyTransport.STREAM:
        return Header(whole, None, more)
    return Header(whole, _source_of_block(family, data[HEAD.size :]), more)


_SOURCE4 = Struct(">4s4xHxx")
_SOURCE6 = Struct(">16s16xHxx")


def _source_of_block(family: int, block: bytes) -> ProxySource | None:
    match family:
        case Family.INET:
            packed, port = _SOURCE4.unpack_from(block)
            return ProxySource(IPv4Address(packed), port)
        case Family.INET6:
            packed, port = _SOURCE6.unpack_from(block)
            return ProxySource(IPv6Address(packed), port)
        case Family.UNIX:
            return ProxySource(None)
    return None

"""A capture of what a trace has seen, as a pcapng file: Wireshark and tshark open it.

There were packets, but a trace sees messages. So each becomes a TCP segment between addresses that are made up
(RFC 5737): a client, the gateway, a server. The server of a connection has NBD's port, the other end one of
its own. What a trace does not show (data, as a rule) is not in the segment either. The segment says how long
it was, as in any capture that keeps the beginnings of packets. What is too long for one segment is a gap in
the sequence. The words for a message are the comment of its packet.

draft-ietf-opsawg-pcapng; the link type is RAW, so a packet begins with its IP header.
"""

from __future__ import annotations

from struct import Struct

from gateway.wire.constants import DEFAULT_PORT
from gateway.wire.limits import KIB

CLIENT, GATEWAY, SERVER = bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2)), bytes((192, 0, 2, 3))

FIRST_PORT = 20_000
"""The port of the first connection that is traced."""

PORTS = 10_000
"""So many connections have ports of their own."""

MAX_SEGMENT_BYTES = 64 * KIB - 1 - 40
"""What a segment has at most: the length of an IPv4 packet has 16 bits, and the headers count."""

MAX_COMMENT_BYTES = 8 * KIB
"""What a comment has at most: an option has up to 64 KiB, and nobody reads as much."""

_BLOCK = Struct("<II")
_LENGTH = Struct("<I")
_SECTION = Struct("<IHHq")
_INTERFACE = Struct("<HHI")
_PACKET = Struct("<IIIII")
_OPTION = Struct("<HH")
_IP = Struct(">BBHHHBBH4s4s")
_TCP = Struct(">HHIIBBHHH")

_SECTION_BLOCK, _INTERFACE_BLOCK, _PACKET_BLOCK = 0x0A0D0D0A, 1, 6
_BYTE_ORDER = 0x1A2B3C4D
_LENGTH_UNKNOWN = -1
_RAW = 101
_END, _COMMENT, _RESOLUTION = 0, 1, 9
_NANOSECONDS = 9
_WORDS_OF_TCP_HEADER = 5 << 4
_PUSH_AND_ACK = 0x18
_WINDOW = 65535
_ONE_SECOND = 1_000_000_000


class Capture:
    """Makes the blocks of a capture. `began` is when its zero was, in seconds since 1970."""

    def __init__(self, began: float) -> None:
        self._began = int(began * _ONE_SECOND)
        self._next: dict[tuple[int, bool], int] = {}  # the next sequence number of each direction

    def head(self) -> bytes:
        """Give what a file begins with."""
        section = _SECTION.pack(_BYTE_ORDER, 1, 0, _LENGTH_UNKNOWN)
        interface = _INTERFACE.pack(_RAW, 0, 0) + _option(_RESOLUTION, bytes((_NANOSECONDS,)))
        return _block(_SECTION_BLOCK, section) + _block(_INTERFACE_BLOCK, interface + _option(_END))

    def packet(
        self,
        seconds: float,
        connection: int,
        *,
        of_client: bool,
        from_gateway: bool,
        at: int,
        raw: bytes,
        length: int,
        comment: str,
    ) -> bytes:
        """Give a message as a packet. It has `length` bytes, of which `raw` are shown, and `at` bytes came
        before it in its direction; `of_client`: the connection is a client's.
        """
        port = FIRST_PORT + connection % PORTS
        to_server = from_gateway is not of_client
        ends = (CLIENT, GATEWAY) if of_client else (GATEWAY, SERVER)
        source, target = ends if to_server else reversed(ends)
        ports = (port, DEFAULT_PORT) if to_server else (DEFAULT_PORT, port)
        acknowledged = self._next.get((connection, not to_server), 1)
        self._next[connection, to_server] = 1 + at + length
        size = min(length, MAX_SEGMENT_BYTES)
        whole = _IP.size + _TCP.size + size
        ip = _IP.pack(4 << 4 | 5, 0, whole, 0, 0, 64, 6, 0, source, target)
        tcp = _TCP.pack(
            *ports,
            (1 + at) & 0xFFFFFFFF,
            acknowledged & 0xFFFFFFFF,
            _WORDS_OF_TCP_HEADER,
            _PUSH_AND_ACK,
            _WINDOW,
            0,
            0,
        )
        shown = ip + tcp + raw[:size]
        when = self._began + int(seconds * _ONE_SECOND)
        head = _PACKET.pack(0, when >> 32, when & 0xFFFFFFFF, len(shown), whole)
        text = comment.encode(errors="replace")[:MAX_COMMENT_BYTES].decode(errors="ignore").encode()
        options = _option(_COMMENT, text) + _option(_END)
        return _block(_PACKET_BLOCK, head + _padded(shown) + options)


def _block(kind: int, body: bytes) -> bytes:
    size = _BLOCK.size + len(body) + _LENGTH.size
    return _BLOCK.pack(kind, size) + body + _LENGTH.pack(size)


def _option(code: int, value: bytes = b"") -> bytes:
    return _OPTION.pack(code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)

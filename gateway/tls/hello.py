"""Whether a ClientHello offers a pre-shared key: layouts of RFC 8446, 4.1.2 and 5.1, and RFC 5246, 7.4.1.2.

A listener may have certificates and keys. OpenSSL cannot do both in one context (see `gateway.tls.psk`), and
asks us nothing before it has chosen. So we choose the context by the client's first message, which OpenSSL then
gets as it came. Nothing is validated here: OpenSSL does that, and knows the right alert. A message that we
cannot read offers no key.
"""

from __future__ import annotations

from collections.abc import Collection

MAX_HELLO_BYTES = 64 << 10
"""ClientHellos have a few hundred bytes, with post-quantum key shares two thousand. OpenSSL's own limit is 128
KiB."""

_HANDSHAKE = 22  # ContentType
_CLIENT_HELLO = 1  # HandshakeType
_PRE_SHARED_KEY = 41  # ExtensionType
_RECORD_HEADER_BYTES = 5  # type u8, version u16, length u16
_MAX_RECORD_BYTES = 1 << 14


def offers_key(received: bytes | bytearray, suites: Collection[int]) -> bool | None:
    """Say whether the first bytes of a TLS connection offer a key; None if more of them are needed.

    A TLS 1.3 client offers a key by the extension pre_shared_key (RFC 8446, 4.2.11). It cannot mean a ticket by
    that, for we give none. A TLS 1.2 client offers a key by cipher suites with keys (RFC 4279); `suites` are
    those that we take.
    """
    try:
        hello = _hello(received)
        return None if hello is None else _offers(hello, suites)
    except IndexError:
        return False


def _hello(received: bytes | bytearray) -> bytes | None:
    """Put the message together from its records; None: it is not all there yet. Raises IndexError if it is no
    handshake.
    """
    message = b""
    at = 0
    while len(received) >= at + _RECORD_HEADER_BYTES:
        length = int.from_bytes(received[at + 3 : at + 5])
        end = at + _RECORD_HEADER_BYTES + length
        if received[at] != _HANDSHAKE or not 0 < length <= _MAX_RECORD_BYTES:
            raise IndexError
        message += received[at + _RECORD_HEADER_BYTES : end]
        if message and message[0] != _CLIENT_HELLO:
            raise IndexError
        size = 4 + int.from_bytes(message[1:4])
        if len(message) >= 4 and size > MAX_HELLO_BYTES:
            raise IndexError
        if len(message) >= max(size, 4):
            return message[:size]
        if len(received) < end:
            break
        at = end
    else:
        # The first byte tells what is no handshake: so a client that speaks no TLS gets its alert at once.
        if len(received) > at and received[at] != _HANDSHAKE:
            raise IndexError
    if len(received) > 2 * MAX_HELLO_BYTES:  # records of a few bytes each
        raise IndexError
    return None


class _Cursor:
    """Reads vectors (RFC 8446, 3.4); IndexError where the data ends before its length says so."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, count: int) -> bytes:
        if count > len(self.rest):
            raise IndexError
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def vector(self, length_bytes: int) -> bytes:
        return self.take(int.from_bytes(self.take(length_bytes)))


def _offers(hello: bytes, suites: Collection[int]) -> bool:
    cursor = _Cursor(hello[4:])
    cursor.take(2 + 32)  # legacy_version, random
    cursor.vector(1)  # legacy_session_id
    offered = cursor.vector(2)
    if any(int.from_bytes(offered[at : at + 2]) in suites for at in range(0, len(offered), 2)):
        return True
    cursor.vector(1)  # legacy_compression_methods
    if not cursor.rest:
        return False  # TLS 1.2 without extensions
    extensions = _Cursor(cursor.vector(2))
    while extensions.rest:
        kind = int.from_bytes(extensions.take(2))
        extensions.vector(2)
        if kind == _PRE_SHARED_KEY:
            return True
    return False

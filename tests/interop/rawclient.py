"""A client that no library would be: it negotiates, asks, and then does what a test wants."""

from __future__ import annotations

import socket
import struct
from urllib.parse import parse_qs, unquote, urlsplit

from tests.tools.patience import HANG_SECONDS

OPT_GO = 7
REP_ACK = 1
REP_INFO = 3
REQUEST = struct.Struct("!IHHQQI")


class RawClient:
    """A connection in transmission, simple replies. Every receive has a deadline."""

    def __init__(self, uri: str, seconds: float = 20.0) -> None:
        parts = urlsplit(uri)
        if "+unix" in parts.scheme:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(seconds)
            self.socket.connect(parse_qs(parts.query)["socket"][0])
        else:
            address = (parts.hostname or "", parts.port or 10809)
            self.socket = socket.create_connection(address, seconds)
        magic, option_magic, flags = struct.unpack("!8s8sH", self.receive(18))
        assert (magic, option_magic) == (b"NBDMAGIC", b"IHAVEOPT")
        name = unquote(parts.path[1:]).encode()
        data = struct.pack("!I", len(name)) + name + struct.pack("!H", 0)
        self.socket.sendall(
            struct.pack("!I", flags & 3)
            + b"IHAVEOPT"
            + struct.pack("!II", OPT_GO, len(data))
            + data
        )
        while (kind := self._option_reply()) != REP_ACK:
            assert kind == REP_INFO, f"GO was refused with {kind:#x}"

    @classmethod
    def connected(cls, port: int, seconds: float = HANG_SECONDS) -> RawClient:
        """One that has connected, and says and reads nothing by itself."""
        client = cls.__new__(cls)
        client.socket = socket.create_connection(("127.0.0.1", port), seconds)
        return client

    def _option_reply(self) -> int:
        magic, option, kind, length = struct.unpack("!QIII", self.receive(20))
        assert (magic, option) == (0x0003E889045565A9, OPT_GO)
        self.receive(length)
        return int(kind)

    def receive(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def read_request(self, cookie: int, offset: int, length: int) -> bytes:
        return REQUEST.pack(0x25609513, 0, 0, cookie, offset, length)

    def reply(self, length: int) -> tuple[int, int, bytes]:
        """One simple reply to a READ of `length`: cookie, errno, data."""
        magic, errno, cookie = struct.unpack("!IIQ", self.receive(16))
        assert magic == 0x67446698
        return cookie, errno, b"" if errno else self.receive(length)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

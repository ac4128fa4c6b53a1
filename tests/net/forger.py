"""The far side of a TLS 1.3 connection, by hand: records that no library would send."""

from __future__ import annotations

import struct
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

ALERT, HANDSHAKE, DATA = 21, 22, 23
CLOSE_NOTIFY = b"\1\0"


class Forger:
    """What a client sends after its handshake, with TLS_AES_256_GCM_SHA384 (RFC 8446, 5.2, 7.1 and 7.3)."""

    def __init__(self, secret: bytes) -> None:
        self._begin(secret)

    @classmethod
    def of(cls, key_log: Path) -> Forger:
        """The client of the last handshake that was logged."""
        lines = [line.split() for line in key_log.read_text().splitlines()]
        secrets = [words[2] for words in lines if words[0] == "CLIENT_TRAFFIC_SECRET_0"]
        return cls(bytes.fromhex(secrets[-1]))

    def _begin(self, secret: bytes) -> None:
        self._secret = secret
        self._aead = AESGCM(_expanded(secret, b"key", 32))
        self._iv = int.from_bytes(_expanded(secret, b"iv", 12))
        self._number = 0

    def record(self, kind: int, content: bytes) -> bytes:
        """One record."""
        head = struct.pack(">BHH", 23, 0x0303, len(content) + 1 + 16)
        nonce = (self._iv ^ self._number).to_bytes(12)
        self._number += 1
        return head + self._aead.encrypt(nonce, content + bytes([kind]), head)

    def key_update(self) -> bytes:
        """A KeyUpdate that wants one in return (RFC 8446, 4.6.3)."""
        record = self.record(HANDSHAKE, bytes([24, 0, 0, 1, 1]))
        self._begin(_expanded(self._secret, b"traffic upd", 48))
        return record


def _expanded(secret: bytes, name: bytes, length: int) -> bytes:
    label = b"tls13 " + name
    info = struct.pack(">HB", length, len(label)) + label + b"\0"
    return HKDFExpand(SHA384(), length, info).derive(secret)

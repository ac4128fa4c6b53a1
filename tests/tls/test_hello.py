"""What a client's first message is taken for."""

from __future__ import annotations

import ssl
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tls.hello import MAX_HELLO_BYTES, offers_key
from tests.tls.handshakes import VERSIONS, needs_psk

SUITE = 0xCCAC  # ECDHE-PSK-CHACHA20-POLY1305, RFC 7905


def _hello(*, key: bool, version: ssl.TLSVersion) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ECDHE+AESGCM:ECDHE-PSK-CHACHA20-POLY1305")
    context.minimum_version = context.maximum_version = version
    if key and sys.version_info >= (3, 13):
        context.set_psk_client_callback(lambda hint: ("joe", b"k" * 32))
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def _in_records(hello: bytes, size: int) -> bytes:
    message = hello[5:]
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(hello[:3] + len(piece).to_bytes(2) + piece for piece in pieces)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda v: v.name)
@pytest.mark.parametrize("key", [pytest.param(True, marks=needs_psk), False])
@pytest.mark.parametrize("record_bytes", [1, 7, 16384])
def test_hellos(version: ssl.TLSVersion, key: bool, record_bytes: int) -> None:
    hello = _in_records(_hello(key=key, version=version), record_bytes)
    for end in range(len(hello)):
        assert offers_key(hello[:end], {SUITE}) is None
    assert offers_key(hello, {SUITE}) is key
    assert offers_key(bytearray(hello) + b"more", {SUITE}) is key
    assert offers_key(hello, ()) is (key and version is ssl.TLSVersion.TLSv1_3)


@pytest.mark.parametrize(
    "received",
    [
        b"GET / HTTP/1.1\r\n",
        b"N",
        b"IHAVEOPT\0\0\0\1\0\0\0\0",
        b"\x16\x03\x01\0\0",  # an empty record
        b"\x16\x03\x01\xff\xff",  # a record that is too long
        b"\x16\x03\x01\0\x04\x02\0\0\0",  # a ServerHello
        b"\x16\x03\x01\0\x04\x01\0\0\0",  # a hello with nothing in it
        b"\x16\x03\x01\0\x04\x01\xff\xff\xff",  # too long to be one
        b"\x15\x03\x01\0\x02\x02\x28",  # an alert
        b"\x16\x03\x01\0\x01\x01\x15",  # an alert after the hello's first byte
    ],
)
def test_what_is_no_hello_offers_no_key(received: bytes) -> None:
    assert offers_key(received, {SUITE}) is False


def test_bounded() -> None:
    endless = b"\x16\x03\x01\0\x01\x01" + b"\x16\x03\x01\0\x01\0" * MAX_HELLO_BYTES
    assert offers_key(endless, {SUITE}) is False


@given(st.binary(max_size=200), st.integers(0, 200))
def test_garbage_is_refused_politely(garbage: bytes, at: int) -> None:
    assert offers_key(garbage, {SUITE}) in (None, False, True)
    hello = bytearray(HELLO)
    hello[5 + at : 5 + at + len(garbage)] = garbage
    assert offers_key(hello, {SUITE}) in (None, False, True)


HELLO = _hello(key=False, version=ssl.TLSVersion.TLSv1_3)

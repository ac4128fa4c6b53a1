"""PROXY headers of both versions: what they say, in how many pieces, and what is none."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.wire.errors import WireError
from gateway.wire.proxy import (
    HEAD,
    MAX_BLOCK_BYTES,
    MAX_LINE_BYTES,
    SIGNATURE,
    Header,
    ProxySource,
    decode_header,
)

V4 = bytes([192, 0, 2, 1, 198, 51, 100, 2]) + b"\xdc\x04\x2a\x3a"
V6 = IPv6Address("2001:db8::1").packed + IPv6Address("2001:db8::2").packed + b"\xdc\x04\x2a\x3a"
SOURCE4 = ProxySource(IPv4Address("192.0.2.1"), 56324)
SOURCE6 = ProxySource(IPv6Address("2001:db8::1"), 56324)
LONGEST = b"PROXY UNKNOWN " + 2 * (b"ffff:" * 7 + b"ffff ") + b"65535 65535"


def line(text: str) -> bytes:
    return text.encode() + b"\r\n"


def binary(block: bytes = b"", *, command: int = 0x21, kind: int = 0x11) -> bytes:
    return HEAD.pack(SIGNATURE, command, kind, len(block)) + block


HEADERS: list[tuple[bytes, ProxySource | None]] = [
    (line("PROXY TCP4 192.0.2.1 198.51.100.2 56324 10809"), SOURCE4),
    (
        line("PROXY TCP4 255.255.255.255 0.0.0.0 65535 0"),
        ProxySource(IPv4Address(2**32 - 1), 65535),
    ),
    (line("PROXY TCP4 192.0.2.1 198.51.100.2 0 65535"), ProxySource(IPv4Address("192.0.2.1"), 0)),
    (line("PROXY TCP6 2001:db8::1 2001:DB8:0:0::2 56324 10809"), SOURCE6),
    (line(f"PROXY TCP6 {'ffff:' * 7}ffff ::1 1 2"), ProxySource(IPv6Address(2**128 - 1), 1)),
    # As inet_ntop writes it (haproxy on a socket for both families).
    (
        line("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2"),
        ProxySource(IPv6Address("::ffff:192.0.2.1"), 1),
    ),
    (line("PROXY UNKNOWN"), None),
    (line("PROXY UNKNOWN "), None),
    (line("PROXY UNKNOWN TCP4 \r \n \0 \x1b"), None),
    (b"PROXY UNKNOWN \xff\xfe\r\n", None),
    (b"PROXY UNKNOWN " + b"x" * (MAX_LINE_BYTES - 16) + b"\r\n", None),
    (binary(V4), SOURCE4),
    (binary(V6, kind=0x21), SOURCE6),
    (binary(bytes(216), kind=0x31), ProxySource(None)),
    (binary(V4 + b"\x04\0\3abc"), SOURCE4),  # something of type NOOP behind
    (binary(V4 + b"\xff\xff"), SOURCE4),  # and what is none of the types
    (binary(V4 + bytes(MAX_BLOCK_BYTES - 12)), SOURCE4),
    (binary(kind=0x00), None),
    (binary(b"anything", kind=0x00), None),
    (binary(V4, kind=0x10), None),
    (binary(V4, kind=0x12), None),  # UDP
    (binary(V6, kind=0x22), None),
    (binary(bytes(216), kind=0x32), None),
    (binary(b"xy", kind=0x01), None),
    (binary(command=0x20, kind=0x00), None),
    (binary(V4, command=0x20), None),
    # Of LOCAL, "discard the protocol block including the family which is ignored".
    (binary(b"xy", command=0x20, kind=0xFF), None),
]


@pytest.mark.parametrize(("data", "source"), HEADERS)
@pytest.mark.parametrize("behind", [b"", b"\0\0\0\3", b"\r\n", b"PROXY UNKNOWN\r\n"])
def test_whole(data: bytes, source: ProxySource | None, behind: bytes) -> None:
    assert decode_header(data + behind) == Header(len(data), source)


@pytest.mark.parametrize(("data", "source"), HEADERS)
@pytest.mark.parametrize("at_most", [1, 2, 7, 1 << 16])
def test_whoever_receives_what_is_missing_never_receives_more(
    data: bytes, source: ProxySource | None, at_most: int
) -> None:
    received = b""
    while not isinstance(found := decode_header(received), Header):
        assert 0 < found <= len(data) - len(received)
        received += data[len(received) :][: min(found, at_most)]
    assert (found, received) == (Header(len(data), source), data)


def test_few_receives() -> None:
    """Fifteen bytes, one more, and what that announces."""
    received, receives = b"", 0
    while not isinstance(found := decode_header(received), Header):
        received += binary(V6, kind=0x21)[len(received) :][:found]
        receives += 1
    assert receives == 3


NONE_EXPECTED = "expected a PROXY header, got "
ADDRESS = "expected an IPv4 address in a PROXY line, got "
PORT = "expected a port, 0 to 65535, in a PROXY line, got "
FORM = "expected PROXY UNKNOWN, or PROXY TCP4 or TCP6 with two addresses and two ports, "


@pytest.mark.parametrize(
    ("data", "says"),
    [
        # No header.
        (b"G", NONE_EXPECTED + "b'G'"),
        (b"\0\0\0\3", NONE_EXPECTED + r"b'\x00\x00\x00\x03'"),
        (b"\x16\x03\x01" + bytes(500), NONE_EXPECTED + r"b'\x16\x03\x01\x00"),
        (b"PROXy", NONE_EXPECTED + "b'PROXy'"),
        (b"PROXY\t", NONE_EXPECTED + r"b'PROXY\t'"),
        (b"proxy ", NONE_EXPECTED + "b'proxy '"),
        (b" PROXY", NONE_EXPECTED + "b' PROXY'"),
        (b"\r\n\r\n\r", NONE_EXPECTED),
        (SIGNATURE[:-1] + b"\r", NONE_EXPECTED),
        # Lines.
        (line("PROXY "), FORM),
        (line("PROXY TCP4"), FORM),
        (line("PROXY UNKNOWNS"), FORM),
        (line("PROXY unknown"), FORM),
        (line("PROXY  UNKNOWN"), FORM),
        (line("PROXY UDP4 192.0.2.1 192.0.2.2 1 2"), FORM),
        (line("PROXY TCP4 192.0.2.1 192.0.2.2 1"), FORM),
        (line("PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3"), FORM),
        (line("PROXY TCP4 192.0.2.1 192.0.2.2 1 2 "), FORM),
        (line("PROXY TCP4  192.0.2.1 192.0.2.2 1 2"), FORM),
        (line("PROXY TCP4  192.0.2.1 192.0.2.2 1"), ADDRESS + "''"),
        (line("PROXY TCP4 192.0.2 192.0.2.2 1 2"), ADDRESS + "'192.0.2'"),
        (line("PROXY TCP4 192.0.2.01 192.0.2.2 1 2"), ADDRESS + "'192.0.2.01'"),
        (line("PROXY TCP4 192.0.2.256 192.0.2.2 1 2"), ADDRESS + "'192.0.2.256'"),
        (line("PROXY TCP4 192.0.2.1 ::1 1 2"), ADDRESS + "'::1'"),
        (line("PROXY TCP4 ::1 192.0.2.1 1 2"), ADDRESS + "'::1'"),
        (b"PROXY TCP4 192.0.2.\xb2 192.0.2.2 1 2\r\n", ADDRESS),
        (line("PROXY TCP6 192.0.2.1 ::1 1 2"), "expected an IPv6 address in a PROXY line, got "),
        (line("PROXY TCP6 fe80::1%1 ::1 1 2"), "expected an IPv6 address in a PROXY line, got "),
        (line("PROXY TCP6 ::1 fe80::1%1 1 2"), "expected an IPv6 address in a PROXY line, got "),
        (line("PROXY TCP6 1::2::3 ::1 1 2"), "expected an IPv6 address in a PROXY line, got "),
        (line("PROXY TCP4 192.0.2.1 192.0.2.2 65536 2"), PORT + "'65536'"),
        (line("PROXY TCP4 192.0.2.1 192.0.2.2 1 65536"), PORT + "'65536'"),
        (line("PROXY TCP4 192.0.2.1 192.0.2.2 01 2"), PORT + "'01'"),
        (line("PROXY TCP4 192.0.2.1 192.0.2.2 -1 2"), PORT + "'-1'"),
        (line("PROXY TCP4 192.0.2.1 192.0.2.2 +1 2"), PORT + "'+1'"),
        (line("PROXY TCP4 192.0.2.1 192.0.2.2 1 "), PORT + "''"),
        (line("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r"), PORT + r"'2\r'"),
        (line("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n"), PORT + r"'2\n'"),
        # Too long.
        (LONGEST + b"1234", "a PROXY line has at most 107 bytes; b'PROXY UNKNOWN ffff:"),
        (LONGEST + b"123\r\n", "a PROXY line has at most 107 bytes; "),
        (b"PROXY " + b"x" * 1000 + b"\r\n", "a PROXY line has at most 107 bytes; "),
        (
            binary(V4 + bytes(MAX_BLOCK_BYTES - 11)),
            "a PROXY header announces 4097 bytes more; at most 4096 are allowed",
        ),
        (
            HEAD.pack(SIGNATURE, 0x20, 0, 0xFFFF),
            "a PROXY header announces 65535 bytes more; at most 4096 are allowed",
        ),
        # Binary.
        (binary(V4, command=0x11), "expected version 2 in a binary PROXY header, got 1"),
        (binary(V4, command=0x31), "expected version 2 in a binary PROXY header, got 3"),
        (
            binary(V4, command=0x22),
            "expected LOCAL (0) or PROXY (1) as the command of a PROXY header, got 2",
        ),
        (
            binary(V4, kind=0x41),
            "expected a known address family and transport in a PROXY header, got 0x41",
        ),
        (
            binary(V4, kind=0x13),
            "expected a known address family and transport in a PROXY header, got 0x13",
        ),
        (
            binary(V4[:-1]),
            "a PROXY header announces 11 bytes more; its INET addresses take 12",
        ),
        (binary(V4, kind=0x21), "a PROXY header announces 12 bytes more; its INET6 addresses"),
        (binary(V6, kind=0x31), "a PROXY header announces 36 bytes more; its UNIX addresses"),
    ],
)
def test_what_is_none(data: bytes, says: str) -> None:
    with pytest.raises(WireError) as caught:
        decode_header(data)
    assert str(caught.value).startswith(says)
    assert str(caught.value).isprintable()


def test_the_longest_line() -> None:
    assert decode_header(LONGEST) == 2
    assert decode_header(LONGEST + b"\r") == 1
    assert decode_header(LONGEST + b"\r\n") == Header(MAX_LINE_BYTES, None)
    with pytest.raises(WireError, match="at most 107 bytes"):
        decode_header(LONGEST + b"x")


ANY = st.binary(max_size=300)


@given(
    st.one_of(
        ANY,
        st.builds(bytes.__add__, st.sampled_from([b"PROXY ", b"PROXY TCP4 ", SIGNATURE]), ANY),
        st.builds(binary, ANY, command=st.integers(0, 255), kind=st.integers(0, 255)),
        st.text("TCP46UNKOW0129f:. %", max_size=60).map(lambda text: line(f"PROXY {text}")),
    )
)
@example(binary(V4))
def test_any_bytes(data: bytes) -> None:
    """They are a header, the beginning of one, or a WireError; and more of them never changes what is said."""
    said: list[Header | int | None] = []
    for length in range(len(data) + 1):
        try:
            said.append(decode_header(data[:length]))
        except WireError:
            said.append(None)
    ends = [length for length, found in enumerate(said) if not isinstance(found, int)]
    if ends:
        last = said[ends[0]]
        assert said[ends[0] :] == [last] * (len(data) + 1 - ends[0])
        assert not isinstance(last, Header) or last.length == ends[0]

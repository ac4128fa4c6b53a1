import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.uri import (
    MAX_SIZE_BYTES,
    FileUri,
    Legacy,
    MemoryUri,
    NbdUri,
    Target,
    Transport,
    UriError,
    format_size,
    parse_nbd_uri,
    parse_size,
    parse_upstream,
)


def tcp(host: str = "h", port: int = 10809, *, tls: bool = False, **rest: object) -> NbdUri:
    return NbdUri(tls, Transport.TCP, host=host, port=port, **rest)  # type: ignore[arg-type]


def unix(path: str, *, tls: bool = False, **rest: object) -> NbdUri:
    return NbdUri(tls, Transport.UNIX, socket_path=path, **rest)  # type: ignore[arg-type]


def vsock(cid: int, port: int = 10809, *, tls: bool = False, **rest: object) -> NbdUri:
    return NbdUri(tls, Transport.VSOCK, cid=cid, port=port, **rest)  # type: ignore[arg-type]


# text, value, canonical text
GOOD = [
    # the table of uri.md
    ("nbd://example.com/disk", tcp("example.com", export="disk"), "nbd://example.com:10809/disk"),
    ("nbd+unix:///disk?socket=sock", unix("sock", export="disk"), "nbd+unix:///disk?socket=sock"),
    ("nbd://example.com/", tcp("example.com"), "nbd://example.com:10809"),
    ("nbd://example.com", tcp("example.com"), "nbd://example.com:10809"),
    (
        "nbd://example.com//disk",
        tcp("example.com", export="/disk"),
        "nbd://example.com:10809//disk",
    ),
    (
        "nbd://example.com/hello%20world",
        tcp("example.com", export="hello world"),
        "nbd://example.com:10809/hello%20world",
    ),
    ("nbd+unix:///?socket=%00/abstract", unix("\0/abstract"), "nbd+unix:///?socket=%00/abstract"),
    # schemes
    ("nbds://h", tcp(tls=True), "nbds://h:10809"),
    ("nbds+unix:///?socket=/s", unix("/s", tls=True), "nbds+unix:///?socket=/s"),
    ("nbd+vsock://3:77/", vsock(3, 77), "nbd+vsock://3:77"),
    ("nbds+vsock://3", vsock(3, tls=True), "nbds+vsock://3:10809"),
    ("NBD+Unix:///?socket=/s", unix("/s"), "nbd+unix:///?socket=/s"),
    # authorities
    ("nbd://[::1]:5/x", tcp("::1", 5, export="x"), "nbd://[::1]:5/x"),
    ("nbd://[0:0::1]", tcp("::1"), "nbd://[::1]:10809"),
    ("nbd://[fe80::1%25eth0]", tcp("fe80::1%eth0"), "nbd://[fe80::1%25eth0]:10809"),
    ("nbd:///x", tcp("localhost", export="x"), "nbd://localhost:10809/x"),
    ("nbd://Host.Example:0", tcp("host.example", 0), "nbd://host.example:0"),
    ("nbd://h:", tcp(), "nbd://h:10809"),
    ("nbds://al%40ice@h", tcp(tls=True, username="al@ice"), "nbds://al%40ice@h:10809"),
    (
        "nbds+unix://alice@/d?socket=/s",
        unix("/s", tls=True, username="alice", export="d"),
        "nbds+unix://alice@/d?socket=/s",
    ),
    ("nbd+vsock:///", vsock(2), "nbd+vsock://2:10809"),
    (
        "nbd+vsock://4294967295:4294967295",
        vsock(2**32 - 1, 2**32 - 1),
        "nbd+vsock://4294967295:4294967295",
    ),
    # what nbdkit and libnbd write
    ("nbd+unix://?socket=/tmp/s", unix("/tmp/s"), "nbd+unix:///?socket=/tmp/s"),
    ("nbd+unix:////d?socket=/s", unix("/s", export="/d"), "nbd+unix:////d?socket=/s"),
    # queries
    (
        "nbds://h/?tls-type=psk&tls-psk-file=/k%26",
        tcp(tls=True, parameters={"tls-type": "psk", "tls-psk-file": "/k&"}),
        "nbds://h:10809/?tls-type=psk&tls-psk-file=/k%26",
    ),
    (
        "nbd://h?x-a;x-b=1=2&&",
        tcp(parameters={"x-a": "", "x-b": "1=2"}),
        "nbd://h:10809/?x-a=&x-b=1%3D2",
    ),
    ("nbd+unix:///?socket=/a+b", unix("/a+b"), "nbd+unix:///?socket=/a%2Bb"),
    ("nbd://example.", tcp("example."), "nbd://example.:10809"),
    ("nbd://" + "x" * 63, tcp("x" * 63), "nbd://" + "x" * 63 + ":10809"),
    ("nbd://a_b-.1", tcp("a_b-.1"), "nbd://a_b-.1:10809"),
    (
        "nbds://h?tls-hostname=%C3%BC.example",
        tcp(tls=True, parameters={"tls-hostname": "ü.example"}),
        "nbds://h:10809/?tls-hostname=%C3%BC.example",
    ),
    (
        "nbds://h?tls-hostname=::1",
        tcp(tls=True, parameters={"tls-hostname": "::1"}),
        "nbds://h:10809/?tls-hostname=::1",
    ),
    ("nbd://h/%3F%23%C3%BC", tcp(export="?#ü"), "nbd://h:10809/%3F%23%C3%BC"),
]


@pytest.mark.parametrize(("text", "value", "canonical"), GOOD, ids=[row[0] for row in GOOD])
def test_nbd_uri(text: str, value: NbdUri, canonical: str) -> None:
    assert parse_nbd_uri(text) == value
    assert str(value) == canonical
    assert parse_upstream(canonical) == value


BAD = [
    ("", "begins with one of nbd://"),
    ("http://h", "begins with one of nbd://"),
    ("h:10809", "begins with one of nbd://"),
    ("nbd:h:10809:exportname=x", 'expected "nbd://"'),
    ("nbd:/x", 'expected "nbd://"'),
    ("nbd://h/a b", 'write "%20"'),
    ("nbd://h/ü", 'write "%C3%BC"'),
    ("nbd://h/\udcff", 'cannot stand in a URI, write "%FF" for it'),
    ("nbd://h/\ud800", "'\\ud800' cannot stand in a URI"),
    ("nbd://h/a#b", "%23"),
    ("nbd://h/a%2", "two hexadecimal digits"),
    ("nbd://h/%zz", "two hexadecimal digits"),
    ("nbd://h/%ff", "export name is not UTF-8"),
    ("nbd://h/%00", "NUL"),
    ("nbd://h/" + "x" * 4097, "at most 4096 bytes, this one 4097"),
    ("nbd://h/a[1]", "%5B"),
    ("nbd://::1", "IPv6 address in [ ]"),
    ("nbd://[::1", "IPv6 address in [ ]"),
    ("nbd://[::g]", "expected an IPv6 address"),
    ("nbd://a@b@c", "expected"),
    ("nbd://h!", "expected a host name"),
    ("nbd://disk..example.com", "between the dots of a host name are 1 to 63 characters"),
    ("nbd://.example", "between the dots"),
    ("nbd://example..", "between the dots"),
    ("nbd://.", "between the dots"),
    ("nbd://" + "x" * 64, "between the dots"),
    ("nbd://" + "x" * 64 + ".example", "between the dots"),
    ("nbd://example." + "x" * 64, "between the dots"),
    ("nbd://" + "x." * 128, "at most 253 characters"),
    ("nbds://h?tls-hostname=.example", "between the dots"),
    ("nbds://h?tls-hostname=" + "x" * 64, "between the dots"),
    ("nbds://h?tls-hostname=a%00", "no NUL"),
    ("nbds://h?tls-hostname=%C3%BC..example", "expected a host name"),
    ("nbds://h?tls-hostname=" + "%C3%BC" * 60, "expected a host name"),
    ("nbd://h:x", "expected"),
    ("nbd://h:65536", "port from 0 to 65535"),
    ("nbd://h:99999999999999999999", "port from 0 to 65535"),
    ("nbd://h?socket=/s", "nbd+unix:///?socket=PATH"),
    ("nbds+vsock://2?socket=/s", "nbds+unix:///?socket=PATH"),
    ("nbd://h?sokcet=/s", 'unknown parameter "sokcet"'),
    ("nbd://h?x-a=1&x-a=2", "given twice"),
    ("nbd+unix:///", "?socket=PATH"),
    ("nbd+unix:///?socket=", "?socket=PATH"),
    ("nbd+unix://tmp/s?socket=/s", "with no host"),
    ("nbd+unix://:1/?socket=/s", "with no host"),
    ("nbd+unix:///?socket=/a%00b", "NUL"),
    ("nbd+unix:///?socket=%00", "NUL"),
    ("nbd+unix:///?socket=/" + "x" * 107, "at most 107 bytes, this one 108"),
    ("nbd+vsock://host", "CID from 0"),
    ("nbd+vsock://4294967296", "CID from 0"),
]


@pytest.mark.parametrize(("text", "expected"), BAD, ids=[row[0][:40] for row in BAD])
def test_not_an_nbd_uri(text: str, expected: str) -> None:
    with pytest.raises(UriError, match=re.escape(expected)) as caught:
        parse_nbd_uri(text)
    assert len(str(caught.value)) < 300


def test_longest_name_and_socket_path() -> None:
    assert len(parse_nbd_uri("nbd://h/" + "x" * 4096).export) == 4096
    assert parse_nbd_uri("nbd+unix:///?socket=/" + "x" * 106).socket_path == "/" + "x" * 106
    assert parse_nbd_uri("nbd+unix:///?socket=%00" + "x" * 107).socket_path == "\0" + "x" * 107


def test_export_named() -> None:
    assert parse_nbd_uri("nbd://h/x").export_named
    assert not parse_nbd_uri("nbd://h/").export_named


HOST = r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,20}){0,3}\.?"
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
names = texts.filter(lambda name: len(name.encode()) <= 4096)
paths = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=26
)
parameters = st.dictionaries(texts.map("x-".__add__), texts, max_size=3)
common = {
    "tls": st.booleans(),
    "export": names,
    "username": st.none() | texts,
    "parameters": parameters,
}
uris = st.one_of(
    st.builds(
        tcp,
        host=st.ip_addresses().map(str) | st.from_regex(HOST, fullmatch=True),
        port=st.integers(0, 0xFFFF),
        **common,
    ),
    st.builds(unix, path=paths | paths.map("\0".__add__), **common),
    st.builds(vsock, cid=st.integers(0, 2**32 - 1), port=st.integers(0, 2**32 - 1), **common),
)


@given(uris)
def test_nbd_uri_round_trip(uri: NbdUri) -> None:
    text = str(uri)
    assert parse_nbd_uri(text) == uri
    assert str(parse_nbd_uri(text)) == text
    # RFC 3986's characters, and none that a shell would look at beside "&" and "?".
    assert re.fullmatch(r"[A-Za-z0-9._~:/?@=&%+\[\]-]+", text)


@given(st.text() | st.from_regex(r"nbds?(\+unix|\+vsock)?://.*|memory:.*|file:.*|legacy:.*"))
def test_any_text_parses_or_is_explained(text: str) -> None:
    try:
        target = parse_upstream(text)
    except UriError as error:
        assert error.problem  # noqa: PT017  # any text may be right; then nothing is to be explained
    else:
        assert parse_upstream(str(target)) == target


EMBEDDED: list[tuple[str, Target]] = [
    ("memory:1G", MemoryUri(1 << 30)),
    ("MEMORY:0", MemoryUri(0)),
    ("file:disk.img", FileUri(Path("disk.img"))),
    ("file:/a b/#", FileUri(Path("/a b/#"))),
    ("file:///dev/sdb", FileUri(Path("/dev/sdb"))),
    ("file:////dev/sdb", FileUri(Path("/dev/sdb"))),
    ("legacy:qemu-3.0", Legacy("qemu-3.0", 64 << 20)),
    ("legacy:qemu-3.0,size=1M", Legacy("qemu-3.0", 1 << 20)),
]


@pytest.mark.parametrize(("text", "value"), EMBEDDED, ids=[row[0] for row in EMBEDDED])
def test_embedded(text: str, value: Target) -> None:
    assert parse_upstream(text) == value
    assert parse_upstream(str(value)) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("disk.img", 'a local image is "file:disk.img"'),
        ("qemu", "expected an NBD URI such as"),
        ("memory:", "expected a size such as"),
        ("memory:1G,x", "expected a size such as"),
        ("file:", "expected the path"),
        ("file:a\0", "expected the path"),
        ("file://disk.img", 'write "file:disk.img"'),
        ("legacy:", "expected a server to imitate"),
        ("legacy:../x", "expected a server to imitate"),
        ("legacy:qemu-3.0,", 'expected "size="'),
        ("legacy:qemu-3.0,sise=1M", 'expected "size=" after the comma, got "sise=1M"'),
        ("legacy:qemu-3.0,size=x", "expected a size such as"),
    ],
)
def test_not_embedded(text: str, expected: str) -> None:
    with pytest.raises(UriError, match=re.escape(expected)):
        parse_upstream(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512b", 512),
        ("1k", 1 << 10),
        ("1K", 1 << 10),
        ("3M", 3 << 20),
        ("1g", 1 << 30),
        ("2T", 2 << 40),
        ("2P", 2 << 50),
        ("7E", 7 << 60),
        ("9223372036854775807", MAX_SIZE_BYTES),
    ],
)
def test_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "-1", "+1", "1.5G", "1 G", "1GB", "1GiB", "8E", "0x10", "9" * 5000, "١"]
)
def test_not_a_size(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        parse_size(text)


@given(st.integers(0, MAX_SIZE_BYTES) | st.integers(0, 62).map(lambda n: 1 << n))
def test_size_round_trip(size: int) -> None:
    assert parse_size(format_size(size)) == size

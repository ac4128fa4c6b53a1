"""The readers of what comes as a whole: configurations, URIs, files of keys, certificates."""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from gateway.access.rules import Access
from gateway.access.who import why_not
from gateway.cli.vocabulary import vocabulary
from gateway.config import Config, ConfigError, Problem, Who, parse
from gateway.config.template import TEMPLATE
from gateway.config.texts import decoded
from gateway.tls.errors import CredentialsError, NotAdmitted
from gateway.tls.identity import identity_of
from gateway.tls.issuing import new_authority
from gateway.tls.psk import MAX_KEY_BYTES, MAX_USER_BYTES, MIN_KEY_BYTES, parse_keys
from gateway.tls.purpose import chain_of_a_client
from gateway.tls.revoked import RevokedList, check_not_revoked, comparable, revoked_list
from gateway.uri import UriError, parse_upstream
from tests.fuzz.target import MAX_TEXT_CHARACTERS, Pieces, Target, kind_of

# --- Configurations

_VOCABULARY = vocabulary()


def _read(text: str) -> Config | list[Problem]:
    try:
        return parse(text, "f", _VOCABULARY)
    except ConfigError as error:
        return error.problems


def configuration(pieces: Pieces) -> object:
    """What was meant to be a configuration: read, or every problem of it is told at its line."""
    try:
        text = decoded(b"".join(pieces), "f")
    except ConfigError as error:
        return str(error)
    read = _read(text)
    below = _read(f"#\n{text}")
    if isinstance(read, Config):
        assert below == read
        Access(read)  # whatever policies say of their options has been said
        return read
    assert read
    assert not isinstance(below, Config)
    assert len(below) == len(read)
    # What is missing altogether is told at the first line of both.
    lines = Counter((problem.key, problem.line) for problem in below)
    for problem in read:
        assert str(problem).isprintable()
        assert problem.line is None or 1 <= problem.line <= text.count("\n") + 1
        moved = None if problem.line is None else problem.line + 1
        at = moved if lines[problem.key, moved] else problem.line
        assert lines[problem.key, at], problem
        lines[problem.key, at] -= 1
    return list(map(str, read))


def upstream_uri(pieces: Pieces) -> object:
    """What names a server, as an argument of a command has it: its canonical form means the same."""
    try:
        target = parse_upstream(b"".join(pieces).decode(errors="surrogateescape"))
    except UriError as error:
        str(error).encode()  # can be printed
        return None
    assert parse_upstream(str(target)) == target
    return target


# --- Who somebody is


def _shows_no_key(text: str) -> bool:
    assert not re.search("[0-9A-Fa-f]{32}", text)
    return True


def psk_file(pieces: Pieces) -> object:
    """What was meant to be psktool's file: an error never shows a key."""
    try:
        keys = parse_keys(b"".join(pieces), Path("f"))
    except CredentialsError as error:
        return kind_of(error), _shows_no_key(str(error))
    for user, key in keys.items():
        assert 0 < len(user.encode()) <= MAX_USER_BYTES
        assert MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES
    return keys


_NOW = dt.datetime(2026, 1, 15, 12, tzinfo=dt.UTC)
_DAY = dt.timedelta(days=1)
_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
_CA = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "The CA")])


def _revoked() -> x509.CertificateRevocationList:
    builder = x509.CertificateRevocationListBuilder().issuer_name(_CA)
    one = x509.RevokedCertificateBuilder().serial_number(7).revocation_date(_NOW).build()
    builder = builder.last_update(_NOW).next_update(_NOW + _DAY).add_revoked_certificate(one)
    return builder.sign(_KEY, None)


_CRL = _revoked()
REVOKED = _CRL.public_bytes(Encoding.DER)
_TRUSTED = new_authority(1, _NOW).certificate.public_bytes(Encoding.DER)
_LISTS = (revoked_list(_CRL, []),)
_WHO = [
    Who.model_validate({"certificate": {key: "nobody"}})
    for key in ("cn", "issuer-cn", "san-dns", "san-uri")
]


def certificate(pieces: Pieces) -> object:
    """Garbage where a peer's certificate is (DER)."""
    return _who_it_is(b"".join(pieces))


def names(pieces: Pieces) -> object:
    """A certificate that is well-formed, with whatever can be in names: a byte for the kind, one for the
    length, and the name itself, again and again.
    """
    data = b"".join(pieces)
    subject, alternative = [], []
    while data:
        kind, length = data[0], sum(data[1:2])
        value, data = data[2 : 2 + length], data[2 + length :]
        if kind & 0x80:  # a GeneralName, by its own tag
            alternative.append(_tlv(kind, value))
        else:  # an attribute of the subject: which, and its type of string
            subject.append(_attribute(_OIDS[kind >> 5], kind & 0x1F, value))
    return _who_it_is(_named(b"".join(subject), b"".join(alternative)))


def _would_be_refused(der: bytes) -> None:
    """What can be admitted is not, once it is revoked, and that can be told."""
    one = x509.load_der_x509_certificate(der)
    serials = frozenset({one.serial_number})
    revoked = RevokedList(comparable(one.issuer), "The CA", serials, None, None)
    try:
        check_not_revoked([der], [revoked], _NOW)
    except NotAdmitted as error:
        kind_of(error)
        return
    raise AssertionError("a revoked certificate would be let in")


def _is_no_server(der: bytes) -> None:
    """Nobody whom our CA has not made one is taken for a server, whatever else its certificate is for."""
    try:
        chain_of_a_client([der], [_TRUSTED], "localhost", _NOW)
    except NotAdmitted as error:
        kind_of(error)
        return
    raise AssertionError("somebody else would be taken for the server")


_MAX_WHY_CHARACTERS = 3000
"""Eight names of 80 characters, of which each may be escaped."""


def _who_it_is(der: bytes) -> object:
    """Names are a peer's own words: rules, limits and the log get along with them."""
    _is_no_server(der)
    try:
        check_not_revoked([der], _LISTS, _NOW)
        identity = identity_of(der, None)
    except NotAdmitted as error:
        return kind_of(error)
    _would_be_refused(der)
    said = identity.describe()
    assert said.isprintable()
    assert len(said) <= MAX_TEXT_CHARACTERS
    assert all(isinstance(each, str) for each in identity.key)
    for who in _WHO:
        why = why_not(who, identity)
        assert why is None or (why.isprintable() and len(why) <= _MAX_WHY_CHARACTERS), why
    return identity


def _tlv(tag: int, *content: bytes) -> bytes:
    """DER: a tag, a length, what is in it (X.690)."""
    joined = b"".join(content)
    length = len(joined).to_bytes(2).lstrip(b"\0")
    if len(joined) >= 0x80:
        length = bytes((0x80 + len(length),)) + length
    return bytes((tag,)) + (length or b"\0") + joined


_SEQUENCE, _SET, _OID = 0x30, 0x31, 0x06
_OIDS = (b"\x55\4\3", b"\x55\4\x0a", b"\x55\4\6", b"\x2a\3\4")  # CN, O, C, and nobody's


def _attribute(oid: bytes, tag: int, value: bytes) -> bytes:
    return _tlv(_SET, _tlv(_SEQUENCE, _tlv(_OID, oid), _tlv(tag, value)))


def _named(subject: bytes, alternative: bytes) -> bytes:
    """A certificate (RFC 5280, 4.1) that its own subject has issued; nobody looks at its key and signature."""
    algorithm = _tlv(_SEQUENCE, _tlv(_OID, b"\x2b\x65\x70"))
    name = _tlv(_SEQUENCE, subject)
    extension = _tlv(_OID, b"\x55\x1d\x11"), _tlv(4, _tlv(_SEQUENCE, alternative))
    extensions = _tlv(0xA3, _tlv(_SEQUENCE, _tlv(_SEQUENCE, *extension))) if alternative else b""
    body = _tlv(
        _SEQUENCE,
        _tlv(0xA0, _tlv(2, b"\2")),  # version 3
        _tlv(2, b"\1"),  # serial number
        algorithm,
        name,
        _tlv(_SEQUENCE, *(_tlv(0x17, year + b"0101000000Z") for year in (b"26", b"27"))),
        name,
        _tlv(_SEQUENCE, algorithm, _tlv(3, bytes(33))),
        extensions,
    )
    return _tlv(_SEQUENCE, body, algorithm, _tlv(3, bytes(65)))


# --- What their input is made of

_HEADERS = (
    b'[[listen]]\nuri = "nbd://127.0.0.1:10810"\n[upstream.disks]\nuri = "nbd://10.0.0.5"\n',
    b'[[listen]]\nuri = "nbd://[::1]"\n[upstream.a]\nuri = "legacy:qemu-3.0"\n'
    b'[[export]]\nname = "vm-*"\nupstream = "a"\n[[rule]]\n',
    b"",
)
_LINES = tuple(
    line.removeprefix("#").encode() + b"\n"
    for line in TEMPLATE.splitlines()
    if re.match(r"#?(\[|[a-z.-]+ = )", line)
)

_URIS = (
    b"nbd://host:10809/export",
    b"nbds://joe@[::1]/?tls-certificates=/etc/pki&tls-hostname=x",
    b"nbd+unix:///disk?socket=/run/nbd.sock",
    b"nbd+vsock://2:10809/",
    b"memory:1G",
    b"file:disk.img",
    b"file:///srv/disk.img",
    b"legacy:qemu-3.0,size=64M",
)
_PARTS = (b"%2F", b"%00", b"%", b"/", b"//", b":", b"@", b"?socket=", b"&", b"[::]", b"x-a=b")

_KEYS = (b"joe:" + b"00" * 32 + b"\n", b"#6a6f65:" + b"ff" * 16 + b"\n", b"# not a user\n")


def _certificate(subject: list[x509.NameAttribute[str]], *extensions: x509.ExtensionType) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(_CA)
        .public_key(_KEY.public_key())
        .serial_number(1)
        .not_valid_before(_NOW)
        .not_valid_after(_NOW + _DAY)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(_KEY, None).public_bytes(Encoding.DER)


_JOE = [
    x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
    x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Disks, Inc."),
    x509.NameAttribute(NameOID.COMMON_NAME, "joe"),
]
_NAMES = x509.SubjectAlternativeName(
    [
        x509.DNSName("vm1.example"),
        x509.UniformResourceIdentifier("spiffe://example/vm1"),
        x509.RFC822Name("joe@example.org"),
        x509.IPAddress(ipaddress.ip_address("192.0.2.1")),
        x509.IPAddress(ipaddress.ip_address("2001:db8::1")),
        x509.DirectoryName(_CA),
        x509.RegisteredID(NameOID.COMMON_NAME),
        x509.OtherName(NameOID.COMMON_NAME, b"\x0c\x01x"),
    ]
)
CERTIFICATES = (
    _certificate(_JOE, _NAMES),
    _certificate([], _NAMES),
    _certificate([*_JOE, x509.NameAttribute(NameOID.COMMON_NAME, "x,O=admins")]),
)
_ATTRIBUTES = (b"\x0c\3joe", b"\x2c\5Disks", b"\x53\2DE", b"\x1e\2\0a", b"\x14\1a", b"\3\2\0a")
_GENERAL_NAMES = (
    b"\x82\x0bvm1.example",
    b"\x81\3a@b",
    b"\x86\3a:b",
    b"\x87\4\xc0\0\2\1",
    b"\x87\x10" + bytes(16),
    b"\x88\3\x55\4\3",
    b"\xa4\2\x30\0",
    b"\xa0\7\6\1\x2a\xa0\2\5\0",
)


def _whole(
    run: Callable[[Pieces], object], start: tuple[bytes, ...], messages: tuple[bytes, ...]
) -> Target:
    return Target(run, start, messages, comes_in_pieces=False)


TARGETS = {
    "configuration": _whole(configuration, _HEADERS, _LINES),
    "upstream-uri": _whole(upstream_uri, _URIS, _PARTS),
    "psk-file": _whole(psk_file, (b"", *_KEYS), _KEYS),
    "certificate": _whole(certificate, CERTIFICATES, ()),
    "certificate-names": _whole(names, (b"",), _ATTRIBUTES + _GENERAL_NAMES),
}

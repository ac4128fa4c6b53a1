"""Whom `who` of a rule means: from the text of a configuration to parsed names and addresses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.access.who import why_not
from gateway.config import Who, parse
from gateway.identity import NOBODY, Identity, UnixPeer

SHA = "ab" * 31 + "0f"


def who(written: str) -> Who:
    """`who` as TOML has it."""
    text = f"""
[[listen]]
uri = "nbd://127.0.0.1:1"
tls = "allow"
certificates = "d"
psk = "k"
[[listen]]
uri = "nbd+unix:///?socket=s"
[upstream.disks]
uri = "nbd://127.0.0.1:2"
[[export]]
name = "a"
upstream = "disks"
[[rule]]
who = {{ {written} }}
"""
    return parse(text, "f").rule[0].who


def with_certificate(**names: tuple[str, ...]) -> Identity:
    """A client that TLS has seen the certificate of."""
    identity = Identity("peer", fingerprint=SHA, tls_version="TLSv1.3")
    return replace(identity, **names)  # type: ignore[arg-type] # names are names


def cn(*names: str) -> Identity:
    """A client whose subject has these CNs."""
    return with_certificate(common_names=names)


OVER_TLS = Identity("peer", tls_version="TLSv1.3")
ALICE = replace(OVER_TLS, psk_user="alice")
LOCAL = Identity("unix", unix=UnixPeer(7, 107, 36))
HERE = Identity.at("10.1.2.3", 999)

MEANT: list[tuple[str, Identity]] = [
    ("", NOBODY),
    ("", HERE),
    # certificates
    ("certificate = {}", cn()),
    ('certificate = { cn = "admin" }', cn("admin")),
    ('certificate = { cn = "backup-*" }', cn("backup-7")),
    ('certificate = { cn = "hv-[0-9]" }', cn("hv-7")),
    ('certificate = { cn = ["a", "b"] }', cn("b")),
    ('certificate = { cn = "x,CN=admin" }', cn("x,CN=admin")),
    ('certificate = { cn = "*" }', cn("line\nbreak")),
    ('certificate = { issuer-cn = "CA *" }', with_certificate(issuer_common_names=("CA 1",))),
    ('certificate = { san-dns = "*.Example.COM" }', with_certificate(dns_names=("a.EXAMPLE.com",))),
    ('certificate = { san-dns = "b" }', with_certificate(dns_names=("a", "b"))),
    (
        'certificate = { san-uri = "spiffe://x/backup/*" }',
        with_certificate(uris=("urn:a", "spiffe://x/backup/7")),
    ),
    (f'certificate = {{ fingerprint = "{SHA}" }}', cn()),
    (f'certificate = {{ fingerprint = "{SHA.upper()}" }}', cn("a", "b")),
    (f'certificate = {{ fingerprint = ["{"00:" * 31}00", "{"AB:" * 31}0F"] }}', cn()),
    (
        'certificate = { cn = "a", issuer-cn = "b" }',
        with_certificate(common_names=("a",), issuer_common_names=("b",)),
    ),
    # networks
    ('network = "10.0.0.0/8"', HERE),
    ('network = ["192.0.2.0/24", "10.1.2.3"]', HERE),
    ('network = "10.0.0.0/8"', Identity.at("::ffff:10.1.2.3", 1)),
    ('network = "fe80::/10"', Identity.at("fe80::1%eth0", 1)),
    ('network = "fe80::1"', Identity.at("fe80::1%2", 1)),
    ('network = "::/0"', Identity.at("2001:db8::1", 1)),
    ('network = "0.0.0.0/0"', HERE),
    # the others
    ('psk-user = "alice"', ALICE),
    ('psk-user = ["bob", "al*"]', ALICE),
    ("unix-user = 107", LOCAL),
    ('unix-user = ["root", 107]', LOCAL),
    ('unix-user = "root"', Identity("unix", unix=UnixPeer(7, 0, 0))),
    ("tls = true", OVER_TLS),
    ("tls = false", HERE),
    ("tls = false", LOCAL),
    # all keys
    (
        'network = "10.0.0.0/8", tls = true, psk-user = "a*"',
        replace(HERE, psk_user="alice", tls_version="1"),
    ),
]

NOT_MEANT: list[tuple[str, Identity, str]] = [
    # a name is what the certificate says, whatever it looks like when it is written down
    ('certificate = { cn = "admin" }', cn("x,CN=admin"), 'cn is "x,CN=admin"'),
    ('certificate = { cn = "admin" }', cn("x+CN=admin"), 'cn is "x+CN=admin"'),
    ('certificate = { cn = "admin" }', cn("admin\0"), 'cn is "admin'),
    ('certificate = { cn = "admin" }', cn("ADMIN"), 'cn is "ADMIN"'),
    ('certificate = { cn = "x" }', cn("x,CN=admin"), 'cn is "x,CN=admin"'),
    ('certificate = { cn = "*" }', cn("user", "admin"), "its certificate has 2 names for cn"),
    ('certificate = { cn = ["user", "admin"] }', cn("user", "admin"), "2 names for cn"),
    ('certificate = { cn = "admin" }', cn("admin", "admin"), "2 names for cn"),
    ('certificate = { cn = "*" }', cn(), "its certificate has 0 names for cn"),
    ('certificate = { issuer-cn = "*" }', cn("a"), "0 names for issuer-cn"),
    (
        'certificate = { issuer-cn = "*" }',
        with_certificate(issuer_common_names=("a", "b")),
        "2 names for issuer-cn",
    ),
    (
        'certificate = { issuer-cn = "CA" }',
        with_certificate(common_names=("CA",), issuer_common_names=("X",)),
        'issuer-cn is "X"',
    ),
    # a CN is no DNS name
    ('certificate = { san-dns = "a" }', cn("a"), "it has no san-dns"),
    (
        'certificate = { san-dns = "a" }',
        with_certificate(dns_names=("b", "c")),
        'san-dns is "b", "c"',
    ),
    (  # a certificate may have thousands
        'certificate = { san-dns = "a" }',
        with_certificate(dns_names=("b",) * 1000),
        'san-dns is "b", "b", "b", "b", "b", "b", "b", "b", and 992 more',
    ),
    (
        'certificate = { san-uri = "urn:A" }',
        with_certificate(uris=("urn:a",)),
        'san-uri is "urn:a"',
    ),
    ('certificate = { san-uri = "*" }', with_certificate(dns_names=("a",)), "it has no san-uri"),
    (f'certificate = {{ fingerprint = "{"0" * 64}" }}', cn(), f"fingerprint is {SHA}"),
    (
        'certificate = { cn = "a", issuer-cn = "b" }',
        with_certificate(common_names=("a",), issuer_common_names=("c",)),
        'issuer-cn is "c"',
    ),
    (
        'certificate = { cn = "a", san-uri = "b" }',
        with_certificate(common_names=("x",), uris=("b",)),
        'cn is "x"',
    ),
    ("certificate = {}", OVER_TLS, "it has shown no certificate"),
    ("certificate = {}", ALICE, "it has shown no certificate"),
    ('certificate = { cn = "alice" }', ALICE, "it has shown no certificate"),
    # networks
    ('network = "10.1.2.1"', Identity.at("10.1.2.10", 1), "it comes from 10.1.2.10"),
    ('network = "10.0.0.0/8"', Identity.at("100.1.2.3", 1), "it comes from 100.1.2.3"),
    ('network = "::/0"', Identity.at("::ffff:10.1.2.3", 1), "it comes from 10.1.2.3"),
    ('network = "0.0.0.0/0"', Identity.at("2001:db8::1", 1), "it comes from 2001:db8::1"),
    ('network = ["0.0.0.0/0", "::/0"]', LOCAL, "it has no address"),
    ('network = "10.0.0.0/8"', Identity("10.1.2.3:9"), "it has no address"),  # a text is no proof
    # the others
    ('psk-user = "alice"', OVER_TLS, "it has shown no pre-shared key"),
    ('psk-user = "alice"', cn("alice"), "it has shown no pre-shared key"),
    ('psk-user = "bob*"', ALICE, 'its key is that of "alice"'),
    ("unix-user = 107", HERE, "it does not come over a Unix socket"),
    ("unix-user = 7", LOCAL, "its Unix user is 107"),
    ("tls = true", HERE, "it comes without TLS"),
    ("tls = false", OVER_TLS, "it comes over TLS"),
    # all keys
    ('network = "10.0.0.0/8", tls = true', HERE, "it comes without TLS"),
    ('network = "10.0.0.0/8", tls = true', OVER_TLS, "it has no address"),
    ('certificate = {}, psk-user = "alice"', ALICE, "it has shown no certificate"),
]


@pytest.mark.parametrize(("written", "identity"), MEANT)
def test_meant(written: str, identity: Identity) -> None:
    assert why_not(who(written), identity) is None


@pytest.mark.parametrize(("written", "identity", "why"), NOT_MEANT)
def test_not_meant(written: str, identity: Identity, why: str) -> None:
    said = why_not(who(written), identity)
    assert said is not None
    assert why.replace('"', "'") in said

"""Who a client is: what limits count as the same one, addresses as rules compare them, the log's words."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from gateway.identity import Identity, UnixPeer, parse_address

NAMELESS = Identity("h:1", fingerprint="ab" * 32, issuer_common_names=("The CA",))
JOE = replace(NAMELESS, subject=(("O", "Disks"), ("CN", "joe")), common_names=("joe",))
SPIFFE = replace(NAMELESS, subject=(("O", "SPIRE"),), uris=("spiffe://x/vm1",))


@pytest.mark.parametrize(
    ("identity", "key"),
    [
        (Identity.at("192.0.2.1", 5), ("address", "192.0.2.1")),
        (Identity.at("2001:DB8:0::1", 5), ("address", "2001:db8::1")),
        (Identity("unix:", unix=UnixPeer(7, 1000, 8)), ("unix", "1000")),
        (Identity("3:1024", cid=3), ("vsock", "3")),
        (Identity("somebody"), ("peer", "somebody")),
        (JOE, ("certificate", "issuer=The CA", "O=Disks", "CN=joe")),
        (SPIFFE, ("certificate", "issuer=The CA", "O=SPIRE", "uri=spiffe://x/vm1")),
        (NAMELESS, ("certificate", "issuer=The CA", "sha256=" + "ab" * 32)),
        (replace(JOE, psk_user="ann"), ("psk", "ann")),
        (
            replace(Identity.at("192.0.2.1", 5), unix=UnixPeer(7, 1000, 8)),
            ("unix", "1000"),
        ),
        # TLS by itself proves nothing.
        (replace(Identity.at("192.0.2.1", 5), tls_version="TLSv1.3"), ("address", "192.0.2.1")),
    ],
)
def test_whom_limits_count(identity: Identity, key: tuple[str, ...]) -> None:
    assert identity.key == key


@pytest.mark.parametrize(
    ("identity", "origin"),
    [
        (Identity.at("192.0.2.1", 5), "192.0.2.1"),
        (Identity.at("::ffff:192.0.2.1", 5), "192.0.2.1"),
        (Identity.at("fe80::1%eth0", 5), "fe80::1"),
        (Identity("unix:pid=7,uid=1000", unix=UnixPeer(7, 1000, 8)), "unix:uid=1000"),
        (Identity("3:1024", cid=3), "vsock:3"),
        (Identity("somebody"), "somebody"),
        # Who has many certificates or keys has one place for all of them.
        (replace(JOE, address=parse_address("192.0.2.1"), psk_user="ann"), "192.0.2.1"),
    ],
)
def test_where_it_comes_from(identity: Identity, origin: str) -> None:
    assert identity.origin == origin


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (Identity.at("192.0.2.1", 5), Identity.at("192.0.2.1", 6), True),
        (Identity.at("192.0.2.1", 5), Identity.at("::ffff:192.0.2.1", 5), True),
        (Identity.at("192.0.2.1", 5), Identity.at("192.0.2.2", 5), False),
        (Identity("a", unix=UnixPeer(1, 7, 1)), Identity("b", unix=UnixPeer(2, 7, 2)), True),
        (Identity("3:1024", cid=3), Identity("3:1025", cid=3), True),
        # Renewed, from another place, with a name more.
        (JOE, replace(JOE, peer="h:2", fingerprint="cd" * 32, dns_names=("joe.example",)), True),
        (JOE, replace(JOE, issuer_common_names=("Another CA",)), False),
        (JOE, replace(JOE, subject=(("CN", "joe"),)), False),
        (SPIFFE, replace(SPIFFE, uris=("spiffe://x/vm2",)), False),
        (NAMELESS, replace(NAMELESS, fingerprint="cd" * 32), False),
        # The texts of one kind are never those of another.
        (
            replace(JOE, issuer_common_names=("The CA", "O=Disks"), subject=(("CN", "joe"),)),
            JOE,
            False,
        ),
        (Identity(psk_user="7"), Identity(unix=UnixPeer(1, 7, 1)), False),
    ],
)
def test_the_same_client(one: Identity, other: Identity, same: bool) -> None:
    assert (one.key == other.key) == same


@pytest.mark.parametrize(
    ("host", "address", "peer"),
    [
        ("192.0.2.1", "192.0.2.1", "192.0.2.1:5"),
        ("::ffff:192.0.2.1", "192.0.2.1", "192.0.2.1:5"),
        ("::FFFF:c000:201", "192.0.2.1", "192.0.2.1:5"),
        ("::1", "::1", "[::1]:5"),
        ("fe80::1%eth0", "fe80::1", "[fe80::1%eth0]:5"),
        ("fe80::1%3", "fe80::1", "[fe80::1%3]:5"),
        ("::ffff:0:192.0.2.1", "::ffff:0:c000:201", "[::ffff:0:192.0.2.1]:5"),  # translated
    ],
)
def test_an_address(host: str, address: str, peer: str) -> None:
    identity = Identity.at(host, 5)
    assert (str(identity.address), identity.peer) == (address, peer)
    assert parse_address(host) == identity.address


@pytest.mark.parametrize("text", ["", "localhost", "192.0.2.1:5", "192.0.2.01", "10.0.0.0/8"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 address"):
        parse_address(text)


def test_whether_it_came_over_tls() -> None:
    assert not Identity("h:1").tls
    assert Identity("h:1", tls_version="TLSv1.2").tls


@pytest.mark.parametrize(
    ("identity", "text"),
    [
        (Identity(), "nobody"),
        (Identity.at("::1", 5), "[::1]:5"),
        (Identity("unix:pid=7,uid=8", unix=UnixPeer(7, 8, 9)), "unix:pid=7,uid=8"),
        (Identity("h:1", psk_user="a\nb"), r"psk:a\nb h:1"),
        (JOE, "cn:joe sha256:abababababababab h:1"),
    ],
)
def test_the_words_of_the_log(identity: Identity, text: str) -> None:
    assert identity.describe() == text


def test_a_plain_client_costs_no_parser_of_certificates() -> None:
    """It takes a tenth of a second, and some MiB, to import one."""
    program = "import sys, gateway.clients.client; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

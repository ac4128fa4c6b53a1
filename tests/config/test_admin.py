"""`[admin]`: which addresses there are, and which of them ask for more."""

from __future__ import annotations

import pytest

from gateway.config import Admin, ConfigError, parse
from gateway.config.admin import parse_admin_uri

BASE = """
listen = [ { uri = "nbd+unix:///?socket=/run/nbd" } ]
upstream.main.uri = "nbd://h"
control.socket = "/run/control"
[admin]
"""


def problem(text: str, base: str = BASE) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(base + text, "t")
    return "; ".join(
        each.text if hasattr(each, "text") else str(each) for each in caught.value.problems
    )


def admin(text: str) -> Admin:
    made = parse(BASE + text, "t").admin
    assert made is not None
    return made


def test_it_is_off_unless_it_is_there() -> None:
    assert parse(BASE.replace("[admin]", ""), "t").admin is None
    made = admin("")
    assert [str(uri) for uri in made.uri] == ["http://127.0.0.1:10811"]
    assert made.socket_mode == 0o600


@pytest.mark.parametrize(
    ("written", "canonical", "private"),
    [
        ("http://127.0.0.1", "http://127.0.0.1:10811", True),
        ("http://localhost:80/", "http://localhost:80", True),
        ("http://127.1.2.3:0", "http://127.1.2.3:0", True),
        ("http://[::1]:80", "http://[::1]:80", True),
        ("http://[::ffff:127.0.0.1]:80", "http://[::ffff:127.0.0.1]:80", True),
        ("https://gw.example:443", "https://gw.example:443", False),
        ("http://0.0.0.0", "http://0.0.0.0:10811", False),
        ("http://[::]", "http://[::]:10811", False),
        ("http://127.evil.example", "http://127.evil.example:10811", False),
        ("http+unix:///run/admin", "http+unix:///run/admin", True),
    ],
)
def test_an_address(written: str, canonical: str, private: bool) -> None:
    uri = parse_admin_uri(written)
    assert (str(uri), uri.is_private) == (canonical, private)
    assert parse_admin_uri(canonical) == uri


@pytest.mark.parametrize(
    "written",
    [
        *("", "127.0.0.1:80", "ftp://h", "http://", "http://h:x", "http://h:70000", "http://u@h"),
        *("http://h/path", "http://h?q", "http://h#f", "http+unix://run", "http+unix:///a?b"),
        *("https+unix:///a", "http://a_b", "http://[::1", "http+unix:///" + "x" * 200),
    ],
)
def test_what_is_no_address(written: str) -> None:
    with pytest.raises(ValueError, match=r"expected|byte"):
        parse_admin_uri(written)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('uri = "http://0.0.0.0"', "could be anybody: it needs tokens, or https with clients'"),
        ('uri = ["http://127.0.0.1", "http://10.0.0.1"]', "http://10.0.0.1:10811 could be anybody"),
        (
            'uri = "https://h"\ncertificates = "c"\nverify-client = false',
            "could be anybody: it needs tokens",
        ),
        ('uri = "https://h"\ntokens = "t"', 'needs certificates = "DIRECTORY"'),
        ('certificates = "c"', "this is for an address with https:"),
        ("verify-client = true", "this is for an address with https:"),
        ('socket-mode = "0660"', "only a Unix socket has this"),
        ('uri = "http+unix:///run/control"', "is taken"),
        ('uri = "http+unix:///run/nbd"', "is taken"),
        ('uri = ["http://127.0.0.1:1", "http://127.0.0.1:1"]', "is there already"),
        ('hosts = "a_b"', 'expected a name such as "gateway.example.com"'),
        ('socket-mode = "9"', "expected octal digits"),
        ("uri = []", "expected text in quotes or a list of it"),
        ("port = 1", "unknown key"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    assert says in problem(text)


@pytest.mark.parametrize(
    "text",
    [
        'uri = "http://0.0.0.0"\ntokens = "t"',
        'uri = "https://h"\ncertificates = "c"',
        'uri = "https://h"\ncertificates = "c"\nverify-client = false\ntokens = "t"',
        'uri = ["http://127.0.0.1:0", "http://127.0.0.1:0"]',
        'uri = "http+unix:///run/admin"\nsocket-mode = "0660"',
        'hosts = ["Gw.example", "other"]',
    ],
)
def test_what_is_taken(text: str) -> None:
    assert admin(text)


def test_a_server_that_is_required_has_to_be_looked_at() -> None:
    base = BASE.replace("[admin]", "upstream.main.required = true\n[admin]")
    assert "nobody would notice that it is down" in problem("", base)
    base = base.replace(
        "required = true", "required = true\nupstream.main.health-check-seconds = 5"
    )
    assert parse(base, "t").upstream["main"].required
    embedded = (
        'listen = [ { uri = "nbd://h" } ]\nupstream.m = { uri = "memory:1M", required = true }'
    )
    assert parse(embedded, "t").upstream["m"].required

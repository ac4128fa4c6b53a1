import json
import os
import re
import socket
import tomllib
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.vocabulary import vocabulary
from gateway.config import (
    Certificate,
    Config,
    ConfigError,
    Connections,
    Rule,
    SocketOwner,
    Use,
    Who,
    load,
    parse,
    schema,
    texts,
)
from gateway.config.models import HANDSHAKE_FLAGS
from gateway.config.template import TEMPLATE
from gateway.uri import NbdUri, parse_nbd_uri, parse_upstream
from gateway.wire.constants import HandshakeFlag

LISTEN = '[[listen]]\nuri = "nbd://127.0.0.1:10810"\n'
UPSTREAM = '[upstream.disks]\nuri = "nbd://10.0.0.5"\n'
SMALLEST = LISTEN + UPSTREAM

FULL = """
drain-seconds = 1.5
[[listen]]
uri = "nbd+unix:///?socket=/run/g.sock"
max-connections = 7
handshake-seconds = 2
socket-mode = "0660"
socket-owner = "nbd:disk"
proxy-protocol = ["unix"]
[[listen]]
uri = "nbd://0.0.0.0"
keepalive-seconds = 0
user-timeout-seconds = 9
handshake-flags = ["NO_ZEROES"]
proxy-protocol = ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32"]
[[listen]]
uri = "nbd://0.0.0.0:1"
style = "oldstyle"
export = "vm-1"
[upstream.disks]
uri = "nbd://10.0.0.5:10809"
connect-seconds = 0.5
negotiate-seconds = 6
keepalive-seconds = 5
user-timeout-seconds = 4
quirks = ["a", "b"]
connections = "shared:4"
connections-required = true
stripe = "4M"
reconnect-seconds = 0.5
unflushed = "replay"
sole-writer = true
replay-bytes = "64M"
unknown-writes = "eio"
late-write-seconds = 0
stall-seconds = 5
health-check-seconds = 60
[upstream.peer]
uri = "nbd+unix:///?socket=/run/q.sock"
server-is-peer = true
[upstream.local]
command = ["qemu-nbd", "-t", "x y"]
quirks = []
warm = 1
[[export]]
name = "vm-*"
upstream = "disks"
upstream-name = "disk0"
description = "VM disk"
[[export]]
name = ""
upstream = "local"
[log]
level = "debug"
format = "json"
"""


def test_every_key_arrives() -> None:
    config = parse(FULL, "f")
    assert config.drain_seconds == 1.5
    unix, tcp, old = config.listen
    assert unix.uri == parse_nbd_uri("nbd+unix:///?socket=/run/g.sock")
    assert (unix.max_connections, unix.handshake_seconds) == (7, 2)
    assert (unix.socket_mode, unix.socket_owner) == (0o660, SocketOwner("nbd", "disk"))
    assert (tcp.keepalive_seconds, tcp.user_timeout_seconds) == (0, 9)
    assert tcp.uri == parse_nbd_uri("nbd://0.0.0.0:10809")
    assert (tcp.style, tcp.handshake_flags) == ("newstyle", ("NO_ZEROES",))
    assert unix.proxy_protocol == ("unix",)
    networks = (ip_network("10.0.0.0/8"), ip_network("192.0.2.1"), ip_network("2001:db8::/32"))
    assert (tcp.proxy_protocol, old.proxy_protocol) == (networks, None)
    assert (old.style, old.export) == ("oldstyle", "vm-1")
    disks, local = config.upstream["disks"], config.upstream["local"]
    assert (disks.uri, disks.command) == (parse_nbd_uri("nbd://10.0.0.5"), None)
    assert (disks.connect_seconds, disks.negotiate_seconds) == (0.5, 6)
    assert (disks.keepalive_seconds, disks.user_timeout_seconds) == (5, 4)
    assert (disks.quirks, local.quirks) == (("a", "b"), ())
    assert (local.uri, local.command) == (None, ("qemu-nbd", "-t", "x y"))
    assert (disks.connections, disks.connections_required) == (Connections(True, 4), True)
    assert (disks.stripe, disks.coherence) == (4 << 20, "flush")
    assert (disks.reconnect_seconds, disks.unflushed, disks.sole_writer) == (0.5, "replay", True)
    assert (disks.replay_bytes, disks.unknown_writes) == (64 << 20, "eio")
    assert (disks.late_write_seconds, disks.stall_seconds) == (0, 5)
    assert (local.warm, disks.health_check_seconds) == (1, 60)
    assert (config.upstream["peer"].server_is_peer, disks.server_is_peer) == (True, False)
    vm, default = config.export
    assert (vm.name, vm.upstream, vm.upstream_name) == ("vm-*", "disks", "disk0")
    assert vm.description == "VM disk"
    assert (default.name, default.upstream, default.upstream_name) == ("", "local", None)
    assert (config.log.level, config.log.format) == ("debug", "json")


@pytest.mark.parametrize("key", schema()["properties"])
@pytest.mark.parametrize(
    "text", ["[{}]\nzzzzzz = 1\n", "[[{}]]\nzzzzzz = 1\n", "{} = 5\n", "{} = []"]
)
def test_whatever_stands_below_a_key_is_told_in_words(key: str, text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text.format(key), "t")


def test_defaults() -> None:
    config = parse(SMALLEST, "f")
    assert config.drain_seconds == 30
    assert (config.log.level, config.log.format) == ("info", "console")
    [listen] = config.listen
    assert (listen.max_connections, listen.handshake_seconds) == (1000, 10)
    assert (listen.socket_mode, listen.socket_owner) == (None, None)
    assert (listen.keepalive_seconds, listen.user_timeout_seconds) == (60, 60)
    assert (listen.style, listen.export) == ("newstyle", "")
    assert listen.handshake_flags == ("FIXED_NEWSTYLE", "NO_ZEROES")
    upstream = config.upstream["disks"]
    assert (upstream.connect_seconds, upstream.negotiate_seconds) == (10, 30)
    assert (upstream.keepalive_seconds, upstream.user_timeout_seconds) == (60, 60)
    assert upstream.quirks == "auto"
    assert (upstream.connections, upstream.connections_required) == (Connections(False, 1), False)
    assert (upstream.stripe, upstream.coherence) == (1 << 20, "flush")
    assert (upstream.reconnect_seconds, upstream.unflushed) == (60, "sticky")
    assert (upstream.sole_writer, upstream.replay_bytes) == (False, 256 << 20)
    assert (upstream.unknown_writes, upstream.late_write_seconds) == ("reissue", 30)
    assert (upstream.stall_seconds, upstream.warm, upstream.health_check_seconds) == (0, 0, 0)


@pytest.mark.parametrize(
    ("written", "shared", "count", "said"),
    [
        ('"per-client"', False, 1, "per-client"),
        ("1", False, 1, "per-client"),
        ("2", False, 2, "2"),
        ("16", False, 16, "16"),
        ('"shared"', True, 1, "shared"),
        ('"shared:1"', True, 1, "shared"),
        ('"shared:16"', True, 16, "shared:16"),
    ],
)
def test_connections(written: str, shared: bool, count: int, said: str) -> None:
    found = parse(f"{SMALLEST}connections = {written}\n", "f").upstream["disks"].connections
    assert (found, str(found)) == (Connections(shared, count), said)


@pytest.mark.parametrize("target", ["memory:1M", "file:disk.img", "legacy:qemu-3.0", "nbd://h"])
@pytest.mark.parametrize("written", ["4", '"shared"', '"shared:4"'])
def test_any_server_may_be_asked_for_connections(target: str, written: str) -> None:
    parse(f'{LISTEN}[upstream.disks]\nuri = "{target}"\nconnections = {written}\n', "f")


@pytest.mark.parametrize(
    "keys",
    [
        'connections = "shared"\nunflushed = "verify"',
        'connections = "shared:2"\nunflushed = "verify"\nsole-writer = true',
        'unflushed = "assume-durable"\nreconnect-seconds = 0',
        "connections = 4\nmax-connections = 4\nwarm = 0",
        "connections = 'shared'\nmax-connections = 4\nwarm = 4",
        'connections = 4\ncoherence = "strong"',
        "sole-writer = true",
        "stripe = 1048576\nconnections = 2",
    ],
)
def test_connections_that_make_sense(keys: str) -> None:
    parse(f"{SMALLEST}{keys}\n", "f")


@pytest.mark.parametrize(
    ("listen", "mode"),
    [
        ('uri = "nbd://h"', "off"),
        ('uri = "nbd://h"\ntls = "off"', "off"),
        ('uri = "nbd://h"\ntls = "allow"\ncertificates = "d"', "allow"),
        ('uri = "nbd://h"\ntls = "require"\npsk = "k"', "require"),
        ('uri = "nbds://h"\ncertificates = "d"\npsk = "k"\nverify-client = false', "require"),
        ('uri = "nbds+unix:///?socket=s"\ntls = "require"\npsk = "k"', "require"),
    ],
)
def test_modes_of_tls(listen: str, mode: str) -> None:
    config = parse(f"[[listen]]\n{listen}\n{UPSTREAM}", "f")
    assert config.listen[0].tls_mode == mode


@pytest.mark.parametrize(
    "upstream",
    [
        'uri = "nbds://h"',
        'uri = "nbds://h"\ncertificates = "d"',
        'uri = "nbds://h"\npsk = "k"\npsk-user = "u"',
        'uri = "nbds://u@h"\npsk = "k"',
        'uri = "nbds://h?tls-psk-file=k"\npsk-user = "u"',
        'uri = "nbds://u@h?tls-psk-file=k&tls-verify-peer=false"',
        'uri = "nbds://h?tls-hostname=a.example"\ncertificates = "d"',
    ],
)
def test_upstreams_over_tls(upstream: str) -> None:
    assert parse(f"{LISTEN}[upstream.a]\n{upstream}\n", "f").upstream["a"].secure


def test_an_export_for_tls_needs_one_listener_that_has_it() -> None:
    tls = '[[listen]]\nuri = "nbds://h"\npsk = "k"\n'
    export = '[[export]]\nname = "{}"\nupstream = "disks"\n'
    text = LISTEN + tls + UPSTREAM + export.format("a") + 'tls = "require"\n' + export.format("b")
    config = parse(text, "f")
    assert [rule.tls_required for rule in (config.route("a"), config.route("b")) if rule] == [
        True,
        False,
    ]


def test_handshake_flags_have_their_names_of_the_protocol() -> None:
    assert list(HANDSHAKE_FLAGS) == [flag.name for flag in HandshakeFlag]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("[]", ()),
        ('["NO_ZEROES", "FIXED_NEWSTYLE", "NO_ZEROES"]', ("FIXED_NEWSTYLE", "NO_ZEROES")),
    ],
)
def test_handshake_flags(written: str, expected: tuple[str, ...]) -> None:
    config = parse(f"{LISTEN}handshake-flags = {written}\n{UPSTREAM}", "f")
    assert config.listen[0].handshake_flags == expected


@pytest.mark.parametrize("uri", ["memory:1G", "file:disk.img", "legacy:qemu-3.0"])
def test_embedded_upstream(uri: str) -> None:
    config = parse(f'{LISTEN}[upstream.x]\nuri = "{uri}"\n', "f")
    assert config.upstream["x"].uri == parse_upstream(uri)


@pytest.mark.parametrize(
    ("owner", "expected"),
    [("u", ("u", None)), ("u:g", ("u", "g")), (":g", (None, "g"))],
)
def test_socket_owner(owner: str, expected: tuple[str, str]) -> None:
    text = f'[[listen]]\nuri = "nbd+unix:///?socket=s"\nsocket-owner = "{owner}"\n{UPSTREAM}'
    assert parse(text, "f").listen[0].socket_owner == SocketOwner(*expected)


def test_two_listeners_that_take_any_port() -> None:
    any_port = LISTEN.replace("10810", "0")
    assert len(parse(any_port + any_port + UPSTREAM, "f").listen) == 2


# ---- routes ----

EXPORTS = """
[[export]]
name = "vm-1"
upstream = "disks"
upstream-name = ""
[[export]]
name = "vm-*"
upstream = "disks"
description = "some"
[[export]]
name = "a[*]b"
upstream = "disks"
upstream-name = "star"
"""


@pytest.mark.parametrize(
    ("exports", "upstream", "name", "expected"),
    [
        # the first match wins
        (EXPORTS, "nbd://h", "vm-1", ("", None)),
        (EXPORTS, "nbd://h", "vm-12", ("vm-12", "some")),
        (EXPORTS, "nbd://h", "vm-", ("vm-", "some")),
        (EXPORTS, "nbd://h", "VM-1", None),
        (EXPORTS, "nbd://h", "", None),
        (EXPORTS, "nbd://h", "a*b", ("star", None)),
        (EXPORTS, "nbd://h", "axb", None),
        # no [[export]]: everything passes
        ("", "nbd://h", "x", ("x", None)),
        ("", "nbd://h", "", ("", None)),
        ("", "nbd://h", "a\nb*", ("a\nb*", None)),
        ("", "memory:1M", "x", ("x", None)),
        # ... but a URI that names an export offers that one, and as the default
        ("", "nbd://h/d0", "d0", ("d0", None)),
        ("", "nbd://h/d0", "", ("d0", None)),
        ("", "nbd://h/d0", "x", None),
        ("", "nbd://h/d%2A", "d*", ("d*", None)),
        ("", "nbd://h/d%2A", "d0", None),
        # ... also to those that [[export]] leads there
        ('[[export]]\nname="v*"\nupstream="disks"\n', "nbd://h/d0", "vm", ("d0", None)),
        ('[[export]]\nname="v*"\nupstream="disks"\n', "nbd://h/d0", "d0", None),
    ],
)
def test_route(exports: str, upstream: str, name: str, expected: tuple[str, str] | None) -> None:
    config = parse(f'{LISTEN}[upstream.disks]\nuri = "{upstream}"\n{exports}', "f")
    route = config.route(name)
    assert (route and (route.upstream_name, route.description)) == expected
    assert route is None or route.upstream == "disks"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_a_named_export_is_no_pattern(name: str) -> None:
    uri = NbdUri(False, parse_nbd_uri("nbd://h").transport, host="h", port=1, export=name)
    config = parse(f'{LISTEN}[upstream.x]\nuri = "{uri}"\n', "f")
    named, default = config.exports
    assert (named.exact_name, default.exact_name) == (name, "")
    assert config.route(name)
    assert config.route(name + "x") is None


@pytest.mark.parametrize(
    ("pattern", "exact"),
    [
        ("", ""),
        ("a", "a"),
        ("*", None),
        ("a?", None),
        ("d[1]", None),
        ("d[*]", "d*"),
        ("d[1", "d[1"),
    ],
)
def test_exact_name(pattern: str, exact: str | None) -> None:
    config = parse(f'{SMALLEST}[[export]]\nname="{pattern}"\nupstream="disks"\n', "f")
    assert config.export[0].exact_name == exact


OLD = '[[listen]]\nuri = "nbd://h"\nstyle = "oldstyle"\n'


@pytest.mark.parametrize(
    ("export", "rest"),
    [
        ("", UPSTREAM),
        ("x", UPSTREAM),
        ("", '[upstream.disks]\nuri = "nbd://h:1/x"\n'),
        ("x", '[upstream.disks]\nuri = "nbd://h:1/x"\n'),
        ("vm-1", UPSTREAM + EXPORTS),
        ("vm-x", UPSTREAM + EXPORTS),
        ("a*b", UPSTREAM + EXPORTS),
    ],
)
def test_oldstyle_exports_that_lead_somewhere(export: str, rest: str) -> None:
    config = parse(f'{OLD}export = "{export}"\n{rest}', "f")
    assert config.route(config.listen[0].export)


# ---- rules ----


def test_every_key_of_a_rule_arrives() -> None:
    text = f"""{RULED}
policies = [ {{ use = "readonly", mode = "observe" }}, {{ use = "window", offset = "1M" }} ]
hide = true
[[rule]]
name = "all"
who.certificate.cn = "backup-*"
who.certificate.issuer-cn = ["CA", "CB"]
who.certificate.san-dns = "*.Example"
who.certificate.san-uri = "spiffe://x/*"
who.certificate.fingerprint = "{"AB:" * 31}cd"
who.network = ["10.0.0.0/8", "2001:db8::5"]
who.psk-user = "u*"
who.unix-user = ["root", 107]
who.tls = false
exports = "a"
policies = [ {{ use = "readonly" }} ]
mode = "observe"
[[rule]]
deny = true
hide = true
disconnect = true
"""
    config = parse(text, "f", vocabulary())
    [export] = config.export
    assert export.policies == (Use("readonly", observed=True), Use("window", {"offset": "1M"}))
    assert [dict(use.options) for use in export.policies] == [{}, {"offset": "1M"}]
    assert export.hide
    route = config.route("a")
    assert route is not None
    assert (route.uses, route.hide) == (export.policies, True)
    rule, last = config.rule
    assert rule.who.certificate == Certificate.model_validate(
        {
            "cn": "backup-*",
            "issuer-cn": ["CA", "CB"],
            "san-dns": ["*.example"],
            "san-uri": ["spiffe://x/*"],
            "fingerprint": "ab" * 31 + "cd",
        },
    )
    assert rule.who.network == (ip_network("10.0.0.0/8"), ip_network("2001:db8::5"))
    assert (rule.who.psk_user, rule.who.unix_user, rule.who.tls) == (("u*",), (0, 107), False)
    assert (rule.name, rule.exports, rule.mode) == ("all", ("a",), "observe")
    assert rule.policies == (Use("readonly"),)
    assert (last.deny, last.hide, last.disconnect) == (True, True, True)
    assert (last.who, last.exports, last.mode) == (Who(), ("*",), "enforce")


@pytest.mark.parametrize(
    "rules",
    [
        # what need not hold, or is only observed, leaves room for another one
        'policies = [ { use = "schedule", days = ["mon"] } ]\n[[rule]]\n',
        'deny = true\nmode = "observe"\n[[rule]]\n',
        'who.network = "10.0.0.0/8"\n[[rule]]\nwho.network = "10.0.0.0/9"\n[[rule]]\n',
        'exports = "a"\n[[rule]]\nexports = ["a", "*"]\n',
        # of use to who is denied
        'deny = true\npolicies = [ { use = "schedule", days = ["mon"] } ]\n',
        'deny = true\npolicies = [ { use = "audit", file = "f" } ]\n',
        # an exact name may look like a pattern
        'exports = ["v[*]", "v[*]*"]\n[[export]]\nname = "v[*]"\nupstream = "disks"\n',
        'exports = ["*", ""]\n[[export]]\nname = ""\nupstream = "disks"\n',
    ],
)
def test_rules_that_make_sense(rules: str) -> None:
    assert parse(f"{RULED}[[rule]]\n{rules}", "f", vocabulary()).rule


@pytest.mark.parametrize(
    "rest",
    [
        '[[export]]\nname = "vm-*"\nupstream = "named"\n[[rule]]\nexports = ["vm-7", "*-8", "a"]\n',
        # which names are denied here is not known to be a mistake
        '[[export]]\nname = "?*"\nupstream = "named"\n[[rule]]\n'
        'policies = [ { use = "exports", deny = ["secret"] } ]\n',
        # it has its own name there, or one that the pattern does not let through
        '[[export]]\nname = "b"\nupstream = "named"\n[[export]]\nname = "c"\nupstream = "named"\n'
        'upstream-name = "d"\n[[export]]\nname = "[e-z]*"\nupstream = "named"\n[[rule]]\n',
        # both names are listed, so rules can mean both
        '[[export]]\nname = "b"\nupstream = "named"\n[[export]]\nname = "c"\nupstream = "named"\n'
        'upstream-name = "b"\n[[export]]\nname = "*"\nupstream = "named"\n[[rule]]\n',
        # another server's disk
        '[[export]]\nname = "b"\nupstream = "disks"\nupstream-name = "c"\n[[export]]\nname = "*"\n'
        'upstream = "named"\n[[rule]]\n',
    ],
)
def test_patterns_beside_rules(rest: str) -> None:
    named = '[upstream.named]\nuri = "nbd://10.0.0.6"\ncanonical-names = true\n'
    assert parse(f"{RULED}{named}{rest}", "f", vocabulary()).rule


# ---- problems ----

UNIX = '[[listen]]\nuri = "nbd+unix:///?socket=s"\n'
EXPORT = '[[export]]\nname = "a"\nupstream = "disks"\n'
OLDSTYLE = '[[listen]]\nuri = "nbd://127.0.0.1:10811"\nstyle = "oldstyle"\n'
SECURE = LISTEN + 'tls = "require"\n'
NEEDS = (
    'TLS needs certificates = "DIRECTORY", or psk = "FILE" (nbd-gateway pki init DIRECTORY makes some to try '
    "things out)"
)
RULED = (
    '[[listen]]\nuri = "nbd://127.0.0.1:10810"\ntls = "require"\ncertificates = "d"\npsk = "k"\n'
    '[[listen]]\nuri = "nbd+unix:///?socket=s"\n'
    '[[listen]]\nuri = "nbd://127.0.0.1:10811"\nmax-connections = 9\nhandshake-seconds = 9\n'
    + UPSTREAM
    + EXPORT
)
"""16 lines, to which rules may be added that ask for anything."""
NOT_BOTH = "a server is reached with certificates or with a pre-shared key, not with both"

CONNECTIONS_EXPECTED = (
    'expected "per-client", "shared", a number of 1 to 16, or "shared:4" and the like'
)

# text -> the lines that a user sees, each without "f:"
PROBLEMS: list[tuple[str, str, list[str]]] = [
    (
        "empty",
        "",
        [
            '1: listen: at least one is needed: [[listen]] with uri = "nbd://127.0.0.1:10810"',
            '1: upstream: at least one is needed: [upstream.NAME] with uri = "nbd://HOST"',
        ],
    ),
    (
        "empty lists",
        "listen = []\nupstream = {}\n",
        [
            '1: listen: at least one is needed: [[listen]] with uri = "nbd://127.0.0.1:10810"',
            '2: upstream: at least one is needed: [upstream.NAME] with uri = "nbd://HOST"',
        ],
    ),
    (
        "unknown keys",
        'listn = 1\nlevel = "info"\nzzzzzz = 1\n'
        + LISTEN
        + "max_connections = 1\ndrain-seconds = 3\n"
        + UPSTREAM
        + 'commmand = ["x"]\n[log]\nformt = 1\nuri = 1\n',
        [
            '1: listn: unknown key, did you mean "listen"?',
            "2: level: unknown key here, it belongs into [log]",
            "3: zzzzzz: unknown key; known are listen, upstream, export, rule, include, user, group,"
            " leave-seconds, drain-seconds, workers, log, control, admin, tickets, fleet",
            '6: listen.max_connections: unknown key, did you mean "max-connections"?',
            "7: listen.drain-seconds: unknown key here, it belongs to the top of the file, "
            "above all headers",
            '10: upstream.disks.commmand: unknown key, did you mean "command"?',
            '12: log.formt: unknown key, did you mean "format"?',
            "13: log.uri: unknown key here, it belongs into [[listen]]",
        ],
    ),
    (
        "headers that nobody knows",
        SMALLEST + "[[exports]]\nname = 'a'\n[[listens]]\n[upstreams.a]\n[Rule]\n",
        [
            '5: exports: unknown key, did you mean "export"?',
            '7: listens: unknown key, did you mean "listen"?',
            '8: upstreams: unknown key, did you mean "upstream"?',
            '9: Rule: unknown key, did you mean "rule"?',
        ],
    ),
    (
        "exports at the top",
        "exports = ['a']\n" + SMALLEST,
        ["1: exports: unknown key here, it belongs into [[rule]]"],
    ),
    (
        "an upstream without a name",
        LISTEN + '[upstream.""]\nuri = "nbd://h"\n',
        ['3: upstream."": an upstream has a name, which the log knows it by: [upstream.NAME]'],
    ),
    ("no uri", "[[listen]]\n" + UPSTREAM, ["1: listen.uri: has to be given"]),
    (
        "export without anything",
        SMALLEST + "[[export]]\n",
        ["5: export.name: has to be given", "5: export.upstream: has to be given"],
    ),
    (
        "wrong types",
        'drain-seconds = "3"\n[[listen]]\nuri = 3\nmax-connections = "1"\nhandshake-seconds = true\n'
        "keepalive-seconds = 1.5\n[upstream.disks]\nuri = []\nquirks = 3\n"
        "[[export]]\nname = 1979-05-27\nupstream = {}\n[log]\nlevel = 1\n",
        [
            '1: drain-seconds: expected a number, got "3"',
            "3: listen.uri: expected text in quotes, got 3",
            '4: listen.max-connections: expected a whole number, got "1"',
            "5: listen.handshake-seconds: expected a number, got true",
            "6: listen.keepalive-seconds: expected a whole number, got 1.5",
            "8: upstream.disks.uri: expected text in quotes, got an empty list",
            '9: upstream.disks.quirks: expected "auto" or a list of names, got 3',
            "11: export.name: expected text in quotes, got 1979-05-27",
            "12: export.upstream: expected text in quotes, got a table",
            '14: log.level: expected "debug", "info", "warning" or "error", got 1',
        ],
    ),
    (
        "wrong shapes",
        "listen = 1\nlog = 2\n[upstream]\nuri = 'memory:1M'\n[export]\nname = 'x'\n",
        [
            "1: listen: expected [[listen]], got 1",
            "2: log: expected [log], got 2",
            "4: upstream.uri: expected a table; every upstream has a name: [upstream.NAME], "
            'got "memory:1M"',
            "5: export: expected [[export]], got a table",
        ],
    ),
    (
        "arrays of the wrong things",
        "listen = [1]\nexport = ['x']\n[[upstream]]\n",
        [
            "1: listen: expected [[listen]], got 1",
            '2: export: expected [[export]], got "x"',
            "3: upstream: expected [upstream.NAME], got a list",
        ],
    ),
    (
        "numbers out of range",
        "drain-seconds = -1\n" + LISTEN + "max-connections = 0\nhandshake-seconds = 0\n"
        "keepalive-seconds = 40000\nuser-timeout-seconds = -1\n"
        + UPSTREAM
        + "connect-seconds = inf\nnegotiate-seconds = nan\n",
        [
            "1: drain-seconds: expected 0 or more, got -1",
            "4: listen.max-connections: expected 1 or more, got 0",
            "5: listen.handshake-seconds: expected more than 0, got 0",
            "6: listen.keepalive-seconds: expected 32767 or less, got 40000",
            "7: listen.user-timeout-seconds: expected 0 or more, got -1",
            "10: upstream.disks.connect-seconds: expected a number, got inf",
            "11: upstream.disks.negotiate-seconds: expected a number, got nan",
        ],
    ),
    (
        "numbers that are much too large",
        LISTEN + "max-connections = 1000001\nhandshake-seconds = 86400.5\n" + UPSTREAM,
        [
            "3: listen.max-connections: expected 1000000 or less, got 1000001",
            "4: listen.handshake-seconds: expected 86400 or less, got 86400.5",
        ],
    ),
    (
        "log",
        SMALLEST + '[log]\nlevel = "trace"\nformat = "xml"\n',
        [
            '6: log.level: expected "debug", "info", "warning" or "error", got "trace"',
            '7: log.format: expected "console" or "json", got "xml"',
        ],
    ),
    (
        "TLS",
        '[[listen]]\nuri = "nbds://h"\n[upstream.a]\nuri = "nbd://i?tls-type=psk"\n',
        [
            '2: listen.uri: TLS needs certificates = "DIRECTORY", or psk = "FILE" (nbd-gateway pki init '
            "DIRECTORY makes some to try things out)",
            '4: upstream.a.uri: "nbd://i?tls-type=psk": "tls-type" goes with nbds: only, which is NBD '
            "over TLS",
        ],
    ),
    (
        "TLS without anything to show",
        SECURE.replace("require", "allow") + UPSTREAM,
        [f"3: listen.tls: {NEEDS}"],
    ),
    (
        "TLS contradicts the URI",
        '[[listen]]\nuri = "nbds://h"\ntls = "off"\n[[listen]]\nuri = "nbds://i"\ntls = "allow"\n'
        'certificates = "d"\n' + UPSTREAM,
        [
            '3: listen.tls: tls = "off" contradicts nbds://h:10809, which is TLS from the beginning',
            '6: listen.tls: tls = "allow" contradicts nbds://i:10809, which is TLS from the beginning',
        ],
    ),
    (
        "what is for TLS, without it",
        LISTEN + 'certificates = "d"\npsk = "k"\nverify-client = false\n' + UPSTREAM,
        [
            f'{line}: listen.{key}: this is for TLS: add tls = "require", or "allow"'
            for line, key in ((3, "certificates"), (4, "psk"), (5, "verify-client"))
        ],
    ),
    (
        "keys and no certificates to look at",
        SECURE + 'psk = "k"\nverify-client = true\n' + UPSTREAM,
        ["5: listen.verify-client: clients' certificates are only looked at with certificates"],
    ),
    (
        "TLS where nobody can ask for it",
        SECURE
        + 'certificates = "d"\nstyle = "oldstyle"\n'
        + SECURE.replace("10810", "1")
        + 'certificates = "d"\nhandshake-flags = ["NO_ZEROES"]\n'
        + UPSTREAM,
        [
            "3: listen.tls: oldstyle clients have no TLS",
            "10: listen.handshake-flags: TLS begins with an option, which needs FIXED_NEWSTYLE",
        ],
    ),
    (
        "values of TLS",
        LISTEN + 'tls = true\nverify-client = "no"\n' + UPSTREAM + EXPORT + 'tls = "allow"\n',
        [
            '3: listen.tls: expected "off", "allow" or "require", got true',
            '4: listen.verify-client: expected true or false, got "no"',
            '4: listen.verify-client: this is for TLS: add tls = "require", or "allow"',
            '10: export.tls: expected "require", got "allow"',
        ],
    ),
    (
        "upstreams without TLS",
        LISTEN + UPSTREAM + 'certificates = "d"\npsk = "k"\npsk-user = "u"\n',
        [f"3: upstream.disks: {NOT_BOTH}"]
        + [
            f"{line}: upstream.disks.{key}: this is for servers with an nbds: URI"
            for line, key in ((5, "certificates"), (6, "psk"), (7, "psk-user"))
        ],
    ),
    (
        "what the URI of an upstream says already",
        LISTEN
        + '[upstream.a]\nuri = "nbds://h?tls-certificates=d"\ncertificates = "d"\n'
        + '[upstream.b]\nuri = "nbds://h?tls-psk-file=k&tls-username=u"\npsk = "k"\npsk-user = "u"\n'
        + '[upstream.c]\nuri = "nbds://h?tls-psk-file=k"\ncertificates = "d"\n'
        + "".join(f'[[export]]\nname = "{name}"\nupstream = "{name}"\n' for name in "abc"),
        [
            "5: upstream.a.certificates: the URI says tls-certificates already; leave one of the two out",
            "8: upstream.b.psk: the URI says tls-psk-file already; leave one of the two out",
            "9: upstream.b.psk-user: the URI says tls-username already; leave one of the two out",
            f"10: upstream.c: {NOT_BOTH}",
        ],
    ),
    (
        "what one of several URIs says already",
        LISTEN
        + '[upstream.a]\nuris = ["nbds://h", "nbds://g?tls-certificates=d"]\ncertificates = "d"\n'
        + '[upstream.b]\nuris = ["nbds://u@h", "nbds://u@g"]\n'
        + "".join(f'[[export]]\nname = "{name}"\nupstream = "{name}"\n' for name in "ab"),
        [
            "5: upstream.a.certificates: the URI says tls-certificates already; leave one of the two out",
            "7: upstream.b.uris: a user is that of a pre-shared key: psk says in which file it is",
        ],
    ),
    (
        "users of no key",
        LISTEN
        + '[upstream.a]\nuri = "nbds://h"\npsk-user = "u"\n'
        + '[upstream.b]\nuri = "nbds://u@h"\n'
        + "".join(f'[[export]]\nname = "{name}"\nupstream = "{name}"\n' for name in "ab"),
        [
            f"{line}: upstream.{key}: a user is that of a pre-shared key: psk says in which file it is"
            for line, key in ((5, "a.psk-user"), (7, "b.uri"))
        ],
    ),
    (
        "an export for TLS that no listener has",
        SMALLEST + EXPORT + 'tls = "require"\n',
        ["8: export.tls: no listener has TLS, so nobody could reach this export"],
    ),
    (
        "listeners say it in keys",
        '[[listen]]\nuri = "nbds://h?tls-certificates=d"\n' + UPSTREAM,
        [
            '2: listen.uri: "nbds://h:10809/?tls-certificates=d": "tls-certificates" is for clients; a '
            "listener has the keys tls, certificates and psk",
            f"2: listen.uri: {NEEDS}",
        ],
    ),
    (
        "listeners are NBD URIs without an export",
        '[[listen]]\nuri = "nbd://h/x"\n[[listen]]\nuri = "memory:1G"\n' + UPSTREAM,
        [
            '2: listen.uri: "nbd://h:10809/x": a listener has no export name, remove "x": '
            "[[export]] has names",
            '4: listen.uri: "memory:1G": expected an NBD URI, which begins with one of nbd://, nbds://, '
            "nbd+unix://, nbds+unix://, nbd+vsock://, nbds+vsock://",
        ],
    ),
    (
        "styles",
        LISTEN
        + 'export = ""\n'
        + LISTEN.replace("10810", "1")
        + 'style = "oldstile"\nexport = "x"\nhandshake-flags = "NO_ZEROES"\n'
        + LISTEN.replace("10810", "2")
        + 'handshake-flags = ["NO_ZEROES", "NO_ZEROS"]\n'
        + LISTEN.replace("10810", "3")
        + 'style = "oldstyle"\nexport = 3\nhandshake-flags = []\n'
        + UPSTREAM,
        [
            "3: listen.export: newstyle clients ask for an export by its name, and [[export]] has "
            'those; leave this out, or add style = "oldstyle"',
            '6: listen.style: expected "newstyle" or "oldstyle", got "oldstile"',
            '8: listen.handshake-flags: expected a list of "FIXED_NEWSTYLE" and "NO_ZEROES" or of one '
            'or none of them, got "NO_ZEROES"',
            '11: listen.handshake-flags: expected a list of "FIXED_NEWSTYLE" and "NO_ZEROES" or of one '
            'or none of them, got "NO_ZEROS"',
            "15: listen.export: expected text in quotes, got 3",
            "16: listen.handshake-flags: an oldstyle greeting has none; leave this out",
        ],
    ),
    (
        "oldstyle exports that no rule lets through",
        OLDSTYLE + UPSTREAM + EXPORT + OLDSTYLE.replace("10811", "1") + 'export = "b"\n',
        [
            "3: listen.style: oldstyle clients get the default export, but no rule lets it through: "
            'add export = "NAME" for another one',
            '12: listen.export: oldstyle clients get the export "b", but no rule lets it through',
        ],
    ),
    (
        "an oldstyle export that the upstream's URI does not name",
        OLDSTYLE + 'export = "b"\n[upstream.disks]\nuri = "nbd://h/a"\n',
        ['4: listen.export: oldstyle clients get the export "b", but no rule lets it through'],
    ),
    (
        "oldstyle exports of which nothing can be known",
        OLDSTYLE + UPSTREAM + "[[export]]\nname = 3\nupstream = 'disks'\n",
        ["7: export.name: expected text in quotes, got 3"],
    ),
    (
        "port 0 upstream",
        LISTEN + '[upstream.a]\nuri = "nbd://h:0"\n',
        ['4: upstream.a.uri: "nbd://h:0": port 0 cannot be connected to'],
    ),
    (
        "socket keys on TCP",
        LISTEN + 'socket-mode = "0660"\nsocket-owner = "x"\n' + UPSTREAM,
        [
            "3: listen.socket-mode: only a Unix socket has this, and nbd://127.0.0.1:10810 is none",
            "4: listen.socket-owner: only a Unix socket has this, and nbd://127.0.0.1:10810 is none",
        ],
    ),
    (
        "socket keys",
        UNIX
        + 'socket-mode = 660\nsocket-owner = ""\n'
        + UNIX.replace("=s", "=t")
        + 'socket-mode = "0990"\nsocket-owner = "a:"\n'
        + UNIX.replace("=s", "=u")
        + 'socket-mode = "7777"\nsocket-owner = "a:b:c"\n'
        + UPSTREAM,
        [
            '3: listen.socket-mode: expected octal digits such as "0660", got 660',
            '4: listen.socket-owner: expected "user", "user:group" or ":group", got ""',
            '7: listen.socket-mode: expected octal digits such as "0660", got "0990"',
            '8: listen.socket-owner: expected "user", "user:group" or ":group", got "a:"',
            '11: listen.socket-mode: expected octal digits such as "0660", got "7777"',
            '12: listen.socket-owner: expected "user", "user:group" or ":group", got "a:b:c"',
        ],
    ),
    (
        "load balancers",
        "".join(
            f"{LISTEN.replace('10810', str(port))}proxy-protocol = {proxies}\n"
            for port, proxies in enumerate(
                [
                    "[]",
                    '"10.0.0.0/8"',
                    '["10.0.0.0/8", "10.1.2.3/8"]',
                    '["lb.example"]',
                    '["10.0.0.0/33"]',
                    "[7]",
                    '["::ffff:10.0.0.1/104"]',
                    '["fe80::1%eth0"]',
                    '["127.0.0.1", "unix"]',
                ],
                start=1,
            )
        )
        + 'proxy-protocol = ["unix", "10.0.0.1"]\n'.join([UNIX, LISTEN.replace("127.0.0.1", "h")])
        + '[[listen]]\nuri = "nbd+vsock://1:1"\nproxy-protocol = ["unix"]\n'
        + UPSTREAM,
        [
            "3: listen.proxy-protocol: expected a list of networks whose load balancers are trusted, "
            'as in ["10.0.0.0/8"], or ["unix"], got an empty list',
            "6: listen.proxy-protocol: expected a list of networks whose load balancers are trusted, "
            'as in ["10.0.0.0/8"], or ["unix"], got "10.0.0.0/8"',
            '9: listen.proxy-protocol: expected a network, "10.0.0.0/8", or an address, "10.1.2.3", '
            'got "10.1.2.3/8"',
            '12: listen.proxy-protocol: expected a network as in "10.0.0.0/8" or an address, '
            'got "lb.example"',
            '15: listen.proxy-protocol: expected a network as in "10.0.0.0/8" or an address, '
            'got "10.0.0.0/33"',
            "18: listen.proxy-protocol: expected text in quotes, got 7",
            '21: listen.proxy-protocol: clients with IPv4 addresses are in "10.0.0.0/8", '
            'not in "::ffff:10.0.0.1/104"',
            "24: listen.proxy-protocol: addresses are compared without what follows the %, "
            'remove it in "fe80::1%eth0"',
            '27: listen.proxy-protocol: "unix" is for Unix sockets, and nbd://127.0.0.1:9 is none',
            "30: listen.proxy-protocol: who comes to nbd+unix:///?socket=s has no address: "
            'expected ["unix"] alone',
            "35: listen.proxy-protocol: load balancers come over TCP or Unix sockets, "
            "not to nbd+vsock://1:1",
        ],
    ),
    (
        "the same address twice",
        LISTEN + LISTEN.replace("127.0.0.1", "localhost") + UNIX + UNIX + UPSTREAM,
        [
            "4: listen.uri: nbd://localhost:10810 is listened on already (line 2)",
            "8: listen.uri: nbd+unix:///?socket=s is listened on already (line 6)",
        ],
    ),
    (
        "all of IPv4 twice, once within IPv6",
        LISTEN.replace("127.0.0.1", "[::]") + LISTEN.replace("127.0.0.1", "0.0.0.0") + UPSTREAM,
        ["4: listen.uri: nbd://0.0.0.0:10810 is listened on already (line 2)"],
    ),
    (
        "a gateway before itself",
        LISTEN + '[upstream.a]\nuri = "nbd://localhost:10810/x"\n',
        ["4: upstream.a.uri: the gateway itself listens there (line 2) and would call itself"],
    ),
    (
        "uri and command",
        LISTEN
        + '[upstream.a]\nuri = "nbd://h"\ncommand = ["x"]\n[upstream.b]\n'
        + EXPORT.replace("disks", "a"),
        [
            '5: upstream.a.command: an upstream has either "uri" or "command", not both',
            '6: upstream.b: an upstream needs "uri", "uris" or "command"',
        ],
    ),
    (
        "uri and uris",
        LISTEN
        + '[upstream.a]\nuri = "nbd://h"\nuris = ["nbd://g"]\n[upstream.b]\nuris = []\n'
        + '[upstream.c]\nuris = ["nbd://127.0.0.1", "nbd://127.0.0.1:10810"]\n'
        + EXPORT.replace("disks", "a"),
        [
            '5: upstream.a.uris: an upstream has either "uri" or "uris", not both',
            '7: upstream.b.uris: expected a list, as in ["nbd://host-a", "nbd://host-b"], got an empty list',
            "9: upstream.c.uris: the gateway itself listens there (line 2) and would call itself",
        ],
    ),
    (
        "uris that do not go together",
        LISTEN
        + '[upstream.a]\nuris = ["nbd://h", "memory:1G"]\n'
        + '[upstream.b]\nuris = ["nbd://h", "nbds://g"]\n'
        + '[upstream.c]\nuris = ["nbd://h", "nbd://h:10809"]\n'
        + '[upstream.d]\nuris = ["nbd://h/x", "nbd://g/y"]\n'
        + '[upstream.e]\nuris = ["nbd://h/x", "nbd://g"]\n'
        + EXPORT.replace("disks", "a"),
        [
            '4: upstream.a.uris: "memory:1G": an embedded server has no place among others',
            '6: upstream.b.uris: "nbds://g:10809": all of them have to be nbds:, or none',
            '8: upstream.c.uris: "nbd://h:10809": it is there already',
            '10: upstream.d.uris: "nbd://g:10809/y": all of them have to name the same export, or none any',
            '12: upstream.e.uris: "nbd://g:10809": all of them have to name the same export, or none any',
        ],
    ),
    (
        "same-storage of what is not connected to",
        LISTEN
        + '[upstream.a]\nuri = "memory:1G"\nsame-storage = true\n'
        + '[upstream.b]\ncommand = ["x"]\nsame-storage = true\n'
        + '[upstream.c]\nuris = ["nbd://h", "nbd://g"]\nsame-storage = true\n'
        + EXPORT.replace("disks", "a"),
        [
            "5: upstream.a.same-storage: this is for servers with an NBD URI",
            "8: upstream.b.same-storage: this is for servers with an NBD URI",
        ],
    ),
    (
        "health checks of what would not bear them",
        LISTEN
        + '[upstream.a]\nuri = "memory:1G"\nhealth-check-seconds = 30\n'
        + '[upstream.b]\ncommand = ["x"]\nhealth-check-seconds = 30\n'
        + '[upstream.c]\ncommand = ["x"]\nhealth-check-seconds = 0\nwarm = 17\n'
        + '[upstream.d]\nuris = ["nbd://h", "nbd://g"]\nhealth-check-seconds = 0.5\nwarm = 16\n'
        + EXPORT.replace("disks", "a"),
        [
            "5: upstream.a.health-check-seconds: an embedded server is there as long as the gateway is;"
            " this is for servers with an NBD URI",
            "8: upstream.b.health-check-seconds: a server that is started by command is there when it is"
            " needed, and one that ends with its last connection would be ended by this",
            "12: upstream.c.warm: expected 16 or less, got 17",
        ],
    ),
    (
        "commands",
        LISTEN + '[upstream.a]\ncommand = []\n[upstream.b]\ncommand = "qemu-nbd -t"\n'
        '[upstream.c]\ncommand = ["x", 1]\n[upstream.d]\ncommand = [""]\n'
        + EXPORT.replace("disks", "a"),
        [
            '4: upstream.a.command: expected a list, as in ["qemu-nbd", "-t", "disk.qcow2"], '
            "got an empty list",
            '6: upstream.b.command: expected a list, as in ["qemu-nbd", "-t", "disk.qcow2"], '
            'got "qemu-nbd -t"',
            "8: upstream.c.command: expected text in quotes, got 1",
            "10: upstream.d.command: a command begins with a program's name, and no word of it has a NUL",
        ],
    ),
    (
        "an upstream that is not there",
        SMALLEST
        + EXPORT.replace("disks", "disk")
        + EXPORT.replace("disks", "zz").replace('"a"', '"b"'),
        [
            '7: export.upstream: there is no [upstream.disk], did you mean "disks"?',
            "10: export.upstream: there is no [upstream.zz]",
        ],
    ),
    (
        "two upstreams, no export",
        SMALLEST + '[upstream."b c"]\nuri = "memory:1M"\n',
        [
            '5: upstream."b c": with more than one upstream ("disks", "b c"), [[export]] has to say '
            "which names lead where",
        ],
    ),
    (
        "the same export twice",
        SMALLEST + EXPORT + EXPORT,
        ['9: export.name: "a" is there already (line 6); the first match wins'],
    ),
    (
        "exports that an earlier pattern hides",
        SMALLEST
        + "".join(
            f'[[export]]\nname = "{name}"\nupstream = "disks"\n'
            for name in ("v?", "vm", "vx[*]", "w*", "*", "x", "", "x-*", "wa")
        ),
        [
            '9: export.name: "vm" is never reached: "v?" matches it too (line 6), and stands first',
            '21: export.name: "x" is never reached: "*" matches it too (line 18), and stands first',
            '24: export.name: "" is never reached: "*" matches it too (line 18), and stands first',
            '27: export.name: "x-*" is never reached: "*" matches it too (line 18), and stands first',
            '30: export.name: "wa" is never reached: "w*" matches it too (line 15), and stands first',
        ],
    ),
    (
        "keys of TCP beside what is none",
        UNIX
        + "keepalive-seconds = 5\nuser-timeout-seconds = 5\n"
        + '[upstream.a]\nuri = "nbd+vsock://3"\nkeepalive-seconds = 5\n'
        + '[upstream.b]\nuri = "memory:1M"\nuser-timeout-seconds = 5\n'
        + '[upstream.c]\ncommand = ["x"]\nkeepalive-seconds = 5\n'
        + "".join(f'[[export]]\nname = "{name}"\nupstream = "{name}"\n' for name in "abc"),
        [
            "3: listen.keepalive-seconds: only TCP has this, and nbd+unix:///?socket=s is none",
            "4: listen.user-timeout-seconds: only TCP has this, and nbd+unix:///?socket=s is none",
            "7: upstream.a.keepalive-seconds: only TCP has this, and nbd+vsock://3:10809 is none",
            "10: upstream.b.user-timeout-seconds: only TCP has this, and memory:1M is none",
            "13: upstream.c.keepalive-seconds: only TCP has this, and a command is none",
        ],
    ),
    (
        "user names",
        '[[listen]]\nuri = "nbd://me@127.0.0.1"\n[upstream.a]\nuri = "nbd+unix://you@/?socket=s"\n',
        [
            '2: listen.uri: "nbd://me@127.0.0.1:10809": a listener is nobody\'s; remove "me@"',
            '4: upstream.a.uri: "nbd+unix://you@/?socket=s": a user name is for nbds: with a pre-shared '
            'key; remove "you@"',
        ],
    ),
    (
        "renamed twice",
        LISTEN + '[upstream.disks]\nuri = "nbd://h/x"\n' + EXPORT + 'upstream-name = "y"\n',
        [
            '8: export.upstream-name: the upstream\'s URI names the export "x" already (line 4); '
            "leave one of the two out",
        ],
    ),
    (
        "names",
        SMALLEST + EXPORT.replace('"a"', '"a\\u0000"') + f'upstream-name = "{"x" * 4097}"\n'
        f'description = "{"ü" * 2049}"\n',
        [
            '6: export.name: "a\\x00": an export name cannot contain NUL',
            f'8: export.upstream-name: "{"x" * 77}...": an export name has at most 4096 bytes, this one 4097',
            f'9: export.description: "{"ü" * 77}...": a description has at most 4096 bytes, this one 4098',
        ],
    ),
    # ---- rules ----
    (
        "rules of wrong shapes",
        "rule = [5]\n" + SMALLEST + EXPORT + "policies = {}\nhide = 1\n",
        [
            "1: rule: expected [[rule]], got 5",
            '9: export.policies: expected a list such as [ { use = "readonly" } ], got a table',
            "10: export.hide: expected true or false, got 1",
        ],
    ),
    ("no array of rules", SMALLEST + "[rule]\n", ["5: rule: expected [[rule]], got a table"]),
    (
        "values of rules",
        SMALLEST
        + EXPORT
        + "[[rule]]\nname = 1\nwho = 5\nexports = 5\npolicies = 5\ndeny = 1\nhide = 1\ndisconnect = 1\n"
        + 'mode = "dry"\n',
        [
            "9: rule.name: expected text in quotes, got 1",
            "10: rule.who: expected a table such as { key = value }, got 5",
            "11: rule.exports: expected text in quotes or a list of it, got 5",
            '12: rule.policies: expected a list such as [ { use = "readonly" } ], got 5',
            "13: rule.deny: expected true or false, got 1",
            "14: rule.hide: expected true or false, got 1",
            "15: rule.disconnect: expected true or false, got 1",
            '16: rule.mode: expected "enforce" or "observe", got "dry"',
        ],
    ),
    (
        "values of who",
        RULED
        + "[[rule]]\nwho.certificate = 1\nwho.network = 10\nwho.psk-user = []\nwho.unix-user = true\n"
        'who.tls = "yes"\n'
        "[[rule]]\nwho.unix-user = []\nwho.network = []\nwho.psk-user = [1]\n[[rule]]\nwho = []\n",
        [
            "18: rule.who.certificate: expected a table such as { key = value }, got 1",
            "19: rule.who.network: expected text in quotes or a list of it, got 10",
            "20: rule.who.psk-user: expected text in quotes or a list of it, got an empty list",
            "21: rule.who.unix-user: expected a user's name in quotes, or number, got true",
            '22: rule.who.tls: expected true or false, got "yes"',
            "24: rule.who.unix-user: expected a user's name in quotes, or number, got an empty list",
            "25: rule.who.network: expected text in quotes or a list of it, got an empty list",
            "26: rule.who.psk-user: expected text in quotes, got 1",
            "28: rule.who: expected a table such as { key = value }, got an empty list",
        ],
    ),
    (
        "keys of rules",
        RULED
        + "[[rule]]\nexport = 'a'\npolicy = []\nnetwork = '10.0.0.0/8'\ncn = 'x'\nuri = 'x'\nzzzz = 1\n"
        "[rule.who]\nnetwrk = '10.0.0.0/8'\ncn = 'x'\nexports = 'a'\npskuser = 'x'\n"
        "zzzz = 1\ncertificates = {}\n"
        "[rule.who.certificate]\nissuer_cn = 'x'\nsan-dsn = 'x'\nfingerprnt = 'x'\ntls = true\n"
        "[[rule]]\nwho = { certificate = { nc = 'x' } }\nhiden = true\n",
        [
            '18: rule.export: unknown key, did you mean "exports"?',
            '19: rule.policy: unknown key, did you mean "policies"?',
            "20: rule.network: unknown key here, it belongs into who of [[rule]]",
            "21: rule.cn: unknown key here, it belongs into who.certificate of [[rule]]",
            "22: rule.uri: unknown key here, it belongs into [[listen]]",
            "23: rule.zzzz: unknown key; known are name, who, exports, tickets, policies, deny, hide,"
            " disconnect, mode",
            '25: rule.who.netwrk: unknown key, did you mean "network"?',
            "26: rule.who.cn: unknown key here, it belongs into who.certificate of [[rule]]",
            "27: rule.who.exports: unknown key here, it belongs into [[rule]]",
            '28: rule.who.pskuser: unknown key, did you mean "psk-user"?',
            "29: rule.who.zzzz: unknown key; known are certificate, network, psk-user, unix-user, tls",
            '30: rule.who.certificates: unknown key, did you mean "certificate"?',
            '32: rule.who.certificate.issuer_cn: unknown key, did you mean "issuer-cn"?',
            '33: rule.who.certificate.san-dsn: unknown key, did you mean "san-dns"?',
            '34: rule.who.certificate.fingerprnt: unknown key, did you mean "fingerprint"?',
            "35: rule.who.certificate.tls: unknown key here, it belongs into who of [[rule]]",
            "37: rule.who.certificate.nc: unknown key; known are cn, issuer-cn, san-dns, san-uri, fingerprint",
            '38: rule.hiden: unknown key, did you mean "hide"?',
        ],
    ),
    (
        "uses of policies",
        RULED
        + "".join(
            f"[[rule]]\npolicies = [{use}]\nwho.unix-user = {number}\n"
            for number, use in enumerate(
                (
                    '"readonly"',
                    "{}",
                    '{ name = "readonly", offset = 1 }',
                    "{ use = 1 }",
                    '{ use = "readonly", mode = "watch" }',
                    '{ use = "readonly", mode = true }',
                )
            )
        ),
        [
            '18: rule.policies: expected a table such as { use = "readonly" }, got "readonly"',
            '21: rule.policies: expected use = "NAME" in each policy, got an empty table',
            '24: rule.policies: expected use = "NAME" in each policy, got name, offset',
            '27: rule.policies: expected use = "NAME" in each policy, got 1',
            '30: rule.policies: expected mode = "enforce" or "observe", got "watch"',
            '33: rule.policies: expected mode = "enforce" or "observe", got true',
        ],
    ),
    (
        "policies that are not there",
        RULED
        + '[[rule]]\npolicies = [ { use = "readonly" }, { use = "read_onyl" } ]\n'
        + EXPORT.replace('"a"', '"b"')
        + 'policies = [\n  { use = "zzzzzz" },\n]\n',
        [
            '18: rule.policies.use: no policy is named "read_onyl", did you mean "readonly"?',
            '22: export.policies.use: no policy is named "zzzzzz"; known are audit, blocksize, cache, '
            "commands, contexts, delay, error, exports, flags, fua, limit, protect, rate, readonly, "
            "schedule, trim, truncate, window, writers, zero",
        ],
    ),
    (
        "options of policies",
        RULED
        + "".join(
            f'[[rule]]\nwho.unix-user = {number}\npolicies = [ {{ use = "{use}" }} ]\n'
            for number, use in enumerate(
                (
                    'window", ofset = "1M", size = "1M',
                    'readonly", fast = "yes',
                    'readonly", mod = "observe',
                    'window", offset = "1Q", size = -1, partition = "1',
                    'window", sector_size = 512, partition = "2',
                    'window", partition = "',
                    "window",
                    'contexts", allow = "x", denied = "never',
                    'commands", deny = ["TRIM", "TIRM"], allow = "x',
                    'limit", connections = "4',
                )
            )
        ),
        [
            '19: rule.policies.ofset: unknown option of window, did you mean "offset"?',
            "22: rule.policies.fast: unknown option of readonly; it has no options",
            '25: rule.policies.mod: unknown option of readonly, did you mean "mode"?',
            "28: rule.policies.offset: expected a size such as 64M or 1G (b, K, M, G, T, P, E, or bytes), "
            'got "1Q"',
            "28: rule.policies.size: expected a size of 0 or more, got -1",
            '28: rule.policies.partition: expected a whole number, got "1"',
            '31: rule.policies.partition: expected a whole number, got "2"',
            '31: rule.policies.sector_size: unknown option of window, did you mean "sector-size"?',
            '34: rule.policies.partition: expected a whole number, got ""',
            "37: rule.policies: window: expected partition, or offset and size, got neither",
            '40: rule.policies.allow: expected a list, got "x"',
            '40: rule.policies.denied: expected "omit" or "fail", got "never"',
            '43: rule.policies.deny: expected a command, got "TIRM", did you mean "TRIM"?',
            '43: rule.policies.allow: expected a list, got "x"',
            '46: rule.policies.connections: expected a whole number, got "4"',
        ],
    ),
    (
        "networks",
        RULED
        + "".join(
            f"[[rule]]\nwho.network = {network}\n"
            for network in (
                '"10.1.2.3/8"',
                '["10.0.0.0/8", "2001:db8::1/32"]',
                '"::ffff:10.0.0.0/104"',
                '"::ffff:10.0.0.1"',
                '"fe80::1%eth0"',
                '"10.0.0.0/33"',
                '"10.0.0"',
                '"host.example"',
                '"010.0.0.1"',
                '""',
                '"10.0.0.0-10.0.0.9"',
            )
        ),
        [
            '18: rule.who.network: expected a network, "10.0.0.0/8", or an address, "10.1.2.3", '
            'got "10.1.2.3/8"',
            '20: rule.who.network: expected a network, "2001:db8::/32", or an address, "2001:db8::1", '
            'got "2001:db8::1/32"',
            '22: rule.who.network: clients with IPv4 addresses are in "10.0.0.0/8", '
            'not in "::ffff:10.0.0.0/104"',
            '24: rule.who.network: clients with IPv4 addresses are in "10.0.0.1/32", '
            'not in "::ffff:10.0.0.1"',
            "26: rule.who.network: addresses are compared without what follows the %, "
            'remove it in "fe80::1%eth0"',
        ]
        + [
            f'{line}: rule.who.network: expected a network as in "10.0.0.0/8" or an address, got "{got}"'
            for line, got in (
                (28, "10.0.0.0/33"),
                (30, "10.0.0"),
                (32, "host.example"),
                (34, "010.0.0.1"),
                (36, ""),
                (38, "10.0.0.0-10.0.0.9"),
            )
        ],
    ),
    (
        "fingerprints and users",
        RULED
        + "".join(
            f"[[rule]]\nwho.{who}\n"
            for who in (
                f'certificate.fingerprint = "{"a" * 63}"',
                f'certificate.fingerprint = ["{"a" * 64}", "{"g" * 64}"]',
                f'certificate.fingerprint = "sha256:{"a" * 64}"',
                "certificate.fingerprint = 7",
                'unix-user = "no such user"',
                'unix-user = [0, -1, "root"]',
                'unix-user = "a\\u0000b"',
            )
        ),
        [
            f"{line}: rule.who.certificate.fingerprint: expected the SHA-256 of a certificate, "
            f'64 hexadecimal digits, got "{got}"'
            for line, got in ((18, "a" * 63), (20, "g" * 64), (22, "sha256:" + "a" * 64))
        ]
        + [
            "24: rule.who.certificate.fingerprint: expected text in quotes or a list of it, got 7",
            '26: rule.who.unix-user: there is no user "no such user" on this machine',
            "28: rule.who.unix-user: expected a user's name in quotes, or number, got -1",
            '30: rule.who.unix-user: there is no user "a\\x00b" on this machine',
        ],
    ),
    (
        "rules without exports",
        SMALLEST + "[[rule]]\n",
        ["5: rule: with rules, [[export]] has to say which exports there are"],
    ),
    (
        "patterns of exports beside rules",
        SMALLEST + EXPORT.replace('"a"', '"v*"') + EXPORT.replace('"a"', '"v[*]"') + "[[rule]]\n",
        [
            '6: export.name: "v*" lets names through that no rule has seen (a server may know an export by '
            "several): with [[rule]], list every export by its name, or add canonical-names = true to"
            " its upstream if each name there is a disk of its own",
            '9: export.name: "v[*]" is never reached: "v*" matches it too (line 6), and stands first',
        ],
    ),
    (
        "upstreams of exports that are none, beside rules",
        SMALLEST
        + EXPORT.replace('"a"', '"v*"').replace('"disks"', "[[]]")
        + EXPORT.replace('"a"', '"b"').replace('"disks"', "{}")
        + "upstream-name = 'v1'\n[[rule]]\n",
        [
            '6: export.name: "v*" lets names through that no rule has seen (a server may know an export by '
            "several): with [[rule]], list every export by its name, or add canonical-names = true to"
            " its upstream if each name there is a disk of its own",
            "7: export.upstream: expected text in quotes, got a list",
            "10: export.upstream: expected text in quotes, got a table",
        ],
    ),
    (
        "patterns whose names are one disk, beside rules",
        SMALLEST.replace("10.0.0.5", "10.0.0.5/disk")
        + "canonical-names = true\n"
        + EXPORT.replace('"a"', '"v*"')
        + "[upstream.b]\nuri = 'nbd://b'\ncanonical-names = true\n"
        + EXPORT.replace('"a"', '"w*"').replace("disks", "b")
        + "upstream-name = 'c'\n[[rule]]\n",
        [
            f'{line}: export.name: all names like "{name}" lead to one disk, and a rule for one of them says'
            " nothing of the others: with [[rule]], list the names that it is to have"
            for line, name in ((7, "v*"), (13, "w*"))
        ],
    ),
    (
        "disks that a pattern has under another name, beside rules",
        SMALLEST
        + "canonical-names = true\n"
        + EXPORT.replace('"a"', '"secret"')
        + "upstream-name = 'vm-1'\n"
        + EXPORT.replace('"a"', '"vm-2"')
        + "upstream-name = 'other'\n"  # which no pattern lets through
        + "[upstream.b]\nuri = 'nbd://10.0.0.5:10809/vm-3'\n"
        + EXPORT.replace('"a"', '"hidden"').replace("disks", "b")
        + EXPORT.replace('"a"', '"vm-*"')
        + '[[rule]]\nexports = ["vm-7", "secret"]\n[[rule]]\nexports = "x"\n',
        [
            f'{line}: export.name: clients may ask for this disk as "{there}", too, which "vm-*" lets through'
            " (line 20), and a rule for one of the two says nothing of the other: give it the name that it has"
            " there"
            for line, there in ((7, "vm-1"), (17, "vm-3"))
        ]
        + ['25: rule.exports: no [[export]] has a name like "x"'],
    ),
    (
        "exports of rules that are not there",
        SMALLEST
        + EXPORT.replace('"a"', '"disk-1"')
        + '[[rule]]\nexports = ["disk-*", "", "disk1", "vm-*"]\n',
        [
            '9: rule.exports: no [[export]] has a name like ""',
            '9: rule.exports: no [[export]] has a name like "disk1", did you mean "disk-1"?',
            '9: rule.exports: no [[export]] has a name like "vm-*"',
        ],
    ),
    (
        "names of exports in policies that are not there",
        SMALLEST
        + EXPORT.replace('"a"', '"disk-1"')
        + '[[rule]]\npolicies = [ { use = "exports", deny = ["disk1"] } ]\n',
        [
            '9: rule.policies: exports: no [[export]] has a name like "disk1", did you mean "disk-1"?',
        ],
    ),
    (
        "too many policies",
        SMALLEST + EXPORT + "policies = [" + 65 * '{ use = "readonly" },' + "]\n",
        ["8: export.policies: expected 64 policies at most, got 65"],
    ),
    (
        "what goes with deny",
        RULED
        + "[[rule]]\nwho.tls = true\nhide = true\ndisconnect = true\n"
        + '[[rule]]\ndeny = true\npolicies = [ { use = "schedule", days = ["mon"] }, { use = "audit", '
        + 'file = "f" }, { use = "readonly" } ]\n',
        [
            "19: rule.hide: this is for rules that deny: add deny = true",
            "20: rule.disconnect: this is for rules that deny: add deny = true",
            "23: rule.policies.use: who is denied has no use for readonly; leave it out",
        ],
    ),
    (
        "a policy in an export that chooses among exports",
        SMALLEST + EXPORT + 'policies = [ { use = "exports", deny = ["a"] } ]\n',
        ["8: export.policies.use: exports chooses among exports, so it belongs into a [[rule]]"],
    ),
    (
        "rules of one name",
        RULED + '[[rule]]\nname = "x"\nwho.tls = true\n[[rule]]\nname = "x"\n',
        ['21: rule.name: "x" is there already (line 18)'],
    ),
    (
        "rules behind one for everybody",
        RULED
        + '[[rule]]\npolicies = [ { use = "readonly" } ]\n[[rule]]\nwho.tls = true\n[[rule]]\ndeny = true\n',
        [
            "19: rule: this rule is never reached: another (line 17) means whatever it does, and stands first",
            "21: rule: this rule is never reached: another (line 17) means whatever it does, and stands first",
        ],
    ),
    (
        "rules behind one for the same",
        RULED
        + "[[rule]]\nwho.tls = true\nexports = ['a*', 'b']\n"
        + EXPORT.replace('"a"', '"b"')
        + "[[rule]]\nwho.tls = true\nexports = 'b'\n[[rule]]\nwho.tls = true\n"
        + "[[rule]]\nwho = { tls = true }\nexports = ['a']\n[[rule]]\nwho.tls = false\nexports = 'b'\n",
        [
            "23: rule: this rule is never reached: another (line 17) means whatever it does, and stands first",
            "28: rule: this rule is never reached: another (line 26) means whatever it does, and stands first",
        ],
    ),
    (
        "rules on what nobody can show",
        SMALLEST
        + EXPORT
        + "".join(
            f"[[rule]]\nwho = {{ {who} }}\n"
            for who in (
                'certificate = { cn = "x" }',
                'psk-user = "x"',
                "unix-user = 0",
                "tls = true",
                "tls = false",
            )
        ),
        [
            "9: rule.who.certificate: no listener has certificates, so no client can show one",
            "11: rule.who.psk-user: no listener has psk, so no client can show a key",
            "13: rule.who.unix-user: no listener is a Unix socket, so no client has a Unix user",
            "15: rule.who.tls: no listener has TLS, so no client comes over it",
        ],
    ),
    (
        "rules on certificates that nobody verifies",
        '[[listen]]\nuri = "nbds://h"\ncertificates = "d"\nverify-client = false\n'
        + UPSTREAM
        + EXPORT
        + '[[rule]]\nwho.certificate.cn = "x"\n[[rule]]\nwho.certificate.cn = "y"\n',
        [
            "4: listen.verify-client: a rule (line 11) goes by clients' certificates, so they have to be "
            "verified",
        ],
    ),
    (
        "rules on a listener that is misspelt",
        LISTEN.replace("nbd:", "ndb:") + UPSTREAM + EXPORT + "[[rule]]\nwho.unix-user = 0\n",
        [
            '2: listen.uri: "ndb://127.0.0.1:10810": expected an NBD URI, which begins with one of nbd://, '
            "nbds://, nbd+unix://, nbds+unix://, nbd+vsock://, nbds+vsock://",
        ],
    ),
    (
        "connections that are none",
        LISTEN
        + "".join(
            f"[upstream.u{i}]\nuri = 'memory:1M'\nconnections = {wrong}\n"
            for i, wrong in enumerate(
                ("0", "17", "true", '"4"', '"many"', '"shared:0"', '"shared:"', "[]")
            )
        )
        + EXPORT.replace("disks", "u0"),
        [
            f"{5 + 3 * i}: upstream.u{i}.connections: {CONNECTIONS_EXPECTED}, got {got}"
            for i, got in enumerate(
                (
                    *("0", "17", "true", '"4": write 4, without quotes', '"many"', '"shared:0"'),
                    *('"shared:"', "an empty list"),
                )
            )
        ],
    ),
    (
        "sizes and bounds of connections",
        SMALLEST
        + "connections = 2\nstripe = '512K'\nwarm = -1\nlate-write-seconds = -1\nunflushed = 'maybe'\n"
        + "[upstream.b]\nuri = 'memory:1M'\nconnections = 2\nstripe = '3M'\nreplay-bytes = '1000K'\n"
        + "[upstream.c]\nuri = 'memory:1M'\nconnections = 2\nstripe = 'x'\ncoherence = 1\n"
        + EXPORT,
        [
            '6: upstream.disks.stripe: expected a power of two of 1M or more, such as "1M" or "4M", got 512K',
            "7: upstream.disks.warm: expected 0 or more, got -1",
            "8: upstream.disks.late-write-seconds: expected 0 or more, got -1",
            '9: upstream.disks.unflushed: expected "sticky", "verify", "replay" or'
            ' "assume-durable", got "maybe"',
            '13: upstream.b.stripe: expected a power of two of 1M or more, such as "1M" or "4M", got 3M',
            "14: upstream.b.replay-bytes: expected 1M or more, for all wait when it is full, got 1000K",
            '14: upstream.b.replay-bytes: this is for unflushed = "replay": add that, or leave this out',
            "18: upstream.c.stripe: expected a size such as 64M or 1G (b, K, M, G, T, P, E, or bytes), "
            'got "x"',
            '19: upstream.c.coherence: expected "flush" or "strong", got 1',
        ],
    ),
    (
        "stripes of one connection",
        SMALLEST + "connections = 'shared'\nstripe = '1M'\ncoherence = 'strong'\n",
        [
            f"{line}: upstream.disks.{key}: this is for several connections: add connections"
            " = 4, or leave this "
            "out"
            for line, key in ((6, "stripe"), (7, "coherence"))
        ],
    ),
    (
        "several connections, and some made ahead",
        SMALLEST + "connections = 2\nwarm = 1\n"
        "[upstream.b]\nuri = 'nbd://h'\nconnections = 'shared:2'\nwarm = 1\n" + EXPORT,
        [
            f"{line}: upstream.{name}.warm: several connections are made together, so that they lead to one"
            f' server, and none of them ahead: leave this out, or write connections = "{one}"'
            for line, name, one in ((6, "disks", "per-client"), (10, "b", "shared"))
        ],
    ),
    (
        "stripes where any connection will do",
        SMALLEST + "connections = 2\ncoherence = 'strong'\nstripe = '1M'\n",
        [
            '7: upstream.disks.stripe: with coherence = "strong" any connection may be'
            " taken, so nothing goes by "
            "stripes"
        ],
    ),
    (
        "connections that have no room",
        SMALLEST + "connections = 4\nmax-connections = 3\n"
        "[upstream.b]\nuri = 'nbd://h'\nmax-connections = 3\nwarm = 5\n" + EXPORT,
        [
            "5: upstream.disks.connections: these do not fit into max-connections = 3:"
            " expected 3 at most, got 4",
            "10: upstream.b.warm: these do not fit into max-connections = 3: expected 3 at most, got 5",
        ],
    ),
    (
        "peers that are none",
        LISTEN
        + "[upstream.disks]\nuris = ['nbd://a', 'nbd://b']\nserver-is-peer = true\n"
        + "[upstream.b]\ncommand = ['qemu-nbd']\nserver-is-peer = true\n"
        + "[upstream.c]\nuris = ['nbd://a', 'nbd+unix:///?socket=/s']\nserver-is-peer = true\n"
        + EXPORT,
        [
            f"{line}: upstream.{name}.server-is-peer: this is for a server at a Unix socket, as"
            f" nbd+unix:///?socket=/run/disk.sock: leave it out{known}"
            for line, name, known in (
                (5, "disks", ""),
                (8, "b", ": the end of a command is known without it"),
            )
        ],
    ),
    (
        "connections to several servers",
        LISTEN + "[upstream.disks]\nuris = ['nbd://a', 'nbd://b']\nconnections = 'shared:4'\n",
        [
            "5: upstream.disks.connections: with several uris, each of these connections may"
            " lead to another disk: "
            'add same-storage = true if they are one, or write connections = "shared"',
        ],
    ),
    (
        "one log where each has its own connection",
        SMALLEST + "unflushed = 'verify'\n",
        [
            '5: upstream.disks.unflushed: "verify" needs one log of what all clients wrote,'
            " and here each has its "
            'own connections: write connections = "shared", or unflushed = "sticky"',
        ],
    ),
    (
        "a replay that would undo others' writes",
        SMALLEST + "connections = 3\nunflushed = 'replay'\nreconnect-seconds = 0\n",
        [
            '6: upstream.disks.unflushed: "replay" needs one log of what all clients wrote,'
            " and here each has its "
            'own connections: write connections = "shared:3", or unflushed = "sticky"',
            '6: upstream.disks.unflushed: "replay" would undo what others have written'
            " meanwhile: add sole-writer "
            '= true if nobody else writes to these disks, or write unflushed = "verify"',
            "6: upstream.disks.unflushed: with reconnect-seconds = 0 clients end with their connection, and "
            '"replay" would help nobody: leave one of the two out',
        ],
    ),
    (
        "bytes for no replay",
        SMALLEST + "connections = 'shared'\nunflushed = 'verify'\nreplay-bytes = '1G'\n",
        [
            '7: upstream.disks.replay-bytes: this is for unflushed = "replay": add that, or leave this out'
        ],
    ),
    # Contradictions are found beside wrong values, in one go.
    (
        "both kinds at once",
        LISTEN + "max-connections = 0\n" + UPSTREAM + EXPORT.replace("disks", "disc"),
        [
            "3: listen.max-connections: expected 1 or more, got 0",
            '8: export.upstream: there is no [upstream.disc], did you mean "disks"?',
        ],
    ),
    # not TOML
    (
        "unquoted",
        "[[listen]]\nuri = nbd://h\n",
        ['2: column 7: not a TOML value; text stands in quotes, as in uri = "nbd://host"'],
    ),
    (
        "list without end",
        "a = 1\nb = [\n1,\n",
        ["2: the value that begins here has no end"],
    ),
    ("list without bracket", "a = [\n1\n", ["1: the list that begins here has no ] at its end"]),
    ("text without end", 'a = """\n\n', ["1: the text that begins here has no quotes at its end"]),
    (
        "missing quote",
        'a = "x\nb = 1\n',
        ["1: column 7: a line break or control character cannot stand here; is a quote missing?"],
    ),
    ("key twice", "a = 1\na = 2\n", ["2: column 6: this key was already given above"]),
    ("table twice", "[a]\n[a]\n", ["2: column 3: this table was already given above"]),
    ("deep", "a = " + "[" * 5000, ["nested too deeply"]),
    (
        "words for a terminal",
        SMALLEST + '[log]\nlevel = "\\u001b[2J\\n\\u202e"\n',
        [
            '6: log.level: expected "debug", "info", "warning" or "error", got "\\x1b[2J\\n\\u202e"',
        ],
    ),
    ("long number", "a = " + "1" * 5000, ["a number in it has too many digits"]),
]


@pytest.mark.parametrize(
    ("text", "expected"), [row[1:] for row in PROBLEMS], ids=[row[0] for row in PROBLEMS]
)
def test_problems(text: str, expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f", vocabulary())
    assert [
        str(problem).removeprefix("f:").lstrip() for problem in caught.value.problems
    ] == expected


JARGON = re.compile(r"Input should|extra_forbidden|pydantic|validat|ctx|_type\b|not possible here")

junk = st.recursive(
    st.sampled_from(
        [
            *(0, -1, 10**9, 1.5, True, "", "x", "nbd://h", "nbds://h", "memory:1", "0660", "auto"),
            *("oldstyle", "newstyle", "NO_ZEROES", "readonly", "observe", "10.0.0.0/8", "a*"),
            *("shared", "shared:3", "replay", "1M"),
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    *(
                        "uri",
                        "command",
                        "name",
                        "upstream",
                        "upstream-name",
                        "socket-mode",
                        "proxy-protocol",
                        "style",
                        "handshake-flags",
                        "export",
                        "quirks",
                        *("uris", "connections", "max-connections", "stripe", "coherence", "warm"),
                        *("unflushed", "sole-writer", "replay-bytes", "reconnect-seconds"),
                        "server-is-peer",
                    ),
                    *(
                        "level",
                        "listen",
                        "export",
                        "log",
                        "keepalive-seconds",
                        "drain-seconds",
                        "x",
                        *("rule", "who", "certificate", "network", "unix-user", "fingerprint"),
                        *("exports", "policies", "use", "mode", "deny", "hide", "psk-user", "tls"),
                    ),
                ]
            ),
            inner,
            max_size=3,
        )
    ),
)


@given(
    st.dictionaries(
        st.sampled_from(["listen", "upstream", "export", "rule", "log", "drain-seconds", "x"]), junk
    )
)
def test_any_toml_is_read_or_explained(data: dict[str, Any]) -> None:
    text = "".join(f"{key} = {_toml(value)}\n" for key, value in data.items())
    assert tomllib.loads(text) == data
    try:
        parse(text, "f", vocabulary())
    except ConfigError as error:
        for problem in error.problems:
            assert problem.line is not None  # most texts are wrong, but none has to be
            assert not JARGON.search(problem.message), problem


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {_toml(item)}' for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


@given(st.text())
def test_any_text_is_read_or_explained(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    assert caught.value.problems


# ---- files ----


def problems_of(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value)


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "g.toml"
    path.write_text("\ufeff" + SMALLEST, encoding="utf-8")  # as some editors write it
    assert load(path) == parse(SMALLEST, "")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert problems_of(missing) == f"{missing}: cannot be read: No such file or directory"
    assert problems_of(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    assert "cannot be read" in problems_of(Path("a\0b"))
    zero = Path("/dev/zero")
    assert problems_of(zero) == "/dev/zero: is no configuration: larger than 1 MiB"


def test_a_pipe_that_nobody_writes_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "SILENT_SECONDS", 0)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert problems_of(path) == f"{path}: cannot be read: nothing has come for 0 s"
    writer = os.open(path, os.O_RDWR)  # who is there, and says nothing
    assert problems_of(path) == f"{path}: cannot be read: nothing has come for 0 s"
    os.close(writer)


def test_a_pipe_that_somebody_writes_to() -> None:
    """As a shell's `<(...)` is, and `/dev/stdin` may be."""
    reader, writer = os.pipe()
    text = (SMALLEST + "#" * (1 << 17)).encode()  # more than a pipe holds
    with ThreadPoolExecutor() as threads:
        written = threads.submit(_write_all, writer, text)
        assert load(Path(f"/dev/fd/{reader}")) == parse(SMALLEST, "")
        written.result()
    os.close(reader)


def _write_all(descriptor: int, data: bytes) -> None:
    with open(descriptor, "wb") as file:
        file.write(data)


def test_file_that_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "socket"  # for want of a file that root cannot read
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert problems_of(path) == f"{path}: cannot be read: No such device or address"


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "g.toml"
    path.write_bytes(b"a = 1\nb = '\xff'\n")
    assert problems_of(path) == f"{path}:2: not UTF-8, as TOML has to be"


# ---- template and schema ----


def test_template_is_valid_as_it_is() -> None:
    assert [str(listen.uri) for listen in parse(TEMPLATE, "t").listen] == ["nbd://127.0.0.1:10810"]


def test_template_names_every_key_and_shows_defaults() -> None:
    """With every example switched on it is valid too, and says nothing but defaults and examples."""
    config = parse(re.sub(r"(?m)^#(?=[a-z\[])", "", TEMPLATE), "t", vocabulary())
    default = parse(TEMPLATE, "t")
    assert config.drain_seconds == default.drain_seconds
    assert config.log == default.log
    assert config.listen[0] == default.listen[0]
    assert config.upstream["main"] == default.upstream["main"]
    written = {key for listen in config.listen for key in listen.model_fields_set}
    assert written == set(type(config.listen[0]).model_fields)
    written = {key for upstream in config.upstream.values() for key in upstream.model_fields_set}
    assert written == set(type(config.upstream["main"]).model_fields)
    assert config.export[0].model_fields_set == set(type(config.export[0]).model_fields)
    written = {key for rule in config.rule for key in rule.model_fields_set}
    assert written == set(Rule.model_fields)
    written = {key for rule in config.rule for key in rule.who.model_fields_set}
    assert written == set(Who.model_fields)
    certificate = config.rule[0].who.certificate
    assert certificate is not None
    assert certificate.model_fields_set == set(Certificate.model_fields)
    assert config.rule[0].mode == Rule().mode
    # A fleet does not go with a directory of tickets: it is named, and its keys are in docs/fleet.md.
    assert config.model_fields_set == set(Config.model_fields) - {"fleet"}
    assert config.log.model_fields_set == set(type(config.log).model_fields)
    assert config.control.model_fields_set == set(type(config.control).model_fields)
    assert config.admin is not None
    assert config.admin.model_fields_set == set(type(config.admin).model_fields)
    assert default.admin is None
    assert config.tickets.model_fields_set == set(type(config.tickets).model_fields)
    assert config.control.reload_on_change == default.control.reload_on_change


def test_schema() -> None:
    whole = schema()
    text = json.dumps(whole)
    assert "_" not in "".join(re.findall(r'"([^"]*)": \{', text)).replace("anyOf", "")
    assert '"null"' not in text
    assert whole["required"] == ["listen", "upstream"]
    tables = [whole, *whole["$defs"].values()]
    for table in tables:
        assert table["additionalProperties"] is False
        assert table["description"]
        for key, value in table["properties"].items():
            assert "$ref" in value or value["description"], key
    assert whole["$defs"]["Listen"]["properties"]["socket-mode"]["type"] == "string"
    assert {"Rule", "Who", "Certificate"} < set(whole["$defs"])
    uses = whole["$defs"]["Rule"]["properties"]["policies"]["items"]
    assert (uses["required"], set(uses["properties"])) == (["use"], {"use", "mode"})
    assert whole["$defs"]["Export"]["properties"]["policies"]["items"] == uses
    assert [each["type"] for each in whole["$defs"]["Who"]["properties"]["network"]["anyOf"]] == [
        "string",
        "array",
    ]


SAME_PLACE = [
    ("nbd://localhost:10809", "nbd://[::1]:10809"),
    ("nbd://10.0.0.5:10809", "nbd://[::ffff:10.0.0.5]:10809"),
    ("nbd+unix:///?socket=/run/x", "nbd+unix:///?socket=/run/../run/x"),
]


@pytest.mark.parametrize(("one", "other"), SAME_PLACE)
def test_one_server_is_one_however_its_address_is_written(one: str, other: str) -> None:
    """Or a pattern would let clients ask for a disk that a rule denies under its other name."""
    text = (
        f'[[listen]]\nuri = "nbd://127.0.0.1:1"\n[upstream.a]\nuri = "{one}"\ncanonical-names = true\n'
        f'[upstream.b]\nuri = "{other}"\n'
        '[[export]]\nname = "secret"\nupstream = "b"\nupstream-name = "disk0"\n'
        '[[export]]\nname = "?*"\nupstream = "a"\n[[rule]]\nexports = "?*"\n'
    )
    with pytest.raises(ConfigError, match='clients may ask for this disk as "disk0", too'):
        parse(text, "f")

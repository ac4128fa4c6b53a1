"""Messages between two processes: what is said is read again, and nothing else is."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.handover.given import DiskSite, Given, identity_as_said, identity_of_said
from gateway.handover.message import (
    KINDS,
    MAX_MESSAGE_BYTES,
    READ,
    ChannelMessage,
    NotUnderstood,
    common,
    decode,
    encode,
)
from gateway.identity import Identity, UnixPeer
from gateway.protocol.server_role import (
    ContextsAsked,
    ExportAsked,
    ServerDialect,
    ServerNegotiation,
    Unfinished,
)
from gateway.wire.constants import ClientFlag, HandshakeFlag, Opt
from gateway.wire.handshake import CLIENT_FLAGS, encode_option

EXAMPLES: dict[type, Any] = {int: 7, str: "x", bool: True, list: [1], dict: {"a": 1}}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_read_as_it_was_said(kind: str) -> None:
    said = {name: EXAMPLES[type_] for name, type_ in KINDS[kind].items()}
    message = ChannelMessage(kind, said, b"\n\0bytes")
    assert decode(encode(message)) == message
    # A later version may say more.
    more = json.dumps({"v": 1, "kind": kind, **said, "later": None}).encode()
    assert decode(more).kind == kind
    for name in said:
        less = {key: value for key, value in said.items() if key != name}
        with pytest.raises(NotUnderstood, match=name):
            decode(json.dumps({"v": 1, "kind": kind, **less}).encode())
        wrong = {**said, name: None}
        with pytest.raises(NotUnderstood, match=f"'{name}' of a message '{kind}'"):
            decode(json.dumps({"v": 1, "kind": kind, **wrong}).encode())


@pytest.mark.parametrize(
    ("whole", "why"),
    [
        (b"", "of JSON"),
        (b"[]", "expected a message"),
        (b"{}", "of version 1, got None"),
        (b'{"v": 2, "kind": "go"}', "of version 1, got 2"),
        (b'{"v": 1, "kind": "went"}', "a kind that is known, got 'went'"),
        (b'{"v": 1, "kind": ["go"]}', "a kind that is known"),
        (b"[" * 100_000, "of JSON"),
    ],
)
def test_what_is_no_message_is_said_to_be_none(whole: bytes, why: str) -> None:
    with pytest.raises(NotUnderstood, match=why):
        decode(whole)


@given(st.binary(max_size=200))
def test_garbage_is_not_understood(whole: bytes) -> None:
    with pytest.raises(NotUnderstood):
        decode(b"{" + whole)


def test_one_that_is_too_long_is_not_said() -> None:
    with pytest.raises(ValueError, match="at most"):
        encode(ChannelMessage("go", {}, bytes(MAX_MESSAGE_BYTES)))


def test_a_version_that_both_read() -> None:
    assert common([*READ, 99]) == max(READ)
    with pytest.raises(NotUnderstood, match="one that reads 99"):
        common([99])


# --- Who a client is

TEXTS = st.text(max_size=20)
NAMES = st.lists(TEXTS, max_size=3).map(tuple)


@settings(max_examples=2 * settings().max_examples)
@given(
    st.builds(
        Identity,
        peer=TEXTS,
        address=st.none() | st.ip_addresses(),
        unix=st.none() | st.builds(UnixPeer, *[st.integers(0, 2**31)] * 3),
        cid=st.none() | st.integers(0, 2**32),
        psk_user=st.none() | TEXTS.filter(bool),
        subject=st.lists(st.tuples(TEXTS, TEXTS), max_size=3).map(tuple),
        common_names=NAMES,
        dns_names=NAMES,
        uris=NAMES,
        emails=NAMES,
        ip_addresses=NAMES,
        issuer_common_names=NAMES,
        fingerprint=st.none() | TEXTS.filter(bool),
        tls_version=st.none() | TEXTS.filter(bool),
        cipher=st.none() | TEXTS.filter(bool),
    )
)
def test_who_somebody_is_goes_along_as_it_is(who: Identity) -> None:
    assert identity_of_said(json.loads(json.dumps(identity_as_said(who)))) == who


def test_an_identity_has_no_field_that_stays_behind() -> None:
    """A new field of `Identity` has to go along, too: rules and limits look at it."""
    whole = Identity(
        peer="peer",
        address=ip_address("10.0.0.1"),
        unix=UnixPeer(1, 2, 3),
        cid=4,
        psk_user="user",
        subject=(("CN", "x"),),
        common_names=("x",),
        dns_names=("x",),
        uris=("x",),
        emails=("x",),
        ip_addresses=("x",),
        issuer_common_names=("x",),
        fingerprint="f",
        tls_version="TLSv1.3",
        cipher="c",
    )
    assert all(getattr(whole, name) for name in Identity.__slots__)
    assert identity_of_said(identity_as_said(whole)) == whole


# --- A client on its way

SITE = DiskSite(frozenset({("tcp", "h", "10809"), ("unix", "/s")}), "disk")


@pytest.mark.parametrize(
    "talk",
    [
        None,
        Unfinished(
            3, structured=True, extended=False, secure=True, options=5, names_told=2, unread=b"\n\0"
        ),
    ],
)
@pytest.mark.parametrize("site", [None, SITE])
def test_a_client_is_the_same_at_home(talk: Unfinished | None, site: DiskSite | None) -> None:
    client = Given(
        9, "abc-1", ("TCP", "h", 1, None, None), Identity("p"), site, 1.5, talk, True, "w"
    )
    said = json.loads(json.dumps(client.as_said()))
    assert Given.of(said, client.unread) == client
    for name in said.keys() - {"way"}:  # an earlier version does not say that
        with pytest.raises(NotUnderstood, match="expected a client"):
            Given.of({key: value for key, value in said.items() if key != name}, b"")


def test_disks_are_the_same_by_any_of_their_addresses() -> None:
    tcp, unix = DiskSite.at(frozenset({("tcp", "h", "10809")}), "disk"), SITE
    assert tcp.meets(unix)
    assert not tcp.meets(DiskSite(SITE.where, "other"))
    assert tcp.beside(DiskSite(SITE.where, "other"))
    assert not tcp.beside(DiskSite.at(frozenset({("tcp", "g", "10809")}), "disk"))
    # A server that we start is one thing.
    ours = frozenset({("upstream", "disks")})
    assert DiskSite.at(ours, "a").meets(DiskSite.at(ours, "b"))
    for where, name in (([["tcp", 1]], "x"), ([], "x"), ([["tcp", "h", "1"]], "\ud800"), (1, "x")):
        with pytest.raises(NotUnderstood, match="expected a disk's place"):
            DiskSite.of({"where": where, "name": name})
    odd = {"where": [["tcp", "h", "1"]], "name": "\udcff"}  # of a client whose names are no UTF-8
    assert DiskSite.of(odd).name == "\udcff"


@pytest.mark.parametrize("cut", [0, 1, 7, 26])
def test_a_negotiation_goes_on_where_it_was(cut: int) -> None:
    """What came behind the option goes along, in whatever pieces the rest comes."""
    dialect = ServerDialect(int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES))
    here = ServerNegotiation(dialect)
    name = b"disk"
    contexts = len(name).to_bytes(4, "big") + name + (1).to_bytes(4, "big") + b"\0\0\0\x04base"
    go = len(name).to_bytes(4, "big") + name + bytes(2)
    stream = (
        CLIENT_FLAGS.pack(int(ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES))
        + encode_option(Opt.STRUCTURED_REPLY, b"")
        + encode_option(Opt.SET_META_CONTEXT, contexts)
        + encode_option(Opt.GO, go)
    )
    rest = stream[len(stream) - cut :]
    here.receive(stream[: len(stream) - cut])
    assert here.next_event() == ContextsAsked("disk", ("base",), select=True)
    greeting_and_answer = here.data_to_send()
    assert greeting_and_answer
    before = here.unfinished()
    assert (before.structured, before.options) == (True, 1)
    there = ServerNegotiation.resumed(dialect, before)
    assert there.data_to_send() == b""
    assert there.next_event() == ContextsAsked("disk", ("base",), select=True)
    there.answer_contexts(())
    there.receive(rest)
    assert there.next_event() == ExportAsked("disk", frozenset(), go=True)
    assert there.structured

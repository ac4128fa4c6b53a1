"""STARTTLS on both faces: the table of nbd-reference 1.8, line by line."""

from __future__ import annotations

import struct

import pytest

from gateway.protocol.client_role import Answered, ClientNegotiation, Greeted, Refused
from gateway.protocol.errors import Hangup
from gateway.protocol.server_role import (
    Aborted,
    Event,
    ExportAsked,
    ListAsked,
    ServerDialect,
    ServerNegotiation,
    Tls,
    TlsAsked,
)
from gateway.wire import handshake, limits
from gateway.wire.constants import Opt, Rep
from gateway.wire.errors import WireError

FIXED = b"\0\0\0\3"


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def reply(number: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, number, kind, len(data)) + data


STARTTLS = option(Opt.STARTTLS)
LIST = option(Opt.LIST)
GO = option(Opt.GO, bytes(6))


def server(tls: Tls) -> ServerNegotiation:
    negotiation = ServerNegotiation(ServerDialect(tls=tls))
    negotiation.data_to_send()
    negotiation.receive(FIXED)
    return negotiation


def said(negotiation: ServerNegotiation, received: bytes) -> tuple[Event | None, list[int]]:
    """What a client's bytes come to: the event, and the types of the replies."""
    negotiation.receive(received)
    event = negotiation.next_event()
    data, kinds = negotiation.data_to_send(), []
    while data:
        _, _, kind, length = handshake.OPTION_REPLY.unpack_from(data)
        kinds.append(kind)
        data = data[handshake.OPTION_REPLY.size + length :]
    return event, kinds


def secured(tls: Tls) -> ServerNegotiation:
    negotiation = server(tls)
    assert said(negotiation, STARTTLS)[0] == TlsAsked()
    after = negotiation.answer_starttls()
    assert negotiation.data_to_send() == reply(Opt.STARTTLS, Rep.ACK)
    return after


def test_without_tls_nobody_hears_of_it() -> None:
    assert said(server(Tls.OFF), STARTTLS) == (None, [Rep.ERR_UNSUP])
    assert said(server(Tls.OFF), LIST) == (ListAsked(), [])


@pytest.mark.parametrize("number", [*set(Opt) - {1, 2, 5}, 99], ids=str)
def test_where_it_is_required_nothing_is_said_without(number: int) -> None:
    """Unknown options as well, and malformed ones."""
    for data in (b"", b"garbage"):
        event, kinds = said(server(Tls.REQUIRE), option(number, data))
        assert (event, kinds) == (None, [Rep.ERR_TLS_REQD])


def test_a_client_is_told_what_it_can_do_itself() -> None:
    """It has no URI of ours: qemu's is in its own options, the kernel's in a command line."""
    negotiation = server(Tls.REQUIRE)
    negotiation.receive(GO)
    assert negotiation.next_event() is None
    assert negotiation.data_to_send().endswith(b"this server wants TLS first: send STARTTLS")


def test_abort_needs_no_tls() -> None:
    assert said(server(Tls.REQUIRE), option(Opt.ABORT)) == (Aborted(), [Rep.ACK])


@pytest.mark.parametrize("name", [b"", b"disk"])
def test_export_name_has_no_way_to_say_it(name: bytes) -> None:
    negotiation = server(Tls.REQUIRE)
    negotiation.receive(option(Opt.EXPORT_NAME, name))
    with pytest.raises(Hangup, match="TLS is required"):
        negotiation.next_event()
    assert not negotiation.data_to_send()


@pytest.mark.parametrize("tls", [Tls.ALLOW, Tls.REQUIRE])
def test_over_tls_all_is_as_ever(tls: Tls) -> None:
    negotiation = secured(tls)
    assert said(negotiation, LIST) == (ListAsked(), [])
    negotiation.answer_list([])
    assert said(negotiation, STARTTLS)[0] is None
    event, _ = said(negotiation, GO)
    assert isinstance(event, ExportAsked)


@pytest.mark.parametrize("tls", [Tls.ALLOW, Tls.REQUIRE])
def test_a_second_starttls_is_invalid(tls: Tls) -> None:
    assert said(secured(tls), STARTTLS) == (None, [Rep.ERR_INVALID])


def test_starttls_has_no_data() -> None:
    assert said(server(Tls.ALLOW), option(Opt.STARTTLS, b"x")) == (None, [Rep.ERR_INVALID])


def test_what_was_agreed_on_in_the_clear_is_forgotten() -> None:
    """CVE-2021-3716: structured replies that were asked for by somebody else."""
    before = server(Tls.ALLOW)
    query = struct.pack(">III", 0, 1, 15) + b"base:allocation"
    said(before, option(Opt.EXTENDED_HEADERS))
    said(before, option(Opt.SET_META_CONTEXT, query))
    before.answer_contexts([handshake.MetaContext(1, "base:allocation")])
    said(before, STARTTLS)
    after = before.answer_starttls()
    assert before.extended
    assert before.selection
    assert (after.extended, after.structured, after.selection) == (False, False, None)
    assert after.secure
    assert said(after, option(Opt.EXTENDED_HEADERS)) == (None, [Rep.ACK])


def test_options_count_on() -> None:
    """Else STARTTLS would begin the limit of options anew; it can be had once, but why at all."""
    assert secured(Tls.ALLOW)._options == 1


def test_the_names_that_allow_more_options_count_on_as_well() -> None:
    before = server(Tls.ALLOW)
    said(before, LIST)
    before.answer_list([handshake.ListedExport(f"disk{n}") for n in range(100)])
    for _ in range(limits.MAX_OPTIONS):
        said(before, option(Opt.INFO, b"garbage"))
    said(before, STARTTLS)
    assert said(before.answer_starttls(), LIST) == (ListAsked(), [])


@pytest.mark.parametrize("injected", [LIST, b"\x16", GO + STARTTLS])
def test_bytes_behind_starttls_end_the_connection(injected: bytes) -> None:
    negotiation = server(Tls.ALLOW)
    assert said(negotiation, STARTTLS + injected)[0] == TlsAsked()
    with pytest.raises(Hangup, match="behind STARTTLS"):
        negotiation.answer_starttls()
    assert not negotiation.data_to_send()


# --- The client's face


def client() -> ClientNegotiation:
    negotiation = ClientNegotiation()
    negotiation.receive(handshake.encode_greeting(3))
    assert isinstance(negotiation.next_event(), Greeted)
    negotiation.ask_starttls()
    assert negotiation.data_to_send() == FIXED + STARTTLS
    return negotiation


def test_a_server_that_grants_it() -> None:
    negotiation = client()
    negotiation.receive(reply(Opt.STARTTLS, Rep.ACK))
    assert negotiation.next_event() == Answered(Opt.STARTTLS)
    after = negotiation.secured()
    assert (after.style, after.structured) == (negotiation.style, False)
    after.ask_structured_replies()
    assert after.data_to_send() == option(Opt.STRUCTURED_REPLY)


@pytest.mark.parametrize("kind", [Rep.ERR_UNSUP, Rep.ERR_POLICY])
def test_a_server_that_refuses_it(kind: Rep) -> None:
    negotiation = client()
    negotiation.receive(reply(Opt.STARTTLS, kind))
    assert isinstance(negotiation.next_event(), Refused)


def test_bytes_behind_the_answer_are_not_the_servers() -> None:
    negotiation = client()
    injected = reply(Opt.STRUCTURED_REPLY, Rep.ACK)
    negotiation.receive(reply(Opt.STARTTLS, Rep.ACK) + injected)
    assert negotiation.next_event() == Answered(Opt.STARTTLS)
    with pytest.raises(WireError, match="in the clear"):
        negotiation.secured()

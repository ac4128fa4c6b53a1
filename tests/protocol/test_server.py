"""Our face to clients: transcripts, each run whole and byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.protocol.errors import Hangup, Misuse, Refusal
from gateway.protocol.server_role import (
    Aborted,
    ContextsAsked,
    Description,
    Event,
    ExportAsked,
    ExportNameChosen,
    ListAsked,
    Selection,
    ServerDialect,
    ServerNegotiation,
)
from gateway.wire import limits
from gateway.wire.constants import Rep
from gateway.wire.errors import WireError
from gateway.wire.handshake import BlockSizes, ListedExport, MetaContext

GREETING = b"NBDMAGICIHAVEOPT\0\3"
FIXED = b"\0\0\0\3"
FIXED_ZEROES = b"\0\0\0\1"
SIZE, FLAGS = 2**30, 0x0103
EXPORT = Description(SIZE, FLAGS, BlockSizes(1, 4096, 2**25), "canonical", "words")
CONTEXT = MetaContext(7, "base:allocation")


def opt(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def rep(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


def text(string: bytes) -> bytes:
    return struct.pack(">I", len(string)) + string


def info(name: bytes, *wanted: int) -> bytes:
    return text(name) + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)


def meta(name: bytes, *queries: bytes) -> bytes:
    return text(name) + struct.pack(">I", len(queries)) + b"".join(map(text, queries))


def err(option: int, kind: int, words: str) -> bytes:
    return rep(option, 1 << 31 | kind, words.encode())


def ack(option: int) -> bytes:
    return rep(option, 1)


INFO_EXPORT = struct.pack(">HQH", 0, SIZE, FLAGS)
INFO_BLOCK = struct.pack(">HIII", 3, 1, 4096, 2**25)
GO_ACK = rep(7, 3, INFO_EXPORT) + rep(7, 1)
STRUCTURED = opt(8)
STRUCTURED_ACK = rep(8, 1)


class Driver:
    """Answers every event as a server with one export, `disk`, and one context would."""

    def __init__(self, dialect: ServerDialect, *, shutting_down: bool = False) -> None:
        self.negotiation = ServerNegotiation(dialect)
        self.negotiation.shutting_down = shutting_down
        self.sent = bytearray()
        self.events: list[Event] = []
        self.over = False

    def run(self, pieces: Iterable[bytes]) -> None:
        negotiation = self.negotiation
        self.sent += negotiation.data_to_send()
        for piece in pieces:
            negotiation.receive(piece)
            try:
                while not self.over and (event := negotiation.next_event()) is not None:
                    self.events.append(event)
                    self._answer(event)
            finally:
                self.sent += negotiation.data_to_send()

    def _answer(self, event: Event) -> None:
        negotiation = self.negotiation
        match event:
            case Aborted():
                self.over = True
            case ListAsked():
                negotiation.answer_list([ListedExport("disk", "a disk"), ListedExport("é")])
            case ContextsAsked(name="disk"):
                negotiation.answer_contexts([CONTEXT])
            case ExportAsked(name="disk", go=go):
                negotiation.answer_export(EXPORT)
                self.over = go
            case ExportAsked(name="aligned"):
                sizes = BlockSizes(512, 4096, 2**25)
                described = Description(SIZE, FLAGS, sizes)
                negotiation.refuse(Refusal(Rep.ERR_BLOCK_SIZE_REQD, "ask"), described)
            case ExportNameChosen(name="disk"):
                negotiation.answer_export_name(EXPORT)
                self.over = True
            case _:
                negotiation.refuse(Refusal(Rep.ERR_UNKNOWN, "no such export"))


@dataclass(frozen=True)
class Row:
    """What a client sends, and what it gets behind the greeting."""

    received: bytes
    sent: bytes
    events: tuple[Event, ...] = ()
    fails: type[Exception] | None = None
    says: str = ""
    dialect: ServerDialect = field(default_factory=ServerDialect)
    shutting_down: bool = False
    trailing: bytes = b""


def asked(go: bool, *wanted: int, name: str = "disk") -> ExportAsked:
    return ExportAsked(name, frozenset(wanted), go)


INVALID = Rep.ERR_INVALID & 0xFF
GOES = (asked(True),)
GO = opt(7, info(b"disk"))
PADDED = struct.pack(">QH124x", SIZE, FLAGS)
LISTED = (
    rep(3, 2, text(b"disk") + b"a disk") + rep(3, 2, text("é".encode())) + rep(3, 1)
)  # one reply an export, then ACK

ROWS = {
    # --- right
    "nothing": Row(b"", b""),
    "half of the flags": Row(b"\0\0", b""),
    "GO": Row(FIXED + GO, GO_ACK, GOES),
    "GO with requests behind": Row(FIXED + GO + b"\x25\x60", GO_ACK, GOES, trailing=b"\x25\x60"),
    "GO asking for everything": Row(
        FIXED + opt(7, info(b"disk", 0, 1, 2, 3, 99)),
        rep(7, 3, INFO_EXPORT)
        + rep(7, 3, b"\0\1canonical")
        + rep(7, 3, b"\0\2words")
        + rep(7, 3, INFO_BLOCK)
        + rep(7, 1),
        (asked(True, 0, 1, 2, 3, 99),),
    ),
    "INFO, then GO": Row(
        FIXED + opt(6, info(b"disk", 1)) + GO,
        rep(6, 3, INFO_EXPORT) + rep(6, 3, b"\0\1canonical") + rep(6, 1) + GO_ACK,
        (asked(False, 1), asked(True)),
    ),
    "unknown export, then GO": Row(
        FIXED + opt(7, info(b"x")) + GO,
        err(7, 6, "no such export") + GO_ACK,
        (asked(True, name="x"), asked(True)),
    ),
    "block sizes required": Row(
        FIXED + opt(6, info(b"aligned")),
        rep(6, 3, INFO_EXPORT)
        + rep(6, 3, struct.pack(">HIII", 3, 512, 4096, 2**25))
        + err(6, 8, "ask"),
        (asked(False, name="aligned"),),
    ),
    "block sizes announced unasked": Row(
        FIXED + GO,
        rep(7, 3, INFO_EXPORT) + rep(7, 3, INFO_BLOCK) + rep(7, 1),
        GOES,
        dialect=ServerDialect(announce_block_sizes=True),
    ),
    "LIST": Row(FIXED + opt(3), LISTED, (ListAsked(),)),
    "EXPORT_NAME": Row(
        FIXED + opt(1, b"disk"), PADDED[:10], (ExportNameChosen("disk"),), trailing=b""
    ),
    "EXPORT_NAME with padding": Row(
        FIXED_ZEROES + opt(1, b"disk"), PADDED, (ExportNameChosen("disk"),)
    ),
    "EXPORT_NAME, not fixed": Row(bytes(4) + opt(1, b"disk"), PADDED, (ExportNameChosen("disk"),)),
    "ABORT": Row(FIXED + opt(2) + b"junk", rep(2, 1), (Aborted(),), trailing=b"junk"),
    "ABORT with data": Row(FIXED + opt(2, b"why"), rep(2, 1), (Aborted(),)),
    "structured replies": Row(FIXED + STRUCTURED, STRUCTURED_ACK),
    "SET_META_CONTEXT": Row(
        FIXED + STRUCTURED + opt(10, meta(b"disk", b"base:allocation")),
        STRUCTURED_ACK + rep(10, 4, b"\0\0\0\7base:allocation") + rep(10, 1),
        (ContextsAsked("disk", ("base:allocation",), True),),
    ),
    "LIST_META_CONTEXT": Row(
        FIXED + STRUCTURED + opt(9, meta(b"disk")),
        STRUCTURED_ACK + rep(9, 4, b"\0\0\0\7base:allocation") + rep(9, 1),
        (ContextsAsked("disk", (), False),),
    ),
    "SET_META_CONTEXT refused": Row(
        FIXED + STRUCTURED + opt(10, meta(b"x", b"q")),
        STRUCTURED_ACK + err(10, 6, "no such export"),
        (ContextsAsked("x", ("q",), True),),
    ),
    "LIST_META_CONTEXT refused": Row(
        FIXED + STRUCTURED + opt(9, meta(b"x")),
        STRUCTURED_ACK + err(9, 6, "no such export"),
        (ContextsAsked("x", (), False),),
    ),
    "shutting down": Row(
        FIXED + GO + opt(3) + opt(99) + opt(2),
        err(7, 7, "the server is shutting down")
        + err(3, 7, "the server is shutting down")
        + err(99, 7, "the server is shutting down")
        + rep(2, 1),
        (Aborted(),),
        shutting_down=True,
    ),
    # --- answered with an error, and on we go
    "unknown option": Row(
        FIXED + opt(99, b"data") + GO, err(99, 1, "Opt 0x63 is not supported") + GO_ACK, GOES
    ),
    "STARTTLS": Row(FIXED + opt(5), err(5, 1, "STARTTLS is not supported")),
    "EXTENDED_HEADERS": Row(FIXED + opt(11), ack(11)),
    "EXTENDED_HEADERS with data": Row(
        FIXED + opt(11, b"x"), err(11, 3, "1 bytes of data where none are allowed")
    ),
    "EXTENDED_HEADERS twice": Row(
        FIXED + opt(11) * 2, ack(11) + err(11, 3, "EXTENDED_HEADERS is in force already")
    ),
    "STRUCTURED_REPLY after EXTENDED_HEADERS": Row(
        FIXED + opt(11) + opt(8),
        ack(11) + err(8, 10, "EXTENDED_HEADERS is in force, which includes structured replies"),
    ),
    "PEEK_EXPORT": Row(FIXED + opt(4), err(4, 1, "PEEK_EXPORT is not supported")),
    "an option that the dialect lacks": Row(
        FIXED + GO,
        err(7, 1, "GO is not supported"),
        dialect=ServerDialect(unsupported=frozenset({7})),
    ),
    "LIST with data": Row(
        FIXED + opt(3, b"x") + GO,
        err(3, INVALID, "1 bytes of data where none are allowed") + GO_ACK,
        GOES,
    ),
    "STRUCTURED_REPLY with data": Row(
        FIXED + opt(8, b"xy"), err(8, INVALID, "2 bytes of data where none are allowed")
    ),
    "contexts without structured replies": Row(
        FIXED + opt(10, meta(b"disk", b"q")),
        err(10, INVALID, "STRUCTURED_REPLY has to be negotiated before"),
    ),
    # --- closed
    "unknown client flag": Row(b"\0\0\0\7", b"", fails=Hangup, says="client flags"),
    "client flag in the high half": Row(b"\x80\0\0\3", b"", fails=Hangup, says="client flags"),
    "a ClientHello": Row(
        b"\x16\3\1\2\0\1\0\1\xfc\3\3", b"", fails=Hangup, says="this is TLS without NBD"
    ),
    "client flag that was not offered": Row(
        FIXED, b"", fails=Hangup, says="0x3", dialect=ServerDialect(handshake_flags=1)
    ),
    "wrong option magic": Row(
        FIXED + b"IHAVEOPS" + bytes(8), b"", fails=WireError, says="instead of IHAVEOPT"
    ),
    "wrong magic behind an answer": Row(
        FIXED + STRUCTURED + bytes(16), STRUCTURED_ACK, fails=WireError, says="IHAVEOPT"
    ),
    "option too long": Row(
        FIXED + opt(7)[:-4] + struct.pack(">I", limits.MAX_OPTION_BYTES + 1),
        b"",
        fails=Hangup,
        says="announces 65537",
    ),
    "too many options": Row(
        FIXED + STRUCTURED * (limits.MAX_OPTIONS + 1),
        STRUCTURED_ACK * limits.MAX_OPTIONS,
        fails=Hangup,
        says="more than 128",
    ),
    "too many options for the names listed": Row(
        FIXED
        + opt(3) * 3
        + STRUCTURED * (limits.MAX_OPTIONS + 2 * limits.OPTIONS_PER_LISTED_NAME - 2),
        LISTED * 3 + STRUCTURED_ACK * (limits.MAX_OPTIONS + 2 * limits.OPTIONS_PER_LISTED_NAME - 3),
        (ListAsked(),) * 3,  # names that were told again allow no more
        fails=Hangup,
        says="more than 144",
    ),
    "GO, not fixed": Row(bytes(4) + GO, b"", fails=Hangup, says="fixed newstyle"),
    "ABORT, not fixed": Row(bytes(4) + opt(2), b"", fails=Hangup, says="fixed newstyle"),
    "EXPORT_NAME of nothing known": Row(
        FIXED + opt(1, b"x"),
        b"",
        (ExportNameChosen("x"),),
        fails=Hangup,
        says="no such export",
    ),
    "EXPORT_NAME too long": Row(
        FIXED + opt(1, b"x" * 4097), b"", fails=WireError, says="4097 bytes"
    ),
    "EXPORT_NAME with NUL": Row(FIXED + opt(1, b"a\0b"), b"", fails=WireError, says="NUL"),
    "EXPORT_NAME not UTF-8": Row(FIXED + opt(1, b"\xff"), b"", fails=WireError, says="UTF-8"),
    "EXPORT_NAME while shutting down": Row(
        FIXED + opt(1, b"disk"), b"", fails=Hangup, says="shutting down", shutting_down=True
    ),
}


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_transcript(row: Row, bytewise: bool) -> None:
    driver = Driver(row.dialect, shutting_down=row.shutting_down)
    pieces = [bytes([byte]) for byte in row.received] if bytewise else [row.received]
    if row.fails is None:
        driver.run(pieces)
    else:
        with pytest.raises(row.fails, match=row.says):
            driver.run(pieces)
    greeting = b"NBDMAGICIHAVEOPT" + row.dialect.handshake_flags.to_bytes(2)
    assert bytes(driver.sent) == greeting + row.sent
    assert tuple(driver.events) == row.events
    if driver.over:
        assert driver.negotiation.trailing_data == row.trailing
        assert driver.negotiation.next_event() is None


BAD_DATA = [
    (option, data)
    for option in (6, 7)
    for data in (
        b"",
        b"\0\0\0",
        b"\0\0\0\1",
        b"\xff\xff\xff\xff",
        text(b"disk"),
        text(b"disk") + b"\0",
        text(b"disk") + b"\0\1",
        text(b"disk") + b"\0\0\0",
        text(b"disk") + b"\0\1\0\0\0\0",
        info(b"a\0"),
        info(b"\xff"),
        info(b"x" * 4097),
    )
] + [
    (option, data)
    for option in (9, 10)
    for data in (
        b"",
        text(b"disk"),
        text(b"disk") + b"\0\0\0",
        text(b"disk") + b"\0\0\0\1",
        text(b"disk") + b"\0\0\0\1\0\0\0\1",
        text(b"disk") + b"\xff\xff\xff\xff",
        meta(b"disk", *[b""] * 257),
        meta(b"disk", b"q") + b"x",
        meta(b"disk", b"\xfe"),
        meta(b"disk", b"a\0"),
        meta(b"disk", b"q" * 4097),
        meta(b"a\0"),
    )
]


@pytest.mark.parametrize(("option", "data"), BAD_DATA)
def test_bad_data_costs_the_option_alone(option: int, data: bytes) -> None:
    driver = Driver(ServerDialect())
    driver.run([FIXED + STRUCTURED + opt(option, data) + GO])
    sent = bytes(driver.sent).removeprefix(GREETING + STRUCTURED_ACK)
    head = struct.pack(">QII", 0x3E889045565A9, option, Rep.ERR_INVALID)
    assert sent.startswith(head)
    assert sent.endswith(GO_ACK)
    (length,) = struct.unpack_from(">I", sent, 16)
    assert len(sent) == 20 + length + len(GO_ACK)
    assert tuple(driver.events) == GOES


def selected(driver: Driver) -> tuple[tuple[MetaContext, ...], tuple[MetaContext, ...]]:
    return (
        driver.negotiation.selected_contexts("disk"),
        driver.negotiation.selected_contexts("other"),
    )


def test_selection_holds_for_its_export_alone() -> None:
    driver = Driver(ServerDialect())
    driver.run([FIXED + STRUCTURED])
    assert driver.negotiation.structured
    assert selected(driver) == ((), ())
    driver.run([opt(10, meta(b"disk", b"base:allocation"))])
    assert driver.negotiation.selection == Selection("disk", (CONTEXT,))
    assert selected(driver) == ((CONTEXT,), ())


@pytest.mark.parametrize(
    "data", [meta(b"x", b"q"), b"", meta(b"disk", b"\xff")], ids=["refused", "short", "not UTF-8"]
)
def test_a_failed_selection_leaves_none(data: bytes) -> None:
    driver = Driver(ServerDialect())
    driver.run([FIXED + STRUCTURED + opt(10, meta(b"disk", b"base:allocation"))])
    driver.run([opt(9, meta(b"disk"))])
    assert selected(driver)[0] == (CONTEXT,)
    driver.run([opt(10, data)])
    assert driver.negotiation.selection is None
    assert selected(driver) == ((), ())


def test_misuse() -> None:
    negotiation = ServerNegotiation()
    with pytest.raises(Misuse):
        _ = negotiation.trailing_data
    with pytest.raises(Misuse):
        negotiation.answer_list([])
    with pytest.raises(Misuse):
        negotiation.refuse(Refusal(Rep.ERR_POLICY))
    negotiation.receive(FIXED + opt(3))
    assert negotiation.next_event() == ListAsked()
    with pytest.raises(Misuse):
        negotiation.next_event()
    with pytest.raises(Misuse):
        negotiation.answer_export(EXPORT)
    negotiation.refuse(Refusal(Rep.ERR_POLICY))
    assert negotiation.data_to_send() == GREETING + rep(3, Rep.ERR_POLICY)
    assert negotiation.data_to_send() == b""


def test_refusal_text_is_cut() -> None:
    refusal = Refusal(Rep.ERR_POLICY, "é" * 3000)
    assert refusal.text == "é" * 2048
    assert str(Refusal(Rep.ERR_POLICY)) == "ERR_POLICY"
    assert str(Refusal(Rep.ERR_POLICY, "no")) == "ERR_POLICY: no"


fragments = st.one_of(
    st.binary(max_size=40),
    st.builds(opt, st.integers(0, 12), st.binary(max_size=30)),
    st.builds(
        opt, st.sampled_from([6, 7]), st.builds(info, st.binary(max_size=6), st.integers(0, 9))
    ),
    st.builds(
        opt,
        st.sampled_from([9, 10]),
        st.builds(meta, st.binary(max_size=6), st.binary(max_size=6)),
    ),
    st.sampled_from([STRUCTURED, GO, opt(1, b"disk"), opt(3), opt(2), opt(7)[:-4]]),
)


@settings(deadline=None)
@given(st.sampled_from([FIXED, FIXED, FIXED_ZEROES, b""]), st.lists(fragments, max_size=8))
def test_garbage(flags: bytes, received: list[bytes]) -> None:
    """Nothing but the two errors comes of it, what is held is bounded, and cuts make no difference."""
    data = flags + b"".join(received)
    outcomes = []
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))], [flags, *received]):
        driver = Driver(ServerDialect())
        failure = None
        try:
            driver.run(pieces)
        except (WireError, Hangup) as error:
            failure = str(error)
        if not driver.over:
            assert len(driver.negotiation._received) <= 16 + limits.MAX_OPTION_BYTES + len(data)
        outcomes.append((failure, bytes(driver.sent), tuple(driver.events)))
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_what_is_held_is_bounded() -> None:
    driver = Driver(ServerDialect())
    driver.run([FIXED])
    longest = opt(99, bytes(limits.MAX_OPTION_BYTES))
    most = 0
    for _ in range(3):
        for start in range(0, len(longest), 1000):
            driver.run([longest[start : start + 1000]])
            most = max(most, len(driver.negotiation._received))
    assert most <= 16 + limits.MAX_OPTION_BYTES

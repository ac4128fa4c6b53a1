"""Our face to upstreams: transcripts, each run whole and byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.protocol.client_role import (
    Answered,
    ClientNegotiation,
    Event,
    Greeted,
    Refused,
    Style,
)
from gateway.protocol.errors import Misuse
from gateway.wire import handshake, limits
from gateway.wire.constants import Opt, Rep
from gateway.wire.errors import WireError
from gateway.wire.handshake import BlockSizes, ExportInfo, ListedExport, MetaContext

FIXED = b"NBDMAGICIHAVEOPT\0\3"
FIXED_ZEROES = b"NBDMAGICIHAVEOPT\0\1"
NEWSTYLE = b"NBDMAGICIHAVEOPT\0\0"
SIZE, FLAGS = 2**30, 0x0103
GREETED = Greeted(Style.FIXED_NEWSTYLE)


def oldstyle(size: int, handshake: int, flags: int) -> bytes:
    return b"NBDMAGIC" + struct.pack(">QQHH124x", 0x00420281861253, size, handshake, flags)


def opt(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def rep(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


def text(string: bytes) -> bytes:
    return struct.pack(">I", len(string)) + string


def context(number: int, name: bytes) -> bytes:
    return struct.pack(">I", number) + name


INFO_EXPORT = struct.pack(">HQH", 0, SIZE, FLAGS)
INFO_BLOCK = struct.pack(">HIII", 3, 1, 4096, 2**25)
EXPORT = ExportInfo(SIZE, FLAGS)
ERR = 1 << 31

Ask = Callable[[ClientNegotiation], None]


def go(negotiation: ClientNegotiation) -> None:
    negotiation.go("disk", [0, 3])


def ask_info(negotiation: ClientNegotiation) -> None:
    negotiation.ask_info("disk", [])


def ask_list(negotiation: ClientNegotiation) -> None:
    negotiation.list_exports()


def select(negotiation: ClientNegotiation) -> None:
    negotiation.ask_contexts("disk", ["base:allocation", "qemu:"], select=True)


def list_contexts(negotiation: ClientNegotiation) -> None:
    negotiation.ask_contexts("disk", [], select=False)


def structured(negotiation: ClientNegotiation) -> None:
    negotiation.ask_structured_replies()


def export_name(negotiation: ClientNegotiation) -> None:
    negotiation.export_name("disk")


def abort(negotiation: ClientNegotiation) -> None:
    negotiation.abort()


@dataclass(frozen=True)
class Row:
    """What a server sends: a greeting, then the answers to the questions, one after the other."""

    asks: tuple[Ask, ...]
    greeting: bytes
    answers: tuple[bytes, ...]
    sent: bytes
    events: tuple[Event, ...]
    fails: str = ""


NAME = text(b"disk")
ASKED_GO = opt(7, NAME + b"\0\2\0\0\0\3")
ASKED_INFO = opt(6, NAME + b"\0\0")
ASKED_SET = opt(10, NAME + b"\0\0\0\2" + text(b"base:allocation") + text(b"qemu:"))
ASKED_CONTEXTS = opt(9, NAME + bytes(4))
F3, F1, F0 = b"\0\0\0\3", b"\0\0\0\1", bytes(4)
GO_ANSWER = rep(7, 3, INFO_EXPORT) + rep(7, 1)


def asked(ask: Ask, answer: bytes, sent: bytes, *events: Event, fails: str = "") -> Row:
    """One question to a fixed newstyle server."""
    return Row((ask,), FIXED, (answer,), F3 + sent, (GREETED, *events), fails)


def wrong(ask: Ask, answer: bytes, sent: bytes, says: str) -> Row:
    return asked(ask, answer, sent, fails=says)


def greeting(data: bytes, *events: Event, sent: bytes = b"", fails: str = "") -> Row:
    return Row((), data, (), sent, events, fails)


ROWS = {
    # --- greetings
    "fixed newstyle": greeting(FIXED, GREETED, sent=F3),
    "fixed newstyle, zeroes": greeting(FIXED_ZEROES, GREETED, sent=F1),
    "fixed newstyle, unknown flags": greeting(FIXED[:16] + b"\xff\xff", GREETED, sent=F3),
    "newstyle": greeting(NEWSTYLE, Greeted(Style.NEWSTYLE), sent=F0),
    "newstyle, no zeroes": greeting(
        NEWSTYLE[:-1] + b"\2", Greeted(Style.NEWSTYLE), sent=b"\0\0\0\2"
    ),
    "oldstyle": greeting(oldstyle(SIZE, 0, FLAGS), Greeted(Style.OLDSTYLE, EXPORT)),
    "half a greeting": greeting(FIXED[:17]),
    "half an oldstyle greeting": greeting(oldstyle(SIZE, 0, FLAGS)[:151]),
    "no NBDMAGIC": greeting(b"HTTP/1.1", fails="NBDMAGIC"),
    "no NBDMAGIC at the first byte": greeting(b"\0", fails="NBDMAGIC"),
    "neither style": greeting(b"NBDMAGICNBDMAGIC", fails="neither"),
    "oldstyle with handshake flags": greeting(oldstyle(SIZE, 1, FLAGS), fails="handshake flags"),
    "oldstyle, too large": greeting(oldstyle(2**63, 0, FLAGS), fails=r"2\*\*63"),
    "oldstyle, more than all": greeting(
        oldstyle(SIZE, 0, FLAGS) + b"x",
        Greeted(Style.OLDSTYLE, EXPORT),
        fails="1 bytes came",
    ),
    "bytes behind the greeting": greeting(FIXED + b"x", GREETED, sent=F3, fails="1 bytes came"),
    # --- right answers
    "GO": asked(go, GO_ANSWER, ASKED_GO, Answered(7, EXPORT)),
    "GO with everything": asked(
        go,
        rep(7, 3, INFO_BLOCK)
        + rep(7, 3, b"\0\1name")
        + rep(7, 3, b"\0\2words")
        + rep(7, 3, b"\0\x63future")
        + rep(7, 3, INFO_EXPORT)
        + rep(7, 1),
        ASKED_GO,
        Answered(7, EXPORT, "name", "words", BlockSizes(1, 4096, 2**25), named=True),
    ),
    "an empty canonical name is none": asked(
        go,
        rep(7, 3, b"\0\1") + GO_ANSWER,
        ASKED_GO,
        Answered(7, EXPORT, named=True),
    ),
    "INFO": asked(ask_info, rep(6, 3, INFO_EXPORT) + rep(6, 1), ASKED_INFO, Answered(6, EXPORT)),
    "INFO refused, having told": asked(
        ask_info,
        rep(6, 3, INFO_EXPORT) + rep(6, ERR | 8, b"say \0\xff"),
        ASKED_INFO,
        Refused(6, Rep.ERR_BLOCK_SIZE_REQD, "say �", Answered(6, EXPORT)),
    ),
    "an unknown error": asked(
        go, rep(7, ERR | 99), ASKED_GO, Refused(7, ERR | 99, "", Answered(7))
    ),
    "a long error text is cut": asked(
        go, rep(7, ERR | 1, b"x" * 5000), ASKED_GO, Refused(7, ERR | 1, "x" * 900, Answered(7))
    ),
    "replies of an unknown type are dropped": asked(
        go, rep(7, 77, b"?") + rep(7, 2, b"") + GO_ANSWER, ASKED_GO, Answered(7, EXPORT)
    ),
    "LIST": asked(
        ask_list,
        rep(3, 2, NAME + b"words") + rep(3, 2, text(b"")) + rep(3, 1),
        opt(3),
        Answered(3, exports=(ListedExport("disk", "words"), ListedExport(""))),
    ),
    "LIST with names that are none": asked(
        ask_list,
        rep(3, 2, text(b"a\xff\n"))
        + rep(3, 2, text(b"disk") + b"\xff")
        + rep(3, 2, text(b"a\0b") + b"words")
        + rep(3, 2, text(b"x" * 4097))
        + rep(3, 2, text(b"disk2") + b"words")
        + rep(3, 1),
        opt(3),
        Answered(
            3,
            exports=(ListedExport("disk"), ListedExport("disk2", "words")),
            misnamed=(r"a\xff\n", r"a\x00b", "x" * limits.NAME_IN_TEXT_CHARS),
        ),
    ),
    "LIST refused": asked(
        ask_list, rep(3, ERR | 2, b"no"), opt(3), Refused(3, Rep.ERR_POLICY, "no", Answered(3))
    ),
    "structured replies": asked(structured, rep(8, 1), opt(8), Answered(8)),
    "contexts listed": asked(
        list_contexts,
        rep(9, 4, context(0, b"base:allocation")) + rep(9, 4, context(0, b"x:y")) + rep(9, 1),
        ASKED_CONTEXTS,
        Answered(9, contexts=(MetaContext(0, "base:allocation"), MetaContext(0, "x:y"))),
    ),
    "contexts selected": asked(
        select,
        rep(10, 4, context(1, b"base:allocation"))
        + rep(10, 4, context(0, b"qemu:dirty"))
        + rep(10, 1),
        ASKED_SET,
        Answered(10, contexts=(MetaContext(1, "base:allocation"), MetaContext(0, "qemu:dirty"))),
    ),
    "no contexts selected": asked(select, rep(10, 1), ASKED_SET, Answered(10)),
    "ABORT": asked(abort, rep(2, 1), opt(2), Answered(2)),
    "EXPORT_NAME": asked(
        export_name, struct.pack(">QH", SIZE, FLAGS), opt(1, b"disk"), Answered(1, EXPORT)
    ),
    "EXPORT_NAME with padding": Row(
        (export_name,),
        FIXED_ZEROES,
        (struct.pack(">QH124x", SIZE, FLAGS),),
        F1 + opt(1, b"disk"),
        (GREETED, Answered(1, EXPORT)),
    ),
    "EXPORT_NAME, newstyle": Row(
        (export_name,),
        NEWSTYLE,
        (struct.pack(">QH124x", SIZE, FLAGS),),
        F0 + opt(1, b"disk"),
        (Greeted(Style.NEWSTYLE), Answered(1, EXPORT)),
    ),
    "one after the other": Row(
        (structured, select, go),
        FIXED,
        (rep(8, 1), rep(10, ERR | 1), GO_ANSWER),
        F3 + opt(8) + ASKED_SET + ASKED_GO,
        (
            GREETED,
            Answered(8),
            Refused(10, Rep.ERR_UNSUP, "", Answered(10)),
            Answered(7, EXPORT),
        ),
    ),
    # --- wrong answers
    "wrong magic": wrong(go, bytes(20), ASKED_GO, "an option reply begins with"),
    "another option": wrong(go, rep(6, 1), ASKED_GO, "a reply to INFO where GO was asked"),
    "another option's error": wrong(go, rep(8, ERR | 1), ASKED_GO, "where GO was asked"),
    "too long": wrong(
        go,
        rep(7, ERR | 1)[:-4] + struct.pack(">I", limits.MAX_OPTION_REPLY_BYTES + 1),
        ASKED_GO,
        "announces 65537 bytes",
    ),
    "ACK with data": wrong(structured, rep(8, 1, b"x"), opt(8), "with 1 bytes of data"),
    "GO without INFO_EXPORT": wrong(go, rep(7, 1), ASKED_GO, "without INFO_EXPORT"),
    "INFO without INFO_EXPORT": wrong(
        ask_info, rep(6, 3, INFO_BLOCK) + rep(6, 1), ASKED_INFO, "without INFO_EXPORT"
    ),
    "INFO_EXPORT twice": wrong(go, rep(7, 3, INFO_EXPORT) * 2, ASKED_GO, "twice"),
    "an export too large": wrong(
        go, rep(7, 3, struct.pack(">HQH", 0, 2**63, 1)), ASKED_GO, r"2\*\*63"
    ),
    "EXPORT_NAME, too large": wrong(
        export_name, struct.pack(">QH", 2**64 - 1, 1), opt(1, b"disk"), r"2\*\*63"
    ),
    "an info too short": wrong(go, rep(7, 3, b"\0"), ASKED_GO, "its type alone takes 2"),
    "INFO_EXPORT too long": wrong(go, rep(7, 3, INFO_EXPORT + b"x"), ASKED_GO, "exactly 12"),
    "INFO_BLOCK_SIZE too short": wrong(go, rep(7, 3, INFO_BLOCK[:-1]), ASKED_GO, "exactly 14"),
    "a listed name too long": wrong(ask_list, rep(3, 2, b"\0\0\0\5disk"), opt(3), "claims 5 bytes"),
    "a listed export without name": wrong(ask_list, rep(3, 2, b"\0"), opt(3), "cut off"),
    "a context without name": wrong(select, rep(10, 4, bytes(4)), ASKED_SET, "take 5"),
    "a context that was not asked for": wrong(
        select, rep(10, 4, context(1, b"base:other")), ASKED_SET, "not asked for"
    ),
    "a context's name twice": wrong(
        select,
        rep(10, 4, context(1, b"qemu:a")) + rep(10, 4, context(2, b"qemu:a")),
        ASKED_SET,
        "selected twice",
    ),
    "a context's id twice": wrong(
        select,
        rep(10, 4, context(1, b"qemu:a")) + rep(10, 4, context(1, b"qemu:b")),
        ASKED_SET,
        "selected twice",
    ),
    "bytes behind the answer": asked(
        structured,
        rep(8, 1) + b"xy",
        opt(8),
        Answered(8),
        fails="bytes came that nothing asked for",
    ),
}


class Driver:
    """Asks the next question as soon as the one before has its answer."""

    def __init__(self, asks: Iterable[Ask]) -> None:
        self.negotiation = ClientNegotiation()
        self.asks = list(asks)
        self.sent = b""
        self.events: list[Event] = []

    def receive(self, data: bytes) -> None:
        self.negotiation.receive(data)
        try:
            while (event := self.negotiation.next_event()) is not None:
                self.events.append(event)
                if self.asks:
                    self.asks.pop(0)(self.negotiation)
        finally:
            self.sent += self.negotiation.data_to_send()


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_transcript(row: Row, bytewise: bool) -> None:
    driver = Driver(row.asks)
    parts = [row.greeting, *row.answers]

    def run() -> None:
        for part in parts:
            for piece in [part[i : i + 1] for i in range(len(part))] if bytewise else [part]:
                driver.receive(piece)

    if row.fails:
        with pytest.raises(WireError, match=row.fails):
            run()
    else:
        run()
        assert driver.negotiation.busy is False
        assert driver.negotiation.structured == (Answered(8) in row.events)
    assert driver.sent == row.sent
    assert tuple(driver.events) == row.events


def test_too_many_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_OPTION_REPLIES", 5)
    driver = Driver([ask_list])
    driver.receive(FIXED)
    driver.receive(rep(3, 2, NAME) * 5)
    with pytest.raises(WireError, match="more than 5 replies to LIST"):
        driver.receive(rep(3, 1))


@pytest.mark.parametrize("start", [b"", NEWSTYLE, oldstyle(SIZE, 0, FLAGS)])
@pytest.mark.parametrize(
    "ask", [go, ask_info, ask_list, select, list_contexts, structured, abort, export_name]
)
def test_what_cannot_be_asked(start: bytes, ask: Ask) -> None:
    driver = Driver([])
    driver.receive(start)
    if start == NEWSTYLE and ask is export_name:
        ask(driver.negotiation)
        return
    with pytest.raises(Misuse, match="cannot be asked"):
        ask(driver.negotiation)


def test_one_option_at_a_time() -> None:
    driver = Driver([])
    driver.receive(FIXED)
    go(driver.negotiation)
    assert driver.negotiation.busy
    with pytest.raises(Misuse, match="GO has not been answered"):
        abort(driver.negotiation)


def test_a_refusal_in_words() -> None:
    said = Refused(Opt.GO, Rep.ERR_UNKNOWN, "no such thing", Answered(Opt.GO))
    assert str(said) == "GO was refused with ERR_UNKNOWN: no such thing"
    silent = Refused(99, ERR | 99, "", Answered(99))
    assert str(silent) == "Opt 0x63 was refused with Rep 0x80000063"


fragments = st.one_of(
    st.binary(max_size=40),
    st.builds(rep, st.integers(0, 12), st.sampled_from([1, 2, 3, 4, ERR | 1]), st.binary()),
    st.sampled_from(
        [GO_ANSWER, rep(7, 3, INFO_EXPORT), rep(7, 3, INFO_BLOCK), rep(8, 1), rep(3, 2, NAME)]
    ),
)
starts = st.sampled_from([FIXED, FIXED, FIXED_ZEROES, NEWSTYLE, oldstyle(SIZE, 0, FLAGS), b""])
questions = st.sampled_from([go, ask_info, ask_list, select, list_contexts, structured, abort])


@settings(deadline=None)
@given(starts, st.lists(questions, max_size=3), st.lists(fragments, max_size=6))
def test_garbage(start: bytes, asks: list[Ask], received: list[bytes]) -> None:
    """Nothing but WireError comes of it, cuts make no difference, and what is held is bounded."""
    if start not in (FIXED, FIXED_ZEROES):
        asks = []
    data = start + b"".join(received)
    outcomes = []
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        driver = Driver(asks)
        failed = False
        try:
            for piece in pieces:
                driver.receive(piece)
                assert len(driver.negotiation._received) <= 20 + limits.MAX_OPTION_REPLY_BYTES
        except WireError:
            failed = True
        outcomes.append((failed, driver.sent, driver.events))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("offered", [0, 1, 2, 3, 0xFFFF])
def test_no_zeroes_is_always_taken(offered: int) -> None:
    """It hides a server whose answer to EXPORT_NAME is too long without (Q-S20)."""
    negotiation = ClientNegotiation()
    negotiation.receive(handshake.encode_greeting(offered))
    negotiation.next_event()
    assert negotiation.data_to_send() == handshake.CLIENT_FLAGS.pack(offered & 3)

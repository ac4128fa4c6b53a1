"""Bytes of a connection become messages, however they are cut, wherever one begins to look on."""

from __future__ import annotations

from random import Random

import pytest

from gateway.trace.asked import MAX_ASKED, AskedFor
from gateway.trace.decode import BLIND_BYTES, MOST_PAYLOAD_BYTES
from gateway.trace.message import Kind
from gateway.wire.constants import Cmd
from gateway.wire.framing import EXTENDED, SIMPLE, STRUCTURED, Framing
from gateway.wire.transmission import encode_simple_reply
from tests.trace.conversations import FRAMINGS, Conversation, answers, requests

NAMES = [str(framing) for framing in FRAMINGS]


def played(framing: Framing, cuts: int | None = None, payloads: int = 0) -> Conversation:
    """All of it, in pieces of so many bytes; None: at once."""
    talk = Conversation(framing, payloads)
    for decoder, said in ((talk.requests, requests(framing)), (talk.answers, answers(framing))):
        data = b"".join(said)
        step = cuts or len(data)
        for at in range(0, len(data), step):
            decoder.feed(memoryview(data)[at : at + step])
        decoder.end()
    return talk


def facts(talk: Conversation) -> list[tuple[object, ...]]:
    return [(each.kind, each.raw, each.length, each.at, each.asked) for each in talk.seen]


WORDS = {
    SIMPLE: """
        READ 0+4096 cookie 1
        WRITE 4096+10 FUA cookie 2, 10 bytes of data
        FLUSH cookie 3
        TRIM 8192+512 cookie 4
        WRITE_ZEROES 0+2147483648 NO_HOLE cookie 5
        CACHE 0+512 cookie 6
        READ 512+12 cookie 7
        Cmd 0x9 1+2 flags 0x200 cookie 11
        DISC cookie 0
        OK cookie 2 (WRITE 4096+10 FUA)
        OK cookie 1 (READ 0+4096), 4096 bytes of data
        EIO cookie 3 (FLUSH)
        OK cookie 7 (READ 512+12), 12 bytes of data
        OK cookie 4 (TRIM 8192+512)
        Errno 0x1267 cookie 5 (WRITE_ZEROES 0+2147483648 NO_HOLE)
    """,
    STRUCTURED: """
        READ 0+4096 cookie 1
        WRITE 4096+10 FUA cookie 2, 10 bytes of data
        FLUSH cookie 3
        TRIM 8192+512 cookie 4
        WRITE_ZEROES 0+2147483648 NO_HOLE cookie 5
        CACHE 0+512 cookie 6
        READ 512+12 cookie 7
        BLOCK_STATUS 0+1048576 REQ_ONE cookie 8
        READ 0+8 DF cookie 9
        Cmd 0x9 1+2 flags 0x200 cookie 11
        DISC cookie 0
        OFFSET_DATA 0+1000 cookie 1 (READ 0+4096)
        OK cookie 2 (WRITE 4096+10 FUA)
        OFFSET_HOLE 1000+3096 cookie 1 (READ 0+4096)
        NONE cookie 1 DONE (READ 0+4096)
        ERROR ENOSPC: the disk\\nis full cookie 3 DONE (FLUSH)
        ERROR_OFFSET EIO at 8200 cookie 4 DONE (TRIM 8192+512)
        BLOCK_STATUS context 1 base:allocation: 512 data; 512 hole, zero; 1024 zero; 512 0x9 cookie 8 \
(BLOCK_STATUS 0+1048576 REQ_ONE)
        BLOCK_STATUS context 2 qemu:dirty-bitmap:b: STATUS; and 12 more cookie 8 DONE \
(BLOCK_STATUS 0+1048576 REQ_ONE)
        OFFSET_DATA 0+8 cookie 9 DONE (READ 0+8 DF)
        OK cookie 5 (WRITE_ZEROES 0+2147483648 NO_HOLE)
        Chunk 0x4d of 9 bytes cookie 6 DONE (CACHE 0+512)
    """,
    EXTENDED: """
        READ 0+4096 cookie 1
        WRITE 4096+10 FUA PAYLOAD_LEN cookie 2, 10 bytes of data
        FLUSH cookie 3
        TRIM 8192+512 cookie 4
        WRITE_ZEROES 0+2147483648 NO_HOLE cookie 5
        CACHE 0+512 cookie 6
        READ 512+12 cookie 7
        BLOCK_STATUS 0+1048576 REQ_ONE cookie 8
        READ 0+8 DF cookie 9
        BLOCK_STATUS 0+16 PAYLOAD_LEN cookie 10: 1099511627776 bytes of context 1 base:allocation, \
context 2 qemu:dirty-bitmap:b
        Cmd 0x9 1+2 flags 0x200 cookie 11
        DISC cookie 0
        OFFSET_DATA 0+1000 cookie 1 (READ 0+4096)
        NONE cookie 2 DONE (WRITE 4096+10 FUA PAYLOAD_LEN)
        OFFSET_HOLE 1000+3096 cookie 1 (READ 0+4096)
        NONE cookie 1 DONE (READ 0+4096)
        ERROR ENOSPC: the disk\\nis full cookie 3 DONE (FLUSH)
        ERROR_OFFSET EIO at 8200 cookie 4 DONE (TRIM 8192+512)
        BLOCK_STATUS_EXT context 1 base:allocation: 512 data; 512 hole, zero; 1024 zero; 512 0x9 cookie 8 \
(BLOCK_STATUS 0+1048576 REQ_ONE)
        BLOCK_STATUS_EXT context 2 qemu:dirty-bitmap:b: STATUS; and 12 more cookie 8 DONE \
(BLOCK_STATUS 0+1048576 REQ_ONE)
        OFFSET_DATA 0+8 cookie 9 DONE (READ 0+8 DF)
        NONE cookie 5 DONE (WRITE_ZEROES 0+2147483648 NO_HOLE)
    """,
}
STATUS = "; ".join(["1048576 0x1"] * 8)


@pytest.mark.parametrize("framing", FRAMINGS, ids=NAMES)
def test_what_is_said(framing: Framing) -> None:
    expected = [
        line.strip() for line in WORDS[framing].replace("STATUS;", f"{STATUS};").splitlines()
    ]
    assert played(framing).words == [line for line in expected if line]


@pytest.mark.parametrize("payloads", [0, 5, MOST_PAYLOAD_BYTES])
@pytest.mark.parametrize("framing", FRAMINGS, ids=NAMES)
def test_how_it_is_cut_makes_no_difference(framing: Framing, payloads: int) -> None:
    whole = facts(played(framing, payloads=payloads))
    for step in (1, 2, 3, 15, 16, 17, 27, 28, 29, 33, 100):
        assert facts(played(framing, step, payloads)) == whole


@pytest.mark.parametrize("framing", FRAMINGS, ids=NAMES)
def test_cut_at_every_byte(framing: Framing) -> None:
    whole = facts(played(framing))
    asked, answered = (b"".join(said(framing)) for said in (requests, answers))
    for at in range(max(len(asked), len(answered))):
        talk = Conversation(framing)
        for decoder, data in ((talk.requests, asked), (talk.answers, answered)):
            decoder.feed(data[:at])
            decoder.feed(data[at:])
        assert facts(talk) == whole


@pytest.mark.parametrize("framing", FRAMINGS, ids=NAMES)
def test_every_byte_belongs_to_one_message(framing: Framing) -> None:
    talk = played(framing)
    for sent, data in ((False, requests(framing)), (True, answers(framing))):
        at = 0
        for each in [each for each in talk.seen if each.direction.from_gateway is sent]:
            assert each.at == at
            at += each.length
        assert at == len(b"".join(data))


@pytest.mark.parametrize("framing", FRAMINGS, ids=NAMES)
def test_one_may_begin_to_look_on_inside_a_message(framing: Framing) -> None:
    for of_client in (True, False):
        messages = requests(framing) if of_client else answers(framing)
        data = b"".join(messages)
        ends = [sum(map(len, messages[: n + 1])) for n in range(len(messages))]
        before = [
            (cookie, (word, offset, length))
            for _magic, word, cookie, offset, length in (
                framing.request.unpack_from(each) for each in requests(framing)
            )
        ]
        for at in range(0, len(data), 7):
            end = next(each for each in ends if each > at)
            talk = Conversation(framing, before=before)
            decoder = talk.requests if of_client else talk.answers
            decoder.skip(end - at)
            decoder.feed(data[at:])
            assert Kind.STRANGE not in talk.kinds
            assert len(talk.seen) == len([each for each in ends if each > end])


@pytest.mark.parametrize("framing", FRAMINGS, ids=NAMES)
def test_data_is_shown_as_far_as_is_wanted(framing: Framing) -> None:
    talk = played(framing, payloads=4)
    [write] = [line for line in talk.words if line.startswith("WRITE 4096")]
    assert write.endswith("10 bytes of data: 30313233")
    assert [line for line in talk.words if line.endswith(("data: 7477656c", "DF): 38206279"))]
    for each in talk.seen:
        assert len(each.raw) <= 32 + 8 + 8 * 16 + 4


def test_no_more_data_than_has_a_bound_is_kept() -> None:
    talk = Conversation(SIMPLE, payloads=1 << 40)
    talk.requests.feed(SIMPLE.encode_request(Cmd.WRITE, 0, 1, 0, 1 << 20) + bytes(1 << 20))
    assert len(talk.seen[0].raw) == 28 + MOST_PAYLOAD_BYTES


# --- What is no message


@pytest.mark.parametrize("framing", FRAMINGS, ids=NAMES)
def test_what_is_no_message_is_told_and_the_next_is_found(framing: Framing) -> None:
    good = requests(framing)
    for step in (1, 5, 1000):
        talk = Conversation(framing)
        data = b"GET / HTTP/1.1\r\nHost: there" + bytes(100) + good[0] + good[2]
        for at in range(0, len(data), step):
            talk.requests.feed(data[at : at + step])
        assert talk.kinds == [Kind.STRANGE, Kind.STRANGE, Kind.REQUEST, Kind.REQUEST]
        first = framing.request.size
        assert talk.words[0].startswith(f"no message, with {framing} framing: 47455420")
        assert talk.words[1] == f"{127 - first} bytes of no message that was seen to begin"
        assert [each.at for each in talk.seen] == [0, first, 127, 127 + len(good[0])]


def test_a_simple_reply_to_what_was_asked_before_may_have_data() -> None:
    talk = Conversation(SIMPLE)
    talk.requests.feed(SIMPLE.encode_request(Cmd.READ, 0, 2, 0, 8))
    data = encode_simple_reply(9) + b"\x67\x44" * 9 + encode_simple_reply(9)
    talk.answers.feed(data + encode_simple_reply(2) + b"8 bytes!")
    assert talk.words[1:] == [
        "OK cookie 9 (asked before the trace)",
        "34 bytes of no message that was seen to begin",
        "OK cookie 2 (READ 0+8), 8 bytes of data",
    ]


def test_data_full_of_magics_holds_nobody_up() -> None:
    """More would be looked at for a second, in the middle of the data plane."""
    talk = Conversation(SIMPLE)
    talk.requests.feed(SIMPLE.encode_request(Cmd.READ, 0, 2, 0, 8))
    looked = 0
    sensible = talk.answers._makes_sense

    def counted(head: bytearray) -> bool:
        nonlocal looked
        looked += 1
        return sensible(head)

    talk.answers._makes_sense = counted  # type: ignore[method-assign]
    talk.answers.feed(encode_simple_reply(9) * 50_000)
    assert looked < 1000
    talk.answers.feed(bytes(BLIND_BYTES))
    talk.answers.feed(encode_simple_reply(2) + b"8 bytes!")
    assert talk.words[-1] == "OK cookie 2 (READ 0+8), 8 bytes of data"


@pytest.mark.parametrize("framing", FRAMINGS, ids=NAMES)
def test_garbage_never_raises_and_every_byte_is_counted(framing: Framing) -> None:
    for seed in range(300):
        random = Random(seed)
        talk = Conversation(framing, payloads=random.choice((0, 3)))
        for decoder, said in ((talk.requests, requests), (talk.answers, answers)):
            data = bytearray(b"".join(random.choices(said(framing), k=6)))
            for _ in range(random.randrange(8)):
                data[random.randrange(len(data))] = random.randrange(256)
            at = 0
            while at < len(data):
                step = random.choice((1, 7, 28, 1000))
                decoder.feed(bytes(data[at : at + step]))
                at += step
            decoder.end()
        assert all(line.isprintable() for line in talk.words)
        assert len(talk.words) == len(talk.seen)


@pytest.mark.parametrize("framing", FRAMINGS, ids=NAMES)
def test_what_is_cut_is_told_at_the_end(framing: Framing) -> None:
    talk = Conversation(framing)
    read, write, *_ = requests(framing)
    talk.requests.feed(read + write[:-4])
    talk.answers.feed(encode_simple_reply(1)[:3])
    talk.requests.end()
    talk.answers.end()
    assert talk.words[-2:] == [
        "4 bytes of its data had not come when the trace ended",
        "3 bytes of a message had come when the trace ended: 674466",
    ]


def test_a_message_has_the_time_of_its_first_byte() -> None:
    talk = Conversation(SIMPLE)
    talk.now = 1.0
    talk.requests.feed(SIMPLE.encode_request(Cmd.FLUSH, 0, 1, 0, 0)[:5])
    talk.now = 2.0
    talk.requests.feed(SIMPLE.encode_request(Cmd.FLUSH, 0, 1, 0, 0)[5:])
    assert [each.seconds for each in talk.seen] == [1.0]


def test_what_is_asked_and_never_answered_is_forgotten() -> None:
    asked = AskedFor()
    for cookie in range(3 * MAX_ASKED):
        asked.add(cookie, (0, 0, 0))
    assert len(asked._requests) == MAX_ASKED
    assert 0 not in asked
    assert 3 * MAX_ASKED - 1 in asked


def test_of_one_cookie_the_first_is_answered_first() -> None:
    asked = AskedFor([(7, (0, 0, 1)), (7, (0, 0, 2))])
    assert asked.first(7) == (0, 0, 1)
    asked.end(7)
    assert asked.first(7) == (0, 0, 2)
    asked.end(7)
    asked.end(7)
    assert asked.first(7) is None

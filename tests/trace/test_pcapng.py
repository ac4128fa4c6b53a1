"""A capture can be read, by a reader of our own and by tshark."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from gateway.trace.message import Message
from gateway.trace.pcapng import MAX_COMMENT_BYTES, MAX_SEGMENT_BYTES, Capture
from gateway.trace.words import in_words
from gateway.wire.constants import Cmd
from gateway.wire.framing import EXTENDED, SIMPLE, STRUCTURED, Framing
from gateway.wire.transmission import encode_simple_reply
from tests.tools.patience import HANG_SECONDS
from tests.trace.captures import read
from tests.trace.conversations import FRAMINGS, Conversation, answers, requests

CLIENT, GATEWAY, SERVER = "192.0.2.1", "192.0.2.2", "192.0.2.3"


def packet(capture: Capture, message: Message, **other: bool) -> bytes:
    direction = message.direction
    return capture.packet(
        message.seconds,
        direction.connection,
        of_client=other.get("of_client", direction.side == "client"),
        from_gateway=other.get("from_gateway", direction.from_gateway),
        at=message.at,
        raw=message.raw,
        length=message.length,
        comment=in_words(message),
    )


def captured(framing: Framing) -> tuple[Conversation, bytes]:
    """Each request, and what is answered then."""
    talk = Conversation(framing)
    talk.requests.feed(b"".join(requests(framing)))
    talk.answers.feed(b"".join(answers(framing)))
    capture = Capture(1_700_000_000.5)
    return talk, capture.head() + b"".join(packet(capture, each) for each in talk.seen)


@pytest.mark.parametrize("framing", FRAMINGS, ids=map(str, FRAMINGS))
def test_a_message_is_a_packet_with_its_words(framing: Framing) -> None:
    talk, capture = captured(framing)
    packets = read(capture)
    assert [each.comment for each in packets] == talk.words
    for each, message in zip(packets, talk.seen, strict=True):
        assert each.nanoseconds == 1_700_000_000_500_000_000
        assert each.data == message.raw
        assert each.length == message.length
        assert each.sequence == 1 + message.at
        ends = (f"{CLIENT}:20001", f"{GATEWAY}:10809")
        expected = tuple(reversed(ends)) if message.direction.from_gateway else ends
        assert (each.source, each.target) == expected
    assert packets[-1].acknowledged == 1 + len(b"".join(requests(framing)))


def test_the_servers_connection_has_other_ends() -> None:
    talk, _capture = captured(SIMPLE)
    capture = Capture(0)
    data = capture.head() + packet(capture, talk.seen[0], of_client=False, from_gateway=True)
    data += packet(capture, talk.seen[-1], of_client=False, from_gateway=False)
    to, back = read(data)
    assert (to.source, to.target) == (f"{GATEWAY}:20001", f"{SERVER}:10809")
    assert (back.source, back.target) == (to.target, to.source)
    assert back.acknowledged == to.sequence + to.length


def test_what_is_too_long_for_a_segment_is_a_gap() -> None:
    talk = Conversation(SIMPLE)
    write = SIMPLE.encode_request(Cmd.WRITE, 0, 1, 0, 1 << 20) + bytes(1 << 20)
    talk.requests.feed(write + SIMPLE.disc())
    capture = Capture(0)
    first, second = read(capture.head() + b"".join(packet(capture, each) for each in talk.seen))
    assert first.length == MAX_SEGMENT_BYTES
    assert first.data == write[:28]
    assert second.sequence == first.sequence + len(write)


def test_a_comment_is_no_longer_than_anybody_reads() -> None:
    capture = Capture(0)
    data = capture.packet(
        0, 1, of_client=True, from_gateway=True, at=0, raw=b"", length=0, comment="ä" * 60_000
    )
    [made] = read(capture.head() + data)
    assert 0 < len(made.comment.encode()) <= MAX_COMMENT_BYTES


DECODED = {
    SIMPLE: ["Read Request", "Disconnect Request", *["Response"] * 6],
    STRUCTURED: ["Read Request", "Disconnect Request"],
    EXTENDED: [],
}
"""What tshark 4.0 says of some messages: docs/trace.md has the list. Later ones may say more."""


@pytest.mark.real
@pytest.mark.parametrize("framing", FRAMINGS, ids=map(str, FRAMINGS))
def test_tshark_opens_it(framing: Framing, workdir: Path) -> None:
    talk, capture = captured(framing)
    (workdir / "c").write_bytes(capture)
    fields = ("frame.comment", "_ws.col.Protocol", "_ws.col.Info", "_ws.malformed")
    asked = [word for field in fields for word in ("-e", field)]
    ran = subprocess.run(
        ["tshark", "-r", str(workdir / "c"), "-T", "json", *asked],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=True,
    )
    frames = [each["_source"]["layers"] for each in json.loads(ran.stdout)]
    assert [each["frame.comment"] for each in frames] == [[line] for line in talk.words]
    assert not [each for each in frames if "_ws.malformed" in each]
    infos = [str(each["_ws.col.Info"]) for each in frames if each["_ws.col.Protocol"] == ["NBD"]]
    for expected in DECODED[framing]:
        assert any(expected in info for info in infos), infos


@pytest.mark.real
def test_tshark_knows_what_is_read_and_written(workdir: Path) -> None:
    talk = Conversation(SIMPLE)
    for cookie, (command, length) in enumerate([(Cmd.READ, 4096), (Cmd.WRITE, 512)], start=1):
        data = bytes(length)
        asked = SIMPLE.encode_request(command, 0, cookie, 8192, length)
        talk.requests.feed(asked + (data if command is Cmd.WRITE else b""))
        talk.answers.feed(encode_simple_reply(cookie) + (data if command is Cmd.READ else b""))
    capture = Capture(0)
    data = capture.head() + b"".join(packet(capture, each) for each in talk.seen)
    (workdir / "c").write_bytes(data)
    fields = ("nbd.type", "nbd.from", "nbd.len", "nbd.error")
    asked_for = [word for field in fields for word in ("-e", field)]
    ran = subprocess.run(
        ["tshark", "-r", str(workdir / "c"), "-T", "fields", "-E", "separator=,", *asked_for],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=True,
    )
    assert ran.stdout.split() == [
        "0,0x0000000000002000,4096,",
        "0,,,0",
        "1,0x0000000000002000,512,",
        "1,,,0",
    ]

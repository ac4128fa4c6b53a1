"""Replies with ESHUTDOWN where somebody asks again: they are none, and their commands stay in flight."""

from __future__ import annotations

import pytest

from gateway.protocol.asks import Ask, Outcome
from gateway.scan.chunks import reply_scan
from gateway.scan.traffic import Traffic
from gateway.wire.constants import Cmd, Errno
from gateway.wire.errors import WireError
from gateway.wire.framing import EXTENDED, SIMPLE, STRUCTURED, Framing
from tests.scan.peers import Feeder, traffic

LENGTH = 64
FRAMINGS = [SIMPLE, STRUCTURED, EXTENDED]
CHUNKED = FRAMINGS[1:]
HALF = bytes(range(LENGTH // 2))


def heeding(framing: Framing) -> tuple[Traffic, Feeder, list[str]]:
    made = traffic(
        client_structured=framing.chunked,
        link_structured=framing.chunked,
        client_extended=framing is EXTENDED,
        link_extended=framing is EXTENDED,
    )
    said: list[str] = []
    made.going.heed(lambda: said.append("it goes"))
    return made, Feeder(reply_scan(made)), said


def put(made: Traffic, ours: int, command: Cmd) -> None:
    """Have a command of the client under way."""
    made.last_cookie = ours
    made.in_flight[ours] = (1000 + ours, int(command), 0, LENGTH)


def refusal(framing: Framing, ours: int, *, done: bool = True) -> bytes:
    return framing.failure(ours, 0, Errno.ESHUTDOWN, done=done)


@pytest.mark.parametrize("framing", FRAMINGS, ids=str)
@pytest.mark.parametrize("command", [Cmd.READ, Cmd.WRITE, Cmd.TRIM])
def test_a_command_stays_in_flight(framing: Framing, command: Cmd) -> None:
    made, feeder, said = heeding(framing)
    put(made, 1, command)
    put(made, 2, command)
    feeder.feed(refusal(framing, 1))
    assert not feeder.sent
    assert list(made.in_flight) == [1, 2]
    assert made.going.waits(made.in_flight)
    feeder.feed(refusal(framing, 2))
    assert not made.going.waits(made.in_flight)
    assert said == ["it goes"]


@pytest.mark.parametrize("framing", CHUNKED, ids=str)
def test_it_ends_a_reply_in_a_chunk_of_its_own(framing: Framing) -> None:
    """Behind data, of which the client has had its part, and before the end."""
    made, feeder, _said = heeding(framing)
    put(made, 1, Cmd.READ)
    feeder.feed(framing.data_head(1, 0, 0, len(HALF), done=False) + HALF)
    before = bytes(feeder.sent)
    feeder.feed(refusal(framing, 1, done=False))
    feeder.feed(framing.end(1, 0))
    assert bytes(feeder.sent) == before
    assert list(made.in_flight) == [1]
    assert made.partial[1].covered == [(0, len(HALF))]


@pytest.mark.parametrize("framing", CHUNKED, ids=str)
def test_the_end_after_it_is_no_success(framing: Framing) -> None:
    """However it is received."""
    reply = refusal(framing, 1, done=False) + framing.end(1, 0)
    for cut in range(len(reply)):
        made, feeder, _said = heeding(framing)
        put(made, 1, Cmd.WRITE)
        feeder.feed(reply[:cut])
        feeder.feed(reply[cut:])
        assert not feeder.sent
        assert list(made.in_flight) == [1]


@pytest.mark.parametrize("framing", CHUNKED, ids=str)
def test_an_ask_is_not_answered_by_what_comes_behind(framing: Framing) -> None:
    made, feeder, _said = heeding(framing)
    outcomes: list[Outcome] = []
    made.asks.send(Ask(Cmd.READ, 0, LENGTH), outcomes.append)
    feeder.feed(refusal(framing, 1, done=False))
    last = framing.data_head(1, 0, 0, len(HALF), done=True) + HALF
    feeder.feed(last[:-1])
    feeder.feed(last[-1:])
    assert not outcomes
    assert [ask.command for ask, _done in made.asks.take()] == [Cmd.READ]


@pytest.mark.parametrize("framing", FRAMINGS, ids=str)
def test_a_flush_is_not_answered(framing: Framing) -> None:
    made, feeder, _said = heeding(framing)
    outcomes: list[Outcome] = []
    made.asks.send(Ask(Cmd.FLUSH, 0, 0), outcomes.append)
    made.to_upstream.clear()
    feeder.feed(refusal(framing, 1))
    made.asks.send(Ask(Cmd.READ, 0, LENGTH), outcomes.append)
    assert not made.to_upstream, "nothing is sent any more"
    assert not outcomes
    assert [ask.command for ask, _done in made.asks.take()] == [Cmd.FLUSH]
    assert [ask.command for ask, _done in made.asks.take_kept()] == [Cmd.READ]


@pytest.mark.parametrize("framing", CHUNKED, ids=str)
@pytest.mark.parametrize("first", [True, False])
def test_another_error_is_the_answer(framing: Framing, first: bool) -> None:
    """Whichever comes first: the client has been told."""
    made, feeder, said = heeding(framing)
    put(made, 1, Cmd.READ)
    bad = framing.failure(1, 0, Errno.EIO, done=not first)
    feeder.feed(bad + refusal(framing, 1) if first else refusal(framing, 1, done=False) + bad)
    assert not made.in_flight
    told = Errno.EIO.to_bytes(4, "big")
    assert told in feeder.sent
    assert Errno.ESHUTDOWN.to_bytes(4, "big") not in feeder.sent
    assert said == ["it goes"]


def test_a_second_reply_costs_the_link() -> None:
    made, feeder, _said = heeding(SIMPLE)
    put(made, 1, Cmd.WRITE)
    feeder.feed(refusal(SIMPLE, 1))
    with pytest.raises(WireError, match="second reply"):
        feeder.feed(refusal(SIMPLE, 1))


@pytest.mark.parametrize("framing", FRAMINGS, ids=str)
def test_it_is_an_answer_where_nobody_asks_again(framing: Framing) -> None:
    made = traffic(
        client_structured=framing.chunked,
        link_structured=framing.chunked,
        client_extended=framing is EXTENDED,
        link_extended=framing is EXTENDED,
    )
    feeder = Feeder(reply_scan(made))
    put(made, 1, Cmd.WRITE)
    feeder.feed(refusal(framing, 1))
    assert not made.in_flight
    assert bytes(feeder.sent) == framing.failure(1001, 0, Errno.ESHUTDOWN)

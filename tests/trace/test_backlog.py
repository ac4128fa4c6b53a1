"""What waits for a reader is bounded, and what finds no room is counted where it would have been."""

from __future__ import annotations

from gateway.trace.backlog import MESSAGE_BYTES, Backlog
from gateway.trace.message import Message
from gateway.wire.framing import SIMPLE
from tests.trace.conversations import Conversation, requests


def messages(count: int) -> list[Message]:
    talk = Conversation(SIMPLE)
    talk.requests.feed(requests(SIMPLE)[0] * count)
    return talk.seen


SIZE = MESSAGE_BYTES + 28


def test_what_finds_no_room_is_dropped_and_counted() -> None:
    first, second, third, fourth, fifth = messages(5)
    backlog = Backlog(2 * SIZE)
    for each in (first, second, third, fourth):
        backlog.put(each)
    assert backlog.take() is first
    backlog.put(fifth)
    assert [backlog.take() for _ in range(3)] == [second, 2, fifth]
    assert not backlog
    assert (backlog.messages, backlog.dropped) == (5, 2)


def test_a_word_of_ours_counts_as_well() -> None:
    [message] = messages(1)
    backlog = Backlog(MESSAGE_BYTES + 5)
    backlog.note("hello")
    backlog.put(message)
    backlog.note("is lost")
    assert [backlog.take(), backlog.take()] == ["hello", 2]
    backlog.note("again")
    assert backlog.take() == "again"
    assert (backlog.messages, backlog.dropped) == (1, 2)


def test_for_nobody_nothing_waits() -> None:
    backlog = Backlog()
    for each in messages(3):
        backlog.put(each)
    backlog.clear()
    assert not backlog
    assert backlog._bytes == 0

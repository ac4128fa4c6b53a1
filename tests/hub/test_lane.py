"""What a lane holds while nothing moves."""

from __future__ import annotations

import socket

import pytest

from gateway.hub.lane import MAX_ASIDE_BYTES, MIN_MESSAGE_BYTES, Lane
from tests.hub.wires import CountingPool


class TakeAll:
    """A scanner of messages of `MIN_MESSAGE_BYTES`."""

    def feed(
        self,
        buffer: bytearray,
        view: memoryview,
        start: int,
        end: int,
        out: list[memoryview | bytes],
    ) -> int:
        behind = end - (end - start) % MIN_MESSAGE_BYTES
        if behind > start:
            out.append(view[start:behind])
        return behind


@pytest.mark.parametrize("sent", [1, MIN_MESSAGE_BYTES - 1, MIN_MESSAGE_BYTES + 1])
def test_a_source_that_stops_inside_a_header_holds_no_buffer(sent: int) -> None:
    message = bytes(range(MIN_MESSAGE_BYTES)) * 2
    pool = CountingPool()
    theirs, source = socket.socketpair()
    sink, out = socket.socketpair()
    with theirs, source, sink, out:
        source.setblocking(False)
        lane = Lane(source, sink, TakeAll(), pool)
        theirs.send(message[:sent])
        lane.receive()
        lane.send()
        assert pool.taken == 0
        assert lane.unscanned == sent % MIN_MESSAGE_BYTES
        theirs.send(message[sent:])
        lane.receive()
        lane.send()
        assert out.recv(1000) == message
        assert (pool.taken, lane.unscanned) == (0, 0)


class TakeOne:
    """A scanner that takes a message a call, and only when it is told to."""

    def __init__(self) -> None:
        self.takes = False

    def feed(
        self,
        buffer: bytearray,
        view: memoryview,
        start: int,
        end: int,
        out: list[memoryview | bytes],
    ) -> int:
        if not self.takes or end - start < MIN_MESSAGE_BYTES:
            return start
        out.append(view[start : start + MIN_MESSAGE_BYTES])
        return start + MIN_MESSAGE_BYTES


@pytest.mark.parametrize(("count", "held"), [(3, 0), (MAX_ASIDE_BYTES // MIN_MESSAGE_BYTES + 1, 1)])
def test_what_has_to_wait_is_put_aside_if_it_is_little(count: int, held: int) -> None:
    messages = b"".join(number.to_bytes(MIN_MESSAGE_BYTES) for number in range(count))
    pool, scan = CountingPool(), TakeOne()
    theirs, source = socket.socketpair()
    sink, out = socket.socketpair()
    with theirs, source, sink, out:
        source.setblocking(False)
        lane = Lane(source, sink, scan, pool)
        theirs.send(messages[:-1])
        lane.receive()
        lane.put_aside()
        assert (pool.taken, lane.unscanned) == (held, len(messages) - 1)
        theirs.send(messages[-1:])
        lane.receive()
        lane.put_aside()
        assert (pool.taken, lane.unscanned) == (held, len(messages))
        scan.takes = True
        for number in range(count):
            lane.scan()
            lane.put_aside()  # does nothing before it is sent
            lane.send()
            lane.put_aside()
            assert out.recv(1000) == number.to_bytes(MIN_MESSAGE_BYTES)
        assert (pool.taken, lane.unscanned) == (0, 0)

"""What a lane holds while nothing moves."""

from __future__ import annotations

import socket

import pytest

from gateway.relay.lane import MIN_MESSAGE_BYTES, Lane
from tests.relay.wires import CountingPool


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

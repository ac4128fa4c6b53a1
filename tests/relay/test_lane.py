"""What a lane holds while nothing moves."""

from __future__ import annotations

import socket

import pytest

from gateway.relay.lane import MIN_MESSAGE_BYTES, Buffer, BufferPool, Lane


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


class CountingPool(BufferPool):
    """Knows how many of its buffers are out."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0

    def take(self) -> Buffer:
        self.taken += 1
        return super().take()

    def give_back(self, buffer: Buffer) -> None:
        self.taken -= 1
        super().give_back(buffer)


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

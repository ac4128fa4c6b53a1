"""One direction of a session: receive once, scan, send once.

A lane reads from its source into a buffer of the pool, lets its scanner turn that into a list of slices, and
sends the list. While something of the list is unsent it does not read: that is the backpressure, and it bounds
what a lane holds to one buffer and what its scanner added. An idle lane holds no buffer.
"""

from __future__ import annotations

from typing import Protocol

from gateway.net.options import RelaySocket
from gateway.wire.limits import KIB

BUFFER_BYTES = 1024 * KIB
"""What one receive takes at most: large enough that a megabyte takes a few system calls, small enough that
the bytes are still in the processor's cache when they are sent (docs/performance.md)."""

MAX_FREE_BUFFERS = 16
"""Buffers kept for the next lane that has something to read; a burst's others are given back."""

MAX_SLICES = 1024
"""IOV_MAX of Linux: slices in one sendmsg."""

MIN_MESSAGE_BYTES = 28
"""A lane with less than this, the header of a request, left over gives its buffer back and keeps the bytes
aside: else a thousand peers that stop inside a header would hold a thousand buffers."""

MAX_ASIDE_BYTES = 16 * KIB
"""What a lane that has to wait keeps aside in place of its buffer: some hundred requests without data. Else a
thousand clients that are held back would hold a thousand buffers. More than this is not worth copying."""

LONG_ASIDE_BYTES = BUFFER_BYTES // 2
"""The same of a lane that may have to wait for minutes, and is copied once in that time: so it never holds more
than twice what it keeps, and mostly nothing."""

Buffer = tuple[bytearray, memoryview]


class BufferPool:
    """Receive buffers, the one used last first: it is the one in the cache."""

    def __init__(self) -> None:
        self._free: list[Buffer] = []

    def take(self) -> Buffer:
        """Give a buffer."""
        if self._free:
            return self._free.pop()
        buffer = bytearray(BUFFER_BYTES)
        return buffer, memoryview(buffer)

    def give_back(self, buffer: Buffer) -> None:
        """Take a buffer that nothing points into any more."""
        if len(self._free) < MAX_FREE_BUFFERS:
            self._free.append(buffer)


class Scan(Protocol):
    """What a lane needs of a scanner; the contract is in `gateway.relay.scan`."""

    def feed(
        self,
        buffer: bytearray,
        view: memoryview,
        start: int,
        end: int,
        out: list[memoryview | bytes],
    ) -> int:
        """Take what is in `buffer[start:end]`."""
        ...


class Lane:
    """One direction of a session. `source` and `sink` are non-blocking sockets; one that is never used may be
    missing.
    """

    __slots__ = (
        "_buffer",
        "_end",
        "_left_over",
        "_pool",
        "_scan",
        "_start",
        "ended",
        "out",
        "sent_bytes",
        "sink",
        "source",
    )

    def __init__(
        self,
        source: RelaySocket | None,
        sink: RelaySocket | None,
        scan: Scan,
        pool: BufferPool,
    ) -> None:
        self.source = source
        self.sink = sink
        self._scan = scan
        self._pool = pool
        self._buffer: Buffer | None = None
        self._start = self._end = 0  # what is received and not yet scanned
        self._left_over = b""  # the same, where there is no buffer
        self.out: list[memoryview | bytes] = []
        """What is to be sent, in order."""
        self.sent_bytes = 0
        self.ended = False
        """The source has closed: no more will come."""

    @property
    def unscanned(self) -> int:
        """Bytes received that the scanner did not take: part of a message, or more than it may take."""
        return self._end - self._start + len(self._left_over)

    def receive(self) -> None:
        """Receive once and scan; not where the buffer is full of messages that the scanner holds back.

        Raises OSError if the source has failed, and what the scanner raises.
        """
        if self._buffer is None:
            self._take_buffer(self._left_over)
            self._left_over = b""
        assert self._buffer is not None
        buffer, view = self._buffer
        end = self._end
        if end == len(buffer):
            # The scanner holds back whole messages (never one that is larger than a buffer).
            return
        assert self.source is not None
        try:
            count = self.source.recv_into(view[end:] if end else buffer)
        except BlockingIOError:
            self.release()
            return
        if not count:
            self.ended = True
            self.release()
            return
        self._end = end + count
        self.scan()

    def scan(self) -> None:
        """Let the scanner look at what has been received."""
        if len(self._left_over) >= MIN_MESSAGE_BYTES:
            self._take_buffer(self._left_over)
            self._left_over = b""
        if self._buffer is not None:
            self._start = self._scan.feed(*self._buffer, self._start, self._end, self.out)

    def take_over(self, data: bytes) -> None:
        """Scan bytes that were received before the lane was there."""
        if data:
            self._take_buffer(data)
            self.scan()

    def _take_buffer(self, data: bytes) -> None:
        self._buffer = self._pool.take()
        self._buffer[0][: len(data)] = data
        self._end = len(data)

    def send(self) -> None:
        """Send once. Raises OSError if the sink has failed."""
        out = self.out
        if out:
            assert self.sink is not None
            try:
                if len(out) == 1:
                    sent = self.sink.send(out[0])
                    self.sent_bytes += sent
                    if sent == len(out[0]):
                        out.clear()
                    else:
                        out[0] = memoryview(out[0])[sent:]
                else:
                    self._drop_sent(self.sink.sendmsg(out[:MAX_SLICES]))
            except BlockingIOError:
                return
        if self._buffer is not None:
            self.release()

    def _drop_sent(self, sent: int) -> None:
        out = self.out
        self.sent_bytes += sent
        done = 0
        for piece in out:
            if sent < len(piece):
                break
            sent -= len(piece)
            done += 1
        del out[:done]
        if sent:
            out[0] = memoryview(out[0])[sent:]

    def release(self) -> None:
        """Give the buffer back if hardly anything in it is needed; otherwise move what is left to its
        beginning.

        Nothing of `out` may point into the buffer.
        """
        self._keep_aside(MIN_MESSAGE_BYTES - 1)

    def put_aside(self, most: int = MAX_ASIDE_BYTES) -> None:
        """Give the buffer back, unless there is more than `most` in it: it will be a while until more can be
        scanned.
        """
        self._keep_aside(most)

    def lead_to(self, sink: RelaySocket, scan: Scan) -> None:
        """Go on to another sink, with another scanner, which takes up what is unscanned."""
        assert not self.out
        self.sink, self._scan = sink, scan

    def come_from(self, source: RelaySocket, scan: Scan) -> None:
        """Go on from another source, with another scanner. Nothing is left of the old one."""
        assert not self.out
        assert not self.unscanned
        self.source, self._scan = source, scan
        self.ended = False

    def _keep_aside(self, most: int) -> None:
        if self._buffer is None or self.out:
            return
        start, end = self._start, self._end
        if end - start <= most:
            self._left_over = bytes(self._buffer[1][start:end])
            self._pool.give_back(self._buffer)
            self._buffer = None
            self._end = 0
        elif start:
            view = self._buffer[1]
            view[: end - start] = view[start:end]
            self._end = end - start
        self._start = 0

    def discard(self) -> None:
        """Forget what is to be sent: there is nobody to send it to."""
        self.out.clear()
        self.release()

    def close(self) -> None:
        """Forget everything, and give the buffer back."""
        self._start = self._end
        self._left_over = b""
        self.discard()

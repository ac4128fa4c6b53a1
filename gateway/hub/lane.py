"""One direction of a session: receive once, scan, send once.

A lane reads from its source into a buffer of the pool, lets its scanner turn that into a list of slices, and
sends the list. It does not read while something of the list is unsent. That is the backpressure: a lane holds
one buffer at most, and what its scanner added. An idle lane holds no buffer.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Protocol

from gateway.jobs.locks import Entry
from gateway.net.options import RelaySocket
from gateway.wire.constants import Cmd
from gateway.wire.limits import KIB

BUFFER_BYTES = 2048 * KIB
"""What one receive takes at most: two requests of a megabyte, so that one is received and sent as a whole,
wherever in the buffer it begins. With half of this a write of a megabyte over TCP took an eighth more processor
time on two AMD processors, with twice of it no less than with this; over Unix sockets all were alike."""

MAP_BYTES = 16 * KIB
"""The same while the oldest command under way is a BLOCK_STATUS. nbdkit sends each extent by itself, and a Unix
socket keeps it so. One receive goes on for as long as more extents come, which took 30 ms for 32,000 of them;
this is 2,048. Data that comes before the map costs a few receives more. Over TLS it does not hold, for a whole
record has to find room."""

_STATUS = int(Cmd.BLOCK_STATUS)

MAX_FREE_BUFFERS = 16
"""Buffers kept for the next lane that has something to read. More are needed in a burst, and freed after it."""

MAX_SLICES = 1024
"""IOV_MAX of Linux: slices in one sendmsg."""

MIN_FREE_BYTES = 64 * KIB
"""We go on receiving into a pinned buffer as long as it has so much room left: less is not worth a receive."""

MIN_MESSAGE_BYTES = 28
"""The header of a request. A lane with less than this left over keeps the bytes aside and gives its buffer
back: else a thousand peers that stop inside a header would hold a thousand buffers."""

MAX_ASIDE_BYTES = 16 * KIB
"""How much a lane that has to wait keeps aside in place of its buffer: some hundred requests without data. Else
a thousand clients that are held back would hold a thousand buffers. More is not worth copying."""

LONG_ASIDE_BYTES = BUFFER_BYTES // 2
"""The same for a lane that may have to wait for minutes, and is copied only once in that time: so it never
holds more than twice what it keeps, and mostly nothing."""


class Segment:
    """A receive buffer, and who still needs what is in it.

    What a client writes may be needed again until the server has answered. So a segment with such data is
    *pinned*: nothing in it is overwritten. A lane that is done with a pinned segment parts from it, and whoever
    takes the last pin off gives the segment back.
    """

    __slots__ = ("data", "parted", "pins", "pool", "view")

    def __init__(self, pool: BufferPool) -> None:
        self.data = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.data)
        self.pool = pool
        self.pins = 0
        self.parted = False

    def unpin(self) -> None:
        """Take a pin off."""
        self.pins -= 1
        if self.parted and not self.pins:
            self.pool.give_back(self)

    def part(self) -> None:
        """Its lane does not use it any more."""
        if self.pins:
            self.parted = True
        else:
            self.pool.give_back(self)


class BufferPool:
    """Receive buffers. The one that was used last is given first: it is still in the cache."""

    def __init__(self) -> None:
        self.free: list[Segment] = []
        """Those that nobody uses. The compiled pump takes and gives back here, too."""

    def take(self) -> Segment:
        """Give a buffer."""
        return self.free.pop() if self.free else Segment(self)

    def give_back(self, segment: Segment) -> None:
        """Take a buffer that nothing points into any more."""
        segment.parted = False
        if len(self.free) < MAX_FREE_BUFFERS:
            self.free.append(segment)


class Scan(Protocol):
    """What a lane needs of a scanner; the contract is in `gateway.scan`."""

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
        "_end",
        "_left_over",
        "_pool",
        "_scan",
        "_segment",
        "_start",
        "ended",
        "out",
        "sent_bytes",
        "sink",
        "source",
        "usual",
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
        self._segment: Segment | None = None
        self._start = self._end = 0  # what is received and not yet scanned
        self._left_over = b""  # the same, where there is no buffer
        self.out: list[memoryview | bytes] = []
        """What is to be sent, in order."""
        self.sent_bytes = 0
        self.ended = False
        """The source has closed: no more will come."""
        self.usual: Callable[[], bool] | None = None
        """Scans the usual case before the scanner does (`gateway.hub.pump`), and notes here how far that goes.
        Says whether nothing is left for the scanner to do now."""

    @property
    def unscanned(self) -> int:
        """How many bytes were received that the scanner has not taken: part of a message, or more than it may
        take.
        """
        return self._end - self._start + len(self._left_over)

    @property
    def unscanned_bytes(self) -> bytes:
        """Give these bytes."""
        here = b"" if self._segment is None else self._segment.view[self._start : self._end]
        return self._left_over + bytes(here)

    @property
    def unsent(self) -> int:
        """How many bytes are to be sent."""
        return sum(map(len, self.out))

    def receive(self, under_way: Mapping[int, Entry] | None = None) -> None:
        """Receive once and scan, unless the buffer is full of messages that the scanner holds back. For
        replies, the oldest of the commands that are `under_way` decides how much is received at most
        (`MAP_BYTES`).

        Raises OSError if the source has failed, and what the scanner raises.
        """
        segment = self._segment
        if segment is None:
            segment = self._take_buffer(self._left_over)
            self._left_over = b""
        end = self._end
        if segment.pins and end + MIN_FREE_BYTES > BUFFER_BYTES and not self.out:
            segment = self._exchange(segment)
            end = self._end
        buffer, view = segment.data, segment.view
        if end == len(buffer):
            # The scanner holds back whole messages (never one that is larger than a buffer).
            return
        assert self.source is not None
        room: bytearray | memoryview = view[end:] if end else buffer
        for_map = under_way and next(iter(under_way.values()))[1] & 0xFFFF == _STATUS
        if for_map and isinstance(self.source, socket.socket):
            room = view[end : end + MAP_BYTES]
        try:
            count = self.source.recv_into(room)
        except BlockingIOError:
            self.release()
            return
        if not count:
            self.ended = True
            self.release()
            return
        self._end = end = end + count
        if self.usual is None or not self.usual():
            self._start = self._scan.feed(buffer, view, self._start, end, self.out)

    def scan(self) -> None:
        """Let the scanner look at what has been received."""
        if self._left_over:
            self._take_buffer(self._left_over)
            self._left_over = b""
        segment = self._segment
        if segment is not None and (self.usual is None or not self.usual()):
            self._start = self._scan.feed(
                segment.data, segment.view, self._start, self._end, self.out
            )

    def take_over(self, data: bytes) -> None:
        """Scan bytes that were received before the lane was there."""
        if data:
            self._take_buffer(data)
            self.scan()

    def _take_buffer(self, data: bytes | memoryview) -> Segment:
        segment = self._segment = self._pool.take()
        self._start, self._end = 0, len(data)
        if data:
            segment.data[: len(data)] = data
        return segment

    def pin(self) -> Segment:
        """Keep the buffer that is scanned now as it is, until `unpin`."""
        assert self._segment is not None
        self._segment.pins += 1
        return self._segment

    def release_what_nobody_needs(self) -> None:
        """Give the buffer back if it was kept only because it was pinned."""
        segment = self._segment
        if segment is not None and not segment.pins and not self.out:
            self.release()

    def _exchange(self, full: Segment) -> Segment:
        """Go on in another buffer with what is not scanned, for the full one is pinned."""
        segment = self._take_buffer(full.view[self._start : self._end])
        full.part()
        return segment

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
        if self._segment is not None:
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
        """Give the buffer back, unless more than `most` in it is unscanned: it will be a while until more can
        be scanned.
        """
        self._keep_aside(most)

    def lead_to(self, sink: RelaySocket | None, scan: Scan) -> None:
        """Send to another sink from now on, with another scanner, which takes up what is unscanned."""
        assert not self.out
        self.sink, self._scan = sink, scan

    def come_from(self, source: RelaySocket | None, scan: Scan) -> None:
        """Receive from another source from now on, with another scanner. Nothing is left of the old source."""
        assert not self.out
        assert not self.unscanned
        self.source, self._scan = source, scan
        self.ended = False

    def lead_nowhere(self) -> None:
        """Send nothing any more, not even what was to be sent; the scanner goes on."""
        self.out.clear()
        self.sink = None
        self.release()

    def come_from_nowhere(self) -> None:
        """Receive nothing any more. What was received is dropped; what is to be sent is still sent."""
        self._start = self._end
        self._left_over = b""
        self.source = None
        self.ended = False
        self.release()

    def _keep_aside(self, most: int) -> None:
        segment = self._segment
        if segment is None or self.out:
            return
        start, end = self._start, self._end
        if segment.pins and end + MIN_FREE_BYTES <= BUFFER_BYTES:
            return  # there is room behind what is pinned
        if end - start <= most:
            if end > start:
                self._left_over = bytes(segment.view[start:end])
            segment.part()
            self._segment = None
            self._end = 0
        elif segment.pins:
            self._exchange(segment)
        elif start:
            view = segment.view
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
        if self._segment is not None:
            self._segment.part()
            self._segment = None
            self._start = self._end = 0

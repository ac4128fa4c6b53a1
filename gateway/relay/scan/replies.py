"""The upstream's replies: what comes back to the client.

Three scanners, one for each pair of framings that a session can have. `SimpleReplies` (both sides simple) and
`WrappedReplies` (a simple upstream, a structured client: a READ's reply becomes one OFFSET_DATA chunk) are
here, `StructuredReplies` (both structured) is in `chunks`. All of them go by the same rules:

- The cookie must be one of ours, and the reply one that its command may get; otherwise this link has lost its
  way, and `WireError` ends it.
- An error that is announced must reach the client. So a data chunk that says DONE, as nbdkit's do, while not
  all of its data is here, goes out with DONE cleared, and a NONE chunk follows when the data is complete: if
  the upstream dies in between, the rest of the chunk is zeros *and an error chunk follows*. (Begun with DONE
  and padded, it would read as success.) A simple reply that has begun cannot be taken back: the client's
  connection ends.
- DONE over a gap, or before every meta context had its chunk, is an error.

"Structured reply message" and "Structured reply types" in proto.md.
"""

from __future__ import annotations

from itertools import repeat

from gateway.protocol.commands import normal_error
from gateway.relay.scan.traffic import PIECE, Entry, Traffic
from gateway.wire import limits
from gateway.wire.constants import SIMPLE_REPLY_MAGIC, Chunk, CmdFlag, Errno
from gateway.wire.errors import WireError
from gateway.wire.transmission import (
    COOKIE,
    COOKIE_AT,
    SIMPLE_REPLY,
    encode_chunk,
    encode_data_head,
    encode_error_chunk,
)

_ZEROES = memoryview(bytes(256 * limits.KIB))

Out = list[memoryview | bytes]


class Replies:
    """What the three have in common; see the package's docstring for the contract of `feed`."""

    __slots__ = ("_closing", "_open", "payload_left", "requests", "traffic", "waiting")

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        self.payload_left = 0
        """Bytes of a READ's data that the client has not been sent: nothing else may be sent now."""
        self.waiting: list[bytes] = []
        """Replies of our own that wait for the end of that data."""
        self.requests: list[bytes] = []
        """Requests that follow from a reply, for the upstream; whoever feeds takes them."""
        self._open: Entry | None = None  # the command whose data is going out
        # The chunk that ends its reply, if it is to end with this data:
        self._closing: list[bytes] = []

    def feed(self, buffer: bytearray, view: memoryview, start: int, end: int, out: Out) -> int:
        """Take what is in `buffer[start:end]`; see the package's docstring."""
        raise NotImplementedError

    @property
    def between_messages(self) -> bool:
        """Nothing is half sent to the client."""
        return not self.payload_left

    def fail(self, why: str) -> Out | None:
        """Give what the client is told when the link has died: EIO for every command under way.

        None if it cannot be told anything, because a simple reply with data has begun.
        """
        traffic = self.traffic
        out: Out = []
        if self.payload_left:
            assert self._open is not None
            if not traffic.plan.offer.structured:
                return None
            full, rest = divmod(self.payload_left, len(_ZEROES))
            out += repeat(_ZEROES, full)
            out.append(_ZEROES[:rest])
            if self._closing:  # otherwise the command is in flight still
                out.append(encode_error_chunk(self._open[0], Errno.EIO, why))
        out += self.waiting
        out += [traffic.failure(entry[0], Errno.EIO, why) for entry in traffic.in_flight.values()]
        self.payload_left = 0
        self.waiting.clear()
        traffic.in_flight.clear()
        traffic.pieces.clear()
        traffic.partial.clear()
        return out

    def _go_on(self, view: memoryview, start: int, end: int, out: Out) -> tuple[int, int]:
        """Send on the data of the reply that is open; give where the run of bytes to send begins that the
        caller goes on with, and the position behind the data (or the end).
        """
        pos = start + self.payload_left
        if pos > end:
            self.payload_left = pos - end
            out.append(view[start:end])
            return end, end
        self.payload_left = 0
        self._open = None
        if not self._closing and not self.waiting:
            return start, pos
        out.append(view[start:pos])
        out += self._closing
        out += self.waiting
        self._closing = []
        self.waiting = []
        return pos, pos

    def interject(self, reply: bytes, out: Out) -> None:
        """Send the client a reply of our own, now or as soon as no data is half sent."""
        (self.waiting if self.payload_left else out).append(reply)

    def _entry(self, ours: int) -> Entry:
        entry = self.traffic.in_flight.get(ours)
        if entry is None:
            raise WireError(f"a reply with cookie {ours:#x}, which no command under way has")
        return entry

    def _settle_simple(self, ours: int, entry: Entry, error: int, out: Out) -> None:
        """Take the whole simple reply to a command: an error, or one that comes of a piece."""
        cookie, word, _offset, _length = entry
        del self.traffic.in_flight[ours]
        self.traffic.partial.pop(ours, None)
        if word & PIECE:
            self._settle_piece(ours, error, "", out)
        else:  # a plain success is FAST
            out.append(self.traffic.failure(cookie, normal_error(word, error)))

    def _settle_piece(self, ours: int, error: int, text: str, out: Out) -> None:
        """Take the outcome of one piece: go on with the next, or end the command.

        FAST_ZERO refused once something has been zeroed cannot be told any more: the client reads it as
        "nothing was touched". So that piece and the rest are done the slow way.
        """
        traffic = self.traffic
        pieces = traffic.pieces.pop(ours)
        fast_zero = CmdFlag.FAST_ZERO << 16
        if error == Errno.ENOTSUP and pieces.begun and pieces.word & fast_zero:
            pieces.word &= ~fast_zero
        elif error:
            out.append(traffic.failure(pieces.cookie, normal_error(pieces.word, error), text))
            return
        else:
            pieces.begun = True
            pieces.next_offset += min(
                limits.WRITE_ZEROES_PIECE_BYTES, pieces.end - pieces.next_offset
            )
        if pieces.next_offset == pieces.end:
            out.append(traffic.success(pieces.cookie, pieces.word))
        else:
            self.requests.append(traffic.next_piece(pieces, limits.WRITE_ZEROES_PIECE_BYTES))


class SimpleReplies(Replies):
    """Both sides simple."""

    __slots__ = ()

    def feed(self, buffer: bytearray, view: memoryview, start: int, end: int, out: Out) -> int:
        """Take what is in `buffer[start:end]`; see the package's docstring."""
        in_flight = self.traffic.in_flight
        unpack, pack_cookie = SIMPLE_REPLY.unpack_from, COOKIE.pack_into
        run = pos = start
        if self.payload_left:
            run, pos = self._go_on(view, start, end, out)
        while end - pos >= 16:
            magic, error, ours = unpack(buffer, pos)
            entry = in_flight.get(ours)
            if entry is None or error or entry[1] & PIECE or magic != SIMPLE_REPLY_MAGIC:
                if pos > run:
                    out.append(view[run:pos])
                _expect_simple(magic)
                self._settle_simple(ours, self._entry(ours), error, out)
                run = pos = pos + 16
                continue
            del in_flight[ours]
            pack_cookie(buffer, pos + COOKIE_AT, entry[0])
            pos += 16
            if not entry[1] & 0xFFFF:  # READ
                pos += entry[3]
                if pos > end:
                    self.payload_left = pos - end
                    self._open = entry
                    pos = end
        if pos > run:
            out.append(view[run:pos])
        return pos


class WrappedReplies(Replies):
    """A simple upstream, a structured client: the data of a READ goes out as one chunk.

    Replies without data stay simple, as proto.md allows ("Structured reply message").
    """

    __slots__ = ()

    def feed(self, buffer: bytearray, view: memoryview, start: int, end: int, out: Out) -> int:
        """Take what is in `buffer[start:end]`; see the package's docstring."""
        in_flight = self.traffic.in_flight
        unpack, pack_cookie = SIMPLE_REPLY.unpack_from, COOKIE.pack_into
        run = pos = start
        if self.payload_left:
            run, pos = self._go_on(view, start, end, out)
        while end - pos >= 16:
            magic, error, ours = unpack(buffer, pos)
            entry = in_flight.get(ours)
            if entry is None or error or entry[1] & PIECE or magic != SIMPLE_REPLY_MAGIC:
                if pos > run:
                    out.append(view[run:pos])
                _expect_simple(magic)
                self._settle_simple(ours, self._entry(ours), error, out)
                run = pos = pos + 16
                continue
            del in_flight[ours]
            cookie, word, offset, length = entry
            if word & 0xFFFF:  # not READ
                pack_cookie(buffer, pos + COOKIE_AT, cookie)
                pos += 16
                continue
            if pos > run:
                out.append(view[run:pos])
            run = pos + 16
            pos = run + length
            out.append(encode_data_head(cookie, offset, length, done=pos <= end))
            if pos > end:
                self.payload_left = pos - end
                self._open = entry
                self._closing = [encode_chunk(cookie, Chunk.NONE)]
                pos = end
        if pos > run:
            out.append(view[run:pos])
        return pos


def _expect_simple(magic: int) -> None:
    if magic != SIMPLE_REPLY_MAGIC:
        raise WireError(f"a reply begins with {magic:#010x} instead of {SIMPLE_REPLY_MAGIC:#010x}")

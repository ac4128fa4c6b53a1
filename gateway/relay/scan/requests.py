"""The client's requests: what goes upstream, and what is answered here."""

from __future__ import annotations

from gateway.protocol.commands import refusal
from gateway.protocol.errors import Hangup
from gateway.relay.scan.traffic import MAX_IN_FLIGHT, Pieces, Traffic
from gateway.wire import limits
from gateway.wire.constants import REQUEST_MAGIC, Cmd
from gateway.wire.errors import WireError
from gateway.wire.transmission import COOKIE, COOKIE_AT, REQUEST, encode_request

MAX_ANSWERS = MAX_IN_FLIGHT
"""Replies of our own that wait for the client to take them; while there are so many, its requests stay
unread. A client that sends nonsense and never reads costs no more than this."""


class RequestScan:
    """Scans requests; see the package's docstring for the contract of `feed`."""

    __slots__ = (
        "_drop_left",
        "_fast",
        "_mask",
        "_size",
        "_traffic",
        "answers",
        "disconnected",
        "payload_left",
        "stopped",
        "waiting",
    )

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._fast = traffic.plan.fast
        self._size = traffic.plan.offer.size
        self._mask = traffic.plan.offer.alignment - 1
        self._drop_left = 0
        self.payload_left = 0
        """Bytes of a WRITE's data that the upstream has not been sent: nothing else may be sent now."""
        self.waiting: list[bytes] = []
        """Requests of our own that wait for the end of that WRITE."""
        self.answers: list[bytes] = []
        """Replies of our own to the client; whoever feeds takes them."""
        self.disconnected = False
        """DISC has come; what is behind it is not looked at."""
        self.stopped = False
        """Set from outside: begin no request, only take to its end what has begun."""

    @property
    def between_messages(self) -> bool:
        """The client may go now without leaving a request half sent."""
        return not self.payload_left and not self._drop_left

    def interject(self, request: bytes, out: list[memoryview | bytes]) -> None:
        """Send the upstream a request of our own, now or as soon as no data is half sent."""
        (self.waiting if self.payload_left else out).append(request)

    def feed(
        self,
        buffer: bytearray,
        view: memoryview,
        start: int,
        end: int,
        out: list[memoryview | bytes],
    ) -> int:
        """Take what is in `buffer[start:end]`; see the package's docstring."""
        traffic = self._traffic
        in_flight = traffic.in_flight
        longest_fast = self._fast.get
        size, mask = self._size, self._mask
        unpack, pack_cookie = REQUEST.unpack_from, COOKIE.pack_into
        run = pos = start
        if self.payload_left:
            pos = start + self.payload_left
            if pos > end:
                self.payload_left = pos - end
                out.append(view[start:end])
                return end
            self.payload_left = 0
            if self.waiting:
                out.append(view[run:pos])
                out += self.waiting
                self.waiting.clear()
                run = pos
        elif self._drop_left:
            run = pos = self._drop(start, end, self._drop_left)
        room = 0 if self.stopped else MAX_IN_FLIGHT - len(in_flight)
        while end - pos >= 28 and room > 0:
            magic, word, cookie, offset, length = unpack(buffer, pos)
            if (
                magic == REQUEST_MAGIC
                and 0 < length <= longest_fast(word, 0)
                and offset + length <= size
                and not (offset | length) & mask
            ):
                traffic.last_cookie = ours = traffic.last_cookie + 1
                in_flight[ours] = (cookie, word, offset, length)
                pack_cookie(buffer, pos + COOKIE_AT, ours)
                room -= 1
                pos += 28
                if word & 0xFFFF == 1:  # WRITE
                    pos += length
                    if pos > end:
                        self.payload_left = pos - end
                        pos = end
                continue
            if pos > run:
                out.append(view[run:pos])
            run = pos  # so that what is out stays out if this raises
            if magic != REQUEST_MAGIC:
                raise WireError(
                    f"a request begins with {magic:#010x} instead of {REQUEST_MAGIC:#010x}"
                )
            run = pos = self._judge(pos + 28, end, (word, cookie, offset, length), out)
            room = MAX_IN_FLIGHT - len(in_flight)
            if self.disconnected or len(self.answers) >= MAX_ANSWERS:
                break
        if pos > run:
            out.append(view[run:pos])
        return pos

    def _judge(
        self,
        pos: int,
        end: int,
        request: tuple[int, int, int, int],
        out: list[memoryview | bytes],
    ) -> int:
        """Take a request that is not FAST, whose header ends at `pos`; give the position behind what it
        took.
        """
        word, cookie, offset, length = request
        traffic = self._traffic
        plan = traffic.plan
        command = word & 0xFFFF
        if command == Cmd.DISC:
            self.disconnected = True
            return end
        refused = refusal(plan.offer, word, offset, length)
        if refused is not None:
            if command == Cmd.WRITE:
                if length > limits.MAX_DRAIN_BYTES:
                    raise Hangup(f"a WRITE of {length} bytes")
                pos = self._drop(pos, end, length)
            self.answers.append(traffic.failure(cookie, refused.error, refused.text))
        elif (not length and command != Cmd.FLUSH) or (command == Cmd.CACHE and plan.answer_cache):
            self.answers.append(traffic.success(cookie, word))
        elif command == Cmd.WRITE_ZEROES:  # the only other reason: it is too long for one piece
            pieces = Pieces(cookie, word, offset, offset + length)
            out.append(traffic.next_piece(pieces, limits.WRITE_ZEROES_PIECE_BYTES))
        else:
            out.append(self._reworded(word, cookie, offset, length))
        return pos

    def _reworded(self, word: int, cookie: int, offset: int, length: int) -> bytes:
        """Enter a request whose flags or length change on the way; give it as it goes upstream."""
        rule = self._traffic.plan.rules[word]
        if rule.command is Cmd.BLOCK_STATUS:
            length = min(length, limits.BLOCK_STATUS_BYTES)
        ours = self._traffic.new_cookie()
        self._traffic.in_flight[ours] = (cookie, rule.word, offset, length)
        return encode_request(rule.command, rule.flags, ours, offset, length)

    def _drop(self, pos: int, end: int, length: int) -> int:
        """Drop the data of a WRITE that was refused; give the position behind it, or the end."""
        behind = pos + length
        self._drop_left = max(0, behind - end)
        return min(behind, end)

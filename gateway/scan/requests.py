"""The client's requests: what goes upstream, and what is answered here."""

from __future__ import annotations

from collections.abc import Callable

from gateway.jobs.locks import Entry
from gateway.jobs.steps import Outside, hooked, moved
from gateway.jobs.translate import status, translate
from gateway.protocol.commands import (
    PAYLOAD,
    RANGED,
    WRITE_CLASS,
    carries_payload,
    longest_drain,
    subset_refusal,
)
from gateway.protocol.errors import Hangup
from gateway.protocol.table import Ranges, touches
from gateway.scan.memory import Memory, Pinned
from gateway.scan.plan import Plan, contexts_wanted
from gateway.scan.traffic import MAX_IN_FLIGHT, OTHERS, Traffic
from gateway.scan.turn import FEW
from gateway.wire.constants import Cmd, CmdFlag
from gateway.wire.errors import WireError
from gateway.wire.handshake import TLS_WITHOUT_NBD, begins_tls
from gateway.wire.limits import KIB
from gateway.wire.transmission import (
    COOKIE,
    COOKIE_AT,
    EXTENT,
    MAX_DECODED_EXTENTS,
    OFFSET,
    OFFSET_AT,
    WORD,
    WORD_AT,
    decode_status_payload,
)

MAX_ANSWERS = MAX_IN_FLIGHT
"""How many replies of our own may wait for the client to take them. While there are so many, its requests stay
unread: a client that sends nonsense and never reads costs no more than this."""

MAX_COPIED_BYTES = 16 * KIB
"""Data that has to be kept is copied if it is no longer than this: that costs less than to have another buffer
meanwhile."""

STATUS_COST_BYTES = 2 * MAX_DECODED_EXTENTS * EXTENT.size
"""How much a job holds of each context at most: two answers that are being joined."""

_NEVER = (0, 0, None)  # a word that is not FAST

_Request = tuple[int, int, int, int]  # (word, cookie, offset, length)


def mask_of(plan: Plan) -> int:
    """Give the bits that are 0 in what goes FAST: in offsets, which are the upstream's, and in lengths."""
    alignment = plan.offer.alignment
    if plan.offer.base % alignment:
        return -1  # the client's blocks begin in the middle of the upstream's: one look cannot tell
    return max(plan.upstream.minimum, alignment) - 1


class RequestScan:
    """Scans requests; see the package's docstring for the contract of `feed`."""

    __slots__ = (
        "_base",
        "_drop_left",
        "_fast",
        "_framing",
        "_gather_left",
        "_gathered",
        "_gathered_for",
        "_mask",
        "_refusal",
        "_size",
        "_traffic",
        "answers",
        "disconnected",
        "payload_left",
        "pin",
        "stopped",
        "waiting",
    )

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._take(traffic.plan)
        self._drop_left = 0  # bytes missing of a payload that nobody takes
        self._refusal = b""  # what is answered when it has come
        self._gather_left = 0  # bytes missing of a payload that a job needs whole
        self._gathered, self._gathered_for = bytearray(), (0, 0, 0, 0)
        self.pin: Callable[[], Pinned] = _not_pinned
        """Pins the buffer that `feed` is given; set by whoever feeds, where there is a memory."""
        self.payload_left = 0
        """Bytes of a WRITE's data that the upstream has not been sent: nothing else may be sent now."""
        self.waiting: list[memoryview | bytes] = []
        """Requests of our own that wait for the end of that WRITE."""
        self.answers: list[bytes] = []
        """Replies of our own to the client; whoever feeds takes them."""
        self.disconnected = False
        """DISC has come. Nobody looks at what comes after it."""
        self.stopped = False
        """Set from outside: begin no request, and only take to its end what has begun."""

    def _take(self, plan: Plan) -> None:
        self._fast = plan.fast
        self._framing = plan.offer.framing
        self._size = plan.offer.size
        self._base = plan.offer.base
        self._mask = mask_of(plan)

    def forget_pin(self) -> None:
        """Nothing is fed any more, so nothing is pinned."""
        self.pin = _not_pinned

    def refuse_half_sent(self, answer: bytes) -> None:
        """The link has died, after it had refused the WRITE whose data is half sent. Answer that WRITE when the
        rest of its data has come.
        """
        self._drop_left, self.payload_left = self.payload_left, 0
        self._refusal = answer

    def go_by(self, plan: Plan, begun: bytes, entry: Entry | None) -> None:
        """Go by another plan, whose link has seen nothing. What had `begun` of a WRITE's data is gathered,
        and its rest; `entry` is that WRITE.
        """
        self._take(plan)
        self.waiting.clear()
        if entry is not None:
            cookie, word, offset, length = entry
            self._gathered = bytearray(begun)
            self._gather_left, self.payload_left = self.payload_left, 0
            self._gathered_for = word, cookie, offset - self._base, length

    @property
    def between_messages(self) -> bool:
        """The client may go now without leaving a request half sent."""
        return not self.payload_left and not self._drop_left and not self._gather_left

    @property
    def rest(self) -> int:
        """How many bytes the client has still to send of a request that has begun."""
        return self.payload_left + self._drop_left + self._gather_left

    def interject(self, request: memoryview | bytes, out: list[memoryview | bytes]) -> None:
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
        # What may be lost must be looked at one by one.
        fast = _no_word_is if traffic.debt.lost else self._fast.get
        size, mask, base = self._size, self._mask, self._base
        client, link = self._framing, traffic.plan.link
        unpack, header, client_magic = (
            client.request.unpack_from,
            client.request.size,
            client.request_magic,
        )
        pack, link_magic, same = (
            link.request.pack,
            link.request_magic,
            client.request is link.request,
        )
        pack_cookie = COOKIE.pack_into
        asked, asked_bytes = traffic.asked, traffic.asked_bytes
        gate, memory = traffic.gate, traffic.memory
        if memory is not None:
            memory.look_for_news(traffic.last_cookie)  # what is asked from now on, they know
        run = pos = start
        if self.payload_left:
            pos = start + self.payload_left
            if memory is not None and start < end:
                self._keep_more(memory, view[start : min(pos, end)])
            if pos > end:
                self.payload_left = pos - end
                out.append(view[start:end])
                return end
            self.payload_left = 0
            traffic.early.half_sent = 0
            if self.waiting:
                out.append(view[run:pos])
                out += self.waiting
                self.waiting.clear()
                run = pos
        elif self._drop_left:
            run = pos = self._drop(start, end, self._drop_left)
        elif self._gather_left:
            run = pos = self._gather(view, start, end, out)
        # While there is a claim, every command that writes has to be a job, which claims its range. So we
        # look again whenever a job may have begun. While there are fences it has to be a job, too, to wait
        # for them.
        guarded = (mask and traffic.locks.busy) or traffic.fences.standing or traffic.stale
        last = end - header  # where a request that is here begins at the latest
        ours = traffic.last_cookie
        newest = ours if self.stopped else ours + traffic.room
        while pos <= last and ours < newest:
            magic, word, cookie, offset, length = unpack(buffer, pos)
            if (
                gate is not None
                and magic == client_magic
                and word & 0xFFFF != Cmd.DISC
                and not gate.take(moved_bytes(traffic.plan, word, offset, length))
            ):
                traffic.held = True
                break
            longest, sent, ranges = fast(word, _NEVER)
            at = offset + base  # upstream
            if (
                0 < length <= longest
                and magic == client_magic
                and offset + length <= size
                and not (at | length) & mask
                and (ranges is None or not touches(ranges, offset, offset + length))
                and not (guarded and word & 0xFFFF in WRITE_CLASS)
            ):
                ours += 1
                in_flight[ours] = (cookie, word, at, length)
                asked[command := word & 0xFFFF] += 1
                asked_bytes[command] += length
                if same:
                    pack_cookie(buffer, pos + COOKIE_AT, ours)
                    if base:
                        OFFSET.pack_into(buffer, pos + OFFSET_AT, at)
                    if sent != word:
                        WORD.pack_into(buffer, pos + WORD_AT, sent)
                    pos += header
                else:
                    if pos > run:
                        out.append(view[run:pos])
                    out.append(pack(link_magic, sent, ours, at, length))
                    run = pos = pos + header
                if command == 1:  # WRITE
                    data = pos
                    pos += length
                    if pos > end:
                        self.payload_left = pos - end
                        traffic.early.half_sent = ours
                        pos = end
                    if memory is not None:
                        memory.kept_bytes += length
                        if length <= MAX_COPIED_BYTES and pos - data == length:
                            memory.kept[ours] = buffer[data:pos]
                        else:
                            memory.kept[ours] = [(self.pin(), view[data:pos])] if pos > data else []
                if not ours & FEW and traffic.turn.takes():
                    break
                continue
            if pos > run:
                out.append(view[run:pos])
            run = pos  # so that what is out stays out if this raises
            traffic.last_cookie = ours
            if magic != client_magic:
                if begins_tls(magic):  # to an oldstyle listener
                    raise WireError(TLS_WITHOUT_NBD)
                raise WireError(
                    f"a request begins with {magic:#010x} instead of {client_magic:#010x}"
                )
            request = word, cookie, offset, length
            run = pos = self._judge(view, pos + header, end, request, out)
            guarded = (mask and traffic.locks.busy) or traffic.fences.standing or traffic.stale
            ours = traffic.last_cookie
            newest = ours if self.stopped else ours + traffic.room
            answers = len(self.answers) + len(traffic.to_client)
            if self.disconnected or answers >= MAX_ANSWERS or not self.between_messages:
                break
            if traffic.turn.takes():
                break
        traffic.last_cookie = ours
        if pos > run:
            out.append(view[run:pos])
        return pos

    def _keep_more(self, memory: Memory, here: memoryview) -> None:
        """Keep what comes now of the data of a WRITE, too."""
        kept = memory.kept[self._traffic.early.half_sent]
        assert type(kept) is list
        kept.append((self.pin(), here))

    def _judge(
        self,
        view: memoryview,
        pos: int,
        end: int,
        request: _Request,
        out: list[memoryview | bytes],
    ) -> int:
        """Take a request that is not FAST, whose header ends at `pos`; give the position after what it
        took.
        """
        word, cookie, offset, length = request
        traffic = self._traffic
        plan = traffic.plan
        command = word & 0xFFFF
        if command == Cmd.DISC:
            self.disconnected = True
            return end
        traffic.asked[kind := min(command, OTHERS)] += 1
        with_payload = carries_payload(plan.offer, word)
        refused = plan.refusal(word, offset, length)
        if refused is not None:
            traffic.count_refusal(word, refused)
            answer = traffic.failure(cookie, offset, refused.error, refused.text)
            if not with_payload:
                self.answers.append(answer)
                return pos
            if length > longest_drain(plan.offer, word):
                raise Hangup(f"a request with {length} bytes of payload")
            self._refusal = answer
            return self._drop(pos, end, length)
        traffic.asked_bytes[kind] += length  # of a request that is refused it says anything
        if plan.shadow is not None and (would := plan.shadow.refusal(word, offset, length)):
            traffic.observe(word, would)
        if (not length and command != Cmd.FLUSH) or (command == Cmd.CACHE and plan.answer_cache):
            self.answers.append(traffic.success(cookie, word, offset))
        elif with_payload:
            self._gathered_for = request
            self._gather_left = length
            return self._gather(view, pos, end, out)
        else:
            self._start(request, b"", out)
        return pos

    def _gather(self, view: memoryview, start: int, end: int, out: list[memoryview | bytes]) -> int:
        """Collect a payload over as many calls as it takes; then begin its command."""
        behind = min(end, start + self._gather_left)
        self._gathered += view[start:behind]
        self._gather_left -= behind - start
        if not self._gather_left:
            gathered, self._gathered = self._gathered, bytearray()
            self._start(self._gathered_for, gathered, out)
        return behind

    def _start(
        self, request: _Request, payload: bytes | bytearray, out: list[memoryview | bytes]
    ) -> None:
        """Begin a command that takes a job."""
        word, cookie, offset, length = request
        traffic = self._traffic
        plan = traffic.plan
        command, flags = Cmd(word & 0xFFFF), word >> 16
        passed = plan.rules[word].flags
        cost = length if command in PAYLOAD else 0
        if command is Cmd.BLOCK_STATUS:
            wanted = contexts_wanted(plan)
            cost = STATUS_COST_BYTES * len(wanted)
            if flags & CmdFlag.PAYLOAD_LEN:
                length, ids = decode_status_payload(bytes(payload))  # its size was judged before
                refused = subset_refusal(plan.offer, offset, length, ids)
                if refused is not None:
                    traffic.count_refusal(word, refused)
                    self.answers.append(
                        traffic.failure(cookie, offset, refused.error, refused.text)
                    )
                    return
                wanted = tuple((ours, theirs) for ours, theirs in wanted if ours in ids)
            if command in plan.hooked:
                outside = Outside(command, offset, length, passed, contexts=wanted)
                job = hooked(outside)
            else:
                reach = plan.offer.size - offset
                at = offset + plan.offer.base
                job = status(plan.upstream, passed, at, length, wanted, reach)
        elif command in plan.hooked:
            job = hooked(Outside(command, offset, length, passed, payload))
        else:
            at = offset + plan.offer.base if command in RANGED else 0
            job = translate(plan.upstream, command, passed, at, length, payload)
        if plan.offer.base and command not in plan.hooked:
            job = moved(job, plan.offer.base)
        traffic.jobs.start(cookie, word, offset, job, cost=cost)
        out += traffic.to_upstream
        traffic.to_upstream.clear()

    def _drop(self, pos: int, end: int, length: int) -> int:
        """Drop a payload that was refused; give the position after it, or the end. The client is told when it
        has sent all of it: some clients do not bear a reply before that (see `early`).
        """
        behind = pos + length
        self._drop_left = max(0, behind - end)
        if not self._drop_left:
            self.answers.append(self._refusal)
            self._refusal = b""
        return min(behind, end)


def _not_pinned() -> Pinned:
    raise AssertionError("nobody keeps buffers here")


def _no_word_is(
    _word: int, never: tuple[int, int, Ranges | None]
) -> tuple[int, int, Ranges | None]:
    return never


def moved_bytes(plan: Plan, word: int, offset: int, length: int) -> int:
    """Give how many bytes of data a request has moved, which is what it costs; not what it says, for a request
    that is refused may say anything. (The data of a WRITE that is refused is received all the same.)
    """
    if word & 0xFFFF not in (Cmd.READ, Cmd.WRITE):
        return 0
    if plan.refusal(word, offset, length) is None:
        return length
    drained = carries_payload(plan.offer, word) and length <= longest_drain(plan.offer, word)
    return length if drained else 0

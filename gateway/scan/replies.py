"""The upstream's replies: what comes back to the client.

Two scanners, by what the upstream speaks: `SimpleReplies` here, `ChunkReplies` in `chunks`. What they send
is said in the client's framing. Both go by the same rules:

- The cookie must be one of ours, and the reply one that its command may get; otherwise this link has lost its
  way, and `WireError` ends it.
- An error that is announced must reach the client. So a data chunk that says DONE, as nbdkit's do, while not
  all of its data is here, goes out with DONE cleared, and a NONE chunk follows when the data is complete: if
  the upstream dies in between, the rest of the chunk is zeros *and an error chunk follows*. (Begun with DONE
  and padded, it would read as success.) A simple reply that has begun cannot be taken back: the client's
  connection ends.
- DONE over a gap, or before every meta context had its chunk, is an error.
- The reply to a job's ask is collected, and sends nothing by itself.
- The reply to a WRITE that comes before its data has been sent is held (`early`): `settle_early` lets it go.
- ESHUTDOWN is no reply where somebody asks again (`going`): its command stays in flight.

"Structured reply message" and "Structured reply types" in proto.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import repeat

from gateway.jobs.locks import ASK, Entry
from gateway.protocol.commands import normal_error
from gateway.scan.early import Take
from gateway.scan.traffic import Traffic
from gateway.scan.turn import FEW
from gateway.wire import limits
from gateway.wire.constants import SIMPLE_REPLY_MAGIC, Cmd, Errno
from gateway.wire.errors import WireError
from gateway.wire.framing import shifted
from gateway.wire.transmission import COOKIE, COOKIE_AT, SIMPLE_REPLY

_ZEROES = memoryview(bytes(256 * limits.KIB))

Out = list[memoryview | bytes]


class Replies:
    """What both scanners have in common; see the package's docstring for the contract of `feed`."""

    __slots__ = (
        "_asked_data",
        "_asked_done",
        "_base",
        "_client",
        "_closing",
        "_framing",
        "_open",
        "_open_end",
        "payload_left",
        "traffic",
        "waiting",
    )

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        self._framing = traffic.plan.offer.framing
        base = traffic.plan.offer.base
        self._base = base
        # Offsets in here are the upstream's; the client counts from where its export begins.
        self._client = shifted(self._framing, base)
        self.payload_left = 0
        """Bytes of a READ's data that the client has not been sent: nothing else may be sent now."""
        self.waiting: Out = []
        """Replies of our own that wait for the end of that data."""
        self._open: Entry | None = None  # the command whose data is going out
        self._open_end = 0  # where that data ends, in the upstream's offsets
        # The chunk that ends its reply, if it is to end with this data:
        self._closing: list[bytes] = []
        # Data of a job's READ that is to come next; our cookie, and what its reply lacks, if that ends with it:
        self._asked_data: memoryview | None = None
        self._asked_done: tuple[int, str] | None = None

    def feed(self, buffer: bytearray, view: memoryview, start: int, end: int, out: Out) -> int:
        """Take what is in `buffer[start:end]`; see the package's docstring."""
        raise NotImplementedError

    @property
    def between_messages(self) -> bool:
        """Nothing is half sent to the client."""
        return not self.payload_left

    @property
    def rest(self) -> int:
        """How many bytes the upstream has still to send of a reply, or a chunk, that has begun."""
        return self.payload_left + (0 if self._asked_data is None else len(self._asked_data))

    def fail(self, why: str) -> Out | None:
        """Give what the client is told when the link has died: EIO for every command under way.

        None if it cannot be told anything, because a simple reply with data has begun.
        """
        traffic, client = self.traffic, self._client
        out: Out = []
        if self.payload_left:
            assert self._open is not None
            if not client.chunked:
                return None
            full, rest = divmod(self.payload_left, len(_ZEROES))
            out += repeat(_ZEROES, full)
            out.append(_ZEROES[:rest])
            if self._closing:  # otherwise the command is in flight still
                cookie, word, asked, _length = self._open
                traffic.count_error(word, Errno.EIO)
                out.append(client.failure(cookie, asked, Errno.EIO, why))
        out += self.waiting
        out += self.refusals()
        for cookie, word, asked, _length in traffic.in_flight.values():
            if not word & ASK:
                traffic.count_error(word, Errno.EIO)
                out.append(client.failure(cookie, asked, Errno.EIO, why))
        traffic.asks.drop()
        traffic.jobs.fail(Errno.EIO, why)
        out += traffic.to_client
        traffic.to_client.clear()
        traffic.to_upstream.clear()
        self.payload_left = 0
        self._asked_data = None
        self.waiting.clear()
        traffic.in_flight.clear()
        traffic.partial.clear()
        traffic.early.forget()
        traffic.going.forget()
        return out

    def settle_early(self) -> Out:
        """Give what the client is told by replies that were early and are not any more."""
        return _taken(self.traffic.early.due())

    def refusals(self) -> Out:
        """The link has died: give what the client is told of a WRITE that was refused before its data was
        sent. All others are still under way.
        """
        return _taken(self.traffic.early.refusals())

    def cut_off(self) -> tuple[int, int]:
        """Nothing comes from the link any more, and others answer in its place. Give what is missing of the
        data that is half sent to the client: where it ends on the disk, and its length in bytes.
        """
        self._asked_data = None
        return self._open_end, self.payload_left

    def complete(self, rest: Sequence[memoryview | bytes]) -> Out:
        """Give what goes to the client with the rest of that data."""
        out = [*rest, *self._closing, *self.waiting]
        self.payload_left = 0
        self._open = None
        self._closing = []
        self.waiting = []
        return out

    def complete_without(self, why: str) -> Out | None:
        """Give what goes to the client if that rest cannot be had. None: the client cannot be told, because a
        simple reply has begun.
        """
        client = self._client
        if not client.chunked:
            return None
        assert self._open is not None
        cookie, word, asked, _length = self._open
        self.traffic.count_error(word, Errno.EIO)
        out: Out = [_ZEROES[: self.payload_left % len(_ZEROES)]]
        out += repeat(_ZEROES, self.payload_left // len(_ZEROES))
        out.append(client.failure(cookie, asked, Errno.EIO, why, done=bool(self._closing)))
        self._closing = []
        return self.complete(out)

    def _resume(self, view: memoryview, start: int, end: int, out: Out) -> tuple[int, int]:
        """Go on with the data that is under way; give where the run of bytes to send begins that the
        caller goes on with, and the position after the data (or the end).
        """
        if self._asked_data is not None:
            at = self._take_asked(view, start, end)
            self._let_jobs_speak(out)
            return at, at
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

    def _take_asked(self, view: memoryview, start: int, end: int) -> int:
        """Copy data of a job's READ to where it is collected; give the position after it, or the end."""
        room = self._asked_data
        assert room is not None
        count = min(len(room), end - start)
        room[:count] = view[start : start + count]
        if count < len(room):
            self._asked_data = room[count:]
        else:
            self._asked_data = None
            if self._asked_done is not None:
                (ours, missing), self._asked_done = self._asked_done, None
                self.traffic.asks.settle(ours, missing)
        return start + count

    def interject(self, reply: memoryview | bytes, out: Out) -> None:
        """Send the client a reply of our own, now or as soon as no data is half sent."""
        (self.waiting if self.payload_left else out).append(reply)

    def _let_jobs_speak(self, out: Out) -> None:
        """Send the client what a job has answered because of a reply, before what comes after that reply. By
        the order of answers a client knows which writes a failing FLUSH may be about.
        """
        if self.traffic.to_client:
            for reply in self.traffic.to_client:
                self.interject(reply, out)
            self.traffic.to_client.clear()

    def _entry(self, ours: int) -> Entry:
        entry = self.traffic.in_flight.get(ours)
        if entry is None:
            raise WireError(f"a reply with cookie {ours:#x}, which no command under way has")
        return entry

    def _settle_simple(self, ours: int, entry: Entry, error: int, out: Out) -> None:
        """Take the whole simple reply to a command: an error, or one without data."""
        going = self.traffic.going
        if ours in going.refused:
            raise WireError(f"a second reply to the command with cookie {ours:#x}")
        if going.is_no_reply(error):
            going.refuse(ours)
            return
        early = self.traffic.early
        if early.may_be(ours):
            take = partial(self._settle_simple, ours, entry, error)
            if early.hold(ours, take, failed=bool(error), whole=True):
                return
        cookie, word, asked, length = entry
        if word & ASK:
            if error:
                self.traffic.asks.outcome(ours).error = error
            self.traffic.asks.settle(ours)
            return
        del self.traffic.in_flight[ours]
        self.traffic.partial.pop(ours, None)
        memory = self.traffic.memory
        if memory is not None:
            if error:
                memory.failed(ours, word, asked, length)
            else:
                memory.succeeded(ours, word, asked, length, self.traffic.last_cookie)
        if error:
            told = normal_error(word, error)
            self.traffic.count_error(word, told)
            out.append(self._client.failure(cookie, asked, told))
        else:
            out.append(self._client.success(cookie, asked, read=False))


def _taken(early: list[Take]) -> Out:
    out: Out = []
    for take in early:
        take(out)
    return out


class SimpleReplies(Replies):
    """A simple upstream. A READ's data goes out after one header in the client's framing. Where the client's
    framing is simple as well, the header goes out as it is.
    """

    __slots__ = ()

    def feed(self, buffer: bytearray, view: memoryview, start: int, end: int, out: Out) -> int:
        """Take what is in `buffer[start:end]`; see the package's docstring."""
        in_flight, client = self.traffic.in_flight, self._client
        early, refused = self.traffic.early.least, self.traffic.going.refused
        unpack, pack_cookie = SIMPLE_REPLY.unpack_from, COOKIE.pack_into
        # Replies without data stay simple with structured replies, as proto.md allows.
        chunked, stays = client.chunked, client.request is self.traffic.plan.link.request
        memory = self.traffic.memory
        answered = memory.answered if memory is not None else None
        run = pos = start
        if self.payload_left or self._asked_data is not None:
            run, pos = self._resume(view, start, end, out)
        while end - pos >= 16:
            magic, error, ours = unpack(buffer, pos)
            entry = in_flight.get(ours)
            if (
                entry is None
                or error
                or entry[1] & ASK
                or magic != SIMPLE_REPLY_MAGIC
                or ours in refused
                or (ours >= early and entry[1] & 0xFFFF)  # not a READ
            ):
                if pos > run:
                    out.append(view[run:pos])
                if memory is not None and answered:
                    memory.remember(self.traffic.last_cookie)
                run = pos = self._look_at(view, pos, end, magic, error, ours, out)
                self._let_jobs_speak(out)
                if self.traffic.turn.takes():
                    break
                continue
            del in_flight[ours]
            cookie, word, offset, length = entry
            if not word & 0xFFFF:  # READ
                if chunked:
                    if pos > run:
                        out.append(view[run:pos])
                    run = pos + 16
                    done = run + length <= end
                    out.append(client.data_head(cookie, offset, offset, length, done=done))
                    if not done:
                        self._closing = [client.end(cookie, offset)]
                else:
                    pack_cookie(buffer, pos + COOKIE_AT, cookie)
                pos += 16 + length
                if pos > end:
                    self.payload_left = pos - end
                    self._open = entry
                    self._open_end = offset + length
                    pos = end
                if not ours & FEW and self.traffic.turn.takes():
                    break
                continue
            if answered is not None:
                answered.append((ours, entry))
            if stays:
                pack_cookie(buffer, pos + COOKIE_AT, cookie)
                pos += 16
            else:
                if pos > run:
                    out.append(view[run:pos])
                run = pos = pos + 16
                out.append(client.success(cookie, offset, read=False))
            if not ours & FEW and self.traffic.turn.takes():
                break
        if pos > run:
            out.append(view[run:pos])
        return pos

    def _look_at(
        self, view: memoryview, pos: int, end: int, magic: int, error: int, ours: int, out: Out
    ) -> int:
        """Take a reply that is not a plain success of a client's command; give the position after it."""
        if magic != SIMPLE_REPLY_MAGIC:
            raise WireError(
                f"a reply begins with {magic:#010x} instead of {SIMPLE_REPLY_MAGIC:#010x}"
            )
        entry = self._entry(ours)
        if not error and entry[1] & 0xFFFF == Cmd.READ:  # a job's
            self._asked_data = memoryview(self.traffic.asks.outcome(ours).data)
            self._asked_done = ours, ""
            return self._take_asked(view, pos + 16, end)
        self._settle_simple(ours, entry, error, out)
        return pos + 16

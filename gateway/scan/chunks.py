"""The upstream's replies where it has structured replies or extended headers: chunk by chunk.

See `replies` for the rules that all replies go by, and for the base. Here a READ whose reply is one chunk,
as nbdkit's and qemu's are, and a command without data are FAST or REFRAMED; every other chunk is looked at
one by one. What an error or a block status says is judged when the whole chunk is here; data is sent on as
it comes.

This is longer than other modules: chunks are looked at in one loop where they lie, and each kind of chunk has
to be held against what the others of its reply have said.

"Structured reply message", "Extended structured reply message" and "Structured reply types" in proto.md.
"""

from __future__ import annotations

from gateway.jobs.extents import Untellable, mended_extents, status_reply
from gateway.jobs.locks import ASK, Entry
from gateway.protocol.commands import normal_error
from gateway.scan.partial import Partial
from gateway.scan.replies import Out, Replies, SimpleReplies
from gateway.scan.traffic import Traffic
from gateway.scan.turn import FEW
from gateway.wire import limits
from gateway.wire.constants import (
    EXTENDED_REPLY_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Cmd,
    CmdFlag,
    Errno,
    name_of,
)
from gateway.wire.errors import WireError
from gateway.wire.framing import EXTENDED
from gateway.wire.transmission import (
    CHUNK,
    CHUNK_AND_OFFSET,
    COOKIE,
    COOKIE_AT,
    DONE_BIT,
    EXTENDED_CHUNK,
    EXTENDED_CHUNK_AND_OFFSET,
    HOLE,
    OFFSET,
    OFFSET_AT,
    SIMPLE_REPLY,
    WORD,
    WORD_AT,
    decode_error_chunk,
    decode_extended_extents,
    decode_extents,
    is_error,
)

_DATA_DONE = DONE_BIT | Chunk.OFFSET_DATA
_NONE_DONE = DONE_BIT | Chunk.NONE
_NO_PAYLOAD = bytes(4)  # the length of a structured chunk that has none
_HAS_DATA = frozenset({Cmd.READ, Cmd.BLOCK_STATUS})
_NOT_A_READ = ASK | 0xFFFF
_NO_ENTRY = (0, _NOT_A_READ, 0, 0)

MAX_HELD_EXTENTS = 2**20
"""How many extents a link keeps of replies whose other contexts have not come yet: 8 or 16 MiB. No server
that is well comes near it."""

FEW_EXTENTS = 1024
"""How many extents of a context are kept beyond that. A shorter answer is always legal."""


def reply_scan(traffic: Traffic) -> Replies:
    """Give the scanner for what a session's upstream speaks."""
    return ChunkReplies(traffic) if traffic.plan.link.chunked else SimpleReplies(traffic)


class ChunkReplies(Replies):
    """A structured or extended upstream. Without extended headers, commands without data in their reply may be
    answered with simple replies.
    """

    __slots__ = ("_extended", "_gathered", "_gathering", "_head", "_magic")

    def __init__(self, traffic: Traffic) -> None:
        super().__init__(traffic)
        self._extended = traffic.plan.link is EXTENDED
        self._head = EXTENDED_CHUNK if self._extended else CHUNK
        self._magic = EXTENDED_REPLY_MAGIC if self._extended else STRUCTURED_REPLY_MAGIC
        self._gathering = 0  # bytes missing of a chunk that must be whole before it is judged
        self._gathered = bytearray()

    @property
    def rest(self) -> int:
        """See `Replies`."""
        return super().rest + self._gathering

    def feed(self, buffer: bytearray, view: memoryview, start: int, end: int, out: Out) -> int:
        """Take what is in `buffer[start:end]`; see the package's docstring."""
        traffic, client, extended, chunk_magic = (
            self.traffic,
            self._client,
            self._extended,
            self._magic,
        )
        in_flight, partial = traffic.in_flight, traffic.partial
        refused = traffic.going.refused
        early = traffic.early.least
        unpack = (EXTENDED_CHUNK_AND_OFFSET if extended else CHUNK_AND_OFFSET).unpack_from
        head = self._head.size
        least = head if extended else 16
        pack_cookie, unpack_simple = COOKIE.pack_into, SIMPLE_REPLY.unpack_from
        same = self._framing is traffic.plan.link
        simple_stays = self._framing is not EXTENDED and not extended
        chunk_stays = same and not extended
        base = self._base
        memory = traffic.memory
        answered = memory.answered if memory is not None else None
        echo = 0
        run = pos = start
        if self.payload_left or self._asked_data is not None:
            run, pos = self._resume(view, start, end, out)
        elif self._gathering:
            run = pos = self._gather(view, start, end, out)
            self._let_jobs_speak(out)
        one_by_one = in_flight if refused else partial
        last, last_chunk = end - least, end - head - 8  # where what is here begins at the latest
        while pos <= last:
            # A chunk and a simple reply begin alike: magic; flags and type, or error; cookie.
            if pos <= last_chunk:
                if extended:
                    magic, word, ours, echo, size, offset = unpack(buffer, pos)
                else:
                    magic, word, ours, size, offset = unpack(buffer, pos)
                if word == _DATA_DONE and magic == chunk_magic:
                    entry = in_flight.get(ours, _NO_ENTRY)
                    cookie, asked_word, at, length = entry
                    if (
                        offset == at
                        and size == length + 8
                        and not asked_word & _NOT_A_READ
                        and ours not in one_by_one
                        and (not extended or echo == offset)
                    ):  # the whole reply in one chunk
                        del in_flight[ours]
                        behind = pos + head + size
                        if same:
                            pack_cookie(buffer, pos + COOKIE_AT, cookie)
                            if base:
                                OFFSET.pack_into(buffer, pos + head, offset - base)
                                if extended:
                                    OFFSET.pack_into(buffer, pos + OFFSET_AT, offset - base)
                        else:
                            if pos > run:
                                out.append(view[run:pos])
                            run = pos + head + 8
                            done = behind <= end
                            out.append(client.data_head(cookie, offset, offset, length, done=done))
                        if behind > end:
                            if same:
                                WORD.pack_into(buffer, pos + WORD_AT, Chunk.OFFSET_DATA)
                            self._begin(entry, behind - end, offset + length, done=True)
                            behind = end
                        pos = behind
                        if not ours & FEW and traffic.turn.takes():
                            break
                        continue
            else:
                magic, word, ours = unpack_simple(buffer, pos)
            short = 0  # the length of a reply that says success, and no more
            if not word and magic == SIMPLE_REPLY_MAGIC and simple_stays:
                short = 16
            elif (
                word == _NONE_DONE
                and magic == chunk_magic
                and chunk_stays
                and buffer[pos + 16 : min(pos + head, end)] == _NO_PAYLOAD
            ):
                short = head
            if short:
                entry = in_flight.get(ours, _NO_ENTRY)
                if (
                    ours < early
                    and entry[1] & 0xFFFF not in _HAS_DATA
                    and not entry[1] & ASK
                    and ours not in one_by_one
                ):
                    del in_flight[ours]
                    if answered is not None:
                        answered.append((ours, entry))
                    pack_cookie(buffer, pos + COOKIE_AT, entry[0])
                    pos += short
                    if not ours & FEW and traffic.turn.takes():
                        break
                    continue
            if pos > run:
                out.append(view[run:pos])
            run = pos
            if memory is not None and answered:
                memory.remember(traffic.last_cookie)
            if magic == SIMPLE_REPLY_MAGIC and not extended:
                self._simple(ours, word, out)
                self._let_jobs_speak(out)
                one_by_one = in_flight if refused else partial
                run = pos = pos + 16
                if traffic.turn.takes():
                    break
                continue
            if magic != chunk_magic:
                raise WireError(
                    f"a reply begins with {magic:#010x}, which is no magic of {traffic.plan.link} replies"
                )
            behind = self._chunk(buffer, view, pos, end, out)
            self._let_jobs_speak(out)
            one_by_one = in_flight if refused else partial
            if behind == pos:  # more bytes are needed
                break
            run = pos = behind
            if traffic.turn.takes():
                break
        if pos > run:
            out.append(view[run:pos])
        return pos

    def _begin(self, entry: Entry, payload_left: int, data_end: int, *, done: bool) -> None:
        """Remember that a chunk's data, which ends at `data_end` of the disk, has begun to go out; `done`: it
        is the last of its reply.
        """
        self._open_end = data_end
        self.payload_left = payload_left
        self._open = entry
        self._closing = [self._client.end(entry[0], entry[2])] if done else []

    def _simple(self, ours: int, error: int, out: Out) -> None:
        entry = self._entry(ours)
        if not error and entry[1] & 0xFFFF in _HAS_DATA:
            command = name_of(Cmd, entry[1] & 0xFFFF)
            raise WireError(f"a simple reply to {command} where structured replies were agreed")
        if not error and ours in self.traffic.partial:
            raise WireError("a simple reply that says success, behind an error chunk")
        # A simple *error* to a READ is as wrong; but we stay in step, and nbd-server 3.25 and later
        # do it (Q-N2, Q-N3).
        self._settle_simple(ours, entry, error, out)

    # --- Chunks, one by one

    def _chunk(self, buffer: bytearray, view: memoryview, pos: int, end: int, out: Out) -> int:
        """Take the chunk at `pos`; give the position after it (or the end, if its rest is to come), or `pos`
        if too little of it is here.
        """
        if end - pos < self._head.size:
            return pos
        word, ours, size = self._chunk_head(buffer, pos)
        kind, done = word & 0xFFFF, bool(word & DONE_BIT)
        entry = self._entry(ours)
        command = entry[1] & 0xFFFF
        if kind == Chunk.OFFSET_DATA:
            return self._data(buffer, view, pos, end, out)
        if kind == Chunk.NONE:
            if size or not done:
                raise WireError(f"a NONE chunk with {size} bytes, {'' if done else 'not '}DONE")
            self._done(ours, entry, out)
            return pos + self._head.size
        status = Chunk.BLOCK_STATUS_EXT if self._extended else Chunk.BLOCK_STATUS
        if kind == Chunk.OFFSET_HOLE:
            if size != HOLE.size:
                raise WireError(f"an OFFSET_HOLE chunk of {size} bytes; it has {HOLE.size}")
            most = HOLE.size
        elif kind == status and command == Cmd.BLOCK_STATUS:
            most = limits.MAX_STATUS_CHUNK_BYTES
            if self._extended:
                most = limits.MAX_EXTENDED_STATUS_CHUNK_BYTES
        elif is_error(kind):
            most = limits.MAX_ERROR_CHUNK_BYTES
        else:
            raise WireError(f"a {name_of(Chunk, kind)} chunk in reply to {name_of(Cmd, command)}")
        if size > most:
            raise WireError(f"a {name_of(Chunk, kind)} chunk of {size} bytes; at most {most}")
        self._gathering = self._head.size + size
        return self._gather(view, pos, end, out)

    def _chunk_head(self, buffer: bytes | bytearray, pos: int) -> tuple[int, int, int]:
        """Give word, our cookie and payload length of the chunk whose header is at `pos`."""
        if not self._extended:
            _magic, word, ours, size = CHUNK.unpack_from(buffer, pos)
            return word, ours, size
        _magic, word, ours, echo, size = EXTENDED_CHUNK.unpack_from(buffer, pos)
        asked = self._entry(ours)[2]
        if echo != asked:
            raise WireError(f"a chunk says that its request was at {echo}, and it was at {asked}")
        return word, ours, size

    def _gather(self, view: memoryview, start: int, end: int, out: Out) -> int:
        """Collect a chunk that is judged as a whole, over as many calls as it takes."""
        take = min(self._gathering, end - start)
        self._gathered += view[start : start + take]
        self._gathering -= take
        if not self._gathering:
            gathered, self._gathered = self._gathered, bytearray()
            self._whole(gathered, out)
        return start + take

    def _whole(self, chunk: bytearray, out: Out) -> None:
        word, ours, _size = self._chunk_head(chunk, 0)
        kind, done = word & 0xFFFF, bool(word & DONE_BIT)
        payload = memoryview(chunk)[self._head.size :]
        entry = self._entry(ours)
        if is_error(kind):
            self._error(ours, entry, kind, bytes(payload), out, done=done)
            return
        if kind == Chunk.OFFSET_HOLE:
            self._hole(ours, entry, payload, out)
        else:
            self._status(ours, entry, payload, out)
        if done:
            self._done(ours, entry, out)

    def _data(self, buffer: bytearray, view: memoryview, pos: int, end: int, out: Out) -> int:
        head = self._head.size
        if end - pos < head + OFFSET.size:
            return pos
        word, ours, size = self._chunk_head(buffer, pos)
        (offset,) = OFFSET.unpack_from(buffer, pos + head)
        entry = self._entry(ours)
        if size < 9:
            raise WireError(f"an OFFSET_DATA chunk of {size} bytes; there are at least 9")
        self._cover(ours, entry, offset, size - 8)
        done = bool(word & DONE_BIT)
        behind, content = pos + head + size, pos + head + 8
        cookie, word, asked, _wanted = entry
        if word & ASK:
            room = memoryview(self.traffic.asks.outcome(ours).data)
            self._asked_data = room[offset - asked : offset - asked + size - 8]
            self._asked_done = None
            at = self._take_asked(view, content, end)
            if done:
                if self._asked_data is None:
                    self._done(ours, entry, out)
                else:
                    self._asked_done = ours, self._missing(ours, entry)
            return at
        # DONE goes out in a chunk of its own: whether the reply is whole is known at its end only.
        out.append(self._client.data_head(cookie, asked, offset, size - 8, done=False))
        if content < min(behind, end):
            out.append(view[content : min(behind, end)])
        if behind <= end:
            if done:
                self._done(ours, entry, out)
            return behind
        self._begin(entry, behind - end, offset + size - 8, done=False)
        if done:
            final: Out = []
            self._done(ours, entry, final)
            self._closing = [bytes(piece) for piece in final]
        return end

    def _hole(self, ours: int, entry: Entry, payload: memoryview, out: Out) -> None:
        offset, length = HOLE.unpack(payload)
        if not length:
            raise WireError("an OFFSET_HOLE chunk for a hole of no bytes")
        self._cover(ours, entry, offset, length)
        if not entry[1] & ASK:  # where that is collected there are zeros already
            out.append(self._client.hole(entry[0], entry[2], offset, length, done=False))

    def _cover(self, ours: int, entry: Entry, offset: int, length: int) -> None:
        """Check that content is what its READ asked for, and is new."""
        _cookie, word, start, wanted = entry
        if word & 0xFFFF != Cmd.READ:
            raise WireError(f"data in reply to {name_of(Cmd, word & 0xFFFF)}")
        if offset < start or offset + length > start + wanted:
            raise WireError(
                f"{length} bytes at {offset} in reply to a READ of {wanted} bytes at {start}"
            )
        partial = self._partial(ours)
        if partial.covered and self._sent_df(word):
            raise WireError("a READ with DF was answered in more than one chunk")
        if not partial.cover(offset, offset + length):
            raise WireError(f"{length} bytes at {offset} came twice in reply to a READ")
        if len(partial.covered) > limits.MAX_GAPS:
            raise WireError(f"a reply to a READ in more than {limits.MAX_GAPS} separate ranges")

    def _sent_df(self, word: int) -> bool:
        """Say whether the upstream was sent DF for a READ: what it gets is not always the client's word."""
        if not word & ASK:
            word = self.traffic.plan.fast[word & 0xFFFFFFFF][1]
        return bool(word >> 16 & CmdFlag.DF)

    def _partial(self, ours: int) -> Partial:
        partial = self.traffic.partial.get(ours)
        if partial is None:
            partial = self.traffic.partial[ours] = Partial()
        return partial

    def _status(self, ours: int, entry: Entry, payload: memoryview, out: Out) -> None:
        decode = decode_extended_extents if self._extended else decode_extents
        context_id, extents = decode(payload)
        plan = self.traffic.plan
        if context_id not in plan.context_ids:
            raise WireError(f"block status of context {context_id}, which was not selected")
        partial = self._partial(ours)
        if context_id in partial.contexts:
            raise WireError(f"block status of context {context_id} came twice")
        partial.contexts.add(context_id)
        _cookie, word, asked, length = entry
        if word & ASK:
            self.traffic.asks.outcome(ours).status[context_id] = extents
            return
        client_id = plan.context_ids[context_id]
        if client_id is None:
            return  # a context that the client did not select here
        one = bool(word >> 16 & CmdFlag.REQ_ONE)
        reach = plan.offer.base + plan.offer.size - asked
        if self._held_extents() > MAX_HELD_EXTENTS:
            extents = extents[:FEW_EXTENTS]
        partial.status.append((client_id, mended_extents(extents, length, reach, one=one)))

    def _held_extents(self) -> int:
        """Give how many extents are kept of replies that are not whole yet."""
        partials = self.traffic.partial.values()
        return sum(len(extents) for partial in partials for _context, extents in partial.status)

    def _error(
        self, ours: int, entry: Entry, kind: int, payload: bytes, out: Out, *, done: bool
    ) -> None:
        cookie, word, start, wanted = entry
        told = decode_error_chunk(kind, payload)
        offset = told.offset
        if offset is not None and not start <= offset < start + max(wanted, 1):
            raise WireError(f"an error at {offset} in reply to {wanted} bytes at {start}")
        going = self.traffic.going
        if going.is_no_reply(told.error):
            going.refuse(ours)  # the client keeps what has come of its data
            if done:
                self._done(ours, entry, out)
            return
        early = self.traffic.early
        if early.may_be(ours):

            def take(out: Out) -> None:
                self._error(ours, entry, kind, payload, out, done=done)

            if early.hold(ours, take, failed=True, whole=done):
                return
        partial = self._partial(ours)
        is_first, partial.failed = not partial.failed, True
        if word & ASK:
            outcome = self.traffic.asks.outcome(ours)
            if not outcome.error:
                outcome.error, outcome.text, outcome.offset = told.error, told.text, offset
            if done:
                self.traffic.asks.settle(ours)
            return
        error = normal_error(word, told.error)
        if is_first:
            self.traffic.count_error(word, error)
        if not self._client.chunked:
            partial.error = partial.error or error  # the first, when the reply ends
            if done:
                self._done(ours, entry, out)
            return
        out.append(self._client.failure(cookie, start, error, told.text, offset=offset, done=done))
        if done:
            self._remember(ours, entry, failed=True)
            self._forget(ours)

    def _remember(self, ours: int, entry: Entry, *, failed: bool) -> None:
        """A command of the client's has its answer."""
        _cookie, word, offset, length = entry
        memory = self.traffic.memory
        if memory is None or word & 0xFFFF in _HAS_DATA:
            return
        if failed:
            memory.failed(ours, word, offset, length)
        else:
            memory.succeeded(ours, word, offset, length, self.traffic.last_cookie)

    def _done(self, ours: int, entry: Entry, out: Out) -> None:
        """End a reply; or answer with an error that says what it lacks."""
        partial = self.traffic.partial.get(ours)
        failed = partial is not None and partial.failed
        if ours in self.traffic.going.refused and not failed:
            return  # with another error in it, it is an answer
        early = self.traffic.early
        if early.may_be(ours):

            def take(out: Out) -> None:
                self._done(ours, entry, out)

            if early.hold(ours, take, failed=failed, whole=True):
                return
        cookie, word, asked, _wanted = entry
        missing = self._missing(ours, entry)
        if word & ASK:
            self.traffic.asks.settle(ours, missing)
            return
        client = self._client
        self._remember(ours, entry, failed=failed)
        self._forget(ours)
        if missing:
            self._fail(cookie, word, asked, missing, out)
        elif partial is not None and partial.status and not failed:
            block = self.traffic.plan.upstream.minimum
            try:
                out += status_reply(client, cookie, asked, partial.status, block)
            except Untellable as why:
                self._fail(cookie, word, asked, str(why), out)
        elif client.chunked:
            out.append(client.end(cookie, asked))
        elif partial is not None and partial.error:
            out.append(client.failure(cookie, asked, partial.error))
        else:
            out.append(client.success(cookie, asked, read=False))

    def _fail(self, cookie: int, word: int, asked: int, why: str, out: Out) -> None:
        self.traffic.count_error(word, Errno.EIO)
        out.append(self._client.failure(cookie, asked, Errno.EIO, why))

    def _missing(self, ours: int, entry: Entry) -> str:
        """Say what a reply lacks, or nothing: an error chunk excuses whatever is not there."""
        _cookie, word, start, wanted = entry
        partial = self.traffic.partial.get(ours) or Partial()
        if partial.failed:
            return ""
        match word & 0xFFFF:
            case Cmd.READ:
                if partial.covered != [(start, start + wanted)]:
                    return "the server ended its reply with a part of the data missing"
            case Cmd.BLOCK_STATUS:
                if not partial.contexts.issuperset(self.traffic.plan.context_ids):
                    return "the server ended its reply without an answer for every meta context"
        return ""

    def _forget(self, ours: int) -> None:
        del self.traffic.in_flight[ours]
        self.traffic.partial.pop(ours, None)

"""The upstream's replies where both sides have structured replies: chunk by chunk.

See `replies` for the rules that all replies go by, and for the base. Here a READ whose reply is one chunk, as
nbdkit's and qemu's are, and a command without data are FAST; every other chunk is looked at one by one. What an
error or a block status says is judged when the whole chunk is here; data is sent on as it comes.

"Structured reply message" and "Structured reply types" in proto.md.
"""

from __future__ import annotations

from gateway.protocol.commands import normal_error
from gateway.relay.scan.replies import Out, Replies, SimpleReplies, WrappedReplies
from gateway.relay.scan.traffic import PIECE, Entry, Partial, Traffic
from gateway.wire import limits
from gateway.wire.constants import (
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Cmd,
    CmdFlag,
    Errno,
    name_of,
)
from gateway.wire.errors import WireError
from gateway.wire.transmission import (
    CHUNK,
    CHUNK_AND_OFFSET,
    CHUNK_HOLE,
    COOKIE,
    COOKIE_AT,
    DONE_BIT,
    SIMPLE_REPLY,
    WORD,
    WORD_AT,
    decode_error_chunk,
    decode_extents,
    encode_chunk,
    encode_error_chunk,
    encode_status_chunk,
    is_error,
)

_DATA_DONE = DONE_BIT | Chunk.OFFSET_DATA
_HAS_DATA = frozenset({Cmd.READ, Cmd.BLOCK_STATUS})
_HOLE_SIZE: int = CHUNK_HOLE.size


def reply_scan(traffic: Traffic) -> Replies:
    """Give the scanner for a session's pair of framings."""
    if traffic.plan.link_structured:
        return StructuredReplies(traffic)
    if traffic.plan.offer.structured:
        return WrappedReplies(traffic)
    return SimpleReplies(traffic)


class StructuredReplies(Replies):
    """Both sides structured; commands without data in their reply may be answered with simple ones."""

    __slots__ = ("_gathered", "_gathering")

    def __init__(self, traffic: Traffic) -> None:
        super().__init__(traffic)
        self._gathering = 0  # bytes missing of a chunk that must be whole before it is judged
        self._gathered = bytearray()

    def feed(self, buffer: bytearray, view: memoryview, start: int, end: int, out: Out) -> int:
        """Take what is in `buffer[start:end]`; see the package's docstring."""
        traffic = self.traffic
        in_flight, partial = traffic.in_flight, traffic.partial
        unpack, pack_cookie = CHUNK_AND_OFFSET.unpack_from, COOKIE.pack_into
        unpack_simple = SIMPLE_REPLY.unpack_from
        run = pos = start
        if self.payload_left:
            run, pos = self._go_on(view, start, end, out)
        elif self._gathering:
            run = pos = self._gather(view, start, end, out)
        while end - pos >= 16:
            # A chunk and a simple reply begin alike: magic; flags and type, or error; cookie.
            if end - pos >= 28:
                magic, word, ours, size, offset = unpack(buffer, pos)
                if word == _DATA_DONE and magic == STRUCTURED_REPLY_MAGIC:
                    entry = in_flight.get(ours)
                    if (
                        entry is not None
                        and offset == entry[2]
                        and size == entry[3] + 8
                        and not entry[1] & 0xFFFF  # READ
                        and ours not in partial
                    ):  # the whole reply in one chunk
                        del in_flight[ours]
                        pack_cookie(buffer, pos + COOKIE_AT, entry[0])
                        behind = pos + 20 + size
                        if behind > end:
                            WORD.pack_into(buffer, pos + WORD_AT, Chunk.OFFSET_DATA)
                            self._begin(entry, behind - end, done=True)
                            behind = end
                        pos = behind
                        continue
            else:
                magic, word, ours = unpack_simple(buffer, pos)
            if not word and magic == SIMPLE_REPLY_MAGIC:
                entry = in_flight.get(ours)
                if (
                    entry is not None
                    and entry[1] & 0xFFFF not in _HAS_DATA
                    and not entry[1] & PIECE
                    and ours not in partial
                ):
                    del in_flight[ours]
                    pack_cookie(buffer, pos + COOKIE_AT, entry[0])
                    pos += 16
                    continue
            if pos > run:
                out.append(view[run:pos])
            run = pos
            if magic == SIMPLE_REPLY_MAGIC:
                self._simple(ours, word, out)
                run = pos = pos + 16
                continue
            if magic != STRUCTURED_REPLY_MAGIC:
                raise WireError(f"a reply begins with {magic:#010x}, which is no reply's magic")
            behind = self._chunk(buffer, view, pos, end, out)
            if behind == pos:  # more bytes are needed
                break
            run = pos = behind
        if pos > run:
            out.append(view[run:pos])
        return pos

    def _begin(self, entry: Entry, payload_left: int, *, done: bool) -> None:
        """Remember that a chunk's data has begun to go out; `done`: it is the last of its reply."""
        self.payload_left = payload_left
        self._open = entry
        self._closing = [encode_chunk(entry[0], Chunk.NONE)] if done else []

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
        """Take the chunk at `pos`; give the position behind it (or the end, if its rest is to come), or
        `pos` if too little of it is here.
        """
        if end - pos < CHUNK.size:
            return pos
        _magic, word, ours, size = CHUNK.unpack_from(buffer, pos)
        kind, done = word & 0xFFFF, bool(word & DONE_BIT)
        entry = self._entry(ours)
        command = entry[1] & 0xFFFF
        if kind == Chunk.OFFSET_DATA:
            return self._data(buffer, view, pos, end, out)
        if kind == Chunk.OFFSET_HOLE:
            return self._hole(buffer, pos, end, out)
        if kind == Chunk.NONE:
            if size or not done:
                raise WireError(f"a NONE chunk with {size} bytes, {'' if done else 'not '}DONE")
            self._done(ours, entry, out)
            return pos + CHUNK.size
        if kind == Chunk.BLOCK_STATUS and command == Cmd.BLOCK_STATUS:
            most = limits.MAX_STATUS_CHUNK_BYTES
        elif is_error(kind):
            most = limits.MAX_ERROR_CHUNK_BYTES
        else:
            raise WireError(f"a {name_of(Chunk, kind)} chunk in reply to {name_of(Cmd, command)}")
        if size > most:
            raise WireError(f"a {name_of(Chunk, kind)} chunk of {size} bytes; at most {most}")
        self._gathering = CHUNK.size + size
        return self._gather(view, pos, end, out)

    def _gather(self, view: memoryview, start: int, end: int, out: Out) -> int:
        """Collect a chunk that is judged as a whole, over as many calls as it takes."""
        take = min(self._gathering, end - start)
        self._gathered += view[start : start + take]
        self._gathering -= take
        if not self._gathering:
            gathered, self._gathered = bytes(self._gathered), bytearray()
            self._whole(gathered, out)
        return start + take

    def _whole(self, chunk: bytes, out: Out) -> None:
        _magic, word, ours, _size = CHUNK.unpack_from(chunk)
        payload = chunk[CHUNK.size :]
        entry = self._entry(ours)
        if word & 0xFFFF == Chunk.BLOCK_STATUS:
            self._status(ours, entry, payload, out)
        else:
            self._error(ours, entry, word & 0xFFFF, payload, out, done=bool(word & DONE_BIT))
            return
        if word & DONE_BIT:
            self._done(ours, entry, out)

    def _data(self, buffer: bytearray, view: memoryview, pos: int, end: int, out: Out) -> int:
        if end - pos < CHUNK_AND_OFFSET.size:
            return pos
        _magic, word, ours, size, offset = CHUNK_AND_OFFSET.unpack_from(buffer, pos)
        entry = self._entry(ours)
        if size < 9:
            raise WireError(f"an OFFSET_DATA chunk of {size} bytes; there are at least 9")
        self._cover(ours, entry, offset, size - 8)
        done = bool(word & DONE_BIT)
        behind: int = pos + CHUNK.size + size
        COOKIE.pack_into(buffer, pos + COOKIE_AT, entry[0])
        # DONE goes out in a chunk of its own: whether the reply is whole is known at its end only.
        WORD.pack_into(buffer, pos + WORD_AT, Chunk.OFFSET_DATA)
        out.append(view[pos : min(behind, end)])
        if behind <= end:
            if done:
                self._done(ours, entry, out)
            return behind
        self._begin(entry, behind - end, done=False)
        if done:
            final: Out = []
            self._done(ours, entry, final)
            self._closing = [bytes(piece) for piece in final]
        return end

    def _hole(self, buffer: bytearray, pos: int, end: int, out: Out) -> int:
        if end - pos < CHUNK_HOLE.size:
            return pos
        _magic, word, ours, size, offset, length = CHUNK_HOLE.unpack_from(buffer, pos)
        entry = self._entry(ours)
        if size != 12 or not length:
            raise WireError(f"an OFFSET_HOLE chunk of {size} bytes for a hole of {length}")
        self._cover(ours, entry, offset, length)
        out.append(
            CHUNK_HOLE.pack(STRUCTURED_REPLY_MAGIC, Chunk.OFFSET_HOLE, entry[0], 12, offset, length)
        )
        if word & DONE_BIT:
            self._done(ours, entry, out)
        return pos + _HOLE_SIZE

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
        if not partial.cover(offset, offset + length):
            raise WireError(f"{length} bytes at {offset} came twice in reply to a READ")
        if len(partial.covered) > limits.MAX_GAPS:
            raise WireError(f"a reply to a READ in more than {limits.MAX_GAPS} separate ranges")

    def _partial(self, ours: int) -> Partial:
        partial = self.traffic.partial.get(ours)
        if partial is None:
            partial = self.traffic.partial[ours] = Partial()
        return partial

    def _status(self, ours: int, entry: Entry, payload: bytes, out: Out) -> None:
        context_id, extents = decode_extents(payload)
        plan = self.traffic.plan
        if context_id not in plan.context_ids:
            raise WireError(f"block status of context {context_id}, which was not selected")
        client_id = plan.context_ids[context_id]
        partial = self._partial(ours)
        if context_id in partial.contexts:
            raise WireError(f"block status of context {context_id} came twice")
        partial.contexts.add(context_id)
        if client_id is None:
            return  # a context that the client did not select here
        cookie, word, offset, length = entry
        one = bool(word >> 16 & CmdFlag.REQ_ONE)
        mended = mended_extents(extents, length, plan.offer.size - offset, one=one)
        if mended:
            out.append(encode_status_chunk(cookie, client_id, mended, done=False))
        else:
            partial.failed = True
            text = "the server gave no extent that is not empty"
            out.append(encode_error_chunk(cookie, Errno.EIO, text, done=False))

    def _error(
        self, ours: int, entry: Entry, kind: int, payload: bytes, out: Out, *, done: bool
    ) -> None:
        cookie, word, start, wanted = entry
        told = decode_error_chunk(kind, payload)
        if word & PIECE:
            if not done:
                raise WireError("an error chunk without DONE to a command that has no data")
            del self.traffic.in_flight[ours]
            self._settle_piece(ours, told.error, told.text, out)
            return
        offset = told.offset
        if offset is not None and not start <= offset < start + max(wanted, 1):
            raise WireError(f"an error at {offset} in reply to {wanted} bytes at {start}")
        error = normal_error(word, told.error)
        out.append(encode_error_chunk(cookie, error, told.text, offset=offset, done=done))
        if done:
            self._forget(ours)
        else:
            self._partial(ours).failed = True

    def _done(self, ours: int, entry: Entry, out: Out) -> None:
        """End a reply that has come without fault, or say what is missing of it."""
        cookie, word, _start, _wanted = entry
        if word & PIECE:
            del self.traffic.in_flight[ours]
            self._settle_piece(ours, 0, "", out)
            return
        missing = self._missing(ours, entry)
        self._forget(ours)
        if missing:
            out.append(encode_error_chunk(cookie, Errno.EIO, missing))
        else:
            out.append(encode_chunk(cookie, Chunk.NONE))

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


def mended_extents(
    extents: list[tuple[int, int]], length: int, reach: int, *, one: bool
) -> list[tuple[int, int]]:
    """Give the extents of a reply as proto.md wants them; `length`: bytes asked for, `reach`: bytes from
    the request's offset to the end of the export, `one`: REQ_ONE was set.

    Empty ones are left out (Q-S4), what lies behind the export is cut (Q-S10), and so is what begins behind
    the range that was asked for: fewer extents are always legal.
    """
    mended = []
    at = 0
    for size, flags in extents:
        if not size:
            continue
        size = min(size, (length if one else reach) - at)
        mended.append((size, flags))
        at += size
        if one or at >= length:
            break
    return mended

"""Bytes of a direction -> messages.

A decoder may be put on a connection at any time: whoever does it says how many bytes of a message are still to
come (`skip`), and what was asked before. Where a message should begin and none does, a decoder says what is
there, and looks for the next one that makes sense.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from gateway.trace.asked import AskedFor
from gateway.trace.message import Direction, Kind, Message, Requested
from gateway.wire.constants import (
    EXTENDED_REPLY_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Cmd,
    CmdFlag,
)
from gateway.wire.framing import EXTENDED, SIMPLE
from gateway.wire.limits import MAX_ERROR_CHUNK_BYTES
from gateway.wire.transmission import (
    CHUNK,
    CONTEXT_ID,
    DONE_BIT,
    EXTENDED_CHUNK,
    EXTENDED_EXTENT,
    EXTENDED_STATUS_HEAD,
    EXTENT,
    HOLE,
    OFFSET,
    SIMPLE_REPLY,
    STATUS_PAYLOAD_HEAD,
    WORD,
    is_error,
)

SHOWN_EXTENTS = 8
"""Extents of a reply that are shown: a line is read by people, and qemu tells up to 131,072."""

SHOWN_CONTEXTS = 8
"""The same for the contexts that a BLOCK_STATUS asks for."""

MOST_PAYLOAD_BYTES = 4096
"""What may be shown of the data of one message: a block. More is what other tools are for."""

MAX_GUESSES = 64
"""How often in a row we look closely at what is like a message and is none. Data may be full of that, and no
session may be held up by it."""

BLIND_BYTES = 1024
"""What is passed over after each further one: so a megabyte costs a few milliseconds."""

_COMMANDS = frozenset(Cmd)
_FLAGS = sum(CmdFlag)
_KINDS = frozenset(Chunk)


@dataclass(slots=True)
class _Whole:
    """What is known of a message once its header is there."""

    kind: Kind
    shown: int
    """How many of its bytes are kept."""
    length: int
    asked: Requested | None = None
    whose: str = ""
    has_more: bool = False
    """It may have data behind it, and nobody knows how much."""


class Decoder(ABC):
    """One direction. `say` is called with each message as soon as what is shown of it is there."""

    def __init__(
        self,
        direction: Direction,
        asked: AskedFor,
        say: Callable[[Message], None],
        clock: Callable[[], float],
        payloads: int = 0,
    ) -> None:
        self._direction = direction
        self._asked = asked
        self._say = say
        self._clock = clock
        self._payloads = min(payloads, MOST_PAYLOAD_BYTES)
        self._at = 0  # how many bytes came before those of `_head`
        self._head = bytearray()
        self._since = 0.0  # when the first byte of it came
        self._least = self._wanted = self._least_bytes()
        self._whole: _Whole | None = None  # the message whose header is in `_head`
        self._skip = 0  # bytes of data that are still to come
        self._seeks = False  # we do not know where a message begins
        self._guesses = 0  # how often it was none where one seemed to
        self._blind = 0  # bytes in which we do not even look
        self._unknown = 0  # bytes since then, beyond what was told of them
        magics = b"|".join(re.escape(WORD.pack(magic)) for magic in self._magics())
        self._magic = re.compile(magics)
        self._beginnings = {WORD.pack(magic)[:few] for magic in self._magics() for few in (1, 2, 3)}

    def skip(self, count: int) -> None:
        """Take no notice of the next bytes: they belong to a message that began before."""
        self._skip += count

    def feed(self, data: bytes | memoryview) -> None:
        """Take what comes next."""
        now = self._clock()
        if self._seeks:
            data = self._with_head(data)
        pos, end = 0, len(data)
        while pos < end:
            if self._skip:
                count = min(self._skip, end - pos)
                self._skip -= count
                self._at += count
                pos += count
                continue
            if self._blind:
                count = min(self._blind, end - pos)
                self._blind -= count
                pos = self._pass(pos, pos + count)
                continue
            if self._seeks and not self._head:
                if isinstance(data, memoryview):
                    data = bytes(data)
                pos = self._pass(pos, self._next(data, pos))
                if pos == end:
                    return
            if not self._head:
                self._since = now
            count = min(self._wanted - len(self._head), end - pos)
            self._head += data[pos : pos + count]
            pos += count
            if len(self._head) < self._wanted or self._look():
                continue
            # The same bytes again, from the second on.
            self._guesses += 1
            if self._guesses > MAX_GUESSES:
                self._blind = BLIND_BYTES
            if pos < len(self._head):
                data, pos = self._with_head(data[pos:]), 0
                end = len(data)
            else:
                pos -= len(self._head)
                self._head.clear()
            pos = self._pass(pos, pos + 1)

    def end(self) -> None:
        """Say what has begun and will not be seen to its end."""
        if self._head:
            self._tell(Kind.CUT, bytes(self._head), len(self._head), self._whole)
        elif self._skip:
            self._tell(Kind.CUT, b"", self._skip)
        self._head.clear()
        self._whole, self._skip = None, 0

    # --- What differs

    @abstractmethod
    def _least_bytes(self) -> int:
        """Give how many bytes have to be there before anything can be said of a message."""

    @abstractmethod
    def _magics(self) -> tuple[int, ...]:
        """Give what a message may begin with."""

    @abstractmethod
    def _judge(self, head: bytearray) -> _Whole | int | None:
        """Say what the message is that begins so; or how many bytes it takes to say that; None: it is none."""

    @abstractmethod
    def _makes_sense(self, head: bytearray) -> bool:
        """Say whether what looks like a message is one, and no data that happens to look so."""

    # --- Messages

    def _look(self) -> bool:
        """There are as many bytes of a message as were wanted; say whether it is one."""
        whole = self._whole
        if whole is None:
            nonsense = self._seeks and not self._makes_sense(self._head)
            judged = None if nonsense else self._judge(self._head)
            if judged is None:
                self._wanted = self._least
                if not self._seeks:
                    self._tell(Kind.STRANGE, bytes(self._head), len(self._head))
                    self._seeks, self._unknown = True, -len(self._head)
                return False
            if isinstance(judged, int):
                self._wanted = judged
                return True
            whole = self._whole = judged
            self._wanted = whole.shown
            if self._seeks:
                self._seeks, self._guesses = False, 0
                if self._unknown > 0:
                    self._at -= self._unknown
                    self._tell(Kind.STRANGE, b"", self._unknown)
                    self._at += self._unknown
            if len(self._head) < whole.shown:
                return True
        self._tell(whole.kind, bytes(self._head), whole.length, whole)
        self._skip = whole.length - len(self._head)
        self._at += len(self._head)
        self._head.clear()
        self._whole, self._wanted = None, self._least
        if whole.has_more:
            self._seeks, self._unknown = True, 0
        return True

    def _tell(self, kind: Kind, raw: bytes, length: int, whole: _Whole | None = None) -> None:
        asked, whose = (None, "") if whole is None else (whole.asked, whole.whose)
        seen = Message(self._direction, self._since, kind, raw, length, self._at, asked, whose)
        self._say(seen)

    # --- Where does the next one begin?

    def _with_head(self, data: bytes | memoryview) -> bytes:
        """Put what is in `_head` before the data."""
        head = bytes(self._head)
        self._head.clear()
        return head + data

    def _next(self, data: bytes, pos: int) -> int:
        """Give where a message may begin; the end, if nowhere."""
        found = self._magic.search(data, pos)
        if found is not None:
            return found.start()
        for few in (3, 2, 1):
            if len(data) - few >= pos and data[-few:] in self._beginnings:
                return len(data) - few
        return len(data)

    def _pass(self, pos: int, to: int) -> int:
        """Go on at a later position: what lies before it is of no message."""
        self._at += to - pos
        self._unknown += to - pos
        return to


class Requests(Decoder):
    """What a client asks, or we ask a server. `whose` says of a cookie of ours on whose behalf we ask."""

    def __init__(
        self,
        direction: Direction,
        asked: AskedFor,
        say: Callable[[Message], None],
        clock: Callable[[], float],
        payloads: int = 0,
        whose: Callable[[int], str] = lambda _cookie: "",
    ) -> None:
        super().__init__(direction, asked, say, clock, payloads)
        self._whose = whose

    def _least_bytes(self) -> int:
        return self._direction.framing.request.size

    def _magics(self) -> tuple[int, ...]:
        return (self._direction.framing.request_magic,)

    def _judge(self, head: bytearray) -> _Whole | None:
        framing = self._direction.framing
        magic, word, cookie, offset, length = framing.request.unpack(head)
        if magic != framing.request_magic:
            return None
        command, flags = word & 0xFFFF, word >> 16
        of_payload = framing is EXTENDED and flags & CmdFlag.PAYLOAD_LEN
        payload = length if command == Cmd.WRITE or of_payload else 0
        shown = self._payloads
        if command == Cmd.BLOCK_STATUS and payload:
            shown = STATUS_PAYLOAD_HEAD.size + SHOWN_CONTEXTS * CONTEXT_ID.size
        if command != Cmd.DISC:  # which has no reply
            self._asked.add(cookie, (word, offset, length))
        header = len(head)
        return _Whole(
            Kind.REQUEST,
            header + min(payload, shown),
            header + payload,
            whose=self._whose(cookie),
        )

    def _makes_sense(self, head: bytearray) -> bool:
        _magic, word, *_rest = self._direction.framing.request.unpack(head)
        return word & 0xFFFF in _COMMANDS and not word >> 16 & ~_FLAGS


class Answers(Decoder):
    """What a server answers, or we answer a client."""

    def _least_bytes(self) -> int:
        return EXTENDED_CHUNK.size if self._direction.framing is EXTENDED else SIMPLE_REPLY.size

    def _magics(self) -> tuple[int, ...]:
        framing = self._direction.framing
        if framing is EXTENDED:
            return (EXTENDED_REPLY_MAGIC,)
        if framing is SIMPLE:
            return (SIMPLE_REPLY_MAGIC,)
        return SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC

    def _judge(self, head: bytearray) -> _Whole | int | None:
        framing = self._direction.framing
        (magic,) = WORD.unpack_from(head)
        if magic not in self._magics():
            return None
        if magic == SIMPLE_REPLY_MAGIC:
            return self._simple(head)
        if framing is EXTENDED:
            _magic, word, cookie, _asked, size = EXTENDED_CHUNK.unpack(head)
        elif len(head) < CHUNK.size:
            return CHUNK.size
        else:
            _magic, word, cookie, size = CHUNK.unpack(head)
        return self._chunk(len(head), word, cookie, size)

    def _simple(self, head: bytearray) -> _Whole:
        _magic, error, cookie = SIMPLE_REPLY.unpack(head)
        asked = self._asked.first(cookie)
        self._asked.end(cookie)
        size, has_more = 0, False
        if not error and self._direction.framing is SIMPLE:
            has_more = asked is None
            if asked is not None and asked[0] & 0xFFFF == Cmd.READ:
                size = asked[2]
        header = len(head)
        shown = header + min(size, self._payloads)
        return _Whole(Kind.SIMPLE, shown, header + size, asked, has_more=has_more)

    def _chunk(self, header: int, word: int, cookie: int, size: int) -> _Whole:
        kind = word & 0xFFFF
        asked = self._asked.first(cookie)
        if word & DONE_BIT:
            self._asked.end(cookie)
        if kind == Chunk.OFFSET_DATA:
            shown = OFFSET.size + self._payloads
        elif kind == Chunk.OFFSET_HOLE:
            shown = HOLE.size
        elif kind == Chunk.BLOCK_STATUS:
            shown = CONTEXT_ID.size + SHOWN_EXTENTS * EXTENT.size
        elif kind == Chunk.BLOCK_STATUS_EXT:
            shown = EXTENDED_STATUS_HEAD.size + SHOWN_EXTENTS * EXTENDED_EXTENT.size
        elif is_error(kind):
            shown = MAX_ERROR_CHUNK_BYTES
        else:
            shown = self._payloads
        return _Whole(Kind.CHUNK, header + min(size, shown), header + size, asked)

    def _makes_sense(self, head: bytearray) -> bool:
        magic, word, cookie = SIMPLE_REPLY.unpack_from(head)
        if magic == SIMPLE_REPLY_MAGIC:
            return cookie in self._asked
        return word & 0xFFFF in _KINDS and word >> 16 <= 1

"""A decoder in each direction of one connection, and messages of every framing."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.trace.asked import AskedFor
from gateway.trace.decode import Answers, Requests
from gateway.trace.message import Direction, Kind, Message
from gateway.trace.words import in_words
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.framing import EXTENDED, SIMPLE, STRUCTURED, Framing
from gateway.wire.transmission import (
    encode_chunk,
    encode_simple_reply,
    encode_status_payload,
)

FRAMINGS = (SIMPLE, STRUCTURED, EXTENDED)
CONTEXTS = {1: "base:allocation", 2: "qemu:dirty-bitmap:b"}


class Conversation:
    """Requests one way, answers the other."""

    def __init__(
        self,
        framing: Framing,
        payloads: int = 0,
        before: Sequence[tuple[int, tuple[int, int, int]]] = (),
    ) -> None:
        self.seen: list[Message] = []
        self.now = 0.0
        known = AskedFor(before)
        here, there = (
            Direction("a-1", 1, "client", sent, framing, CONTEXTS) for sent in (False, True)
        )
        self.requests = Requests(here, known, self.seen.append, self._clock, payloads)
        self.answers = Answers(there, known, self.seen.append, self._clock, payloads)

    def _clock(self) -> float:
        return self.now

    @property
    def words(self) -> list[str]:
        return [in_words(each) for each in self.seen]

    @property
    def kinds(self) -> list[Kind]:
        return [each.kind for each in self.seen]


def requests(framing: Framing) -> list[bytes]:
    """Some of every command."""

    def asked(command: int, flags: int, cookie: int, offset: int, length: int) -> bytes:
        if command == Cmd.WRITE and framing is EXTENDED:
            flags |= CmdFlag.PAYLOAD_LEN
        return framing.encode_request(command, flags, cookie, offset, length)

    made = [
        asked(Cmd.READ, 0, 1, 0, 4096),
        asked(Cmd.WRITE, CmdFlag.FUA, 2, 4096, 10) + b"0123456789",
        asked(Cmd.FLUSH, 0, 3, 0, 0),
        asked(Cmd.TRIM, 0, 4, 8192, 512),
        asked(Cmd.WRITE_ZEROES, CmdFlag.NO_HOLE, 5, 0, 2**31),
        asked(Cmd.CACHE, 0, 6, 0, 512),
        asked(Cmd.READ, 0, 7, 512, 12),
    ]
    if framing.chunked:
        made += [
            asked(Cmd.BLOCK_STATUS, CmdFlag.REQ_ONE, 8, 0, 2**20),
            asked(Cmd.READ, CmdFlag.DF, 9, 0, 8),
        ]
    if framing is EXTENDED:
        payload = encode_status_payload(2**40, (1, 2))
        made.append(asked(Cmd.BLOCK_STATUS, CmdFlag.PAYLOAD_LEN, 10, 0, len(payload)) + payload)
    return [*made, asked(9, 1 << 9, 11, 1, 2), framing.disc()]


def answers(framing: Framing) -> list[bytes]:
    """Replies to them."""
    if framing is SIMPLE:
        return [
            encode_simple_reply(2),
            encode_simple_reply(1) + bytes(4096),
            encode_simple_reply(3, Errno.EIO),
            encode_simple_reply(7) + b"twelve bytes",
            encode_simple_reply(4),
            encode_simple_reply(5, 4711),
        ]
    made = [
        framing.data_head(1, 0, 0, 1000, done=False) + bytes(1000),
        framing.success(2, 4096, read=False),
        framing.hole(1, 0, 1000, 3096, done=False),
        framing.end(1, 0),
        framing.failure(3, 0, Errno.ENOSPC, "the disk\nis full"),
        framing.failure(4, 8192, Errno.EIO, "", offset=8200),
        framing.status(8, 0, 1, [(512, 0), (512, 3), (1024, 2), (512, 9)], done=False),
        framing.status(8, 0, 2, [(2**20, 1)] * 20, done=True),
        framing.data_head(9, 0, 0, 8, done=True) + b"8 bytes!",
        framing.success(5, 0, read=False),
    ]
    if framing is STRUCTURED:
        made.append(encode_chunk(6, 77, b"who knows"))
    return made

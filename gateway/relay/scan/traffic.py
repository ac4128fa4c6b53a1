"""What is under way on one session: the in-flight table, and what commands in several parts have come to.

Cookies upstream are our own counter, so a reply's cookie is a key that no client can forge or repeat; the
client's cookie is opaque and only comes back to it (clients SHOULD keep theirs unique, and need not).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.relay.scan.plan import Plan
from gateway.wire.constants import Cmd, Errno
from gateway.wire.transmission import (
    encode_chunk,
    encode_error_chunk,
    encode_request,
    encode_simple_reply,
)

MAX_IN_FLIGHT = 128
"""Commands of one session that are under way at a time; while there are so many, the client's requests stay
unread. The Linux kernel has 128 tags a queue, libnbd's tools ask 64, qemu 16."""

Entry = tuple[int, int, int, int]
"""(the client's cookie, word, offset, length) of a command under way; a tuple, because there is one for every
request of the data plane."""

PIECE = 1 << 32
"""Set in the word of an `Entry` that is one piece of a command; no word on the wire has that bit."""


@dataclass(slots=True)
class Pieces:
    """A WRITE_ZEROES that goes upstream piece by piece, each after the reply to the one before.

    One after the other, because the first error must be the last thing that happens, and because the gain
    of more is nothing at 32 MiB a piece.
    """

    cookie: int
    word: int
    next_offset: int
    end: int
    begun: bool = False


@dataclass(slots=True)
class Partial:
    """What has come of a structured reply that takes more than one chunk."""

    covered: list[tuple[int, int]] = field(default_factory=list)
    """Of a READ: ranges (start, end) that have come, sorted, disjoint, neighbours merged."""
    contexts: set[int] = field(default_factory=set)
    """Of a BLOCK_STATUS: ids whose chunk has come."""
    failed: bool = False
    """An error chunk has come."""

    def cover(self, start: int, end: int) -> bool:
        """Add a range; say False if some of it has come before."""
        covered = self.covered
        if not covered or start > covered[-1][1]:
            covered.append((start, end))
            return True
        if start == covered[-1][1]:  # the usual case: chunks in order
            covered[-1] = (covered[-1][0], end)
            return True
        if any(start < last and first < end for first, last in covered):
            return False
        covered.append((start, end))
        covered.sort()
        merged = covered[:1]
        for first, last in covered[1:]:
            if first == merged[-1][1]:
                merged[-1] = (merged[-1][0], last)
            else:
                merged.append((first, last))
        self.covered = merged
        return True


class Traffic:
    """Everything under way on one session."""

    __slots__ = ("in_flight", "last_cookie", "partial", "pieces", "plan")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.in_flight: dict[int, Entry] = {}
        """Our cookie -> the command."""
        self.pieces: dict[int, Pieces] = {}
        """Our cookie -> the command that this piece is of; its entry in `in_flight` has PIECE set."""
        self.partial: dict[int, Partial] = {}
        """Our cookie -> what has come of its reply, where that is not the whole reply."""
        self.last_cookie = 0

    def new_cookie(self) -> int:
        """Give a cookie that this link has not seen."""
        self.last_cookie += 1
        return self.last_cookie

    def next_piece(self, pieces: Pieces, longest: int) -> bytes:
        """Enter the next piece of a command, of at most `longest` bytes; give the request for it."""
        cookie = self.new_cookie()
        offset = pieces.next_offset
        length = min(longest, pieces.end - offset)
        self.in_flight[cookie] = (pieces.cookie, PIECE | pieces.word, offset, length)
        self.pieces[cookie] = pieces
        return encode_request(pieces.word & 0xFFFF, pieces.word >> 16, cookie, offset, length)

    def success(self, cookie: int, word: int) -> bytes:
        """Give the reply that says a command without data in its reply has succeeded (or a READ of
        nothing).
        """
        if self.plan.offer.structured and word & 0xFFFF == Cmd.READ:
            return encode_chunk(cookie, 0)
        return encode_simple_reply(cookie)

    def failure(
        self, cookie: int, error: Errno, text: str = "", offset: int | None = None
    ) -> bytes:
        """Give the reply that says a command has failed; the text goes to those who can be told."""
        if self.plan.offer.structured:
            return encode_error_chunk(cookie, error, text, offset=offset)
        return encode_simple_reply(cookie, error)

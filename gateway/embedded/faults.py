"""Misbehaviour on request: what a test can make an embedded server do wrong.

The server composes every reply properly; a fault cuts, holds, drops or replaces what it composed. So a test
says only what is wrong, and everything else about the conversation is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from gateway.wire.constants import Cmd
from gateway.wire.handshake import NEWSTYLE_GREETING


@dataclass(frozen=True, slots=True)
class Request:
    """One command as it came."""

    word: int
    """Command flags and type, as on the wire."""
    cookie: int
    offset: int
    length: int

    @property
    def command(self) -> int:
        """The type."""
        return self.word & 0xFFFF

    @property
    def flags(self) -> int:
        """The command flags."""
        return self.word >> 16


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong on one connection; the defaults: nothing."""

    cut_after_bytes: int | None = None
    """Close as soon as exactly so many bytes were sent."""
    stall_after_bytes: int | None = None
    """Send so many bytes and then nothing any more; what comes is read and ignored."""
    count_from_transmission: bool = False
    """Those two count from the first byte of the transmission phase, instead of from the greeting."""
    cut_at_option: int | None = None
    """Close when the option of this number has come, without an answer to it; 1 is the first."""
    close_on_command: Cmd | None = None
    """Close when the header of such a command has come; nothing that was under way is answered."""
    never_reply: frozenset[Cmd] = frozenset()
    """Commands that are carried out and never answered."""
    answer_early: Callable[[Request], int | None] | None = None
    """The error that a WRITE is answered with as soon as its header has come, 0 for success; None: it is
    answered at the proper time. Its data is read all the same, and written on success."""
    delay: Callable[[Request], trio.Event | None] | None = None
    """The event that the reply to a request waits for, once the request was carried out. A connection that
    the client ends waits for it as well: replies that are under way are still sent."""
    on_reply: Callable[[Request, list[bytes]], Iterable[bytes]] | None = None
    """Given a request and its reply (one item if simple, else one for each chunk), say what to send in its
    place: nothing, something else, or what the test kept back of an earlier reply. (Of an extended chunk, bytes
    16 to 24 are the request's offset.)"""

    @property
    def touches_replies(self) -> bool:
        """Replies may be changed after they were composed, or sent later."""
        return bool(self.never_reply) or self.delay is not None or self.on_reply is not None


NONE = Faults()

CLOSES_BEFORE_GREETING = Faults(cut_after_bytes=0)
"""As a forwarder does that has no server behind it, and as one that has no room for another client."""

SILENT_AFTER_GREETING = Faults(stall_after_bytes=NEWSTYLE_GREETING.size)
"""As a server does that hangs, or whose machine has lost its power."""

"""Replies to WRITEs that come before all of their data has been sent to the server.

A server may say no to a WRITE when it has seen the header, and some say yes. Either way the data was
announced and has to follow, or the server would not understand what comes after it. And some clients do not
bear a reply while they are still sending (libnbd up to 1.22 and qemu 2.12 to 3.1 give the connection up). So
such a reply is held, and goes on when its time has come:

- an error, when the client has sent all of its data. An error is true whenever it comes, even if the link
  dies then;
- a success, when the last of the data has been given to the kernel for the server as well. Before that the
  server cannot have what it says it has: we note nothing as written, durable or not, and tell nobody. If the
  link dies first, it was no reply. Then the WRITE is like any other that has none: it is asked again, or it
  fails.

A second reply to the same WRITE is as wrong as one that comes later, when nobody knows its cookie any more.
It costs the link.

Whoever sends the data knows which of it has been sent: see `unsent_writes`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from gateway.jobs.locks import Entry
from gateway.wire.constants import Cmd
from gateway.wire.errors import WireError

MAX_HELD_CHUNKS = 8
"""How many chunks of one reply are held. An error and the end are two; a server that needs many more to say
no has lost its way."""

NO_COOKIE = 1 << 64
"""Above all cookies, which have 64 bits."""

_NONE: Collection[int] = ()

Take = Callable[[list[memoryview | bytes]], None]
"""Takes a reply, or a chunk of one, and adds to what is sent to the client."""


@dataclass(slots=True)
class _Held:
    """What has come of one reply so far."""

    parts: list[Take] = field(default_factory=list)
    failed: bool = False
    """It is an error."""
    whole: bool = False
    """Nothing more may come of it."""


class Early:
    """The early replies of one link."""

    __slots__ = ("half_sent", "held", "unsent")

    def __init__(self) -> None:
        self.half_sent = 0
        """Our cookie of the client's WRITE whose data has not all come from the client; 0: there is none."""
        self.unsent = _NONE
        """Our cookies of other WRITEs whose data has not all been sent. It has to be set before replies are
        looked at."""
        self.held: dict[int, _Held] = {}
        """Our cookie -> its reply, or what has come of it."""

    @property
    def least(self) -> int:
        """Our least cookie to which a reply may be early."""
        if not (self.half_sent or self.unsent or self.held):
            return NO_COOKIE  # the usual case
        return min(self.half_sent or NO_COOKIE, *self.unsent, *self.held, NO_COOKIE)

    def may_be(self, ours: int) -> bool:
        """Say whether a reply may be early; `hold` finds out."""
        return ours == self.half_sent or ours in self.unsent or ours in self.held

    def hold(self, ours: int, take: Take, *, failed: bool, whole: bool) -> bool:
        """If a reply, or a chunk of one, is early, hold it; say whether it was. `whole`: it is the last chunk.
        `take` gets it when its time has come, and must not find anything wrong with it any more. Raises
        `WireError` if it is one too many.
        """
        held = self.held.get(ours)
        if held is None:
            if ours != self.half_sent and (failed or ours not in self.unsent):
                return False
            held = self.held[ours] = _Held()
        if held.whole:
            raise WireError(
                f"a second reply to a WRITE with cookie {ours:#x}, before its data was sent"
            )
        if len(held.parts) == MAX_HELD_CHUNKS:
            raise WireError(
                f"more than {MAX_HELD_CHUNKS} chunks in reply to a WRITE, before its data was sent"
            )
        held.parts.append(take)
        held.failed = held.failed or failed
        held.whole = whole
        return True

    def due(self) -> list[Take]:
        """Give what is not early any more, and hold it no longer."""
        return self._taken(
            [
                ours
                for ours, held in self.held.items()
                if ours != self.half_sent and (held.failed or ours not in self.unsent)
            ]
        )

    def refusals(self) -> list[Take]:
        """The link has died. If the WRITE that is half sent was refused, give that reply, for it is true all
        the same; the WRITE is not half sent any more.
        """
        refused = [ours for ours, held in self.held.items() if held.failed and held.whole]
        if refused:
            self.half_sent = 0
        return self._taken(refused)

    def forget(self) -> None:
        """Nothing goes over the link any more."""
        self.held.clear()
        self.half_sent = 0
        self.unsent = _NONE

    def _taken(self, which: list[int]) -> list[Take]:
        return [take for ours in which for take in self.held.pop(ours).parts]


def unsent_writes(in_flight: dict[int, Entry], unsent: int, header: int) -> Collection[int]:
    """Give our cookies of the WRITEs that the last `unsent` bytes of what goes upstream belong to; `header` is
    the length of a request's header.

    The in-flight table has the order in which commands are sent. If one of the last has been answered
    already, an earlier one, which was sent, looks as if it were not: its reply waits a moment longer.
    """
    found: set[int] = set()
    for ours, (_cookie, word, _offset, length) in reversed(in_flight.items()):
        if unsent <= 0:
            break
        unsent -= header
        if word & 0xFFFF == Cmd.WRITE:
            unsent -= length
            found.add(ours)
    return found

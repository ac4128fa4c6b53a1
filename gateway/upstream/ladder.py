"""How much of the protocol a server is asked for, and when it is asked for less: decided without a clock or a
socket.

Old servers lose their way at options that they do not know: they close the connection, or take the option's
data for the next option (Q-N8, Q-S23). Then the same is tried with less, on a fresh connection, one *rung*
down the ladder. A connection that dies for another reason while an option is under way looks just the same,
and servers do die: they are restarted, and the network is cut. Who takes a modern server for an old one
because of that ends the sessions that live on what they were promised, and has new ones begin without their
meta contexts, which nobody notices. So less is asked only of a server of which nothing else is left to think:

- The rung that a climb begins on has to fail twice, on two fresh connections.
- Nothing is asked below what the server has spoken since it was last *seen down*. A connection that is
  refused, or closed before the greeting, shows it down, and then it may be another one that comes back. The
  death of a link shows nothing. What it has spoken is believed for `RUNG_SECONDS`, as a server may be
  exchanged without being seen down.
- Nothing is asked below what a session has been promised that gets another link (`lowest` of a climb).
- While a climb is under way, the server has to stay up: if it is seen down, by whomever, the climb begins
  again at the top, and the next two failures count. An answer on a lower rung that comes after that is not
  believed either.

A lower rung on which the server has answered is where the next climbs begin, so that only one client waits
for the way down: for `RUNG_SECONDS`, and until the server is seen down.

Where a climb may not go down, the server is at fault, not the rung: the same is tried again, after a pause,
as long as whoever climbs has time.

What a connection has *spoken* is no more than it was asked for: a client without structured replies shows
nothing of what the server makes of STRUCTURED_REPLY (`shown_by`).
"""

from __future__ import annotations

from enum import Enum, IntEnum, auto


class Rung(IntEnum):
    """How much of the protocol an old server bears: the rungs of the ladder, from the top."""

    FULL = 0
    """EXTENDED_HEADERS, STRUCTURED_REPLY, meta contexts, INFO, GO."""
    STRUCTURED = 1
    """STRUCTURED_REPLY, meta contexts, INFO, GO."""
    SIMPLE = 2
    """INFO, GO."""
    EXPORT_NAME = 3
    """EXPORT_NAME alone: servers before 2016 lose their way after any other option (Q-N8, Q-S23)."""


RUNG_SECONDS = 300
"""How long we believe what a server has spoken, and that it bears no more than a lower rung. A client need not
climb down the ladder that one before it has climbed down; but the server behind an address may change."""

FAILURES = 2
"""How often the rung on which a climb begins has to fail. It is common that a server dies at a bad moment. It
is not common that it does so on two connections in a row, and is not seen down in between."""


class Next(Enum):
    """What is to be done after a failure."""

    AT_ONCE = auto()
    """Connect anew, now."""
    AFTER_A_PAUSE = auto()
    """Connect anew after a while: the server may not be asked for less."""
    NOTHING = auto()
    """There is no less to ask for."""


def next_rung(rung: Rung, *, structured: bool, extended: bool) -> Rung | None:
    """Give the rung below that differs, if there is one: what is not asked for cannot be left out."""
    if rung is Rung.FULL and extended:
        return Rung.STRUCTURED
    if rung < Rung.SIMPLE and structured:
        return Rung.SIMPLE
    return Rung.EXPORT_NAME if rung < Rung.EXPORT_NAME else None


def shown_by(rung: Rung, *, structured: bool, extended: bool) -> Rung:
    """Give the rung that a server bears, as it has shown by an answer on `rung` to a client that wants this."""
    if rung is Rung.EXPORT_NAME or extended:
        return rung
    return max(rung, Rung.STRUCTURED if structured else Rung.SIMPLE)


class Ladder:
    """What is known of the rungs that one server bears. Times are in seconds, of any clock that never goes
    back.
    """

    def __init__(self) -> None:
        self._spoken = self._borne = Rung.FULL
        self._spoken_until = self._borne_until = float("-inf")
        self.era = 0
        """How often the server was seen down."""

    def seen_down(self) -> None:
        """The server takes no connection. What comes back may be another server."""
        self._spoken_until = self._borne_until = float("-inf")
        self.era += 1

    def first(self, now: float) -> Rung:
        """Give the rung to begin on."""
        return self._borne if now < self._borne_until else Rung.FULL

    def lowest(self, now: float) -> Rung:
        """Give the rung below which nothing is asked."""
        return self._spoken if now < self._spoken_until else Rung.EXPORT_NAME

    def answered(self, rung: Rung, shown: Rung, now: float) -> None:
        """The server, which has not been seen down meanwhile, has answered on a rung."""
        if shown <= self.lowest(now):
            self._spoken, self._spoken_until = shown, now + RUNG_SECONDS
        if rung > self.first(now):
            self._borne, self._borne_until = rung, now + RUNG_SECONDS
        elif shown < self.first(now):
            self._borne_until = float("-inf")  # it bears more than was believed

    def climb(self, lowest: Rung = Rung.EXPORT_NAME) -> Climb:
        """Begin a climb that goes no lower than a rung."""
        return Climb(self, lowest)


class Climb:
    """The way down of one negotiation, which tries until something is answered. Made by `Ladder.climb`."""

    def __init__(self, ladder: Ladder, lowest: Rung) -> None:
        self._ladder = ladder
        self._lowest = lowest
        self._era = ladder.era
        self._failures = 0
        self._rung: Rung | None = None

    def rung(self, now: float) -> Rung:
        """Give the rung for a connection that has just been made."""
        if self._era != self._ladder.era:
            self._begin_again()
        if self._rung is None:
            self._rung = min(self._ladder.first(now), self._lowest)
        return self._rung

    def failed(self, now: float, *, structured: bool, extended: bool) -> Next:
        """A fresh connection has lost its way on the rung that was given for it, where so much was wanted."""
        if self._rung is None or self._era != self._ladder.era:
            return Next.AT_ONCE  # it was seen down meanwhile, so that was its end
        self._failures += 1
        lower = next_rung(self._rung, structured=structured, extended=extended)
        if self._failures < FAILURES:
            return Next.AT_ONCE
        if lower is None:
            return Next.NOTHING
        if lower > min(self._lowest, self._ladder.lowest(now)):
            return Next.AFTER_A_PAUSE
        self._rung = lower
        return Next.AT_ONCE

    def answered(self, rung: Rung, now: float, *, structured: bool, extended: bool) -> bool:
        """The server has answered on a rung, where so much was wanted. Say whether we believe that. If not, the
        connection has to be left, and another one made.
        """
        if self._era != self._ladder.era:
            if rung is Rung.FULL:
                return True  # of whichever server it is
            self._begin_again()
            return False
        shown = shown_by(rung, structured=structured, extended=extended)
        self._ladder.answered(rung, shown, now)
        return True

    def _begin_again(self) -> None:
        self._era = self._ladder.era
        self._failures = 0
        self._rung = None

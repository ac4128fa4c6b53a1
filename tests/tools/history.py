"""What the oracle is told: commands, sessions, and troubles that befall servers and connections. Pure.

Times are the oracle's: it counts events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.tools.stamps import content

if TYPE_CHECKING:
    from tests.tools.oracle import Oracle

NEVER = 10**12


@dataclass(eq=False)
class Trouble:
    """Something that may lose what is not safe."""

    what: str
    """"kill", "cut", "left", "silence" or "flush"."""
    began: int
    ended: int = NEVER
    """It can lose nothing any more that comes from now on."""
    known: int = NEVER
    """The gateway has found it."""
    connections: frozenset[int] | None = None
    """Those that it concerns; None: all."""
    in_order: bool = False
    """A server that is killed has said before that it goes, by ESHUTDOWN."""
    beside: bool = False
    """The gateway has several connections that act as one, and what went over those beside may count as lost
    with it."""


@dataclass(eq=False)
class Op:
    """One command."""

    session: Session | None
    """None: what was there in the beginning, or somebody who looks at the disk."""
    kind: str
    """"read", "write" or "flush"."""
    start: int = 0
    count: int = 0
    """In blocks."""
    stamp: int = 0
    fua: bool = False
    certain: bool = True
    """A write that, once ended, has left its stamp; a TRIM need not have."""
    began: int = 0
    ended: int = NEVER
    failed: int = NEVER
    """A write that was answered with an error never ends."""
    error: int = 0
    packet: int = 0
    """Commands with the same one, but 0, were sent together."""
    steps: bool = False
    """It may be done in several."""
    read: int = NEVER
    """The gateway has surely read it by then."""
    safe: int = NEVER
    """Since when."""
    alone: bool = False
    """Nothing else was under way when it began, nor has begun since."""
    troubles: list[Trouble] = field(default_factory=list)
    """Those that came when it was not safe."""
    proven: list[tuple[Trouble, frozenset[int]]] = field(default_factory=list)
    """Troubles that have lost nothing of it as long as these connections are there."""
    gone: dict[int, Trouble | None] = field(default_factory=dict)
    """Its blocks that are surely lost, and by what."""
    connections: set[int] | None = None
    """Those that it went over; None: not known."""
    wandered: bool = False
    """It was under way when there was trouble: it may be found, or asked again, over any other."""
    found: bool = False
    """It was under way over a connection that has ended, or may have been."""
    remembered: int = 0
    """In how many blocks."""

    @property
    def blocks(self) -> range:
        """Its blocks."""
        return range(self.start, self.start + self.count)

    @property
    def data(self) -> bytes:
        """A write's payload."""
        return content(self.stamp, self.start, self.count)

    def end(self, error: int = 0, data: bytes | bytearray = b"") -> None:
        """Say how it was answered, and what a READ gave. Raises `Broken`."""
        assert self.session is not None
        self.session.oracle._end(self, error, data)

    @property
    def in_steps(self) -> bool:
        """A part of it may be done before the rest."""
        return self.steps or (self.session is not None and self.session.hooked)

    @property
    def over(self) -> int:
        """When it was answered, be it with an error."""
        return min(self.ended, self.failed)

    def suspects(self) -> list[Trouble]:
        """Give what may have lost it: also a part of it that was done when it was not answered, and by a FLUSH
        that fails also all of it.
        """
        return [
            each
            for each in self.troubles
            if (each.what == "flush" or self.in_steps or self._answered_by(each.known))
            and (each.beside or self.met(each))
        ]

    def met(self, trouble: Trouble) -> bool:
        """Say whether it may have gone over a connection that has that trouble."""
        return (
            trouble.connections is None
            or self.connections is None
            or self.wandered
            or not trouble.connections.isdisjoint(self.connections)
        )

    def _answered_by(self, moment: int) -> bool:
        """Say whether it may have been answered by then; to a client that has gone, it may."""
        assert self.session is not None
        if self.fua and self.failed < NEVER:
            return True  # perhaps its FLUSH alone has failed
        return self.ended < moment or (self.ended == NEVER and self.session.closed < moment)

    def __str__(self) -> str:
        who = self.session.name if self.session else "the beginning"
        blocks = f" of {self.count} blocks at {self.start}" if self.count else ""
        stamp = f", stamp {self.stamp}" if self.kind == "write" else ""
        ended = "not answered" if self.ended == NEVER else f"to {self.ended}"
        fua = " with FUA" if self.fua else ""
        return f"{self.kind}{fua}{blocks}{stamp}, by {who} from {self.began} {ended}"


@dataclass(eq=False)
class Session:
    """One client's connection."""

    oracle: Oracle
    name: str
    opened: int
    """It began to connect."""
    ready: int
    """It was answered that the export is open."""
    closed: int = NEVER
    """It has begun to leave, or vanished."""
    gone: int = NEVER
    """The gateway knows that."""
    vanished: bool = False
    """It did not leave in good order: the gateway cannot know whether it has read what it was told last."""
    hooked: bool = False
    """A policy may do its commands in several steps, or have them wait."""
    may_end: bool = False
    """What was safe to it is gone: the gateway may end it."""
    may_go: bool = False
    """The gateway was told to end its sessions in good order, and this may be one of them."""
    failed_at_home: int = -1
    """When the home of its disk has last failed a FLUSH that had met ends, to this session alone. Where it came
    in nobody knows that nothing is lost, and FLUSHes that were read before fail as well."""
    missing: Op | None = None
    """And it must: this was there, is gone, and has surely been looked for."""
    alone: Op | None = None
    """Its last write, if that was alone from its beginning to the end of the FLUSH that made it safe, and
    nobody
    has written there since: the gateway can surely tell whether it is still there."""

    def write(
        self,
        start: int,
        count: int,
        *,
        fua: bool = False,
        zeros: bool = False,
        certain: bool = True,
        packet: int = 0,
        steps: bool = False,
    ) -> Op:
        """Begin a write; `zeros` for WRITE_ZEROES, and for TRIM with `certain` false."""
        op = Op(self, "write", start, count, 0, fua, certain, packet=packet, steps=steps)
        return self.oracle._begin_write(op, zeros)

    def read(self, start: int, count: int, *, packet: int = 0) -> Op:
        """Begin a READ."""
        return self.oracle._begin(Op(self, "read", start, count, packet=packet))

    def flush(self, *, packet: int = 0) -> Op:
        """Begin a FLUSH."""
        return self.oracle._begin(Op(self, "flush", packet=packet))

    def open(self) -> None:
        """Say that the export is open."""
        self.ready = self.oracle._tick()

    def close(self) -> None:
        """Say that the connection is gone; what was not answered never will be."""
        self.closed = self.oracle._tick()
        for op in list(self.oracle._under_way):
            if op.session is self:
                del self.oracle._under_way[op]

    @property
    def has_to_end(self) -> bool:
        """The gateway has surely seen that it is on another disk, or on an older one."""
        return self.missing is not None

    def seen_off(self) -> None:
        """Say that the gateway knows that it has closed."""
        self.gone = min(self.gone, self.oracle._tick())

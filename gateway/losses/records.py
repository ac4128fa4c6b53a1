"""What is known of each session, of each link and of each FLUSH: records, by which the rule of losses decides.

A session has a `Debt`: what its client has still to be told. A link, or a bundle of links that act as one, has
a `Trail`: what was written over it and is not covered. A `Flush` waits until we know what it may be answered.

What becomes of these is decided in `gateway.losses.rule`. The records know that as the `Ledger` of their disk:
what sessions and links tell it, and ask it.

This is longer than other modules: the ledger names all that may be told and asked, and each record says what it
remembers, and why.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

from gateway.losses.eras import LONG_AGO, Keep, Order
from gateway.losses.unflushed import Unflushed
from gateway.losses.witnesses import Sample, Witness, Witnesses
from gateway.wire.ranges import Range, touched

LEFT_UNPROVED = "a connection was closed before what was written over it could be flushed"

NOWHERE: Sequence[Range] = ()
"""Nothing is lost."""

Flushed = Callable[[int, str], None]
"""Is called once with the error of a FLUSH (0: none) and its text."""


class Ledger(ABC):
    """What sessions and links tell the rule of losses of their disk, and ask it. `gateway.losses.rule.Losses`
    is the one that does it, and says what each of these means.
    """

    order: Order
    witnesses: Witnesses
    """What can tell the disk from another one."""
    tainted: bool
    """Somebody has to be told that something may be lost. As long as nobody has, WRITEs need not be noted by
    `written`."""
    last_news: int
    """What `asked` gives, for the data plane."""
    untold_at: int
    """When something was last lost of which nobody was told."""

    @abstractmethod
    def open(self, before: Debt | None = None) -> Debt:
        """A session opens the disk, or comes from another one (a switch)."""

    @abstractmethod
    def end(self, debt: Debt) -> None:
        """A session has ended."""

    @abstractmethod
    def answer(self, flush: Flush, error: int, text: str) -> tuple[int, str]:
        """Say what a FLUSH of a client is answered, and note that it is."""

    @abstractmethod
    def settle(self, flush: Flush, done: Callable[[], None]) -> bool:
        """A FLUSH has been answered 0 over its session's own link: say whether that is all."""

    @abstractmethod
    def withdraw(self, flush: Flush) -> None:
        """Nobody waits for a FLUSH any more."""

    @abstractmethod
    def answered_late(self, debt: Debt, since: int, written: Sequence[Range]) -> None:
        """A command is answered now, and parts of it were written after an event."""

    @abstractmethod
    def unheard(self, debt: Debt) -> None:
        """What a session was told last may not have reached its client."""

    @abstractmethod
    def is_told(self, untold_at: int) -> None:
        """A session that has gone to another disk was told of what nobody knew of by that event."""

    @abstractmethod
    def trail(
        self,
        owner: Debt | None,
        keep: Keep = Keep.RANGES,
        *,
        records: bool = True,
        alone: bool = False,
    ) -> Trail:
        """Give the trail of a link that is not up yet."""

    @abstractmethod
    def has_begun(self, trail: Trail) -> None:
        """A trail holds something again."""

    @abstractmethod
    def came_up(self, trail: Trail) -> None:
        """The link of a trail is up."""

    @abstractmethod
    def died(self, trail: Trail, why: str, *, doubt: bool = False) -> None:
        """The link of a trail is dead."""

    @abstractmethod
    def shaken(self, trail: Trail) -> None:
        """A link of a bundle has died, and others of it are there."""

    @abstractmethod
    def left(self, trail: Trail, *, trusted: bool = False) -> None:
        """The link of a trail was closed by the gateway."""

    @abstractmethod
    def give_up(self, trail: Trail, why: str) -> None:
        """Nobody will find out any more what has become of what a trail in doubt holds."""

    @abstractmethod
    def lose(self, trail: Trail, why: str, *, said: bool = False) -> None:
        """What a trail holds may be gone."""

    @abstractmethod
    def is_durable(self, trail: Trail) -> None:
        """All that a trail holds is durable."""

    @abstractmethod
    def is_proving(self, trail: Trail) -> bool:
        """Say whether a FLUSH over another link may still cover what a dead link has left."""

    @abstractmethod
    def is_in_question(self, but: Trail | None) -> bool:
        """Say whether we do not know yet what became of something that all rely on."""

    @abstractmethod
    def others_write(self, sessions: Collection[Debt]) -> bool:
        """Say whether any other session may write, now."""

    @abstractmethod
    def to_look_for(self, trail: Trail) -> list[Witness]:
        """Give what may be expected to be found on the disk."""

    @abstractmethod
    def asked(self) -> int:
        """Something that writes is asked: give when."""

    @abstractmethod
    def sent(self) -> int:
        """A FLUSH is sent: give when."""

    @abstractmethod
    def answered(self, trail: Trail, sent: int, error: int, text: str) -> None:
        """A FLUSH over a link has its answer."""

    @abstractmethod
    def flushed(self, trail: Trail, sent: int) -> None:
        """A FLUSH over a link has answered 0."""

    @abstractmethod
    def flush_failed(self, trail: Trail, error: int, text: str = "") -> None:
        """A FLUSH over a link has failed."""

    @abstractmethod
    def durable(self, trail: Trail, written: list[Range], sample: Sample | None) -> None:
        """Writes with FUA have been acknowledged."""

    @abstractmethod
    def is_done_before(self, trail: Trail, asked: int) -> bool:
        """Say whether what is acknowledged now was under way when a FLUSH failed."""

    @abstractmethod
    def done_before(self, trail: Trail, ranges: Iterable[Range]) -> None:
        """Something of that kind is acknowledged."""

    @abstractmethod
    def written(self, trail: Trail, start: int, end: int) -> None:
        """Bytes have been written (again)."""


class Debt:
    """What one session has still to be told."""

    __slots__ = (
        "deaf",
        "has_gone",
        "knew_untold_of",
        "knows_untold",
        "losses",
        "losses_seen",
        "lost",
        "opened_at",
        "read_at",
        "told_at",
        "told_first_at",
        "trail",
        "why",
    )

    def __init__(self, losses: Ledger) -> None:
        self.losses = losses
        """The losses of the disk that the session is on."""
        self.opened_at = losses.order.tick()
        """When it opened the disk."""
        self.why = ""
        """Why its next FLUSH fails; empty if it does not."""
        self.lost = NOWHERE
        """Where READs fail until it was told, in the upstream's offsets. Sessions that have to be told of the
        same have the same object: a thousand of them may lose a thousand writes at once."""
        self.knew_untold_of: tuple[Ledger, int] | None = None
        """It has come from that disk (a switch), and has to be told of what nobody had been told of there by
        that event."""
        self.knows_untold = False
        """What nobody was told of yet (`Telling._add_untold`) is part of what it has to be told."""
        self.losses_seen = 0
        """How often something was lost that it relies on. A command in several steps, or one that waits in a
        hook, fails if this has grown between its beginning and its answer. One of its steps may be lost, and a
        session that is told meanwhile would take the rest to be durable after its next FLUSH."""
        self.read_at = -1
        """When a FLUSH of its client was last read."""
        self.told_at = -1
        """When EIO was last sent to it for a FLUSH."""
        self.told_first_at = -1
        """When it was last told of something that it did not know."""
        self.trail: Trail | None = None
        """Where what it writes is noted."""
        self.deaf = False
        """What it is answered does not reach its client any more."""
        self.has_gone: Callable[[], bool] = _is_there
        """Looks whether its client has gone: it may have said so where the session does not read, because it is
        held, or told to end."""

    def is_deaf(self) -> bool:
        """Say whether its client may read no answer any more."""
        self.deaf = self.deaf or self.has_gone()
        return self.deaf

    def is_lost(self, start: int, end: int) -> bool:
        """Say whether any of these bytes may be lost, and the session was not told of it."""
        return bool(self.lost) and touched(self.lost, start, end)

    def has_to_hear(self, why: str, lost: Sequence[Range]) -> None:
        """The session has to be told that something may be gone. `lost`: where, with what was before."""
        self.why, self.lost = why, lost

    def read(self) -> Flush:
        """A FLUSH of its client has been read."""
        self.read_at = self.losses.order.tick()
        return Flush(self, self.read_at)

    def lose_client(self) -> None:
        """Its client is gone, and not in good order: it may not have read what it was answered last."""
        self.deaf = True
        self.losses.unheard(self)

    def __repr__(self) -> str:
        return f"Debt({self.why!r}, {self.lost}, told at {self.told_at})"


class Flush:
    """One FLUSH, from when it was read until it is answered. Without a debt it is no session's, and stands for
    all that any session relies on.
    """

    __slots__ = ("but", "debt", "done", "error", "read", "text", "tries")

    def __init__(self, debt: Debt | None, read: int, but: Trail | None = None) -> None:
        self.debt = debt
        self.read = read
        self.but = but
        """What was written over this trail does not concern it."""
        self.error = 0
        self.text = ""
        """Why a proof was not tried."""
        self.tries = 0
        """How many proofs were not tried, where it is no session's, which could ask again."""
        self.done: Callable[[], None] = nothing


class Proving:
    """A FLUSH that is under way over a trail, because others have to know what is durable."""

    __slots__ = ("sent",)

    def __init__(self, sent: int) -> None:
        self.sent = sent


class Fate(Enum):
    """What has become of the link of a trail."""

    UP = "up"
    DEAD = "dead"
    DOUBT = "in doubt"
    LEFT = "left"
    OVER = "over"


class Trail:
    """What has been written over one link, or a bundle of links that act as one, and is not covered.

    Whoever has the link says what happens to it, to `losses`. `flush` asks for a FLUSH over it. `changed` is
    called when nobody proves any more what a dead link has left, `lost` when something of it is lost: why,
    and where.
    """

    __slots__ = (
        "__weakref__",
        "alone",
        "believed",
        "born",
        "changed",
        "cut",
        "failed_at",
        "flush",
        "hoped",
        "losses",
        "lost",
        "owner",
        "proof",
        "shaken_at",
        "state",
        "tried",
        "under_way",
        "unflushed",
        "unseen",
        "up",
        "waits",
        "why",
        "wrote",
    )

    def __init__(
        self, losses: Ledger, owner: Debt | None, keep: Keep, *, records: bool, alone: bool
    ) -> None:
        self.losses = losses
        self.owner = owner
        """The session that alone relies on it; None: all of the disk do."""
        self.alone = alone
        """A FLUSH over it covers nothing of other links, nor theirs anything of it."""
        self.unflushed = Unflushed(
            keep,
            losses.order,
            records=records,
            begun=partial(_has_begun, losses, weakref.ref(self)),  # each would keep the other
            gone=losses.witnesses.over,
        )
        self.wrote = False
        """Something was written over it, though it may be durable."""
        self.born = losses.witnesses.begin()
        """When it was made, as the disk's witnesses count."""
        self.under_way: Callable[[], list[Range]] = _nothing_is_under_way
        """Gives what is written over it at this moment, or may be."""
        self.believed = False
        """Its server is taken to have kept whatever it has answered, unless it says otherwise itself."""
        self.unseen = False
        """Others write to the disk whose writes are not noted here, and leave it to this link to make them
        durable."""
        self.failed_at = LONG_AGO
        """When a FLUSH over it has lost something last, where that speaks for no other link."""
        self.up = -1
        """When its link came up; of several, the last."""
        self.shaken_at = LONG_AGO
        """When a link of its bundle has died last, while others were there."""
        self.state = Fate.OVER
        self.why = LEFT_UNPROVED
        """What is said if that is lost which its link has left."""
        self.proof: Proving | None = None
        """The FLUSH that is under way over it to prove something. Of a trail in doubt: what stands for the
        proof that is waited for."""
        self.tried = False
        """Another link could not prove what it holds."""
        self.hoped = False
        """It is in doubt, and at the last look another link could still prove what it holds."""
        self.waits: Callable[[], bool] = _never
        """Says whether whoever has it waits on purpose, and not for a server that answers nothing: for a
        link, or until nothing comes late any more. Both have an end of their own."""
        self.cut: Callable[[], bool] = _never
        """Says whether the other side has closed its link, though nobody has read as far: a client that takes
        no replies keeps that from being seen."""
        self.flush: Callable[[Flushed], None] = _nobody_flushes
        self.changed: Callable[[], None] = nothing
        self.lost: Callable[[str, list[Range]], None] = _nobody_hears

    def let_go(self) -> None:
        """Whoever wrote over it has gone, and its link: he is asked for nothing any more."""
        self.under_way = _nothing_is_under_way
        self.cut = _never
        self.flush = _nobody_flushes

    def follows(self, before: Trail) -> None:
        """Its link is in the place of another's, by nobody's word but the address: what was flushed over that
        one has to be there.
        """
        self.wrote = self.wrote or before.wrote
        self.born = min(self.born, before.born)

    @property
    def proving(self) -> bool:
        """Its link is dead, and a FLUSH over another one may still prove that nothing is lost."""
        return self.losses.is_proving(self)

    @property
    def is_shaken(self) -> bool:
        """It holds something that was acknowledged before a link of its bundle died."""
        return self.unflushed.first < self.shaken_at

    @property
    def is_waited_for(self) -> bool:
        """A FLUSH waits for what is uncovered here. What is in doubt, and believed, is durable."""
        return not (self.believed and self.state is Fate.DOUBT)

    @property
    def is_in_question(self) -> bool:
        """A link has died, and what became of what it holds is not known yet."""
        is_dead = self.state in (Fate.DEAD, Fate.DOUBT) and self.is_waited_for
        return is_dead or (self.state is Fate.UP and (self.is_shaken or self.cut()))

    def __repr__(self) -> str:
        return f"Trail({self.state.value}, up at {self.up}, {self.unflushed.ranges})"


@dataclass(frozen=True, slots=True)
class Untold:
    """What may be lost of a disk, and was not told to all who have to know."""

    why: tuple[str, ...]
    """Each reason once."""
    ranges: Sequence[Range]
    """Where, in the upstream's offsets; empty if that is not known."""
    sessions: int
    """How many open sessions have still to be told, by an EIO."""
    nobody: bool
    """No session has been told of all of it: whoever opens the disk next is told too."""


def nothing() -> None:
    """Do nothing: nobody minds."""


def _never() -> bool:
    return False


def _has_begun(losses: Ledger, which: weakref.ref[Trail]) -> None:
    trail = which()
    if trail is not None:
        losses.has_begun(trail)


def _nothing_is_under_way() -> list[Range]:
    return []


def _is_there() -> bool:
    return False


def _nobody_hears(_why: str, _ranges: list[Range]) -> None:
    pass


def _nobody_flushes(_done: Flushed) -> None:
    raise AssertionError("a link that is up can be flushed")

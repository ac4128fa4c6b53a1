"""What is lost of a disk, and who has to be told: the one rule, whatever links and sessions it has.

Theory
------

A server may lose what it has acknowledged until a FLUSH has answered 0. NBD has no way to ask what became of
it. So the gateway remembers, for each *trail*, what was acknowledged and not covered by a FLUSH: a trail is
one link, or a bundle of links that act as one. When a link dies the server may have died with it, and
whatever its trail holds is in question. Whoever relies on a write that is lost has to hear of it, and there
is one word for that: EIO at a FLUSH.

All of this is decided by the order in which things happen, and never by seconds. One disk has one `Order`:
link up, WRITE asked, WRITE answered, FLUSH read, FLUSH sent, FLUSH answered, link dead, EIO sent, session
opened, session ended.

The rule, clause by clause; each has its own method, and its name here:

- *Scope* (`scope`). With CAN_MULTI_CONN, or over links that are shared, every session of the disk relies on
  the write. Otherwise only the session does over whose link it went.
- *Cover* (`flushed`). A FLUSH that answers 0 covers what was answered before it was sent, over its own link;
  and, with CAN_MULTI_CONN, over other links if its link was up before that was asked, and ever since. For
  then both led to the same process. A link that was made later may lead to another one, which knows nothing
  of it. (When it was answered says less: an answer that a slow client leaves in the socket can be older than
  a server that has been started since.) Shared links without CAN_MULTI_CONN are `alone`: all rely on what
  goes over them, and only their own FLUSH covers it. There are two such for a while when one is exchanged.
- *Answering 0* (`_look`). A session's FLUSH succeeds only if all that it relies on, and that was answered
  before it was read, is covered; or lost, and the session was told. What its own FLUSH could not cover is
  proved: the link over which it went is FLUSHed too, and waited for at most `PROOF_SECONDS`. Then it counts
  as lost: that link may be a black hole. (What is in doubt is waited for as long as whoever has it `waits`
  for what comes by itself.) Where the FLUSH of that link was not tried, the session's fails with
  the same error, and nothing is lost.
- *Coming late* (`is_in_question`). A link that was made after another died may lead to a server that was
  started meanwhile, without what that one has left. Before anything is read over it, that is covered, or known
  to be lost.
- *A link dies* (`died`). What it leaves uncovered is FLUSHed over a link that was up before, if that covers
  it. If there is no such link, or its FLUSH does not answer 0, it is lost. Where something can be done about
  that (`doubt`: it can be read back, or written again) the trail keeps it meanwhile.
- *One of several dies* (`shaken`). The others of its bundle may still lead to the same server, or hang. What
  was acknowledged before is in question until a FLUSH over them has covered it.
- *A link is left* (`left`). The gateway has closed it, after a FLUSH, so that its trail is empty; but not
  every link can be FLUSHed (half a WRITE stands in it). Where the scope is all, what is uncovered stays with
  the disk: the next FLUSH that relies on it has to see it covered, or fails; and when another link of the disk
  dies, so has this one: the server may have. Where only its session relied on it, nobody does any more.
- *Telling* (`_tell`, `answer`). Every session that relies on what is lost, and was open, is told by EIO at
  its next FLUSH, and at each FLUSH that was read before that EIO was sent. Until any session has been told,
  whoever opens the disk has to be told too, for there may be nobody left who can be. Once told, a session
  knows that whatever was answered before is in doubt, so that it is told again if and only if something is
  lost that was answered after. Until then its READs of what is lost get EIO, never old data.
- *Loss or not* (`is_loss`). A FLUSH that fails says that something was lost, and the server does not say so
  twice; unless its error says that the FLUSH was not tried.
- *Done before* (`is_done_before`). What is under way when a FLUSH fails may be done already, and lost with the
  rest. When it is acknowledged, over whatever link, it counts as lost.
- *Forgetting* (`forget`). The operator may know better what is on the disk than whoever opens it next would
  find out. Then what nobody was told of is dropped; sessions that are owed an EIO get it all the same.

A FLUSH of the gateway's own (a pause, a proof, the one that keeps FUA where a server has none) is no
client's: it tells nobody, and clears nothing.

Everything is one object for each disk, `Losses`; a `Debt` for each session; a `Trail` for each link or
bundle. It is pure: FLUSHes are asked for by `Trail.flush`, time passes by calls of `later`. All that it calls
may call it back at once.

A disk may have a thousand sessions, so a FLUSH looks only at the trails that hold something, and at those
whose link is gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from gateway.losses.unflushed import LONG_AGO, Era, Keep, Order, Unflushed
from gateway.losses.witnesses import Flushed as Covered
from gateway.losses.witnesses import Sample, Witness, Witnesses
from gateway.protocol.commands import is_loss, text_of_error, told_error
from gateway.wire.constants import Errno
from gateway.wire.ranges import Range, fewer, merged, touched, without

PROOF_SECONDS = 20.0
"""How long a FLUSH may take that only has to prove what another link has written: longer than a server in good
health takes for one, and shorter than the 30 s after which disks are given up in virtual machines."""

MOST_TRIES = 3
"""How often the gateway FLUSHes for itself while the server says that it has not tried: what that has too
little of, it may have in a moment."""

MOST_LEFT = 64
"""Links of one disk that were closed unproved, and are told apart. More are taken for one."""

MOST_LOST = 4096
"""Ranges that are remembered as lost for a session that is not told, for it may never FLUSH. Beyond that the
least gaps are closed, so that more of its READs fail than must, and never fewer."""

BEHIND_A_BLACK_HOLE = (
    "a connection has not answered a FLUSH, and what was written over it may be gone"
)
LEFT_UNPROVED = "a connection was closed before what was written over it could be flushed"
DONE_BEFORE = "a FLUSH has failed while it was written, and the server may have done it before"
REPORTED_BESIDE = "what was written before was reported as lost to a FLUSH beside it"

NOWHERE: Sequence[Range] = ()
"""Nothing is lost."""

Flushed = Callable[[int, str], None]
"""Is called once with the error of a FLUSH (0: none) and its text."""


class Debt:
    """What one session has still to be told."""

    __slots__ = (
        "deaf",
        "knew_untold_of",
        "knows_untold",
        "losses",
        "losses_seen",
        "lost",
        "told_at",
        "told_first_at",
        "trail",
        "why",
    )

    def __init__(self, losses: Losses) -> None:
        self.losses = losses
        """Those of the disk that the session is on."""
        self.why = ""
        """Why its next FLUSH fails; empty if it need not."""
        self.lost = NOWHERE
        """Where READs fail until it was told, in the upstream's offsets. Sessions that owe the same have the
        same object: a thousand of them may lose a thousand writes at once."""
        self.knew_untold_of: tuple[Losses, int] | None = None
        """It has come from that disk (a switch), and the same holds of what nobody was told of there by that
        event."""
        self.knows_untold = False
        """What nobody was told of yet (`Losses.owe_the_next`) is part of what it has to be told."""
        self.losses_seen = 0
        """How often something was lost that it relies on. A command in several steps, or that waits in a
        hook, fails if there were more between its beginning and its answer: one of its steps may be lost, and
        a session that is told meanwhile would take the rest to be durable after its next FLUSH."""
        self.told_at = -1
        """When EIO was last sent to it for a FLUSH."""
        self.told_first_at = -1
        """When it was last told of something that it did not know."""
        self.trail: Trail | None = None
        """Where what it writes is noted."""
        self.deaf = False
        """What it is answered does not reach its client any more."""

    def is_lost(self, start: int, end: int) -> bool:
        """Say whether any of these bytes may be lost, and it has not been told."""
        return bool(self.lost) and touched(self.lost, start, end)

    def owe(self, why: str, lost: Sequence[Range]) -> None:
        """It has to be told that something may be gone; `lost`: where, with what was before."""
        self.why, self.lost = why, lost

    def read(self) -> Flush:
        """A FLUSH of its client has been read."""
        return Flush(self, self.losses.order.tick())

    def __repr__(self) -> str:
        return f"Debt({self.why!r}, {self.lost}, told at {self.told_at})"


class Flush:
    """One FLUSH, from when it was read until it is answered. Without a debt it is nobody's: it stands for all
    that any session relies on.
    """

    __slots__ = ("but", "debt", "done", "error", "read", "text", "tries")

    def __init__(self, debt: Debt | None, read: int, but: Trail | None = None) -> None:
        self.debt = debt
        self.read = read
        self.but = but
        """What was written over this one is no concern of it."""
        self.error = 0
        self.text = ""
        """Of a proof that was not tried."""
        self.tries = 0
        """Proofs that were not tried, while it is nobody's, who could ask again."""
        self.done: Callable[[], None] = _nothing


class Gate:
    """Is opened when all is settled that every session relies on at this moment, but for what was written over
    one trail (`but`); `opened` is called then, if it was not open at once. Who waits no longer has to `forget`
    it: as long as it is there, what is not proved in time is lost.
    """

    def __init__(
        self, losses: Losses, opened: Callable[[], None], but: Trail | None = None
    ) -> None:
        self._losses = losses
        self._flush = Flush(None, losses.order.tick(), but)
        self._opened = opened
        self.is_open = self._losses.settle(self._flush, self._open)

    def _open(self) -> None:
        self.is_open = True
        self._opened()

    def forget(self) -> None:
        """Nobody waits at it any more."""
        self._losses.withdraw(self._flush)


class _Proof:
    """A FLUSH over a trail, under way, for what others have to know."""

    __slots__ = ("sent",)

    def __init__(self, sent: int) -> None:
        self.sent = sent


class Trail:
    """What has been written over one link, or a bundle of links that act as one, and is not covered.

    Whoever has the link says what happens to it, to `losses`. `flush` asks for a FLUSH over it. `changed` is
    called when nobody proves any more what a dead link has left, `lost` when something of it is lost: why,
    and where.
    """

    __slots__ = (
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
        "up",
        "waits",
        "why",
        "wrote",
    )

    UP, DEAD, DOUBT, LEFT, OVER = "up", "dead", "in doubt", "left", "over"

    def __init__(
        self, losses: Losses, owner: Debt | None, keep: Keep, *, records: bool, alone: bool
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
            begun=partial(losses.has_begun, self),
            gone=losses.witnesses.over,
        )
        self.wrote = False
        """Something has been written over it, be it durable."""
        self.born = losses.witnesses.begin()
        """When it was made, as the disk's witnesses count."""
        self.under_way: Callable[[], list[Range]] = _nothing_is_under_way
        """Gives what is written over it at this moment, or may be."""
        self.believed = False
        """Its server is taken to have kept whatever it has answered, unless it says otherwise itself."""
        self.failed_at = LONG_AGO
        """When a FLUSH over it has lost something last, where that speaks for no other link."""
        self.up = -1
        """When its link came up; of several, the last."""
        self.shaken_at = LONG_AGO
        """When a link of its bundle has died last, while others were there."""
        self.state = Trail.OVER
        self.why = LEFT_UNPROVED
        """What is said if that is lost which its link has left."""
        self.proof: _Proof | None = None
        """The FLUSH that is under way over it to prove something; of a trail in doubt, that it is waited
        for."""
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
        self.changed: Callable[[], None] = _nothing
        self.lost: Callable[[str, list[Range]], None] = _nobody_hears

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
    def is_in_question(self) -> bool:
        """A link has died, and what became of what it holds is not known yet."""
        is_dead = self.state in (Trail.DEAD, Trail.DOUBT) and _is_waited_for(self)
        return is_dead or (self.state is Trail.UP and (self.is_shaken or self.cut()))

    def __repr__(self) -> str:
        return f"Trail({self.state}, up at {self.up}, {self.unflushed.ranges})"


@dataclass(frozen=True, slots=True)
class Untold:
    """What may be lost of a disk, and was not told to all who have to know."""

    why: tuple[str, ...]
    """Each reason once."""
    ranges: Sequence[Range]
    """Where, in the upstream's offsets; empty if that is not known."""
    sessions: int
    """How many sessions that are open are owed an EIO."""
    nobody: bool
    """No session has been told of all of it: whoever opens the disk next is told too."""


class Losses:
    """What is lost of one disk, and who has to be told; see the module's docstring.

    `soon` calls back as soon as no session is in the middle of a step, `later` after `PROOF_SECONDS`; `say`
    tells the operator.
    """

    def __init__(
        self,
        soon: Callable[[Callable[[], None]], None] = lambda then: then(),
        later: Callable[[Callable[[], None]], None] = lambda _then: None,
        say: Callable[[str, Mapping[str, object]], None] = lambda _what, _details: None,
    ) -> None:
        self.order = Order()
        self.witnesses = Witnesses()
        """What can tell the disk from another one."""
        self.tainted = False
        """Somebody has to be told that something may be lost. While nobody has, WRITEs need not be noted by
        `written`."""
        self._failed_at = LONG_AGO
        """When one has lost something last that speaks for other links."""
        self._soon = soon
        self._later = later
        self._say = say
        self.last_news = 0
        """What `asked` gives, for the data plane."""
        self._last_told = -1
        self._open: dict[Debt, None] = {}
        self._up: dict[Trail, None] = {}
        """Those whose link is up, in the order in which they came up."""
        self._gone: dict[Trail, None] = {}
        """Those whose link is dead, or left, and that hold something."""
        self._holding: dict[Trail, None] = {}
        """Those that hold something; some of them may not any more."""
        self._waiting: dict[Flush, None] = {}
        self._untold: tuple[str, Sequence[Range]] | None = None
        self._untold_at = -1
        """When something was last added to that."""
        self._looking = self._again = False

    # --- Sessions

    def open(self, before: Debt | None = None) -> Debt:
        """A session opens the disk; one that comes from another disk (a switch) brings along what it owes."""
        self.order.tick()
        debt = Debt(self)
        if before is not None:
            before.losses.end(before)
            debt.why, debt.lost, debt.losses_seen = before.why, before.lost, before.losses_seen
            if before.knows_untold:
                debt.knew_untold_of = before.losses, before.losses._untold_at
            self.tainted = self.tainted or bool(debt.why)
        self._open[debt] = None
        if self._untold is not None:
            why, ranges = self._untold
            debt.owe(why, _and(debt.lost, ranges))
            debt.knows_untold = True
        return debt

    def end(self, debt: Debt) -> None:
        """A session has ended."""
        self.order.tick()
        self._open.pop(debt, None)
        debt.deaf = True
        for trail in [each for each in self._gone if self.scope(each) is debt]:
            self._drop(trail)
        self.witnesses.forget(debt)
        if not self._open:
            self.witnesses.clear()  # whoever comes next has seen nothing of the disk
        self.tainted = self.tainted and not self._quiet
        self._look()

    @property
    def sessions(self) -> int:
        """How many are open."""
        return len(self._open)

    @property
    def owes(self) -> bool:
        """Something has to be remembered for who comes later: nobody was told of it, or it is not known yet."""
        uncovered = any(self.scope(each) is None for each in self._holders())
        return uncovered or self._untold is not None

    def owe_the_next(self, why: str, ranges: Iterable[Range] = ()) -> None:
        """Whoever opens the disk next has to be told that something was lost."""
        self._add_untold(why, ranges)
        for debt in self._open:
            debt.knows_untold = False
        self.tainted = True

    def hand_on(self, other: Losses) -> None:
        """What this disk has lost and nobody was told of, is as well not on another, which has its content by
        the word of whoever switches to it.
        """
        if self._untold is not None and other is not self:
            know = [
                each
                for each in other._open
                if each.knew_untold_of == (self, self._untold_at)
                and (other._untold is None or each.knows_untold)
            ]
            other.owe_the_next(*self._untold)
            for debt in know:
                debt.knows_untold = True

    def _add_untold(self, why: str, ranges: Iterable[Range]) -> None:
        self._untold, self._untold_at = (why, _and(self._untold_ranges, ranges)), self.order.tick()

    def untold(self) -> Untold | None:
        """Give what may be lost, as far as not everybody was told of it; None: there is nothing."""
        owed = [debt for debt in self._open if debt.why]
        if not owed and self._untold is None:
            return None
        why = [debt.why for debt in owed]
        ranges = [each for lost in {id(d.lost): d.lost for d in owed}.values() for each in lost]
        if self._untold is not None:
            why.append(self._untold[0])
            ranges += self._untold[1]
        each_once = tuple(dict.fromkeys(why))
        return Untold(each_once, fewer(ranges, MOST_LOST), len(owed), self._untold is not None)

    def forget(self) -> bool:
        """Nobody who comes later has to be told of what nobody was told of; say whether there was any."""
        if self._untold is None:
            return False
        self.order.tick()
        self._untold = None
        for debt in self._open:
            debt.knows_untold = False
        self.tainted = not self._quiet
        return True

    @property
    def _untold_ranges(self) -> Sequence[Range]:
        return NOWHERE if self._untold is None else self._untold[1]

    @property
    def _quiet(self) -> bool:
        """Nothing is lost that anybody has to be told of."""
        return self._untold is None and not any(debt.why for debt in self._open)

    # --- Links

    def trail(
        self,
        owner: Debt | None,
        keep: Keep = Keep.RANGES,
        *,
        records: bool = True,
        alone: bool = False,
    ) -> Trail:
        """Give the trail of a link that is not up yet. `owner`: the session that alone relies on what is
        written over it; None: all do. Without SEND_FLUSH nothing ever becomes durable, and a trail `records`
        nothing. `alone`: all rely on it though the server has no CAN_MULTI_CONN.
        """
        return Trail(self, owner, keep, records=records, alone=alone)

    def others_write(self, sessions: Collection[Debt]) -> bool:
        """Say whether any other session may write, now."""
        return any(
            debt not in sessions and debt.trail is not None and debt.trail.state is Trail.UP
            for debt in self._open
        )

    def came_up(self, trail: Trail) -> None:
        """The link of a trail is up; or, of a bundle's, another link. What is uncovered was written over it
        again.
        """
        if trail.state is not Trail.UP:
            trail.proof = None  # nobody waits any more for what becomes of it
        trail.up = self.last_news = self.order.tick()
        trail.state, trail.tried, trail.hoped = Trail.UP, False, False
        trail.shaken_at = LONG_AGO
        trail.unflushed.closed = False
        trail.unflushed.renew()
        self._gone.pop(trail, None)
        self._up.pop(trail, None)
        self._up[trail] = None
        self._look()

    def died(self, trail: Trail, why: str, *, doubt: bool = False) -> None:
        """The link of a trail is dead. `doubt`: what is uncovered is not lost yet if nobody can prove it, for
        who has the trail will find out, or will see to it. A link that was left may die as it likes.
        """
        self.witnesses.over(trail.under_way())
        if trail.state is not Trail.LEFT:
            self._is_gone(trail, Trail.DOUBT if doubt else Trail.DEAD, why)
            trail.tried = False
            if self._speaks(trail):
                self._suspect_those_left()
            self._look()

    def shaken(self, trail: Trail) -> None:
        """A link of a bundle has died, and others of it are there."""
        trail.shaken_at = self.order.tick()
        if self._speaks(trail):
            self._suspect_those_left()
        self._look()

    def is_in_question(self, but: Trail | None) -> bool:
        """Say whether a link has died, and it is not known yet what became of what was written over it, and on
        which all rely. What was written over one trail (`but`) is no concern of who asks.
        """
        return any(
            trail is not but and self.scope(trail) is None and trail.is_in_question
            for trail in self._holders()
        )

    def _suspect_those_left(self) -> None:
        """The server may have died: what led there and was left has died with it, then."""
        for left in self._gone:
            if left.state is Trail.LEFT and self._speaks(left):
                left.state = Trail.DEAD

    def left(self, trail: Trail, *, trusted: bool = False) -> None:
        """The link of a trail was closed by the gateway. `trusted`: nobody is to be told of what was not
        flushed.
        """
        self.witnesses.over(trail.under_way())
        if trusted:
            trail.unflushed.take()
        if trail.state is Trail.UP:
            self._is_gone(trail, Trail.DEAD if trail.is_shaken else Trail.LEFT, LEFT_UNPROVED)
            trail.unflushed.closed = True
            self._merge_those_left()
        elif trail.state is Trail.DOUBT:
            self._is_gone(trail, Trail.DEAD, trail.why)
        self._look()

    def _is_gone(self, trail: Trail, state: str, why: str) -> None:
        self.order.tick()
        trail.proof = None
        if trail.state is Trail.OVER:  # then nothing should have been written over it
            self._lose({trail: trail.unflushed.take()}, why)
            return
        trail.state, trail.why, trail.hoped = state, why, False
        if state is not Trail.DOUBT:
            trail.unflushed.forget_content()
        self._up.pop(trail, None)
        self._gone[trail] = None
        owner = self.scope(trail)
        if owner is not None and owner not in self._open:
            self._drop(trail)

    def _merge_those_left(self) -> None:
        for alone in (False, True):
            left = [
                each
                for each in self._gone
                if each.state is Trail.LEFT and each.alone is alone and self.scope(each) is None
            ]
            if len(left) > MOST_LEFT:
                left[1].unflushed.absorb(left[0].unflushed)

    def give_up(self, trail: Trail, why: str) -> None:
        """Nobody will find out any more what a trail in doubt holds. Another link may prove it yet."""
        if trail.state is Trail.DOUBT:
            self._is_gone(trail, Trail.DEAD, why)
            self._look()

    def lose(self, trail: Trail, why: str, *, said: bool = False) -> None:
        """What a trail holds may be gone. `said`: even if the server is believed to keep it."""
        self._lose({trail: trail.unflushed.take()}, why, said=said)
        self._look()

    def is_durable(self, trail: Trail) -> None:
        """All that a trail holds is durable, as who has it knows."""
        trail.unflushed.take()
        self._look()

    def has_begun(self, trail: Trail) -> None:
        """A trail holds something again."""
        self._holding[trail] = None

    def _drop(self, trail: Trail) -> None:
        """Nobody relies on what is uncovered here any more."""
        if trail.unflushed:
            bytes_ = sum(end - start for start, end in trail.unflushed.ranges)
            self._say("writes of a session that has ended were not flushed", {"bytes": bytes_})
        trail.unflushed.take()
        trail.state = Trail.OVER
        self._gone.pop(trail, None)

    # --- What goes over links

    def asked(self) -> int:
        """Something is asked that writes: give what `Unflushed` and `is_done_before` are to be told when it
        has been acknowledged. Only a link that comes up changes it, and a FLUSH that has lost something.
        """
        return self.last_news

    def sent(self) -> int:
        """A FLUSH is sent: give what `flushed` is to be told when it has answered 0."""
        return self.order.tick()

    def answered(self, trail: Trail, sent: int, error: int, text: str) -> None:
        """A FLUSH over a link has its answer that was `sent` then."""
        if error:
            self.flush_failed(trail, error, text)
        else:
            self.flushed(trail, sent)

    def flushed(self, trail: Trail, sent: int) -> None:
        """A FLUSH over a link has answered 0 that was `sent` then."""
        self.order.tick()
        covered = trail.unflushed.cover(sent)
        if self._speaks(trail):
            for other in self._holders():
                if other is not trail and self._speaks(other):
                    covered += other.unflushed.cover(sent, since=trail.up)
        if covered:
            scope = self.scope(trail)
            has_ended = scope is not None and scope not in self._open  # nobody will look for it
            self.witnesses.flushed(
                [Covered(era.as_noted, None if has_ended else era.sample, scope) for era in covered]
            )
        self._look()

    def flush_failed(self, trail: Trail, error: int, text: str = "") -> None:
        """A FLUSH over a link has failed. If it says that something is lost, that may be whatever was
        answered before, over any link for which it speaks.
        """
        self.order.tick()
        if is_loss(error):
            self.last_news = self.order.tick()
            if self._speaks(trail):
                self._failed_at = self.last_news
                spoken_for = [each for each in self._holders() if self._speaks(each)]
            else:
                trail.failed_at = self.last_news
                spoken_for = [trail]
            lost = {each: each.unflushed.take() for each in spoken_for}
            if not trail.unflushed.records:  # nobody knows what was written, or whether it was
                lost[trail] = [self._era_of_now(asked=self.order.now)]
            why = f"a FLUSH of the server has failed: {text or text_of_error(error)}"
            self._lose(lost, why, said=True)
            if not any(lost.values()):
                self._count_loss(trail)
        self._look()

    def durable(self, trail: Trail, written: list[Range], sample: Sample | None) -> None:
        """Writes with FUA have been acknowledged; `sample` is of one of them."""
        trail.wrote = True
        self.witnesses.durable(written, sample, self.scope(trail))

    def to_look_for(self, trail: Trail) -> list[Witness]:
        """Give what a session that writes over a link may expect to find on the disk, the newest first: nothing
        is known, at this moment, that was written over it, or is being.
        """
        witnesses = self.witnesses
        for each in self._holders():
            witnesses.drop_touched(each.unflushed.ranges)
        writing = {each.trail: None for each in self._open if each.trail is not None}
        for each in (*writing, trail):
            witnesses.drop_touched(each.under_way())
        return witnesses.of(self.scope(trail), trail.born)

    def is_done_before(self, trail: Trail, asked: int) -> bool:
        """Say whether what was `asked` then, and is acknowledged now, was under way when a FLUSH failed."""
        return asked < (self._failed_at if self._speaks(trail) else trail.failed_at)

    def done_before(self, trail: Trail, ranges: Iterable[Range]) -> None:
        """Something of that kind is acknowledged. The server may have done it before the FLUSH, and lost it
        with the rest; and whoever was told of that would take it for safe.
        """
        era = self._era_of_now(asked=LONG_AGO)
        era.add(ranges)
        self.witnesses.over(era.ranges)
        self._lose({trail: [era]}, DONE_BEFORE, said=True, known=True)
        self._look()

    def _era_of_now(self, asked: int) -> Era:
        now = self.order.now
        return Era(now, now, asked, now)

    # --- FLUSHes of sessions

    def settle(self, flush: Flush, done: Callable[[], None]) -> bool:
        """A FLUSH has been answered 0 over its session's own link. Say whether all is settled that it has to
        cover; else `done` is called when it is. `answer` says what its client is told.
        """
        self._waiting[flush] = None
        self._look()
        if flush not in self._waiting:
            return True
        flush.done = done
        return False

    def withdraw(self, flush: Flush) -> None:
        """Nobody waits for it any more."""
        self._waiting.pop(flush, None)

    def answer(self, flush: Flush, error: int, text: str) -> tuple[int, str]:
        """Give the error (0: none), and its text, that a client's FLUSH is answered with now, and note that
        it is.
        """
        debt = flush.debt
        assert debt is not None
        if debt.why:
            error, text = Errno.EIO, debt.why
        elif not error and self._is_beside(flush, debt):
            error, text = Errno.EIO, REPORTED_BESIDE
        elif not error:
            error, text = flush.error, flush.text
        if is_loss(error):
            self._tell(debt)
        return told_error(error), text

    def _is_beside(self, flush: Flush, debt: Debt) -> bool:
        """Say whether a FLUSH was read before its session was told of a loss by another one: it may have to
        cover what is lost.
        """
        return flush.read < debt.told_first_at

    def _tell(self, debt: Debt) -> None:
        """EIO is sent to a session for a FLUSH."""
        now = self.order.tick()
        if debt.deaf:
            return
        debt.told_at = self._last_told = now
        if debt.why:
            debt.told_first_at = now
        if debt.knows_untold:
            self._untold = None
        if debt.knew_untold_of is not None:
            debt.knew_untold_of[0]._is_told(debt.knew_untold_of[1])
        debt.why, debt.lost = "", NOWHERE
        debt.knows_untold, debt.knew_untold_of = False, None
        self.tainted = not self._quiet

    def _is_told(self, untold_at: int) -> None:
        """Somebody has been told who has gone to another disk, of what nobody had been told of by then."""
        if self._untold_at == untold_at:
            self._untold = None
            self.tainted = not self._quiet

    def answered_late(self, debt: Debt, since: int) -> None:
        """A command is answered now of which something was written after an event, and noted then. Whoever
        was told in between that something is lost takes it for safe: it counts as answered now.
        """
        if self._last_told >= since and debt.trail is not None:
            debt.trail.unflushed.renew_since(since)

    def written(self, trail: Trail, start: int, end: int) -> None:
        """Bytes have been written (again): what is there now is what a client wrote. If that is lost in turn,
        who relies on it is told; for nobody else has anything changed.
        """
        owner = self.scope(trail)
        if self._untold is not None and owner is None:
            why, ranges = self._untold
            self._untold = why, without(ranges, start, end)
        left: dict[int, Sequence[Range]] = {}
        for debt in self._open if owner is None else (owner,):
            if debt.lost:
                before = debt.lost
                if id(before) not in left:
                    left[id(before)] = without(before, start, end)
                debt.lost = left[id(before)]

    # --- What is lost

    def scope(self, trail: Trail) -> Debt | None:
        """Give the session that alone relies on what is written over a link; None: all do."""
        return trail.owner

    def _speaks(self, trail: Trail) -> bool:
        """Say whether a FLUSH over a link says something of other links, too."""
        return not trail.alone and self.scope(trail) is None

    def relies(self, debt: Debt, trail: Trail) -> bool:
        """Say whether a session relies on what is written over a link."""
        return self.scope(trail) in (None, debt)

    def _lose(
        self,
        taken: Mapping[Trail, list[Era]],
        why: str,
        *,
        said: bool = False,
        known: bool = False,
    ) -> None:
        """What was answered in these eras may be gone: of one trail, or of several on which all rely. `said`:
        by the server itself. `known`: who has the trail knows.
        """
        lost = {trail: e for trail, e in taken.items() if e and (said or not trail.believed)}
        if not lost:
            return
        self.order.tick()
        self._again = True
        one = next(iter(lost))
        all_eras = [era for eras in lost.values() for era in eras]
        ranges = fewer(_ranges(all_eras), MOST_LOST)
        sessions = 0
        told_at = -1
        lost_of: dict[tuple[int, bool, int], Sequence[Range]] = {}
        relying = [debt for debt in self._open if self.relies(debt, one)]
        for debt in relying:
            debt.losses_seen += 1
            told_at = max(told_at, debt.told_at)
            news = [era for era in all_eras if self._is_news(debt, era)]
            if not news:
                continue
            sessions += 1
            all_is_news = len(news) == len(all_eras)
            same = id(debt.lost), all_is_news, 0 if all_is_news else debt.told_at
            if same not in lost_of:
                lost_of[same] = _and(debt.lost, ranges if all_is_news else _ranges(news))
            debt.owe(why, lost_of[same])
        unknown = [era for era in all_eras if era.last >= told_at]
        if self.scope(one) is None and unknown:
            for debt in relying if self._untold is None else ():
                debt.knows_untold = True
            self._add_untold(why, _ranges(unknown))
        self.tainted = self.tainted or bool(sessions) or self._untold is not None
        self._say(
            "writes may be lost: each session's next FLUSH fails, and until then READs of them",
            {
                "why": why,
                "sessions": sessions,
                "bytes": sum(end - start for start, end in ranges),
            },
        )
        for trail, eras in lost.items():
            if not known:
                trail.lost(why, merged(_ranges(eras)))

    def _count_loss(self, trail: Trail) -> None:
        """Nothing is lost that was answered; but what is under way may be done in part, and be lost."""
        for debt in self._open:
            debt.losses_seen += self.relies(debt, trail)

    def _is_news(self, debt: Debt, era: Era) -> bool:
        """Say whether a session has to be told of what was answered then: all that was answered before it was
        last told is in doubt to it already.
        """
        return era.last >= debt.told_at

    # --- Proofs

    def prover(self, trail: Trail, era: Era) -> Trail | None:
        """Give the link over which a FLUSH can cover what was written then over one that is gone: the oldest
        that was up before, and is.
        """
        if trail.tried or not self._speaks(trail):
            return None
        oldest = next((each for each in self._up if self._speaks(each)), None)
        return oldest if oldest is not None and oldest.up <= era.asked else None

    def is_proving(self, trail: Trail) -> bool:
        """Say whether a FLUSH over another link may still cover what a dead link has left."""
        return trail.state in (Trail.DEAD, Trail.DOUBT) and any(
            self.prover(trail, era) is not None for era in trail.unflushed.eras
        )

    def _look(self) -> None:
        """Something has changed: see what is to be proved, what is lost, and whose FLUSH is settled."""
        if self._looking:
            self._again = True
            return
        if not self._gone and not self._waiting:
            return
        self._looking = self._again = True
        try:
            while self._again:  # what is found changes what there is to find
                self._again = False
                self._look_at_the_dead()
                self._look_at_who_waits()
                self._forget_what_is_over()
        finally:
            self._looking = False

    def _look_at_the_dead(self) -> None:
        """Have proved what links have left that are dead; what cannot be is lost, unless it is in doubt."""
        for trail in list(self._gone):
            if trail.state is Trail.DEAD:
                self._prove_or_lose(trail, trail.unflushed.eras)
            elif trail.state is Trail.DOUBT:
                hoped, trail.hoped = trail.hoped, self.is_proving(trail)
                for era in trail.unflushed.eras:
                    self._prove(self.prover(trail, era))
                if hoped and not trail.hoped and trail.unflushed:
                    trail.changed()

    def _prove_or_lose(self, trail: Trail, eras: list[Era]) -> None:
        """Have proved what was written over a link that is gone; what cannot be is lost."""
        provers = [self.prover(trail, era) for era in eras]
        lost = [era for era, prover in zip(eras, provers, strict=True) if prover is None]
        trail.unflushed.drop(lost)
        self._lose({trail: lost}, trail.why)
        for prover in provers:
            self._prove(prover)

    def _look_at_who_waits(self) -> None:
        """Have proved, or lose, what FLUSHes wait for; answer those that wait for nothing more."""
        for flush in [each for each in self._waiting if not self._is_awaited(each)]:
            del self._waiting[flush]
        last_read = self._last_read()
        for trail in self._holders():
            read = last_read(trail)
            if trail.unflushed.first >= read or not _is_waited_for(trail):
                continue
            if trail.state is Trail.UP:
                self._prove(trail)
            elif trail.state is Trail.LEFT:
                self._prove_or_lose(trail, trail.unflushed.begun_before(read))
            elif trail.state is Trail.DOUBT and trail.proof is None and not trail.hoped:
                # Whoever has the trail finds out; but nobody waits for that for ever.
                trail.proof = proof = _Proof(self.order.tick())
                self._later(partial(self._doubted_too_long, trail, proof))
        first_held = self._first_held()
        for flush in list(self._waiting):
            if flush.error or flush.read <= first_held(flush):
                del self._waiting[flush]
                self.order.tick()
                if flush.done is not _nothing:  # else who settles it goes on by himself
                    self._soon(flush.done)

    def _is_awaited(self, flush: Flush) -> bool:
        """Say whether somebody is answered when a FLUSH is settled."""
        return flush.debt is None or flush.debt in self._open

    def _last_read(self) -> Callable[[Trail], int]:
        """Give what says when the last FLUSH was read that waits for what was written over a link."""
        read: dict[Debt | None, int] = {}
        excepting = []
        for flush in self._waiting:
            if flush.error or not self._is_awaited(flush):
                continue
            if flush.but is not None:
                excepting.append(flush)
                continue
            for scope in _scopes(flush):
                read[scope] = max(read.get(scope, 0), flush.read)

        def last_read(trail: Trail) -> int:
            others = [flush.read for flush in excepting if self._concerns(flush, trail)]
            return max(read.get(self.scope(trail), 0), *others, 0)

        return last_read

    def _first_held(self) -> Callable[[Flush], float]:
        """Give what says when the first write was answered for which a FLUSH has to wait."""
        first: dict[Debt | None, float] = {}
        for trail in filter(_is_waited_for, self._holders()):
            scope = self.scope(trail)
            held = trail.unflushed.first
            first[scope] = min(held, first.get(scope, held))

        def first_held(flush: Flush) -> float:
            if flush.but is None:
                return min(first.get(scope, math.inf) for scope in _scopes(flush))
            concerned = [each for each in self._holders() if self._concerns(flush, each)]
            return min((each.unflushed.first for each in concerned), default=math.inf)

        return first_held

    def _concerns(self, flush: Flush, trail: Trail) -> bool:
        """Say whether a FLUSH has to cover what was written over a link."""
        concerned = trail is not flush.but and self.scope(trail) in _scopes(flush)
        return concerned and _is_waited_for(trail)

    def _holders(self) -> list[Trail]:
        for trail in [each for each in self._holding if not each.unflushed]:
            del self._holding[trail]
        return list(self._holding)

    def _prove(self, trail: Trail | None) -> None:
        """Have a FLUSH sent over a link. One that is under way is waited for first: it may do."""
        if trail is not None and trail.state is Trail.UP and trail.proof is None:
            trail.proof = proof = _Proof(self.order.tick())
            self._later(partial(self._late, trail, proof))
            self._soon(partial(self._ask, trail, proof))

    def _ask(self, trail: Trail, proof: _Proof) -> None:
        if trail.proof is proof:
            proof.sent = self.order.tick()
            trail.unflushed.keep_apart()
            trail.flush(partial(self._proved, trail, proof))

    def _proved(self, trail: Trail, proof: _Proof, error: int, text: str) -> None:
        """A FLUSH has been answered; what it covers, or loses, is known already."""
        if trail.proof is not proof:
            return
        self.order.tick()
        trail.proof = None
        if error:
            why = f"a FLUSH over another connection has failed: {text or text_of_error(error)}"
            self._not_proved(trail, proof.sent, why)
            for flush in self._who_needs(trail):
                flush.tries += 1
                if flush.debt is not None:
                    flush.error, flush.text = error, text
                elif flush.tries == MOST_TRIES:
                    self._lose_what_is_needed(trail, why)
        self._look()

    def _late(self, trail: Trail, proof: _Proof) -> None:
        """A FLUSH has not been answered in `PROOF_SECONDS`: nobody waits any longer for this link."""
        if trail.proof is not proof:
            return
        self.order.tick()
        trail.proof = None
        self._not_proved(trail, math.inf, BEHIND_A_BLACK_HOLE)
        self._lose_what_is_needed(trail, BEHIND_A_BLACK_HOLE)
        self._look()

    def _lose_what_is_needed(self, trail: Trail, why: str) -> None:
        eras = self._needed(trail)
        trail.unflushed.drop(eras)
        self._lose({trail: eras}, why)

    def _needed(self, trail: Trail) -> list[Era]:
        """Give what some FLUSH waits for of what was written over a link."""
        return trail.unflushed.begun_before(self._last_read()(trail))

    def _who_needs(self, trail: Trail) -> list[Flush]:
        """Give the FLUSHes that have to cover something that was written over a link."""
        return [
            flush
            for flush in self._waiting
            if self._is_awaited(flush)
            and self._concerns(flush, trail)
            and trail.unflushed.first < flush.read
        ]

    def _not_proved(self, trail: Trail, sent: float, why: str) -> None:
        """Others have waited in vain for a FLUSH that was sent then: what it should have covered for them is
        lost, or in doubt.
        """
        for other in list(self._gone):
            eras = [
                era
                for era in other.unflushed.eras
                if era.reached < sent and self.prover(other, era) is trail
            ]
            if not eras:
                continue
            if other.state is Trail.DOUBT:
                other.tried = True
                continue
            if other.state is Trail.LEFT:
                needed = self._needed(other)
                eras = [era for era in eras if era in needed]
            other.unflushed.drop(eras)
            self._lose({other: eras}, why)

    def _doubted_too_long(self, trail: Trail, proof: _Proof) -> None:
        if trail.proof is proof and trail.waits():
            self._later(partial(self._doubted_too_long, trail, proof))
        elif trail.proof is proof:
            trail.proof = None
            self.lose(trail, BEHIND_A_BLACK_HOLE)

    def _forget_what_is_over(self) -> None:
        for trail in [each for each in self._gone if not each.unflushed]:
            if self._gone.pop(trail, trail) is None:  # `changed` may have seen to it
                trail.state, trail.proof = Trail.OVER, None
                trail.changed()


def _is_waited_for(trail: Trail) -> bool:
    """Say whether a FLUSH waits for what is uncovered here. What is in doubt, and believed, is durable."""
    return not (trail.believed and trail.state is Trail.DOUBT)


def _scopes(flush: Flush) -> tuple[Debt | None, ...]:
    """Give the scopes on which a FLUSH relies: all, and that of its own session."""
    return (None,) if flush.debt is None else (None, flush.debt)


def _and(before: Sequence[Range], more: Iterable[Range]) -> Sequence[Range]:
    return fewer([*before, *more], MOST_LOST)


def _ranges(eras: Iterable[Era]) -> Iterable[Range]:
    return (each for era in eras for each in era.ranges)


def _nothing() -> None:
    pass


def _never() -> bool:
    return False


def _nothing_is_under_way() -> list[Range]:
    return []


def _nobody_hears(_why: str, _ranges: list[Range]) -> None:
    pass


def _nobody_flushes(_done: Flushed) -> None:
    raise AssertionError("a link that is up can be flushed")

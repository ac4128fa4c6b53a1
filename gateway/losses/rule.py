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

The rule, clause by clause; each has its own method of `Losses`, and its name here. (`scope`, `_lose`,
`_add_untold`, `open`, `answer` and `_tell` are in `telling`, `_look` in `proofs`, whose classes `Losses` is
made of.)

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
  proved: the link over which it went is FLUSHed, too. After `PROOF_SECONDS` without an answer it counts as
  lost: that link may be a black hole. (A FLUSH waits for what is in doubt as long as whoever has that `waits`
  for what comes by itself.) Where the FLUSH of that link was not tried, the session's fails with
  the same error, and nothing is lost.
- *Coming late* (`is_in_question`). A link that was made after another died may lead to a server that was
  started meanwhile, without what that one has left. Before anything is read over it, that is covered, or known
  to be lost.
- *A link dies* (`died`). What it leaves uncovered is FLUSHed over a link that was up before, if that covers
  it. If there is no such link, or its FLUSH does not answer 0, it is lost. Where something can be done about
  that (`doubt`: it can be read back, or written again) the trail keeps it meanwhile.
  Where others write to the disk whose writes are not noted here (`unseen`: clients of other gateways, which
  have the same home), something of theirs may be lost that nobody here knows of. If a FLUSH over the link spoke
  for it, every session relied on it, and is told; in doubt as soon as that is.
- *One of several dies* (`shaken`). The others of its bundle may still lead to the same server, or hang. What
  was acknowledged before is in question until a FLUSH over them has covered it.
- *A link is left* (`left`). The gateway has closed it, after a FLUSH, so that its trail is empty; but not
  every link can be FLUSHed (half a WRITE stands in it). Where the scope is all, what is uncovered stays with
  the disk: the next FLUSH that relies on it has to see it covered, or fails; and when another link of the disk
  dies, so has this one: the server may have. Where only its session relied on it, nobody does any more.
- *Telling* (`_lose`, `_add_untold`, `open`, `answer`, `_tell`). Every session that relies on what is lost, and
  was open, is told by EIO at its next FLUSH, and at each FLUSH that was read before that EIO was sent. Until
  any session has been told, whoever opens the disk has to be told too, for there may be nobody left who can be.
  Once told, a session knows that whatever was answered before is in doubt, so that it is told again if and only
  if something is lost that was answered after. (Any EIO tells, also one that was for something else: where a
  loss comes out later that it has told of so, FLUSHes that were read before it fail all the same.) Until then
  its READs of what is lost get EIO, never old data. Who is lost before he has asked for a FLUSH again may not
  have read his EIO (`unheard`): if nobody else was told, nobody has been.
- *Loss or not* (`is_loss`). A FLUSH that fails says that something was lost, and the server does not say so
  twice; unless its error says that the FLUSH was not tried. Where others write unseen, the other side is a
  gateway, which goes by this rule itself: it tells each session, so what it says over one link is for that
  link's session alone.
- *Done before* (`is_done_before`). What is under way when a FLUSH fails may be done already, and lost with the
  rest. When it is acknowledged, over whatever link, it counts as lost.
- *Forgetting* (`forget`). The operator may know better what is on the disk than whoever opens it next would
  find out. Then what nobody was told of is dropped. Sessions that have still to be told get their EIO all the
  same.

A FLUSH of the gateway's own (a pause, a proof, the one that keeps FUA where a server has none) is no
client's: it tells nobody, and clears nothing.

Everything is one object for each disk, `Losses`; a `Debt` for each session; a `Trail` for each link or bundle
(`records`). This module has what happens to links, and what goes over them. Who is told is in `telling`, and
what FLUSHes wait for is in `proofs`. It is pure: it asks for FLUSHes by `Trail.flush`, and time passes by calls
of `later`. All that it calls may call it back at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from gateway.losses.eras import LONG_AGO, Era, Keep
from gateway.losses.proofs import BEHIND_A_BLACK_HOLE, MOST_TRIES, PROOF_SECONDS, Proofs
from gateway.losses.records import LEFT_UNPROVED, Debt, Fate, Flush, Flushed, Ledger, Trail, Untold
from gateway.losses.telling import MOST_LOST
from gateway.losses.witnesses import Flushed as Covered
from gateway.losses.witnesses import Sample, Witness
from gateway.protocol.commands import is_loss, text_of_error
from gateway.wire.ranges import Range, fewer

__all__ = [
    "BEHIND_A_BLACK_HOLE",
    "DONE_BEFORE",
    "LEFT_UNPROVED",
    "MOST_LEFT",
    "MOST_TRIES",
    "PROOF_SECONDS",
    "Barrier",
    "Debt",
    "Flush",
    "Flushed",
    "Losses",
    "Trail",
    "Untold",
]
"""What other rooms take from here, wherever in this one it is."""

MOST_LEFT = 64
"""Links of one disk that were closed unproved, and are told apart. More are taken for one."""

UNSEEN = "the connection was lost, and what was written by way of other gateways may be gone"

DONE_BEFORE = "a FLUSH has failed while it was written, and the server may have done it before"


class Losses(Proofs):
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
        super().__init__(soon, later, say)
        self._failed_at = LONG_AGO
        """When one has lost something last that speaks for other links."""
        self.last_news = 0

    # --- Sessions

    def end(self, debt: Debt) -> None:
        """A session has ended."""
        self.order.tick()
        self._close(debt)
        for trail in [each for each in self._gone if self.scope(each) is debt]:
            self._drop(trail)
        self.witnesses.forget(debt)
        if not self._open:
            self.witnesses.clear()  # whoever comes next has seen nothing of the disk
        self.tainted = self.tainted and self._is_tainted
        self._look()

    @property
    def must_remember(self) -> bool:
        """Something has to be remembered for who comes later: nobody was told of it, or it is not known yet."""
        uncovered = any(self.scope(each) is None for each in self._holders())
        return uncovered or self._untold is not None

    def left_behind(self) -> tuple[str, Sequence[Range]] | None:
        """Give what whoever opens the disk next has to be told if nobody here finds out any more: what no
        session was told of, and what is not known to be durable; why, and where. None: there is nothing.
        """
        uncovered = [t for t in self._holders() if self.scope(t) is None and not t.believed]
        if self._untold is None and not uncovered:
            return None
        why, ranges = self._untold or (uncovered[0].why, ())
        return why, fewer([*ranges, *(r for t in uncovered for r in t.unflushed.ranges)], MOST_LOST)

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
            debt not in sessions and debt.trail is not None and debt.trail.state is Fate.UP
            for debt in self._open
        )

    def came_up(self, trail: Trail) -> None:
        """The link of a trail is up; or, of a bundle's, another link. What is uncovered was written over it
        again.
        """
        if trail.state is not Fate.UP:
            trail.proof = None  # nobody waits any more for what becomes of it
        trail.up = self.last_news = self.order.tick()
        trail.state, trail.tried, trail.hoped = Fate.UP, False, False
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
        if trail.state is not Fate.LEFT:
            unseen = trail.unseen and trail.unflushed.records and self._speaks(trail)
            if unseen and doubt:
                self.order.tick()
                # Nobody knows where, nor when it died: a younger link may lead to what is in its place.
                trail.unflushed.note((), trail.up)
            self._is_gone(trail, Fate.DOUBT if doubt else Fate.DEAD, why)
            trail.tried = False
            if self._speaks(trail):
                self._suspect_those_left()
                if unseen and not doubt:
                    era = self._era_of_now(asked=self.order.now)
                    self._lose({trail: [era]}, UNSEEN, known=True)
            self._look()

    def shaken(self, trail: Trail) -> None:
        """A link of a bundle has died, and others of it are there."""
        trail.shaken_at = self.order.tick()
        if self._speaks(trail):
            self._suspect_those_left()
        self._look()

    def is_in_question(self, but: Trail | None) -> bool:
        """Say whether a link has died, and we do not know yet what became of something that was written over it
        and on which all rely. What was written over one trail (`but`) does not matter to whoever asks.
        """
        return any(
            trail is not but and self.scope(trail) is None and trail.is_in_question
            for trail in self._holders()
        )

    def _suspect_those_left(self) -> None:
        """The server may have died: what led there and was left has died with it, then."""
        for left in self._gone:
            if left.state is Fate.LEFT and self._speaks(left):
                left.state = Fate.DEAD

    def left(self, trail: Trail, *, trusted: bool = False) -> None:
        """The link of a trail was closed by the gateway. `trusted`: nobody is to be told of what was not
        flushed.
        """
        self.witnesses.over(trail.under_way())
        if trusted:
            trail.unflushed.take()
        if trail.state is Fate.UP:
            self._is_gone(trail, Fate.DEAD if trail.is_shaken else Fate.LEFT, LEFT_UNPROVED)
            trail.unflushed.closed = True
            self._merge_those_left()
        elif trail.state is Fate.DOUBT:
            self._is_gone(trail, Fate.DEAD, trail.why)
        self._look()

    def _is_gone(self, trail: Trail, state: Fate, why: str) -> None:
        self.order.tick()
        trail.proof = None
        if trail.state is Fate.OVER:  # then nothing should have been written over it
            self._lose({trail: trail.unflushed.take()}, why)
            return
        trail.state, trail.why, trail.hoped = state, why, False
        if state is not Fate.DOUBT:
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
                if each.state is Fate.LEFT and each.alone is alone and self.scope(each) is None
            ]
            if len(left) > MOST_LEFT:
                left[1].unflushed.absorb(left[0].unflushed)

    def give_up(self, trail: Trail, why: str) -> None:
        """Nobody will find out any more what a trail in doubt holds. Another link may prove it yet."""
        if trail.state is Fate.DOUBT:
            self._is_gone(trail, Fate.DEAD, why)
            self._look()

    def is_durable(self, trail: Trail) -> None:
        """All that a trail holds is durable, as who has it knows."""
        trail.unflushed.take()
        self._look()

    def _drop(self, trail: Trail) -> None:
        """Nobody relies on what is uncovered here any more."""
        if trail.unflushed:
            bytes_ = sum(end - start for start, end in trail.unflushed.ranges)
            self._say("writes of a session that has ended were not flushed", {"bytes": bytes_})
        trail.unflushed.take()
        trail.state = Fate.OVER
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
        answered before, over any link for which it speaks; unless others are told by whoever has said it.
        """
        self.order.tick()
        if is_loss(error):
            self.last_news = self.order.tick()
            spoken_for = [trail]
            if trail.unseen:
                pass  # who has said it goes by what is under way, too
            elif self._speaks(trail):
                self._failed_at = self.last_news
                spoken_for = [each for each in self._holders() if self._speaks(each)]
            else:
                trail.failed_at = self.last_news
            lost = {each: each.unflushed.take() for each in spoken_for}
            # Nobody knows what was written, or whether it was.
            if not trail.unflushed.records or (trail.unseen and not lost[trail]):
                lost[trail] = [self._era_of_now(asked=self.order.now)]
            why = f"a FLUSH of the server has failed: {text or text_of_error(error)}"
            self._lose(lost, why, said=True, alone=trail.unseen)
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
        spoken = self._speaks(trail) and not trail.unseen
        return asked < (self._failed_at if spoken else trail.failed_at)

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


class Barrier:
    """Opens when everything is settled that any session relies on at this moment, except for what was written
    over one trail (`but`). If it is not open at once, it calls `opened` when it is. Whoever waits no longer has
    to `forget` it: as long as it is there, what is not proved in time is lost.
    """

    def __init__(
        self, losses: Ledger, opened: Callable[[], None], but: Trail | None = None
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

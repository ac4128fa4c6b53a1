"""What is proved, and what FLUSHes wait for: the clauses *Answering 0* and *A link dies* of the rule
(`gateway.losses.rule`).

What a FLUSH could not cover over its own link is proved by another FLUSH: over the link that it was written
over, or over one that leads to the same server. What nobody proves is lost. Whenever something has changed,
`_look` does what follows from it, until nothing follows any more.

A disk may have a thousand sessions. So a FLUSH looks only at the trails that hold something, and at those whose
link is gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from gateway.losses.eras import Era
from gateway.losses.records import Debt, Fate, Flush, Proving, Trail, nothing
from gateway.losses.telling import Telling
from gateway.protocol.commands import text_of_error

PROOF_SECONDS = 20.0
"""How long a FLUSH may take that only has to prove what was written over another link. It is longer than a
server in good health takes, and shorter than the 30 s after which virtual machines give up a disk."""

MOST_TRIES = 3
"""How often the gateway repeats a FLUSH of its own if the server says that it has not tried it. What the server
has too little of, it may have in a moment."""

BEHIND_A_BLACK_HOLE = (
    "a connection has not answered a FLUSH, and what was written over it may be gone"
)


class Proofs(Telling):
    """The trails of one disk, and the FLUSHes that wait for what they hold.

    `soon` calls back as soon as no session is in the middle of a step, `later` after `PROOF_SECONDS`.
    """

    def __init__(
        self,
        soon: Callable[[Callable[[], None]], None],
        later: Callable[[Callable[[], None]], None],
        say: Callable[[str, Mapping[str, object]], None],
    ) -> None:
        super().__init__(say)
        self._soon = soon
        self._later = later
        self._up: dict[Trail, None] = {}
        """The trails whose link is up, in the order in which they came up."""
        self._gone: dict[Trail, None] = {}
        """The trails whose link is dead, or left, and that hold something."""
        self._holding: dict[Trail, None] = {}
        """The trails that hold something. Some of them may not hold it any more."""
        self._waiting: dict[Flush, None] = {}
        self._looking = False

    def settle(self, flush: Flush, done: Callable[[], None]) -> bool:
        """A FLUSH was answered 0 over its session's own link. Say whether everything is settled that it has to
        cover; if not, `done` is called when it is. `answer` says what its client is told.
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

    def has_begun(self, trail: Trail) -> None:
        """A trail holds something again."""
        self._holding[trail] = None

    def _holders(self) -> list[Trail]:
        for trail in [each for each in self._holding if not each.unflushed]:
            del self._holding[trail]
        return list(self._holding)

    def _speaks(self, trail: Trail) -> bool:
        """Say whether a FLUSH over a link covers something of other links, too."""
        return not trail.alone and self.scope(trail) is None

    def prover(self, trail: Trail, era: Era) -> Trail | None:
        """Give the link over which a FLUSH can cover what was written in an era over a link that is gone: the
        oldest link that was up before that, and is up.
        """
        if trail.tried or not self._speaks(trail):
            return None
        oldest = next((each for each in self._up if self._speaks(each)), None)
        return oldest if oldest is not None and oldest.up <= era.asked else None

    def is_proving(self, trail: Trail) -> bool:
        """Say whether a FLUSH over another link may still cover what a dead link has left."""
        return trail.state in (Fate.DEAD, Fate.DOUBT) and any(
            self.prover(trail, era) is not None for era in trail.unflushed.eras
        )

    def lose(self, trail: Trail, why: str, *, said: bool = False) -> None:
        """What a trail holds may be gone. `said`: even if the server is believed to keep it."""
        self._lose({trail: trail.unflushed.take()}, why, said=said)
        self._look()

    # --- Looking what follows

    def _look(self) -> None:
        """Something has changed. Find out what is to be proved, what is lost, and whose FLUSH is settled."""
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
        """Have proved what dead links have left. What cannot be proved is lost, unless it is in doubt."""
        for trail in list(self._gone):
            if trail.state is Fate.DEAD:
                self._prove_or_lose(trail, trail.unflushed.eras)
            elif trail.state is Fate.DOUBT:
                hoped, trail.hoped = trail.hoped, self.is_proving(trail)
                for era in trail.unflushed.eras:
                    self._prove(self.prover(trail, era))
                if hoped and not trail.hoped and trail.unflushed:
                    trail.changed()

    def _prove_or_lose(self, trail: Trail, eras: list[Era]) -> None:
        """Have proved what was written over a link that is gone. What cannot be proved is lost."""
        provers = [self.prover(trail, era) for era in eras]
        lost = [era for era, prover in zip(eras, provers, strict=True) if prover is None]
        trail.unflushed.drop(lost)
        self._lose({trail: lost}, trail.why)
        for prover in provers:
            self._prove(prover)

    def _look_at_who_waits(self) -> None:
        """Have proved what FLUSHes wait for, or lose it. Answer those that wait for nothing more."""
        for flush in [each for each in self._waiting if not self._is_awaited(each)]:
            del self._waiting[flush]
        last_read = self._last_read()
        for trail in self._holders():
            read = last_read(trail)
            if trail.unflushed.first >= read or not trail.is_waited_for:
                continue
            if trail.state is Fate.UP:
                self._prove(trail)
            elif trail.state is Fate.LEFT:
                self._prove_or_lose(trail, trail.unflushed.begun_before(read))
            elif trail.state is Fate.DOUBT and trail.proof is None and not trail.hoped:
                # Whoever has the trail finds out; but nobody waits for that for ever.
                trail.proof = proof = Proving(self.order.tick())
                self._later(partial(self._doubted_too_long, trail, proof))
        first_held = self._first_held()
        for flush in list(self._waiting):
            if flush.error or flush.read <= first_held(flush):
                del self._waiting[flush]
                self.order.tick()
                if flush.done is not nothing:  # else who settles it goes on by himself
                    self._soon(flush.done)

    def _is_awaited(self, flush: Flush) -> bool:
        """Say whether somebody is answered when a FLUSH is settled."""
        return flush.debt is None or flush.debt in self._open

    def _last_read(self) -> Callable[[Trail], int]:
        """Give a function that says when the last FLUSH was read that waits for what was written over a
        link.
        """
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
        """Give a function that says when the first write was answered for which a FLUSH has to wait."""
        first: dict[Debt | None, float] = {}
        for trail in (each for each in self._holders() if each.is_waited_for):
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
        return concerned and trail.is_waited_for

    def _forget_what_is_over(self) -> None:
        for trail in [each for each in self._gone if not each.unflushed]:
            if self._gone.pop(trail, trail) is None:  # `changed` may have seen to it
                trail.state, trail.proof = Fate.OVER, None
                trail.changed()

    # --- Proofs

    def _prove(self, trail: Trail | None) -> None:
        """Have a FLUSH sent over a link. If one is under way, wait for it first: it may be enough."""
        if trail is not None and trail.state is Fate.UP and trail.proof is None:
            trail.proof = proof = Proving(self.order.tick())
            self._later(partial(self._late, trail, proof))
            self._soon(partial(self._ask, trail, proof))

    def _ask(self, trail: Trail, proof: Proving) -> None:
        if trail.proof is proof:
            proof.sent = self.order.tick()
            trail.unflushed.keep_apart()
            trail.flush(partial(self._proved, trail, proof))

    def _proved(self, trail: Trail, proof: Proving, error: int, text: str) -> None:
        """A FLUSH was answered. What it covers, or loses, is known already."""
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

    def _late(self, trail: Trail, proof: Proving) -> None:
        """A FLUSH was not answered in `PROOF_SECONDS`: nobody waits for this link any longer."""
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
        """Give the eras of a link for which some FLUSH waits."""
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
        """Others have waited in vain for a FLUSH that was sent then. What it should have covered for them is
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
            if other.state is Fate.DOUBT:
                other.tried = True
                continue
            if other.state is Fate.LEFT:
                needed = self._needed(other)
                eras = [era for era in eras if era in needed]
            other.unflushed.drop(eras)
            self._lose({other: eras}, why)

    def _doubted_too_long(self, trail: Trail, proof: Proving) -> None:
        if trail.proof is proof and trail.waits():
            self._later(partial(self._doubted_too_long, trail, proof))
        elif trail.proof is proof:
            trail.proof = None
            self.lose(trail, BEHIND_A_BLACK_HOLE)


def _scopes(flush: Flush) -> tuple[Debt | None, ...]:
    """Give the scopes on which a FLUSH relies: that of all, and that of its own session."""
    return (None,) if flush.debt is None else (None, flush.debt)

"""Who has to be told that something is lost: the sessions of a disk, and whoever opens it next.

The clauses *Scope* and *Telling* of the rule (`gateway.losses.rule`): what is lost has to be told to every
session that relies on it, by EIO; and to whoever comes later, until anybody was told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gateway.losses.eras import Era, Order
from gateway.losses.records import NOWHERE, Debt, Flush, Ledger, Trail, Untold
from gateway.losses.witnesses import Witnesses
from gateway.protocol.commands import is_loss, told_error
from gateway.wire.constants import Errno
from gateway.wire.ranges import Range, fewer, merged, without

MOST_LOST = 4096
"""Ranges that are remembered as lost for a session that is not told, for it may never FLUSH. Beyond that the
least gaps are closed, so that more of its READs fail than must, and never fewer."""

REPORTED_BESIDE = "what was written before was reported as lost to a FLUSH beside it"


@dataclass(slots=True)
class _Word:
    """What a session was told, as long as nobody else was told of all of it."""

    told_at: int
    why: str
    """Empty: of nothing that anybody else would have to be told of."""
    ranges: Sequence[Range]
    others: set[Debt]
    """Who have to be told of all of it as well."""

    def is_heard(self, read: int) -> bool:
        """Say whether it has surely been, by who has asked for a FLUSH that was `read` then."""
        return read > self.told_at


class Telling(Ledger):
    """The sessions of one disk, and what each has still to be told."""

    def __init__(self, say: Callable[[str, Mapping[str, object]], None]) -> None:
        self.order = Order()
        self.witnesses = Witnesses()
        self.tainted = False
        self._say = say
        self._last_told = -1
        self._open: dict[Debt, None] = {}
        self._untold: tuple[str, Sequence[Range]] | None = None
        self._words: dict[Debt, _Word] = {}
        """What may not have been heard yet."""
        self.untold_at = -1
        self._again = False
        """Something was lost since it was last looked what there is to prove."""

    # --- Sessions

    def open(self, before: Debt | None = None) -> Debt:
        """A session opens the disk. One from another disk (a switch) still has to be told of that."""
        debt = Debt(self)
        if before is not None:
            before.losses.end(before)
            debt.why, debt.lost, debt.losses_seen = before.why, before.lost, before.losses_seen
            if before.knows_untold:
                debt.knew_untold_of = before.losses, before.losses.untold_at
            self.tainted = self.tainted or bool(debt.why)
        self._open[debt] = None
        if self._untold is not None:
            why, ranges = self._untold
            debt.has_to_hear(why, _and(debt.lost, ranges))
            debt.knows_untold = True
        return debt

    def _close(self, debt: Debt) -> None:
        self._open.pop(debt, None)
        debt.deaf = True
        self._words.pop(debt, None)
        for word in self._words.values():
            word.others.discard(debt)

    @property
    def sessions(self) -> int:
        """How many are open."""
        return len(self._open)

    def tell_the_next(self, why: str, ranges: Iterable[Range] = ()) -> None:
        """Whoever opens the disk next has to be told that something was lost."""
        self._add_untold(why, ranges)
        for debt in self._open:
            debt.knows_untold = False
        self.tainted = True

    def hand_on(self, other: Telling) -> None:
        """Whoever switches from this disk to another says that the other has its content. So what this disk has
        lost, and nobody was told of, is missing there as well.
        """
        if self._untold is not None and other is not self:
            know = [
                each
                for each in other._open
                if each.knew_untold_of == (self, self.untold_at)
                and (other._untold is None or each.knows_untold)
            ]
            other.tell_the_next(*self._untold)
            for debt in know:
                debt.knows_untold = True

    def _add_untold(self, why: str, ranges: Iterable[Range]) -> None:
        """Something is lost that no session was told of yet. Whoever opens the disk from now on has to be told
        (`open`), until a session that knows of all of it has been (`_tell`).
        """
        self._untold, self.untold_at = (why, _and(self._untold_ranges, ranges)), self.order.tick()

    def untold(self) -> Untold | None:
        """Give what may be lost, as far as not everybody was told of it; None: there is nothing."""
        to_tell = [debt for debt in self._open if debt.why]
        if not to_tell and self._untold is None:
            return None
        why = [debt.why for debt in to_tell]
        ranges = [each for lost in {id(d.lost): d.lost for d in to_tell}.values() for each in lost]
        if self._untold is not None:
            why.append(self._untold[0])
            ranges += self._untold[1]
        each_once = tuple(dict.fromkeys(why))
        return Untold(each_once, fewer(ranges, MOST_LOST), len(to_tell), self._untold is not None)

    def forget(self) -> bool:
        """Forget what nobody was told of: nobody who comes later is told of it. Say whether there was any."""
        if self._untold is None:
            return False
        self.order.tick()
        self._untold = None
        self._words.clear()
        for debt in self._open:
            debt.knows_untold = False
        self.tainted = self._is_tainted
        return True

    @property
    def _untold_ranges(self) -> Sequence[Range]:
        return NOWHERE if self._untold is None else self._untold[1]

    @property
    def _quiet(self) -> bool:
        """Nobody has to be told of a loss."""
        return self._untold is None and not any(debt.why for debt in self._open)

    @property
    def _is_tainted(self) -> bool:
        """What is written has to be noted, for it may be where something is lost."""
        return not self._quiet or any(word.why for word in self._words.values())

    # --- What is lost

    def scope(self, trail: Trail) -> Debt | None:
        """Give the session that alone relies on what is written over a link; None: all do."""
        return trail.owner

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
        alone: bool = False,
    ) -> None:
        """What was answered in these eras may be gone: they are of one trail, or of several on which all rely.
        `said`: the server itself says so. `known`: whoever has the trail knows. `alone`: others are told by the
        other side.
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
        relying = [debt for debt in relying if debt.trail is one] if alone else relying
        for debt in relying:
            debt.losses_seen += 1
            told_at = max(told_at, debt.told_at)
            news = [era for era in all_eras if self._is_news(debt, era)]
            if len(news) < len(all_eras):
                # So the last EIO, whatever it was for, has told it of this, too.
                debt.told_first_at = debt.told_at
            if not news:
                continue
            sessions += 1
            all_is_news = len(news) == len(all_eras)
            same = id(debt.lost), all_is_news, 0 if all_is_news else debt.told_at
            if same not in lost_of:
                lost_of[same] = _and(debt.lost, ranges if all_is_news else _ranges(news))
            debt.has_to_hear(why, lost_of[same])
        unknown = [era for era in all_eras if era.last >= told_at]
        if self.scope(one) is None:
            if len(unknown) < len(all_eras):
                heard_of = [era for era in all_eras if era.last < told_at]
                self._add_to_words(why, heard_of, relying)
            if unknown:
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
        """Nothing that was answered is lost. But what is under way may be done in part, and that part may be
        lost.
        """
        for debt in self._open:
            debt.losses_seen += self.relies(debt, trail)

    def _is_news(self, debt: Debt, era: Era) -> bool:
        """Say whether a session has to be told of what was answered then. All that was answered before it was
        last told is in doubt to it already.
        """
        return era.last >= debt.told_at

    def written(self, trail: Trail, start: int, end: int) -> None:
        """Bytes were written (again): what is there now is what a client wrote. If that is lost in turn, those
        who rely on it are told. For all others nothing has changed.
        """
        owner = self.scope(trail)
        if self._untold is not None and owner is None:
            why, ranges = self._untold
            self._untold = why, without(ranges, start, end)
        for word in self._words.values() if owner is None else ():
            word.ranges = without(word.ranges, start, end)
        left: dict[int, Sequence[Range]] = {}
        for debt in self._open if owner is None else (owner,):
            if debt.lost:
                before = debt.lost
                if id(before) not in left:
                    left[id(before)] = without(before, start, end)
                debt.lost = left[id(before)]

    # --- Telling

    def answer(self, flush: Flush, error: int, text: str) -> tuple[int, str]:
        """Give the error (0: none), and its text, that a client's FLUSH is answered with now, and note that
        it is.
        """
        debt = flush.debt
        assert debt is not None
        if self._words:
            self._hears(debt, flush.read)
        if debt.why:
            error, text = Errno.EIO, debt.why
        elif not error and self._is_beside(flush.read, debt):
            error, text = Errno.EIO, REPORTED_BESIDE
        elif not error:
            error, text = flush.error, flush.text
        if is_loss(error):
            self._tell(debt)
        return told_error(error), text

    def _is_beside(self, read: int, debt: Debt) -> bool:
        """Say whether a FLUSH that was `read` then was so before its session was told of a loss by another one:
        it may have to cover what is lost.
        """
        return read < debt.told_first_at

    def _tell(self, debt: Debt) -> None:
        """EIO is sent to a session for a FLUSH."""
        now = self.order.tick()
        if debt.is_deaf():
            return
        debt.told_at = self._last_told = now
        if debt.why:
            debt.told_first_at = now
        self._note_word(debt, now)
        if debt.knows_untold:
            self._untold = None
        if debt.knew_untold_of is not None:
            debt.knew_untold_of[0].is_told(debt.knew_untold_of[1])
        debt.why, debt.lost = "", NOWHERE
        debt.knows_untold, debt.knew_untold_of = False, None
        self.tainted = self._is_tainted

    def _note_word(self, debt: Debt, now: int) -> None:
        """Note what a session is told now, for it may not hear it."""
        for other in [each for each, word in self._words.items() if debt in word.others]:
            del self._words[other]
        word = _Word(now, "", NOWHERE, set())
        if debt.knows_untold and self._untold is not None:
            word.why, word.ranges = self._untold
            word.others = {each for each in self._open if each.knows_untold and each is not debt}
        before = self._words.get(debt)
        if before is not None and before.why and not before.is_heard(debt.read_at):
            word.others = word.others & before.others if word.why else before.others
            word.why, word.ranges = before.why, _and(before.ranges, word.ranges)
        self._words[debt] = word

    def _hears(self, debt: Debt, read: int) -> None:
        """A session's client has asked for a FLUSH then: it has heard what it was told before."""
        word = self._words.get(debt)
        if word is not None and word.is_heard(read):
            del self._words[debt]
            self.tainted = self._is_tainted

    def _add_to_words(self, why: str, known: list[Era], relying: list[Debt]) -> None:
        """Something is lost that is no news to somebody who was told before."""
        if not self._words:
            return
        ranges = list(_ranges(known))
        hear = {debt for debt in relying if all(self._is_news(debt, era) for era in known)}
        for word in self._words.values():
            word.others = word.others & hear if word.why else hear
            word.why, word.ranges = word.why or why, _and(word.ranges, ranges)

    def unheard(self, debt: Debt) -> None:
        """What a session was told last may not have reached its client. If nobody else was told of it, whoever
        has opened the disk since has to be, and whoever opens it next.
        """
        word = self._words.pop(debt, None)
        if word is None or not word.why or word.is_heard(debt.read_at):
            return
        for each in self._open:
            is_new = each.opened_at > word.told_at
            if is_new:
                each.has_to_hear(each.why or word.why, _and(each.lost, word.ranges))
            knows_the_rest = each.knows_untold or self._untold is None
            each.knows_untold = knows_the_rest and (is_new or each in word.others)
        self._add_untold(word.why, word.ranges)
        self.tainted = True

    def is_told(self, untold_at: int) -> None:
        """A session that has gone to another disk was told of what nobody had been told of here by then."""
        if self.untold_at == untold_at:
            self._untold = None
            self.tainted = self._is_tainted

    def answered_late(self, debt: Debt, since: int, written: Sequence[Range]) -> None:
        """A command is answered now, and parts of it were written after an event, and noted then. A session
        that was told of a loss in between takes them for safe. So they count as answered now.
        """
        if self._last_told >= since and debt.trail is not None:
            debt.trail.unflushed.renew_since(since, written)


def _and(before: Sequence[Range], more: Iterable[Range]) -> Sequence[Range]:
    return fewer([*before, *more], MOST_LOST)


def _ranges(eras: Iterable[Era]) -> Iterable[Range]:
    return (each for era in eras for each in era.ranges)

"""Puts a bundle in order.

Its lines are changed at a standstill. If there are other lines than before, the bundle settles: nothing is sent
any more. When nothing is under way, it is mended (`recovery`, carried out by `mending`), and then it is up
again.

After a loss it is not mended as long as old writes may come late that are asked again, nor as long as others
may still prove that nothing is lost. It is not read before what others have written over links of their own is
flushed, or known to be lost.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.bundle.lines import Lines, State
from gateway.bundle.mending import Mending
from gateway.bundle.recovery import AnotherDisk, flushed, recovery
from gateway.bundle.work import Work
from gateway.jobs.fences import Late, still_coming
from gateway.losses.rule import Barrier, Trail
from gateway.losses.survival import Survival
from gateway.losses.unflushed import Unflushed
from gateway.peer import Peer

NEVER_BACK = (
    "the connection to the server was lost, and not made again; what it had not flushed may be gone"
)


class Standstill:
    """Lines, and what is asked of them, put in order when there are other lines. `changed` is called when
    something has changed for which the driver waits.
    """

    def __init__(
        self,
        lines: Lines,
        work: Work,
        trail: Trail,
        survival: Survival,
        clock: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self.lines = lines
        self.work = work
        self.survival = survival
        self.why = ""
        """Why there is no line, or will be none."""
        self.is_another = False
        """It is over, because its lines led to another disk."""
        self._trail = trail
        self._clock = clock
        self._changed = changed
        self._has_news = False  # what is not to do with lines has changed
        self._barrier: Barrier | None = None
        """What is asked after all lines were lost has to wait for this."""
        self._was_up = False
        self._total_loss = True  # since lines were in order last, there was a time without any
        self._mending: Mending | None = None
        self._late: list[Late] = []  # no recovery before what one wrote over these lines is done
        self._deaths = 0  # of lines
        self._left: list[Peer] = []  # where those led that have died since lines were in order last
        self._mends_since = 0  # so many lines had died when the recovery began

    @property
    def state(self) -> State:
        """What it does."""
        return self.lines.state

    @property
    def unflushed(self) -> Unflushed:
        """What has been written over it and is not known to be durable."""
        return self.work.unflushed

    @property
    def settled(self) -> bool:
        """Nothing waits for a line's answer, nor for something that waits for one."""
        return not (self.work.pieces.orphans or self.work.pieces.held)

    @property
    def in_order(self) -> bool:
        """All is as it was before anything was lost."""
        return self.state is State.UP and self.settled

    # --- When it is mended

    @property
    def _too_early(self) -> bool:
        return bool(still_coming(self._late, self._clock()))

    @property
    def _waits(self) -> bool:
        """It must not be mended yet: an old write that is asked again may come late, or others may prove that
        nothing is lost.
        """
        return self._too_early or self._trail.proving

    def _late_from(self, peer: Peer) -> Late:
        """Give what may come late over a link to this peer, which has died now."""
        return Late(self._clock() + self.survival.late_write_seconds, peer)

    def _note_news(self) -> None:
        self._has_news = True
        self._changed()

    # --- Mending

    def _mend(self) -> None:
        """Nothing is under way any more: put the lines in order."""
        self.lines.state = State.MENDING
        self._mends_since = self._deaths
        self._late = []
        self.lines.use_staying()
        self._forget_barrier()
        kept = bool(self._left) and all(peer.kept() for peer in self._left)
        steps = recovery(self.work, restarted=self._total_loss, kept=kept)
        self._mending = Mending(steps, self.work)
        self._go_on_mending()

    def _go_on_mending(self) -> None:
        try:
            done = self._mending is not None and self._mending.go_on()
        except AnotherDisk as another:
            self.is_another = True
            self.give_up(str(another))
            self._changed()
            return
        if done and not self._may_be_read:
            if self.work.flushes and self.work.unflushed:  # or two would wait for each other
                self._mending = Mending(flushed(self.work), self.work)
                self._mending.go_on()
            else:  # others wait for one that is to prove what they have written
                self.work.send_flush()
        elif done:
            self._mending = None
            if self._total_loss and self._was_up:
                self.work.fail_what_is_stale()
            self._total_loss = False
            self._left.clear()
            self.lines.state = State.SETTLING if self.lines.new else State.UP
            if self.state is State.UP:
                self.work.deadly.mended()
            self.work.hold_orphans()
            self._changed()

    def look_again(self) -> None:
        """Look once more whether the lines lead to the disk that was left, before anything else goes on."""
        for line in self.lines.by_number.values():
            line.recognised = False
        if self.state is State.MENDING:
            self._break_off()
        if self.state in (State.MENDING, State.UP):
            self.lines.state = State.SETTLING
        self._note_news()

    @property
    def _may_be_read(self) -> bool:
        """After a loss, say whether everything is flushed, or known to be lost, that others have written over
        links of their own. Only then may anybody read it over a new link, for the server there may have started
        without it.
        """
        if not self._total_loss or not self._was_up or self._trail.owner is not None:
            return True
        if self._barrier is None:
            self._barrier = Barrier(self._trail.losses, self._note_news, self._trail)
        return self._barrier.is_open

    def _break_off(self) -> None:
        """A recovery cannot go on as it is. It begins anew with the lines that are there then."""
        self._forget_barrier()
        if self._mending is not None:
            self._mending.break_off()
            self._mending = None

    def _forget_barrier(self) -> None:
        if self._barrier is not None:
            self._barrier.forget()
            self._barrier = None

    # --- It is over

    def end(self) -> None:
        """Nobody asks any more. If what was written is in doubt, others have to be told."""
        self._forget_barrier()
        self._trail.losses.give_up(self._trail, NEVER_BACK)

    def give_up(self, why: str) -> None:
        """There will be no line any more: everything fails."""
        self.end()
        self.why = why
        self._break_off()
        self.lines.state = State.OVER

    def break_down(self, why: str) -> None:
        """A bug has broken it: nothing is asked any more, and whatever was written counts as lost."""
        self.why = why
        self._mending = None
        self.lines.state = State.OVER
        self._trail.losses.lose(self._trail, why)

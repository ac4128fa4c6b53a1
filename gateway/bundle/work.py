"""What sessions ask of a bundle, from their ports to the lines and back.

What a session asks is a *task*, and waits in the session's port for its turn (`ports`). When its turn has come,
it is cut into *pieces*, one for each stripe that it is in (`stripes`). A piece waits as long as it must not
pass another (`pieces`), and then goes to its line (`lines`). When the last piece is answered, so is the task.
Several tasks share a FLUSH (`flushes`).

What is written is noted as soon as a line has acknowledged it, and before whoever asked can know (`unflushed`).
So if it turns out to be lost (`gateway.losses.rule`), whoever was told of the write is told of the loss. And if
a part of a task is lost before the task is done, the task has to fail: its session is told of the loss too
early.

This is longer than other modules: whether a piece is sent, held, answered or left by its line, what is noted of
it has to be true at once for its task, the next FLUSH and a recovery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from gateway.bundle import stripes
from gateway.bundle.deadly import Deadly
from gateway.bundle.flushes import Flushes
from gateway.bundle.line import Line
from gateway.bundle.lines import Lines, State
from gateway.bundle.pieces import MOST_LOSSES, WHEN_FLUSHED, Piece, Pieces
from gateway.bundle.ports import Port, Ports, Task
from gateway.bundle.room import Room
from gateway.bundle.stalls import Stalls
from gateway.jobs.fences import Fences, Late
from gateway.jobs.jobs import GONE, LOST
from gateway.losses.eras import Keep
from gateway.losses.rule import DONE_BEFORE, Trail
from gateway.losses.survival import Doubt, Survival, Unanswered
from gateway.losses.unflushed import Unflushed
from gateway.losses.witnesses import Sample, sample_of
from gateway.protocol.asks import Ask, Done, Outcome
from gateway.protocol.commands import SHOWS_CONTENT, WRITE_CLASS, text_of_error, told_error
from gateway.protocol.export import Export
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.limits import MIB
from gateway.wire.ranges import Range, touched

LINE_COMMANDS = 128
"""How many asks may be under way on one line: as many as one session may have. What is beyond that waits here,
where it can be shared out fairly."""

LINE_BYTES = 4 * MIB
"""How much data of asks may be under way on one line; one alone may have more. A small request of somebody else
has to wait for that much. More would serve a fast link to far away. But with 16 a small client had a quarter of
the requests that it has with 4, and the large one beside it had less as well."""

MOST_WRITES = 1024
"""How many writes are kept to be looked for, or written again, between two FLUSHes. To look through more would
take longer than the FLUSH."""


class Work:
    """All that is asked of one bundle, and what is to be known of it after a loss."""

    def __init__(
        self,
        export: Export,
        lines: Lines,
        trail: Trail,
        survival: Survival,
        stalls: Stalls,
        clock: Callable[[], float],
        say: Callable[[str, Mapping[str, object]], None],
        fences: Fences,
        changed: Callable[[], None],
        wrote_again: Callable[[int], None],
    ) -> None:
        self.export = export
        self.lines = lines
        self.trail = trail
        self.fences = fences
        trail.lost = self._fail_unfinished
        trail.under_way = self._writing
        self.survival = survival
        self.ports = Ports()
        self.pieces = Pieces(in_order=survival.unflushed in (Doubt.REPLAY, Doubt.VERIFY))
        self.flushes = Flushes()
        self.deadly = Deadly()
        self.room = Room(clock, changed)
        self.clock = clock
        self._stalls = stalls
        self._say = say
        self.wrote_again = wrote_again
        """Is told how many bytes were written once more after a loss."""
        shared = Flag.READ_ONLY | (Flag.CAN_MULTI_CONN if export.can_flush else 0)
        self.one_view = bool(export.flags & shared)
        """What is flushed can be seen over any connection."""

    def say(self, what: str, **details: object) -> None:
        """Tell the operator."""
        self._say(what, details)

    @property
    def unflushed(self) -> Unflushed:
        """What was written over its lines, and is not known to be durable."""
        return self.trail.unflushed

    # --- Tasks

    def adopt(self, port: Port, ask: Ask, done: Done, late: Late) -> None:
        """Ask again what was asked over a link that is gone, and may still come from there `late`."""
        task = Task(ask, done, port)
        if ask.command is Cmd.FLUSH:
            self._flush(task)
            return
        task.expect(1)
        piece = Piece(ask, self._answered, task, losses=ask.losses)
        self.pieces.look_at(piece)
        self.orphan(piece, late)

    def go_on(self) -> None:
        """Send what may be sent."""
        if not self.flushes.suspect:  # else it goes before all others, and by itself
            for piece in self.pieces.release():
                if piece.lates and self._is_stale(piece):  # it has waited for others
                    self._fail_stale(piece)
                else:
                    self.send(piece)
            for task in self.ports.take(self._has_room, self._must_flush_first):
                self._begin(task)
        self.send_flush()

    def _has_room(self) -> bool:
        lines, pieces = len(self.lines.in_use), self.pieces
        count = len(pieces.under_way) + len(pieces.held)
        if count >= LINE_COMMANDS * lines:
            count -= len(pieces.put_off)  # that takes nobody's place: much, perhaps, and for long
        return count < LINE_COMMANDS * lines and pieces.bytes < LINE_BYTES * lines

    def _must_flush_first(self, ask: Ask) -> bool:
        """Say whether a write has to wait because as much is kept as may be kept. A FLUSH is on its way then:
        it is sent when half as much is kept, so that hardly any write has to wait. If the server tries no
        FLUSH, less is kept.
        """
        unflushed = self.unflushed
        if unflushed.keep is Keep.RANGES or ask.command not in WRITE_CLASS:
            return False
        coming = self.pieces.writes
        writes = len(unflushed) + len(coming)
        kept, most = 0, self.survival.replay_bytes
        if unflushed.keep is Keep.DATA:
            kept = unflushed.bytes + sum(len(piece.ask.data) for piece in coming)
        much = kept + len(ask.data) > most // 2 or writes >= MOST_WRITES // 2
        if much and unflushed and self.flushes.under_way is None and self.room.may_flush:
            self.room.flushes()
            self.flushes.want(self._make_room)
        return bool(kept and kept + len(ask.data) > most) or writes >= MOST_WRITES

    def _make_room(self, outcome: Outcome) -> None:
        """A FLUSH that was only sent for that has its answer."""
        if self.room.flushed(outcome.error):
            self.unflushed.keep_less()
            self.say(
                "the server tries no FLUSH: until one succeeds, nobody can find or write again what is lost",
                unflushed=self.survival.unflushed.value,
                why=outcome.text or text_of_error(outcome.error),
            )

    def _begin(self, task: Task) -> None:
        match task.ask.command:
            case Cmd.FLUSH:
                self._flush(task)
            case Cmd.BLOCK_STATUS if (
                self.lines.count > 1 and self.export.can_flush and self.unflushed
            ):
                # What one line has written, another need not know before it is flushed.
                self.flushes.want(lambda outcome: self._ask_status(task, outcome))
            case Cmd.BLOCK_STATUS:
                self._ask_status(task, Outcome())
            case _:
                self._put(task, self._cut(task))

    def _flush(self, task: Task) -> None:
        def done(outcome: Outcome) -> None:
            self.ports.answer(task, outcome)

        if task.ask.losses:
            self.flushes.want_again(done, task.ask.losses)
        else:
            self.flushes.want(done)

    def _ask_status(self, task: Task, flushed: Outcome) -> None:
        # If it was a recovery that failed the FLUSH, that is as good: it puts the lines in order as well.
        if flushed.error and self.lines.state is not State.MENDING:
            self.ports.answer(task, flushed)
        else:
            self._put(task, [Piece(task.ask, self._answered, task, nth=0, losses=task.ask.losses)])

    def _cut(self, task: Task) -> list[Piece]:
        """Give the pieces of a command that has a range: one for each stripe, or one for all."""
        ask, stripe_bytes = task.ask, self.lines.stripe_bytes
        losses = ask.losses
        several = self.lines.count > 1
        count = stripes.stripes(ask.offset, ask.end, stripe_bytes) if several else 1
        if count == 1:
            return [Piece(ask, self._answered, task, losses=losses)]
        if count <= stripes.MOST_STRIPES or ask.command in (Cmd.READ, Cmd.WRITE):
            parts = stripes.parts(ask, stripe_bytes)
            return [Piece(part, self._answered, task, losses=losses) for part in parts]
        if ask.command in WRITE_CLASS:
            whole = Piece(ask, self._answered_whole, task, nth=0, alone=True, losses=losses)
            return [whole]
        return [Piece(ask, self._answered, task, nth=0, losses=losses)]

    # --- Pieces

    def _put(self, task: Task, pieces: list[Piece]) -> None:
        """Send the pieces of a task, or hold them until they may be sent."""
        task.expect(len(pieces))
        for piece in pieces:
            if piece.alone:
                self.pieces.leave_alone(piece)
            if self.fences and piece.writes:
                self.pieces.put_off_for(piece, self.fences.over(piece.ask.offset, piece.ask.end))
            if piece.losses:
                self.pieces.look_at(piece)
            if self.lines.state is State.UP and self.pieces.may_go(piece):
                self.send(piece)
            else:
                self.pieces.held.append(piece)

    def send(self, piece: Piece) -> None:
        """Send a piece to its line now."""
        if piece.task is not None and self._is_lost(piece.task, piece.ask):
            lost = Outcome(Errno.EIO, LOST)
            self._part_done(piece, lost)
            return
        line = self.lines.usual(piece.ask.offset, piece.nth)
        spare = self.lines.spare
        if line.stalled and spare is not None and self._may_be_read_elsewhere(piece):
            line = spare
        piece.asked = self.trail.losses.asked()
        piece.gone_over = self.trail.losses.witnesses.gone_over
        self.pieces.begin(piece, line)
        self._ask_line(line, piece)

    def _ask_line(self, line: Line, piece: Piece) -> None:
        self._stalls.asks(line)
        line.traffic.asks.send(piece.ask, lambda outcome: self._reply(piece, line, outcome))

    def _is_lost(self, task: Task, ask: Ask) -> bool:
        traffic = task.port.traffic
        return (
            ask.command in SHOWS_CONTENT
            and traffic is not None
            and traffic.debt.is_lost(ask.offset, ask.end)
        )

    def _reply(self, piece: Piece, line: Line, outcome: Outcome) -> None:
        if piece not in self.pieces.under_way or (piece.line is not line and outcome.error):
            return  # another line has answered it, or will
        if outcome.status:
            outcome.status = line.as_the_bundle_has_it(outcome.status)
        self.pieces.end(piece)
        piece.done(piece, outcome)

    def _answered(self, piece: Piece, outcome: Outcome) -> None:
        """A piece of a task has its answer."""
        if piece.writes:
            if not outcome.error:
                self._note_written(piece)
            elif piece.unknown:
                self.trail.losses.witnesses.unknown(piece.ask.offset, piece.ask.end)
            else:  # it may have been done in part
                self.trail.losses.witnesses.over([(piece.ask.offset, piece.ask.end)])
        self._part_done(piece, outcome)

    def _answered_whole(self, piece: Piece, outcome: Outcome) -> None:
        """A piece that went over one line for the stripes of all lines has its answer. The other lines must
        know of it before the task is done, and before whatever waits for it goes.
        """
        if outcome.error or not self.export.can_flush:
            self._answered(piece, outcome)
            return
        self._note_written(piece)
        # Until then it keeps others away, like a piece that waits.
        piece.not_before = WHEN_FLUSHED
        self.pieces.held.insert(0, piece)

        def flushed(flush: Outcome) -> None:
            self.pieces.held.remove(piece)
            self._part_done(piece, flush if flush.error else outcome)

        self.flushes.want(flushed)

    def _note_written(self, piece: Piece) -> None:
        ask, losses = piece.ask, self.trail.losses
        self.trail.wrote = True
        if losses.tainted:
            losses.written(self.trail, *ask.written)
        if ask.flags & CmdFlag.FUA:
            losses.durable(self.trail, [(ask.offset, ask.end)], self._sample(piece))
            if self.export.can_flush:
                self.unflushed.replaced(ask)
        elif not self.export.can_flush:
            losses.witnesses.over([(ask.offset, ask.end)])
        elif losses.is_done_before(self.trail, piece.asked):
            losses.done_before(self.trail, [(ask.offset, ask.end)])
            if piece.task is not None and piece.task.missing > 1:
                piece.task.fail(Errno.EIO, DONE_BEFORE)  # its session may be told before it is done
        else:
            if self.unflushed.add(ask, piece.asked):
                self.unflushed.keep_sample(self._sample(piece))

    def _sample(self, piece: Piece) -> Sample | None:
        """Take a sample of what was written, unless it may be written once more."""
        ask = piece.ask
        if ask.command is not Cmd.WRITE or piece.unknown:
            return None
        return sample_of(ask.offset, ask.data, piece.gone_over)

    def _writing(self) -> list[Range]:
        """Give the ranges that may be written to over these lines at this moment."""
        pieces = self.pieces
        sent = (*pieces.under_way, *pieces.orphans, *(p for p in pieces.held if p.unknown))
        return [(piece.ask.offset, piece.ask.end) for piece in sent if piece.writes]

    def _part_done(self, piece: Piece, outcome: Outcome) -> None:
        task = piece.task
        assert task is not None  # the bundle's own pieces end otherwise
        self.pieces.done_with(piece)
        task.written = task.written or (piece.writes and not outcome.error)
        task.gather(piece.ask, outcome)
        if not task.missing:
            self.ports.answer(task, task.outcome)

    def send_flush(self) -> None:
        """Send the FLUSH that is wanted, if it may go."""
        if not self.flushes or self.flushes.under_way is not None:
            return
        if self.pieces.suspect_under_way or (self.flushes.suspect and self.pieces.under_way):
            return
        sent = self.trail.losses.sent()

        def answered(_piece: Piece, outcome: Outcome) -> None:
            waiting = self.flushes.answered()
            self.flush_answered(sent, outcome)
            for done in waiting:
                done(outcome)

        self.flushes.sent()
        self.send(Piece(Ask(Cmd.FLUSH, 0, 0), answered, nth=0))

    def flush_answered(self, sent: int, outcome: Outcome) -> None:
        """A FLUSH over a line that was there all the time has its answer."""
        losses = self.trail.losses
        if not outcome.error:
            losses.flushed(self.trail, sent)
            self.unflushed.keep_as_before()
            return
        losses.flush_failed(self.trail, outcome.error, outcome.text)
        outcome.error = told_error(outcome.error)

    # --- What lines leave behind

    def orphan(self, piece: Piece, late: Late) -> None:
        """A piece will have no answer from its line. It may have been done, or may be done yet."""
        if piece.writes:
            piece.unknown += 1
            piece.lates.append(late)
            self.keep_away(piece.ask, late)
        if piece.left:
            self.pieces.done_with(piece)
            self._may_have_been_done([piece])
        else:
            self.pieces.orphans.append(piece)

    def keep_away(self, ask: Ask, late: Late) -> None:
        """Keep newer writes away from where an old one may still come: those of all sessions of the disk. Where
        clients are told that nobody knows, they write again, and need not be kept away. Except from writes that
        were widened to whole blocks, for these may have others' bytes in them.
        """
        reissued = self.survival.unknown_writes is Unanswered.REISSUE
        if (reissued or ask.own is not None) and not late.over(self.clock()):
            self.fences.add(ask.offset, ask.end, late)
            for held in self.pieces.held:
                if held.writes and held.ask.overlaps(ask):
                    self.pieces.put_off_for(held, [late])

    def leave(self, port: Port) -> None:
        """A session has ended. What it has not begun is forgotten, and what was not answered is not asked
        again. Nobody is told of the rest.
        """
        self.ports.leave(port)
        forgotten = self.pieces.forget_those_left(orphans=self.lines.state is not State.MENDING)
        self._may_have_been_done(forgotten)

    def fail_what_is_stale(self) -> None:
        """There was no line for a while. Clients that have gone meanwhile must not write any more, for since
        then others may have written there who saw them go. This holds for what waits, and for what they have
        sent and nobody has read yet. So it all fails here, before a recovery has any of it in hand.
        """
        pieces = self.pieces
        for port in self.ports.there:
            port.has_waited()
        for waiting in (pieces.held, pieces.orphans):
            for piece in [each for each in waiting if each.not_before < WHEN_FLUSHED]:
                if self._is_stale(piece):
                    waiting.remove(piece)
                    self._fail_stale(piece)
        for task in self.ports.take_out(WRITE_CLASS, [port for port in self.ports if port.gone]):
            self.ports.answer(task, Outcome(Errno.EIO, GONE))

    def _is_stale(self, piece: Piece) -> bool:
        return piece.writes and piece.task is not None and piece.task.port.gone

    def _fail_stale(self, piece: Piece) -> None:
        if piece.task is not None:
            piece.task.port.has_waited()
        if piece.unknown:
            self._may_have_been_done([piece])
        self._part_done(piece, Outcome(Errno.EIO, GONE))

    def hold_orphans(self) -> None:
        """All is in order again. What lines have left unanswered goes out first."""
        self._may_have_been_done(self.pieces.hold_orphans())

    def _may_have_been_done(self, pieces: Iterable[Piece]) -> None:
        """Nobody will hear whether these were done. So what was there before bears no witness any more."""
        witnesses = self.trail.losses.witnesses
        for piece in pieces:
            if piece.writes and piece.unknown:
                witnesses.unknown(piece.ask.offset, piece.ask.end)
            elif piece.writes:
                witnesses.over([(piece.ask.offset, piece.ask.end)])

    def flush_lost(self, line: Line, deaths: int) -> None:
        """A FLUSH for which somebody waits was under way on a line that has died. `deaths`: how many lines of
        the bundle have died by now.
        """
        flushes = self.flushes
        if flushes.under_way is None:
            return  # it was one of a recovery that was broken off
        if not line.goes:
            flushes.lose(line, deaths)
        if flushes.losses < MOST_LOSSES:
            flushes.lost()
            return
        error = Outcome(Errno.EIO, f"{flushes.losses} connections in a row were lost over a FLUSH")
        for done in flushes.answered():
            done(error)

    def settle(self, piece: Piece, outcome: Outcome) -> None:
        """An orphan has its answer."""
        self.pieces.orphans.remove(piece)
        self._answered(piece, outcome)

    # --- Reads that another line may answer

    def _may_be_read_elsewhere(self, piece: Piece) -> bool:
        """Say whether another connection surely shows what this READ has to show. It does where all that was
        written is flushed.
        """
        ask = piece.ask
        if piece.task is None or ask.command is not Cmd.READ or not self.one_view:
            return False
        if self.unflushed.touches(ask.offset, ask.end):
            return False
        return not any(each.ask.overlaps(ask) for each in self.pieces.writes)

    def ask_spare_as_well(self, spare: Line) -> None:
        """Ask the spare line the READs that stalled lines have not answered. Whoever answers first is
        believed.
        """
        for piece in list(self.pieces.under_way):
            if piece.line is not None and piece.line.stalled and self._may_be_read_elsewhere(piece):
                self._ask_line(spare, piece)

    # --- What fails

    def _fail_unfinished(self, why: str, lost: list[Range]) -> None:
        """A part of what is lost belongs to commands that are not done yet. Whoever is told of the loss now,
        and hears later that they are done, would take them to be durable after the next FLUSH. So they fail.
        """
        pieces = self.pieces
        for piece in (*pieces.under_way, *pieces.orphans, *pieces.held):
            task, ask = piece.task, piece.ask
            if task is None or not piece.writes or ask.flags & CmdFlag.FUA:
                continue
            partly = task.written and touched(lost, task.ask.offset, task.ask.end)
            waits = piece.not_before == WHEN_FLUSHED  # it was answered, and its FLUSH was not
            if partly or waits:
                task.fail(Errno.EIO, why)

    def fail_all(self, why: str) -> None:
        """Nothing goes out any more. Everything fails, except what is under way."""
        gone = Outcome(Errno.EIO, why)
        self.trail.losses.witnesses.over(self._writing())
        for done in self.flushes.take_out():
            done(gone)
        for piece in self.pieces.drop_all():
            self._part_done(piece, gone)
        for task in self.ports.take_out():
            self.ports.answer(task, gone)

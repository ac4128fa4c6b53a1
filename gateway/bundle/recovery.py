"""What is done when lines have come or gone, step by step, while nothing else is under way. A recovery is a
generator, like a job: it yields asks, and is sent their outcomes. If a line that it uses dies, the recovery is
closed, and another one begins from the start. So whatever it does may be done twice. What it had written may
come late, too, so the next one begins when that can hardly come any more. What takes the server down fails
after the second time (`deadly`), and each step can go on without it.

0. Is it the same disk? Nothing must be read from another disk, and even less written to it. So before anything
else is done over a new line, what bears witness is read back over it (`gateway.losses.witnesses`). If it is
another disk, `AnotherDisk` is raised, and the bundle is over.

1. What was acknowledged, and is not flushed. If a line has been there all the time, a FLUSH over it makes all
of it durable (there are several lines only before servers that flush for all connections). If all lines have
died, the server may have started anew. Then `Survival.unflushed` says what is done. If the other side has said
that it has kept all (`Peer.kept`), nothing is, and what it has not answered is simply asked once more.

2. What was asked, and not answered. Reads need nothing: they are asked again. A write may have been done, or
may be done yet: the end of its connection does not stop it, only the end of the process that was asked does
(`Late`, which asks the link's `gateway.peer`). So it is read back. If it is there, it counts as done, and is
answered. But the same bytes may have been there before, and the write may still come. So until it can hardly
come any more, `late_write_seconds` after the loss, a fence keeps away whatever writes over it (`jobs.fences`),
for all sessions of the disk. If it is not there (or is zeros, which are everywhere, or was asked twice), it is
asked again after the same time, and whatever overlaps it waits until then. An old write that comes later still,
on top of something newer, can be made unlikely and not impossible. So both are logged.

3. New lines are used from now on. What was written over others before is flushed first.

Other bundles that mend may wait for what was found to be written here before they show anything to anybody, as
this bundle waits for them (`Bundle._may_be_read`). So this one has it `flushed` while it waits, if they ask for
that.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from hashlib import blake2b

from gateway.bundle.mending import Steps, Together
from gateway.bundle.pieces import Piece
from gateway.bundle.work import Work
from gateway.jobs.fences import still_coming
from gateway.losses.eras import Written, digest_of
from gateway.losses.rule import MOST_TRIES, Trail
from gateway.losses.survival import Doubt, Survival, Unanswered
from gateway.losses.witnesses import ANOTHER_DISK, Witness, is_another
from gateway.protocol.asks import Ask, Data, Outcome
from gateway.protocol.commands import is_loss, text_of_error
from gateway.protocol.export import longest_payload
from gateway.quirks import Dialect
from gateway.wire.constants import Cmd, CmdFlag, Errno, TransmissionFlag
from gateway.wire.limits import MIB

WINDOW = 16
"""Asks of a recovery that are under way together."""

READ_BYTES = MIB
"""How much is read back at a time: a multiple of the server's blocks, as all that is written is."""

MOST_READ_BACK_BYTES = 32 * MIB
"""Zeros over more than this are not looked for, but written again."""

FLUSH = Ask(Cmd.FLUSH, 0, 0)

RESTARTED = "the connection to the server was lost, and what it had not flushed may be gone"


OWN_DISK = (
    "the connection to the server was lost, and with it all that was written over it: this server has a disk"
    " for each connection (copy-on-write; quirk nbd-server-own-disks)"
)


class AnotherDisk(Exception):
    """A line leads to another disk than the one that was left; the text says how we know."""


_Question = Generator[Together, list[Outcome], bool]
"""Steps that find something out."""


def recovery(work: Work, *, restarted: bool, kept: bool = False) -> Steps:
    """Give the steps that put a bundle in order after its lines have changed. `restarted`: no line was there
    all the time. `kept`: whoever they led to has said that all is durable that was acknowledged, and that
    nothing else was begun. Raises `AnotherDisk`.
    """
    losses, trail = work.trail.losses, work.trail
    if kept and work.export.flags & TransmissionFlag.CAN_MULTI_CONN:
        # Every connection leads to it, by two promises; and what bears witness others may have written over.
        for line in work.lines.in_use:
            line.recognised = True
    yield from _recognised(work)
    if restarted:
        if kept:
            losses.is_durable(trail)
            for piece in work.pieces.orphans:
                piece.unknown = 0
        elif work.unflushed:
            yield from _doubted(work)
        losses.came_up(trail)
    if work.unflushed and not (restarted and work.survival.unflushed is Doubt.REPLAY):
        yield from flushed(work)
    yield from _unanswered(work)
    while work.lines.new:
        if work.unflushed:
            yield from flushed(work)
        work.lines.use_all()
        yield from _recognised(work)
        losses.came_up(trail)


def flushed(work: Work) -> Steps:
    """FLUSH over a line that was there all the time, or over one that leads to where all of it was found."""
    tries = 0
    while work.unflushed:  # also what counts as written while the FLUSH was under way
        [outcome] = yield [(FLUSH, 0)]
        tries += bool(outcome.error)
        if is_loss(outcome.error) or tries == MOST_TRIES:
            why = outcome.text or text_of_error(outcome.error)
            text = f"a FLUSH of the server has failed: {why}"
            # A server that is trusted has kept it; but what went over one line others need not show.
            said = is_loss(outcome.error) and work.lines.count > 1
            work.trail.losses.lose(work.trail, text, said=said)


# --- Whether it is the same disk


def looks(survival: Survival, trail: Trail) -> bool:
    """Say whether a link that takes the place of one with this trail has to lead to the same disk."""
    return survival.check_identity and trail.wrote


def has_left_its_disk(dialect: Dialect, survival: Survival, trail: Trail) -> bool:
    """Say whether a disk is gone for good with the last link to it: each connection may have a disk of its own,
    without what was written over the others.
    """
    return dialect.own_disks and looks(survival, trail)


def _recognised(work: Work) -> Steps:
    """Look whether the lines in use lead to the disk that was left, if we have not looked before."""
    for nth, line in enumerate(work.lines.in_use):
        if not line.recognised and looks(work.survival, work.trail):
            yield from _look_over(work, nth)
        line.recognised = True


def _look_over(work: Work, nth: int) -> Steps:
    losses, trail = work.trail.losses, work.trail
    unread = losses.to_look_for(trail)
    differ: set[Witness] = set()
    while unread:
        now, unread = unread[:WINDOW], unread[WINDOW:]
        outcomes = yield [(_ask_around(work, witness), nth) for witness in now]
        for witness, outcome in zip(now, outcomes, strict=True):
            at = witness.start - _ask_around(work, witness).offset
            found = outcome.data[at : at + witness.end - witness.start]
            if not (outcome.error or witness.says(found)):  # what cannot be read says nothing
                differ.add(witness)
            if work.deadly.is_deadly(_ask_around(work, witness)):
                _let_it_be(work, witness)
    still = losses.to_look_for(trail)  # others may have written meanwhile
    differ.intersection_update(still)
    multi_conn = work.export.flags & TransmissionFlag.CAN_MULTI_CONN
    alone = work.survival.sole_writer or not multi_conn
    if is_another(still, differ, strict=work.survival.through_us and bool(alone)):
        first = next(witness for witness in still if witness in differ)
        where = f"{first.end - first.start} bytes at offset {first.start}"
        raise AnotherDisk(
            f"{ANOTHER_DISK}: {len(differ)} of {len(still)} probes differ, such as {where}"
        )
    for witness in differ:
        work.say(
            "what was flushed is not there any more: others write to this disk, or it is an older one",
            offset=witness.start,
            bytes=witness.end - witness.start,
        )
        losses.witnesses.drop(witness)


def _let_it_be(work: Work, witness: Witness) -> None:
    """Look for this no more: it would cost as many lines again."""
    work.say(
        "the connection is lost each time that a place is read which was flushed: it is not looked at any more",
        offset=witness.start,
        bytes=witness.end - witness.start,
    )
    work.trail.losses.witnesses.drop(witness)


def _ask_around(work: Work, witness: Witness) -> Ask:
    """Give the READ of whole blocks that contains what we look for."""
    block = work.export.minimum
    start = witness.start // block * block
    end = min(-(-witness.end // block) * block, work.export.size)
    return Ask(Cmd.READ, start, end - start)


# --- What was acknowledged


def _doubted(work: Work) -> Steps:
    """Do what can be done about what may be lost. What is not lost after that is there, and can be flushed."""
    losses, trail = work.trail.losses, work.trail
    match work.survival.unflushed:
        case Doubt.STICKY:
            # It was lost when the last line was, unless others have proved that it is not.
            losses.lose(trail, RESTARTED)
        case Doubt.ASSUME_DURABLE:  # a FLUSH all the same: the server itself may say that it is not
            work.say("what the server had not flushed is taken to be durable")
        case Doubt.VERIFY:
            if (yield from _is_there(work)):
                work.say("what the server had not flushed is all there")
            else:
                losses.lose(trail, RESTARTED)
        case Doubt.REPLAY:
            if (yield from _replayed(work)):
                work.wrote_again(work.unflushed.bytes)
                work.say(
                    "what the server had not flushed was written again",
                    writes=len(work.unflushed.written),
                    bytes=work.unflushed.bytes,
                )
            else:
                losses.lose(trail, "what the server had not flushed cannot be written again")


def _is_there(work: Work) -> _Question:
    if not work.unflushed.is_whole:
        return False
    for written in work.unflushed.written:
        if not (yield from _holds(work, written)):
            return False
    return True


def _holds(work: Work, written: Written) -> _Question:
    """Say whether the disk has what was written. After a TRIM anything may be there."""
    ask = written.ask
    if ask.command is Cmd.TRIM:
        return True
    if ask.command is Cmd.WRITE_ZEROES:
        return (yield from _reads(work, ask, None))
    return written.digest is not None and (yield from _reads(work, ask, written.digest))


def _reads(work: Work, ask: Ask, digest: bytes | None) -> _Question:
    """Say whether a range has content of this digest (None: zeros)."""
    if ask.length > MOST_READ_BACK_BYTES:
        return False
    found = blake2b(digest_size=16)
    zeros = True
    for offset, length in _pieces(ask, min(READ_BYTES, longest_payload(work.export.block_sizes))):
        [outcome] = yield [(Ask(Cmd.READ, offset, length), None)]
        if outcome.error:
            return False
        found.update(outcome.data)
        zeros = zeros and _is_zeros(outcome.data)
    return zeros if digest is None else found.digest() == digest


def _is_zeros(data: Data) -> bool:
    return bytes(data).count(0) == len(data)


def _pieces(ask: Ask, most: int) -> Iterator[tuple[int, int]]:
    offset = ask.offset
    while offset < ask.end:
        length = min(most, ask.end - offset)
        yield offset, length
        offset += length


def _replayed(work: Work) -> _Question:
    """Write everything again, in order; what does not overlap goes together. If not all of it can be written,
    or it cannot be flushed before other lines are used, do nothing: newer writes would go over the other lines,
    and pass what was written over this one.
    """
    again = [_surely(written.ask) for written in work.unflushed.written]
    needed = [*again, FLUSH] if work.lines.count > 1 else again
    if not work.unflushed.is_whole or any(work.deadly.why_not(ask) for ask in needed):
        return False
    window: list[Ask] = []
    for ask in (*again, None):
        if ask is None or len(window) == WINDOW or any(ask.overlaps(each) for each in window):
            if window:
                outcomes = yield [(each, None) for each in window]
                if any(outcome.error for outcome in outcomes):
                    return False
            window = []
        if ask is not None:
            window.append(ask)
    return True


def _surely(ask: Ask) -> Ask:
    """Give it without FAST_ZERO: nobody waits for it to be fast any more, and "not fast" would be a wrong
    answer if it was done before.
    """
    return replace(ask, flags=ask.flags & ~CmdFlag.FAST_ZERO)


# --- What was not answered


def _unanswered(work: Work) -> Steps:
    again: list[Piece] = []
    found: list[Piece] = []
    multi_conn = work.export.flags & TransmissionFlag.CAN_MULTI_CONN
    for piece in [piece for piece in work.pieces.orphans if piece.writes and piece.unknown]:
        if work.survival.unknown_writes is Unanswered.EIO:
            text = "the connection to the server was lost before it answered"
            work.settle(piece, Outcome(Errno.EIO, text))
        elif (yield from _was_done(work, piece)):
            if still_coming(piece.lates, work.clock()):
                found.append(piece)
            if piece.ask.flags & CmdFlag.FUA or not multi_conn:
                # It is there. But it must be durable, or be covered by a FLUSH: without CAN_MULTI_CONN one over
                # the same connection. So it is asked again at once, which changes nothing.
                continue
            work.settle(piece, Outcome())
        else:
            piece.ask = _surely(piece.ask)
            again.append(piece)
    if found:
        _say_what_waits(
            work,
            "writes whose answers were lost are there; newer ones over them wait: the old may still come",
            found,
        )
    if again:
        _put_off(work, again)


def _was_done(work: Work, piece: Piece) -> _Question:
    """Say whether a write is where it should be.

    Zeros are everywhere: that they are there says nothing about who wrote them. Nor do we know which of two has
    come that were asked.
    """
    ask = piece.ask
    if ask.command is not Cmd.WRITE or piece.unknown > 1 or _is_zeros(ask.data):
        return False
    return (yield from _reads(work, ask, digest_of(ask.data)))


def _put_off(work: Work, pieces: list[Piece]) -> None:
    now = work.clock()
    for piece in pieces:
        if coming := still_coming(piece.lates, now):
            piece.not_before = max(late.until for late in coming)
    _say_what_waits(
        work,
        "writes whose answers were lost are issued again: the old ones may still come, and undo newer ones",
        pieces,
    )


def _say_what_waits(work: Work, text: str, pieces: list[Piece]) -> None:
    now = work.clock()
    coming = still_coming({late for piece in pieces for late in piece.lates}, now)
    work.say(
        text,
        writes=len(pieces),
        bytes=sum(piece.ask.length for piece in pieces),
        wait_seconds=round(max((late.until - now for late in coming), default=0.0), 1),
    )

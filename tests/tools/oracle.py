"""What the clients of one disk may read, may lose and have to be told. Pure.

Whoever runs a gateway tells the oracle what happens, from both sides: what the clients do and get (`Session`,
`Op`), and what befalls their servers and connections (`Trouble`). It raises `Broken` at the first answer that
breaks a promise. It knows nothing of the gateway. The clock counts events.

    stamps.py      what is written: each block says whose it is
    history.py     commands, sessions and troubles
    inversions.py  values that come back

What a READ may give
--------------------

Commands take time, from when their client begins to send them until it has the reply; an unanswered one never
ends. Two are in order if one has ended before the other begins, and concurrent otherwise. Each block of 512
bytes is a register, and says which write it is of (`tests.tools.stamps`). A READ may give a block what one of
its writes has left, unless another write to it lies wholly between the two. A write that has failed may come
at any time: it never ends.

What is durable
---------------

A write is *safe* once it is answered with FUA, or once a FLUSH is answered 0 that was sent after the write was
answered, by a session in its scope that was not told that it may be gone. *Scope*: all sessions of the disk,
where the server offers CAN_MULTI_CONN or all share one connection; otherwise (`scope_all` false) the session
that wrote it. What is safe is there, or something newer: on stable storage, at any moment.

What has to be told
-------------------

A *trouble* may have lost what was answered and not safe: a server was killed, a connection was cut (the server
lives, but the gateway cannot know, unless a FLUSH over another one that was there before proves it), a server
failed a FLUSH, or says nothing on some connections. *Telling* is a FLUSH that fails, with EIO or with what the
server said. An error that means "not tried" (`NOT_TRIED`) tells nothing: only whoever asked gets it, and
nothing becomes safe or lost by it.

- A session that was open when the trouble came, and in whose scope the write is, has no FLUSH answered 0, and
  reads nothing of what was there before, until it was told: a READ of what may be gone fails with EIO until
  then. A FLUSH that the gateway had read before it told tells as well.
- It is told again only if the trouble may have lost a write that was answered after it was last told.
- A session that came later has to be told if nobody was, and nobody is there any more who was open. It may be
  told if who was has vanished, and so may not have read it.
- Nobody fails for a trouble that may have lost nothing of his scope, nor by FUA; but a command that was under
  way when connections ended twice may (EIO): it may be what takes the server down. A command that is done in
  several steps (`Op.steps`), or that may wait in a policy (`Session.hooked`), may fail if the trouble came
  meanwhile.

Where sessions end with their connections (`survives` false), a server that goes in good order (`in_order`) may
have any command fail with ESHUTDOWN. Of a write nobody knows whether it was done then.

A session that the gateway ends (`Session.may_go`) is refused what comes from then on, by ESHUTDOWN, and is
given no other connection for one that has ended: then what is under way may fail (EIO).

Where errors are not allowed at all (`lossless`: the gateway writes again what is not safe, or the server loses
nothing) no trouble loses anything. There is one exception: connections that say nothing while nobody is there.
The gateway gives them up after a while, with what it could write again, so whoever comes next may be told.

What the outside cannot see
---------------------------

When the gateway finds a connection dead, reads a request or sends a reply. Whoever runs it can say that it is
at rest (`settled`): it has read what was sent, has found out what there was to find, and its replies have come.
Until then the oracle takes what is right for either order. So it is more exact the more often it is told.
While a connection only says nothing, what others wrote over it may have been lost without anybody's knowledge:
READs of others may give old data, but no FLUSH may say that it is safe. So it is where a connection was left
unproved and the server died while nobody had any.

Two things make it sharper: `stable`, which says what is on stable storage now, so that each FLUSH that claims
something is held to it at once; and `check_stable`, for those who can look only when the server is dead.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.tools.history import NEVER, Op, Session, Trouble
from tests.tools.inversions import Zones, inversions
from tests.tools.stamps import Broken, mixtures_of

MANY = 32
"""So many writes of one block are remembered before those are looked for that nobody may read any more."""

NOT_TRIED = frozenset(
    (
        errno.EPERM,
        errno.EINVAL,
        errno.ENOTSUP,
        errno.ENOMEM,
        errno.EOVERFLOW,
        errno.ESHUTDOWN,
    )
)
"""Errors of a FLUSH that mean that the server did not try: as NBD has them, which are Linux's."""

EIO = errno.EIO

MOST_ENDS = 2
"""Connections may end so often while a command is under way until it may fail for that."""

NOBODY: Mapping[int, int] = {}


@dataclass
class Oracle:
    """All that has happened to a disk of so many `blocks`, all zeros in the beginning."""

    blocks: int
    scope_all: bool = True
    """What one session has written all others see, and their FLUSHes cover it. If not, each is held to its own
    writes."""
    lossless: bool = False
    """No trouble may be noticed by any client."""
    grain: int = 1
    """Blocks that the server reads and writes together: what is lost of one of them may be lost of all."""
    doubts: bool = False
    """After a trouble it takes the server's answers to find out what is lost (`unflushed = "verify"`): as
    long as anything is under way, that may be so."""
    survives: bool = True
    """Sessions survive their connections."""
    shared: bool = False
    """All sessions share their connections."""
    bundled: bool = False
    """A session has several connections that act as one."""
    strict: bool = False
    """One write that was safe and is gone is enough for the gateway to know that it is another disk."""
    in_fleet: bool = False
    """There are two gateways, one behind the other, and each tells what it has lost itself: what one has told
    the other may tell again, if there was a trouble since."""
    stable: Callable[[int], int] | None = None
    """Gives the stamp that a block has on stable storage now."""
    now: int = 0
    losses: list[Trouble] = field(default_factory=list)
    """Servers that were killed."""
    troubles: list[Trouble] = field(default_factory=list)
    """All, these included."""
    sessions: list[Session] = field(default_factory=list)
    tellings: list[Op] = field(default_factory=list)
    """FLUSHes that have told, or that may have: those that are not answered."""
    _silences: list[Trouble] = field(default_factory=list)
    """Where nothing else may lose anything: those that may, if nobody is there."""
    _ends: list[Trouble] = field(default_factory=list)
    """Of connections, that nobody has asked for."""
    _doubted_since: int = NEVER
    """Since when nothing was asked that has succeeded, where what is safe to all has gone before."""
    _sessions_end: bool = False
    """The gateway ends some in good order."""
    _failures: list[tuple[int, int]] = field(default_factory=list)
    """When the server has failed a FLUSH, and with which error."""
    _writes: list[list[Op]] = field(default_factory=list)
    _zones: list[Zones] = field(default_factory=list)
    """Of each block."""
    _unsafe: dict[Op, None] = field(default_factory=dict)
    """Writes that are not, and that are remembered."""
    _by_stamp: dict[int, Op] = field(default_factory=dict)
    _under_way: dict[Op, None] = field(default_factory=dict)
    _last_stamp: int = 0

    def __post_init__(self) -> None:
        first = Op(None, "write", 0, self.blocks, began=-2, ended=-1, safe=-1)
        self._writes = [[first] for _ in range(self.blocks)]
        self._zones = [{} for _ in range(self.blocks)]

    # --- What befalls the disk

    def session(self, name: str, *, hooked: bool = False) -> Session:
        """Say that a client has begun to connect; call its `open` when it may go on."""
        self._count_silences()
        now = self._tick()
        session = Session(self, name, now, now, hooked=hooked)
        session.may_go = self._sessions_end
        if self.shared:  # with the connections of those who may end
            session.may_end = self._doubted_since < NEVER
        self.sessions.append(session)
        return session

    def lose(self, *, in_order: bool = False) -> Trouble:
        """Say that a server is about to be killed, `in_order`: that it goes first, and says so; tell the loss
        `dead` when it is dead.
        """
        loss = self._begin_trouble("kill", None)
        loss.in_order = self._ends[-1].in_order = in_order
        self.losses.append(loss)
        return loss

    def dead(self, loss: Trouble) -> None:
        """Say that the killed server carries out nothing any more."""
        loss.ended = self._tick()
        for end in self._ends:
            if end.began == loss.began:
                end.ended = loss.ended

    def cut(
        self,
        connections: Collection[int] | None = None,
        witnesses: Mapping[int, int] = NOBODY,
    ) -> Trouble:
        """Say that connections have ended, and not by the gateway or in good order; the server lives.

        Without `connections` it may be all: the home of the disk has died while it had none, and whoever asked
        it knows no more of what it had made safe.

        `witnesses` are others, and since when they are used: what was written over those that are cut is not
        lost as long as a FLUSH over one can prove that it is there, which takes one that was there before.
        """
        cut = self._begin_trouble("cut", connections, witnesses if self.scope_all else NOBODY)
        cut.ended = self._tick()
        return cut

    def rewind(self, before: Sequence[int], after: Sequence[int]) -> int:
        """Say that the server, which is killed, has come back as an older state of itself: with the stamps of
        each block on stable storage. Give how many writes are gone, of which some is.

        Sessions that relied on these may end, for a FLUSH of the gateway's own may have made them safe. One
        that has surely noticed has to; no others may.
        """
        changed = [number for number, stamp in enumerate(after) if stamp != before[number]]
        gone = {
            write: None
            for number in changed
            for write in self._writes[number]  # whoever has heard of it: the gateway has
            if write.session and write.stamp == before[number] != 0
        }
        for session in self.sessions:
            relied_on = [write for write in gone if self._in_scope(write, session)]
            # One that went over several connections may have been looked for in as many places.
            places = sum(1 + (self.bundled and write.count > 1) for write in relied_on)
            if places > (not self.strict):
                session.may_end = True
                self._doubted_since = self.now
            alone = session.alone
            if (
                alone
                and self.strict
                and session.closed == NEVER
                and alone in gone
                and alone.safe < NEVER
            ):
                session.missing = alone
        for session in self.sessions:
            session.alone = None
        now = self._tick()
        for number in changed:
            # Whatever was there before is not.
            ended = self._tick()
            was = Op(None, "write", number, 1, after[number], began=now, ended=ended, safe=ended)
            was.remembered = 1
            self._writes[number].append(was)
            for write in self._writes[number]:
                write.gone.pop(number, None)
        return len(gone)

    def operated(self) -> None:
        """Say that an operator has had connections made anew: that it is the same disk there is his word."""
        for session in self.sessions:
            session.alone = session.missing = None

    def ends_sessions(self) -> None:
        """Say that the gateway may end sessions in good order from now on: what is under way is answered, what
        comes behind it is refused (ESHUTDOWN), and then the connection is closed.
        """
        self._sessions_end = True
        for session in self.sessions:
            session.may_go = session.may_go or session.closed == NEVER

    def sessions_go_on(self) -> None:
        """Say that it ends none any more: whoever is there may not be ended."""
        self._sessions_end = False
        for session in self.sessions:
            session.may_go = session.may_go and session.closed < NEVER

    def closed(self, connection: int) -> None:
        """Say that the gateway has ended a connection: it proves nothing any more."""
        self._prove_nothing(connection)

    def left(self, connection: int) -> None:
        """Say that the gateway has ended a connection over which something was written that it has not
        flushed, for it could not: half a WRITE stood in it, or the server would not try. Whether that is
        there nobody can tell any more by a connection that was made later.
        """
        if self.scope_all:
            self._begin_trouble("left", {connection}).ended = self._tick()

    def silence(self, connections: Collection[int] | None = None) -> Trouble:
        """Say that from now on these connections stay open and nothing is answered; `dead` says that they have
        ended, or are answered again.
        """
        silence = self._begin_trouble("silence", connections)
        silence.beside = self.bundled  # a FLUSH goes over one of them, for all
        return silence

    def flush_failed(self, error: int, connections: Collection[int] | None = None) -> None:
        """Say that the server fails a FLUSH over one of these connections, now."""
        self._failures.append((self._tick(), error))
        self._prove_nothing()
        if error not in NOT_TRIED:
            self._begin_trouble("flush", connections).ended = self._tick()

    def carried(self, stamps: Iterable[int], connection: int) -> None:
        """Say that what these stamps are of went over a connection."""
        for stamp in stamps:
            if op := self._by_stamp.get(stamp):
                op.connections = (op.connections or set()) | {connection}

    def noticed(self) -> None:
        """Say that the gateway has found whichever connections have ended by now."""
        now = self._tick()
        for end in self._ends:
            if not end.in_order or end.ended < NEVER:  # a server that goes has its connections yet
                end.known = min(end.known, now)

    def settled(self, *, proves: bool = False) -> None:
        """Say that the gateway is at rest: see above. Sessions that have closed are over. `proves`: it may wait
        for a FLUSH to find out what is lost.
        """
        self.noticed()
        now = self._tick()
        for op in self._under_way:
            op.read = min(op.read, now)
        for trouble in self.troubles:
            if trouble.ended < now and not proves and not (self.doubts and self._under_way):
                trouble.known = min(trouble.known, now)
        for session in self.sessions:
            if session.closed < now:
                session.gone = min(session.gone, now)

    @property
    def is_written_to(self) -> bool:
        """Some client has a write under way."""
        return any(op.kind == "write" for op in self._under_way)

    def may_be_read(self, number: int, by: Session | None = None) -> set[int]:
        """Give the stamps that a READ of a block may give that is sent and answered now."""
        look = Op(by, "read", number, 1, began=self._tick())
        look.ended = self._tick()
        return {write.stamp for write in self._readable(look, number)}

    def check_stable(
        self, stamps: Sequence[int], what: str = "stable storage", *, gone: bool = False
    ) -> int:
        """Hold what a crash has left against what is safe. Give how many blocks have lost something that was
        acknowledged; raises `Broken` where that was safe.

        `gone`: nobody brings that back, so from now on a FLUSH may not claim it.
        """
        lost = 0
        for number, stamp in enumerate(stamps):
            newest = self._certain(number, lambda op: op.safe < NEVER)
            allowed = self._left_by(number, newest)
            if stamp not in allowed:
                raise Broken(self._said(what, number, stamp, allowed, newest))
            newest = self._certain(number, lambda op: True)
            if stamp not in self._left_by(number, newest):
                lost += 1
                if gone:
                    self._lose(number, stamp)
        return lost

    def _lose(self, number: int, stamp: int) -> None:
        """Writes to a block that have come wholly after what was left there are gone."""
        left = [write.ended for write in self._writes[number] if write.stamp == stamp]
        for write in self._certain(number, lambda op: op.began > max(left)):
            # One that was answered after a loss may have gone with that, and nobody has looked since.
            doubtful = any(write.ended > each.began for each in write.troubles)
            by = None if doubtful or not self.losses else self.losses[-1]
            write.gone.setdefault(number, by)

    def check_final(self, stamps: Sequence[int], *, lossless: bool = False) -> None:
        """Hold the disk against everything, when it is over: a READ of it all, by somebody who has come last.
        `lossless`: what was acknowledged has to be there, whatever was told. Raises `Broken`.
        """
        now = self._tick()
        look = Op(Session(self, "the end", now, now), "read", began=now, ended=self._tick())
        for number, stamp in enumerate(stamps):
            self._check(look, number, stamp, "the disk", lossless=lossless)

    def check_answered(self) -> None:
        """Raise `Broken` if a command of a session that is there still waits."""
        if self._under_way:
            raise Broken(f"not answered: {'; '.join(map(str, self._under_way))}")

    def inversions(self) -> list[str]:
        """Give the blocks in which no order of all commands explains what was read, and why; without losses."""
        return inversions(self._zones)

    # --- Events

    def _tick(self) -> int:
        self.now += 1
        return self.now

    def _begin_trouble(
        self,
        what: str,
        connections: Collection[int] | None,
        witnesses: Mapping[int, int] = NOBODY,
    ) -> Trouble:
        over = None if connections is None else frozenset(connections)
        trouble = Trouble(what, self._tick(), connections=over)
        if what in ("kill", "cut"):
            self._ends.append(Trouble(what, trouble.began))
        if self.lossless:
            if what == "silence":
                self._silences.append(trouble)
            return trouble
        self._may_lose(trouble, witnesses)
        return trouble

    def _count_silences(self) -> None:
        """Somebody comes: what was silent while nobody was there may have lost something."""
        alone_since = max((each.closed for each in self.sessions), default=NEVER)
        if alone_since < NEVER:
            for silence in self._silences:
                if alone_since < silence.ended:
                    left = Trouble("silence", self._tick(), connections=silence.connections)
                    left.ended, left.beside = self.now, self.bundled
                    self._may_lose(left)
            self._silences = [each for each in self._silences if each.ended == NEVER]

    def _may_lose(self, trouble: Trouble, witnesses: Mapping[int, int] = NOBODY) -> None:
        """What is not safe may be lost from now on."""
        self.troubles.append(trouble)
        for write in self._unsafe:
            under_way = write.ended == NEVER
            there = [number for number, since in witnesses.items() if since < write.began]
            # What was found again, or done again, only a FLUSH over that connection covers.
            if there and not under_way and not write.found and write.connections is not None:
                write.connections.update(there)
                write.proven.append((trouble, frozenset(there)))
            else:
                write.troubles.append(trouble)
            write.wandered = write.wandered or under_way
            write.found = write.found or (under_way and write.met(trouble))

    def _prove_nothing(self, connection: int | None = None) -> None:
        """What had to be proven over a connection, or any, may be lost."""
        for write in self._unsafe:
            for proof in list(write.proven):
                trouble, witnesses = proof
                if connection is None or connection in witnesses:
                    write.proven.remove(proof)
                    write.troubles.append(trouble)

    def _begin(self, op: Op) -> Op:
        op.began = self._tick()
        op.alone = not self._under_way
        for other in self._under_way:
            other.alone = False
        self._under_way[op] = None
        if op.kind == "flush":
            self.tellings.append(op)
        return op

    def _begin_write(self, op: Op, zeros: bool) -> Op:
        self._last_stamp += 1
        stamp = op.stamp = 0 if zeros else self._last_stamp
        self._begin(op)
        op.remembered = op.count
        # A FLUSH that has failed and is not heard of may have lost, for all that the gateway knows, also this.
        op.troubles = [
            each
            for each in self.troubles
            if each.ended == NEVER or (each.what == "flush" and each.known == NEVER)
        ]
        self._unsafe[op] = None
        if stamp:
            self._by_stamp[stamp] = op
        for session in self.sessions:
            alone = session.alone
            if alone and (alone.safe == NEVER or not {*alone.blocks}.isdisjoint(op.blocks)):
                session.alone = None
            missing = session.missing
            if missing and not {*missing.blocks}.isdisjoint(op.blocks):
                session.missing = None  # it may not have been looked for before
        for number in op.blocks:
            self._writes[number].append(op)
            if len(self._writes[number]) > MANY:
                self._forget(number)
        return op

    def _end(self, op: Op, error: int, data: bytes | bytearray) -> None:
        now = self._tick()
        self._under_way.pop(op, None)
        op.error = error
        if error == EIO and op.session is not None and op.session.may_end:
            # With the session; but if that goes on, a FLUSH may have told something.
            op.ended = now
            if op.kind == "write":
                op.ended, op.failed = NEVER, now
                self._unsafe.pop(op, None)
            return
        if not error and op.began > self._doubted_since:
            self._doubted_since = NEVER  # it has been found out
        self._note_alone(op)
        if op.kind == "write":
            self._end_write(op, now)
        elif op.kind == "flush":
            op.ended = now
            self._end_flush(op)
        else:
            op.ended = now
            self._end_read(op, data)

    def _note_alone(self, op: Op) -> None:
        session = op.session
        assert session is not None
        if op.error or not op.alone or op.in_steps or self.grain > 1:
            return
        if op.kind == "write" and op.stamp and not op.fua:
            # What others have written there, and not flushed, takes away what it says.
            beside = [each for each in self._unsafe if each is not op]
            if all({*each.blocks}.isdisjoint(op.blocks) for each in beside):
                session.alone = op
        elif op.kind == "flush" and session.alone and session.alone.troubles:
            session.alone = None

    def _end_write(self, op: Op, now: int) -> None:
        if op.error:
            # It may take effect at any time: it never ends, and was never acknowledged.
            if not op.fua:  # else its FLUSH may have failed alone, and the gateway has it in mind
                self._unsafe.pop(op, None)
            self._check_failed_write(op, now)
            return
        op.ended = now
        if op.stamp:
            for number in op.blocks:
                self._note(op, number, op.stamp)
        if op.fua:
            self._is_safe(op, op)
            del self._unsafe[op]

    def _end_flush(self, op: Op) -> None:
        if op.error:
            self._check_failed_flush(op)
        else:
            self._make_safe(op)
        if not op.error or op.error in NOT_TRIED:
            self.tellings.remove(op)

    def _end_read(self, op: Op, data: bytes | bytearray) -> None:
        if op.error:
            if self._may_fail_anyhow(op):
                return
            if op.error != EIO or not (self._interrupted(op) or self._may_be_gone(op)):
                raise Broken(f"{op} failed with error {op.error}, and {NOTHING}")
            return
        found = mixtures_of(data, op.start)
        if len(found) != op.count:
            raise Broken(f"{op} gave {len(data)} bytes")
        for number, stamps in enumerate(found, start=op.start):
            for stamp in stamps:
                self._check(op, number, stamp, str(op))
            if len(stamps) == 1:
                self._note(op, number, *stamps)

    def _note(self, op: Op, number: int, stamp: int) -> None:
        if stamp:  # zeros may be of any write of zeros
            end, begin = self._zones[number].get(stamp, (NEVER, -NEVER))
            self._zones[number][stamp] = min(end, op.ended), max(begin, op.began)

    # --- What is durable

    def _make_safe(self, flush: Op) -> None:
        """What was acknowledged before a FLUSH was sent that has succeeded."""
        for write in list(self._unsafe):
            if write.ended < flush.began and not self._may_know(write, flush):
                self._is_safe(write, flush)
                del self._unsafe[write]

    def _is_safe(self, write: Op, by: Op) -> None:
        for number in write.gone:
            # What is gone may have been written again.
            again = self._certain(number, lambda op: op.began > write.ended)
            if all(number in op.gone for op in again):
                raise Broken(f"{by} succeeded, but block {number} of {write} was lost")
        if self.stable is not None and write.certain:
            for number in write.blocks:
                stamp = self.stable(number)
                allowed = self._left_by(number, [write])
                if write in self._writes[number] and stamp not in allowed:
                    raise Broken(
                        f"{by} succeeded, but block {number} of {write} is not on stable storage: there is "
                        f"stamp {stamp}, not one of {sorted(allowed)}"
                    )
        write.safe = by.ended

    # --- What may be read

    def _check(
        self, look: Op, number: int, stamp: int, what: str, *, lossless: bool = False
    ) -> None:
        readable = self._readable(look, number, lossless=lossless)
        if not any(write.stamp == stamp for write in readable):
            newest = self._certain(number, lambda op: self._holds(op, look, lossless))
            raise Broken(
                self._said(what, number, stamp, {write.stamp for write in readable}, newest)
            )

    def _said(
        self, what: str, number: int, stamp: int, allowed: set[int], newest: Sequence[Op]
    ) -> str:
        wrote = [write for write in self._writes[number] if write.stamp == stamp]
        last = max(newest, key=lambda write: write.ended, default=None)
        return (
            f"{what}: block {number} has stamp {stamp} "
            f"({wrote[-1] if wrote else 'of no write that could be there'}), not one of {sorted(allowed)}; "
            f"there was {last}{' (safe)' if last and last.safe < NEVER else ''}, and it is now {self.now}"
        )

    def _readable(self, look: Op, number: int, *, lossless: bool = False) -> list[Op]:
        """Give the writes that have left what a READ may give of a block."""
        holding = self._certain(number, lambda op: self._holds(op, look, lossless))
        return [
            write
            for write in self._writes[number]
            if write.began < look.ended
            and not any(
                write.ended < other.began and self._is_seen(write, other, look) for other in holding
            )
        ]

    def _holds(self, write: Op, look: Op, lossless: bool) -> bool:
        """Say whether a write has ended before a READ, and is still there as far as the reader may know."""
        if write.ended >= look.began:
            return False
        if write.safe < NEVER or lossless:
            return True
        if look.session is not None and (
            self._is_in_silence(write, look) or self._is_gone_unseen(write, look.session)
        ):
            return False
        return look.session is None or not self._may_know(write, look)

    def _is_in_silence(self, write: Op, look: Op) -> bool:
        return write.session is not look.session and any(
            each.what == "silence" and look.began < each.known and write.met(each)
            for each in write.suspects()
        )

    def _is_gone_unseen(self, write: Op, session: Session) -> bool:
        """Say whether a session came when nobody had a connection who could have seen the server die: a FLUSH
        has to tell, and until it is asked nobody knows.
        """
        suspects = write.suspects()
        return any(
            left.began < kill.began < session.opened
            and not any(each.opened < kill.began < each.gone for each in self.sessions)
            for left in suspects
            for kill in suspects
            if (left.what, kill.what) == ("left", "kill")
        )

    def _is_seen(self, write: Op, later: Op, look: Op) -> bool:
        if self.scope_all or look.session is None:
            return True
        return later.session is look.session and write.session in (None, look.session)

    def _certain(self, number: int, when: Callable[[Op], bool]) -> list[Op]:
        return [
            write
            for write in self._writes[number]
            if write.certain and write.ended < NEVER and when(write)
        ]

    def _left_by(self, number: int, newest: Iterable[Op]) -> set[int]:
        began = max((write.began for write in newest), default=-NEVER)
        return {write.stamp for write in self._writes[number] if write.ended >= began}

    # --- What may have been told

    def _may_know(self, write: Op, asked: Op) -> bool:
        """Say whether whoever sends `asked` may have been told that a write is gone, or need not be told."""
        session = asked.session
        assert session is not None
        if not self._in_scope(write, session):
            return True
        suspects = [each for each in write.suspects() if each.began < asked.ended]
        if not suspects:
            return False
        if any(
            telling.session is session and self._had_told(telling, write, asked)
            for telling in self.tellings
        ):
            return True
        # Whichever of them has taken it: what the gateway took for lost at the first, it told of then.
        return any(self._is_left_to_others(write, each, asked) for each in suspects)

    def _in_scope(self, write: Op, session: Session) -> bool:
        return self.scope_all or write.session in (None, session)

    def _had_told(self, telling: Op, write: Op, asked: Op) -> bool:
        """Say whether a FLUSH of the same session may have told of a write, for what `asked` is answered. Its
        replies come in the order in which they were sent.
        """
        if telling is asked or not telling.error or telling.ended >= asked.ended:
            return False
        if asked.kind == "flush" and not telling.ended < asked.began:
            # It was read before that was told, which so told nothing of it.
            together = telling.packet and telling.packet == asked.packet
            if together or asked.read < telling.ended:
                return False
        return (write.ended if write.session is asked.session else write.began) < telling.ended

    def _is_left_to_others(self, write: Op, trouble: Trouble, asked: Op) -> bool:
        """Say whether a session that may have come after a trouble may leave it to others."""
        session = asked.session
        assert session is not None
        if session.ready <= trouble.began:
            return False
        told = any(
            telling.session is not session
            and telling.began < asked.ended
            and write.began < _until(telling)
            # Who was told before, and is still there, knows that it may be gone.
            and trouble.began < max(_until(telling), telling.session.gone)
            for telling in self.tellings
            if telling.session
        )
        return told or any(
            other is not session and other.opened < trouble.ended and other.gone > session.opened
            for other in self.sessions
        )

    # --- What may fail

    def _check_failed_flush(self, flush: Op) -> None:
        said = self._said_since(flush)
        assert flush.session is not None
        if self._was_said(flush):
            return
        if self._may_fail_anyhow(flush):
            if self.in_fleet and flush.error == EIO:
                flush.session.failed_at_home = self.now
            return
        if flush.error in NOT_TRIED:
            raise Broken(f"{flush} failed with error {flush.error}, which the server has not said")
        if flush.error == EIO and (
            said - NOT_TRIED
            or self._interrupted(flush)
            or self._heard_of_a_failure(flush)
            or flush.session.failed_at_home > flush.began
            or self._failed_unasked(flush)
            or any(self._owed(write, flush) for write in self._remembered())
        ):
            return
        raise Broken(f"{flush} failed with error {flush.error}, and {NOTHING}")

    def _may_fail_anyhow(self, op: Op) -> bool:
        """Say whether a command may fail as it does though it has lost nothing: over it connections have ended
        twice, or its server goes, or the gateway ends its session.
        """
        assert op.session is not None
        if op.error == errno.ESHUTDOWN and op.session.may_go:
            return True
        if op.error == errno.ESHUTDOWN and not self.survives:
            return any(
                each.in_order and each.began < op.ended and op.began < each.ended
                for each in self.losses
            )
        ends = [each for each in self._ends if each.began < op.ended]
        if op.session.may_go:
            return op.error == EIO and any(op.session.opened < each.began for each in ends)
        met = sum(op.began < each.known for each in ends)
        return op.error == EIO and met >= MOST_ENDS

    def _failed_unasked(self, flush: Op) -> bool:
        """Say whether a FLUSH may have failed that the gateway has asked a home by itself, after the death of
        the home before: it may have met ends as any command may, and is for all that its session has written.
        """
        session = flush.session
        assert session is not None
        told = [
            e.began for e in self.tellings if e.session is session and e.error and e is not flush
        ]
        last_told = max(told, default=session.opened)
        return self.in_fleet and sum(last_told < end.began for end in self._ends) > MOST_ENDS

    def _was_said(self, op: Op) -> bool:
        """Say whether the server has failed a FLUSH with an error like this since a command began."""
        said = self._said_since(op)
        return op.error in said or (op.error in NOT_TRIED and bool(said & NOT_TRIED))

    def _heard_of_a_failure(self, flush: Op) -> bool:
        """Say whether the server has failed another session's FLUSH: what it has lost only it knows."""
        session = flush.session
        assert session is not None
        told = [each for each in self.tellings if each.session is session and each.error]
        return self.scope_all and any(
            trouble.what == "flush"
            and session.opened < trouble.began
            and not any(each is not flush and trouble.began < each.ended for each in told)
            for trouble in self.troubles
        )

    def _said_since(self, op: Op) -> set[int]:
        """Give with which errors the server has failed FLUSHes since a command began."""
        return {error for at, error in self._failures if at > op.began}

    def _check_failed_write(self, op: Op, now: int) -> None:
        op.ended = now  # for what is asked here
        said = self._said_since(op)
        fails = (
            # The server may have done it before the FLUSH that has failed. And FUA may be done by a FLUSH.
            bool(said - NOT_TRIED)
            or any(each.what == "flush" and op.began < each.known for each in self.troubles)
            or self._interrupted(op)
            or (self.grain > 1 and self._may_be_gone(op))
            if op.error == EIO
            else op.fua and self._was_said(op)
        )
        fails = fails or self._may_fail_anyhow(op)
        op.ended, op.failed = NEVER, now
        if not fails:
            raise Broken(f"{op} failed with error {op.error}")

    def _interrupted(self, op: Op) -> bool:
        """Say whether a command that is done in several steps may have met with trouble between them, or with
        the end of the doubt that came of it.
        """
        assert op.session is not None
        return op.in_steps and any(
            (self.doubts or op.began < each.known or self._is_acknowledged_late(each, op))
            and each.began < op.ended
            for each in self.troubles
        )

    def _is_acknowledged_late(self, trouble: Trouble, op: Op) -> bool:
        """Say whether something that was under way when a FLUSH failed was still so when another command began:
        it is lost when it is acknowledged.
        """
        return any(
            _done_before(write, trouble) and op.began < write.over for write in self._remembered()
        )

    def _may_be_gone(self, op: Op) -> bool:
        """Say whether what is read for a command may be gone, and its client not know it."""
        start = op.start // self.grain * self.grain
        end = -(-(op.start + op.count) // self.grain) * self.grain
        return any(
            self._owed(write, op)
            for number in range(start, min(end, self.blocks))
            for write in self._writes[number]
        )

    def _remembered(self) -> list[Op]:
        return list({write: None for writes in self._writes for write in writes})

    def _owed(self, write: Op, asked: Op) -> bool:
        """Say whether whoever sends `asked` may have to be told that a write may be gone."""
        session = asked.session
        if session is None or write.session is None or not self._in_scope(write, session):
            return False
        return any(
            trouble.began < asked.ended and not self._is_settled(write, trouble, asked)
            for trouble in write.suspects()
        )

    def _is_settled(self, write: Op, trouble: Trouble, asked: Op) -> bool:
        """Say whether whoever sends `asked` need surely not be told of a write (any more)."""
        session = asked.session
        assert session is not None
        for telling in self.tellings:
            if telling is asked or not telling.error:
                continue
            if self.in_fleet and telling.began < trouble.began:
                continue  # the one behind need not have heard of it
            if telling.session is session:
                # Of what is under way when a FLUSH fails, and that FLUSH, either may be answered first.
                own = write.session is session and not _done_before(write, trouble)
                answered = write.over < (telling.ended if own else telling.began)
                if answered and telling.ended < asked.began:
                    return True
            elif telling.session is not None and telling.session.vanished:
                continue
            elif (
                trouble.ended < min(session.opened, telling.began)
                and telling.ended < session.opened
                and write.over < telling.began
            ):
                return True
        return False

    # --- To stay small

    def _forget(self, number: int) -> None:
        """Drop writes that nothing may read, now or later: a safe one came wholly after."""
        oldest = min((op.began for op in self._under_way if op.kind != "write"), default=self.now)
        newest = max(
            (
                write.began
                for write in self._writes[number]
                if write.safe < NEVER and write.certain and write.ended < oldest
            ),
            default=-NEVER,
        )
        for write in self._writes[number]:
            if write.ended < newest:
                write.remembered -= 1
                if not write.remembered:
                    self._unsafe.pop(write, None)
                    self._by_stamp.pop(write.stamp, None)
        self._writes[number] = [write for write in self._writes[number] if write.ended >= newest]


def _done_before(write: Op, trouble: Trouble) -> bool:
    """Say whether a write was under way when a FLUSH failed: it may have been done, and lost, before."""
    return trouble.what == "flush" and write.began < trouble.known and trouble.began < write.over


NOTHING = "nothing was lost that was not told"


def _until(telling: Op) -> int:
    """Give when a FLUSH that may have told was surely answered, if to nobody any more."""
    assert telling.session is not None
    return min(telling.ended, telling.session.gone)

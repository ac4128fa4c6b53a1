"""A small world of servers that forget, the rule said once more, and every order in which things can happen.

Theory
------

The *truth* is a disk and the server processes that have run on it. A process keeps what is written in memory,
until a FLUSH has it put on the disk: with CAN_MULTI_CONN all that the process has, without it what came over
the same link. What is in memory is gone when the process is killed. A link leads to the process that ran when
it was made. A reply that a process has given waits in the link's socket until it is read, if need be for longer
than the process lives. A FLUSH that fails loses whatever the process has in memory when that is heard, replied
to or not: what a server forgets before, and says too late, no client can know.

The *judge* (`losses_judge`) hears the same events as `Losses`, in their order, and says the rule again: what
each FLUSH has to answer, and which READs fail.

The `World` holds `Losses` against both, at every answer:

a) A FLUSH is answered 0 only if every write that its session relies on, and that was answered before it was
   read, is on the disk; or the session was told, by an EIO after that was answered; or it opened the disk after
   somebody had been told.
b) Each FLUSH gets the very error that the judge gives, and a READ fails exactly where it says.
c) When all links answer, die, or time passes, every FLUSH is settled, after a bounded number of proofs.
d) When all has been told and everybody is gone, nothing is kept.
e) Unless something is in question, a READ over a link that lives fails, or shows what was answered over a link
   that has died since; but for who knows, as in a).

The events:

    open S         a session opens the disk             end S     it ends
    up S           a link for it is made                deaf S    its client hears nothing any more
    miss S         the same, and it may not have heard what it was answered since a FLUSH of it was read
    ask L          a WRITE is sent over a link, and carried out
    answer L       its reply is read
    read S         a FLUSH of its client is read        send F E  it is sent; it will answer 0, EIO or ENOMEM
    reply L        a reply to a FLUSH is read, the client's or a proof's
    fail L E       how the next proof over this link will answer
    dead L D       a link is found dead; D: what it leaves is in doubt, not lost
    left L         the gateway closes a link            hole L    it will never say anything again
    resolve L      what is in doubt has been looked for give up L nobody will
    kill           the process dies                     start     the next one runs
    turn           what is to happen `soon` happens     late      what is to happen `later` happens

`python -m tests.losses.model --depth 12` tries every order to that depth; `--seeds 100000` as many random
schedules. Both print what they find as a list of events, which `replay` runs again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from gateway.losses.records import Fate
from gateway.losses.rule import Debt, Flush, Flushed, Losses, Trail
from gateway.wire.constants import Errno
from tests.losses.judge import Judge, is_loss

Event = tuple[str, *tuple[int, ...]]

PLACE = 10
"""Bytes of a write: each has one of a few places."""


class Wrong(AssertionError):
    """`Losses` has broken the rule."""


# --- The truth


class Process:
    """A server that runs, or has run."""

    def __init__(self) -> None:
        self.memory: dict[int, int] = {}
        """Writes that are not on the disk -> the link over which they came."""
        self.runs = True


class Link:
    """One connection to a server, and what is on its way over it."""

    def __init__(self, number: int, session: int, process: Process, trail: Trail) -> None:
        self.number = number
        self.session = session
        self.process = process
        self.trail = trail
        self.state = "up"
        self.hole = False
        self.fails = 0
        """How the next proof will answer."""
        self.hopes = False
        """Another link was proving what it has left."""
        self.writes: list[int] = []
        """Those whose replies are to be read."""
        self.flushes: list[tuple[int, int, int, Flushed | None]] = []
        """(which, its error; -1 if there will be no reply, when it was sent, who hears of it)."""

    @property
    def lives(self) -> bool:
        """Whatever is sent over it arrives."""
        return self.process.runs and not self.hole


@dataclass(frozen=True)
class Bounds:
    """How often each thing happens in a schedule."""

    sessions: int = 3
    links: int = 4
    writes: int = 2
    places: int = 2
    flushes: int = 2
    failing: int = 1
    deaths: int = 2
    lefts: int = 1
    doubts: int = 1
    ends: int = 1
    kills: int = 1
    holes: int = 1
    lates: int = 3
    deaf: int = 0
    misses: int = 0


MOST_PROOFS = 6
"""For each link and each FLUSH: a FLUSH of what another link has written, when one was under way that did not
do, and again when one of both has died."""


class World:
    """`Losses`, the truth and the judge."""

    def __init__(
        self,
        bounds: Bounds,
        *,
        shared: bool = True,
        alone: bool = False,
        soon: str = "now",
        make: Callable[..., Losses] = Losses,
        judged: bool = True,
    ) -> None:
        self.bounds = bounds
        self.shared = shared
        self.speaks = shared and not alone
        """The server has CAN_MULTI_CONN."""
        self.soon = soon
        self.judged = judged
        self.judge = Judge()
        self.losses = make(self._soon, self._later)
        self.left_for_soon: list[Callable[[], None]] = []
        self.timers: list[partial[None]] = []
        self.disk: set[int] = set()
        self.process: Process | None = Process()
        self.debts: dict[int, Debt] = {}
        self.links: dict[int, Link] = {}
        self.asked: dict[int, int] = {}
        """Writes -> when `Losses` was told that they were asked."""
        self.written: dict[int, tuple[int, int]] = {}
        """Writes -> (link, place)."""
        self.answered: dict[int, int] = {}
        """Writes -> when."""
        self.flushes: dict[int, tuple[int, Flush, int]] = {}
        """Those of clients that are not answered -> (session, it, when it was read)."""
        self.is_sent: set[int] = set()
        self.opened: dict[int, int] = {}
        self.last_read: dict[int, int] = {}
        """Sessions -> when a FLUSH of each was last read."""
        self.told: list[tuple[int, int]] = []
        """(session, when EIO was sent to it)."""
        self.missed: set[tuple[int, int]] = set()
        """Of these, those that did not come to its client."""
        self.clock = 0
        self.used: dict[str, int] = {}
        self.proofs = 0
        self.numbers = 0
        self.answers: list[int] = []
        """The errors that clients were given."""
        self.happened: set[str] = set()
        """Kinds of events; after a random schedule, what was drawn."""

    # --- What can happen

    def enabled(self) -> list[Event]:
        """Give what can happen next."""
        bounds = self.bounds
        events: list[Event] = []
        if self.left_for_soon:
            events.append(("turn",))
        if len(self.debts) < bounds.sessions and self._may("open", bounds.sessions):
            events.append(("open", self._count("open")))
        for session, debt in self.debts.items():
            if self._link_of(session) is None and self._may("up", bounds.links) and self.process:
                events.append(("up", session))
            if self._may("read", bounds.flushes):
                events.append(("read", session))
            if self._may("end", bounds.ends):
                events.append(("end", session))
            if not debt.deaf and self._may("deaf", bounds.deaf):
                events.append(("deaf", session))
            if not debt.deaf and self._may("miss", bounds.misses):
                events.append(("miss", session))
        for number, (session, _flush, _read) in self.flushes.items():
            link = self._link_of(session)
            if link is not None and number not in self.is_sent:
                events.append(("send", number, 0))
                if self._may("failing", bounds.failing):
                    events += [("send", number, Errno.EIO), ("send", number, Errno.ENOMEM)]
        for number, link in self.links.items():
            events += self._of_link(number, link)
        if self.process is not None:
            if self._may("kill", bounds.kills):
                events.append(("kill",))
        else:
            events.append(("start",))
        if self._timers() and self._may("late", bounds.lates):
            events.append(("late",))
        return events

    def _of_link(self, number: int, link: Link) -> list[Event]:
        bounds = self.bounds
        events: list[Event] = []
        if link.state == "doubt":
            return [("resolve", number), ("give up", number)]
        if link.state != "up":
            return events
        if link.lives and link.session in self.debts and self._may("ask", bounds.writes):
            events.append(("ask", number))
        if link.writes and not link.hole:
            events.append(("answer", number))
        if link.flushes and link.flushes[0][1] >= 0 and not link.hole:
            events.append(("reply", number))
        if self._may("dead", bounds.deaths):
            events.append(("dead", number, 0))
            if self._may("doubt", bounds.doubts):
                events.append(("dead", number, 1))
        if self._may("left", bounds.lefts):
            events.append(("left", number))
        if not link.hole and self._may("hole", bounds.holes):
            events.append(("hole", number))
        if link.lives and not link.fails and self._may("failing", bounds.failing):
            events += [("fail", number, Errno.EIO), ("fail", number, Errno.ENOMEM)]
        return events

    def do(self, event: Event) -> None:
        """Have something happen."""
        self.clock += 1
        name, *args = event
        self.happened.add(name)
        getattr(self, f"_{name.replace(' ', '_')}")(*args)
        if self.soon == "after":
            self._turn()
        self._check_what_is_seen()

    # --- It happens

    def _turn(self) -> None:
        """As often as there is something: what is done may leave more."""
        while self.left_for_soon:
            self.left_for_soon.pop(0)()

    def _open(self, session: int) -> None:
        self._use("open")
        self._say("open", session)
        self.opened[session] = self.clock
        self.debts[session] = self.losses.open()

    def _end(self, session: int) -> None:
        self._use("end")
        self._say("end", session)
        self.flushes = {f: each for f, each in self.flushes.items() if each[0] != session}
        self.losses.end(self.debts.pop(session))

    def _deaf(self, session: int) -> None:
        self._use("deaf")
        self._say("deaf", session)
        self.debts[session].deaf = True

    def _miss(self, session: int) -> None:
        self._use("miss")
        self._say("miss", session)
        self.debts[session].lose_client()
        since = self.last_read.get(session, -1)
        self.missed |= {(who, when) for who, when in self.told if who == session and when >= since}

    def _up(self, session: int) -> None:
        self._use("up")
        assert self.process is not None
        number = len(self.links)
        owner = None if self.shared else self.debts[session]
        trail = self.losses.trail(owner, alone=self.shared and not self.speaks)
        link = self.links[number] = Link(number, session, self.process, trail)
        trail.flush = partial(self._prove, link)
        trail.changed = partial(self._changed, link)
        self._say("up", number, session, self.shared, self.speaks)
        self.losses.came_up(trail)

    def _ask(self, number: int) -> None:
        self._use("ask")
        link = self.links[number]
        write = len(self.asked)
        place = write % self.bounds.places
        self.written[write] = number, place
        self._say("ask", write, number, place)
        self.asked[write] = self.losses.asked()
        link.process.memory[write] = number
        link.writes.append(write)

    def _answer(self, number: int) -> None:
        link = self.links[number]
        write = link.writes.pop(0)
        self.answered[write] = self.clock
        self._say("answer", write)
        start = self.written[write][1] * PLACE
        ranges, asked = [(start, start + PLACE)], self.asked[write]
        if self.losses.tainted:
            self.losses.written(link.trail, start, start + PLACE)
        if self.losses.is_done_before(link.trail, asked):
            self.losses.done_before(link.trail, ranges)
        else:
            link.trail.unflushed.note(ranges, asked)

    def _read(self, session: int) -> None:
        self._use("read")
        flush = self._number()
        self._say("read", flush, session)
        self.flushes[flush] = session, self.debts[session].read(), self.clock
        self.last_read[session] = self.clock

    def _send(self, flush: int, error: int) -> None:
        if error:
            self._use("failing")
        link = self._link_of(self.flushes[flush][0])
        assert link is not None
        self.is_sent.add(flush)
        self._send_over(link, flush, error, None)

    def _fail(self, number: int, error: int) -> None:
        self._use("failing")
        self.links[number].fails = error

    def _prove(self, link: Link, done: Flushed) -> None:
        self.proofs += 1
        if link.state != "up":
            raise Wrong("a proof is asked of a link that is gone")
        error, link.fails = link.fails, 0
        self._send_over(link, self._number(), error, done)

    def _send_over(self, link: Link, flush: int, error: int, done: Flushed | None) -> None:
        self._say("send", flush, link.number)
        sent = self.losses.sent()
        if not link.lives:
            error = -1
        elif not error:
            self._put_on_disk(link)
        link.flushes.append((flush, error, sent, done))

    def _reached(self, link: Link) -> list[int]:
        """Give what a FLUSH over a link has to do with."""
        return [w for w, over in link.process.memory.items() if self.speaks or over == link.number]

    def _put_on_disk(self, link: Link) -> None:
        for write in self._reached(link):
            del link.process.memory[write]
            self.disk.add(write)

    def _reply(self, number: int) -> None:
        link = self.links[number]
        flush, error, sent, done = link.flushes.pop(0)
        self._say("reply", flush, error)
        if is_loss(error):
            for write in self._reached(link):
                del link.process.memory[write]
        self.losses.answered(link.trail, sent, error, "")
        if done is not None:
            done(error, "")
        elif flush in self.flushes:
            settled = partial(self._settled, flush, error)
            if error or self.losses.settle(self.flushes[flush][1], settled):
                settled()

    def _settled(self, number: int, error: int) -> None:
        """A FLUSH of a client is answered."""
        if number not in self.flushes:
            return
        session, flush, read = self.flushes.pop(number)
        given, _text = self.losses.answer(flush, error, "")
        self.answers.append(given)
        if self.judged:
            right = self.judge.verdict(number, error)
            if given != right:
                raise Wrong(f"FLUSH {number} was answered {given}, and not {right}")
            if not given and self.judge.uncovered(number):
                raise Wrong(f"FLUSH {number} did not wait for {self.judge.uncovered(number)}")
        self._say("answered", number)
        if is_loss(given):
            self.told.append((session, self.clock))
            self._say("told", session)
        if not given:
            self._check_truth(session, read)

    def _check_truth(self, session: int, read: int) -> None:
        """A FLUSH that was read then is answered 0."""
        for write, answered in self.answered.items():
            over = self.links[self.written[write][0]]
            relies = self.shared or over.session == session
            if not relies or answered >= read or write in self.disk:
                continue
            if not self._is_excused(write, session):
                raise Wrong(f"a FLUSH of session {session} succeeds, and write {write} is gone")

    def _is_excused(self, write: int, session: int) -> bool:
        """Say whether a session knows that a write may be gone, or came when somebody had been told."""
        answered = self.answered[write]
        return any(
            answered <= when
            and (who == session or (when < self.opened[session] and (who, when) not in self.missed))
            for who, when in self.told
        )

    def _dead(self, number: int, doubt: int) -> None:
        self._use("dead")
        if doubt:
            self._use("doubt")
        link = self.links[number]
        link.state = "doubt" if doubt else "dead"
        self._cut(link)
        self._say("dead", number, doubt)
        self.losses.died(link.trail, "dead", doubt=bool(doubt))

    def _left(self, number: int) -> None:
        self._use("left")
        link = self.links[number]
        link.state = "left"
        self._cut(link)
        self._say("left", number)
        self.losses.left(link.trail)

    def _cut(self, link: Link) -> None:
        """What was under way over a link is asked again over another one; a proof is nobody's."""
        self.is_sent -= {flush for flush, *_rest in link.flushes}
        link.flushes.clear()
        link.writes.clear()

    def _changed(self, link: Link) -> None:
        link.hopes = False
        if link.trail.state == Fate.OVER and link.state == "doubt":
            link.state = "over"

    def _resolve(self, number: int) -> None:
        """Whether it is there is looked for, and then it is flushed; or it is not there."""
        link = self.links[number]
        mine = {w for w, (over, _place) in self.written.items() if over == number} & {
            *self.answered
        }
        there = self.disk | ({*self.process.memory} if self.process is not None else set())
        if mine <= there:
            link.state = "over"
            if self.process is not None:
                for write in mine & {*self.process.memory}:
                    del self.process.memory[write]
            self.disk |= mine
            self._say("durable", number)
            self.losses.is_durable(link.trail)
        else:
            self._give_up(number)

    def _give_up(self, number: int) -> None:
        self.links[number].state = "dead"
        self._say("give up", number)
        self.losses.give_up(self.links[number].trail, "given up")

    def _hole(self, number: int) -> None:
        self._use("hole")
        self.links[number].hole = True

    def _kill(self) -> None:
        self._use("kill")
        assert self.process is not None
        self.process.runs = False
        self.process.memory.clear()
        self.process = None

    def _start(self) -> None:
        self.process = Process()

    def _late(self) -> None:
        self._use("late")
        timer = self._timers()[0]
        self.timers.remove(timer)
        trail = timer.args[0]
        link = next(each for each in self.links.values() if each.trail is trail)
        if link.state == "up":
            proof = max((f for f, *_r, done in link.flushes if done is not None), default=None)
            if proof is not None:
                self._say("late", proof)
        else:
            self._say("doubted too long", link.number)
        timer()

    # --- Help

    def _say(self, what: str, *args: int) -> None:
        if self.judged:
            self.judge.hear(what, *args)

    def _may(self, what: str, most: int) -> bool:
        return self.used.get(what, 0) < most

    def _use(self, what: str) -> None:
        self.used[what] = self.used.get(what, 0) + 1

    def _count(self, what: str) -> int:
        return self.used.get(what, 0)

    def _number(self) -> int:
        self.numbers += 1
        return self.numbers

    def _soon(self, then: Callable[[], None]) -> None:
        if self.soon == "now":
            then()
        else:
            self.left_for_soon.append(then)

    def _later(self, then: Callable[[], None]) -> None:
        assert isinstance(then, partial)
        self.timers.append(then)

    def _timers(self) -> list[partial[None]]:
        """Give those that still mean something."""
        self.timers = [each for each in self.timers if each.args[0].proof is each.args[1]]
        asked = {
            link.trail
            for link in self.links.values()
            if link.state != "up" or any(done is not None for *_rest, done in link.flushes)
        }
        return [each for each in self.timers if each.args[0] in asked]

    def _link_of(self, session: int) -> Link | None:
        return next(
            (
                each
                for each in self.links.values()
                if each.session == session and each.state == "up"
            ),
            None,
        )

    def _check_what_is_seen(self) -> None:
        """What is not said by the answers to FLUSHes."""
        for link in self.links.values():
            proving = link.state == "doubt" and link.trail.proving
            if link.state == "doubt" and link.hopes and not proving:
                raise Wrong(f"nobody is told that link {link.number} is not proved any more")
            link.hopes = proving
        self._check_reads()
        if not self.judged:
            return
        for session, debt in self.debts.items():
            judged = self.judge.sessions[session]
            if bool(judged.losses_seen) != bool(debt.losses_seen):
                raise Wrong(f"session {session} has seen {debt.losses_seen} losses")
            judged.losses_seen = debt.losses_seen = 0
            for place in range(self.bounds.places):
                fails = debt.is_lost(place * PLACE, place * PLACE + PLACE)
                if fails != (place in judged.fail_at):
                    raise Wrong(f"a READ of session {session} at {place} fails: {fails}")

    def _check_reads(self) -> None:
        if not self.shared or self.losses.is_in_question(None):
            return
        places = [place for _link, place in self.written.values()]
        for write, (over, place) in self.written.items():
            if write not in self.answered or self.links[over].state != "dead":
                continue
            if write in self.disk or places.count(place) > 1:
                continue
            for session, debt in self.debts.items():
                link = self._link_of(session)
                if link is None or not link.lives or write in link.process.memory:
                    continue
                knows = self._is_excused(write, session)
                if not knows and not debt.is_lost(place * PLACE, place * PLACE + PLACE):
                    raise Wrong(f"session {session} reads what was there before write {write}")

    # --- The end

    def finish(self) -> None:
        """Nothing goes wrong any more: all has to be settled, told and forgotten."""
        self.bounds = Bounds(*(1000,) * len(Bounds.__dataclass_fields__))
        self.bounds = Bounds(**{**vars(self.bounds), "places": self.written_places()})
        self._settle_all()
        for _ in range(2):
            for session in list(self.debts):
                self._flush(session)
        for session in list(self.debts):
            if not self.debts[session].deaf and (
                self.debts[session].why or self.debts[session].lost
            ):
                raise Wrong(f"session {session} has still to be told: {self.debts[session]}")
        for link in list(self.links.values()):
            if link.state == "up":
                self.do(("left", link.number))
        for session in list(self.debts):
            self.do(("end", session))
        self._settle_all()
        last = self._count("open")
        for session in (last, last + 1):  # one may be told of what nobody else was
            self.do(("open", session))
            self._flush(session)
            self._flush(session)
        for link in list(self.links.values()):
            if link.state == "up":
                self.do(("left", link.number))
        for session in (last, last + 1):
            self.do(("end", session))
        losses = self.losses
        self._turn()
        kept = [losses._open, losses._up, losses._gone, losses._waiting, losses._holders()]
        if losses.must_remember or not losses._quiet or losses.tainted or any(kept):
            raise Wrong(f"something is kept: {kept}, {losses._untold}")
        if self.proofs > MOST_PROOFS * (len(self.links) + self.numbers - self.proofs):
            raise Wrong(f"{self.proofs} proofs were asked")

    def written_places(self) -> int:
        """Give how many places there are."""
        return max((place for _link, place in self.written.values()), default=0) + 1

    def _flush(self, session: int) -> None:
        """Its client FLUSHes, and is answered."""
        if self._link_of(session) is None:
            self._ensure_process()
            self.do(("up", session))
        self.do(("read", session))
        self._settle_all()
        if any(each[0] == session for each in self.flushes.values()):
            raise Wrong(f"a FLUSH of session {session} is not answered")

    def _ensure_process(self) -> None:
        if self.process is None:
            self.do(("start",))

    def _settle_all(self) -> None:
        """Replies are read, dead links are found dead, time passes, until nobody waits."""
        for _ in range(1000):
            event = self.next_settling()
            if event is None:
                return
            self.do(event)
        raise Wrong("there is no end of it")

    def next_settling(self) -> Event | None:
        if self.left_for_soon:
            return ("turn",)
        for number, link in self.links.items():
            if link.state != "up":
                continue
            if link.hole:
                continue
            if link.writes:
                return ("answer", number)
            if link.flushes and link.flushes[0][1] >= 0:
                return ("reply", number)
            if not link.process.runs:
                return ("dead", number, 0)
        if self._timers():
            return ("late",)
        for number, link in self.links.items():  # after a black hole has been waited for
            if link.hole and link.state == "up":
                return ("dead", number, 0)
            if link.state == "doubt":
                return ("resolve", number)
        for number, (session, _flush, _read) in self.flushes.items():
            if number in self.is_sent:
                continue
            if self._link_of(session) is None:
                return ("up", session) if self.process is not None else ("start",)
            return ("send", number, 0)
        return None

    def key(self) -> tuple[object, ...]:
        """Give all that what can happen depends on, as `Judge.key` does."""
        losses = self.losses
        trails = {
            number: link.trail
            for number, link in self.links.items()
            if link.state == "up" or link.trail.state != Fate.OVER
        }
        reads = [flush.read for _session, flush, _read in self.flushes.values()]
        sent = [sent for link in self.links.values() for _f, _e, sent, _d in link.flushes]
        sent += [trail.proof.sent for trail in trails.values() if trail.proof is not None]
        told = [debt.told_at for debt in self.debts.values()]
        ups = [trail.up for trail in trails.values() if trail.state == Fate.UP]
        mine = (
            *(
                (
                    *(number, trail.state, trail.tried, trail.hoped, trail.proof is None),
                    *(
                        (
                            *era.ranges,
                            *(era.first < read for read in reads),
                            *(era.last < when for when in sent),
                            *(up <= era.asked for up in ups),
                            *(era.last >= when for when in told),
                        )
                        for era in trail.unflushed.eras
                    ),
                )
                for number, trail in trails.items()
            ),
            *(
                (
                    *(s, bool(debt.why), *debt.lost, debt.deaf),
                    *(read < debt.told_first_at for read in reads),
                )
                for s, debt in self.debts.items()
            ),
            *(
                (s, flush.error, f in self.is_sent, flush in losses._waiting)
                for f, (s, flush, _read) in self.flushes.items()
            ),
            losses._untold and losses._untold[1],
            *(
                (bool(word.why), *word.ranges, *(s in word.others for s in self.debts.values()))
                for debt, word in losses._words.items()
                if debt.read_at < word.told_at
            ),
            losses.tainted,
            len(losses._waiting),
        )
        names = {flush: at for at, flush in enumerate(self.flushes)}
        may_be_gone = sorted(self.answered.keys() - self.disk)
        truth = (
            *(
                (
                    *(n, link.state, link.hole, link.fails, link.process is self.process),
                    *(
                        (
                            *(write, losses.is_done_before(link.trail, self.asked[write])),
                            *(up <= self.asked[write] for up in ups),
                        )
                        for write in link.writes
                    ),
                    *(
                        (f in self.flushes and names[f], e, done is None)
                        for f, e, _s, done in link.flushes
                    ),
                )
                for n, link in self.links.items()
                if link.state in ("up", "doubt")
            ),
            self.process is None or tuple(self.process.memory.items()),
            *(
                (
                    write,
                    *(self._is_excused(write, session) for session in self.debts),
                    *(self.answered[write] < read for _s, _f, read in self.flushes.values()),
                )
                for write in may_be_gone
            ),
            tuple(sorted(self.used.items())),
            len(self.left_for_soon),
            len(self._timers()),
        )
        return (repr(mine), repr(truth), self.judge.key())


# --- Every order


def replay(events: Sequence[Event], bounds: Bounds, **how: object) -> World:
    """Run one schedule."""
    world = World(bounds, **how)  # type: ignore[arg-type]
    for event in events:
        world.do(event)
    return world


EVENTS = (
    *(
        "open",
        "end",
        "up",
        "deaf",
        "miss",
        "ask",
        "answer",
        "read",
        "send",
        "reply",
        "fail",
        "dead",
        "left",
        "hole",
    ),
    *("resolve", "give up", "kill", "start", "turn", "late"),
)
"""All kinds."""

BEGIN: tuple[Event, ...] = (("open", 0), ("open", 1))


def every_order(depth: int, bounds: Bounds, **how: object) -> int:
    """Try all orders of so many events; those that lead to the same are tried once. Give how many worlds."""
    edge: list[tuple[tuple[Event, ...], list[Event]]] = [
        (BEGIN, replay(BEGIN, bounds, **how).enabled())
    ]
    seen: set[int] = set()
    for step in range(depth):
        ahead = []
        for past, events in edge:
            for event in events:
                tried = (*past, event)
                try:
                    world = replay(tried, bounds, **how)
                    key = hash(world.key())
                    if key in seen:
                        continue
                    seen.add(key)
                    ahead.append((tried, enabled := world.enabled()))
                    # Where the next step to the end is tried anyway, the rest is as well.
                    if step == depth - 1 or world.next_settling() not in enabled:
                        world.finish()
                except Exception as error:
                    raise Wrong(f"{error!r}\n  {how}\n  {tried}") from error
        edge = ahead
    return len(seen)


# --- Random schedules

RANDOM = Bounds(
    sessions=6,
    links=12,
    writes=12,
    places=4,
    flushes=10,
    failing=2,
    deaths=5,
    lefts=3,
    doubts=3,
    ends=4,
    kills=2,
    holes=2,
    lates=6,
    deaf=1,
    misses=1,
)
"""Enough for four links at once and their successors."""

MOST_EVENTS = 60

WEIGHTS = {
    **dict.fromkeys(("kill", "hole", "dead", "left", "end", "fail", "deaf", "miss"), 0.3),
    **dict.fromkeys(("answer", "send", "reply", "ask", "resolve", "turn"), 2.0),
    "late": 6.0,
}
"""What would leave nothing to happen is rarer than the rest; what seldom can happen is not."""


def random_schedule(
    seed: int, make: Callable[..., Losses] = Losses, *, judged: bool = True
) -> World:
    """Run one; the seed decides everything."""
    random = Random(seed)
    world = World(
        RANDOM,
        shared=random.random() < 0.8,
        alone=random.random() < 0.2,
        soon=random.choice(("now", "after", "drawn", "drawn")),
        make=make,
        judged=judged,
    )
    events: list[Event] = []
    try:
        for _ in range(random.randint(10, MOST_EVENTS)):
            enabled = world.enabled()
            if not enabled:
                break
            weights = [WEIGHTS.get(event[0], 1.0) for event in enabled]
            event = random.choices(enabled, weights)[0]
            events.append(event)
            world.do(event)
        happened = {*world.happened}
        world.finish()
        world.happened = happened
    except Exception as error:
        raise Wrong(f"seed {seed}: {error!r}\n  {events}") from error
    return world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    for shared in (True, False):
        for soon in ("now", "after", "drawn"):
            if arguments.depth:
                worlds = every_order(arguments.depth, Bounds(), shared=shared, soon=soon)
                print(f"shared={shared} soon={soon} depth={arguments.depth}: {worlds} worlds")
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        random_schedule(seed)
    print(f"{arguments.seeds} schedules")


if __name__ == "__main__":
    main()

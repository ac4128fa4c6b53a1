"""TRANSLATED commands: one command of the client, as many of the upstream as it takes.

A job is a generator (`translate` has them). It yields a list of `Ask`s, which go upstream together, and is
sent their `Outcome`s when all of them have come. Or it yields a `Claim`, and goes on when it has the range
to itself. What it returns is the `Answer` to the client. So a translation reads in the order in which it
happens, and what drives it (cookies, framings, links that die) is here, once.

`MAX_JOB_BYTES` bounds what the jobs of one session hold in memory. While they hold more, the session begins no
request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from gateway.jobs.extents import Untellable, status_reply
from gateway.jobs.fences import Fences, Waiting
from gateway.jobs.job_timing import JobTiming
from gateway.jobs.locks import Entry, Held, RangeLocks
from gateway.jobs.steps import Answer, Claim, Job, Lasting, Outside, Settled, Step
from gateway.losses.rule import Debt, Flush
from gateway.protocol.asks import Ask, Done, Outcome
from gateway.protocol.commands import SHOWS_CONTENT, WRITE_CLASS, normal_error
from gateway.wire import limits
from gateway.wire.constants import Cmd, Errno
from gateway.wire.framing import Framing
from gateway.wire.ranges import Range

MAX_JOB_BYTES = limits.MAX_REQUEST_BYTES
"""How many bytes of payload the jobs of one session may hold, in either direction, before it begins no further
request. One of any size is always taken, so a session holds less than twice as much."""


@dataclass(slots=True, eq=False)
class Running:
    """A job under way, and who waits for its answer."""

    job: Job
    cost: int
    done: Callable[[Answer], None]
    outcomes: list[Outcome] = field(default_factory=list)
    missing: int = 0
    claims: list[Held] = field(default_factory=list)
    losses_seen: int | None = None
    """`Debt.losses_seen` when the first of its writes was answered, or when hooks began with it. If the number
    has grown since, what the job has done may be lost. The client may have been told of that loss already; if
    this job succeeded now, the client would take it for durable after its next FLUSH."""
    watched_since: int = 0
    """When that was, in the order of the disk."""
    written: list[Range] = field(default_factory=list)
    """What it writes, in the upstream's offsets: the parts that are answered, or all that hooks may write."""
    flush: Flush | None = None
    """The FLUSH that it stands for: the client's, or that of a hook."""
    waits: bool = False
    """It has nothing in flight here: it waits for a range, for hooks, or for what it asks elsewhere."""
    fenced: Waiting | None = None
    """Its place among those who wait for fences."""
    begun: bool = False
    """It was sent before, over a link that has died: fences do not concern it."""
    hooks: Cmd | None = None
    """The command that hooks do, once they do."""
    timing: JobTiming | None = None
    """What times it, if it is the one of its session that is timed."""


class ClientTraffic(Protocol):
    """What jobs need of what is under way for their client (`gateway.scan.traffic`)."""

    debt: Debt
    fences: Fences
    in_flight: dict[int, Entry]
    stale: bool
    to_client: list[memoryview | bytes]

    @property
    def timing(self) -> JobTiming | None:
        """What times some of the requests; None: nobody wants to know."""

    def has_waited(self) -> None:
        """What the client sent had to wait."""
        ...

    def count_error(self, word: int, error: int) -> None:
        """The client is told that a request has failed."""
        ...


GONE = "its client has gone while it waited, and others may have written there since"
"""Why a write that has waited is not begun."""

LOST = "the server may have lost what was written here"
"""Why a command that `SHOWS_CONTENT` fails."""


class Jobs:
    """One session's jobs. What they have to say gathers in `traffic.to_upstream` and `traffic.to_client`."""

    def __init__(
        self,
        traffic: ClientTraffic,
        send: Callable[[Ask, Done], None],
        client: Framing,
        locks: RangeLocks,
        *,
        block: int,
        base: int,
        elsewhere: bool,
    ) -> None:
        """`send` takes asks: `elsewhere`, or over the link of this traffic, which counts them in flight.
        `block` is the smallest that the upstream knows, and `base` where the client's export begins there, in
        bytes.
        """
        self._block = block
        self._base = base
        self._traffic = traffic
        self._elsewhere = elsewhere
        self._send_ask = send
        self._client = client
        self._locks = locks
        self._running: dict[Running, None] = {}
        self.bytes = 0
        """What jobs hold in memory."""
        self.waiting = 0
        """How many jobs have nothing in flight here: they wait for a claim, for hooks or for asks elsewhere.
        Each counts as a command under way all the same."""
        self.outside: Callable[[Running, Outside], None] = _nobody_is
        """Called with a job whose command hooks do; `answer` ends it."""
        self.woken: Callable[[Callable[[], None]], None] = _at_once
        """Called with what a job has to do outside of the session's own calls: its claim was granted."""

    def __bool__(self) -> bool:
        return bool(self._running)

    @property
    def with_hooks(self) -> Cmd | None:
        """Give a command that hooks do; None: they do none, or wait for the upstream themselves."""
        if not self._running:
            return None
        if self._traffic.in_flight or any(running.missing for running in self._running):
            return None
        return next((each.hooks for each in self._running if each.hooks is not None), None)

    @property
    def claiming(self) -> list[Held]:
        """Give the claims of all jobs, whether they are granted or wait."""
        return [held for running in self._running for held in running.claims]

    def let_go(self) -> None:
        """The session has ended, so nothing is begun any more."""
        if not self._running:
            del self._traffic, self._send_ask

    def start(
        self, cookie: int, word: int, offset: int, job: Job, *, cost: int, begun: bool = False
    ) -> None:
        """Begin a job for a command of the client; `cost` in bytes. `begun`: it was sent before."""
        flush = self._traffic.debt.read() if word & 0xFFFF == Cmd.FLUSH else None

        def done(answer: Answer) -> None:
            if flush is not None:
                debt = self._traffic.debt
                answer = Answer(*debt.losses.answer(flush, answer.error, answer.text))
            self._traffic.to_client += self._encoded(cookie, word, offset, answer)

        timing = self._traffic.timing
        running = Running(job, cost, done, flush=flush, begun=begun)
        if timing is not None and timing.wants:
            timing.takes_job(word)
            running.timing = timing
        self._running[running] = None
        self.bytes += cost
        self._go_on(running)

    def ask(self, job: Job, done: Callable[[Answer], None]) -> None:
        """Begin a job for a hook, which holds the data; `done` is called with its answer, and never raises."""
        running = Running(job, 0, done)
        self._running[running] = None
        self._go_on(running)

    def ask_elsewhere(self, send: Callable[[Ask, Done], None]) -> None:
        """Give asks to somebody else from now on, who also takes over those under way."""
        self._send_ask = send
        if not self._elsewhere:
            self._elsewhere = True
            for running in self._running:
                if running.missing and not running.waits:
                    running.waits = True
                    self.waiting += 1

    def answer(self, running: Running, answer: Answer) -> None:
        """End a job whose command was done by hooks, unless it has ended with its link."""
        if running in self._running:
            self._end(running, answer)

    def fail(self, error: Errno, text: str) -> None:
        """The link has died: answer every command that a job is for."""
        while self._running:  # ending one may wake another, which may end
            self._end(next(iter(self._running)), Answer(error, text))

    # --- Steps

    def _go_on(self, running: Running) -> None:
        try:
            while True:
                step = running.job.send(running.outcomes) if running.outcomes else next(running.job)
                running.outcomes = []
                if not self._take(running, step):
                    return
        except StopIteration as end:
            self._end(running, end.value)

    def _take(self, running: Running, step: Step) -> bool:
        """Take a step; say whether the job goes on at once."""
        if isinstance(step, Lasting):
            self._watch(running)
            return True
        if isinstance(step, Settled):
            return self._settled(running)
        if isinstance(step, Outside):
            if step.command in _LASTS:
                self._watch(running)
            if step.command in WRITE_CLASS:
                start = step.offset + self._base
                running.written.append((start, start + step.length))
            self._wait(running)
            running.hooks = step.command
            self.outside(running, step)
            return False
        if not running.begun and self._traffic.stale and _writes(step):
            self._end(running, Answer(Errno.EIO, GONE))
            return False
        if not running.begun and self._traffic.fences and self._fenced(running, step):
            return False
        if isinstance(step, Claim):
            return self._claim(running, step)
        return self._send(running, step)

    def _fenced(self, running: Running, step: list[Ask] | Claim) -> bool:
        """If a step is going to write where there are fences, have it wait; say whether it waits. It waits
        before it claims, so that nobody waits for its claim meanwhile. (If a fence is raised between its claim
        and its write, it waits for that fence, too, and keeps the claim so long.)
        """
        ranges = (
            [step] if isinstance(step, Claim) else [a for a in step if a.command in WRITE_CLASS]
        )
        if not ranges:
            return False
        start = min(each.start if isinstance(each, Claim) else each.offset for each in ranges)
        end = max(each.end for each in ranges)
        if not self._traffic.fences.bar(start, end):
            return False

        def go_on() -> None:
            if running in self._running:
                self._wait_no_more(running)
                self._traffic.has_waited()
                if self._traffic.stale:
                    self._end(running, Answer(Errno.EIO, GONE))
                elif self._take(running, step):
                    self._go_on(running)

        self._wait(running)
        running.fenced = self._traffic.fences.wait(start, end, lambda: self.woken(go_on))
        return True

    def _claim(self, running: Running, claim: Claim) -> bool:
        def go_on() -> None:
            self._wait_no_more(running)
            self._go_on(running)

        held = Held(
            claim.start, claim.end, lambda: self.woken(go_on), owner=self._traffic.in_flight
        )
        running.claims.append(held)
        granted = self._locks.claim(held)
        if not granted:
            self._wait(running)
        return granted

    def _watch(self, running: Running) -> None:
        """From now on the job fails if something is lost."""
        debt = self._traffic.debt
        if running.losses_seen is None:
            running.losses_seen, running.watched_since = debt.losses_seen, debt.losses.order.now

    def _settled(self, running: Running) -> bool:
        """Say whether everything is settled that a FLUSH has to cover. If it is not, the job goes on when it
        is.
        """
        flush, debt = running.flush, self._traffic.debt
        assert flush is not None  # it was set when the FLUSH was asked

        def take_up() -> None:
            if running in self._running:
                self._wait_no_more(running)
                running.outcomes = [Outcome(flush.error, flush.text)]
                self._go_on(running)

        if debt.losses.settle(flush, lambda: self.woken(take_up)):
            running.outcomes = [Outcome(flush.error, flush.text)]
            return True
        self._wait(running)
        return False

    def _wait(self, running: Running) -> None:
        running.waits = True
        self.waiting += 1

    def _wait_no_more(self, running: Running) -> None:
        self.waiting -= running.waits
        running.waits = False

    def _send(self, running: Running, asks: list[Ask]) -> bool:
        """Send asks. Say whether all of them were answered at once."""
        running.outcomes = [_NOT_YET] * len(asks)
        running.missing = len(asks) + 1  # no answer is the last before the last ask is sent
        if running.timing is not None:
            running.timing.asks()
        if self._elsewhere:
            self._wait(running)
        debt = self._traffic.debt
        for number, ask in enumerate(asks):
            settle = partial(self._settle, running, number, ask)
            if ask.command is Cmd.FLUSH and running.flush is None:
                running.flush = debt.read()
            if ask.command in SHOWS_CONTENT and debt.is_lost(ask.offset, ask.end):
                settle(Outcome(Errno.EIO, LOST))
            else:
                self._send_ask(ask, settle)
        running.missing -= 1
        if running.missing or running not in self._running:
            return False
        self._wait_no_more(running)
        return True

    def _settle(self, running: Running, number: int, ask: Ask, outcome: Outcome) -> None:
        """An ask has its outcome. With the last one the job goes on, unless it has ended."""
        running.outcomes[number] = outcome
        if ask.command in WRITE_CLASS:
            self._watch(running)
            running.written.append((ask.offset, ask.end))
        running.missing -= 1
        if not running.missing and running.timing is not None:
            running.timing.has_answers()
        if not running.missing and running in self._running:
            self._wait_no_more(running)
            self._go_on(running)

    def _end(self, running: Running, answer: Answer) -> None:
        del self._running[running]
        debt = self._traffic.debt
        if running.losses_seen is not None and not answer.error:
            if running.losses_seen != debt.losses_seen:
                text = "the server lost something between its beginning and its end"
                answer = Answer(Errno.EIO, text)
            else:
                debt.losses.answered_late(debt, running.watched_since, running.written)
        self._wait_no_more(running)
        if running.fenced is not None:
            self._traffic.fences.forget(running.fenced)
        self.bytes -= running.cost
        running.job.close()
        running.done(answer)
        if running.timing is not None:
            running.timing.ends()
        for held in running.claims:
            self._locks.release(held)

    def _encoded(
        self, cookie: int, word: int, asked: int, answer: Answer
    ) -> list[memoryview | bytes]:
        client = self._client
        if answer.error:
            error = normal_error(word, answer.error)
            self._traffic.count_error(word, error)
            return [client.failure(cookie, asked, error, answer.text, offset=answer.offset)]
        if answer.data:
            if client.chunked:
                # One chunk, which is what DF asks for, and right for everybody.
                length = sum(len(data) for _offset, data in answer.data)
                head = client.data_head(cookie, asked, asked, length, done=True)
            else:
                head = client.success(cookie, asked, read=True)
            return [head, *(memoryview(data) for _offset, data in answer.data)]
        if answer.status:
            try:
                return status_reply(client, cookie, asked, answer.status, self._block)
            except Untellable as why:
                return self._encoded(cookie, word, asked, Answer(Errno.EIO, str(why)))
        return [client.success(cookie, asked, read=word & 0xFFFF == Cmd.READ)]


def _writes(step: list[Ask] | Claim) -> bool:
    return isinstance(step, Claim) or any(ask.command in WRITE_CLASS for ask in step)


_LASTS = WRITE_CLASS | {Cmd.FLUSH}
"""Commands whose success says that something will last."""

_NOT_YET = Outcome()
"""In place of an outcome that has not come."""


def _nobody_is(_running: Running, outside: Outside) -> None:
    raise AssertionError(f"nobody does hooks here, and {outside.command.name} has one")


def _at_once(go_on: Callable[[], None]) -> None:
    go_on()

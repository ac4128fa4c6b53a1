"""What is under way on one session: the in-flight table, and the cookies of what is sent.

Cookies upstream are our own counter, so a reply's cookie is a key that no client can forge or repeat; the
client's cookie is opaque and only comes back to it (clients SHOULD keep theirs unique, and need not).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

from gateway.jobs.fences import Fences
from gateway.jobs.jobs import MAX_JOB_BYTES, Jobs
from gateway.jobs.locks import ASK, Entry, RangeLocks
from gateway.losses.rule import Debt, Losses, Trail
from gateway.protocol.asks import Ask, Done
from gateway.protocol.commands import WRITE_CLASS, RefusedCommand
from gateway.protocol.table import ALL_COMMANDS, command_named
from gateway.scan.asks import Asks
from gateway.scan.early import Early
from gateway.scan.going import Going, nobody_minds_that_it_goes
from gateway.scan.memory import MAX_KEPT_BYTES, Memory
from gateway.scan.observed import Observed
from gateway.scan.partial import Partial
from gateway.scan.plan import Plan
from gateway.scan.timing import Timing
from gateway.scan.turn import Turn
from gateway.wire.constants import Cmd, Errno
from gateway.wire.ranges import Range

OTHERS = max(ALL_COMMANDS) + 1
"""Where requests are counted whose command nobody knows."""

KINDS = OTHERS + 1

MAX_IN_FLIGHT = 128
"""Commands of one session that are under way at a time; while there are so many, the client's requests stay
unread. The Linux kernel has 128 tags a queue, libnbd's tools ask 64, qemu 16."""

# An `Entry` is a tuple, because there is one for every request of the data plane.


class Gatekeeper(Protocol):
    """Has to let each request through before it is begun (`gateway.throttle.Gate` is one)."""

    def take(self, length: int) -> bool:
        """Let one through whose data has this length; or not now: then the same is asked again later."""
        ...


class Traffic:
    """Everything under way on one session."""

    __slots__ = (
        "_most_in_flight",
        "asked",
        "asked_bytes",
        "asks",
        "backlog",
        "debt",
        "early",
        "errors",
        "fences",
        "gate",
        "going",
        "held",
        "in_flight",
        "jobs",
        "last_cookie",
        "leave_late",
        "locks",
        "memory",
        "observed",
        "partial",
        "plan",
        "postponed",
        "refused",
        "refused_by",
        "stale",
        "timing",
        "to_client",
        "to_upstream",
        "trail",
        "turn",
    )

    def __init__(
        self,
        plan: Plan,
        locks: RangeLocks | None = None,
        send: Callable[[Ask, Done], None] | None = None,
        debt: Debt | None = None,
        fences: Fences | None = None,
    ) -> None:
        """`send` takes the asks of jobs; None: they go over this link. `debt` is the session's, `locks` and
        `fences` are its disk's; None: it is on a disk of its own.
        """
        self.plan = plan
        self.debt = debt or Losses().open()
        """What the client has still to be told."""
        self.in_flight: dict[int, Entry] = {}
        """Our cookie -> the command; of a job's ask, with ASK in its word."""
        self.partial: dict[int, Partial] = {}
        """Our cookie -> what has come of its reply, where that is not the whole reply."""
        self.early = Early()
        """Replies that have come before their WRITE's data was sent."""
        self.going = Going()
        """Whether the server goes, and to what it has said so."""
        self.last_cookie = 0
        self.to_upstream: list[memoryview | bytes] = []
        """Requests of our own, in pieces that belong together; whoever feeds a scanner takes them."""
        self.to_client: list[memoryview | bytes] = []
        """Replies of our own; the same."""
        self.asked = [0] * KINDS
        """How many requests the client has made, by command; at `OTHERS`, those with a command that nobody
        knows."""
        self.asked_bytes = [0] * KINDS
        """How many bytes those of them are about that were not refused as illegal, or by a policy."""
        self.errors: Counter[tuple[str, str]] = Counter()
        """(command, error) -> how many requests the client was told have failed with it."""
        self.refused: Counter[tuple[str, str]] = Counter()
        """The same of those that were answered here, without the server."""
        self.refused_by: Counter[tuple[str, str, str]] = Counter()
        """Of these, those that a policy has refused: (its name, command, error)."""
        self.observed = Observed()
        """What would have been done if nothing were only observed."""
        self.timing: Timing | None = None
        """What times some of the requests; None: nobody wants to know."""
        self.locks = locks or RangeLocks()
        self.locks.join(self.in_flight)
        self.fences = Fences() if fences is None else fences
        """Where this session may not write for a while."""
        self.asks = Asks(self, plan.link)
        self.jobs = Jobs(
            self,
            send or self.asks.send,
            plan.offer.framing,
            self.locks,
            block=plan.upstream.minimum,
            base=plan.offer.base,
            elsewhere=send is not None,
        )
        self.gate: Gatekeeper | None = None
        self.held = False
        """The gate has not let a request through. It stays unread, and so do all after it, until whoever set
        the gate clears this."""
        self.trail: Trail | None = None
        """What has been written over this link, and is not flushed; None: somebody else has it."""
        self.memory: Memory | None = None
        """None: what is under way when the link dies, fails."""
        self.stale = False
        """The client has gone while what it sent had to wait. What it wanted to write is not begun any more,
        for others, who saw it go, may have written there since."""
        self.leave_late: Callable[[Range, bool], None] = nobody_minds
        """Called when the link is given up and nobody asks again: with each range that is being written, for it
        may be written yet; and with whether that was widened, so that it has others' bytes in it."""
        self.postponed: deque[Callable[[], None]] = deque()
        """Begin commands of the client that were under way on a link that has died."""
        self.backlog = 0
        """Bytes of replies that the client has not taken, where the link is read all the same."""
        self.turn = Turn(_no_time)
        """How long it may take before it is others' turn; set by whoever serves several."""
        self._most_in_flight = MAX_IN_FLIGHT

    def take_over(self, before: Traffic) -> None:
        """Go on for the same client after another link, on which nothing is under way any more."""
        self.last_cookie = before.last_cookie
        self.asked, self.asked_bytes = before.asked, before.asked_bytes
        self.errors, self.refused = before.errors, before.refused
        self.refused_by = before.refused_by
        self.observed = before.observed
        self.gate, self.held = before.gate, before.held
        self.stale = before.stale
        self.most_in_flight = before.most_in_flight

    def let_go(self) -> None:
        """The session has ended. Whoever has a part of this, and is asked for something by it, is asked no
        more: what knows each other in a circle is free only when Python looks for circles, in all that there is
        at once. That takes a tenth of a second and more after a thousand sessions, and everybody waits.
        """
        self.leave_late = nobody_minds
        self.going.says_so = nobody_minds_that_it_goes
        self.asks.let_go()
        self.jobs.let_go()

    def has_waited(self) -> None:
        """What the client sent has had to wait: for a server that was away, a pause, others' writes."""
        self.stale = self.stale or self.debt.is_deaf()

    @property
    def most_in_flight(self) -> int:
        """How many commands may be under way: at least 1, at most `MAX_IN_FLIGHT`, whatever is set. May be
        changed at any time: what is under way is not taken back, and when it is answered the session looks
        again.
        """
        return self._most_in_flight

    @most_in_flight.setter
    def most_in_flight(self, most: int) -> None:
        self._most_in_flight = min(max(1, most), MAX_IN_FLIGHT)

    def count_error(self, word: int, error: int) -> None:
        """The client is told that a request has failed."""
        self.errors[command_named(word), errno_named(error)] += 1

    def count_refusal(self, word: int, refused: RefusedCommand) -> None:
        """A request is answered here with an error."""
        self.count_error(word, refused.error)
        command, error = command_named(word), refused.error.name
        self.refused[command, error] += 1
        if refused.by:
            self.refused_by[refused.by, command, error] += 1

    def observe(self, word: int, would: RefusedCommand) -> None:
        """A request would be refused if what is only observed were in force."""
        self.observed.refuse(command_named(word), would.error.name, would.text)

    @property
    def commands_in_flight(self) -> int:
        """How many of the client's commands are under way, those that wait here among them."""
        return len(self.in_flight) + self.jobs.waiting

    def new_cookie(self) -> int:
        """Give a cookie that this link has not seen. (`RequestScan.feed` does the same in line.)"""
        self.last_cookie += 1
        return self.last_cookie

    def begin_postponed(self) -> None:
        """Begin commands that have waited for others to give back their memory."""
        while self.postponed and self.jobs.bytes + self.backlog < MAX_JOB_BYTES:
            self.postponed.popleft()()

    @property
    def room(self) -> int:
        """How many requests may be begun (less than none: `most_in_flight` was more)."""
        if self.held or self.postponed or self.jobs.bytes + self.backlog >= MAX_JOB_BYTES:
            return 0
        memory = self.memory
        if memory is not None and memory.kept_bytes >= MAX_KEPT_BYTES:
            return 0
        return self._most_in_flight - len(self.in_flight) - self.jobs.waiting

    def give_up_writes(self) -> None:
        """Nobody will hear what becomes of what is being written over this link: it may be done, or may yet be
        done, on top of what others write. But one whose data its client has not sent to the end never is. (What
        we have not sent to the end may be done all the same: over TLS the kernel may have more than it said.)
        """
        for ours, (_cookie, word, offset, length) in self.in_flight.items():
            if word & 0xFFFF in WRITE_CLASS and ours != self.early.half_sent:
                if self.trail is not None:
                    self.trail.losses.witnesses.unknown(offset, offset + length)
                self.leave_late(
                    (offset, offset + length), bool(word & ASK) and self.asks.widened(ours)
                )

    def writing(self) -> list[Range]:
        """Give what is being written over this link."""
        return [
            (offset, offset + length)
            for _cookie, word, offset, length in self.in_flight.values()
            if word & 0xFFFF in WRITE_CLASS
        ]

    def success(self, cookie: int, word: int, offset: int) -> bytes:
        """Give the reply that says a command without data in its reply has succeeded (or a READ of
        nothing).
        """
        return self.plan.offer.framing.success(cookie, offset, read=word & 0xFFFF == Cmd.READ)

    def failure(
        self, cookie: int, asked: int, error: Errno, text: str = "", offset: int | None = None
    ) -> bytes:
        """Give the reply that says a command has failed; the text goes to those who can be told. `asked` is the
        request's offset, `offset` that of the error.
        """
        return self.plan.offer.framing.failure(cookie, asked, error, text, offset=offset)


def errno_named(error: int) -> str:
    """Give an error's name; proto.md has no other ones, so all others are one."""
    return Errno(error).name if error in _ERRNOS else "others"


_ERRNOS = frozenset(map(int, Errno))


def _no_time() -> float:
    return 0.0


def nobody_minds(_written: Range, _widened: bool) -> None:
    """Stand in for `Traffic.leave_late`."""

"""How long a client's requests take, and how much of that the server has: one request at a time is timed, of
one batch in several.

To time every request would cost more than to relay it. So a session is timed by samples: it says when its
client's socket is ready (`comes`), and then which of the requests that came is the one (`sent`): one in the
middle of the batch, for the first is answered soonest and the last latest. A request that became a job is taken
by its job (`takes_job`), which says when it asks the server, and when it has all answers. When the reply goes
to the client the time is added (`answered`). What is timed when its link dies is forgotten: what is told of
that says more than a number does.

The time is from when the hub takes the request up to when it has handed the reply to the client's socket. So it
has in it how long requests wait in the gateway, for their turn, for a claim, or for hooks; not how long they
waited in the client's socket before (as while a policy held the session back, or its export was paused), and
not how long the client takes to read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.counts.seconds import ByCommand
from gateway.protocol.table import command_named

BATCHES = 32
"""Of so many batches one is sampled. To take a sample costs 1 us and more, which is a tenth of what a request
costs that comes alone: so less than a hundredth is left."""

NOTHING = 0
"""In place of a cookie: no request over a link is timed. (The first cookie of a link is 1.)"""


class Timing:
    """Of one session over one link. `clock` gives seconds; times are added to each of `whole` and to
    `upstream`.
    """

    __slots__ = (
        "_began",
        "_clock",
        "_job",
        "_received",
        "_sent",
        "_upstream",
        "_whole",
        "_word",
        "last_seconds",
        "last_upstream_seconds",
        "wants",
    )

    def __init__(
        self, clock: Callable[[], float], whole: Sequence[ByCommand], upstream: ByCommand
    ) -> None:
        self._clock = clock
        self._whole = whole
        self._upstream = upstream
        self._began = self._sent = self._received = 0.0
        self._word = 0
        self._job = False
        self.wants = False
        """The next job that begins is to be timed."""
        self.last_seconds: float | None = None
        """How long the request took that was timed last; None: there was none."""
        self.last_upstream_seconds: float | None = None
        """How long the server had it."""

    def comes(self) -> bool:
        """The client's socket is ready: say whether one of the requests that come is timed. Not if one is
        under way that is.
        """
        if self._job:
            return False
        self._began = self._clock()
        self.wants = True
        return True

    def sent(self, before: int, last: int, in_flight: dict[int, tuple[int, int, int, int]]) -> int:
        """The requests that came are on their way: those of them that go over the link have the cookies after
        `before`, up to `last`. Give the cookie of the one that is timed, or `NOTHING`.
        """
        if not self.wants:
            return NOTHING  # a job took it
        self.wants = False
        cookie = (before + last + 1) // 2
        entry = in_flight.get(cookie) if cookie > before else None
        if entry is None:
            return NOTHING
        self._word = entry[1]
        self._sent = self._clock()
        return cookie

    def now(self) -> float:
        """Give the time: of when the server's socket was ready that `answered` is about."""
        return self._clock()

    def answered(self, received: float) -> None:
        """The reply is handed on that was `received` then."""
        self._add(received - self._sent)

    # --- A request that is a job

    def takes_job(self, word: int) -> None:
        """A job begins for this command while one is wanted: it is the one."""
        self.wants = False
        self._job = True
        self._word = word
        self._sent = self._received = 0.0

    def asks(self) -> None:
        """The job asks the server, maybe not for the first time."""
        self._sent = self._sent or self._clock()

    def has_answers(self) -> None:
        """The server has answered all that the job has asked so far."""
        self._received = self._clock()

    def ends(self) -> None:
        """The job has ended."""
        self._job = False
        self._add(self._received - self._sent if self._sent and self._received else None)

    def _add(self, upstream: float | None) -> None:
        command = command_named(self._word)
        self.last_seconds = seconds = self._clock() - self._began
        for each in self._whole:
            each[command].add(seconds)
        self.last_upstream_seconds = upstream
        if upstream is not None:
            self._upstream[command].add(upstream)

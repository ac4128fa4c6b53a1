"""Which server of an upstream is connected to next, and when: decided without a clock, a socket or chance.

An upstream has one place or several (its URIs). Each place has a circuit:

- closed: whoever likes may connect. So it begins, and so it stays while connecting works;
- open, after a failure: nobody connects until the back-off has passed; then *one* client does, for all that
  wait (a probe). If that fails too, the next back-off is twice as long; if it works, the circuit is closed.

So a server that is down is asked as often by a thousand clients as by one. And nothing but a client's wish
makes us connect: a server that ends with its last connection (qemu-nbd without -t) is not asked how it is.

A client waits through back-offs only in the first `patience_seconds` of an outage: as long as a restart takes,
which then costs it nothing but time. Later the same wait would only be handed from client to client: who comes
within a back-off is told at once what the last one who tried was told.

It does wait to the end of these, or of its own time, and then there is a last attempt, whatever is left of
the back-off: a server is missed that is back in the last seconds otherwise, for the back-offs are long by
then. The patience that all have with an outage ends at the same time, so of a thousand clients one makes the
last attempt as well, and the others wait for what comes of it.

A place that does not answer at all takes its time to fail. It shares what a client has left equally with the
others that may be tried yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

FIRST_BACK_OFF_SECONDS = 0.25
"""After the first failure: a server that is being restarted is back in less than a second."""

MOST_BACK_OFF_SECONDS = 5.0
"""What doubling ends at: one connection every few seconds bothers nobody, and clients are turned away no longer
than that from a server that is back."""

LAST_SECONDS = 1.0
"""How long the last attempt may take, when a client's time is over: a server that is up takes a connection at
once, and the client of one that is not can bear to hear of it a second later."""

SAME_END_SECONDS = 0.01
"""The times of several clients that end so near to each other end together: one last attempt is for all of
them."""

ANOTHER_OUTAGE_SECONDS = 60.0
"""A failure that is older than this says nothing about now: the next one begins another outage."""


@dataclass(frozen=True, slots=True)
class Try:
    """Connect to this place now; tell `Circuits` what came of it."""

    place: int
    seconds: float
    """How long that may take."""
    began: float
    era: int
    """Which state of the place this was decided in: a result from before a change is no news."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again at this time, or as soon as anything has changed."""

    until: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It cannot be connected to."""

    why: str


@dataclass(frozen=True, slots=True)
class Outage:
    """What is over."""

    seconds: float
    failures: int


@dataclass(slots=True)
class _Circuit:
    """What is known of one place."""

    failures: int = 0
    """In a row; 0: the circuit is closed."""
    since: float = 0.0
    last: float = 0.0
    """When the first and the last of them were."""
    next_at: float = 0.0
    """Not tried before this."""
    why: str = ""
    probing: bool = False
    """Somebody is trying, while the circuit is open."""
    era: int = 0

    def may_be_tried(self, now: float) -> bool:
        return not self.failures or (not self.probing and now >= self.next_at)


class Circuits:
    """The circuits of one upstream's places, in the order in which those are to be tried.

    `stay`: the place that worked last comes first as long as it works. Else the first that works is taken, and
    one that is back is preferred again. `chance` gives numbers from 0 to 1, so that many gateways do not all
    come at once.
    """

    def __init__(
        self,
        count: int,
        *,
        patience_seconds: float,
        chance: Callable[[], float],
        stay: bool = False,
    ) -> None:
        self._circuits = [_Circuit() for _ in range(count)]
        self._patience_seconds = patience_seconds
        self._chance = chance
        self._stay = stay
        self._last = 0

    @property
    def down(self) -> bool:
        """None of them works, as far as is known."""
        return all(circuit.failures for circuit in self._circuits)

    @property
    def why(self) -> str:
        """What those who tried last were told."""
        whys = [circuit.why for circuit in self._circuits if circuit.why]
        return "; ".join(dict.fromkeys(whys)) or "there was no time to try"

    def next_step(
        self, now: float, deadline: float, *, patient: bool = True
    ) -> Try | Wait | GiveUp:
        """Say what a client is to do that has time until `deadline`. One that is not `patient` waits for no
        back-off to pass.
        """
        late = now >= deadline
        if now >= deadline + LAST_SECONDS:
            return GiveUp(self.why)
        due = [i for i in self._order() if self._circuits[i].may_be_tried(now)]
        if late:
            due = [i for i in due if not self._circuits[i].failures or self._has_last(i, deadline)]
        if due:
            seconds = LAST_SECONDS if late else (deadline - now) / len(due)
            return self._try(due[0], now, seconds)
        probing = any(circuit.probing for circuit in self._circuits)
        if not patient:
            return Wait(deadline) if probing and not late else GiveUp(self.why)
        times = []
        for i in self._order():
            circuit = self._circuits[i]
            if circuit.probing or not self._has_last(i, deadline):
                continue
            end = self._end(circuit, deadline)
            if now >= end:
                return self._try(i, now, max(LAST_SECONDS, deadline - now))
            times.append(min(circuit.next_at, end))
        if probing:
            # Whoever probes will be heard of.
            times.append(deadline + LAST_SECONDS if late else deadline)
        return Wait(min(times)) if times else GiveUp(self.why)

    def try_soon(self, now: float) -> None:
        """Somebody knows better than what was found: wait for no back-off any more."""
        for circuit in self._circuits:
            circuit.next_at = min(circuit.next_at, now)

    def _try(self, which: int, now: float, seconds: float) -> Try:
        circuit = self._circuits[which]
        circuit.probing = bool(circuit.failures)
        return Try(which, seconds, now, circuit.era)

    def _end(self, circuit: _Circuit, deadline: float) -> float:
        """Give when a client's patience with an outage ends."""
        return min(deadline, circuit.since + self._patience_seconds)

    def _has_last(self, which: int, deadline: float) -> bool:
        """Say whether an attempt is to be made yet before a client's patience with an outage ends."""
        circuit = self._circuits[which]
        return circuit.last + SAME_END_SECONDS <= self._end(circuit, deadline)

    def succeeded(self, tried: Try, now: float) -> Outage | None:
        """A connection has come about: give the outage that is over, if there was one."""
        self._last = tried.place
        before = self._circuits[tried.place]
        if not before.failures:
            return None
        self._circuits[tried.place] = _Circuit(era=before.era + 1)
        return Outage(now - before.since, before.failures)

    def failed(self, tried: Try, now: float, why: str) -> bool:
        """None has come about. Say whether that is news: the place was not known to be down."""
        circuit = self._circuits[tried.place]
        if tried.era != circuit.era:
            return False  # it was begun before what is known by now
        news = not circuit.failures
        if news or now - circuit.last > ANOTHER_OUTAGE_SECONDS:
            circuit.failures, circuit.since = 0, tried.began
        back_off = min(FIRST_BACK_OFF_SECONDS * 2**circuit.failures, MOST_BACK_OFF_SECONDS)
        circuit.failures += 1
        circuit.last = now
        circuit.next_at = now + back_off * (0.5 + self._chance() / 2)
        circuit.why = why
        circuit.probing = False
        circuit.era += 1
        return news

    def abandoned(self, tried: Try, now: float | None = None) -> None:
        """Whoever tried has left before it was known; or has had no more time, which was over `now`."""
        circuit = self._circuits[tried.place]
        if tried.era == circuit.era:
            circuit.probing = False
            if now is not None:
                circuit.last = now  # it was the last attempt of all whose time is over

    def _order(self) -> Iterable[int]:
        places = range(len(self._circuits))
        if not self._stay:
            return places
        return (self._last, *(i for i in places if i != self._last))

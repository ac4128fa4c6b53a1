"""How sessions come into a bundle, and whose turn it is.

A session has a *port*. What it asks is a *task*, which waits there until it is begun, and its answer is laid
there until the session takes it: a bundle never calls into a session that is in the middle of something else.

Ports take turns, by bytes (deficit round robin): in its turn a port may begin `TURN_BYTES`, and what it begins
beyond that it has less in the next. So a session with much to do holds up nobody, whatever the size of its
commands.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from gateway.protocol.asks import Ask, Done, Outcome
from gateway.scan.traffic import Traffic
from gateway.wire.constants import Cmd
from gateway.wire.limits import KIB

TURN_BYTES = 256 * KIB
"""How many bytes a port may begin in its turn. Less would cost more turns than it is worth."""

COMMAND_BYTES = 4 * KIB
"""The least that a command counts as: one without data costs the server something, too."""


@dataclass(slots=True, eq=False)
class Port:
    """A session's way into a bundle."""

    traffic: Traffic | None
    """What is under way for its session. None: it has none, so nobody is told of a loss through it."""
    wake: Callable[[], None]
    """Called when the first answer is there. Whoever is woken calls `Bundle.answers`."""
    left: bool = False
    """Its session has ended: no answer is wanted any more."""
    waiting: deque[Task] = field(default_factory=deque)
    """Tasks that have not been begun, in the order in which they were asked."""
    answered: list[tuple[Done, Outcome]] = field(default_factory=list)
    flushed: list[tuple[Done, Outcome]] = field(default_factory=list)
    """Answers to FLUSHes, which are handed out after all others that are there. A session that learns of a loss
    from a FLUSH takes what is answered after it for safe. So nothing that was written before the FLUSH may be
    answered after it."""

    @property
    def gone(self) -> bool:
        """Its client has gone, or said goodbye."""
        traffic = self.traffic
        return traffic is not None and traffic.debt.is_deaf()

    def has_waited(self) -> None:
        """Its client's requests had to wait for others, or for the server. If the client has gone meanwhile, it
        writes nothing any more.
        """
        if self.traffic is not None:
            self.traffic.has_waited()

    credit_bytes: int = 0
    """How many bytes it may still begin in this turn. Below zero: it has begun more than its turn."""


@dataclass(slots=True, eq=False)
class Task:
    """What a session asks. It has its answer when all of its parts have theirs."""

    ask: Ask
    done: Done
    port: Port
    missing: int = 0
    """Parts that have no answer yet."""
    outcome: Outcome = field(default_factory=Outcome)
    """What the answers come to. The first error is the task's."""
    written: bool = False
    """The server has acknowledged parts of it to us, and the task is not answered yet."""

    def expect(self, parts: int) -> None:
        """It is asked in so many parts."""
        self.missing = parts
        if parts > 1 and self.ask.command is Cmd.READ:
            self.outcome.data = bytearray(self.ask.length)

    def gather(self, part: Ask, outcome: Outcome) -> None:
        """One more part has its answer."""
        self.missing -= 1
        if self.outcome.error:
            return
        if part is self.ask:
            self.outcome = outcome
        elif outcome.error:
            self.fail(outcome.error, outcome.text, outcome.offset)
        elif part.command is Cmd.READ:
            at = part.offset - self.ask.offset
            self.outcome.data[at : at + part.length] = outcome.data

    def fail(self, error: int, text: str, offset: int | None = None) -> None:
        """Fail, whatever its parts come to."""
        self.outcome.error, self.outcome.text, self.outcome.offset = error, text, offset


class Ports:
    """The ports of one bundle."""

    def __init__(self) -> None:
        self.there: dict[Port, None] = {}
        """The ports of the sessions that are there."""
        self._turns: deque[Port] = deque()  # those with something to begin; the first has its turn
        self._to_wake: dict[Port, None] = {}  # those with answers, in the order in which they came
        self._to_wake_then: dict[Port, None] = {}  # those whose FLUSHes are answered
        self._waking = False

    def __bool__(self) -> bool:
        """Something waits to be begun."""
        return bool(self._turns)

    def __iter__(self) -> Iterator[Port]:
        """Give the ports with something that waits to be begun."""
        return iter(self._turns)

    def ask(self, port: Port, ask: Ask, done: Done) -> None:
        """Have something wait for its port's turn; `done` is called by `Bundle.answers`, once."""
        if not port.waiting:
            self._turns.append(port)
        port.waiting.append(Task(ask, done, port))

    def take(
        self, has_room: Callable[[], bool], must_wait: Callable[[Ask], bool]
    ) -> Iterator[Task]:
        """Give the tasks to begin, port by port, while there is room; without room nobody has a turn. A task
        that has to wait holds up its own port alone, and comes first there the next time.
        """
        waits = 0  # ports that have been asked one after the other, and all had to wait
        while waits < len(self._turns) and has_room():
            port = self._turns[0]
            if port.credit_bytes <= 0:
                port.credit_bytes += TURN_BYTES
            if port.credit_bytes > 0:
                if must_wait(port.waiting[0].ask):
                    waits += 1
                    self._turns.rotate(-1)
                    continue
                waits = 0
                task = port.waiting.popleft()
                port.credit_bytes -= max(task.ask.data_bytes, COMMAND_BYTES)
                yield task
            if not port.waiting:
                port.credit_bytes = 0
                self._turns.popleft()
            elif port.credit_bytes <= 0:
                self._turns.rotate(-1)

    def take_out(
        self, commands: Collection[Cmd] | None = None, of: Collection[Port] | None = None
    ) -> list[Task]:
        """Take out tasks that are not to be begun any more: those of some commands, of some ports, or all."""
        out = []
        for port in self._turns:
            if of is None or port in of:
                for task in list(port.waiting):
                    if commands is None or task.ask.command in commands:
                        port.waiting.remove(task)
                        out.append(task)
        self._turns = deque(port for port in self._turns if port.waiting)
        return out

    def answer(self, task: Task, outcome: Outcome) -> None:
        """Lay a task's answer into its port."""
        port = task.port
        if not port.left:
            if task.ask.command is Cmd.FLUSH:
                port.flushed.append((task.done, outcome))
                self._to_wake_then[port] = None
            else:
                port.answered.append((task.done, outcome))
                self._to_wake[port] = None

    def wake(self) -> None:
        """Wake the ports whose answers have come. A session may ask, leave and push while it is told, and a
        push comes here again. So we loop: a FLUSH that a hundred sessions share would else take us a hundred
        calls deep.
        """
        if self._waking:
            return
        self._waking = True
        try:
            self._wake()
        finally:
            self._waking = False

    def _wake(self) -> None:
        while self._to_wake or self._to_wake_then:
            if self._to_wake:
                port = next(iter(self._to_wake))
                del self._to_wake[port]
            else:
                port = next(iter(self._to_wake_then))
                del self._to_wake_then[port]
                port.answered += port.flushed
                port.flushed.clear()
            port.wake()

    def leave(self, port: Port) -> None:
        """Forget what a port has not begun, and what it would be told."""
        port.left = True
        port.traffic, port.wake = None, _nobody_is_woken
        self.there.pop(port, None)
        port.waiting.clear()
        port.answered.clear()
        port.flushed.clear()
        if port in self._turns:
            self._turns.remove(port)
        self._to_wake.pop(port, None)
        self._to_wake_then.pop(port, None)


def _nobody_is_woken() -> None:
    """The session of a port has left: it is free at once if nothing leads to it any more."""

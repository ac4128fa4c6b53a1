"""etcd: one queue, in which everybody's steps take what they were measured to take.

Three members agree on each write, and the leader does most of the work: it is what has an end. So it is one
queue here. A step takes its turn, keeps the leader busy for as long as it costs when very many are asked at
once, and its answer comes so much later as it takes when nobody else asks. Renewals of leases stand in the same
queue as all else. etcd has no other one for them, and if it had, they have the same processors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.sim.world import World


@dataclass(frozen=True, slots=True)
class Step:
    """What one kind of question costs, in seconds: how long the answer takes where nobody else asks, and for
    how long it keeps etcd from others.
    """

    alone: float
    busy: float


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured."""

    renewal: Step
    read: Step
    write: Step
    key_removed: float
    """For how long etcd is busy with each key of a lease that has ended, in seconds."""
    notice: float
    """How long after its end a lease is found to have ended, at most, in seconds."""

    def slower(self, times: float) -> Costs:
        """Give those of an etcd that takes so many times as long."""

        def of(step: Step) -> Step:
            return Step(times * step.alone, times * step.busy)

        steps = of(self.renewal), of(self.read), of(self.write)
        return Costs(*steps, times * self.key_removed, self.notice)


class Engine:
    """One etcd. `done` of each question is called at its turn's end, when etcd has done it; `then` when the
    answer is there.
    """

    def __init__(self, world: World, costs: Costs) -> None:
        self.costs = costs
        self.busy_seconds = 0.0
        """For how long it has been at work in all."""
        self._world = world
        self._free = 0.0

    def ask(
        self,
        step: Step,
        then: Callable[[], object] | None = None,
        done: Callable[[], object] | None = None,
    ) -> None:
        """Ask something."""
        waits = max(0.0, self._free - self._world.now)
        self._free = self._world.now + waits + step.busy
        self.busy_seconds += step.busy
        if done is not None:
            self._world.later(waits + step.busy, done)
        if then is not None:
            self._world.later(waits + max(step.alone, step.busy), then)

"""What workers give on machines that nobody here has: computed from what a request costs. Pure.

The disks are spread by the gateway's own hash (`gateway.workers.rendezvous`), each worker has a processor to
itself, and clients, servers and the network keep up. A request costs what it costs with one worker, and as much
more for each further worker as was measured. Two kinds of load stand for all that there is between them:

- `any`: each disk asks as fast as it is answered. A worker that has a disk at all is busy.
- `alike`: all disks ask for the same. The worker that has most of them is busy, and the others wait for it.

What is given is how many times as much as one worker there is, over many sets of disks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import fmean

from gateway.workers.rendezvous import key_bytes, worker_of

NUMBERS = (1, 2, 4, 8, 16, 32, 64)
"""Workers."""

DISKS = (8, 64, 512)

SETS = 40
"""Sets of disks, each with other names."""


@dataclass(frozen=True)
class Costs:
    """Processor time for a request, in microseconds, with one worker and with several."""

    one: float
    several: float
    workers: int

    def at(self, workers: int) -> float:
        """What it is with so many. It never gets less: what was measured so was chance."""
        more = max(0.0, self.several - self.one) / (self.workers - 1)
        return self.one + more * (workers - 1)


@dataclass(frozen=True)
class Gain:
    """How many times as much as one worker there is, by the two kinds of load."""

    any: float
    alike: float


def loads(disks: int, workers: int, number: int) -> Counter[int]:
    """Give how many disks each worker has that has any, of one set."""
    keys = (key_bytes(("server", str(number), f"disk{disk}")) for disk in range(disks))
    return Counter(worker_of(key, workers) for key in keys)


def gain(costs: Costs, disks: int, workers: int, sets: int = SETS) -> Gain:
    """Compute one point."""
    slower = costs.at(workers) / costs.at(1)
    found = [loads(disks, workers, number) for number in range(sets)]
    return Gain(
        fmean(len(each) for each in found) / slower,
        fmean(disks / max(each.values()) for each in found) / slower,
    )

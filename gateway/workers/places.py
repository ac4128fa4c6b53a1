"""How many clients each listener has in all workers: `max-connections` of `[[listen]]` holds for them together.

It is a table in memory that all processes share: a row for each listener, and in it a number for each worker,
which writes that one alone. So nobody waits for anybody, and nobody asks anybody: to know how many there are is
to add up as many numbers as there are workers, once for each client that connects.

A worker counts a client before it adds up. So of two that come at the same moment for one place at least one is
turned away, perhaps both; never are there more than may be. One that is handed over is counted where it goes
before it is counted no more where it came in: for a moment it has two places. A worker that has died has its
numbers set to zero by the supervisor, before there is another one in its place.
"""

from __future__ import annotations

import mmap
import os

from gateway.config.models import MAX_WORKERS

MOST_LISTENERS = 1024
"""Rows. Addresses of a configuration are few; a row is never used again for another one."""

_NUMBER = 4
_SIZE = MOST_LISTENERS * MAX_WORKERS * _NUMBER


def shared_memory() -> int:
    """Make the memory of a table, and give its descriptor. Raises `OSError`."""
    descriptor = os.memfd_create("nbd-gateway-places", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, _SIZE)
    return descriptor


class Places:
    """The table, as one process has it. `descriptor` stays the caller's."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _SIZE)
        self._numbers = memoryview(self._memory).cast("I")

    def add(self, row: int, worker: int, number: int) -> None:
        """Count a client (1), or count it no more (-1)."""
        self._numbers[row * MAX_WORKERS + worker] += number

    def there(self, row: int) -> int:
        """Give how many there are."""
        return sum(self._numbers[row * MAX_WORKERS : (row + 1) * MAX_WORKERS])

    def forget(self, worker: int) -> None:
        """A worker has died."""
        for row in range(MOST_LISTENERS):
            self._numbers[row * MAX_WORKERS + worker] = 0

"""Stand-in until the machinery lands."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple


class Unit(Enum):
    """What a bucket counts."""

    BYTES = "bytes"
    OPERATIONS = "operations"


class Bucket:
    """A token bucket."""

    def __init__(
        self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.per_second, self.burst, self.clock = per_second, burst, clock

    def change(self, per_second: float, burst: float) -> None:
        """Change it while it is in use."""
        self.per_second, self.burst = per_second, burst


class Charge(NamedTuple):
    """What a command is charged to."""

    bucket: Bucket
    unit: Unit

"""How many workers there are."""

from __future__ import annotations

import os

from gateway.config import Config
from gateway.config.models import MAX_WORKERS


def number_of(config: Config) -> int:
    """Give how many workers a configuration means on this machine."""
    if config.workers == "auto":
        return min(MAX_WORKERS, processors())
    return config.workers


def processors() -> int:
    """Give how many processors the gateway may use."""
    return len(os.sched_getaffinity(0))


def one_each(workers: int) -> bool:
    """Say whether there is a processor for each of so many workers."""
    return workers <= processors()

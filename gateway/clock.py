"""What time it is here, in the time zone of the machine: for policies, which say what holds in which hours."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from functools import lru_cache


def here() -> datetime:
    """Give the time now, with its zone.

    Not by `datetime.astimezone`: that looks for its own methods by names that it makes anew, and the
    interpreter's cache of names keeps them, amidst what sessions allocate, which could not be given back when
    they have gone.
    """
    seconds = time.time()
    return datetime.fromtimestamp(seconds, _zone(int(seconds // 60)))


@lru_cache(maxsize=1)
def _zone(minute: int) -> timezone:
    """Give the zone in a minute of the epoch: it changes at whole minutes, and each option of a client asks."""
    local = time.localtime(60 * minute)
    return timezone(timedelta(seconds=local.tm_gmtoff), local.tm_zone)

"""What time it is here, in the time zone of the machine: for policies, which say what holds in which hours."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone


def here() -> datetime:
    """Give the time now, with its zone.

    Not by `datetime.astimezone`: that looks for its own methods by names that it makes anew, and the
    interpreter's cache of names keeps them, amidst what sessions allocate, which could not be given back when
    they have gone.
    """
    seconds = time.time()
    local = time.localtime(seconds)
    return datetime.fromtimestamp(
        seconds, timezone(timedelta(seconds=local.tm_gmtoff), local.tm_zone)
    )

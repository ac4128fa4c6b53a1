"""Ids of sessions: one for each client that connects, the same in the log, the audit log, a trace, and whatever
shows who is there. They are short, and no other run of a gateway has the same ones. So what one client did can
be found in the logs of months by its id alone.
"""

from __future__ import annotations

import secrets
from itertools import count

_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
"""Such as nobody mistakes for another when he reads them aloud."""

RUN_LETTERS = 6
"""So many say which run it was: of a thousand runs, two have the same ones once in two thousand times."""

RUN = "".join(secrets.choice(_LETTERS) for _ in range(RUN_LETTERS))
"""What the ids of this run begin with."""

_numbers = count(1)


def new_id() -> str:
    """Give an id that no client has had."""
    return f"{RUN}-{next(_numbers)}"

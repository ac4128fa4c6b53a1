"""How many files we may have open, and what is said when there are too few."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import suppress

MAX_DESCRIPTORS = 1_048_576
"""Up to where the limit of open files is raised: two sockets for each client, and the kernel's own cap."""


def why_short(number: int) -> str:
    """Say what there is too little of, to somebody who can have more of it."""
    text = os.strerror(number)
    if number != errno.EMFILE:
        return text
    limit, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"{text}: the limit is {limit}, raise it with ulimit -n or systemd's LimitNOFILE"


def raise_limit() -> None:
    """Take as many descriptors as we may have: the usual limit of 1,024 is met by 500 clients."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

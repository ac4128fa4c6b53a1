"""Standard error that is systemd's journal: each line says how urgent it is, in the way of sd-daemon(3).

The journal notes by itself when a line came. So lines for people have no time of their own there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

VARIABLE = "JOURNAL_STREAM"
"""By it systemd says which file the journal is: `device:inode` (systemd.exec(5))."""

PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "exception": 3}
"""Of each method of a logger, as syslog(3) numbers them."""


def is_journal(stream: Any, environment: Mapping[str, str]) -> bool:
    """Say whether a stream leads to the journal. The variable alone does not: a shell may redirect us."""
    said = environment.get(VARIABLE, "")
    try:
        status = os.fstat(stream.fileno())
    except (AttributeError, OSError, ValueError):  # None, or there is no descriptor
        return False
    return said == f"{status.st_dev}:{status.st_ino}"


def with_priority(_logger: Any, method: str, text: str) -> str:
    """Begin each line with its priority: a traceback has many, and the journal takes each by itself. (For
    structlog: a processor.)
    """
    prefix = f"<{PRIORITIES[method]}>"
    return "\n".join(prefix + line for line in text.split("\n"))

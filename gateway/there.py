"""What is not there, and what may not be looked at, are two things.

`Path.exists` and its like raise for a directory that may not be entered and for a name that is too long, or say
no, as the version of Python has it. Whoever then reads "is gone" looks for a file that is there. A path may
also not be there because it was not meant as it stands.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR})


def status_of(path: Path) -> os.stat_result | None:
    """Give what stat(2) says of where a path leads; None: nothing is there. Raises `OSError` if that may not or
    cannot be seen.
    """
    try:
        return path.stat()
    except OSError as error:
        if error.errno in NOT_THERE:
            return None
        raise
    except ValueError:  # NUL in the path, which nothing has
        return None


def unseen(error: OSError) -> str:
    """Say what is wrong with what may not or cannot be looked at."""
    return f"cannot be looked at: {error.strerror or error}"


def seems_there(path: Path) -> bool:
    """Say whether something is there, and may be seen."""
    try:
        return status_of(path) is not None
    except OSError:
        return False


def unexpanded(path: Path | str) -> str:
    """Give what is to be added to an error about a path: that nobody expands the ~ at its beginning. Empty
    where there is none, or where something is called so.
    """
    first = Path(path).parts[:1]
    if not first or not first[0].startswith("~") or os.path.lexists(first[0]):
        return ""
    return "; ~ is not expanded here: write the path in full"

"""Places for sockets that nobody else is to reach."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import weakref
from pathlib import Path

from gateway.uri import MAX_SOCKET_PATH_BYTES

NAME = "socket"
PREFIX = "nbd-gateway-"

CHANCE_CHARACTERS = 8
"""What `tempfile` adds to a name."""


def without_room() -> str | None:
    """Say why there can be no private socket; None if nothing is known against it. None is made."""
    try:
        directory = tempfile.gettempdir()
    except OSError as error:
        return str(error.strerror)
    return _too_long(str(Path(directory) / (PREFIX + "x" * CHANCE_CHARACTERS) / NAME))


def _too_long(path: str) -> str | None:
    length = len(os.fsencode(path))
    if length <= MAX_SOCKET_PATH_BYTES:
        return None
    return (
        f"a socket there would have a path of {length} bytes, and a Unix socket's has at most"
        f" {MAX_SOCKET_PATH_BYTES}: set TMPDIR to a shorter directory than {tempfile.gettempdir()}"
    )


class PrivateSocket:
    """A path for a socket, in a directory that is ours alone (`tempfile`). Raises `OSError`, whose text says
    what is to blame.
    """

    def __init__(self, path: str | None = None) -> None:
        """`path`: one that another process made, and leaves to us."""
        directory = tempfile.mkdtemp(prefix=PREFIX) if path is None else Path(path).parent
        self.path = str(Path(directory) / NAME)
        # A process that ends without a word to us removes it, as `tempfile` does.
        self._removes = weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        if why := _too_long(self.path):
            self.remove()
            raise OSError(errno.ENAMETOOLONG, why)

    def remove(self) -> None:
        """Remove the directory, with all that is in it."""
        self._removes()

    def leave(self) -> None:
        """Leave it to another process: it is not removed here."""
        self._removes.detach()

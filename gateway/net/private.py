"""Places for sockets that nobody else is to reach."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from gateway.uri import MAX_SOCKET_PATH_BYTES

NAME = "socket"


class PrivateSocket:
    """A path for a socket, in a directory that is ours alone (`tempfile`). Raises `OSError`, whose text says
    what is to blame.
    """

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="nbd-gateway-")
        self.path = str(Path(self._directory.name) / NAME)
        length = len(os.fsencode(self.path))
        if length > MAX_SOCKET_PATH_BYTES:
            self.remove()
            text = (
                f"a socket there would have a path of {length} bytes, and a Unix socket's has at most"
                f" {MAX_SOCKET_PATH_BYTES}: set TMPDIR to a shorter directory than {tempfile.gettempdir()}"
            )
            raise OSError(errno.ENAMETOOLONG, text)

    def remove(self) -> None:
        """Remove the directory, with all that is in it."""
        self._directory.cleanup()

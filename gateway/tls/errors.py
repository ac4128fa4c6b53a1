"""What goes wrong with TLS: a file of ours (whoever runs the gateway mends it), or the peer (hang up)."""

from __future__ import annotations

from pathlib import Path


class CredentialsError(Exception):
    """Credentials cannot be used. `path` is the file to mend (None: it is no one file), `problem` says what
    was expected of it, and what came.
    """

    def __init__(self, path: Path | None, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return self.problem if self.path is None else f"{self.path}: {self.problem}"


class NotAdmitted(Exception):
    """A peer has ended its handshake and may not go on all the same; the text is for the log. Hang up."""

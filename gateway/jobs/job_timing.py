"""What a job tells whoever times it."""

from __future__ import annotations

from typing import Protocol


class JobTiming(Protocol):
    """Times a job (`gateway.scan.timing`)."""

    wants: bool
    """The next job that begins is the one."""

    def takes_job(self, word: int) -> None:
        """A job begins for this command."""
        ...

    def asks(self) -> None:
        """It asks the server."""
        ...

    def has_answers(self) -> None:
        """The server has answered all that was asked."""
        ...

    def ends(self) -> None:
        """It has ended."""
        ...

"""What goes wrong with TLS: a file of ours (whoever runs the gateway mends it), or the peer (hang up)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from gateway.there import unexpanded


class CredentialsError(Exception):
    """Credentials cannot be used. `path` is the file to mend (None: it is no one file), `problem` says what
    was expected of it, and what came.
    """

    def __init__(self, path: Path | None, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        if self.path is None:
            return self.problem
        return f"{self.path}: {self.problem}{unexpanded(self.path)}"

    @property
    def each(self) -> tuple[CredentialsError, ...]:
        """What is wrong, each with its own file."""
        return (self,)


class SeveralErrors(CredentialsError):
    """Credentials cannot be used, and more than one thing is to be mended."""

    def __init__(self, errors: Sequence[CredentialsError]) -> None:
        self._errors = tuple(errors)
        super().__init__(None, "; ".join(map(str, errors)))

    @property
    def each(self) -> tuple[CredentialsError, ...]:
        """What is wrong, each with its own file."""
        return self._errors


@contextmanager
def all_told() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Have all that is wrong told at once: else whoever mends files would have to start us after each.

    Gives what marks a part. The `CredentialsError` of one part keeps no other from being tried. It is raised at
    the end, with all others.
    """
    found: list[CredentialsError] = []

    @contextmanager
    def part() -> Iterator[None]:
        try:
            yield
        except CredentialsError as error:
            found.extend(error.each)

    yield part
    if found:
        raise found[0] if len(found) == 1 else SeveralErrors(found)


class NotAdmitted(Exception):
    """A peer has ended its handshake and may not go on all the same; the text is for the log. Hang up."""

"""What goes wrong with TLS: in a file of ours (whoever runs the gateway mends it), or in a peer (hang up)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from gateway.there import unexpanded


class CredentialsError(Exception):
    """Credentials cannot be used. `path` is the file to mend (None: no single file), `problem` says what was
    expected of it, and what came.
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
    """Tell all that is wrong at once. Otherwise whoever mends files would have to start us again after each.

    Gives a function that marks a part. If one part raises a `CredentialsError`, the others are tried all the
    same, and all errors are raised together at the end.
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
    """A peer has completed its handshake, and may not go on all the same. Hang up; the text is for the log."""

"""What is wrong with a configuration, and where: each at its file, line and key."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from gateway.config.base import shown
from gateway.config.lines import KeyPath


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong. Without a line it concerns the file; without a file, the command line."""

    file: str
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        said = ": ".join(filter(None, (place, self.key, self.message)))
        # Messages repeat what was written, and that may be a stranger's file: no terminal obeys it.
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in said)


class ConfigError(Exception):
    """A configuration that cannot be used; whoever wrote it has to mend it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class Spot(NamedTuple):
    """Where a user finds a key of the data."""

    line: int | None
    key: str
    """What it is called there."""
    file: str | None = None
    """None: where all of it came from."""


Place = Callable[[KeyPath], Spot]


def problem_at(spot: Spot, source: str, message: str) -> Problem:
    """Give what is wrong at a spot of what came from `source`."""
    return Problem(source if spot.file is None else spot.file, spot.line, spot.key, message)


def dotted(path: KeyPath) -> str:
    """`export.name`: positions are left out, for the line says which one."""
    return ".".join(
        key if re.fullmatch("[A-Za-z0-9_-]+", key) else shown(key)
        for key in path
        if isinstance(key, str)
    )

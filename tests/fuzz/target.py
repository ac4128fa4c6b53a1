"""What a target is, and what is asked of each: the same from the same bytes, however they are cut."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

Pieces = Sequence[bytes]

MAX_TEXT_CHARACTERS = 1000
"""Of an error's text, which is one line of the log: the longest repeat a name of 80 characters or a line of 107
bytes, escaped."""


@dataclass(frozen=True)
class Target:
    """A reader, and whole messages to make its input of."""

    run: Callable[[Pieces], object]
    """Gives what it has read. Raises nothing but what is a finding: the errors that it documents are caught."""
    start: tuple[bytes, ...]
    messages: tuple[bytes, ...]
    comes_in_pieces: bool = True
    """What is read as a whole (a file, a certificate) is never given in pieces."""


def check(target: Target, data: bytes) -> None:
    """Read bytes whole and in pieces, which the bytes themselves decide, so that a finding is found again.

    Raises whatever is a finding; `AssertionError` for a promise that is broken.
    """
    whole = target.run([data])
    if target.comes_in_pieces:
        in_pieces = target.run(cut(Random(zlib.crc32(data)), data))
        assert in_pieces == whole, f"in pieces {in_pieces!r}, and whole {whole!r}"


def cut(random: Random, data: bytes) -> list[bytes]:
    """Cut into pieces of any length, one at least."""
    found = [data[:0]]
    while data:
        length = random.choice((1, 3, 16, 28, 100, len(data)))
        found.append(data[:length])
        data = data[length:]
    return found


def kind_of(error: Exception) -> str:
    """Give what kind of error a reader has raised; its text has to be fit for the log."""
    text = str(error)
    assert text.isprintable(), text
    assert len(text) <= MAX_TEXT_CHARACTERS, text
    return type(error).__name__

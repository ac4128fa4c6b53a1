"""Which line of a TOML text a key stands on.

tomllib gives values and forgets where they stood, and a message without a line sends people searching.
We need no second parser for it, because of two facts about TOML's grammar:

- A statement (a key with its value, or a header) ends at the first end of a line where no bracket and no
  text is open. To try tomllib on it with each of its lines would tell as well, and take a minute for 8,000.
- A statement parses by itself. A header does too: `[a."b.c"]` is {"a": {"b.c": {}}}, `[[a]]` is {"a": [{}]}.

What lies inside one statement (an inline table, a list over several lines) is placed at the statement's
first line.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the top: `("export", 0, "name")`."""


class TextLines:
    """The lines of a text that tomllib accepts as a whole."""

    def __init__(self, text: str) -> None:
        self._lines: dict[KeyPath, int] = {(): 1}
        # For each array of tables, how many of its tables we have come across.
        self._tables: dict[KeyPath, int] = {}
        header: KeyPath = ()
        for line, statement, is_header in _statements(text):
            if is_header:
                header = self._open(statement)
                self._place(header, line)
            else:
                for path in _paths(statement, header):
                    self._lines.setdefault(path, line)

    def __getitem__(self, path: KeyPath) -> int:
        """The line of `path`; for one that is not there, of the innermost table that could have it."""
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]

    def _place(self, path: KeyPath, line: int) -> None:
        for end in range(1, len(path) + 1):
            self._lines.setdefault(path[:end], line)

    def _open(self, header: dict[str, Any]) -> KeyPath:
        """Where the keys below this header belong: in an array, that is its newest table."""
        path: KeyPath = ()
        inner: Any = header
        while inner:
            key, inner = next(iter(inner.items()))
            path += (key,)
            if isinstance(inner, list):
                self._tables[path] = self._tables.get(path, 0) + 1
                inner = inner[0]
            if path in self._tables:
                path += (self._tables[path] - 1,)
        return path


def statement_at_end(text: str) -> int:
    """The line on which the last, never finished statement of a broken text begins."""
    begin = 1
    for line, _, _ in _statements(text):
        begin = line
    return begin


def _statements(text: str) -> Iterator[tuple[int, dict[str, Any], bool]]:
    """Each statement as (its first line, what it parses to, whether it is a header).

    Of an unfinished statement at the end only the first line is true.
    """
    text += "\n"
    line, start = 1, 0
    for end in _ends(text):
        whole = text[start:end]
        try:
            statement = tomllib.loads(whole)
        except ValueError:
            break
        if statement:
            yield line, statement, whole.lstrip().startswith("[")
        line += whole.count("\n")
        start = end
    if start < len(text):
        yield line, {}, False


# Texts and comments may have in them what means nothing there: brackets, ends of lines. Those are the rest. A
# text may lack its end: what is in it is not looked at a second time, or long ones would take a square of it.
_TOKEN = re.compile(
    r'''"""(?:\\.|[^\\])*?(?:"{3,5}|\Z)|\'\'\'.*?(?:'{3,5}|\Z)|"(?:\\.|[^"\\\n])*"?|'[^'\n]*'?|\#[^\n]*|[][{}\n]''',
    re.DOTALL,
)
_OPENS = {"[": 1, "{": 1, "]": -1, "}": -1}


def _ends(text: str) -> Iterator[int]:
    """Where a statement, a comment or an empty line ends: behind each line that leaves nothing open."""
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += _OPENS.get(token[0], 0)
        if token[0] == "\n" and not depth:
            yield token.end()


def _paths(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    """The paths of all keys and list positions inside the value at `path`, itself included and first. What is
    nested more deeply than Python calls functions raises `RecursionError`, before paths take a square of it.
    """
    yield path
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for key, item in inner:
        yield from _paths(item, (*path, key))

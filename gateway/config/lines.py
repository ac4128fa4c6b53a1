"""Which line of a TOML text a key stands on.

tomllib gives values and forgets where they stood, and a message without a line sends people searching.
We need no second parser for it, because of two facts about TOML's grammar:

- A statement (a key with its value, or a header) ends at the end of a line, and no shorter run of whole
  lines is a statement: an unfinished string or array never parses. So from the start of a statement, the
  shortest run of lines that tomllib accepts *is* the statement.
- A header parses by itself too: `[a."b.c"]` is {"a": {"b.c": {}}}, `[[a]]` is {"a": [{}]}.

What lies inside one statement (an inline table, a list over several lines) is placed at the statement's
first line.
"""

import tomllib
from collections.abc import Iterator
from typing import Any

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the top: `("export", 0, "name")`."""


class Lines:
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
                for path in _paths(statement):
                    self._place(header + path, line)

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
    begin, pending = 1, ""
    # Not splitlines(): to TOML a form feed or U+2028 ends no line.
    for number, line in enumerate(text.split("\n"), start=1):
        if not pending:
            begin = number
        pending += line + "\n"
        try:
            statement = tomllib.loads(pending)
        except ValueError:
            continue
        if statement:
            yield begin, statement, pending.lstrip().startswith("[")
        pending = ""
    if pending:
        yield begin, {}, False


def _paths(value: Any) -> Iterator[KeyPath]:
    """The paths of all keys and list positions inside a value, itself (the empty path) included."""
    yield ()
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for key, item in inner:
        for path in _paths(item):
            yield (key, *path)

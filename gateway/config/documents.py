"""A configuration's data: what its file says, and those that it includes, with values that stand elsewhere.

    include = ["conf.d/*.toml"]                   # more [[listen]], [[export]], [[rule]] and [upstream.NAME]
    uri = "nbd://${env:STORAGE}:10809"            # a variable of the environment
    psk = "${env:CREDENTIALS_DIRECTORY}/keys"
    uri = "nbd://${file:/run/addresses/storage}"  # what a file says, without the end of its line

Included files come behind the one that includes them, in the order of the patterns, and of their names for each
pattern; so the rules of `10-` match before those of `20-`. What there can be one of only (`[log]`,
`drain-seconds`, an upstream of a name) is in one file: which of two counts would be a riddle.

What stands elsewhere is put in before anything is checked, and only where addresses and secrets are
(`REPLACED`): there a text may differ from machine to machine, or be nobody's business. In any other place it
is an error, for to take `${env:X}` as it stands is not what was meant.

All of it is read anew for each reload, and nothing counts if anything is wrong.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.config.base import shown
from gateway.config.lines import KeyPath, TextLines
from gateway.config.problems import ConfigError, Problem, Spot, dotted, problem_at
from gateway.config.texts import STANDARD_INPUT, content_of, named, text_of, toml

MOST_FILES = 1000
"""Files that one configuration includes: more than anybody has machines for one gateway."""

MOST_BYTES = 16 << 20
"""Of all of them: the lines of so much text are found in a second or two."""

MOST_VALUE_BYTES = 64 << 10
"""Of a file with a value: addresses and paths are shorter, and a disk given by mistake is not."""

ARRAYS = ("listen", "export", "rule")
"""What a file adds to."""

REPLACED = (
    *(
        ("listen", "uri"),
        ("listen", "certificates"),
        ("listen", "psk"),
        ("listen", "proxy-protocol"),
    ),
    *(("upstream", "uri"), ("upstream", "uris"), ("upstream", "command")),
    *(("upstream", "certificates"), ("upstream", "psk"), ("upstream", "psk-user")),
    *(("control", "socket"), ("rule", "who", "network")),
    *(("admin", "uri"), ("admin", "tokens"), ("admin", "certificates")),
)
"""The keys in which `${env:NAME}` and `${file:PATH}` are replaced; the names of upstreams are left out."""

_ELSEWHERE = re.compile(r"(\$?)\$\{(env|file):([^}]*)\}")
"""With another `$` before it, it stands for itself."""

Note = Callable[[Path], None]
"""Is told of each file, and each directory, just before it is looked at."""


@dataclass
class Document:
    """The data of a configuration."""

    data: dict[str, Any]
    source: str
    """What came first: the file that includes the others."""
    _lines: dict[str, TextLines]
    """Of each file."""
    _from: dict[KeyPath, tuple[str, KeyPath]] = field(default_factory=dict)
    """Where a key of the data that was included comes from: a file, and the key there."""

    @property
    def is_several(self) -> bool:
        """Say whether it is of several files."""
        return len(self._lines) > 1

    def place(self, path: KeyPath) -> Spot:
        """Say where a key of the data was written."""
        for length in (2, 1):
            if path[:length] in self._from:
                file, there = self._from[path[:length]]
                return Spot(self._lines[file][there + path[length:]], dotted(path), file)
        return Spot(self._lines[self.source][path], dotted(path), self.source)

    def problem(self, path: KeyPath, message: str) -> Problem:
        """Give what is wrong with a key of the data."""
        return problem_at(self.place(path), self.source, message)


def written(
    text: str, source: str, directory: Path | None = None, note: Note = lambda _path: None
) -> Document:
    """Give what a text says that came from `source`, with all that it means of other files. Those that it
    includes are looked for from a directory on; None: it may include none. Raises `ConfigError`.
    """
    try:
        document = Document(toml(text, source), source, {source: TextLines(text)})
        patterns = document.data.get("include", [])
        if isinstance(patterns, list) and all(isinstance(each, str) for each in patterns):
            _include(document, patterns, directory, note, MOST_BYTES - len(text))
        found = list(_replaced(document.data, (), note))
    except RecursionError:  # tomllib bears a dotted key of 20,000 parts
        raise ConfigError([Problem(source, None, "", "nested too deeply")]) from None
    if found:
        raise ConfigError([document.problem(path, message) for path, message in found])
    return document


def read(path: Path, note: Note = lambda _path: None) -> Document:
    """Read a file, and all that it means of others. Raises `ConfigError`."""
    note(path)
    directory = Path() if path == STANDARD_INPUT else path.parent
    return written(text_of(path), named(path), directory, note)


# --- Including


def _include(
    document: Document, patterns: list[str], directory: Path | None, note: Note, most: int
) -> None:
    problems: list[Problem] = []
    left = most
    for number, pattern in enumerate(patterns):
        at = ("include", number)
        try:
            if directory is None:
                raise ValueError("only a file includes others")
            files = _files(directory, pattern, note)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            problems.append(document.problem(at, f"{shown(pattern)}: {why}"))
            continue
        for file in files:
            note(file)
            try:
                text = text_of(file)
                left -= len(text)
                if str(file) in document._lines:
                    raise ConfigError([document.problem(at, f"{file} is included already")])
                if len(document._lines) > MOST_FILES or left < 0:
                    few = f"no more than {MOST_FILES} files of {MOST_BYTES >> 20} MiB together"
                    raise ConfigError([document.problem(at, f"expected {few}")])
                problems += _add(document, str(file), text)
            except ConfigError as error:
                problems += error.problems
                if left < 0 or len(document._lines) > MOST_FILES:
                    raise ConfigError(problems) from None
    if problems:
        raise ConfigError(problems)


def _files(directory: Path, pattern: str, note: Note) -> list[Path]:
    """Give the files of a pattern, by their names. Raises `OSError`, `ValueError`."""
    wanted = directory / pattern
    if not pattern or "\0" in pattern:
        raise ValueError("expected a path, or a pattern such as conf.d/*.toml")
    if re.search(r"[*?\[]", str(Path(pattern).parent)):
        raise ValueError("* ? [ ] are for the name of a file, and not for its directories")
    if not re.search(r"[*?\[]", wanted.name):
        return [wanted]
    note(wanted.parent)
    if not wanted.parent.exists():
        return []  # it may come, with files in it
    # As shells have it: what begins with a dot is hidden (an editor's copies).
    hidden = wanted.name.startswith(".")
    found = [each for each in wanted.parent.glob(wanted.name) if hidden or each.name[0] != "."]
    return sorted(each for each in found if not each.is_dir())


def _add(document: Document, file: str, text: str) -> Iterator[Problem]:
    """Add what a file says; give what is wrong with it. Raises `ConfigError`."""
    data = toml(text, file)
    lines = document._lines[file] = TextLines(text)
    whole = document.data

    def wrong(path: KeyPath, message: str) -> Problem:
        return Problem(file, lines[path], dotted(path), message)

    for key, value in data.items():
        there = whole.get(key)
        if key == "include":
            yield wrong((key,), "a file that is included includes no others")
        elif key in ARRAYS:
            if not isinstance(value, list):
                yield wrong((key,), f"expected [[{key}]], got {shown(value)}")
                continue
            if not isinstance(there, list):
                if there is not None:
                    continue  # the models complain of it
                there = whole[key] = []
            for number, table in enumerate(value):
                document._from[key, len(there)] = file, (key, number)
                there.append(table)
        elif key == "upstream" and isinstance(value, dict) and isinstance(there, dict | None):
            upstreams = whole.setdefault(key, {})
            for name, table in value.items():
                if name in upstreams:
                    first = document.place((key, name))
                    yield wrong((key, name), f"is in {first.file}:{first.line} as well")
                else:
                    document._from[key, name] = file, (key, name)
                    upstreams[name] = table
        elif key in whole:
            first = document.place((key,))
            yield wrong((key,), f"is in {first.file}:{first.line} as well")
        else:
            document._from[key,] = file, (key,)
            whole[key] = value


# --- Values from elsewhere


def _replaced(value: Any, path: KeyPath, note: Note) -> Iterator[tuple[KeyPath, str]]:
    """Put in what stands elsewhere, in place; give what cannot be, and where."""
    items: Iterator[tuple[str | int, Any]] = iter(())
    if isinstance(value, dict):
        items = iter(value.items())
    elif isinstance(value, list):
        items = enumerate(value)
    for key, each in items:
        at = (*path, key)
        if not isinstance(each, str):
            yield from _replaced(each, at, note)
        elif _ELSEWHERE.search(each):
            try:
                if not _may_be_elsewhere(at):
                    keys = ", ".join(dict.fromkeys(names[-1] for names in REPLACED))
                    raise ValueError(
                        f"{shown(each)}: only in {keys} is this replaced; $${{ stands for ${{ there"
                    )
                value[key] = _ELSEWHERE.sub(lambda found: _meant(found, note), each)
            except ValueError as error:
                yield at, str(error)


def _may_be_elsewhere(path: KeyPath) -> bool:
    """Say whether a key is one of `REPLACED`: without positions, and the names of upstreams."""
    keys = tuple(key for key in path if isinstance(key, str))
    return (keys[:1] + keys[2:] if keys[0] == "upstream" else keys) in REPLACED


def _meant(found: re.Match[str], note: Note) -> str:
    """Give what is meant by `${...}`. Raises `ValueError`."""
    escaped, kind, name = found.groups()
    if escaped:
        return found[0][1:]
    return (_of_environment if kind == "env" else _of_file)(name, found[0], note)


def _of_environment(name: str, written: str, note: Note) -> str:
    value = os.environ.get(name)
    if value is None:
        raise ValueError(f"{written}: there is no variable {shown(name)} in the environment")
    if not value:
        raise ValueError(f"{written}: the variable is empty")
    return value


def _of_file(name: str, written: str, note: Note) -> str:
    note(Path(name))
    try:
        content = content_of(Path(name), MOST_VALUE_BYTES)
        value = content.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise ValueError(f"{written}: cannot be read: {error.strerror}") from None
    except ValueError:  # it is no UTF-8, or there is NUL in the path
        raise ValueError(f"{written}: is no text of one line") from None
    if len(content) > MOST_VALUE_BYTES or not value.isprintable():
        raise ValueError(f"{written}: expected a text of one line, up to {MOST_VALUE_BYTES} bytes")
    if not value:  # as it is for a moment while somebody writes it
        raise ValueError(f"{written}: the file is empty")
    return value

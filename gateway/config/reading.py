"""Text -> Config, or every problem in it: each at its line and key, in words that need no glossary.

Three readers have their say: tomllib (is it TOML at all?), the models (is every value what its key wants?)
and the checks (does it make sense together?). If the text is TOML, the other two always both speak.

The command line's configuration comes through `build` too, with arguments instead of lines, so that a
mistake is explained in the same words wherever it is made.
"""

import errno
import os
import re
import select
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from gateway.config.base import did_you_mean, shown
from gateway.config.checks import NEEDED, findings
from gateway.config.data import Vocabulary
from gateway.config.lines import KeyPath, TextLines, statement_at_end
from gateway.config.models import Config, Contexts, Control, Export, Listen, Log
from gateway.config.rules import Certificate, Rule, Who
from gateway.config.upstream import Upstream
from gateway.config.words import in_plain_words

if TYPE_CHECKING:
    from pydantic import BaseModel

MAX_FILE_BYTES = 1 << 20
"""Nobody writes a configuration of a mebibyte; /dev/zero or a disk image given by mistake is one."""


SILENT_SECONDS = 10
"""How long a pipe may say nothing: whoever makes a configuration for it has made it by then, or has gone."""


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


Place = Callable[[KeyPath], tuple[int | None, str]]
"""Where a user finds a key of the data: its line if it has one, and what it is called there."""


def load(path: Path, vocabulary: Vocabulary | None = None) -> Config:
    """Read a file; `ConfigError` also if it cannot be read."""
    return parse(text_of(path), str(path), vocabulary)


def text_of(path: Path) -> str:
    """Give what a file says. Raises `ConfigError`."""
    source = str(path)
    try:
        content = _content(path)
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError([Problem(source, None, "", f"cannot be read: {reason}")]) from None
    return decoded(content, source)


def _content(path: Path) -> bytes:
    """Read a file, and no more of it than can be one. A pipe may be one as well (`/dev/stdin`), as long as
    somebody writes to it. Raises `OSError`, `ValueError`.
    """
    # Opened so, it does not wait for who will write, and he may never come.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        content = bytearray()
        ready = select.poll()
        ready.register(descriptor, select.POLLIN)
        while len(content) <= MAX_FILE_BYTES:
            if not ready.poll(SILENT_SECONDS * 1000):
                raise TimeoutError(errno.ETIMEDOUT, f"nothing has come for {SILENT_SECONDS} s")
            try:
                piece = os.read(descriptor, MAX_FILE_BYTES + 1 - len(content))
            except BlockingIOError:  # somebody else has read it
                continue
            if not piece:
                break
            content += piece
        return bytes(content)
    finally:
        os.close(descriptor)


def decoded(content: bytes, source: str) -> str:
    """Give the text of a file's content; `ConfigError` if it is none."""
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError([Problem(source, None, "", "is no configuration: larger than 1 MiB")])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(source, line, "", "not UTF-8, as TOML has to be")]) from None


def parse(text: str, source: str, vocabulary: Vocabulary | None = None) -> Config:
    """Read a text that came from `source`."""
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise ConfigError([Problem(source, None, "", "nested too deeply")]) from None
    except ValueError as error:  # TOMLDecodeError is one, and int() raises others
        raise ConfigError([_syntax_problem(text, source, str(error))]) from None
    try:
        return build(data, source, places_in(text), vocabulary)
    except RecursionError:  # tomllib bears a dotted key of 20,000 parts
        raise ConfigError([Problem(source, None, "", "nested too deeply")]) from None


def places_in(text: str) -> Place:
    """Give what says where the keys of a text stand, which is TOML."""
    lines = TextLines(text)
    return lambda path: (lines[path], _dotted(path))


def build(
    data: Mapping[str, Any], source: str, place: Place, vocabulary: Vocabulary | None = None
) -> Config:
    """Check data that has the form of a TOML document; `place` says where each key was written."""
    try:
        config, found = Config.model_validate(data), []
    except ValidationError as error:
        config = None
        found = [
            in_plain_words(
                details,
                unknown=lambda path: _unknown_key(path, data),
                missing=lambda path: NEEDED.get(path, "has to be given"),
                wrong_shape=_wrong_shape,
            )
            for details in error.errors(include_url=False)
        ]
    found += findings(data, lambda path: _elsewhere(*place(path)), vocabulary)
    if config is None or found:
        problems = [Problem(source, *place(path), message) for path, message in found]
        raise ConfigError(sorted(problems, key=lambda problem: problem.line or 0))
    return config


def schema() -> dict[str, Any]:
    """JSON schema of the file, for editors that complete and check as one types."""
    whole: dict[str, Any] = _without_null(Config.model_json_schema(by_alias=True))
    whole["$defs"]["Upstream"]["oneOf"] = [{"required": ["uri"]}, {"required": ["command"]}]
    whole["$defs"]["Listen"]["dependentSchemas"] = {
        "export": {"properties": {"style": {"const": "oldstyle"}}, "required": ["style"]},
        "handshake-flags": {"properties": {"style": {"const": "newstyle"}}},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **whole,
        "title": "Configuration of nbd-gateway",
    }


def _without_null(part: Any) -> Any:
    """The schema without null, which TOML does not have, and without titles that repeat the keys."""
    if isinstance(part, list):
        return [_without_null(item) for item in part if item != {"type": "null"}]
    if not isinstance(part, dict):
        return part
    kept = {
        key: _without_null(value)
        for key, value in part.items()
        if value is not None and not (key == "title" and isinstance(value, str))
    }
    match kept.get("anyOf"):
        case [dict(only)]:
            del kept["anyOf"]
            kept |= only
    return kept


def _elsewhere(line: int | None, key: str) -> str:
    return key if line is None else f"line {line}"


def _dotted(path: KeyPath) -> str:
    """`export.name`: positions are left out, for the line says which one."""
    return ".".join(
        key if re.fullmatch("[A-Za-z0-9_-]+", key) else shown(key)
        for key in path
        if isinstance(key, str)
    )


# ---- tomllib's words ----

_NOT_TOML = {
    "Invalid value": 'not a TOML value; text stands in quotes, as in uri = "nbd://host"',
    "Invalid statement": "expected key = value, or a header in brackets such as [log]",
    "Cannot overwrite a value": "this key was already given above",
    "Cannot declare": "this table was already given above",
    "Cannot mutate immutable namespace": "this table was already given above",
    "Unclosed array": "the list that begins here has no ] at its end",
    "Unterminated string": "the text that begins here has no quotes at its end",
    "Exceeds the limit": "a number in it has too many digits",
    "Illegal character": "a line break or control character cannot stand here; is a quote missing?",
}


def _syntax_problem(text: str, source: str, message: str) -> Problem:
    found = re.fullmatch(
        r"(.*?) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL
    )
    if found is None:
        return Problem(source, None, "", _toml_words(message))
    words, line, column = found.groups()
    if line is None:
        begin = statement_at_end(text)
        if words.startswith("Invalid value"):
            return Problem(source, begin, "", "the value that begins here has no end")
        return Problem(source, begin, "", _toml_words(words))
    return Problem(source, int(line), "", f"column {column}: {_toml_words(words)}")


def _toml_words(words: str) -> str:
    for theirs, ours in _NOT_TOML.items():
        if words.startswith(theirs):
            return ours
    return f"not TOML: {words}"


# ---- pydantic's words ----

_TABLES: Mapping[str, "type[BaseModel]"] = {
    "listen": Listen,
    "upstream": Upstream,
    "export": Export,
    "rule": Rule,
    "log": Log,
    "control": Control,
}
_INNER_TABLES: Mapping[tuple[str, ...], "type[BaseModel]"] = {
    ("export", "contexts"): Contexts,
    ("rule", "who"): Who,
    ("rule", "who", "certificate"): Certificate,
}
_HEADERS = {
    "listen": "[[listen]]",
    "upstream": "[upstream.NAME]",
    "export": "[[export]]",
    "rule": "[[rule]]",
    "log": "[log]",
    "control": "[control]",
}


def _wrong_shape(path: KeyPath, value: object) -> str:
    keys = tuple(key for key in path if isinstance(key, str))
    if keys in _INNER_TABLES:
        return f"expected a table such as {{ key = value }}, got {shown(value)}"
    header = _HEADERS[str(path[0])]
    if path[0] == "upstream" and len(path) == 2:
        return f"expected a table; every upstream has a name: {header}, got {shown(value)}"
    return f"expected {header}, got {shown(value)}"


def _unknown_key(path: KeyPath, data: Mapping[str, Any]) -> str:
    key = str(path[-1])
    above = tuple(each for each in path[:-1] if isinstance(each, str))
    table = Config if len(path) == 1 else _INNER_TABLES.get(above, _TABLES[str(path[0])])
    known = list(_keys(table))
    hint = did_you_mean(key.lower().replace("_", "-"), known)
    if hint and path[0] == "rule":  # `export` is meant to be `exports`, and not that of [[listen]]
        return f"unknown key{hint}"
    if hint and len(path) == 1 and _is_header(data[key]):  # [[exports]] is no key of [[rule]]
        return f"unknown key{hint}"
    for inside, other in _INNER_TABLES.items():
        if inside[0] == path[0] and key in _keys(other):
            return (
                f"unknown key here, it belongs into {'.'.join(inside[1:])} of {_HEADERS[inside[0]]}"
            )
    for name, other in _TABLES.items():
        if key in _keys(other):
            return f"unknown key here, it belongs into {_HEADERS[name]}"
    if key in _keys(Config):
        return "unknown key here, it belongs to the top of the file, above all headers"
    if hint:
        return f"unknown key{hint}"
    return f"unknown key; known are {', '.join(known)}"


def _is_header(value: object) -> bool:
    """Say whether a value of the top was written below a header of its own, or as one is."""
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
    )


def _keys(table: "type[BaseModel]") -> Iterator[str]:
    for field in table.model_fields.values():
        if field.alias is not None:
            yield field.alias

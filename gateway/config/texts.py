"""Files -> their text -> what that says as TOML, or what is wrong with it, in plain words."""

import errno
import os
import re
import select
import tomllib
from pathlib import Path
from typing import Any

from gateway.config.lines import statement_at_end
from gateway.config.problems import ConfigError, Problem

MAX_FILE_BYTES = 1 << 20
"""Nobody writes a configuration of a mebibyte; /dev/zero or a disk image given by mistake is one."""


SILENT_SECONDS = 10
"""How long a pipe may say nothing: whoever makes a configuration for it has made it by then, or has gone."""

STANDARD_INPUT = Path("-")


def named(path: Path) -> str:
    """Give what a file is called in messages."""
    return "standard input" if path == STANDARD_INPUT else str(path)


def text_of(path: Path) -> str:
    """Give what a file says. Raises `ConfigError`."""
    source = named(path)
    try:
        content = content_of(path, MAX_FILE_BYTES)
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError([Problem(source, None, "", f"cannot be read: {reason}")]) from None
    return decoded(content, source)


def content_of(path: Path, most_bytes: int) -> bytes:
    """Read a file, and no more than a byte more than it may have. A pipe may be one as well (`/dev/stdin`), as
    long as somebody writes to it. Raises `OSError`, `ValueError`.
    """
    if path == STANDARD_INPUT:
        return _read(0, most_bytes)
    # Opened so, it does not wait for who will write, and he may never come.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return _read(descriptor, most_bytes)
    finally:
        os.close(descriptor)


def _read(descriptor: int, most_bytes: int) -> bytes:
    content = bytearray()
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    while len(content) <= most_bytes:
        if not ready.poll(SILENT_SECONDS * 1000):
            raise TimeoutError(errno.ETIMEDOUT, f"nothing has come for {SILENT_SECONDS} s")
        try:
            piece = os.read(descriptor, most_bytes + 1 - len(content))
        except BlockingIOError:  # somebody else has read it
            continue
        if not piece:
            break
        content += piece
    return bytes(content)


def decoded(content: bytes, source: str) -> str:
    """Give the text of a file's content; `ConfigError` if it is none."""
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError([Problem(source, None, "", "is no configuration: larger than 1 MiB")])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(source, line, "", "not UTF-8, as TOML has to be")]) from None


def toml(text: str, source: str) -> dict[str, Any]:
    """Give what a text says. Raises `ConfigError`."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError([Problem(source, None, "", "nested too deeply")]) from None
    except ValueError as error:  # TOMLDecodeError is one, and int() raises others
        raise ConfigError([_syntax_problem(text, source, str(error))]) from None


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

"""Text -> Config, or every problem in it: each at its line and key, in words that need no glossary.

Three readers have their say: tomllib (is it TOML at all?), the models (is every value what its key wants?)
and the checks (does it make sense together?). If the text is TOML, the other two always both speak.

The command line's configuration comes through `build` too, with arguments instead of lines, so that a
mistake is explained in the same words wherever it is made.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from gateway.config.admin import Admin
from gateway.config.base import did_you_mean, shown
from gateway.config.checks import NEEDED, findings
from gateway.config.data import Vocabulary
from gateway.config.documents import Document, Note, read, written
from gateway.config.exports import Contexts, Export
from gateway.config.fleet import Fleet
from gateway.config.lines import KeyPath
from gateway.config.models import Config, Control, Listen, Log, Tickets
from gateway.config.problems import ConfigError, Place, Problem, Spot, problem_at
from gateway.config.rules import Certificate, Rule, Who
from gateway.config.texts import named
from gateway.config.upstream import Upstream
from gateway.config.words import in_plain_words

if TYPE_CHECKING:
    from pydantic import BaseModel


def load(
    path: Path, vocabulary: Vocabulary | None = None, note: Note = lambda _path: None
) -> Config:
    """Read a file, and all that it means of others; `ConfigError` also if they cannot be read. `note` is told
    of each of them just before.
    """
    return checked(lambda: read(path, note), named(path), vocabulary)


def parse(text: str, source: str, vocabulary: Vocabulary | None = None) -> Config:
    """Read a text that came from `source`, and includes no files."""
    return checked(lambda: written(text, source), source, vocabulary)


def checked(
    document: Callable[[], Document], source: str, vocabulary: Vocabulary | None = None
) -> Config:
    """Check a document. Raises `ConfigError`."""
    try:
        said = document()
        return build(said.data, said.source, said.place, vocabulary, several=said.is_several)
    except RecursionError:  # tomllib bears a dotted key of 20,000 parts
        raise ConfigError([Problem(source, None, "", "nested too deeply")]) from None


def build(
    data: Mapping[str, Any],
    source: str,
    place: Place,
    vocabulary: Vocabulary | None = None,
    *,
    several: bool = False,
) -> Config:
    """Check data that has the form of a TOML document; `place` says where each key was written, in one file or
    in `several`.
    """
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
    found += findings(data, lambda path: _elsewhere(place(path), several=several), vocabulary)
    if config is None or found:
        problems = [problem_at(place(path), source, message) for path, message in found]
        raise ConfigError(
            sorted(problems, key=lambda each: (each.file != source, each.file, each.line or 0))
        )
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


def _elsewhere(spot: Spot, *, several: bool) -> str:
    if spot.line is None:
        return spot.key
    return f"{spot.file}:{spot.line}" if several else f"line {spot.line}"


# ---- pydantic's words ----

_TABLES: Mapping[str, "type[BaseModel]"] = {
    "listen": Listen,
    "upstream": Upstream,
    "export": Export,
    "rule": Rule,
    "log": Log,
    "control": Control,
    "admin": Admin,
    "tickets": Tickets,
    "fleet": Fleet,
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
    "admin": "[admin]",
    "tickets": "[tickets]",
    "fleet": "[fleet]",
}


def _wrong_shape(path: KeyPath, value: object) -> str:
    keys = tuple(key for key in path if isinstance(key, str))
    if keys in _INNER_TABLES:
        return f"expected a table such as {{ key = value }}, got {shown(value)}"
    if path[0] not in _HEADERS:
        return f"expected a list, got {shown(value)}"
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

"""Finds the policies that are installed, and takes one out of its file.

An entry point of the group `gateway.policies` names an import package; every file in it is a policy of the
file's name, and nothing else has to know of it. Files are listed without being imported: a configuration
that uses two policies imports two. `use = "read-only"` is read_only.py, for TOML's names have dashes where
Python's have underscores; files that begin with an underscore are the package's own business.

If a hook's name is misspelt, the policy restricts nothing, and nobody notices. So a file is looked at before it
is used. Whatever in it would never be called (`raed`), or would break when it is called, is a `PolicyError`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum, IntEnum
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from types import FunctionType, ModuleType
from typing import Annotated, Any

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gateway.config import Use
from gateway.config.base import did_you_mean, shown
from gateway.policy import SIZE_IN_WORDS, Policy
from gateway.uri import format_size

GROUP = "gateway.policies"

HOOKS: Mapping[str, FunctionType] = {
    name: value
    for name, value in vars(Policy).items()
    if isinstance(value, FunctionType) and not name.startswith(("_", "model_"))
}
"""What a policy may override, in the order of a connection's life."""


class PolicyError(Exception):
    """A policy cannot be had; the text is for the person who installed, wrote or configured it."""


def made(use: Use) -> Policy:
    """Give a policy as it is written at one place. Raises `PolicyError`, and pydantic's ValidationError for
    options that were not checked before.
    """
    options = dict(use.options)
    return catalogue().find(use.name).model_validate(options, by_alias=True, by_name=False)


# --- Finding


@dataclass(frozen=True, slots=True)
class PolicySource:
    """Where a policy is."""

    package: str
    module: str
    path: str


class Catalogue:
    """The policies that are installed. It looks for nothing until it is asked."""

    def names(self) -> dict[str, str]:
        """Give the import package of each policy, by the policy's name. Raises `PolicyError`."""
        return {name: source.package for name, source in self._sources.items()}

    def find(self, name: str) -> type[Policy]:
        """Import one policy, and look at it, once. Raises `PolicyError`."""
        if (known := self._found.get(name)) is not None:
            return known
        source = self._sources.get(name)
        if source is None:
            raise PolicyError(_unknown(name, list(self._sources)))
        try:
            module = importlib.import_module(source.module)
        except (Exception, SystemExit) as error:  # a stranger's file may do anything
            raise PolicyError(_import_failure(source.path, error)) from error
        policy = _the_policy(module, source.path)
        for mistake in _mistakes(policy, source.path):
            raise PolicyError(mistake)
        self._found[name] = policy
        return policy

    @cached_property
    def _found(self) -> dict[str, type[Policy]]:
        """Those that were looked at: a file with many exports names the same ones again and again."""
        return {}

    @cached_property
    def _sources(self) -> dict[str, PolicySource]:
        sources: dict[str, PolicySource] = {}
        for entry in _entries():
            for source in _files(entry):
                name = source.module.rpartition(".")[2].replace("_", "-")
                other = sources.setdefault(name, source)
                if other is not source:
                    raise PolicyError(
                        f"two policies are named {shown(name)}: {other.path} and {source.path};"
                        " rename or uninstall one"
                    )
        return dict(sorted(sources.items()))


@cache
def catalogue() -> Catalogue:
    """Give the policies of this process: those that were installed when it was first asked, or `look_anew`."""
    return Catalogue()


def look_anew() -> None:
    """Find policies that were installed meanwhile. What has been imported stays as it is."""
    importlib.invalidate_caches()
    catalogue.cache_clear()


def _entries() -> Iterator[EntryPoint]:
    """Give the entry points, each package once."""
    seen = set()
    for entry in entry_points(group=GROUP):
        if entry.value not in seen:
            seen.add(entry.value)
            yield entry


def _files(entry: EntryPoint) -> Iterator[PolicySource]:
    try:
        package = importlib.import_module(entry.value)
    except (Exception, SystemExit) as error:  # as above: its __init__.py may do anything
        raise PolicyError(
            f"{_named(entry)} cannot be imported: {type(error).__name__}: {_first_line(error)}"
        ) from error
    if not hasattr(package, "__path__"):
        raise PolicyError(f"{_named(entry)} is a file; expected a package, a directory of policies")
    # One directory at a time: given several, iter_modules leaves out the second file of a name.
    for directory in dict.fromkeys(package.__path__):
        for found in pkgutil.iter_modules([directory]):
            if not found.ispkg and not found.name.startswith("_") and found.name.isidentifier():
                path = os.path.join(directory, f"{found.name}.py")  # noqa: PTH118 # as Python names it
                yield PolicySource(entry.value, f"{entry.value}.{found.name}", path)


def _named(entry: EntryPoint) -> str:
    of = f" of {entry.dist.name}" if entry.dist else ""
    return f'{entry.value}, which the entry point "{entry.name}"{of} names in {GROUP},'


def _unknown(name: str, known: list[str]) -> str:
    hint = did_you_mean(name.lower().replace("_", "-"), known)
    return f"no policy is named {shown(name)}{hint or '; known are ' + ', '.join(known)}"


def _import_failure(path: str, error: BaseException) -> str:
    line: int | None = None
    if isinstance(error, SyntaxError) and error.filename == path:
        line = error.lineno
    else:
        frame = error.__traceback__
        while frame is not None:  # the last one in the file: its author did not write what it calls
            if frame.tb_frame.f_code.co_filename == path:
                line = frame.tb_lineno
            frame = frame.tb_next
    place = path if line is None else f"{path}:{line}"
    return f"{place}: cannot be imported: {type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or "no reason given"


# --- Looking at what was found


def _the_policy(module: ModuleType, path: str) -> type[Policy]:
    """Give the one class that the file is about."""
    found = [
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Policy)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]
    match found:
        case [policy]:
            return policy
        case []:
            raise PolicyError(
                f"{path}: no policy in it; expected one class, as in class Name(Policy),"
                " whose name does not begin with _"
            )
    names = ", ".join(each.__name__ for each in found)
    raise PolicyError(
        f"{path}: {len(found)} policies in it: {names}; expected one. The name of a class for the"
        " others to inherit from begins with _"
    )


def _mistakes(policy: type[Policy], path: str) -> Iterator[str]:
    for name in HOOKS:
        if name in policy.model_fields:
            yield (
                f'{path}: the option "{name}" takes the place of the hook of that name; give the field'
                f' another name, and Field(alias="{name}")'
            )
    for name, value in _methods(policy):
        place = f"{path}:{_line(value)}" if _line(value) else path
        hook = HOOKS.get(name)
        why = _no_hook(name) if hook is None else _misfit(name, hook, value)
        if why:
            yield f"{place}: {why}"


def _methods(policy: type[Policy]) -> Iterator[tuple[str, object]]:
    """Give what looks like a hook in the class, and in its bases up to `Policy`."""
    for owner in policy.__mro__:
        if owner in Policy.__mro__:
            continue
        decorated = _validators(owner)
        for name, value in vars(owner).items():
            looks = name in HOOKS or isinstance(value, FunctionType | classmethod | staticmethod)
            if looks and name not in decorated and not name.startswith(("_", "model_")):
                yield name, value


def _validators(owner: type) -> set[str]:
    """Give the names of pydantic's own methods (validators, serializers) in a class."""
    decorators = vars(owner).get("__pydantic_decorators__")
    if decorators is None:
        return set()
    return {name for group in fields(decorators) for name in getattr(decorators, group.name)}


def _line(value: object) -> int | None:
    code = getattr(inspect.unwrap(_function(value)), "__code__", None)
    return code.co_firstlineno if code else None


def _function(value: Any) -> Callable[..., object]:
    function: Callable[..., object] = getattr(value, "__func__", value)
    return function


def _no_hook(name: str) -> str:
    hint = did_you_mean(name, list(HOOKS))
    return f'"{name}" is no hook{hint or ""}; a method that is none has a name that begins with _'


def _misfit(name: str, hook: FunctionType, value: object) -> str | None:
    """Say why a method cannot be called as the hook of that name is called."""
    expected = list(inspect.signature(hook).parameters)
    if not isinstance(value, FunctionType):
        return f'the hook "{name}" is a {type(value).__name__}; expected a method'
    if inspect.iscoroutinefunction(hook) and not inspect.iscoroutinefunction(value):
        return f'the hook "{name}" has to be "async def", and not to yield'
    if not inspect.iscoroutinefunction(hook) and (
        inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value)
    ):
        return f'the hook "{name}" decides at once; expected "def", got "async def"'
    signature = inspect.signature(value)
    try:
        signature.bind(*expected)
    except TypeError:
        came = ", ".join(signature.parameters)
        return f'the hook "{name}" is called with ({", ".join(expected)}), and takes ({came})'
    return None


# --- Describing what was found


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a policy, in words."""

    name: str
    type: str
    default: str
    """As TOML has it; empty: there is none."""
    required: bool
    description: str


def options(policy: type[Policy]) -> list[Option]:
    """Give a policy's options, in the order in which they stand in its file."""
    return [_option(name, info) for name, info in policy.model_fields.items()]


def _option(name: str, info: FieldInfo) -> Option:
    schema = _schema(info)
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    return Option(
        info.alias or name.replace("_", "-"),
        _words(schema),
        "" if default in (None, PydanticUndefined) else _toml(default, schema),
        info.is_required(),
        info.description or "",
    )


def _schema(info: FieldInfo) -> Mapping[str, Any]:
    """Give what an option may be, as a JSON schema, if its type has one."""
    kind: Any = info.annotation
    if info.metadata:
        kind = Annotated[(kind, *info.metadata)]
    try:
        schema: dict[str, Any] = TypeAdapter(kind).json_schema()
    except PydanticInvalidForJsonSchema:
        return {}
    resolved: dict[str, Any] = _resolved(schema, schema.get("$defs", {}))
    return resolved


def _resolved(part: Any, definitions: Mapping[str, Any]) -> Any:
    """Give a schema with each reference replaced by what it refers to. Options are not recursive."""
    if isinstance(part, list):
        return [_resolved(each, definitions) for each in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _resolved(definitions[part["$ref"].rpartition("/")[2]], definitions)
    return {key: _resolved(value, definitions) for key, value in part.items() if key != "$defs"}


_TYPES = {
    "boolean": "true or false",
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "object": "table",
}


def _words(schema: Mapping[str, Any]) -> str:
    """Say in words what an option may be. A policy's own type says it in `WithJsonSchema({"title": ...})`."""
    if "const" in schema:
        return shown(schema["const"])
    if "enum" in schema:
        return ", ".join(map(shown, schema["enum"]))
    if "anyOf" in schema and "title" not in schema:
        kinds = (_words(each) for each in schema["anyOf"] if each.get("type") != "null")
        return " or ".join(dict.fromkeys(kinds))
    if schema.get("type") == "array":
        items = schema.get("items")
        return f"list of {_words(items)}" if items else "list"
    if "title" in schema and schema.get("type") != "object":
        return str(schema["title"])
    return _TYPES.get(schema.get("type", ""), "value") + _bounds(schema)


_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "over {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "under {}",
}


def _bounds(schema: Mapping[str, Any]) -> str:
    said = [words.format(f"{schema[key]:g}") for key, words in _BOUNDS.items() if key in schema]
    return "".join(f", {each}" for each in said)


def _toml(value: object, schema: Mapping[str, Any]) -> str:
    """Give a default as TOML has it."""
    match value:
        case IntEnum():
            return shown(value.name)
        case Enum():
            return _toml(value.value, schema)
        case int() if schema.get("title") == SIZE_IN_WORDS:
            return shown(format_size(value))
        case Mapping():
            pairs = (f"{key} = {_toml(each, {})}" for key, each in value.items())
            return f"{{ {', '.join(pairs)} }}"
        case set() | frozenset():
            return _toml(sorted(value), schema)
        case Sequence() if not isinstance(value, str):
            items = schema.get("items", {})
            return f"[{', '.join(_toml(each, items) for each in value)}]"
    return shown(value)

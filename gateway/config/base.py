"""What the models of all tables are made with."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, PlainValidator, WithJsonSchema


def shown(value: object) -> str:
    """A value as its writer knows it, short enough for one line of an error message."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            value = value.encode(errors="backslashreplace").decode()
            return f'"{value}"' if len(value) <= 80 else f'"{value[:77]}..."'
        case dict():
            return "a table"
        case []:
            return "an empty list"
        case list():
            return "a list"
    return str(value)


def text(value: object) -> str:
    """A value that has to be text. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"expected text in quotes, got {shown(value)}")
    return value


def texts(value: object) -> tuple[str, ...]:
    """One text or a list of them, which means any of them. Raises ValueError."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected text in quotes or a list of it, got {shown(value)}")
    return tuple(text(each) for each in value)


def written_as(validate: Callable[[object], Any], *, array: bool = False) -> tuple[Any, Any]:
    """Read by `validate`; in the JSON schema simply text, or a list of it."""
    schema = {"type": "string"}
    return PlainValidator(validate), WithJsonSchema(
        {"type": "array", "items": schema} if array else schema
    )


TEXT_OR_TEXTS = WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
)
"""The JSON schema of what `texts` reads."""


def did_you_mean(word: str, known: list[str]) -> str:
    """`, did you mean "x"?`, or nothing."""
    close = get_close_matches(word, known, n=1)
    return f', did you mean "{close[0]}"?' if close else ""


class Section(BaseModel):
    """A table of the file: keys in kebab-case, nothing unknown, and never changed once read."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        alias_generator=lambda name: name.replace("_", "-"),
        arbitrary_types_allowed=True,
        allow_inf_nan=False,
    )

"""What pydantic complains of, in the words of those who write configurations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.config.base import shown
from gateway.config.lines import KeyPath

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# What each of pydantic's complaints says to the person who wrote the value; {} is what came.
_WORDS = {
    "bool_type": "expected true or false, got {}",
    "int_type": "expected a whole number, got {}",
    "int_from_float": "expected a whole number, got {}",
    "float_type": "expected a number, got {}",
    "finite_number": "expected a number, got {}",
    "string_type": "expected text in quotes, got {}",
    "greater_than": "expected more than {gt}, got {}",
    "greater_than_equal": "expected {ge} or more, got {}",
    "less_than_equal": "expected {le} or less, got {}",
    "literal_error": "expected {expected}, got {}",
    "too_long": "expected {max_length} at most, got {actual_length}",
    "too_short": "expected {min_length} at least, got {actual_length}",
}

_WRONG_SHAPE_OF = {
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
}


def in_plain_words(
    details: ErrorDetails,
    *,
    unknown: Callable[[KeyPath], str],
    missing: Callable[[KeyPath], str] = lambda _path: "has to be given",
    wrong_shape: Callable[[KeyPath, object], str] | None = None,
) -> tuple[KeyPath, str]:
    """Give the key that is to blame, and what is wrong with it. The functions say what depends on the place: of
    a key that nobody knows, of one that is not there, and of what is no table or list.
    """
    path, kind, value = details["loc"], details["type"], details["input"]
    context = details.get("ctx", {})
    if kind == "value_error":
        return path, str(context["error"])
    if kind == "extra_forbidden":
        return path, unknown(path)
    if kind == "missing":
        return path, missing(path)
    if kind in _WRONG_SHAPE_OF:
        if wrong_shape is not None:
            return path, wrong_shape(path, value)
        return path, f"expected {_WRONG_SHAPE_OF[kind]}, got {shown(value)}"
    if kind == "literal_error":
        context = {"expected": context["expected"].replace("'", '"')}
    for key, bound in context.items():
        if isinstance(bound, float) and bound.is_integer():
            context[key] = int(bound)  # pydantic makes a float's bounds floats: 86400.0
    return path, _WORDS.get(kind, "{} is not possible here").format(shown(value), **context)

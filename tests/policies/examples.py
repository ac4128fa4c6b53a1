"""The examples that policies have in their docstrings, and the options in them."""

from __future__ import annotations

import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.access.loading import catalogue, options


def docstring(name: str) -> str:
    return (sys.modules[catalogue().find(name).__module__].__doc__ or "").strip("\n")


def example_texts(name: str) -> list[str]:
    """What is indented in the docstring and has `use = "NAME"` in it."""
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", docstring(name) + "\n", re.MULTILINE)
    return [
        text
        for each in blocks
        # One block may have several, of which a file would have one.
        for text in re.split(r"^(?=policies = )", textwrap.dedent(each), flags=re.MULTILINE)
        if f'use = "{name}"' in text
    ]


def examples(name: str) -> list[dict[str, Any]]:
    """The options in the examples. Files of theirs are put elsewhere."""
    known = {option.name for option in options(catalogue().find(name))}
    return [
        {
            key: elsewhere(value)
            for key, value in found.items()
            if key in known or key not in GATEWAYS_OWN
        }
        for text in example_texts(name)
        for found in used(tomllib.loads(text))
        if found.get("use") == name
    ]


GATEWAYS_OWN = frozenset({"use", "mode"})
"""Keys of any policy, which are not its options."""

FOLDER = Path()
"""Where files of examples are put."""


def elsewhere(value: object) -> object:
    """An option's value; a file of ours in place of an absolute path."""
    if isinstance(value, str) and value.startswith("/"):
        return str(FOLDER / Path(value).name)
    return value


def used(part: object) -> Iterator[dict[str, Any]]:
    """Every `{ use = ... }` in a TOML document, wherever it stands."""
    if isinstance(part, dict):
        if "use" in part:
            yield part
        for value in part.values():
            yield from used(value)
    elif isinstance(part, list):
        for value in part:
            yield from used(value)

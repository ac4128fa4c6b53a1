"""The keys of gateway.toml, as values, from the JSON schema that `nbd-gateway schema` prints.

The manual page and the reference are made of them (`manual.py`, `reference.py`).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from verbs import TOP

MEBIBYTE = 1 << 20

TABLES = {
    "Listen": "[[listen]]",
    "Upstream": "[upstream.NAME]",
    "Export": "[[export]]",
    "Contexts": "[export.contexts]",
    "Rule": "[[rule]]",
    "Who": "[rule.who]",
    "Certificate": "[rule.who.certificate]",
    "Log": "[log]",
    "Control": "[control]",
}
"""The heads of tables in the file, in the order of the pages; others come behind them under their own names."""


@dataclass(frozen=True)
class Key:
    """A key of a table."""

    name: str
    text: str
    default: str | None
    """As one writes it; None: there is none, or `text` says what happens without it."""
    choices: tuple[str, ...]
    required: bool


@dataclass(frozen=True)
class Table:
    """A table of the file; the first has no head."""

    head: str
    text: str
    keys: tuple[Key, ...]


def tables() -> list[Table]:
    """Give all tables, as they are read today."""
    if str(TOP) not in sys.path:
        sys.path.insert(0, str(TOP))
    from gateway.config import schema

    whole = schema()
    kinds: dict[str, Any] = whole["$defs"]
    top = {name: key for name, key in whole["properties"].items() if "$ref" not in json.dumps(key)}
    heads = TABLES | {kind: f"[{kind.lower()}]" for kind in kinds if kind not in TABLES}
    return [
        Table("", "Above the first table.", _keys(top, ())),
        *(
            Table(
                head,
                _text(kinds[kind]).removeprefix(f"`{head}`: "),
                _keys(kinds[kind]["properties"], kinds[kind].get("required", ())),
            )
            for kind, head in heads.items()
            if kind in kinds
        ),
    ]


def _keys(properties: dict[str, Any], required: Any) -> tuple[Key, ...]:
    return tuple(
        Key(
            name,
            _text(key),
            None if name in required else _default(key),
            tuple(map(str, key.get("enum", ()))),
            name in required,
        )
        for name, key in properties.items()
        if "description" in key  # a table of its own has its text at its own head
    )


def _default(key: dict[str, Any]) -> str | None:
    default = key.get("default")
    if default is None or isinstance(default, dict) or default == [] or "Default: " in _text(key):
        return None
    is_size = {"type": "string"} in key.get("anyOf", ()) and isinstance(default, int)
    if is_size and default % MEBIBYTE == 0:
        return f'"{default // MEBIBYTE}M"'
    return json.dumps(default)


def _text(described: dict[str, Any]) -> str:
    return " ".join(described.get("description", "").split())

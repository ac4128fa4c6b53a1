"""A number and its noun agree, wherever one is printed beside the other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.plural import plural

HOUSE = Path(__file__).parents[1] / "gateway"

NOUNS = frozenset(
    [
        "clients",
        "messages",
        "places",
        "sessions",
        "exports",
        "upstreams",
        "listeners",
        "connections",
        "disks",
        "workers",
        "gateways",
        "requests",
        "commands",
        "lines",
        "files",
        "policies",
        "rules",
        "tickets",
        "problems",
        "errors",
        "ranges",
        "certificates",
        "times",
        "losses",
    ]
)
"""What is counted here. (Bytes and seconds are units: of those there may be any number.)"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (plural(0, "client"), "0 clients"),
        (plural(1, "client"), "1 client"),
        (plural(2, "client"), "2 clients"),
        (plural(1, "session goes", "sessions go"), "1 session goes"),
        (plural(3, "session goes", "sessions go"), "3 sessions go"),
    ],
)
def test_what_is_said(text: str, said: str) -> None:
    assert text == said


def beside_a_number(tree: ast.AST) -> Iterator[ast.JoinedStr]:
    """Give the texts in which a noun in the plural stands behind a value. A constant may: it is not 1."""
    chosen = {
        text
        for choice in ast.walk(tree)
        if isinstance(choice, ast.IfExp)
        for text in (choice.body, choice.orelse)
    }
    for text in ast.walk(tree):
        if not isinstance(text, ast.JoinedStr) or text in chosen:
            continue
        for value, behind in zip(text.values, text.values[1:], strict=False):
            if not (isinstance(value, ast.FormattedValue) and isinstance(behind, ast.Constant)):
                continue
            named = str(behind.value)
            if isinstance(value.value, ast.Name) and value.value.id.isupper():
                continue
            if named.startswith(" ") and named.split(maxsplit=1)[:1] and _first(named) in NOUNS:
                yield text


def _first(text: str) -> str:
    return text.split()[0].rstrip(",.:;)")


NEVER_ONE = {
    "access/loading.py": 1,
    "bundle/core.py": 1,
    "bundle/deadly.py": 2,
    "bundle/work.py": 1,
    "cli/explain.py": 1,
    "upstream/mode.py": 1,
}
"""How many such texts a file has of what is never 1 where it is said: one has a word of its own, or a bound is
reached (`MOST_LOSSES`).
"""


def test_no_noun_is_in_the_plural_whatever_its_number_is() -> None:
    found: dict[str, list[str]] = {}
    for path in sorted(HOUSE.rglob("*.py")):
        for text in beside_a_number(ast.parse(path.read_text())):
            name = str(path.relative_to(HOUSE))
            found.setdefault(name, []).append(f"line {text.lineno}: {ast.unparse(text)}")
    counts = {name: len(told) for name, told in found.items()}
    wrong = {name: told for name, told in found.items() if counts[name] != NEVER_ONE.get(name)}
    assert not wrong, "gateway.plural has the right word for 1"

"""Words: each has one meaning, and is where CONTRIBUTING.md says; a name is given to one class."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
HOUSE = TOP / "gateway"

MOST_WORDS = 23

[SECTION] = re.findall(r"(?ms)^## Words\n(.*?)^## ", (TOP / "CONTRIBUTING.md").read_text())
WORDS, NOUNS = (
    [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    for table in re.findall(r"(?m)(?:^\|.*\n)+", SECTION)
)


BOOKKEEPING = r"\b([Oo]we[ds]?|[Oo]wing|[Pp]a(?:ys?|id)|debts?)\b"
"""Nobody owes or pays here: it is said who waits, who is told, and what is remembered. (`Debt` is a word.)"""


@cache
def names_in(room: str) -> set[str]:
    """What a room, or a file, defines at its top: classes, and names for types."""
    there = HOUSE / room
    files = there.rglob("*.py") if there.is_dir() else [there]
    found = set()
    for node in (node for file in files for node in ast.parse(file.read_text()).body):
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def test_what_users_read_is_said_without_owing_and_paying() -> None:
    pages = [TOP / "README.md", *(TOP / "docs").glob("*.md")]
    sources = [*(HOUSE / "cli").glob("*.py"), *(TOP / "policies").glob("*.py")]
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in (*pages, *sources)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(BOOKKEEPING, line)
    ]
    assert not found


def test_they_are_few_and_each_is_there_once() -> None:
    words = [word for word, *_ in WORDS]
    assert len(words) == len(set(words)) <= MOST_WORDS


@pytest.mark.parametrize(("word", "where"), [(word, where) for word, _what, where in WORDS])
def test_a_word_is_where_it_is_said_to_be(word: str, where: str) -> None:
    name, room = re.findall(r"`(.*?)`", where)
    assert name in names_in(room)


@pytest.mark.parametrize(("nouns", "room"), [(row[0], row[2].strip("`")) for row in NOUNS])
def test_what_is_asked_is_where_it_is_said_to_be(nouns: str, room: str) -> None:
    assert set(re.findall(r"`(\w+)`", nouns)) <= names_in(room)


POLICY = "policies are written with the second, and users' own policies, too"

TWICE = {
    "Export": (
        "config protocol",
        "[[export]] of a configuration; a server's: users write both words",
    ),
    "Outcome": (
        "log protocol",
        "what became of an `Ask`; of a line of a file, which a policy waits for",
    ),
    "Request": ("embedded policy.py", f"proto.md's, as an embedded server has it; {POLICY}"),
    "Server": ("embedded upstream", "one that we are; one that we connect to: no module has both"),
    "Session": ("hub policy.py", f"a client's, with its sockets; {POLICY}"),
}
"""Names that several classes have: in which rooms, and why each is right there. There are to be no others."""


TAKEN = {
    **{
        name: room
        for _word, _what, where in WORDS
        for name, room in [re.findall(r"`(.*?)`", where)]
    },
    **{noun: row[2].strip("`") for row in NOUNS for noun in re.findall(r"`(\w+)`", row[0])},
}
"""The names in the two tables, and the room of each."""


@pytest.mark.parametrize(("name", "room"), TAKEN.items())
def test_no_other_room_has_a_name_of_these(name: str, room: str) -> None:
    """Not for a type either, which is no class."""
    rooms = {file.relative_to(HOUSE).parts[0] for file in HOUSE.rglob("*.py")}
    there = {each for each in rooms if name in names_in(each)}
    assert there == ({room} if name not in TWICE else set(TWICE[name][0].split()))


def test_a_name_is_given_to_one_class() -> None:
    rooms: dict[str, list[str]] = {}
    for file in sorted(HOUSE.rglob("*.py")):
        for name in re.findall(r"(?m)^ *class (\w+)\b", file.read_text()):
            rooms.setdefault(name, []).append(file.relative_to(HOUSE).parts[0])
    several = {name: " ".join(sorted(there)) for name, there in rooms.items() if len(there) > 1}
    assert several == {name: there for name, (there, _why) in TWICE.items()}

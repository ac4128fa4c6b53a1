"""The house: its maps name every room, and no room has grown into several."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import grimp
import pytest

from tests.conftest import QUICK, is_real

HOUSE = Path(__file__).parents[1] / "gateway"
ROOMS = sorted(each.parent for each in HOUSE.rglob("__init__.py"))

MOST_OF_THE_HOUSE = 0.1
"""The part of all lines that one room may have."""


def modules(room: Path) -> list[str]:
    """What a room has, as its map is to name it. A quirk is in the catalogue, as soon as it is there."""
    files = [
        each.name
        for each in room.glob("*.py")
        if not each.name.startswith("__") and "\nQUIRK = " not in each.read_text()
    ]
    return files + [f"{each.parent.name}/" for each in room.glob("*/__init__.py")]


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(HOUSE.parent)))
def test_a_map_names_what_is_there(room: Path) -> None:
    text = (room / "__init__.py").read_text().split('"""')[1]
    named = re.findall(r"(?:^|, ) *(\w+(?:\.py|/))(?=[ ,])", text, re.MULTILINE)
    there = modules(room)
    missing = [each for each in there if each not in named]
    assert not missing, f"{room.name}/__init__.py does not name these"
    gone = [each for each in named if each not in there and not (HOUSE / each).exists()]
    assert not gone, f"{room.name}/__init__.py names these, which are not there"


TESTS = Path(__file__).parent
FOLDERS = sorted(each.parent for each in TESTS.glob("*/__init__.py"))


@pytest.mark.parametrize("folder", [TESTS, *FOLDERS], ids=lambda folder: folder.name)
def test_a_map_of_tests_names_their_helpers(folder: Path) -> None:
    text = (folder / "__init__.py").read_text()
    helpers = [
        each
        for each in modules(folder)
        if not each.startswith(("test_", "conftest")) and not (HOUSE / each).is_dir()
    ]
    assert not [each for each in helpers if each not in text]
    named = re.findall(r"(?:^|, ) *(\w+(?:\.py|/))(?=[ ,])", text, re.MULTILINE)
    assert not [each for each in named if not (folder / each).exists()]


def test_tests_are_in_folders_of_rooms_or_of_their_own() -> None:
    rooms = {room.name for room in ROOMS if room.parent == HOUSE}
    of_their_own = {"policies", "interop", "trixie", "packages", "tools", "fuzz", "bench", "sim"}
    assert {folder.name for folder in FOLDERS} - rooms == of_their_own


IMPORTED = re.compile(r"^from [^\n(]*(?:\([^)]*\))?", re.MULTILINE)
"""What a file imports from others, over one line or several."""


def test_a_bare_pytest_selects_what_is_quick() -> None:
    options = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["tool"]["pytest"]
    assert options["ini_options"]["addopts"][-2:] == ["-m", QUICK]


def test_nothing_quick_is_in_a_file_that_a_bare_pytest_does_not_read() -> None:
    """A second mark of a whole file would take the place of the first one."""
    unread = {path: path.read_text() for path in TESTS.rglob("test_*.py") if is_real(path)}
    assert len(unread) > 100
    marks = {path: re.findall("(?m)^pytestmark", text) for path, text in unread.items()}
    assert not [path for path, found in marks.items() if len(found) > 1]


def test_no_test_file_imports_another() -> None:
    """`from tests.ROOM import test_x`, or of what is in one."""
    files = {each.stem for each in TESTS.rglob("test_*.py")}
    imports = [
        (file.name, name)
        for file in TESTS.rglob("*.py")
        for line in IMPORTED.findall(file.read_text())
        for name in re.findall(r"\w+", line)
    ]
    assert not [(file, name) for file, name in imports if name in files]


def test_nothing_is_waited_for_by_a_number_of_its_own() -> None:
    """A busy machine takes longer than who wrote the number thought: `HANG_SECONDS` is for all. Where the clock
    is simulated a number costs nothing.
    """
    own = re.compile(r"\btimeout=[\d.]+|fail_after\([\d.]+\)")
    texts = {str(file.relative_to(TESTS)): file.read_text() for file in TESTS.rglob("*.py")}
    found = {name for name, text in texts.items() if own.search(text)}
    simulated = {name for name, text in texts.items() if re.search("autojump|MockClock", text)}
    wrong = found - simulated - {"test_house.py"}
    assert not [name for name in wrong if not name.startswith("bench/")]


def lines(room: Path) -> int:
    return sum(len(each.read_text().splitlines()) for each in room.glob("*.py"))


def test_no_room_is_several() -> None:
    most = MOST_OF_THE_HOUSE * sum(lines(each) for each in ROOMS)
    assert not [room.name for room in ROOMS if room != HOUSE and lines(room) > most]


MOST_LINES = 420
"""What a module may have without a word about why it has more."""

WHY = "is longer than other modules"


def test_a_long_module_says_why() -> None:
    texts = {str(each.relative_to(HOUSE)): each.read_text() for each in HOUSE.rglob("*.py")}
    long = {name: text for name, text in texts.items() if len(text.splitlines()) > MOST_LINES}
    heads = {name: ast.get_docstring(ast.parse(text)) or "" for name, text in long.items()}
    assert not [name for name, head in heads.items() if WHY not in " ".join(head.split())]


def is_there(words: list[str]) -> bool:
    """Say whether the dotted words are: rooms, a module, and whatever the module has that word for."""
    there = TESTS.parent
    while words and (there / words[0]).is_dir():
        there, words = there / words[0], words[1:]
    if words and (there / f"{words[0]}.py").exists():
        module, words = there / f"{words[0]}.py", words[1:]
    else:
        module = there / "__init__.py"
    return not words or bool(re.search(rf"\b{words[0]}\b", module.read_text()))


def test_what_is_referred_to_is_there() -> None:
    """In backticks, with dots: a module of ours by its whole name, or by its room's and its own."""
    rooms = "|".join(room.name for room in ROOMS if room.parent == HOUSE)
    pattern = rf"`((?:gateway|tests|policies)(?:\.(?!toml`)\w+)+|(?:{rooms})\.[a-z_]+(?:\.\w+)?)`"
    files = [*HOUSE.rglob("*.py"), *TESTS.rglob("*.py"), *TESTS.parent.glob("docs/*.md")]
    gone = []
    for file in files:
        for name in re.findall(pattern, file.read_text()):
            words = name.split(".")
            if words[0] not in ("gateway", "tests", "policies"):
                words.insert(0, "gateway")
            if not is_there(words):
                gone.append((file.name, name))
    assert not gone


def test_nothing_imports_itself_by_way_of_others() -> None:
    """What is imported for its types alone counts, too: who reads a module has to read that as well."""
    graph = grimp.build_graph("gateway", cache_dir=None)
    assert not circles(graph)


def circles(graph: grimp.ImportGraph) -> list[list[str]]:
    """Those of modules, each once."""
    found = set()
    for module in graph.modules:
        before = graph.find_upstream_modules(module)
        if module in {
            each for up in before for each in graph.find_modules_directly_imported_by(up)
        }:
            circle = {
                module,
                *(each for each in before if module in graph.find_upstream_modules(each)),
            }
            if len(circle) > 1:
                found.add(tuple(sorted(each.removeprefix("gateway.") for each in circle)))
    return sorted(map(list, found))

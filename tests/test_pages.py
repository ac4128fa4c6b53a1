"""What pages have their reader type: in tutorials and how-tos it works, and prints what they say; in all
pages verbs and options of ours are some.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import CycloptsError

from gateway.cli import app, with_command
from tests.packing import packing
from tests.walkthrough import is_as_printed, run

DOCS = Path(__file__).parents[1] / "docs"
VERBS = packing("verbs")
ELSEWHERE = {"containers", "debian", "kubernetes", "ovirt"}
"""Whose programs only `make test-packages` has: tests/packages types them."""
PAGES = [
    path
    for folder in ("tutorials", "howto")
    for path in sorted((DOCS / folder).glob("*.md"))
    if path.stem not in ELSEWHERE
]


@pytest.mark.real
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_is_true(page: Path, workdir: Path) -> None:
    run(page.read_text(), workdir)


def test_a_page_that_is_not_true_is_found(tmp_path: Path) -> None:
    run("```console\n$ echo one; echo two\none\n```\n", tmp_path)
    for wrong in ("$ echo one\ntwo", "$ false", "$ echo two; echo one\none\ntwo", "$ exit 0"):
        with pytest.raises(AssertionError):
            run(f"```console\n{wrong}\n```\n", tmp_path)


def test_a_command_may_have_several_lines(tmp_path: Path) -> None:
    run("```console\n$ true \\\n> && true\n$ echo one\none\n```\n", tmp_path)


def test_what_is_printed_may_be_shortened() -> None:
    assert is_as_printed(("a ... c", "...", "  e"), "x\nxa b c\nd\n e f")
    assert not is_as_printed(("a ... c",), "c b a")


TYPED = re.compile(r"^(?:\$ |> )?nbd-gateway (.*)$", re.MULTILINE)
IN_PLACE = re.compile(r"\[[A-Z]+\]|\.\.\.")
"""What stands for something: [LISTENER], and so on."""


def of_ours() -> Iterator[tuple[str, str]]:
    for page in sorted(DOCS.rglob("*.md")):
        for block in re.findall(r"(?ms)^ *```\w*\n(.*?)^ *```", page.read_text()):
            for line in TYPED.findall(block.replace("\\\n", " ")):
                yield str(page.relative_to(DOCS)), line
    for verb in VERBS.program().all():
        for example in (each for each in verb.text if each.startswith(" ")):
            for line in TYPED.findall(textwrap.dedent(example)):
                assert "nbd-gateway" not in line.split(), f"two commands in a line: {line}"
                yield f"help {' '.join(verb.words)}", line


def test_every_command_of_ours_is_one() -> None:
    """With options that it has, and values of their kinds; it is not run here."""
    wrong, seen = [], set()
    for page, line in of_ours():
        words = shlex.split(IN_PLACE.sub("x", line.split("  ")[0]), comments=True)
        while (words and words[-1] in ("&", "x")) or "|" in words or ">" in words:
            words = words[
                : min(words.index(each) for each in words if each in ("&", "x", "|", ">"))
            ]
        words = [each for each in words if not re.match(r"\d?>", each)]
        if not words or words[0] == "VERB" or words[0].startswith("("):
            continue
        try:
            app.parse_args(with_command(words), exit_on_error=False, print_error=False)
        except CycloptsError as error:
            wrong.append((page, line, str(error)))
        seen.add(words[0])
    assert not wrong
    assert len(seen) > 15


QUOTED = re.compile(r"""'[^']*'|"[^"]*"|\s#.*""")


def test_no_shell_takes_one_for_a_pattern() -> None:
    """zsh ends a command whose `?` no file is like; others put the file in its place."""
    bare = [(page, line) for page, line in of_ours() if set("?*") & set(QUOTED.sub("", line))]
    assert not bare


def test_the_first_page_answers_ten_questions() -> None:
    """Of those who come from haproxy, pgbouncer, qemu-nbd; `make lint` sees that the links lead there."""
    [table] = re.findall(r"(?ms)^## Ten questions\n\n(.*?)\n\n", (DOCS / "index.md").read_text())
    rows = table.splitlines()[2:]
    assert len(rows) == 10
    assert all("](" in row.split("|")[2] for row in rows)

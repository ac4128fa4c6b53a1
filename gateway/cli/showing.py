"""Shows what a running gateway says of itself: as tables for people, or as JSON for programs; once, or again
and again. Words of strangers (names of exports, of clients) are escaped before a terminal sees them.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.cli import INTERRUPTED, UsageError, complain
from gateway.cli.running import NoAnswer, ask_gateway

Shown = dict[str, Any]
Look = Callable[[], Shown]
"""Asks a gateway once. Raises `NoAnswer`."""

MAX_CELL_CHARACTERS = 100
"""What a cell of a table has at most, but for the last of a row: a client may ask for an export with a name of
4,096, and nobody could read any row any more. `--json` has all of it."""

UNITS = ("", "K", "M", "G", "T", "P")


def asked(path: Path, socket: Path | None, verb: str, arguments: Mapping[str, object]) -> Shown:
    """Give what a gateway answers to a question. Raises `NoAnswer`."""
    answer = ask_gateway(path, socket, verb, arguments)
    if not answer.ok or answer.data is None:
        raise NoAnswer(
            "; ".join(answer.problems) or f"the gateway knows no {verb}: it is an older one"
        )
    return dict(answer.data)


def all_pages(
    path: Path,
    socket: Path | None,
    verb: str,
    key: str,
    arguments: Mapping[str, object],
    *,
    of: str | None = None,
) -> list[Shown]:
    """Give all sessions, or exports, which stand in answers as `of` (default: the verb); each is known by its
    `key`. Raises `NoAnswer`.
    """
    of = verb if of is None else of
    found: list[Shown] = []
    while True:
        after = {"after": found[-1][key]} if found else {}
        page = asked(path, socket, verb, {**arguments, **after})
        found += page[of]
        if not page["more"] or not page[of]:
            return found


def show(look: Look, text: Callable[[Shown], str], *, as_json: bool, watch: float | None) -> int:
    """Look and print, every `watch` seconds if that is given; give the exit status."""
    if watch is not None and not 0.1 <= watch <= 3600:
        raise UsageError("expected --watch of 0.1 to 3600 seconds")
    try:
        while True:
            found = look()
            print(json.dumps(found) if as_json else text(found), flush=True)
            if watch is None:
                return 0
            time.sleep(watch)  # this process has nothing else to do
            if not as_json:
                print(flush=True)
    except NoAnswer as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Give a table; columns of numbers stand to the right."""
    from gateway.wire.handshake import printable

    cells = [[printable(str(cell)) for cell in row] for row in rows]
    cells = [[*map(_cut, row[:-1]), *row[-1:]] for row in cells]
    numbers = [all(_is_number(row[n]) for row in cells) and bool(cells) for n in range(len(head))]
    widths = [max(len(row[n]) for row in [list(head), *cells]) for n in range(len(head))]
    lines = []
    for row in [list(head), *cells]:
        padded = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cut(cell: str) -> str:
    return cell if len(cell) <= MAX_CELL_CHARACTERS else f"{cell[: MAX_CELL_CHARACTERS - 1]}…"


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell == "-"


def size(number: float) -> str:
    """Give a number of bytes in few letters."""
    for unit in UNITS:
        if number < 1000 or unit == UNITS[-1]:
            break
        number /= 1024
    return f"{number:.0f}{unit}" if unit == "" or number >= 10 else f"{number:.1f}{unit}"


def duration(seconds: float) -> str:
    """Give a time in few letters."""
    if seconds < 100:
        return f"{seconds:.0f}s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f}m"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.0f}h"
    return f"{seconds / 86400:.0f}d"


def requests(shown: Mapping[str, Any]) -> int:
    """Give how many requests there were, of all commands."""
    return sum(shown["requests"].values())


def waits(session: Shown) -> str:
    """Say what a session waits for, and for how long it is stuck."""
    if session["waits_for"] is None:
        return "-"
    if session["waits_for"] == "pause":  # whoever has paused it is not stuck, and still wanted
        return f"pause: {session['why']}"
    if not session["stuck"]:
        return str(session["waits_for"])
    return f"{session['waits_for']} {duration(session['silent_seconds'] or 0)}: {session['why']}"


def lines_of(shown: Iterable[tuple[str, object]]) -> str:
    """Give names and what they are, one a line."""
    return "\n".join(_lines(shown))


def _lines(shown: Iterable[tuple[str, object]]) -> Iterator[str]:
    from gateway.wire.handshake import printable

    pairs = list(shown)
    width = max(len(name) for name, _value in pairs)
    for name, value in pairs:
        yield f"{name.ljust(width)}  {printable(str(value))}"


def is_terminal() -> bool:
    """Say whether somebody looks."""
    return sys.stdout is not None and sys.stdout.isatty()

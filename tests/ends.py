"""How a session ends, as a picture: docs/how-a-session-ends.md has it, drawn from `gateway.hub.ends`.

`python -m tests.ends` draws it anew; tests/test_ends_page.py holds the page to the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from gateway.hub.ends import MOVES, ClientIs, Event, LinkIs, Move, Sides, Then
from tests.pages import with_parts

PAGE = Path(__file__).parents[1] / "docs" / "how-a-session-ends.md"

Steps = dict[tuple[Enum, Enum], list[str]]
"""From one state of a side to another: by which events."""


def steps(side: str) -> Steps:
    """Those of a side, whatever the other one is. What changes nothing is no step."""
    found: Steps = {}
    for (before, event), becomes in MOVES.items():
        step = getattr(before, side), getattr(becomes.sides, side)
        if step[0] is not step[1] and event.name not in found.setdefault(step, []):
            found[step].append(event.name)
    return found


def picture(side: str, states: Iterable[Enum], starts: Iterable[Enum]) -> str:
    """The states of a side, and its steps as mermaid draws them."""
    lines = [f"- {state.name}: {state.value}" for state in states]
    lines += ["", "```mermaid", "stateDiagram-v2"]
    lines += [f"    [*] --> {state.name}" for state in starts]
    lines += [
        f"    {before.name} --> {after.name}: {', '.join(events)}"
        for (before, after), events in steps(side).items()
    ]
    return "\n".join([*lines, "```"])


def client() -> str:
    return picture("client", ClientIs, [ClientIs.ASKING])


def link() -> str:
    return picture("link", LinkIs, [LinkIs.OPEN, LinkIs.NONE])


def events() -> str:
    """What each event means, and what the session does then."""
    rows = ["| event | what has happened | what the session does then |", "|---|---|---|"]
    for event in Event:
        moves = {
            before: becomes
            for (before, each), becomes in MOVES.items()
            if each is event and before.link is not LinkIs.LEFT
        }
        rows.append(f"| {event.name} | {event.value} | {done(moves)} |")
    return "\n".join(rows)


def done(moves: dict[Sides, Move]) -> str:
    """What is done; and where, if it is not the same in all states."""
    where: dict[Then, list[Sides]] = {}
    for sides, becomes in moves.items():
        where.setdefault(becomes.then, []).append(sides)
    if len(where) == 1:
        return said(next(iter(where)))
    order = [then for then in Then if then in where]
    return "; ".join(f"{among(where[then], moves)}: {said(then)}" for then in order)


def said(then: Then) -> str:
    return "-" if then is Then.NOTHING else then.value


def among(there: list[Sides], moves: dict[Sides, Move]) -> str:
    """Say which of the states these are, by the side that tells them from the others."""
    for side in ("client", "link"):
        these = {getattr(sides, side) for sides in there}
        others = {getattr(sides, side) for sides in moves if sides not in there}
        if not these & others:
            return " or ".join(each.name for each in (*ClientIs, *LinkIs) if each in these)
    return " or ".join(f"{sides.client.name} with {sides.link.name}" for sides in there)


PARTS = {"client": client, "link": link, "events": events}


def drawn(page: str) -> str:
    """The page with what the table has now."""
    return with_parts(page, "ends", {name: part() for name, part in PARTS.items()})


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text()))

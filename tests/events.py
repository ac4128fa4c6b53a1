"""The events of the log, as a page: docs/log.md has them, made from `gateway.log.events`.

`python -m tests.events` writes them anew; `tests/log/test_events.py` holds the page to the table, and the table
to what is logged.
"""

from __future__ import annotations

from pathlib import Path

from gateway.log.events import CHAPTERS, ERROR, EVENTS, Fields, Logged
from tests.pages import with_parts

PAGE = Path(__file__).parents[1] / "docs" / "log.md"


def errors() -> str:
    """What should wake a person."""
    return "\n".join(f"- `{event.name}`" for event in EVENTS if ERROR in event.levels)


def chapters() -> str:
    """Each event with all that is known of it."""
    parts = []
    for chapter in CHAPTERS:
        parts.append(f"### {chapter.title}")
        if chapter.carries:
            parts.append(f"All of these lines have also:\n\n{_listed(chapter.carries)}")
        if chapter.sometimes:
            parts.append(
                f"Those about the connection of one client have also:\n\n{_listed(chapter.sometimes)}"
            )
        parts += [_event(each) for each in chapter.events]
    return "\n\n".join(parts)


def _event(event: Logged) -> str:
    parts = [f"#### `{event.name}`", f"*{' or '.join(event.levels)}*: {event.when}"]
    if event.fields:
        parts.append(_listed(event.fields))
    if event.do:
        parts.append(f"**What to do:** {event.do}")
    return "\n\n".join(parts)


def _listed(fields: Fields) -> str:
    return "\n".join(f"- `{name}`: {meaning}" for name, meaning in fields)


PARTS = {"errors": errors, "chapters": chapters}


def drawn(page: str) -> str:
    """The page with the table as it is now."""
    return with_parts(page, "events", {name: part() for name, part in PARTS.items()})


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text()))

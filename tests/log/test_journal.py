"""Lines at a terminal, in systemd's journal, and in what looks like it: by what standard error is."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
import structlog

from gateway.config import Log
from gateway.log import _line, logger
from gateway.log.journal import is_journal

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d"


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def name_of(path: Path) -> str:
    """As systemd gives it in JOURNAL_STREAM."""
    status = path.stat()
    return f"{status.st_dev}:{status.st_ino}"


@contextmanager
def journal(path: Path, monkeypatch: pytest.MonkeyPatch, stream: str | None) -> Iterator[None]:
    """A file for standard error; `stream` says which file the journal is."""
    with path.open("w") as file, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", file)
        if stream is None:
            patch.delenv("JOURNAL_STREAM", raising=False)
        else:
            patch.setenv("JOURNAL_STREAM", stream)
        yield


def test_each_line_in_the_journal_has_its_priority_and_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    path.touch()
    with journal(path, monkeypatch, name_of(path)):
        log = logger(Log(level="debug"), clock=lambda: 0.0)
        log.debug("one", a=1)
        log.info("two")
        log.warning("three")
        log.error("four")
        try:
            raise ValueError("oh")
        except ValueError:
            log.exception("five")
        print(_line("log lines lost", lines=1), end="", file=sys.stderr)
    lines = path.read_text().splitlines()
    assert [line[:3] for line in lines[:4]] == ["<7>", "<6>", "<4>", "<3>"]
    assert lines[0].split() == ["<7>[debug", "]", "one", "a=1"]
    traceback = lines[4:-1]
    assert len(traceback) > 3
    assert all(line.startswith("<3>") for line in traceback)
    assert traceback[-1] == "<3>ValueError: oh"
    assert lines[-1].startswith("<4>")
    assert not re.search(TIME, "".join(lines))


@pytest.mark.parametrize("stream", [None, "", "1:1", "garbage"])
def test_who_is_not_in_the_journal_has_times_and_no_priorities(
    stream: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable alone says nothing: a shell in a service may redirect standard error."""
    path = tmp_path / "file"
    with journal(path, monkeypatch, stream):
        logger(Log(), clock=lambda: 0.0).info("event")
    assert re.match(TIME, path.read_text())


def test_json_in_the_journal_is_json_behind_its_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal takes the priority away, and whoever reads JSON finds all its keys."""
    path = tmp_path / "journal"
    path.touch()
    with journal(path, monkeypatch, name_of(path)):
        logger(Log(format="json"), clock=lambda: 0.0).warning("event", a=1)
    priority, text = path.read_text()[:3], path.read_text()[3:]
    assert priority == "<4>"
    assert json.loads(text).keys() == {"event", "level", "timestamp", "a"}


def test_where_there_is_no_descriptor_there_is_no_journal() -> None:
    for stream in (None, io.StringIO()):
        assert not is_journal(stream, {"JOURNAL_STREAM": "1:1"})


# --- Colours


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Standard error is a terminal: what is written there can be read."""
    ours, theirs = pty.openpty()
    try:
        with os.fdopen(theirs, "w", closefd=False) as file, monkeypatch.context() as patch:
            patch.setattr("sys.stderr", file)
            yield ours
    finally:
        os.close(theirs)
        os.close(ours)


Format = Literal["console", "json"]


@pytest.mark.parametrize(
    ("no_color", "format_", "coloured"),
    [
        (None, "console", True),
        ("", "console", True),
        ("1", "console", False),
        ("0", "console", False),  # any value that is not empty
        (None, "json", False),
    ],
)
def test_colours_are_for_terminals_and_who_wants_them(
    no_color: str | None, format_: Format, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    with terminal(monkeypatch) as screen:
        logger(Log(format=format_), clock=lambda: 0.0).warning("event")
        text = os.read(screen, 1000)
    assert b"event" in text
    assert (b"\x1b" in text) == coloured

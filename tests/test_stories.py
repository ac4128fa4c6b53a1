"""The stories in examples/ show what they say, and leave nothing behind, told to their end or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real

TOP = Path(__file__).parents[1]
STORIES = sorted((TOP / "examples").glob("*/run"))


def begun(story: Path, tmp: Path) -> subprocess.Popen[str]:
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.Popen(
        [story],
        cwd=tmp,
        env={**os.environ, "PATH": programs, "TMPDIR": str(tmp)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def nobody_is_left_of(process: subprocess.Popen[str]) -> None:
    """Its session had no other members when it ended."""
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("story", STORIES, ids=lambda path: path.parent.name)
def test_one_sees_what_one_should(story: Path, workdir: Path) -> None:
    process = begun(story, workdir)
    try:
        told, _ = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 0, told
        assert "you should see, and do:" in told
        assert "do not" not in told
        nobody_is_left_of(process)
        assert not list(workdir.iterdir())
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_one_that_is_interrupted_cleans_up(how: signal.Signals, workdir: Path) -> None:
    process = begun(TOP / "examples/restart/run", workdir)
    try:
        assert process.stdout is not None
        while "The gateway before it" not in (line := process.stdout.readline()):
            assert line
        os.killpg(process.pid, how)
        process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 130
        nobody_is_left_of(process)
        assert not list(workdir.iterdir())
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_one_that_is_not_true_says_so(workdir: Path) -> None:
    for wrong in ('see "two" echo one', 'see "one" sh -c "echo one; exit 1"', 'ends 1 "" true'):
        story = workdir / "run"
        story.write_text(f"#!/bin/sh\n. {TOP}/examples/story.sh\n{wrong}\n")
        story.chmod(0o755)
        process = begun(story, workdir)
        told, _ = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 1, told


def test_each_says_what_it_wants() -> None:
    for story in STORIES:
        assert "\n# Wants: nbd-gateway; " in story.read_text()
        assert os.access(story, os.X_OK)

"""Programs of the Debian 13 root. A file in there has the same name for them as for us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.interop.processes import attempt, run

TOOL = Path(__file__).parents[1] / "tools" / "trixie"
PREFIX = (str(TOOL), "run")
SCRIPTS = Path(__file__).parent / "scripts"


def directory() -> Path:
    return Path(run(TOOL, "path").strip())


def missing() -> str:
    """What keeps us from using the root, in a sentence that says what to do; nothing if it is there."""
    return attempt(TOOL, "check").err.strip()


def new(*command: str | Path) -> tuple[str | Path, ...]:
    """The command by which a program of the root is run."""
    return (*PREFIX, *command)


def script(name: str, *arguments: object) -> Any:
    """Run a libnbd program of scripts/ in the root and return the JSON that it printed."""
    # The root does not see our files, so the program travels as an argument.
    program = (SCRIPTS / f"{name}.py").read_text()
    words = [word if isinstance(word, str) else json.dumps(word) for word in arguments]
    return json.loads(run(*new("python3", "-c", program, *words)))

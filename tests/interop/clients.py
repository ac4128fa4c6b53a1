"""The real clients, as short as a test wants to call them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tools.patience import HANG_SECONDS

from .processes import Process, run

SCRIPTS = Path(__file__).parent / "scripts"
# The one that python3-libnbd is installed for.
SYSTEM_PYTHON = "/usr/bin/python3"

OPENS = """\
import nbd, sys
disk = nbd.NBD()
disk.connect_uri(sys.argv[1])
print(disk.get_size())
disk.shutdown()
"""
"""A client that opens an export, says how large it is, and leaves in good order. `nbdinfo --size` of libnbd
1.22 opens none, and only asks (INFO).
"""


def nbdinfo(uri: str, *arguments: str) -> dict[str, Any]:
    """What `nbdinfo --json` says."""
    said: dict[str, Any] = json.loads(run("nbdinfo", "--json", *arguments, uri))
    return said


def nbdcopy(source: str | Path, destination: str | Path, *arguments: str) -> None:
    run("nbdcopy", *arguments, source, destination)


def qemu_io(uri: str, *commands: str) -> str:
    """Run qemu-io's commands in order; a pattern that is not found fails."""
    words = [word for command in commands for word in ("-c", command)]
    out = run("qemu-io", "-f", "raw", *words, uri)
    assert "Pattern verification failed" not in out, out
    return out


def script(name: str, uri: str, *arguments: str | int, seconds: float = HANG_SECONDS) -> Any:
    """Run one of the libnbd programs in scripts/ and return the JSON that it printed."""
    words = [str(word) for word in arguments]
    return json.loads(
        run(SYSTEM_PYTHON, SCRIPTS / f"{name}.py", uri, *words, seconds=seconds),
    )


def nbdsh(program: str, *arguments: str) -> str:
    """Run lines in libnbd's shell. Not by its command, which runs whatever python3 is first."""
    return run(SYSTEM_PYTHON, "-m", "nbd", *arguments, "-c", program)


def start_script(name: str, uri: str, *arguments: str | int) -> Process:
    """The same in the background."""
    words = [str(word) for word in arguments]
    return Process(SYSTEM_PYTHON, SCRIPTS / f"{name}.py", uri, *words)

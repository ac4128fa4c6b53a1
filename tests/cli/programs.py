"""The gateway as a program, and one that looks at it."""

from __future__ import annotations

import subprocess
import sys

from tests.interop.clients import OPENS, SYSTEM_PYTHON
from tests.tools.patience import HANG_SECONDS

GATEWAY = (sys.executable, "-m", "gateway")


def size_of(uri: str) -> str:
    """Be a client that opens an export; give the size that it was told."""
    command = [SYSTEM_PYTHON, "-c", OPENS, uri]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=True)
    return done.stdout.strip()

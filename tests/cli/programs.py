"""The gateway as a program, and one that looks at it."""

from __future__ import annotations

import subprocess
import sys

from tests.tools.patience import HANG_SECONDS

GATEWAY = (sys.executable, "-m", "gateway")


def nbdinfo(uri: str) -> str:
    return subprocess.run(
        ["nbdinfo", "--size", uri], capture_output=True, text=True, timeout=HANG_SECONDS, check=True
    ).stdout.strip()

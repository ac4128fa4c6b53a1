"""On what and with what it was measured: numbers mean little without."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.bench.peers import GATEWAY_VARIABLE

_VERSIONS = (
    ("nbdkit", ("nbdkit", "--version")),
    ("qemu-nbd", ("qemu-nbd", "--version")),
    ("haproxy", ("haproxy", "-v")),
    ("fio", ("fio", "--version")),
    ("libnbd", ("nbdcopy", "--version")),
)
_NUMBER = re.compile(r"\d+(\.\d+)+")


def facts() -> dict[str, str]:
    """Interpreter, kernel, processors, and the versions of peers and tools."""
    return {
        "interpreter": f"{platform.python_implementation()} {platform.python_version()} ({_build()})",
        "kernel": f"{platform.system()} {platform.release()}",
        "processors": f"{os.cpu_count()} x {_processor()}",
        # Numbers of something else must never pass for the gateway's.
        **({"gateway": "REPLACED BY A STAND-IN"} if os.environ.get(GATEWAY_VARIABLE) else {}),
        **{name: _version(command) for name, command in _VERSIONS},
    }


def _build() -> str:
    # A distribution optimises by its own recipe, which leaves no trace in sysconfig: only who built
    # it can be told.
    if sys.base_prefix == "/usr":
        return "the distribution's"
    if "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or ""):
        return "built with --enable-optimizations"
    return "built without --enable-optimizations"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return "not installed"
    found = _NUMBER.search(done.stdout)
    return found[0] if found else "unknown"

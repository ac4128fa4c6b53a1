"""Builds the compiled pump (`gateway/hub/_pump.c`) with whatever is built of this repository.

`hook.py` calls it for a wheel, and for `pip install -e`. It takes the C compiler that the interpreter was
made with. Where there is none, or no headers of the interpreter, nothing is built, and Python does all:
`nbd-gateway --version` says which it is.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SOURCE = "gateway/hub/_pump.c"
FLAGS = (
    "-O2",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-fstack-protector-strong",
    "-Wall",
    "-Wextra",
)
WITHOUT = "0"
"""What NBD_GATEWAY_PUMP says where no pump is wanted."""


def add_pump(root: Path, build_data: dict[str, Any], warn: Callable[[str], None]) -> None:
    """Add the pump to what is built, if it can be had. It is built into the source tree, where an editable
    installation finds it, too.
    """
    if os.environ.get("NBD_GATEWAY_PUMP") == WITHOUT:
        return
    artifact = Path(SOURCE).with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))
    target = root / artifact
    try:
        compile_pump(root / SOURCE, target)
    except (OSError, subprocess.CalledProcessError) as error:
        target.unlink(missing_ok=True)  # an old one may not know what Python has changed since
        why = getattr(error, "stderr", "") or str(error)
        warn(f"the compiled pump was not built, so Python does all: {why}")
        return
    build_data["artifacts"].append(f"/{artifact}")
    build_data["pure_python"] = False
    build_data["infer_tag"] = True


def compile_pump(source: Path, target: Path, *flags: str) -> None:
    """Compile it, with more `flags` if need be. Raises `OSError` or `CalledProcessError`, which has the
    compiler's words in `stderr`.
    """
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    include = sysconfig.get_paths()["include"]
    # Others may be building it, too. A directory, for a file that was there would keep its permissions.
    with TemporaryDirectory(prefix="_pump.", suffix=".tmp", dir=target.parent) as there:
        made = Path(there) / target.name
        made_of = f'-DMADE_OF="{hashlib.sha256(source.read_bytes()).hexdigest()}"'
        command = [*compiler, *FLAGS, *flags, made_of, f"-I{include}", str(source), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        made.replace(target)  # in one step: others may be running with the old one

"""What hatchling is told to put into a wheel and into an sdist, beside what is in the repository.

Into both goes BUILD: one line that says of which commit it was made. Into a wheel go the compiled pump, if it
can be had (`pump.py`), and what is installed beside the program (`manual.py`). That is made in a process of
its own, so that the build sees this repository's `gateway`, and leaves nothing of it loaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

IN_WHEEL = "gateway/BUILD"
"""Read by `gateway.cli` for --version."""

IN_SDIST = "BUILD"
"""Where it is found by whoever builds of an sdist."""

COMMIT_LENGTH = 12
"""Digits of a commit: git takes 7 by itself, and more as a repository grows, so that two clones may differ."""


class BuildHook(BuildHookInterface[Any]):
    """Adds to a wheel and an sdist what has to be made for them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make it; what it is made in is removed by `finalize`."""
        self.made = TemporaryDirectory()
        root, made = Path(self.root), Path(self.made.name)
        is_wheel = self.target_name == "wheel"
        build = root / IN_SDIST  # as it is in an unpacked sdist
        if commit := commit_of(root):
            build = made / IN_SDIST
            build.write_text(f"{commit}\n")
        if build.exists():
            build_data["force_include"][str(build)] = IN_WHEEL if is_wheel else IN_SDIST
        if not is_wheel:
            return
        beside("pump").add_pump(root, build_data, self.app.display_warning)
        manual = [sys.executable, "-B", str(root / "packaging" / "manual.py"), str(made)]
        subprocess.run(manual, cwd=root, check=True)
        build_data["shared_data"][str(made / "share")] = "share"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was packed."""
        self.made.cleanup()


def beside(name: str) -> ModuleType:
    """Give a module of this directory, which no path leads to while hatchling runs."""
    spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commit_of(root: Path) -> str | None:
    """Give the commit of a working tree, with "-changed" if it has changed since. None: it is no working tree,
    as an unpacked sdist is none, which has its line already.
    """
    if not (root / ".git").exists():  # and no repository around it is asked
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=c_locale())
        return done.stdout.strip()

    try:
        commit = git("rev-parse", f"--short={COMMIT_LENGTH}", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-changed" if changed else commit


def c_locale() -> dict[str, str]:
    """Give an environment in which git asks nobody, and speaks English."""
    return {**os.environ, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}

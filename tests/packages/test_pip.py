"""As install.md has it: a wheel, and a clone, installed by pip in a fresh Debian; and tutorials typed there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.tools.patience import HANG_SECONDS
from tests.walkthrough import run as walk

from .roots import PYTHONS, TOP, Root, fresh

pytestmark = pytest.mark.real

TUTORIALS = sorted((TOP / "docs/tutorials").glob("*.md"))
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_28_x86_64", "manylinux_2_34_x86_64")
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())


@pytest.fixture(scope="module", params=PYTHONS)
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Root:
    """A Debian with all packages that pip will want in /wheels, and a clone and a wheel of ours in /ours."""
    suite: str = request.param
    debian = fresh(suite, tmp_path_factory.mktemp("pip"))
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    on = [f"--platform={each}" for each in PLATFORMS]
    pip(
        *(
            "download",
            "--quiet",
            "--only-binary=:all:",
            f"--python-version=3.{PYTHONS[suite]}",
            *on,
        ),
        *("--dest", debian.path / "wheels", *wanted),
    )
    ours = debian.path / "ours"
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", ours, TOP, NBD_GATEWAY_PUMP="0")
    clone = ["git", "clone", "--quiet", "--depth=1", f"file://{TOP}", str(ours / "clone")]
    subprocess.run(clone, check=True, timeout=HANG_SECONDS)
    return debian


def pip(*arguments: str | Path, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    subprocess.run(command, check=True, env={**os.environ, **environment}, timeout=HANG_SECONDS)


@pytest.mark.parametrize("what", ["wheel", "clone"])
def test_the_tutorials_by(what: str, root: Root) -> None:
    [wheel] = (root.path / "ours").glob("*.whl")
    source = f"/ours/{wheel.name}" if what == "wheel" else "/ours/clone"
    there = f"/root/{what}"
    root.run("python3", "-m", "venv", there)
    install = (f"{there}/bin/pip", "install", "--quiet", source)
    root.run(*install, PIP_NO_INDEX="1", PIP_FIND_LINKS="/wheels")
    assert "(build " in root.run(f"{there}/bin/nbd-gateway", "--version")
    for page in TUTORIALS:
        directory = root.path / "tmp" / f"{what}-{page.stem}"
        directory.mkdir()
        walk(page.read_text(), directory, root.typed_in(f"{there}/bin"))
        shutil.rmtree(directory)

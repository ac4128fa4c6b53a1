"""What `make dist` makes. The program that makes it installs, runs and removes each; here it is looked at."""

from __future__ import annotations

import json
import sys
import tomllib
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import gateway

from .images import BUILD_SECONDS, said_by
from .roots import TOP

pytestmark = pytest.mark.real

PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
VERSION = gateway.__version__
TRIED = ("the wheel with the pump", "the sdist, without a compiler", "the wheel for any machine")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory, and what was said while it was filled."""
    there = tmp_path_factory.mktemp("dist")
    return there, said_by(sys.executable, TOP / "packaging/dist.py", there, seconds=BUILD_SECONDS)


def test_each_was_tried_and_says_what_it_was_built_of(dist: tuple[Path, str]) -> None:
    _there, said = dist
    versions = dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)
    assert tuple(versions) == TRIED
    for what, version in versions.items():
        has = "with" if what == TRIED[0] else "without"
        assert version.startswith(f"{VERSION} (build ")
        assert f", {has} the compiled pump, Python " in version


def test_it_is_what_the_page_lists(dist: tuple[Path, str]) -> None:
    there, _said = dist
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    [compiled] = there.glob(f"nbd_gateway-{VERSION}-{python}-{python}-linux_*.whl")
    made = {
        compiled.name,
        f"nbd_gateway-{VERSION}-py3-none-any.whl",
        f"nbd_gateway-{VERSION}.tar.gz",
        f"nbd-gateway-{VERSION}.cdx.json",
    }
    assert {each.name for each in there.iterdir()} == {*made, "SHA256SUMS"}
    sums = (each.split("  ") for each in (there / "SHA256SUMS").read_text().splitlines())
    assert {name: digest for digest, name in sums} == {
        name: sha256((there / name).read_bytes()).hexdigest() for name in made
    }


def test_an_sdist_of_the_same_commit_is_the_same(dist: tuple[Path, str], tmp_path: Path) -> None:
    there, _said = dist
    build = ("build", "--target", "sdist", "--directory", tmp_path)
    said_by(sys.executable, "-m", "hatchling", *build)
    [again] = tmp_path.iterdir()
    assert again.read_bytes() == (there / again.name).read_bytes()


def test_the_list_has_all_that_is_installed_with_versions_and_licences(
    dist: tuple[Path, str],
) -> None:
    there, _said = dist
    listed = json.loads((there / f"nbd-gateway-{VERSION}.cdx.json").read_text())
    assert listed["bomFormat"] == "CycloneDX"
    main = listed["metadata"]["component"]
    assert (main["name"], main["version"]) == ("nbd-gateway", VERSION)
    parts: dict[str, Any] = {each["name"].lower(): each for each in listed["components"]}
    wanted = {each.partition(">")[0].partition("[")[0] for each in PROJECT["dependencies"]}
    assert wanted <= parts.keys()
    assert not {"pip", "pytest", "mypy"} & parts.keys()
    for name, part in parts.items():
        assert part["version"], name
        assert part["licenses"], name

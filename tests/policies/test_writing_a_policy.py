"""What docs/writing-a-policy.md shows is what happens: its package is installed, and its tests are run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gateway.access.loading import HOOKS
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real

TOP = Path(__file__).parents[2]
TEXT = (TOP / "docs" / "writing-a-policy.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The directory in which the package of the page is installed, as pip would."""
    policy, tests = blocks("python")
    project = tomllib.loads(blocks("toml")[0])["project"]
    [(group, entries)] = project["entry-points"].items()
    [(name, package)] = entries.items()
    files = {
        f"{package}/__init__.py": "",
        f"{package}/office.py": policy,
        "test_office.py": tests,
        "acme-1.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1\n",
        "acme-1.dist-info/entry_points.txt": f"[{group}]\n{name} = {package}\n",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def run(site: Path, *arguments: str) -> str:
    """A module of Python's where the package is installed: of its own, so that nothing of it stays here."""
    ran = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=TOP,
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{TOP}", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_it_is_found(site: Path) -> None:
    assert "office (of acme_policies)" in run(site, "gateway", "policies")
    said = run(site, "gateway", "policies", "office")
    assert said.startswith("office, of the package acme_policies: Let those who are not in the")
    assert "hooks: peek, join, describe, hooked, read" in said


def test_its_tests_pass(site: Path) -> None:
    said = run(
        site, "pytest", "-q", "-p", "no:cacheprovider", "-c", "pyproject.toml",
        f"--rootdir={TOP}", str(site / "test_office.py"),
    )  # fmt: skip
    assert "9 passed" in said


def test_it_keeps_the_contract(site: Path) -> None:
    said = run(
        site, "pytest", "-q", "-p", "no:cacheprovider", "-m", "", "tests/policies/test_contract.py",
        "-k", "office",
    )  # fmt: skip
    assert re.search(r"\d\d passed", said)


def test_its_configuration_uses_it(site: Path) -> None:
    """It is right where the package is installed, and nowhere else."""
    configuration = site / "gateway.toml"
    configuration.write_text(blocks("toml")[1])
    said = run(site, "gateway", "check", "--offline", str(configuration))
    assert said.endswith("with office, fua\n")


def test_every_hook_is_told() -> None:
    table = TEXT.partition("## The hooks")[2].partition("\n## ")[0]
    assert set(re.findall(r"\w+", table)) >= HOOKS.keys()

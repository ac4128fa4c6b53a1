"""Pages whose programs are too large for every run of the tests, or of another index."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.walkthrough import run as walk

from .roots import TOP

pytestmark = pytest.mark.real


def test_ovirt(workdir: Path) -> None:
    """Its daemon is a program of the environment that the tests run in."""
    walk((TOP / "docs/howto/ovirt.md").read_text(), workdir)

"""Policies that are installed beside the gateway, for a test."""

from __future__ import annotations

import importlib
import textwrap
from pathlib import Path


class Installed:
    """What is installed beside the gateway."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.packages: list[str] = []

    def install(self, package: str, files: dict[str, str], *, within: str | None = None) -> Path:
        """A distribution of one package, whose entry point names `within` (default: the package)."""
        folder = self.root.joinpath(*package.split("."))
        folder.mkdir(parents=True)
        for name, text in {"__init__.py": "", **files}.items():
            (folder / name).write_text(textwrap.dedent(text))
        metadata = self.root / f"{package.replace('.', '_')}-1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        (metadata / "entry_points.txt").write_text(
            f"[gateway.policies]\nmine = {within or package}\n"
        )
        importlib.invalidate_caches()
        self.packages.append(package.split(".")[0])
        return folder

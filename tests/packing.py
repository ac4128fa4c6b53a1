"""The modules of packaging/: no path leads there, and hatchling loads them by their files."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

TOP = Path(__file__).parents[1]


def packing(name: str) -> ModuleType:
    """Give `packaging/NAME.py`."""
    directory = str(TOP / "packaging")
    if directory not in sys.path:
        sys.path.append(directory)
    return import_module(name)

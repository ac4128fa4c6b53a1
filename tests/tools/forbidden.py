"""A directory that may not be entered, also for root, whom the kernel forbids nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest


def forbid(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Have nothing in a directory be looked at or opened, as one of mode 0600 has it."""
    for name in ("stat", "lstat", "open"):
        allowed = getattr(os, name)

        def call(path: Any, *rest: Any, allowed: Any = allowed, **named: Any) -> Any:
            if isinstance(path, str | Path) and directory in Path(path).absolute().parents:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return allowed(path, *rest, **named)

        monkeypatch.setattr(os, name, call)

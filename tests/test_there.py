"""What is not there, and what may not be looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.there import seems_there, status_of, unseen
from tests.tools.forbidden import forbid


def test_what_is_there(tmp_path: Path) -> None:
    assert status_of(tmp_path) is not None
    assert seems_there(tmp_path)


@pytest.mark.parametrize("name", ["absent", "absent/file", "file/absent", "a\0b"])
def test_what_is_not_there(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert status_of(tmp_path / name) is None
    assert not seems_there(tmp_path / name)


def test_what_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    forbid(monkeypatch, tmp_path / "forbidden")
    for name, why in {
        "x" * 300: "File name too long",
        "loop": "Too many levels of symbolic links",
        "forbidden/file": "Permission denied",
    }.items():
        with pytest.raises(OSError, match=why) as caught:
            status_of(tmp_path / name)
        assert unseen(caught.value) == f"cannot be looked at: {why}"
        assert not seems_there(tmp_path / name)

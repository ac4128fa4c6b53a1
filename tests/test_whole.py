"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from gateway.whole import write_whole


def test_new_ones_and_others(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old")
    old.chmod(0o640)
    write_whole({old: b"1", new: b"2"}, mode=0o600, replacing=[old])
    assert (old.read_bytes(), new.read_bytes()) == (b"1", b"2")
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert stat.S_IMODE(new.stat().st_mode) == 0o600
    assert {each.name for each in tmp_path.iterdir()} == {"old", "new"}


def test_what_may_not_be_replaced_stays_and_nothing_is_put_beside_it(tmp_path: Path) -> None:
    (tmp_path / "b").symlink_to("nowhere")
    files = {tmp_path / "a": b"", tmp_path / "b": b"", tmp_path / "c": b""}
    with pytest.raises(FileExistsError) as failed:
        write_whole(files)
    assert failed.value.filename == str(tmp_path / "b")
    assert [each.name for each in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b").is_symlink()


@pytest.mark.parametrize("written", range(3))
def test_a_disk_that_says_last_of_all_that_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    left = [written]
    sync = os.fsync

    def full(number: int) -> None:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        sync(number)

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "b").write_bytes(b"before")
    files = {tmp_path / name: b"content" for name in "abc"}
    with pytest.raises(OSError, match="No space left") as failed:
        write_whole(files, replacing=[tmp_path / "b"])
    assert failed.value.filename == str(tmp_path / "abc"[written])
    assert [each.name for each in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b").read_bytes() == b"before"


def test_what_a_killed_try_has_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".a.new").symlink_to(tmp_path / "elsewhere")
    write_whole({tmp_path / "a": b"content"})
    assert (tmp_path / "a").read_bytes() == b"content"
    assert not (tmp_path / "a").is_symlink()
    assert [each.name for each in tmp_path.iterdir()] == ["a"]

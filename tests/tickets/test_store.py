"""Files of tickets are whole or not there; what is none is told, and harms no other."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from gateway.tickets.store import (
    MAX_TICKET_BYTES,
    MAX_TICKETS,
    Store,
    StoreError,
    Unread,
    file_of,
    read_all,
)


def content(name: str, **more: object) -> dict[str, object]:
    return {"ticket": {"name": name, **more}}


def names(directory: Path) -> list[str]:
    found = read_all(directory)
    return sorted(each["ticket"]["name"] for each in found if not isinstance(each, Unread))


def unread(directory: Path) -> dict[str, str]:
    return {each.file: each.why for each in read_all(directory) if isinstance(each, Unread)}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "t")
    for name in ("a", "", "ä/..\n", "n" * 4096):
        store.write(name, content(name))
    store.write("a", content("a", description="another"))
    assert names(tmp_path / "t") == sorted(["a", "", "ä/..\n", "n" * 4096])
    assert content("a", description="another") in list(read_all(tmp_path / "t"))
    store.remove(["a", "never there"])
    assert "a" not in names(tmp_path / "t")
    assert [each.stat().st_mode & 0o777 for each in (tmp_path / "t").iterdir()] == [0o600] * 3
    assert (tmp_path / "t").stat().st_mode & 0o777 == 0o700


def test_a_directory_has_one_gateway(tmp_path: Path) -> None:
    store = Store(tmp_path / "t")
    with pytest.raises(StoreError, match="another gateway has it"):
        Store(tmp_path / "t")
    store.close()
    Store(tmp_path / "t").close()


def test_a_directory_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        Store(tmp_path / "no" / "t")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="Not a directory"):
        Store(tmp_path / "file")


def test_what_is_no_ticket_is_told_and_harms_no_other(tmp_path: Path) -> None:
    store = Store(tmp_path / "t")
    store.write("good", content("good"))
    (tmp_path / "secret").write_text(json.dumps(content("link")))
    there = {
        "a part": b'{"ticket": {"name": "x"',
        "empty": b"",
        "no utf-8": b"\xff\xfe",
        "half a character": json.dumps(content("\ud800")).encode(),
        "a list": b"[]",
        "no name": b'{"ticket": {}}',
        "a number": b'{"ticket": {"name": 5}}',
        "deep": b"[" * 10000,
        "large": b" " * (MAX_TICKET_BYTES + 1),
        "copied": json.dumps(content("good")).encode(),
    }
    for name, text in there.items():
        (tmp_path / "t" / name).write_bytes(text)
    os.mkfifo(tmp_path / "t" / "a pipe")
    (tmp_path / "t" / "a directory").mkdir()
    (tmp_path / "t" / file_of("link")).symlink_to(tmp_path / "secret")
    assert names(tmp_path / "t") == ["good"]
    why = unread(tmp_path / "t")
    assert set(why) == {*there, "a pipe", "a directory", file_of("link")}
    assert "a part" in why["a part"] or "JSON" in why["a part"]
    assert "larger than" in why["large"]
    assert "copied or renamed" in why["copied"]
    assert why["a pipe"] == "is no file"
    assert all(why.values())


def test_what_a_killed_try_has_left_is_no_ticket_and_removed(tmp_path: Path) -> None:
    store = Store(tmp_path / "t")
    left = tmp_path / "t" / f".{file_of('a')}.new"
    left.write_text('{"tick')
    assert not list(read_all(tmp_path / "t"))
    store.clean()
    assert not left.exists()


def test_one_that_is_too_large_is_not_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "t")
    with pytest.raises(ValueError, match=f"{MAX_TICKET_BYTES} bytes at most"):
        store.write("a", content("a", description="x" * MAX_TICKET_BYTES))
    assert not list((tmp_path / "t").iterdir())


def test_a_directory_that_was_moved_is_ours_still(tmp_path: Path) -> None:
    store, moved = Store(tmp_path / "t"), tmp_path / "moved"
    store.write("a", content("a"))
    (tmp_path / "t").rename(moved)
    store.remove(["a"])
    assert not list(moved.iterdir())
    with pytest.raises(FileNotFoundError):
        store.write("b", content("b"))


def test_nothing_is_written_to_a_directory_that_was_put_in_its_place(tmp_path: Path) -> None:
    store, other = Store(tmp_path / "t"), tmp_path / "other"
    for name in ("a", "b"):
        store.write(name, content(name))
    shutil.copytree(tmp_path / "t", other)
    (other / file_of("b")).unlink()
    (tmp_path / "t").rename(tmp_path / "moved")
    other.rename(tmp_path / "t")
    with pytest.raises(OSError, match="another directory is in its place"):
        store.write("c", content("c"))
    store.remove(["b"])  # of which there is nothing where a restart looks
    with pytest.raises(OSError, match="another directory is in its place"):
        store.remove(["a"])
    assert names(tmp_path / "t") == ["a"]
    assert not list((tmp_path / "moved").iterdir())


def test_no_more_are_read_than_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_TICKETS == 10_000
    monkeypatch.setattr("gateway.tickets.store.MAX_TICKETS", 3)
    store = Store(tmp_path / "t")
    for number in range(5):
        store.write(str(number), content(str(number)))
    assert len(names(tmp_path / "t")) == 3
    assert [
        "3 tickets are read, and no more" in why for why in unread(tmp_path / "t").values()
    ] == [True]


WRITER = """
import sys
from pathlib import Path
from gateway.tickets.store import Store
store = Store(Path(sys.argv[1]))
number = 0
while True:
    store.write("a", {"ticket": {"name": "a", "description": str(number) * 1000}, "number": number})
    store.write("b", {"ticket": {"name": "b"}, "number": number})
    store.remove(["b"])
    number += 1
    print(number, flush=True)
"""


@pytest.mark.real
def test_after_a_kill_at_any_moment_a_file_is_whole(tmp_path: Path) -> None:
    for times in range(12):
        read, write = os.pipe()
        child = os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", WRITER, str(tmp_path / "t")],
            {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)],
        )
        os.close(write)
        with os.fdopen(read) as said:
            said.readline()
            time.sleep(times * 0.0007)  # the kill comes at another moment each time
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            done = [int(line) for line in said.read().split() if line]
        assert not unread(tmp_path / "t")
        [a] = [each for each in read_all(tmp_path / "t") if each["ticket"]["name"] == "a"]  # type: ignore[index]
        assert not isinstance(a, Unread)
        assert a["ticket"]["description"] == str(a["number"]) * 1000
        assert a["number"] >= max(done, default=1) - 1  # what was told is done is there

"""The child that speaks HTTP, as the gateway has it: what it listens on where a reload shares that, and what it
says.
"""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import trio
import trio.testing

from gateway.app.web import MOST_LINE_BYTES, AdminDoor, hear_lines, open_door
from gateway.config import Admin
from gateway.net.listen import ListenError


def admin(*uris: str, mode: str = "0600") -> Admin:
    return Admin.model_validate({"uri": list(uris), "socket-mode": mode})


async def is_there(path: Path, mode: int) -> bool:
    """Say whether somebody can connect, and the file has this mode."""
    async with await trio.open_unix_socket(str(path)):
        return stat.S_IMODE(path.stat().st_mode) == mode


@pytest.fixture
def path(workdir: Path) -> Path:
    return workdir / "admin"


async def opened(path: Path, *others: str, mode: str, before: AdminDoor | None = None) -> AdminDoor:
    return await open_door(admin(f"http+unix://{path}", *others, mode=mode), before)


async def test_a_reload_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    before = await opened(path, mode="0600")
    [busy] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    taken = f"http://127.0.0.1:{busy.socket.getsockname()[1]}"
    async with busy:
        with pytest.raises(ListenError, match="cannot listen on http://127"):
            await opened(path, taken, mode="0660", before=before)
    assert await is_there(path, 0o600)
    await before.aclose()
    assert not path.exists()


async def test_one_that_is_given_up_leaves_it_as_well(path: Path) -> None:
    before = await opened(path, mode="0600")
    after = await opened(path, mode="0660", before=before)
    assert await is_there(path, 0o660)
    await after.aclose()
    assert await is_there(path, 0o600)
    await before.aclose()
    assert not path.exists()


async def test_one_that_is_in_force_has_it(path: Path) -> None:
    before = await opened(path, mode="0600")
    after = await opened(path, mode="0660", before=before)
    after.come_into_force(before)
    await before.aclose()
    assert await is_there(path, 0o660)
    await after.aclose()
    assert not path.exists()


async def test_a_file_of_an_older_process_stays_that_ones_through_a_reload(path: Path) -> None:
    theirs = await opened(path, mode="0600")
    sockets = [each.dup() for each in theirs.sockets[theirs.settings.uri[0]]]
    ours = await open_door(theirs.settings, inherited=lambda _uri: sockets)
    after = await opened(path, mode="0600", before=ours)
    after.come_into_force(ours)
    await ours.aclose()
    await after.aclose()
    assert await is_there(path, 0o600)
    await theirs.aclose()
    assert not path.exists()


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"o", b"ne\nand its last wor", b"ds"], ["one", "and its last words"]),
        ([b"x" * (MOST_LINE_BYTES + 1), b"y\n"], ["x" * (MOST_LINE_BYTES + 1), "y"]),
        ([], []),
    ],
    ids=["lines", "no end", "too long", "nothing"],
)
async def test_what_it_says_is_heard_to_the_end(said: list[bytes], heard: list[str]) -> None:
    ours, its = trio.testing.memory_stream_one_way_pair()
    lines: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear_lines, its, lines.append)
        for data in said:
            await ours.send_all(data)
            await trio.testing.wait_all_tasks_blocked()
        await ours.aclose()
    assert lines == heard

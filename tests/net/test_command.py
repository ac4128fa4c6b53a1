"""Servers that are started by command: `gateway.net.command.Command`."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from gateway.net.command import Command
from gateway.net.dial import DialError
from gateway.net.keeping import Keeper
from gateway.peer import Peer
from tests.net.children import children, lives, until
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real

SERVE_ONE = "import os, socket; open(os.environ['SEEN'], 'a').write(f'{os.getpid()}\\n'); " + (
    "s = socket.socket(fileno=3); c = s.accept()[0]; c.send(b'x'); c.recv(1)"
)
"""A server that writes down its number, serves one connection, and ends with it."""

SERVE_MANY = "import os, socket; open(os.environ['SEEN'], 'a').write(f'{os.getpid()}\\n'); " + (
    "s = socket.socket(fileno=3)\nwhile True: s.accept()[0].send(b'x')"
)


WITH_ANOTHER = "import os, subprocess; subprocess.Popen(['sleep', '600'])\n" + SERVE_MANY
"""It has a process of its own besides."""


@asynccontextmanager
async def started(*command: str) -> AsyncIterator[Command]:
    """Give what starts a server; it ends with the block."""
    async with trio.open_nursery() as nursery:
        keeper = Keeper(nursery)
        made = Command("it", command, keeper)
        try:
            yield made
        finally:
            with trio.CancelScope(shield=True):
                await made.stop()
                await keeper.aclose()


def numbers(seen: Path) -> list[int]:
    return [int(line) for line in seen.read_text().split()]


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "seen"
    monkeypatch.setenv("SEEN", str(path))
    return path


async def test_one_server_for_all_who_come_at_once_after_the_last_one_ended(seen: Path) -> None:
    async with started(sys.executable, "-c", SERVE_MANY) as command:
        async with await command.connect() as stream:
            assert await stream.receive_some(1) == b"x"
        [first] = numbers(seen)
        os.kill(first, signal.SIGKILL)
        await until(lambda: not lives(first))

        async def one() -> None:
            async with await command.connect() as stream:
                assert await stream.receive_some(1) == b"x"

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one)
        assert len(numbers(seen)) == 2
    for number in numbers(seen):
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


async def test_a_server_for_one_connection_is_started_again_for_the_next(seen: Path) -> None:
    peers: list[Peer] = []
    async with started(sys.executable, "-c", SERVE_ONE) as command:
        for count in (1, 2):
            async with await command.connect() as stream:
                assert await stream.receive_some(1) == b"x"
                peers.append(command.at(stream))
                assert not peers[-1].gone()
            assert len(numbers(seen)) == count
            await until(lambda: not lives(numbers(seen)[-1]))
            await until(lambda: all(peer.gone() for peer in peers))


async def test_what_a_server_has_started_ends_before_another_is_started(seen: Path) -> None:
    """It may be at the disk still."""
    async with started(sys.executable, "-c", WITH_ANOTHER) as command:
        async with await command.connect() as stream:
            assert await stream.receive_some(1) == b"x"
        [first] = numbers(seen)
        [other] = children(first)
        os.kill(first, signal.SIGKILL)
        await until(lambda: not lives(first))
        assert lives(other)
        async with await command.connect() as stream:
            assert await stream.receive_some(1) == b"x"
        assert len(numbers(seen)) == 2
        assert not lives(other)
        [other] = children(numbers(seen)[1])
    assert not lives(other)


async def test_a_server_that_has_ended_is_reaped_though_nobody_asks_for_it(seen: Path) -> None:
    async with started(sys.executable, "-c", SERVE_ONE) as command:
        async with await command.connect() as stream:
            assert await stream.receive_some(1) == b"x"
        [number] = numbers(seen)
        await until(lambda: not Path(f"/proc/{number}").exists())


async def test_a_server_has_the_socket_and_nothing_else_of_ours(tmp_path: Path) -> None:
    said = tmp_path / "said"
    script = (
        f"ls -l /proc/$$/fd > {said}; echo $LISTEN_FDS $(($LISTEN_PID - $$)) >> {said};"
        f"cat /proc/$$/status >> {said}"
    )
    async with started("sh", "-c", script) as command:
        async with await command.connect() as stream:
            with suppress(trio.BrokenResourceError):
                await stream.receive_some(1)
        await until(lambda: "SigIgn" in said.read_text() and said.read_text().endswith("\n"))
    links = [line.split(" -> ") for line in said.read_text().splitlines() if " -> " in line]
    shown = {int(link.split()[-1]): where for link, where in links}
    assert shown[0] == "/dev/null"
    assert shown[3].startswith("socket:")
    assert {number for number, where in shown.items() if "pipe" in where} <= {1, 2}, shown
    assert set(shown) - {10, 255} == {0, 1, 2, 3}, shown  # a shell has a copy of its own meanwhile
    assert "\n1 0\n" in said.read_text()
    ignored = int(said.read_text().partition("SigIgn:")[2].split()[0], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)  # Python ignores them


async def test_a_program_that_does_not_exist_is_named() -> None:
    async with started("no-such-program", "--flag") as command:
        with pytest.raises(
            DialError, match="no-such-program --flag: there is no program 'no-such-program'"
        ):
            await command.connect()


async def test_a_directory_for_temporary_files_that_is_too_long_is_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    async with started("sleep", "600") as command:
        with pytest.raises(DialError) as caught:
            await command.connect()
    assert "cannot start the server sleep 600: " in str(caught.value)
    assert f"set TMPDIR to a shorter directory than {long}" in str(caught.value)
    assert not list(long.iterdir())


async def test_a_server_that_ends_at_once_keeps_nobody_waiting() -> None:
    async with started(sys.executable, "-c", "raise SystemExit(3)") as command:
        # Whoever connected before it ended sees the end of the connection; whoever comes later is refused.
        with trio.fail_after(HANG_SECONDS):
            async with await command.connect() as stream:
                with suppress(trio.BrokenResourceError):
                    assert await stream.receive_some(1) == b""

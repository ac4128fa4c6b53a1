"""Servers that are started by command: `gateway.net.dial.Command`."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from gateway.net.dial import Command, DialError
from gateway.peer import Peer
from tests.tools.patience import HANG_SECONDS

SERVE_ONE = "import os, socket; open(os.environ['SEEN'], 'a').write(f'{os.getpid()}\\n'); " + (
    "s = socket.socket(fileno=3); c = s.accept()[0]; c.send(b'x'); c.recv(1)"
)
"""A server that writes down its number, serves one connection, and ends with it."""

SERVE_MANY = "import os, socket; open(os.environ['SEEN'], 'a').write(f'{os.getpid()}\\n'); " + (
    "s = socket.socket(fileno=3)\nwhile True: s.accept()[0].send(b'x')"
)


def numbers(seen: Path) -> list[int]:
    return [int(line) for line in seen.read_text().split()]


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "seen"
    monkeypatch.setenv("SEEN", str(path))
    return path


async def test_one_server_for_all_who_come_at_once_after_the_last_one_ended(seen: Path) -> None:
    command = Command((sys.executable, "-c", SERVE_MANY))
    try:
        async with await command.connect() as stream:
            assert await stream.receive_some(1) == b"x"
        [first] = numbers(seen)
        os.kill(first, signal.SIGKILL)
        assert command.process is not None
        await trio.to_thread.run_sync(command.process.wait)

        async def one() -> None:
            async with await command.connect() as stream:
                assert await stream.receive_some(1) == b"x"

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one)
        assert len(numbers(seen)) == 2
    finally:
        await command.stop()
    for number in numbers(seen):
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


async def test_a_server_for_one_connection_is_started_again_for_the_next(seen: Path) -> None:
    command = Command((sys.executable, "-c", SERVE_ONE))
    peers: list[Peer] = []
    try:
        for _ in range(2):
            async with await command.connect() as stream:
                assert await stream.receive_some(1) == b"x"
                peers.append(command.at(stream))
                assert not peers[-1].gone()
            assert command.process is not None
            await trio.to_thread.run_sync(command.process.wait)
            assert [peer.gone() for peer in peers] == [True] * len(peers)
        assert len(numbers(seen)) == 2
    finally:
        await command.stop()


async def test_a_program_that_does_not_exist_is_named() -> None:
    with pytest.raises(
        DialError, match="no-such-program --flag: there is no program 'no-such-program'"
    ):
        await Command(("no-such-program", "--flag")).connect()


async def test_a_server_that_ends_at_once_keeps_nobody_waiting() -> None:
    command = Command((sys.executable, "-c", "raise SystemExit(3)"))
    try:
        # Whoever connected before it ended sees the end of the connection; whoever comes later is refused.
        with trio.fail_after(HANG_SECONDS):
            async with await command.connect() as stream:
                with suppress(trio.BrokenResourceError):
                    assert await stream.receive_some(1) == b""
    finally:
        await command.stop()

"""Which process is at the other end of a connection, and whether it has ended: with processes that do what
servers do with their sockets.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
import trio

from gateway.net import processes
from gateway.net.keeping import Kept
from gateway.net.processes import Child, Processes, session_lives
from gateway.peer import UNKNOWN

pytestmark = pytest.mark.real

PR_SET_CHILD_SUBREAPER = 36

LISTEN = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen()
"""
READY = "print(os.getpid(), flush=True)\n"
SERVE_FOR_EVER = (
    "while True: c = s.accept()[0]; c.send(b'x'); kept = [c, *globals().get('kept', [])]\n"
)

FOREGROUND = LISTEN + READY + SERVE_FOR_EVER
"""As qemu-nbd and nbdkit -f."""
BACKGROUND = LISTEN + "if os.fork(): os._exit(0)\n" + READY + SERVE_FOR_EVER
"""As nbdkit."""
FORKING = (
    LISTEN
    + READY
    + "while True:\n c = s.accept()[0]\n if not os.fork():\n  c.send(b'x'); c.recv(1); os._exit(0)\n"
)
"""As nbd-server, and socat with fork."""
HANDS_ON = (
    LISTEN + READY + "c = s.accept()[0]; c.send(b'x'); c.recv(1)\n"
    "pid = os.fork()\nif not pid: c.recv(1); os._exit(0)\nc.send(b'%d\\n' % pid); os.wait()\n"
)
"""Gives its connection to a child as soon as it is told to, and goes on beside that."""


@contextmanager
def running(script: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a script until it says that it is ready. What belongs to it ends with it."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdin=subprocess.PIPE,  # ours may have ended, and some wait for that
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@asynccontextmanager
async def watched() -> AsyncIterator[Processes]:
    made = Processes()
    before = descriptors()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.watch)
        await trio.testing.wait_all_tasks_blocked()
        yield made
        nursery.cancel_scope.cancel()
    assert descriptors() <= before


async def connected(path: Path) -> trio.SocketStream:
    stream = await trio.open_unix_socket(str(path))
    assert await stream.receive_some(1) == b"x"
    return stream


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await trio.sleep(0.01)


@pytest.fixture(params=["SO_PEERPIDFD", "pidfd_open"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where servers listen; on a kernel as this one, and on one that was before 6.5."""
    if request.param == "pidfd_open":
        monkeypatch.setattr(processes, "SO_PEERPIDFD", 9999)
    return tmp_path / "s"


# --- Listeners


async def test_a_server_that_has_ended_is_gone(path: Path) -> None:
    async with watched() as known:
        with running(FOREGROUND, path) as server:
            async with await connected(path) as one, await connected(path) as other:
                peer = known.at(one)
                assert known.at(other) is peer
                for link in (one, other):
                    peer.serves(link.socket)
                assert peer.provable
                assert not peer.gone()
                server.kill()
                # Whoever gets to know of it by the end of its connection asks at once.
                assert not await one.receive_some()
                await until(peer.gone)
        path.unlink()
        with running(FOREGROUND, path):
            async with await connected(path) as stream:
                assert known.at(stream).provable


async def test_one_that_has_closed_a_connection_is_not_gone_until_it_has_ended(path: Path) -> None:
    close = LISTEN + READY + "c = s.accept()[0]; c.send(b'x'); c.close(); input()\n"
    async with watched() as known:
        with running(close, path) as server:
            async with await connected(path) as stream:
                peer = known.at(stream)
                peer.serves(stream.socket)
                assert not await stream.receive_some()
            assert not peer.gone()
            server.kill()
            await until(peer.gone)


async def test_who_had_ended_before_proves_nothing(path: Path) -> None:
    with running(BACKGROUND, path) as server:
        server.wait()
        async with watched() as known, await connected(path) as stream:
            assert known.at(stream) is UNKNOWN


async def test_who_had_ended_and_is_not_waited_for_proves_nothing(path: Path) -> None:
    with running(BACKGROUND, path) as server:
        await until(lambda: b") Z" in Path(f"/proc/{server.pid}/stat").read_bytes())
        async with watched() as known, await connected(path) as stream:
            assert known.at(stream) is UNKNOWN


async def test_who_has_children_proves_nothing(path: Path) -> None:
    async with watched() as known:
        with running(FORKING, path) as server:
            async with await connected(path) as stream:
                peer = known.at(stream)
                peer.serves(stream.socket)
                assert not peer.provable
                server.kill()
                server.wait()
            assert not peer.gone()


async def test_who_ends_before_its_links_proves_nothing_and_nobody_after_it(path: Path) -> None:
    async with watched() as known:
        with running(HANDS_ON, path) as server:
            stream = await connected(path)
            peer = known.at(stream)
            peer.serves(stream.socket)
            assert peer.provable
            await stream.send_all(b"h")
            await stream.receive_some()
            server.kill()
            await until(lambda: not peer.provable)
            await stream.aclose()
            assert not peer.gone()
        path.unlink()
        with running(FOREGROUND, path):
            async with await connected(path) as stream:
                assert known.at(stream) is UNKNOWN


async def test_we_are_nobodys_server(tmp_path: Path) -> None:
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    with listener:
        await listener.bind(str(tmp_path / "s"))
        listener.listen()
        async with watched() as known, await trio.open_unix_socket(str(tmp_path / "s")) as stream:
            assert known.at(stream) is UNKNOWN


async def test_nothing_is_known_of_who_is_not_on_this_machine() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, watched() as known:
        stream = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        async with stream:
            assert known.at(stream) is UNKNOWN


async def test_nothing_is_known_while_nobody_watches(path: Path) -> None:
    known = Processes()
    with running(FOREGROUND, path) as server:
        async with await connected(path) as stream:
            assert known.at(stream) is UNKNOWN
            async with trio.open_nursery() as nursery:
                nursery.start_soon(known.watch)
                await trio.testing.wait_all_tasks_blocked()
                peer = known.at(stream)
                assert peer.provable
                nursery.cancel_scope.cancel()
            assert not peer.provable
            server.kill()
            server.wait()
            assert not peer.gone()


async def test_a_bound_on_descriptors(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MOST_PROCESSES", 1)
    async with watched() as known:
        with running(FOREGROUND, path), running(FOREGROUND, path.with_name("t")):
            async with await connected(path) as one, await connected(path.with_name("t")) as two:
                assert known.at(one).provable
                assert known.at(two) is UNKNOWN


# --- Servers that we start


async def test_a_child_is_gone_with_its_whole_session(tmp_path: Path) -> None:
    script = "import os, time\nif not os.fork(): time.sleep(600)\n" + READY + "time.sleep(600)\n"
    with running(script, tmp_path / "s") as process:
        child = Child(Kept(process))
        assert not child.gone()
        process.kill()
        process.wait()
        assert session_lives(process.pid)
        assert not child.gone()
        os.killpg(process.pid, signal.SIGKILL)
        await until(child.gone)


async def test_a_child_that_has_ended_is_gone_before_it_is_reaped(tmp_path: Path) -> None:
    with running("import os, time\n" + READY + "time.sleep(600)\n", tmp_path / "s") as process:
        kept = Kept(process)
        child = Child(kept)
        assert kept.status is None
        os.kill(process.pid, signal.SIGKILL)
        await until(child.gone)
        assert kept.status == -signal.SIGKILL
        # Nobody else has its number.
        assert b") Z" in Path(f"/proc/{process.pid}/stat").read_bytes()
        process.wait()
        assert kept.status == -signal.SIGKILL


async def test_who_has_ended_and_is_not_reaped_does_nothing_any_more(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None)
    script = (
        "import os, time\npid = os.fork()\nif not pid: time.sleep(600)\nprint(pid, flush=True)\n"
    )
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        orphan = int(process.stdout.readline())
        process.stdout.close()
        process.wait()
        assert session_lives(process.pid)
        os.kill(orphan, signal.SIGKILL)
        await until(lambda: b") Z" in Path(f"/proc/{orphan}/stat").read_bytes())
        assert not session_lives(process.pid)
        os.waitpid(orphan, 0)
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0)


async def test_a_process_whose_first_thread_has_ended_lives(tmp_path: Path) -> None:
    script = (
        "import ctypes, os, threading, time\n"
        "def others():\n print(os.getpid(), flush=True)\n time.sleep(600)\n"
        "threading.Thread(target=others).start()\nctypes.CDLL(None).pthread_exit(0)\n"
    )
    with running(script, tmp_path / "s") as process:
        await until(lambda: b") Z" in Path(f"/proc/{process.pid}/stat").read_bytes())
        assert session_lives(process.pid)
        process.kill()
        await until(lambda: not session_lives(process.pid))


async def test_a_child_that_ends_before_its_links_proves_nothing(tmp_path: Path) -> None:
    """What it has started has made a session of its own."""
    script = (
        LISTEN + READY + "c = s.accept()[0]; c.send(b'x'); c.recv(1)\n"
        "if not os.fork(): os.setsid(); c.send(b'%d\\n' % os.getpid()); c.recv(1); os._exit(0)\n"
    )
    with running(script, tmp_path / "s") as process:
        child = Child(Kept(process))
        async with await connected(tmp_path / "s") as stream:
            child.serves(stream.socket)
            await stream.send_all(b"h")
            await stream.receive_some()
            process.wait()
            await until(lambda: not child.provable or child.gone())
        assert not child.gone()
        assert not child.provable

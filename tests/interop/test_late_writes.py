"""What an old server may still write, with real ones: newer writes wait for it, unless it is known to have
ended.

What is known of a process is looked at by itself first, and then in what a client sees: a server is killed, or
cut off, while it is at a WRITE of what is there already, and another comes in its place. Where anything waits,
it does so for `LATE_SECONDS`, which no test comes to the end of.
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from gateway.net.keeper import seen
from gateway.net.processes import Processes
from gateway.peer import Peer

from .bundles import Requests
from .gateways import Before
from .processes import Process, listening, wait_until
from .rawclient import RawClient
from .servers import Daemon, unix_uri

LATE_SECONDS = 3000
BLOCK = 4096
OLD, NEW = b"X" * BLOCK, b"Y" * BLOCK
WAITS = "newer ones over them wait"
WRITE_HANGS = ("--filter=log", "--filter=delay")
HANGS_SECONDS = 3000


@pytest.fixture
def disk(workdir: Path) -> Path:
    path = workdir / "disk"
    path.write_bytes(OLD * 256)
    return path


@pytest.fixture
def path(workdir: Path) -> Path:
    """Where servers listen."""
    return workdir / "s"


def ready(process: Process | Daemon, path: Path) -> None:
    wait_until(lambda: listening(unix_uri(path)), f"{process.command[0]} listens")


# --- What is known of a process


def qemu_nbd(disk: Path, path: Path) -> Process | Daemon:
    return Process("qemu-nbd", "--persistent", "--shared=0", "-f", "raw", "-k", path, disk)


def nbdkit(disk: Path, path: Path) -> Process | Daemon:
    return Process("nbdkit", "--foreground", "-U", path, "file", disk)


def storage_daemon(disk: Path, path: Path) -> Process | Daemon:
    return Process(
        *("qemu-storage-daemon", "--blockdev", f"file,node-name=disk,filename={disk}"),
        *("--nbd-server", f"addr.type=unix,addr.path={path},max-connections=0"),
        *("--export", "nbd,id=disk,node-name=disk,name=disk,writable=on"),
    )


def nbdkit_in_the_background(disk: Path, path: Path) -> Process | Daemon:
    pidfile = path.with_suffix(".pid")
    return Daemon(["nbdkit", "-P", str(pidfile), "-U", str(path), "file", str(disk)], pidfile)


def nbd_server(disk: Path, path: Path) -> Process | Daemon:
    config, pidfile = path.with_suffix(".conf"), path.with_suffix(".pid")
    config.write_text(f"[generic]\nunixsock = {path}\n[disk]\nexportname = {disk}\n")
    return Daemon(["nbd-server", "-C", str(config), "-p", str(pidfile)], pidfile)


def socat(disk: Path, path: Path) -> Process | Daemon:
    """With nbdkit behind it, which lives on."""
    behind = path.with_name("behind")
    ready(nbdkit(disk, behind), behind)
    return Process("socat", f"UNIX-LISTEN:{path},fork", f"UNIX-CONNECT:{behind}")


Start = Callable[[Path, Path], Process | Daemon]

PEERS: dict[str, Start] = {
    "qemu-nbd": qemu_nbd,
    "nbdkit -f": nbdkit,
    "qemu-storage-daemon": storage_daemon,
}
NO_PEERS: dict[str, Start] = {
    "nbdkit": nbdkit_in_the_background,
    "nbd-server": nbd_server,
    "socat": socat,
}


@contextmanager
def started(start: Start, disk: Path, path: Path) -> Iterator[Process | Daemon]:
    server = start(disk, path)
    try:
        ready(server, path)
        yield server
    finally:
        server.kill()


async def known(path: Path, processes: Processes) -> tuple[trio.SocketStream, Peer]:
    """A link, as far as the server's greeting."""
    stream = await trio.open_unix_socket(str(path))
    peer = processes.at(stream)
    assert await stream.receive_some()
    peer.serves(stream.socket)
    return stream, peer


@pytest.mark.parametrize("start", PEERS.values(), ids=PEERS)
async def test_a_server_that_serves_by_itself_is_gone_when_it_has_ended(
    start: Start, disk: Path, path: Path
) -> None:
    processes = Processes()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(processes.watch)
        await trio.testing.wait_all_tasks_blocked()
        with started(start, disk, path) as server:
            stream, peer = await known(path, processes)
            async with stream:
                assert not peer.gone()
                server.kill()
                while not peer.gone():
                    await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("start", NO_PEERS.values(), ids=NO_PEERS)
async def test_who_has_others_serve_is_never_gone(start: Start, disk: Path, path: Path) -> None:
    processes = Processes()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(processes.watch)
        await trio.testing.wait_all_tasks_blocked()
        with started(start, disk, path) as server:
            stream, peer = await known(path, processes)
            async with stream:
                assert not peer.provable
                server.kill()
                assert not peer.gone()
            assert not peer.gone()
        nursery.cancel_scope.cancel()


# --- What a client sees


class Scene:
    """A client whose WRITE of what is there already has been lost with its connection, and answered since."""

    def __init__(self, workdir: Path, upstream: str, requests: Requests) -> None:
        self.gateway = Before(workdir, f"{upstream}\nlate-write-seconds = {LATE_SECONDS}")
        self.client = RawClient(self.gateway.uri())
        self._requests = requests

    def begin(self, cut: Callable[[], None]) -> None:
        self.client.socket.sendall(write(1, OLD))
        wait_until(lambda: "Write" in self._requests.names(), "the server is at the WRITE")
        cut()
        assert self.client.reply(0) == (1, 0, b"")

    def newer_write(self) -> None:
        """And a READ behind it."""
        self.client.socket.sendall(write(2, NEW) + self.client.read_request(3, 0, BLOCK))

    def expect_no_wait(self) -> None:
        self.newer_write()
        self.expect_both()
        assert WAITS not in self.gateway.log
        self.client.close()
        self.gateway.end()

    def expect_both(self) -> None:
        """Their answers, in any order."""
        self.client.socket.settimeout(60)
        assert sorted(self._reply()[0] for _ in range(2)) == [2, 3]

    def _reply(self) -> tuple[int, int]:
        magic, errno, cookie = struct.unpack("!IIQ", self.client.receive(16))
        assert (magic, errno) == (0x67446698, 0)
        if cookie == 3:
            self.client.receive(BLOCK)
        return cookie, errno

    def expect_wait(self) -> None:
        self.newer_write()
        assert self.client.reply(BLOCK) == (3, 0, OLD)
        wait_until(lambda: WAITS in self.gateway.log, "the log says so")  # a thread writes it

    def end(self) -> None:
        assert "Traceback" not in self.gateway.log
        self.gateway.process.kill()
        self.client.close()


def write(cookie: int, data: bytes) -> bytes:
    return struct.pack("!IHHQQI", 0x25609513, 0, 1, cookie, 0, len(data)) + data


def hanging(disk: Path, log: Path) -> tuple[str, ...]:
    """nbdkit's arguments that have a WRITE hang."""
    return (*WRITE_HANGS, "file", str(disk), f"logfile={log}", f"wdelay={HANGS_SECONDS}")


@pytest.mark.parametrize("said", [True, False])
def test_a_server_at_a_unix_socket_that_is_killed(
    said: bool, workdir: Path, disk: Path, path: Path
) -> None:
    log = workdir / "log"
    server = Process("nbdkit", "--foreground", "-U", path, *hanging(disk, log))
    ready(server, path)
    key = "\nserver-is-peer = true" if said else ""
    scene = Scene(workdir, f'uri = "{unix_uri(path)}"{key}', Requests(log))

    def cut() -> None:
        server.kill()
        path.unlink()
        ready(nbdkit(disk, path), path)

    scene.begin(cut)
    if said:
        scene.expect_no_wait()
    else:
        scene.expect_wait()
        scene.end()


def test_nbdkit_in_the_background(workdir: Path, disk: Path, path: Path) -> None:
    """Whom its socket names has ended long ago."""
    log, pidfile = workdir / "log", workdir / "pid"
    command = ["nbdkit", "-P", str(pidfile), "-U", str(path), *hanging(disk, log)]
    server = Daemon(command, pidfile)
    try:
        scene = Scene(workdir, f'uri = "{unix_uri(path)}"\nserver-is-peer = true', Requests(log))

        def cut() -> None:
            server.kill()
            with suppress(FileNotFoundError):
                path.unlink()
            ready(nbdkit(disk, path), path)

        scene.begin(cut)
        scene.expect_wait()
        scene.end()
    finally:
        server.kill()


def test_socat_between_that_is_killed(workdir: Path, disk: Path, path: Path) -> None:
    """The server behind it is still at the WRITE."""
    log, behind = workdir / "log", workdir / "behind"
    server = Process("nbdkit", "--foreground", "-U", behind, *hanging(disk, log))
    ready(server, behind)
    between = Process("socat", f"UNIX-LISTEN:{path},fork", f"UNIX-CONNECT:{behind}")
    ready(between, path)
    scene = Scene(workdir, f'uri = "{unix_uri(path)}"\nserver-is-peer = true', Requests(log))

    def cut() -> None:
        os.killpg(between.pid, signal.SIGKILL)
        between.kill()
        path.unlink()
        ready(nbdkit(disk, path), path)

    scene.begin(cut)
    scene.expect_wait()
    assert server.running
    scene.end()


COMMAND = """\
command = ["/bin/sh", "-c", '''
if [ -e {begun} ]; then exec nbdkit file {disk}; fi
: > {begun}
{before}
echo $$ > {pid}
exec nbdkit {hanging}
''']
"""


def test_a_command_that_is_killed(workdir: Path, disk: Path) -> None:
    scene, kill, _others = command(workdir, disk)
    scene.begin(kill)
    scene.expect_no_wait()


def test_a_command_that_is_killed_and_leaves_others_of_its_session(
    workdir: Path, disk: Path
) -> None:
    """They have ended before the next one is started, so that a newer WRITE waits no longer than for that."""
    scene, kill, others = command(workdir, disk, before="sleep 3000 & echo $! > {others}")
    scene.begin(kill)
    other = int(others.read_text())
    assert other not in seen() or not seen()[other].lives
    scene.newer_write()
    scene.expect_both()
    scene.client.close()
    scene.gateway.end()


def command(workdir: Path, disk: Path, before: str = "") -> tuple[Scene, Callable[[], None], Path]:
    log, pid, others = workdir / "log", workdir / "pid", workdir / "others"
    keys = COMMAND.format(
        begun=workdir / "begun",
        disk=disk,
        pid=pid,
        before=before.format(others=others),
        hanging=" ".join(hanging(disk, log)),
    )
    scene = Scene(workdir, keys, Requests(log))
    return scene, lambda: os.kill(int(pid.read_text()), signal.SIGKILL), others

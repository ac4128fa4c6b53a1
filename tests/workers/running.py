"""A gateway with several workers, as real processes, before servers that live in the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from gateway.admin.asking import ControlError, ask
from gateway.admin.control import ControlAnswer
from gateway.config import load
from gateway.embedded import Server
from gateway.embedded.disk import MemoryDisk
from gateway.protocol.client_role import Refused
from gateway.wire.constants import Rep
from gateway.workers.homes import home_of, table_of
from tests.embedded.peers import BLOCK_SIZE, Client
from tests.tools.patience import HANG_SECONDS

HEAD = """\
workers = {workers}
[[listen]]
uri = "nbd+unix:///?socket={at}/g.sock"
[control]
socket = "{at}/c.sock"
"""

ROOT = Path(__file__).parents[2]


def python_path(first: Path) -> str:
    """Give a PYTHONPATH with a folder before this checkout, which is then what runs, wherever Python finds it
    otherwise.
    """
    return os.pathsep.join((str(first), str(ROOT)))


HOMELESS = {"PYTHONPATH": python_path(Path(__file__).parent / "homeless")}
"""Takes the homes of disks away."""

NOTHING_ADDED: Mapping[str, str] = {}

LOOK_AGAIN_SECONDS = 0.01

SIZE = 1 << 20
NAMES = [f"d{number}" for number in range(64)]
"""Of the disks that there are. Where their homes are follows from where the test has its files."""

FEW = 8


def disks() -> Server:
    """Give a server with many disks."""
    return Server({name: MemoryDisk(SIZE) for name in NAMES})


def names_by_turns(path: Path, workers: int = 2) -> list[str]:
    """Give the names of a few disks whose homes are the workers 0, 1, 0, ... under the configuration in a
    file.
    """
    config = load(path)
    table, [settings] = table_of(config, counted=False), config.upstream.values()
    found: list[str] = []
    for name in NAMES:
        if home_of(table, settings, name, workers) == len(found) % workers and len(found) < FEW:
            found.append(name)
    assert len(found) == FEW
    return found


class Gateway:
    """One that runs. `at` is where its files are; `environment` is added to ours."""

    def __init__(
        self,
        at: Path,
        text: str,
        *,
        workers: int = 2,
        environment: Mapping[str, str] = NOTHING_ADDED,
    ) -> None:
        self.at = at
        self.path = at / "g.toml"
        self.workers = workers
        self._streams: list[trio.SocketStream] = []
        self.write(text)
        self.log = at / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "gateway", "serve", "--config", str(self.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
                process_group=0,
            )

    def write(self, text: str) -> None:
        self.path.write_text(HEAD.format(at=self.at, workers=self.workers) + text)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    async def ask(self, verb: str, **arguments: object) -> ControlAnswer:
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        return await ask(self.at / "c.sock", verb, named)

    async def status(self) -> Mapping[str, Any]:
        answer = await self.ask("status")
        assert answer.data is not None, answer
        return answer.data

    async def serves(self) -> None:
        """Wait until all workers do."""

        async def all_do() -> bool:
            assert self.process.poll() is None, self.said
            return all(each["serves"] for each in await self.there() or [{"serves": False}])

        await until(all_do)

    async def replaced(self, worker: int, times: int = 1) -> None:
        """Wait until one serves that was started in the place of a worker that has ended."""

        async def is_there() -> bool:
            assert self.process.poll() is None, self.said
            found = [each for each in await self.there() if each["worker"] == worker]
            return any(each["serves"] and each["restarts"] == times for each in found)

        await until(is_there)

    async def there(self) -> list[Mapping[str, Any]]:
        """Give what is said of the workers; nothing, if none can be asked now."""
        try:
            answer = await self.ask("status")
        except ControlError:
            return []
        return [] if answer.data is None else list(answer.data["workers"])

    async def pids(self) -> list[int]:
        return [each["pid"] for each in (await self.status())["workers"]]

    async def client(self, worker: int | None = None) -> Client:
        """Give one that has connected, to a certain worker: all others are asleep meanwhile."""
        if worker is not None:
            await self.serves()
        others = [] if worker is None else await self.pids()
        others = [pid for number, pid in enumerate(others) if number != worker and pid]
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        try:
            while any(state_of(pid) not in "TX" for pid in others):  # it may be about to accept
                await trio.sleep(LOOK_AGAIN_SECONDS)
            client = await self.connected("g.sock")
            client.negotiation.receive(await client.stream.receive_some())  # it is accepted
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)
        return client

    async def connected(self, name: str) -> Client:
        """Give one that has connected to a socket, and is closed when the test ends."""
        stream = await trio.open_unix_socket(str(self.at / name))
        self._streams.append(stream)
        return Client(stream)

    async def aclose(self) -> None:
        for stream in self._streams:
            await trio.aclose_forcefully(stream)

    async def sessions(self) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        while True:
            after = {"after": found[-1]["session"]} if found else {}
            answer = await self.ask("sessions", **after)
            assert answer.data is not None, answer
            found += answer.data["sessions"]
            if not answer.data["more"]:
                return found

    async def session(
        self, name: str = "", worker: int | None = None, *, structured: bool = True
    ) -> Client:
        """Give one that has opened an export."""
        client = await self.client(worker)
        await client.go(name, structured=structured)
        return client

    async def session_again(self, name: str, refused: Rep = Rep.ERR_SHUTDOWN) -> Client:
        """Give one that has opened an export whose home is being started, or whose last place is being given
        back, however long that takes: who is `refused` so comes again.
        """
        while True:
            client = await self.connected("g.sock")
            await client.structured()
            client.negotiation.go(name, BLOCK_SIZE)
            if not isinstance(answer := await client.event(), Refused):
                return client
            assert answer.reply == refused, answer
            await client.stream.aclose()

    async def has_clients(self, count: int, number: int = 0) -> None:
        """Wait until a listener has so many: for a moment, who is handed over is counted twice, and who has
        left still.
        """

        async def are_there() -> bool:
            return bool((await self.status())["listeners"][number]["clients"] == count)

        await until(are_there)


async def until(true: Callable[[], Any]) -> None:
    """Other processes have something to do still."""
    while not await true():
        await trio.sleep(LOOK_AGAIN_SECONDS)


def state_of(pid: int) -> str:
    """Give the letter that the kernel has for what a process does (proc(5)); "X" where it is none any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


@asynccontextmanager
async def server_at(path: Path, server: Server) -> AsyncIterator[None]:
    """Have a server of the test at a Unix socket."""
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen(64)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server.serve, [trio.SocketListener(sock)])
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def gateway(
    at: Path,
    text: str,
    *,
    workers: int = 2,
    environment: Mapping[str, str] = NOTHING_ADDED,
    seconds: float = HANG_SECONDS,
) -> AsyncIterator[Gateway]:
    """Have a gateway that serves, until the block ends, within so many seconds; in good order, unless the test
    has killed it.
    """
    running = Gateway(at, text, workers=workers, environment=environment)
    try:
        with trio.fail_after(seconds):
            await running.serves()
            yield running
        await running.aclose()
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)
            status = await trio.to_thread.run_sync(running.process.wait, HANG_SECONDS)
            assert status == 0, running.said
            assert "Traceback" not in running.said, running.said
    finally:
        with trio.CancelScope(shield=True):
            await running.aclose()
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait()
        print(running.said)

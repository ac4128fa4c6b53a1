"""A Unix socket whose file somebody has removed is made anew, and whoever is connected stays so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import structlog
import trio

from gateway.admin.asking import ask
from gateway.admin.control import ControlAnswer, ControlSocket
from gateway.app.doors import Doorkeeper
from gateway.app.socket_files import SocketFiles
from gateway.app.standing import Listeners
from gateway.config import parse
from gateway.net.listen import Listener, open_listener, take_clients
from tests.tools.patience import HANG_SECONDS


class Doors:
    """Doors that take whoever comes, and answer `hello`."""

    def __init__(self, directory: Path) -> None:
        self.path, self.control_path = directory / "g", directory / "c"
        self.taken: list[trio.SocketStream] = []
        self.lines = structlog.testing.LogCapture()

    async def begin(self, nursery: trio.Nursery) -> None:
        [listen] = parse(
            f'[[listen]]\nuri = "nbd+unix:///?socket={self.path}"\nsocket-mode = "660"\n'
            '[upstream.u]\nuri = "nbd://h"\n',
            "f",
        ).listen
        self.doors = Listeners([await open_listener(listen)], ControlSocket(self.control_path))
        self.nursery = nursery
        self.keeper = Doorkeeper(self.doors, None, self._beside, self._taking, self._obeying)
        log = structlog.wrap_logger(None, processors=[self.lines])
        self.files = SocketFiles(self.keeper, log)
        self.keeper.accept_all()

    def _beside(self, task: Callable[[], Awaitable[object]]) -> None:
        self.nursery.start_soon(task)

    def _taking(self, listener: Listener) -> list[Callable[[], Awaitable[object]]]:
        return [
            partial(take_clients, each, self.taken.append, lambda _errno: None)
            for each in listener.sockets
        ]

    async def _obeying(self, control: ControlSocket) -> None:
        async def hello(_arguments: object) -> ControlAnswer:
            return ControlAnswer(True, ("hello",))

        await control.run({"hello": hello}, self.nursery, lambda _errno: None)

    async def answers(self) -> bool:
        return (await ask(self.control_path, "hello")).done == ("hello",)

    async def connects(self) -> None:
        before = len(self.taken)
        async with await trio.open_unix_socket(str(self.path)):
            while len(self.taken) == before:
                await trio.lowlevel.checkpoint()

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.lines.entries]


@asynccontextmanager
async def open_doors(directory: Path) -> AsyncIterator[Doors]:
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            made = Doors(directory)
            await made.begin(nursery)
            yield made
            await made.doors.aclose()
            nursery.cancel_scope.cancel()
    for stream in made.taken:
        await stream.aclose()


ANEW = "socket's file was removed: listening anew"


async def test_they_are_made_anew(workdir: Path) -> None:
    async with open_doors(workdir) as made:
        await made.files.look()
        assert made.events == []
        await made.connects()
        made.path.unlink()
        made.control_path.unlink()
        await made.files.look()
        assert made.events == [ANEW, ANEW]
        assert await made.answers()
        await made.connects()
        assert made.path.stat().st_mode & 0o777 == 0o660
        await made.files.look()
        assert made.events == [ANEW, ANEW]
    assert not made.path.exists()
    assert not made.control_path.exists()


async def test_what_stands_there_since_is_left_alone(workdir: Path) -> None:
    async with open_doors(workdir) as made:
        made.control_path.unlink()
        made.control_path.write_text("somebody's")
        await made.files.look()
        assert made.events == []
        assert made.control_path.read_text() == "somebody's"


async def test_where_there_is_no_place_it_is_said_once(workdir: Path) -> None:
    directory, away = workdir / "sockets", workdir / "away"
    directory.mkdir()
    async with open_doors(directory) as made:
        directory.rename(away)
        for _ in range(3):
            await made.files.look()
        assert made.events == ["socket's file is gone, and none can be made"] * 2
        directory.mkdir()
        await made.files.look()
        assert await made.answers()
        await made.connects()


async def test_a_newer_process_sees_to_its_own(workdir: Path) -> None:
    async with open_doors(workdir) as made:
        made.keeper.accept_nobody()
        made.control_path.unlink()
        await made.files.look()
        assert made.events == []
        assert not made.control_path.exists()
        made.keeper.accept_all()
        await made.files.look()
        assert await made.answers()

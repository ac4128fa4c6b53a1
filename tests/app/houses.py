"""A gateway that a test reloads: all of it that a reload concerns, with the file that it comes from."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
import trio
import trio.testing

from gateway.admin.control import ControlAnswer, ControlSocket
from gateway.app.reload import Reloader
from gateway.app.source import ConfigSource
from gateway.app.standing import Listeners, Standing
from gateway.app.ticketing import opened_book
from gateway.app.web import AdminDoor
from gateway.clients.client import serve_client
from gateway.config import Config, load
from gateway.config.documents import Note
from gateway.hub.hub import Hub
from gateway.net.listen import Listener, open_listener, take_clients
from gateway.sessions.service import Service
from gateway.tickets.book import Book
from gateway.tls.keyring import Keyring
from gateway.tls.rotation import Stamp, stamp_of
from gateway.upstream.backends import Backend
from gateway.upstream.configured import load_keyring, servers_of
from tests.embedded.peers import Client

BLOCK = b"\7" * 512


class House:
    """All of a gateway that a reload concerns, with the file that it comes from."""

    def __init__(self, directory: Path, text: str) -> None:
        self.directory = directory
        self.path = directory / "g.toml"
        self.write(text)
        self.ends = False
        self.loading: Callable[[], None] = lambda: None
        self.watched: list[Keyring] = []
        self.obeyed: list[ControlSocket] = []
        self.webs: list[AdminDoor] = []
        self.streams: list[trio.SocketStream] = []

    def write(self, text: str) -> None:
        self.path.write_text(text.replace("DIR", str(self.directory)))

    def _load(self, note: Note) -> Config:
        self.loading()
        return load(self.path, note=note)

    async def begin(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        seen: dict[Path, Stamp] = {}
        config = load(self.path, note=lambda path: seen.update({path: stamp_of(path)}))
        keyring = load_keyring(config)
        doors = Listeners([await open_listener(each) for each in config.listen])
        if config.control.socket is not None:
            doors.control = ControlSocket(config.control.socket)
        self.now = Standing(servers_of(config, nursery, keyring), keyring, doors)
        self.now.tickets = await opened_book(config)
        self.lines = structlog.testing.LogCapture()
        log = structlog.wrap_logger(None, processors=[self.lines])
        servers, tickets = self.now.servers.servers, self.now.tickets
        self.service = Service(config, servers, Hub(), log, tickets=tickets)
        source = ConfigSource(self.path, self._load, seen)
        self.reloader = Reloader(source, self.service, self.now, nursery, self)
        nursery.start_soon(self.service.hub.run)
        if tickets is not None:
            self.keep(tickets)
        for listener in doors.listeners:
            self.accept(listener)

    # --- Host

    def accept(self, listener: Listener) -> None:
        def short(number: int) -> None:
            raise OSError(number, os.strerror(number))

        def take(stream: trio.SocketStream) -> None:
            self.nursery.start_soon(self._client, listener, stream)

        for listening in listener.sockets:
            self.nursery.start_soon(take_clients, listening, take, short)

    def obey(self, control: ControlSocket) -> None:
        self.obeyed.append(control)

    def serve_web(self, door: AdminDoor) -> None:
        self.webs.append(door)

    def watch(self, keyring: Keyring) -> None:
        self.watched.append(keyring)

    def keep(self, tickets: Book) -> None:
        self.nursery.start_soon(tickets.watch)

    def see_off(self, wait: Callable[[Backend], Awaitable[None]], backend: Backend) -> None:
        self.nursery.start_soon(wait, backend)

    async def _client(self, listener: Listener, stream: trio.SocketStream) -> None:
        with self.reloader.present.one():
            await serve_client(self.service, listener.settings, stream)

    # --- Tests

    async def reload(self, text: str | None = None) -> ControlAnswer:
        if text is not None:
            self.write(text)
        return await self.reloader.reload()

    async def client(self, name: str = "g") -> Client:
        stream = await trio.open_unix_socket(str(self.directory / f"{name}.sock"))
        self.streams.append(stream)
        return Client(stream)

    async def session(self, export: str = "", listener: str = "g") -> Client:
        client = await self.client(listener)
        before = set(self.service.running)
        await client.go(export)
        await until(lambda: self.service.running - before)
        return client

    def events(self, name: str) -> list[Any]:
        return [line for line in self.lines.entries if line["event"] == name]


async def until(true: Callable[[], object]) -> None:
    """A thread or the kernel has something to do still."""
    while not true():
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def house(directory: Path, text: str) -> AsyncIterator[House]:
    made = House(directory, text)
    async with trio.open_nursery() as nursery:
        await made.begin(nursery)
        try:
            yield made
        finally:
            for stream in made.streams:
                stream.socket.close()
            await made.now.aclose()
            nursery.cancel_scope.cancel()
    made.service.hub.close()


LISTEN = '[[listen]]\nuri = "nbd+unix:///?socket=DIR/g.sock"\n'


MEMORY = '[upstream.m]\nuri = "memory:1M"\n'


EXPORT = '[[export]]\nname = "x"\nupstream = "m"\nupstream-name = ""\n'

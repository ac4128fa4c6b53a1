"""A gateway with [admin], as its users start it, and HTTP as a program speaks it, or somebody who means no
good.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from gateway.net.keeper import seen
from tests.tools.patience import HANG_SECONDS

LOOK, FULL = "look-0123456789abcdef0123", "full-0123456789abcdef0123"
"""The tokens of a test."""

CONFIG = """
listen = [ { uri = "nbd://127.0.0.1:0" } ]
[upstream.main]
uri = "memory:64M"
[[export]]
name = "x"
upstream = "main"
upstream-name = ""
"""

ADMIN = """
[admin]
uri = ["http://127.0.0.1:0", "http+unix://DIR/admin"]
tokens = "DIR/tokens"
[tickets]
directory = "DIR/tickets"
"""


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        """The body, which is JSON."""
        return json.loads(self.body)


async def answer_in(stream: trio.SocketStream) -> Answer:
    """Receive one answer; the connection is closed behind it."""
    received = b""
    while b"\r\n\r\n" not in received:
        data = await stream.receive_some()
        if not data:
            return Answer(0, {}, received)
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    if "content-length" in headers:
        while len(body) < int(headers["content-length"]):
            data = await stream.receive_some()
            assert data, "the answer has no end"
            body += data
    else:
        while data := await stream.receive_some():
            body += data
        body = unchunked(body)
    return Answer(int(first.split()[1]), headers, body)


def unchunked(body: bytes) -> bytes:
    """Give what is in chunks (RFC 9112, 7.1)."""
    found = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        count = int(size, 16)
        found, body = found + body[:count], body[count + 2 :]
    return found


@dataclass
class Running:
    """A gateway that runs."""

    directory: Path
    process: trio.Process
    nbd: str
    port: int
    said: list[str]
    address: str = "127.0.0.1"
    """Where HTTP is spoken."""

    async def connect(self, *, unix: bool = False) -> trio.SocketStream:
        """Connect to where HTTP is spoken."""
        if unix:
            return await trio.open_unix_socket(str(self.directory / "admin"))
        return await trio.open_tcp_stream(self.address, self.port)

    async def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        body: object = None,
        token: str | None = None,
        host: str = "localhost",
        unix: bool = False,
        headers: Mapping[str, str] = {},
    ) -> Answer:
        """Ask, as a program does that asks once."""
        said = {"host": host, "connection": "close", **headers}
        if token is not None:
            said["authorization"] = f"Bearer {token}"
        data = b""
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            said = {"content-type": "application/json", "content-length": str(len(data)), **said}
        head = "".join(f"{name}: {value}\r\n" for name, value in said.items())
        with trio.fail_after(HANG_SECONDS):
            async with await self.connect(unix=unix) as stream:
                await stream.send_all(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data)
                return await answer_in(stream)

    async def do(self, verb: str, token: str | None = FULL, **arguments: object) -> Answer:
        """Have something done."""
        named = {name.rstrip("_").replace("_", "-"): value for name, value in arguments.items()}
        return await self.ask(f"/api/v1/{verb}", method="POST", body=named, token=token)

    async def logged(self, event: str) -> str:
        """Wait for a line of the log."""
        with trio.fail_after(HANG_SECONDS):
            while True:
                for line in self.said:
                    if event in line:
                        return line
                await trio.sleep(0.01)

    def descriptors(self) -> int:
        """How many files and sockets that has open."""
        return len(list(Path(f"/proc/{self.child}/fd").iterdir()))

    @property
    def children(self) -> list[int]:
        """The processes that speak HTTP: for a moment there may be two of them, or none."""
        there = [each for each in seen().values() if each.parent == self.process.pid and each.lives]
        return [each.number for each in there if _speaks(each.number)]

    @property
    def child(self) -> int:
        """The one that does."""
        [found] = self.children
        return found


def _speaks(number: int) -> bool:
    try:
        return b"gateway.web.main" in Path(f"/proc/{number}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it has ended since it was seen
        return False


@asynccontextmanager
async def running(
    directory: Path, config: str = CONFIG, admin: str = ADMIN, *, level: str = "info", ends: int = 0
) -> AsyncIterator[Running]:
    """Have a gateway. It has to end well, and what speaks HTTP with it."""
    tokens = directory / "tokens"
    tokens.touch(0o600)
    tokens.write_text(f"# of a test\nlook prometheus {LOOK}\nfull ops {FULL}\n")
    (directory / "tickets").mkdir(mode=0o700)
    file = directory / "gateway.toml"
    file.write_text((config + admin).replace("DIR", str(directory)))
    said: list[str] = []
    listens, speaks = trio.Event(), trio.Event()
    ports: dict[str, str] = {}

    def hear(line: str) -> None:
        said.append(line)
        if found := re.search(r"uri=(nbd:\S+)", line):
            ports["nbd"] = found[1]
            listens.set()
        if found := re.search(r"admin interface listening .*uri=http://127.0.0.1:(\d+)", line):
            ports["http"] = found[1]
            speaks.set()

    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "gateway", "serve", "--config", str(file), "--log-level", level],
            stderr=-1,
            env={**os.environ, "NO_COLOR": "1"},
        )
        assert process.stderr is not None
        nursery.start_soon(_lines, process.stderr, hear)
        child = 0
        try:
            with trio.fail_after(HANG_SECONDS):
                await listens.wait()
                await speaks.wait()
            made = Running(directory, process, ports["nbd"], int(ports["http"]), said)
            await made.ask("/livez")
            child = made.child
            yield made
        finally:
            with trio.CancelScope(shield=True):
                process.terminate()
                with trio.move_on_after(HANG_SECONDS):
                    await process.wait()
                process.kill()
                status = await process.wait()
            nursery.cancel_scope.cancel()
    assert status == ends, said
    assert not Path(f"/proc/{child}").exists()
    assert not [line for line in said if "Traceback" in line], said


async def _lines(stream: trio.abc.ReceiveStream, hear: Any) -> None:
    rest = b""
    async for data in stream:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            hear(line.decode(errors="replace"))

"""The clients of a schedule: each has any number of commands under way, and tells the oracle what it gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from gateway.protocol.client_role import Refused
from gateway.wire.constants import SIMPLE_REPLY_MAGIC, Chunk, Cmd, CmdFlag
from gateway.wire.transmission import DISC
from tests.embedded.peers import BLOCK_SIZE, Client
from tests.tools.history import Op, Session
from tests.tools.oracle import Oracle
from tests.tools.schedules.geometry import length_of, offset_of
from tests.tools.schedules.settings import Asked, Settings
from tests.tools.stamps import Broken

Found = Callable[[str], None]
"""Told what is wrong."""

_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


@dataclass(eq=False)
class Visitor:
    """A client, from its connecting to its end."""

    name: str
    export: str
    client: Client
    session: Session
    settings: Settings
    found: Found
    ready: bool = False
    leaving: bool = False
    _asked: dict[int, tuple[Op, int]] = field(default_factory=dict)
    _chunks: dict[int, tuple[int, bytearray]] = field(default_factory=dict)
    """Of READs that are not answered wholly: the error, and the data so far, zeros where holes are."""
    _cookies: int = 0

    @property
    def there(self) -> bool:
        """It can send commands."""
        return self.ready and not self.leaving

    @property
    def under_way(self) -> int:
        """How many commands are."""
        return len(self._asked)

    async def live(self) -> None:
        """Open the export, and take replies until the end."""
        try:
            async with self.client.stream:
                if await self._opened():
                    await self._receive()
        except Broken as broken:
            self.found(str(broken))
        except (EOFError, *_GONE) as end:
            if (
                not self.leaving
                and self.ready
                and not (self.session.may_end or self.session.may_go)
            ):
                self.found(f"{self.name} was cut off: {end!r}")
        except AssertionError as error:
            self.found(f"{self.name} got what is no reply: {error!r}")
        finally:
            if not self.leaving:
                self.leaving = True
                self.session.close()

    async def _opened(self) -> bool:
        client, negotiation = self.client, self.client.negotiation
        await client.greeting()
        if self.settings.structured:
            negotiation.ask_structured_replies()
            await client.answered()
        negotiation.go(self.export, BLOCK_SIZE)
        if isinstance(await client.event(), Refused):
            return False
        if not self.leaving:
            self.session.open()
            self.ready = True
        return True

    async def _receive(self) -> None:
        while True:
            cookie, error, data = await self._reply()
            if cookie not in self._asked:
                raise Broken(f"{self.name} got a reply to {cookie}, which it has not asked")
            op, _length = self._asked.pop(cookie)
            if not self.leaving:
                op.end(error, data)

    async def _reply(self) -> tuple[int, int, bytes]:
        """Give cookie, error and data of the reply, or the last chunk, that comes next."""
        client = self.client
        while True:
            magic = await client.receive(4)
            client.unread(magic)
            if int.from_bytes(magic) == SIMPLE_REPLY_MAGIC:
                return await client.simple_reply()
            cookie, chunk = await client.chunk()
            if cookie not in self._asked:
                raise Broken(f"{self.name} got a chunk for {cookie}, which it has not asked")
            op, length = self._asked[cookie]
            error, data = self._chunks.setdefault(cookie, (0, bytearray(length)))
            if chunk.kind & 0x8000:
                self._chunks[cookie] = error or chunk.error, data
            elif chunk.kind == Chunk.OFFSET_DATA:
                at = chunk.offset - offset_of(op.start)
                data[at : at + len(chunk.data)] = chunk.data
            if chunk.done:
                error, data = self._chunks.pop(cookie)
                return cookie, error, b"" if error or op.kind != "read" else bytes(data)

    # --- What it does

    async def ask(self, commands: Sequence[Asked], packet: int) -> None:
        """Send commands, all together."""
        data = b"".join(self._request(each, packet) for each in commands)
        with suppress(*_GONE):
            await self.client.stream.send_all(data)

    def _request(self, asked: Asked, packet: int) -> bytes:
        session, start, count = self.session, asked.start, asked.count
        self._cookies = cookie = self._cookies + 1
        flags, data = 0, b""
        match asked.kind:
            case "flush":
                command, op = Cmd.FLUSH, session.flush(packet=packet)
            case "read":
                command, op = Cmd.READ, session.read(start, count, packet=packet)
            case "zero" | "trim":
                command = Cmd.WRITE_ZEROES if asked.kind == "zero" else Cmd.TRIM
                certain = asked.kind == "zero"
                op = session.write(
                    start,
                    count,
                    zeros=True,
                    certain=certain,
                    packet=packet,
                    steps=self.settings.in_steps(asked),
                )
            case kind:
                command, fua = Cmd.WRITE, kind == "fua"
                op = session.write(
                    start, count, fua=fua, packet=packet, steps=self.settings.in_steps(asked)
                )
                flags, data = CmdFlag.FUA if fua else 0, op.data
        length = length_of(start, count) if count else 0
        if command is Cmd.READ:
            self.client._lengths[cookie] = length
        self._asked[cookie] = op, length
        head = self.client.framing.encode_request(
            command, flags, cookie, offset_of(start) if count else 0, length
        )
        return head + data

    async def leave(self) -> None:
        """Go in good order."""
        self._go()
        with suppress(*_GONE):
            await self.client.stream.send_all(DISC)
            await self.client.stream.send_eof()

    async def vanish(self, half: Asked | None = None) -> None:
        """Go without a word, perhaps in the middle of a command."""
        if half is not None and self.ready:
            request = self._request(half, 0)
            with suppress(*_GONE):
                await self.client.stream.send_all(request[: len(request) * 2 // 3])
        self.session.vanished = True
        self._go()
        await trio.aclose_forcefully(self.client.stream)

    def _go(self) -> None:
        self.leaving = True
        self.session.close()


def visitor(
    oracle: Oracle,
    client: Client,
    name: str,
    export: str,
    found: Found,
    settings: Settings,
) -> Visitor:
    """Give a client that is about to connect."""
    session = oracle.session(name, hooked=settings.hooked(export))
    return Visitor(name, export, client, session, settings, found)

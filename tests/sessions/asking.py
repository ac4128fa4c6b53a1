"""What the clients of these tests ask."""

from __future__ import annotations

import ssl

import trio

from gateway.wire.constants import SIMPLE_REPLY_MAGIC, Cmd
from gateway.wire.transmission import is_error
from tests.embedded.peers import Client
from tests.sessions.gateways import Gateway

BLOCK = 4096

CONTENT = b"\x5a" * BLOCK


async def write(client: Client, offset: int = 0) -> int:
    await client.send(Cmd.WRITE, offset, data=CONTENT)
    return (await client.simple_reply())[1]


async def flush(client: Client) -> int:
    await client.send(Cmd.FLUSH)
    return (await client.simple_reply())[1]


async def read(client: Client, offset: int = 0) -> tuple[int, bytes]:
    _cookie, error, data = await client.simple_reply_to(Cmd.READ, offset, BLOCK)
    return error, data


async def opened(gateway: Gateway, name: str = "") -> Client:
    client = gateway.client()
    await client.go(name, structured=False)
    return client


async def read_back(client: Client, offset: int = 0) -> bytes:
    error, data = await read(client, offset)
    assert not error
    return data


async def error_of(client: Client, cookie: int) -> int:
    """The error of the next reply, which may be a simple one where nothing has to be told in chunks."""
    magic = await client.receive(4)
    client.unread(magic)
    if int.from_bytes(magic) == SIMPLE_REPLY_MAGIC:
        told, error, _data = await client.simple_reply()
        assert told == cookie
        return error
    *_, last = await client.reply(cookie)
    return last.error if is_error(last.kind) else 0


async def start_tls(client: Client, context: ssl.SSLContext) -> trio.SSLStream[trio.SocketStream]:
    """Go over to TLS; a client goes on there as before."""
    await client.greeting()
    client.negotiation.ask_starttls()
    await client.answered()
    secure = trio.SSLStream(client.stream, context, server_hostname="localhost")
    await secure.do_handshake()
    client.negotiation = client.negotiation.secured()
    client.stream = secure  # type: ignore[assignment] # all that it uses is there
    return secure

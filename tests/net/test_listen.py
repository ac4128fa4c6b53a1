"""Addresses to listen on that the command line's own tests do not reach."""

from __future__ import annotations

import os

import trio

from gateway.config import parse
from gateway.net.dial import dial
from gateway.net.listen import open_listener


async def test_abstract_unix_sockets() -> None:
    uri = f"nbd+unix:///?socket=%00nbd-gateway-test-{os.getpid()}"
    config = parse(f'[[listen]]\nuri = "{uri}"\n[upstream.main]\nuri = "nbd://127.0.0.1"\n', "test")
    for _ in range(2):  # nothing is left over
        listener = await open_listener(config.listen[0])
        async with await dial(listener.uri) as client, await listener.sockets[0].accept() as server:
            await client.send_all(b"x")
            assert await server.receive_some(1) == b"x"
        await listener.aclose()
    with trio.fail_after(1):
        await listener.aclose()

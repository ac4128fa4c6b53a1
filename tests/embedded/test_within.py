"""A server that is reached from within the process."""

from __future__ import annotations

import structlog
import trio

from gateway.embedded import InProcess, MemoryDisk, Server
from tests.embedded.peers import Client


async def test_a_bug_costs_one_connection() -> None:
    server = Server({"": MemoryDisk(1 << 20)})
    rightly, bugs = server.serve, [UnicodeError("a bug")]

    async def serve(stream: trio.SocketStream) -> None:
        if bugs:
            raise bugs.pop()
        await rightly(stream)

    server.serve = serve  # type: ignore[method-assign] # a bug, which no server is to have
    with structlog.testing.capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            within = InProcess(server, nursery)
            async with await within.connect() as first:
                assert await first.receive_some(1) == b""
            client = Client(await within.connect())
            assert (await client.go("")).export is not None
            await client.stream.aclose()
            nursery.cancel_scope.cancel()
    [said] = lines
    assert said["event"] == "a server in here lost a connection to an internal error"

"""What is found out of a server to which there is one connection, ever."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from gateway.embedded import MemoryDisk, Server
from gateway.embedded.personality import PLAIN
from gateway.inspect.probe import probe
from gateway.uri import parse_upstream

SIZE = 1 << 20


@pytest.mark.parametrize("oldstyle", [True, False])
async def test_one_connection_is_for_the_export_and_not_for_the_list(oldstyle: bool) -> None:
    """qemu-nbd up to 3.0 without -x and -t ends with it."""
    server = Server({"": MemoryDisk(SIZE)}, replace(PLAIN, oldstyle=oldstyle))
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]

    async def serve_once() -> None:
        stream = await listener.accept()
        await listener.aclose()
        await server.serve(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_once)
        found = await probe(parse_upstream(f"nbd://127.0.0.1:{port}"))
        [export] = found.exports
        assert export.export.size == SIZE
        assert any("is gone now" in note for note in export.notes) == oldstyle
        assert found.listed is None
        nursery.cancel_scope.cancel()

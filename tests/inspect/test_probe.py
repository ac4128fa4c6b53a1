"""What is found out of a server to which there is one connection, ever."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from gateway.embedded import MemoryDisk, Server
from gateway.embedded.personality import PLAIN
from gateway.inspect.probe import CannotProbe, probe
from gateway.uri import parse_upstream
from tests.embedded.peers import serving_once

SIZE = 1 << 20


@pytest.mark.parametrize("oldstyle", [True, False])
async def test_one_connection_is_for_the_export_and_not_for_the_list(oldstyle: bool) -> None:
    """qemu-nbd up to 3.0 without -x and -t ends with it."""
    server = Server({"": MemoryDisk(SIZE)}, replace(PLAIN, oldstyle=oldstyle))
    async with serving_once(server) as port:
        found = await probe(parse_upstream(f"nbd://127.0.0.1:{port}"))
    [export] = found.exports
    assert export.export.size == SIZE
    assert any("is gone now" in note for note in export.notes) == oldstyle
    assert found.listed is None


async def test_a_list_is_not_waited_for_twice(autojump_clock: MockClock) -> None:
    """Of a server that is silent nothing else is to be had."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    kept: list[trio.SocketStream] = []

    async def never_answers() -> None:
        while True:
            kept.append(await listener.accept())

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(never_answers)
        port = listener.socket.getsockname()[1]
        with pytest.raises(CannotProbe, match="not greeted for 30 s"):
            await probe(parse_upstream(f"nbd://127.0.0.1:{port}"), every_export=True)
        nursery.cancel_scope.cancel()
    assert len(kept) == 1
    for stream in kept:
        await stream.aclose()

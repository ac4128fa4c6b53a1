"""What is found out of a server to which there is one connection, ever."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.embedded import MemoryDisk, Server
from gateway.embedded.personality import PLAIN
from gateway.inspect.probe import probe
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

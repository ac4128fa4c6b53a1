"""What clients are told otherwise than by the upstream itself, as docs/behaviour.md has it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.embedded import PERSONALITIES, MemoryDisk, Server
from gateway.wire.constants import BASE_ALLOCATION, Chunk, Cmd, Rep
from gateway.wire.limits import KIB, MIB
from tests.relay.gateways import gateway_before

KIB64 = 64 * KIB
PLAIN = PERSONALITIES["plain"]


@pytest.mark.parametrize("mode", ['"per-client"', '"shared"', '"shared:4"'])
async def test_holes_come_as_zeros_over_shared_connections(mode: str) -> None:
    disk = MemoryDisk(MIB)
    await disk.write(0, b"d" * KIB64)
    server = Server({"": disk}, replace(PLAIN, sparse_read_bytes=KIB64))
    async with gateway_before(server, upstream=f"connections = {mode}") as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go()
            chunks = await client.ask(Cmd.READ, 0, 2 * KIB64)
    kinds = [chunk.kind for chunk in chunks if chunk.kind != Chunk.NONE]
    if "shared" in mode:
        assert kinds == [Chunk.OFFSET_DATA]
        assert chunks[0].data == b"d" * KIB64 + bytes(KIB64)
    else:
        assert kinds == [Chunk.OFFSET_DATA, Chunk.OFFSET_HOLE]


@pytest.mark.parametrize("made_up", [False, True])
async def test_contexts_of_an_upstream_without_any(made_up: bool) -> None:
    server = Server({"": MemoryDisk(MIB)}, PERSONALITIES["qemu-2.5"])
    export = f"synthesise-allocation = {made_up}".lower()
    async with gateway_before(server, export=export) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.structured()
            client.negotiation.ask_contexts("", [BASE_ALLOCATION], select=True)
            if made_up:
                told = await client.answered()
                assert [context.name for context in told.contexts] == [BASE_ALLOCATION]
            else:
                assert (await client.refused()).reply == Rep.ERR_UNSUP

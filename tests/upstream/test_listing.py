from __future__ import annotations

from functools import partial

import pytest
import trio

from gateway.embedded import MemoryDisk, Server
from gateway.upstream import listed, listing
from gateway.wire.limits import MIB
from tests.embedded.peers import socket_pair
from tests.sessions.gateways import gateway_before

pytestmark = pytest.mark.real

SHARED = 'connections = "shared"'


@pytest.mark.parametrize("is_over", [False, True])
async def test_a_server_for_one_connection_is_not_asked_at_each_list(
    monkeypatch: pytest.MonkeyPatch, *, is_over: bool
) -> None:
    """It leaves a second connection in its queue, and each who asks would wait for `LIST_SECONDS`."""
    monkeypatch.setattr(listing, "LIST_SECONDS", 0.05)
    if is_over:
        monkeypatch.setattr(listed, "SILENT_SECONDS", 0)
    server = Server({"a": MemoryDisk(MIB)})
    queue: list[trio.SocketStream] = []
    async with trio.open_nursery() as servers:

        def connect() -> trio.SocketStream:
            ours, theirs = socket_pair()
            queue.append(theirs)
            if len(queue) == 1:
                servers.start_soon(partial(server.serve, theirs))
            return ours

        async with gateway_before(
            connect, upstream=SHARED, export='description = "a disk"'
        ) as gateway:
            user = gateway.client()
            async with user.stream:
                await user.go("a", structured=False)
                for _ in range(3):
                    asker = gateway.client()
                    async with asker.stream:
                        await asker.greeting()
                        asker.negotiation.list_exports()
                        assert [each.name for each in (await asker.answered()).exports] == ["a"]
        assert len(queue) == (1 + 3 if is_over else 1 + 1)
        servers.cancel_scope.cancel()
    for stream in queue:
        await stream.aclose()


async def test_who_lists_and_opens_needs_one_connection() -> None:
    """A server may take no other (qemu-nbd up to 3.0), and qemu's client before 2.10 always lists first."""
    server = Server({"a": MemoryDisk(MIB)})
    async with gateway_before(server) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.greeting()
            client.negotiation.list_exports()
            assert [each.name for each in (await client.answered()).exports] == ["a"]
            client.negotiation.ask_structured_replies()
            await client.answered()
            client.negotiation.ask_contexts("a", ("base:allocation",), select=True)
            await client.answered()
            client.negotiation.list_exports()  # which is known by now
            await client.answered()
            client.negotiation.go("a", ())
            told = (await client.answered()).export
            assert told is not None
            assert told.size == MIB
    assert server.connections == 1


async def test_who_is_told_an_empty_list_holds_no_connection() -> None:
    """It may have nothing there, and others have to get a place."""
    server = Server({"a": MemoryDisk(MIB)})
    nobody = 'description = "a disk"\n[[rule]]\ndeny = true'
    async with gateway_before(server, export=nobody, upstream="canonical-names = true") as gateway:
        client = gateway.client()
        async with client.stream:
            await client.greeting()
            client.negotiation.list_exports()
            assert not (await client.answered()).exports
            slots = gateway.service.servers["main"].slots
            assert not slots.limiter.borrowed_tokens

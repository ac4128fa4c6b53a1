"""How long a session may last (`lifetime-seconds` of its listener)."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from gateway.embedded.disk import Data, MemoryDisk
from gateway.embedded.server import Server
from gateway.wire.constants import Cmd
from gateway.wire.limits import KIB, MIB

from .gateways import gateway_before

LIFETIME_SECONDS = 100

SLOW_SECONDS = 5.0


class SlowDisk(MemoryDisk):
    """One that takes its time for a READ."""

    async def read(self, offset: int, length: int) -> Data:
        await trio.sleep(SLOW_SECONDS)
        return await super().read(offset, length)


async def test_a_session_ends_in_good_order_when_its_time_is_over(
    autojump_clock: MockClock,
) -> None:
    """What is under way is answered; then the client is disconnected, and finds the gateway again."""
    server = Server({"": SlowDisk(MIB)})
    listen = f"lifetime-seconds = {LIFETIME_SECONDS}"
    async with gateway_before(server, listen=listen, seconds=1000) as gateway:
        for _ in range(2):
            client = gateway.client()
            async with client.stream:
                await client.go("", structured=False)
                began = trio.current_time()
                await trio.sleep(LIFETIME_SECONDS - 2)
                await client.send(Cmd.READ, 0, KIB, cookie=7)
                assert await client.simple_reply() == (7, 0, bytes(KIB))
                assert await client.rest() == b""
                assert trio.current_time() - began == LIFETIME_SECONDS - 2 + SLOW_SECONDS
        assert not gateway.service.running
        assert gateway.service.counts.all().ended == {"expired": 2}


async def test_without_it_a_session_lasts_as_long_as_it_likes(autojump_clock: MockClock) -> None:
    server = Server({"": MemoryDisk(MIB)})
    async with gateway_before(server, seconds=1000) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go("", structured=False)
            await trio.sleep(3 * LIFETIME_SECONDS)
            await client.send(Cmd.READ, 0, KIB, cookie=7)
            assert await client.simple_reply() == (7, 0, bytes(KIB))

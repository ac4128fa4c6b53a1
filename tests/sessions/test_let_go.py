"""A session that has ended is free at once: nothing of it knows each other in a circle.

What does is only free when Python looks for circles, among all that there is. After a thousand sessions that
takes a good part of a second, in which nobody is served; and the next crowd takes memory beside the last one's.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
import trio

from gateway.embedded import Server
from gateway.embedded.disk import MemoryDisk
from gateway.wire.constants import Cmd
from tests.embedded.peers import Client
from tests.sessions.gateways import Gateway, gateway_before

SIZE = 1 << 20
BLOCK = b"x" * 4096

Life = Callable[[Client], Awaitable[None]]


async def says_disc(client: Client) -> None:
    await client.go()
    assert not await client.error(Cmd.WRITE, 0, len(BLOCK), data=BLOCK)
    assert await client.read(0, len(BLOCK)) == BLOCK
    assert not await client.error(Cmd.FLUSH)
    await client.send(Cmd.DISC)
    assert await client.rest() == b""


async def is_cut(client: Client) -> None:
    """In the middle of its commands, with something that is not flushed."""
    await client.go()
    assert not await client.error(Cmd.WRITE, 0, len(BLOCK), data=BLOCK)
    await client.send(Cmd.READ, 0, SIZE // 4)
    await trio.aclose_forcefully(client.stream)


async def is_unaligned(client: Client) -> None:
    """With jobs of its own (where the server has larger blocks), and with what is illegal."""
    await client.go()
    assert not await client.error(Cmd.WRITE, 1, 5, data=b"hello")
    assert await client.error(Cmd.READ, SIZE, 1)
    await client.stream.aclose()


async def only_looks(client: Client) -> None:
    await client.structured()
    client.negotiation.list_exports()
    await client.answered()
    await client.stream.aclose()


LIVES: dict[str, Life] = {
    life.__name__: life for life in (says_disc, is_cut, is_unaligned, only_looks)
}

OWN = {"alone": "", "ends with its server": "reconnect-seconds = 0"}
TRUNKS = {
    "shared": 'connections = "shared"',
    "spread": "connections = 2",
    "watched": "stall-seconds = 5",
}
"""A trunk is a circle itself. It takes no session along."""

OF_SESSIONS = frozenset(
    ["Session", "Relayed", "Opened", "Membership", "RequestScan", "Lane", "NegotiatingClient"]
)

POLICIES = 'policies = [ { use = "limit", in-flight = 3 } ]'


@contextmanager
def circles() -> Iterator[Counter[str]]:
    """Count what of ours has only gone because Python has looked for circles, by its class."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found.update(
            type(each).__qualname__
            for each in gc.garbage
            if type(each).__module__.startswith("gateway.")
        )
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def has_been(gateway: Gateway, life: Life) -> None:
    client = gateway.client()
    await life(client)
    await trio.aclose_forcefully(client.stream)
    service = gateway.service
    while service.running or service.relayed or service.negotiations:
        await trio.sleep(0.01)
    await trio.sleep(0.1)


@pytest.mark.parametrize("mode", [*OWN, *TRUNKS])
@pytest.mark.parametrize("life", LIVES)
async def test_a_session_leaves_no_circles(mode: str, life: str) -> None:
    server = Server({"": MemoryDisk(SIZE)})
    async with gateway_before(server, upstream={**OWN, **TRUNKS}[mode], export=POLICIES) as gateway:
        await has_been(gateway, LIVES[life])  # what is loaded for the first one stays
        with circles() as found:
            await has_been(gateway, LIVES[life])
        assert not (found if mode in OWN else OF_SESSIONS & found.keys())

"""Clients at work, so that the demo's page has something to show: a machine that reads and writes now more and
now less, and a restore that takes what it has asked for more slowly than it asks.
"""

from __future__ import annotations

import math
import random

import trio

from gateway.inspect.conform.client import Broken, OpenExport, RawClient
from gateway.net.options import Awaited
from gateway.wire.constants import Cmd
from gateway.wire.limits import KIB, MIB

DISK_BYTES = 256 * MIB

BLOCK = bytes(range(256)) * (16 * KIB // 256)

REST_SECONDS = 0.02
"""How long the machine rests between two requests, about: a demo is no benchmark."""

SWELL_SECONDS = 90.0
"""How long it takes from busy to idle and back: one sees it rise and fall while one looks."""

ASKED = 32
"""READs of 1 MiB that the restore has under way: what the sockets between hold is less."""

RECEIVE_BYTES = 64 * KIB
"""What its socket holds of the answers. The kernel would make that tens of MiB, and nobody would wait."""

TAKEN_BYTES = 64 * KIB
TAKE_SECONDS = 2.0
"""What it takes of the answers at a time, and how often: it is the slow client that is to be found."""


async def machine(client: RawClient) -> None:
    """Read and write, until cancelled or the server is gone."""
    chance = random.Random(1)
    blocks = DISK_BYTES // len(BLOCK)
    try:
        while True:
            busy = 0.6 + 0.4 * math.sin(trio.current_time() / SWELL_SECONDS * 2 * math.pi)
            for _ in range(1 + int(8 * busy)):
                await client.read(chance.randrange(blocks - 4) * len(BLOCK), 4 * len(BLOCK))
            if chance.random() < 0.5:
                await client.write(chance.randrange(blocks) * len(BLOCK), BLOCK)
            if chance.random() < 0.02:
                await client.do(Cmd.FLUSH)
            await trio.sleep(REST_SECONDS * chance.uniform(0.5, 1.5))
    except Broken:
        pass  # the gateway ends before its clients
    finally:
        client.abandon()


async def fill(client: RawClient) -> None:
    """Write what the restore will read: nobody waits for zeros, which are told in a few bytes."""
    for offset in range(0, ASKED * MIB, MIB):
        await client.write(offset, BLOCK * (MIB // len(BLOCK)))


async def slow_restore(link: OpenExport) -> None:
    """Ask for much and take little of it, until cancelled or the server is gone."""
    stream, framing = Awaited(link.socket), link.export.framing
    asked = taken = 0
    try:
        while True:
            while asked * MIB - taken < ASKED * MIB:
                offset = asked % ASKED * MIB
                await stream.send_all(framing.encode_request(Cmd.READ, 0, asked, offset, MIB))
                asked += 1
            taken += len(await stream.receive_some(TAKEN_BYTES))
            await trio.sleep(TAKE_SECONDS)
    except trio.BrokenResourceError:
        pass
    finally:
        link.socket.close()

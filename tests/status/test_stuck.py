"""What a session waits for, and that the log says it once it is for too long. The clock is the test's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import structlog
import trio

from gateway.embedded import Server
from gateway.embedded.disk import MemoryDisk
from gateway.embedded.faults import Faults
from gateway.embedded.personality import Personality
from gateway.sessions.service import Paused, Relayed
from gateway.status.shown import gateway_shown
from gateway.status.stuck import STUCK_SECONDS, Stuck
from gateway.status.waits import Thing, what_waits
from gateway.wire.constants import Cmd
from gateway.wire.handshake import BlockSizes
from gateway.wire.limits import KIB, MIB
from tests.embedded.peers import Client
from tests.sessions.gateways import Gateway, gateway_before

SIZE = 64 * MIB
BLOCKS = Personality("blocks", block_sizes=BlockSizes(4096, 4096, 32 * MIB))


class Look:
    """A gateway that is looked at, at times that the test chooses."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.now = 100.0
        self.lines = structlog.testing.LogCapture()
        log = structlog.wrap_logger(None, processors=[self.lines])
        gateway.service.log = log
        self.stuck = Stuck(gateway.service, log, lambda: self.now)
        self.clients: list[Client] = []

    def client(self) -> Client:
        self.clients.append(self.gateway.client())
        return self.clients[-1]

    async def after(self, seconds: float) -> list[Any]:
        """Look, and give the lines that this has brought."""
        self.now += seconds
        before = len(self.lines.entries)
        for running in self.gateway.service.running:
            running.log = structlog.wrap_logger(None, processors=[self.lines])
        await self.stuck.look()
        return self.lines.entries[before:]

    async def until_told(self, count: int) -> list[Any]:
        """Look again and again until there are so many lines: the kernel may have something to do still."""
        lines: list[Any] = []
        while len(lines) < count:
            lines += await self.after(STUCK_SECONDS)
        return lines


@asynccontextmanager
async def looked_at(server: Server, *, upstream: str = "", export: str = "") -> AsyncIterator[Look]:
    async with gateway_before(server, upstream=upstream, export=export) as gateway:
        look = Look(gateway)
        try:
            yield look
        finally:
            for client in look.clients:
                await client.stream.aclose()
            for running in list(gateway.service.running):
                running.relaying.cut()


async def until(true: Callable[[], object]) -> None:
    while not true():
        await trio.lowlevel.checkpoint()


def silent(*commands: Cmd) -> Server:
    return Server({"": MemoryDisk(SIZE)}, BLOCKS, faults=Faults(never_reply=frozenset(commands)))


async def test_a_server_that_does_not_answer_is_told_once_and_when_it_is_over() -> None:
    async with looked_at(silent(Cmd.READ)) as look:
        client = look.client()
        await client.go()
        service = look.gateway.service
        await until(lambda: service.running)
        assert not await look.after(1)
        await client.send(Cmd.READ, 0, 4096)
        [running] = service.running
        await until(lambda: running.traffic.in_flight)
        assert not await look.after(0)
        assert not await look.after(STUCK_SECONDS - 1)
        assert not look.stuck.is_stuck(running)
        one, other = await look.after(1)
        assert (one["event"], one["log_level"], one["waits_for"]) == (
            "session is stuck",
            "warning",
            "server",
        )
        assert one["seconds"] == STUCK_SECONDS
        assert (other["event"], other["upstream"], other["sessions"]) == (
            "upstream is stuck",
            "main",
            1,
        )
        assert look.stuck.is_stuck(running)
        assert not await look.after(30)
        running.relaying.cut()
        await until(lambda: not service.running)
        assert [line["event"] for line in await look.after(1)] == [
            "session is stuck no more",
            "upstream is stuck no more",
        ]


async def test_who_goes_on_is_not_stuck_however_long_it_takes() -> None:
    async with looked_at(silent(Cmd.READ)) as look:
        client = look.client()
        await client.go()
        await until(lambda: look.gateway.service.running)
        [running] = look.gateway.service.running
        for count in range(1, 5):
            await client.send(Cmd.READ, 0, 4096)
            await until(partial(has_asked, running, count))
            assert not await look.after(STUCK_SECONDS - 1)


def has_asked(running: Relayed, count: int) -> bool:
    return running.traffic.asked[Cmd.READ] == count


async def test_a_client_that_does_not_read_is_the_reason() -> None:
    async with looked_at(Server({"": MemoryDisk(SIZE)}, BLOCKS)) as look:
        client = look.client()
        await client.go(structured=False)  # else holes would be told in a few bytes
        service = look.gateway.service
        await until(lambda: service.running)
        for _ in range(16):
            await client.send(Cmd.READ, 0, MIB)
        [running] = service.running
        await until(lambda: running.relaying.takes_no_replies)
        [line] = await look.until_told(1)
        assert (line["waits_for"], line["why"]) == (
            "client",
            "its client does not take its replies",
        )


REST = "its client has sent a part of a request, and not the rest"


@pytest.mark.parametrize("block", [1, 4096], ids=["relayed", "gathered"])
@pytest.mark.parametrize("sent", [1, 27, 28, 128])
async def test_a_client_that_stops_in_a_request_is_the_reason(sent: int, block: int) -> None:
    personality = Personality("blocks", block_sizes=BlockSizes(block, 4096, 32 * MIB))
    async with looked_at(Server({"": MemoryDisk(SIZE)}, personality)) as look:
        client = look.client()
        await client.go(wanted=())  # so that the gateway tells it of no blocks, and translates
        service = look.gateway.service
        await until(lambda: service.running)
        request = client.framing.encode_request(Cmd.WRITE, 0, 7, 512, 64 * KIB)
        await client.stream.send_all((request + bytes(100))[:sent])
        [running] = service.running
        await until(lambda: running.relaying.has_to_do)
        [line] = await look.until_told(1)  # and not that the upstream is stuck
        assert (line["waits_for"], line["why"]) == ("client", REST)
        shown = await gateway_shown(service, look.stuck, began=0, listeners=[], terms=[])
        [stuck] = shown["stuck"]
        session = running.membership.session.client.id
        assert (stuck["session"], stuck["why"], stuck["silent_seconds"]) == (session, REST, 5)


async def test_a_server_that_owes_an_answer_is_the_reason_though_its_client_stops_too() -> None:
    async with looked_at(silent(Cmd.READ)) as look:
        client = look.client()
        await client.go()
        service = look.gateway.service
        await until(lambda: service.running)
        await client.send(Cmd.READ, 0, 4096)
        request = client.framing.encode_request(Cmd.WRITE, 0, 7, 0, 64 * KIB)
        await client.stream.send_all(request + bytes(100))
        [running] = service.running
        await until(lambda: not running.relaying.between_requests)
        wait = what_waits(running)
        assert wait is not None
        assert wait.thing is Thing.SERVER


async def test_a_pause_names_who_has_asked_for_it() -> None:
    async with looked_at(Server({"": MemoryDisk(SIZE)})) as look:
        client = look.client()
        await client.go()
        service = look.gateway.service
        await until(lambda: service.running)
        [running] = service.running
        running.relaying.hold()
        assert what_waits(running, service) == (Thing.PAUSE, "its export is paused for a moment")
        service.paused[running.name] = Paused("process 1 of user 2", 60)
        why = "its export is paused by process 1 of user 2 since 1970-01-01T00:01:00+00:00"
        assert what_waits(running, service) == (Thing.PAUSE, why)
        assert not await look.after(2 * STUCK_SECONDS)


async def test_a_claim_names_who_has_it() -> None:
    async with looked_at(silent(Cmd.WRITE)) as look:
        one, other = look.client(), look.client()
        service = look.gateway.service
        await one.go(structured=False)
        await until(lambda: len(service.running) == 1)
        [first] = service.running
        await one.send(Cmd.WRITE, 512, data=bytes(512))
        await until(lambda: first.traffic.in_flight)
        await other.go(structured=False)
        await until(lambda: len(service.running) == 2)
        [second] = service.running - {first}
        await other.send(Cmd.WRITE, 1024, data=bytes(512))
        await until(lambda: second.traffic.jobs.claiming)
        lines = await look.until_told(3)
        told = {line["waits_for"]: line["why"] for line in lines if "waits_for" in line}
        assert told["server"] == "the server does not answer"
        holder = first.membership.session.client.id
        assert told["claim"] == f"session {holder} writes a part of a block in 0-4095"


async def test_a_policy_that_does_the_command_is_named() -> None:
    slow = 'policies = [ { use = "delay", read = 3600 } ]\n'
    async with looked_at(Server({"": MemoryDisk(SIZE)}), export=slow) as look:
        client = look.client()
        await client.go()
        service = look.gateway.service
        await until(lambda: service.running)
        [running] = service.running
        await client.send(Cmd.READ, 0, 4096)
        await until(lambda: running.traffic.jobs)
        [line] = await look.until_told(1)
        assert (line["waits_for"], line["why"]) == ("hook", "a hook does a READ: delay")


async def test_a_policy_that_holds_back_is_named() -> None:
    rate = 'policies = [ { use = "rate", bytes-per-second = "1K" } ]\n'
    async with looked_at(Server({"": MemoryDisk(SIZE)}), export=rate) as look:
        client = look.client()
        await client.go()
        service = look.gateway.service
        await until(lambda: service.running)
        [running] = service.running
        for _ in range(4):
            await client.send(Cmd.READ, 0, 4096)
        await until(lambda: running.traffic.held)
        wait = what_waits(running)
        assert wait is not None
        assert wait.text == "it is held back by policy rate (1024 bytes per second)"


@pytest.mark.parametrize("count", [3])
async def test_an_upstream_is_stuck_when_all_that_wait_for_it_are(count: int) -> None:
    async with looked_at(silent(Cmd.READ)) as look:
        service = look.gateway.service
        clients = [look.client() for _ in range(count)]
        for client in clients:
            await client.go()
        await until(lambda: len(service.running) == count)
        for client in clients[1:]:
            await client.send(Cmd.READ, 0, 4096)
        await until(lambda: sum(bool(e.traffic.in_flight) for e in service.running) == count - 1)
        await look.after(0)
        await look.after(STUCK_SECONDS / 2)
        await clients[0].send(Cmd.READ, 0, 4096)
        await until(lambda: all(each.traffic.in_flight for each in service.running))
        await look.after(0)
        events = [line["event"] for line in await look.after(STUCK_SECONDS / 2)]
        assert events == ["session is stuck"] * (count - 1)
        events = [line["event"] for line in await look.after(STUCK_SECONDS / 2)]
        assert events == ["session is stuck", "upstream is stuck"]

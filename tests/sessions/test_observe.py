"""What is only observed is not felt by the client, and told to whoever reads the log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import structlog
import trio
import trio.testing

from gateway.embedded import PERSONALITIES, MemoryDisk, Server
from gateway.sessions.observing import OBSERVED_LOG_SECONDS
from gateway.wire.constants import Cmd
from gateway.wire.limits import MIB
from tests.embedded.peers import Client
from tests.sessions.gateways import gateway_before

OBSERVED = """
policies = [
    { use = "readonly", mode = "observe" },
    { use = "protect", ranges = ["0-511"], mode = "observe" },
    { use = "limit", connections = 1, mode = "observe" },
]
"""


async def test_what_would_be_refused_passes_and_is_logged() -> None:
    server = Server({"": MemoryDisk(MIB)}, PERSONALITIES["plain"])
    with structlog.testing.capture_logs() as lines:
        async with gateway_before(server, export=OBSERVED) as gateway:
            gateway.service.log = structlog.get_logger()
            clients = [gateway.client() for _ in range(2)]
            for client in clients:
                await client.go("", extended=True)
            for client in clients:
                async with client.stream:
                    assert not await client.error(Cmd.WRITE, 0, 4, data=b"here")
                    assert not await client.error(Cmd.WRITE, 4096, 4, data=b"more")
                    assert await client.read(0, 4) == b"here"
    told = [line for line in lines if line["event"].startswith("would be")]
    assert all(line["log_level"] == "warning" for line in told)
    shown = [line for line in told if line["event"] == "would be shown otherwise"]
    assert [line["with"] for line in shown] == [["READ_ONLY"]] * 2
    assert shown[0]["policies"] == ["readonly", "protect", "limit"]
    [denied] = [line for line in told if line["event"] == "would be denied"]
    assert denied["why"] == "limit: 1 connection is open, and 1 may be"
    refused = [line for line in told if line["event"] == "would be refused"]
    assert {(line["command"], line["error"]) for line in refused} == {("WRITE", "EPERM")}
    assert sum(line["count"] for line in refused) == 4
    assert refused[0]["first"] == "protect: WRITE: bytes 0 to 511 are protected"


@asynccontextmanager
async def before_a_disk_that_is_read_only_to_see() -> AsyncIterator[Client]:
    """A client of a view whose policy refuses to write, and is only observed."""
    server = Server({"": MemoryDisk(MIB)}, PERSONALITIES["plain"])
    readonly = 'policies = [ { use = "readonly", mode = "observe" } ]\n'
    async with gateway_before(server, export=readonly, seconds=1000) as gateway:
        gateway.service.log = structlog.get_logger()
        client = gateway.client()
        await client.go("", structured=False)
        async with client.stream:
            yield client


async def test_it_is_told_when_it_happens_and_then_seldom(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with structlog.testing.capture_logs() as lines:

        def told() -> list[int]:
            return [line["count"] for line in lines if line["event"] == "would be refused"]

        async with before_a_disk_that_is_read_only_to_see() as client:
            await client.error(Cmd.WRITE, 0, 4, data=b"here")
            await trio.testing.wait_all_tasks_blocked()
            assert told() == [1]
            for _ in range(100):
                await client.error(Cmd.WRITE, 0, 4, data=b"here")
            assert told() == [1]
            await trio.sleep(OBSERVED_LOG_SECONDS)
            await trio.testing.wait_all_tasks_blocked()
            assert told() == [1, 100]
            await trio.sleep(2 * OBSERVED_LOG_SECONDS)  # nothing has happened, nothing is said
            await client.error(Cmd.WRITE, 0, 4, data=b"here")
            await trio.testing.wait_all_tasks_blocked()
            assert told() == [1, 100, 1]
            await client.error(Cmd.WRITE, 0, 4, data=b"here")
    assert told() == [1, 100, 1, 1]  # the rest, at the end


async def test_the_first_of_each_kind_is_told_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with structlog.testing.capture_logs() as lines:
        async with before_a_disk_that_is_read_only_to_see() as client:
            for command in (Cmd.WRITE, Cmd.TRIM):
                await client.error(command, 0, 4, data=b"here" if command is Cmd.WRITE else b"")
                await trio.testing.wait_all_tasks_blocked()
                assert lines[-1]["event"] == "would be refused"
                assert lines[-1]["command"] == command.name


RATES = """
policies = [
    { use = "rate", bytes-per-second = 1, mode = "observe" },
    { use = "rate", operations-per-second = 1_000_000_000, mode = "observe" },
]
"""


async def test_a_rate_tells_what_it_would_have_held() -> None:
    server = Server({"": MemoryDisk(MIB)}, PERSONALITIES["plain"])
    with structlog.testing.capture_logs() as lines:
        async with gateway_before(server, export=RATES) as gateway:
            gateway.service.log = structlog.get_logger()
            client = gateway.client()
            await client.go("", extended=True)
            async with client.stream:
                for _ in range(3):
                    await client.read(0, 100_000)  # by that rate, a day each
    held = [line for line in lines if line["event"] == "would be held"]
    assert {(line["policy"], line["rate"]) for line in held} == {("rate", "1 bytes per second")}
    assert sum(line["count"] for line in held) == 2
    assert sum(line["seconds"] for line in held) == pytest.approx(200_000, rel=0.01)
    [never] = [line for line in lines if line["event"] == "would not be held"]
    assert never["rate"] == "1000000000 operations per second"


async def test_who_is_not_observed_has_no_gate() -> None:
    """Nothing is added to the way of a request where nothing is observed."""
    server = Server({"": MemoryDisk(MIB)}, PERSONALITIES["plain"])
    async with gateway_before(server, export="description = 'plain'\n") as gateway:
        client = gateway.client()
        await client.go("", extended=True)
        await client.read(0, 4)
        [session] = gateway.service.hub.sessions
        assert session.traffic.gate is None
        await client.stream.aclose()

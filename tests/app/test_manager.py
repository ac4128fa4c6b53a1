"""What systemd is told, over a real socket, and on a clock that jumps."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from gateway.app.manager import LOOK_SECONDS, TELL_SECONDS, Manager, manager_of
from gateway.hub.hub import Hub
from gateway.upstream.configured import StartError
from tests.app.houses import LISTEN, MEMORY, house
from tests.app.managers import ServiceManager, value

WATCHDOG_SECONDS = 4.0


@pytest.fixture
def systemd(workdir: Path) -> Iterator[ServiceManager]:
    made = ServiceManager(workdir / "notify")
    yield made
    made.close()


class Running:
    """A manager that is told, with what it is told of."""

    def __init__(self, manager: Manager, hub: Hub) -> None:
        self.manager = manager
        self.hub = hub
        self.sessions = 0

    def status(self) -> str:
        return f"sessions: {self.sessions}"


@asynccontextmanager
async def running(manager: Manager, *, hub_runs: bool = True) -> AsyncIterator[Running]:
    hub = Hub()
    made = Running(manager, hub)
    try:
        async with trio.open_nursery() as nursery:
            if hub_runs:
                nursery.start_soon(hub.run)
            nursery.start_soon(partial(manager.run, hub.waker.goes_round, made.status))
            await trio.testing.wait_all_tasks_blocked(0.01)
            yield made
            nursery.cancel_scope.cancel()
    finally:
        hub.close()
        manager.close()


async def pass_(clock: trio.testing.MockClock, seconds: float) -> None:
    clock.jump(seconds)
    await trio.testing.wait_all_tasks_blocked(0.01)


async def test_it_is_told_that_clients_can_connect_and_who_serves(
    systemd: ServiceManager, mock_clock: trio.testing.MockClock
) -> None:
    async with running(Manager(systemd.address)):
        assert systemd.at_once() == [["READY=1", f"MAINPID={os.getpid()}", "STATUS=sessions: 0"]]
        await pass_(mock_clock, 10 * LOOK_SECONDS)
        assert systemd.at_once() == []  # for nothing has changed, and it wants no sign of life


async def test_it_is_told_twice_in_its_time_that_the_hub_goes_round(
    systemd: ServiceManager, mock_clock: trio.testing.MockClock
) -> None:
    async with running(Manager(systemd.address, WATCHDOG_SECONDS)) as made:
        systemd.told()
        for _ in range(3):
            await pass_(mock_clock, WATCHDOG_SECONDS / 2)
            assert systemd.at_once() == [["WATCHDOG=1"]]
        made.sessions = 7
        await pass_(mock_clock, WATCHDOG_SECONDS / 2)
        assert systemd.at_once() == [["STATUS=sessions: 7", "WATCHDOG=1"]]


async def test_a_hub_that_does_not_go_round_gives_no_sign_of_life(
    systemd: ServiceManager, mock_clock: trio.testing.MockClock
) -> None:
    """All other tasks run."""
    async with running(Manager(systemd.address, WATCHDOG_SECONDS), hub_runs=False):
        systemd.told()
        for _ in range(5):
            await pass_(mock_clock, WATCHDOG_SECONDS / 2)
        assert systemd.at_once() == []


async def test_nobody_is_told_where_nobody_wants_to_be(mock_clock: trio.testing.MockClock) -> None:
    async with running(Manager()) as made:
        await made.manager.stopping(1, "")
        await pass_(mock_clock, LOOK_SECONDS)


async def test_one_that_takes_nothing_holds_up_nobody(
    systemd: ServiceManager, autojump_clock: trio.testing.MockClock
) -> None:
    manager = Manager(systemd.address)
    lines = structlog.testing.LogCapture()
    manager.log = structlog.wrap_logger(None, processors=[lines])
    began = trio.current_time()
    told = 0
    while not lines.entries:
        await manager.tell(f"STATUS={told}")
        told += 1
    assert trio.current_time() - began == pytest.approx(TELL_SECONDS)
    await manager.tell("STATUS=once more")
    assert [line["why"] for line in lines.entries] == ["it takes nothing"]
    assert systemd.at_once() == [[f"STATUS={number}"] for number in range(told - 1)]
    await manager.tell("STATUS=back")
    assert systemd.at_once() == [["STATUS=back"]]
    manager.close()


async def test_one_that_has_gone_is_told_of_once_and_the_next_is_told(workdir: Path) -> None:
    first = ServiceManager(workdir / "notify")
    manager = Manager(first.address)
    lines = structlog.testing.LogCapture()
    manager.log = structlog.wrap_logger(None, processors=[lines])
    await manager.tell("READY=1")
    first.close()
    for _ in range(3):
        await manager.tell("STATUS=there?")
    Path(first.address).unlink()
    await manager.tell("STATUS=there?")
    assert [line["why"] for line in lines.entries] == ["Connection refused"]
    second = ServiceManager(workdir / "notify")
    await manager.tell("STATUS=back")
    assert second.at_once() == [["STATUS=back"]]
    manager.close()
    second.close()


@pytest.mark.parametrize("wrong", [False, True])
async def test_a_reload_begins_and_is_over_whatever_comes_of_it(
    systemd: ServiceManager, workdir: Path, wrong: bool
) -> None:
    async with house(workdir, LISTEN + MEMORY) as made:
        made.now.manager = Manager(systemd.address)
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        answer = await made.reload("nonsense" if wrong else None)
        assert answer.ok is not wrong
        begins, over = systemd.at_once()
        assert (begins[0], over) == ("RELOADING=1", ["READY=1"])
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        assert before - 1000 <= int(value(begins, "MONOTONIC_USEC")) * 1000 <= after + 1000


# --- The environment


def test_what_it_says_is_taken_out_of_the_environment() -> None:
    environment = {
        "NOTIFY_SOCKET": "@n",
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    made = manager_of(environment)
    assert (environment, made.address, made.watchdog_seconds) == ({}, "@n", 3)
    assert made.environment == {"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "3000000"}


def test_a_watchdog_for_somebody_else_is_none_for_us() -> None:
    environment = {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}
    made = manager_of(environment)
    assert (environment, made.address, made.watchdog_seconds) == ({}, "/n", None)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"NOTIFY_SOCKET": "vsock:2:1"}, 'NOTIFY_SOCKET: expected a path, or "@"'),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "soon"}, "WATCHDOG_USEC: expected a number of"),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "0"}, 'microseconds, got "0"'),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "-1"}, 'microseconds, got "-1"'),
    ],
)
def test_what_means_nothing_is_refused(environment: dict[str, str], says: str) -> None:
    with pytest.raises(StartError, match=says):
        manager_of(environment)


async def test_one_with_an_abstract_address_is_told(workdir: Path) -> None:
    name = f"nbd-gateway-{os.getpid()}"
    systemd = ServiceManager(Path(f"\0{name}"))
    manager = Manager(f"@{name}")
    await manager.tell("READY=1")
    assert systemd.told() == ["READY=1"]
    manager.close()
    systemd.close()

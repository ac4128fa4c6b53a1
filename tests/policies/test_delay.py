from __future__ import annotations

import pytest
import trio
import trio.testing
from pydantic import ValidationError

from gateway.policy import RANGED, Cmd, CmdFlag, Errno, Failed, Request
from policies.delay import Delay
from tests.policies.harness import Disk, configured, do, view

NAMES = {
    "read": Cmd.READ,
    "write": Cmd.WRITE,
    "zero": Cmd.WRITE_ZEROES,
    "trim": Cmd.TRIM,
    "cache": Cmd.CACHE,
    "flush": Cmd.FLUSH,
    "block-status": Cmd.BLOCK_STATUS,
}


def request_of(command: Cmd) -> Request:
    return Request(command) if command is Cmd.FLUSH else Request(command, 512, 2, data=b"ab")


async def waited(options: dict[str, object], request: Request) -> float:
    """How many seconds a request takes; it has to reach the disk as it is."""
    disk, begun = Disk(), trio.current_time()
    await do(configured(Delay, options), request, disk)
    assert disk.asked == [request]
    return trio.current_time() - begun


@pytest.mark.parametrize("name", NAMES)
async def test_each_command_has_its_time(name: str, autojump_clock: trio.testing.MockClock) -> None:
    for other, command in NAMES.items():
        expected = 2.5 if other == name else 0
        assert await waited({name: 2.5}, request_of(command)) == pytest.approx(expected)
        expected = 2.5 if other == name else 4
        assert await waited({name: 2.5, "all": 4}, request_of(command)) == pytest.approx(expected)
    assert configured(Delay, {name: 1}).hooked(view()) == {NAMES[name]}
    assert configured(Delay, {name: 0, "all": 1}).hooked(view()) == set(NAMES.values()) - {
        NAMES[name]
    }


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (1, 1),
        (0.5, 0.5),
        ("0.5", 0.5),
        ("2s", 2),
        ("250ms", 0.25),
        ("1.5 us", 1.5e-6),
        (3600, 3600),
    ],
)
async def test_forms_of_a_time(
    value: object, seconds: float, autojump_clock: trio.testing.MockClock
) -> None:
    assert await waited({"read": value}, request_of(Cmd.READ)) == pytest.approx(seconds)


async def test_commands_do_not_wait_for_each_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    begun, policy, disk = trio.current_time(), configured(Delay, {"all": 1}), Disk()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(do, policy, request_of(Cmd.READ), disk)
    assert trio.current_time() - begun == pytest.approx(1)


async def test_opening(autojump_clock: trio.testing.MockClock) -> None:
    for options, seconds in (({"open": 3}, 3), ({"all": 3}, 0)):
        begun, policy = trio.current_time(), configured(Delay, options)
        assert await policy.prepare(view(), Disk()) is policy
        assert trio.current_time() - begun == pytest.approx(seconds)


def test_what_does_not_wait_costs_nothing() -> None:
    assert not configured(Delay, {"open": 1}).hooked(view())
    assert set(configured(Delay, {"all": 1}).hooked(view())) == RANGED | {Cmd.FLUSH}


async def test_fast_zeroes_that_are_not_fast(autojump_clock: trio.testing.MockClock) -> None:
    fast = Request(Cmd.WRITE_ZEROES, 0, 4096, flags=int(CmdFlag.FAST_ZERO))
    assert await waited({"zero": 1}, fast) == pytest.approx(1)
    disk, begun = Disk(), trio.current_time()
    with pytest.raises(Failed) as failure:
        await do(configured(Delay, {"fast-zero": False}), fast, disk)
    assert failure.value.error is Errno.ENOTSUP
    assert (disk.asked, trio.current_time()) == ([], begun)
    slow = fast.without(CmdFlag.FAST_ZERO)
    assert await waited({"zero": 1, "fast-zero": False}, slow) == pytest.approx(1)


@pytest.mark.parametrize("value", [-1, 3601, "1h", "", "ms", True, "nan", "inf"])
@pytest.mark.parametrize("name", [*NAMES, "all", "open"])
def test_mistakes(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match='expected seconds from 0 to 3600, or as in "250ms"'):
        configured(Delay, {name: value})

"""What the hub does beside its sessions."""

from __future__ import annotations

import pytest
import trio

from gateway.relay.hub import Hub


async def test_our_bugs_beside_the_sessions_are_said_and_end_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    hub = Hub()
    said: list[Exception] = []
    hub.failed = said.append
    done: list[str] = []
    bug = ZeroDivisionError("a bug")

    def fail() -> None:
        raise bug

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        await trio.sleep(1)
        hub.soon(fail)
        hub.later(1, lambda: done.append("later"))
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    hub.later(0, lambda: done.append("after its end"))
    hub.close()
    assert (said, done) == ([bug], ["later"])


async def test_a_bug_that_nobody_is_told_of_ends_the_hub() -> None:
    hub = Hub()

    def fail() -> None:
        raise ZeroDivisionError("a bug")

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hub.run)
            await trio.testing.wait_all_tasks_blocked()
            hub.soon(fail)
    hub.close()

"""What the hub does beside its sessions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from gateway.embedded import PERSONALITIES, MemoryDisk, Server
from gateway.relay.bundle.trunk import Joined
from gateway.relay.hub import Hub
from gateway.wire.constants import Cmd
from tests.relay.gateways import gateway_before


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


@pytest.mark.parametrize("where", ["push", "tick", "heard"])
async def test_a_bug_in_what_sessions_share_ends_those_alone(
    where: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Wherever it is met: when something is asked, when time passes, when bytes come."""
    disks = {name: MemoryDisk(1 << 20) for name in ("broken", "sound")}
    server = Server(disks, PERSONALITIES["plain"])
    async with gateway_before(server, upstream='connections = "shared"', seconds=300) as gateway:
        said: list[Exception] = []
        gateway.service.hub.failed = said.append
        broken, sound = gateway.client(), gateway.client()
        await broken.go("broken", structured=False)
        await sound.go("sound", structured=False)
        await trio.testing.wait_all_tasks_blocked()
        [trunk] = [
            each.opened.link.trunk
            for each in gateway.service.running
            if each.name == "broken" and isinstance(each.opened.link, Joined)
        ]

        def fail(*_: object) -> None:
            raise ZeroDivisionError("a bug")

        setattr(trunk.bundle, where, fail)
        if where == "tick":
            trunk.bundle._note_news()
        else:
            await broken.send(Cmd.READ, 0, 512)
        await trunk.closed.wait()
        assert any(isinstance(each, ZeroDivisionError) for each in leaves(said))
        assert len(said) < 5
        with trio.move_on_after(100):
            while len(gateway.service.running) > 1:
                await trio.sleep(1)
        assert (await sound.simple_reply_to(Cmd.READ, 0, 512))[1] == 0
        for client in (broken, sound):
            await trio.aclose_forcefully(client.stream)


def leaves(errors: list[Exception]) -> Iterator[Exception]:
    for error in errors:
        if isinstance(error, ExceptionGroup):
            yield from leaves(list(error.exceptions))
        else:
            yield error

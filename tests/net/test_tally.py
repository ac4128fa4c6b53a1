from __future__ import annotations

import trio
import trio.testing

from gateway.net.tally import Tally


async def test_what_happens_often_is_said_seldom(autojump_clock: trio.testing.MockClock) -> None:
    said: list[tuple[int, str, int]] = []

    def say(what: str, count: int, last: str) -> None:
        assert last == what * 2
        said.append((round(trio.current_time() - begun), what, count))

    tally = Tally(2, say)
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tally.run)
        for _ in range(10):
            tally.add("a", "aa")
            await trio.sleep(0.3)
        tally.add("b", "bb")
        await trio.sleep(7)
        tally.add("b", "bb")
        await trio.testing.wait_all_tasks_blocked()
        tally.add("c", "cc")
        nursery.cancel_scope.cancel()
    assert said == [
        (0, "a", 1),
        (2, "a", 6),
        (4, "a", 3),
        (4, "b", 1),
        (10, "b", 1),
        (10, "c", 1),
    ]

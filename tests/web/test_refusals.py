"""Who is refused is told to the log at once, and then seldom."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from gateway.web.doors import Caller
from gateway.web.refusals import REFUSED_LOG_SECONDS, Refusals, Wrong


async def test_a_scraper_with_a_wrong_token_fills_no_log(autojump_clock: MockClock) -> None:
    lines: list[tuple[str, str, int, float]] = []
    began = trio.current_time()
    refusals = Refusals(
        lambda why, client, count: lines.append((why, client, count, trio.current_time() - began))
    )
    scraper, stranger = Caller("loopback", "127.0.0.1:1"), Caller("other", "10.0.0.9:2")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refusals.run)
        for second in range(1, 601):
            refusals.add(Wrong.TOKEN, scraper, does=False)
            if second == 100:
                refusals.add(Wrong.HOST, stranger, does=True, shown="evil.example")
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    looks = [each for each in lines if each[1] == scraper.where]
    assert sum(count for _why, _client, count, _when in looks) == 600
    assert len(looks) <= 600 / REFUSED_LOG_SECONDS + 2
    assert looks[0] == ("a token that is none, to look", scraper.where, 1, 0.0)
    [other] = [each for each in lines if each not in looks]
    # It does not wait for the minute of those who look.
    why = "a Host that is not ours: evil.example, to have something done"
    assert other == (why, stranger.where, 1, 99.0)


async def test_what_is_not_told_yet_is_told_at_the_end(autojump_clock: MockClock) -> None:
    lines: list[tuple[str, str, int]] = []
    refusals = Refusals(lambda *line: lines.append(line))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refusals.run)
        for number in range(3):
            refusals.add(Wrong.TOKEN, Caller("loopback", str(number)), does=False)
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert [(client, count) for _why, client, count in lines] == [("0", 1), ("2", 2)]
